#!/usr/bin/env python3
"""Run a Python script on a fast clock, or on a disk whose fsync is slow.

    under.py '{"clock": [SPEED, SINCE, WALL]}' SCRIPT ARGUMENT...
    under.py '{"fsyncs": REPORT}' SCRIPT ARGUMENT...

The script is unchanged, and its sockets are real. It imports nothing but the standard library, so
that a run costs what it costs without.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
from typing import Any, NamedTuple

SLOW_FSYNC_S = 0.02  # more than this disk's: what a hard disk takes


class Clock(NamedTuple):
    """A clock that has run `speed` times as fast as the real one since a moment, in all processes
    that install it the same."""

    speed: float
    since_s: float  # by time.monotonic, which all processes share
    wall_s: float

    @classmethod
    def from_now(cls, speed: float) -> Clock:
        return cls(speed, time.monotonic(), time.time())

    def install(self) -> None:
        """From here on this process goes by it, but for the timeouts of sockets."""
        monotonic = time.monotonic
        time.monotonic = lambda: self.since_s + (monotonic() - self.since_s) * self.speed
        time.time = lambda: self.wall_s + (monotonic() - self.since_s) * self.speed
        self._shorten(time, "sleep")
        self._shorten(threading.Condition, "wait")  # of events, too
        self._shorten(threading.Thread, "join")

    def _shorten(self, owner: Any, name: str) -> None:
        """Let a function wait for less; the time is its last argument."""
        wait = getattr(owner, name)

        def shorter(*arguments: Any, **named: float | None) -> Any:
            if named.get("timeout"):
                named["timeout"] /= self.speed
            if arguments and isinstance(arguments[-1], (int, float)):
                arguments = (*arguments[:-1], arguments[-1] / self.speed)
            return wait(*arguments, **named)

        setattr(owner, name, shorter)


def slow_down_fsync(report: str) -> None:
    """Let each fsync take longer, and add a line with its time (s) to a file."""
    fsync = os.fsync
    file = open(report, "a", buffering=1)

    def slow_fsync(fd: int) -> None:
        start_s = time.monotonic()
        fsync(fd)
        time.sleep(SLOW_FSYNC_S)
        print(time.monotonic() - start_s, file=file)

    os.fsync = slow_fsync


def main(conditions: dict[str, Any], script: str, *arguments: str) -> None:
    if "clock" in conditions:
        Clock(*conditions["clock"]).install()
    if "fsyncs" in conditions:
        slow_down_fsync(conditions["fsyncs"])
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *sys.argv[2:])
