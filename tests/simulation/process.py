"""A run of the collector's main(), with its threads."""

from __future__ import annotations

import collections
import contextlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from .basics import Killed
from .network import Session
from .turns import Lock, Thread

if TYPE_CHECKING:
    from .ledger import Entry
    from .world import World

GRACE_S = 3  # after SIGTERM the process ends so much later, whatever its threads do


class Process:
    def __init__(
        self,
        world: World,
        kind: str,
        environ: dict[str, str],
        arguments: Sequence[str],
        stdout: int,
        since: float,
    ) -> None:
        self.world, self.turns = world, world.turns
        self.kind, self.arguments = kind, arguments
        self.environ, self.stdout = environ, stdout
        self.since = since  # s; of --missing-from, as early as it may be
        self.began = world.time
        self.main = getcurrent()
        self.threads = [self.main]
        self.status: int | None = None  # None: it runs, or was killed
        self.stopping = False  # SIGTERM came
        self.killed = False
        # Of side_by_side()
        self.error: Exception | None = None  # of one of the functions: the others are to end
        self.report_due = math.inf  # s; all times here are those of the world
        self.ends_by = math.inf  # s, whatever the threads do
        self.is_idle = False  # no thread has run since the last report
        # What it met, and what it said
        self.met: set = set()  # disturbances, and the faults and statuses of answers
        self.untold_at = -math.inf  # s; when a ping was not answered, at last
        self.suspended = world.suspended  # s; when it began
        self.passed_over: set = set()  # log types, and since when
        self.lines: collections.deque = collections.deque(maxlen=200)  # of its log
        self.passes: collections.Counter = collections.Counter()  # ended, by log type
        # What it leaves
        self.files: set = set()  # descriptors to close at its end
        self.unsaved: list[Entry] = []  # written, and in no checkpoint file

    # The edges that it is given

    def edges(self) -> Any:
        world = self.world
        edges = {
            "now": world.wall,
            "monotonic": world.monotonic,
            "wait": self.wait,
            "lock": self.lock,
            "session": lambda: Session(world),
            "side_by_side": self.side_by_side,
        }
        known = world.module.Edges.__dataclass_fields__
        return world.module.Edges(**{name: edge for name, edge in edges.items() if name in known})

    def wait(self, seconds: float) -> bool:
        """Until then, or until the process is to end: whether it is."""
        if not self.is_ending:
            thread = getcurrent()
            thread.is_waiting = True
            self.sleep(max(0.0, seconds) + 0.0005)  # a sleep is never too short
            thread.is_waiting = False
        return self.is_ending

    def lock(self) -> Lock:
        return Lock(self.turns)

    def side_by_side(
        self, functions: Sequence[Callable[[], Any]], report: Callable[[], Any], every_s: float = 1
    ) -> bool:
        """Run each function in a thread; report as often as that, if any has run since."""
        threads = [Thread(self.turns, partial(self.run_thread, one), self) for one in functions]
        self.threads += threads
        for thread in threads:
            self.turns.wake(thread)
        self.error = None
        self.ends_by = math.inf
        self.report_due = self.world.time + every_s
        self.is_idle = True
        while not all(thread.dead for thread in threads):
            if self.is_ending:
                self.ends_by = min(self.ends_by, self.world.time + GRACE_S)
            if self.world.time >= self.ends_by:
                break
            if self.main_is_due < math.inf:
                self.turns.wake(self.main, self.main_is_due)
            self.main.is_waiting = True
            self.sleep_until_woken()
            self.main.is_waiting = False
            if self.world.time >= self.report_due and not self.is_idle:
                self.is_idle = True
                self.report_due = self.world.time + every_s
                report()
        if self.error:
            raise self.error
        return self.stopping

    @property
    def is_sure_of_time(self) -> bool:
        """Whether Duo tells it, or the local clock is right enough, and the machine was not
        suspended."""
        is_told = self.untold_at < 0 or not self.world.is_clock_wrong
        return is_told and self.suspended == self.world.suspended

    # Turns

    @property
    def is_ending(self) -> bool:
        return self.stopping or self.error is not None

    @property
    def main_is_due(self) -> float:
        """When the main thread has something to do, unless a thread ends before."""
        return min(self.ends_by, math.inf if self.is_idle else self.report_due)

    def run_thread(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Killed:
            return
        except Exception as error:
            self.error = self.error or error
            self.wake_waiting()
        self.wake_main(self.world.time)

    def wake_main(self, when: float) -> None:
        if self.main.is_waiting:
            self.turns.wake(self.main, when)

    def sleep(self, seconds: float) -> None:
        """Of the thread that has its turn: what it does, or waits for, takes so long."""
        self.note_turn()
        self.turns.sleep(seconds)
        self.check_alive()

    def sleep_until_woken(self) -> None:
        self.note_turn()
        self.turns.sleep_until_woken()
        self.check_alive()

    def note_turn(self) -> None:
        self.check_alive()
        if self.is_idle and getcurrent() is not self.main:
            self.is_idle = False
            self.wake_main(self.main_is_due)

    def check_alive(self) -> None:
        if self.killed:
            raise Killed

    def stop(self) -> None:
        """SIGTERM."""
        self.stopping = True
        self.wake_waiting()

    def wake_waiting(self) -> None:
        for thread in self.threads:
            if thread.is_waiting:
                self.turns.wake(thread)

    def kill(self) -> None:
        """None of its threads does anything any more. In one of them, raise Killed after this."""
        self.killed = True
        for thread in self.threads:
            if not thread.dead and thread is not getcurrent():
                self.turns.wake(thread, is_first=True)

    def end(self) -> None:
        """main() has returned, or was killed: whatever its threads do, they do it no more."""
        self.kill()
        self.turns.sleep(0)
        for fd in self.files:
            with contextlib.suppress(OSError):
                os.close(fd)
