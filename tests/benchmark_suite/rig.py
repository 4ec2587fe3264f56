"""The modules that are measured, the tenant that they meet, and how they are run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple

from duo import LOG_TYPES, Rules, Simulator, iter_events

from .under import Clock

DAY_MS = 86_400_000
EVENTS_PER_DAY = 75_000  # of the busiest tenant known; a longer backlog is no denser
DEFAULT_LOG_TYPES = ("authentication", "telephony", "administrator")
UNHURRIED = {"DUO_REQUESTS_PER_MINUTE": "1000000"}  # so that no pace of its own holds it up
UNDER = str(Path(__file__).with_name("under.py"))

# A process of its own and small, because a child's peak memory begins with that of its parent.
LAUNCHER = """
import json, os, sys, time
output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
start = time.monotonic()
pid = os.fork()
if not pid:
    os.dup2(output, 1)
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
wall = time.monotonic() - start
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), wall, cpu, usage.ru_maxrss]))
"""


class Module(NamedTuple):
    """A duo_collector.py."""

    label: str
    path: str

    def command(self, *options: str) -> list[str]:
        return [sys.executable, self.path, "--env-file", "/dev/null", *options]

    def once(self, *log_types: str) -> list[str]:
        return self.command("--once", "--log-types", ",".join(log_types))


def read_modules(path: str, beside: str | None) -> list[Module]:
    """The module to measure, and one beside it if there is one, told apart by their versions."""
    if beside is None:
        return [Module("duo_collector", path)]
    version = read_version(path)
    other_version = read_version(beside)
    if version == other_version:
        return [Module("duo_collector", path), Module("beside", beside)]
    return [
        Module(f"duo_collector {version}", path),
        Module(f"duo_collector {other_version}", beside),
    ]


def read_version(path: str) -> str:
    text = Path(path).read_text()
    found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    return found[1] if found else "of no version"


# The tenant, in a process of its own


class Note(NamedTuple):
    """What is kept of a request."""

    at_s: float  # by time.monotonic
    path: str
    log_type: str | None  # None: the ping
    status: int
    connection: int


class Tenant(Simulator):
    """The simulated tenant, with what the benchmark asks of it from another process."""

    def __init__(self, rules: dict[str, Any]) -> None:
        # Not the defaults of Simulator: a fast clock may have been installed since.
        super().__init__(Rules(**rules), wall=time.time, monotonic=time.monotonic)
        self.pages_left = -1
        self.change: tuple[str, Any] = ("", None)
        self.start()

    def told(self) -> dict[str, str]:
        return self.settings

    def change_after(self, pages: int, rule: str, value: Any) -> None:
        """Change a rule once so many more pages have been given."""
        self.pages_left = pages
        self.change = (rule, value)

    def respond(self, method: str, target: str, *request: Any) -> Any:
        is_log = not target.startswith("/auth/")
        if is_log and self.pages_left == 0:
            setattr(self.rules, *self.change)
        answer = super().respond(method, target, *request)
        if is_log and answer.status == 200:
            self.pages_left -= 1
        return answer

    def fill(self, log_type: str, count: int, start_ms: int, end_ms: int, tiny: bool) -> None:
        self.add(log_type, (iter_tiny if tiny else iter_events)(log_type, count, start_ms, end_ms))

    def take_notes(self) -> list[Note]:
        """The requests since the last call."""
        requests = self.requests[:]
        self.requests.clear()
        return [Note(r.monotonic, r.path, r.log_type, r.status, r.connection) for r in requests]


def iter_tiny(log_type: str, count: int, start_ms: int, end_ms: int) -> Iterator[dict[str, Any]]:
    """Evenly spread events, so small that a page of them takes little CPU."""
    log = LOG_TYPES[log_type]
    for number in range(count):
        at_ms = start_ms + number * (end_ms - start_ms) // count
        at_ms -= at_ms % log.unit_ms
        event = {log.id_field or "object": f"{number:08}", "at_ms": at_ms}
        yield {**event, log.time_fields[0]: _time(log_type, at_ms)}


def _time(log_type: str, at_ms: int) -> Any:
    """An event's time as its log type gives it."""
    if log_type == "trust_monitor":
        return at_ms
    if LOG_TYPES[log_type].unit_ms == 1000:
        return at_ms // 1000
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat()


class Manager(BaseManager):
    """Runs a Tenant in a process of its own."""


Manager.register("Tenant", Tenant, exposed=("told", "change_after", "fill", "take_notes", "now_ms"))


@contextlib.contextmanager
def tenant(clock: Clock | None = None, **rules: Any) -> Iterator[tuple[Any, str]]:
    """A Tenant, to be called as if it were here, and an empty folder on a disk (/tmp may be
    memory)."""
    manager = Manager(ctx=get_context("spawn"))
    manager.start(clock and clock.install)
    folder = tempfile.TemporaryDirectory(prefix="duo_benchmark.", dir="/var/tmp")
    with manager, folder as path:
        yield manager.Tenant(rules), path


# Running a module


def environment(duo: Any, folder: str, since_ms: int, **more: str) -> dict[str, str]:
    """The settings of a run that begins at a time, unless `folder` has a checkpoint file."""
    seeds = {
        "AUTH_SINCE_TIME": since_ms,
        "TELEPHONY_SINCE_TIME": since_ms,
        "ACTIVITY_SINCE_TIME": since_ms,
        "TRUST_MONITOR_SINCE_TIME": since_ms,
        "ADMIN_SINCE_TIME": since_ms // 1000,
        "OFFLINE_ENROLLMENT_SINCE_TIME": since_ms // 1000,
    }
    return {
        "PATH": os.environ["PATH"],
        "DUO_CHECKPOINT_FILE": os.path.join(folder, "checkpoints.json"),
        **duo.told(),
        **{name: str(value) for name, value in seeds.items()},
        **more,
    }


class Usage(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure(command: list[str], environ: dict[str, str], output: str = os.devnull) -> Usage:
    """Run a command, its stdout in a file. Raises RuntimeError."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, output, *command]
    done = subprocess.run(launcher, env=environ, capture_output=True, text=True)
    status, *usage = json.loads(done.stdout or "[1]")
    if status:
        raise RuntimeError(f"exit status {status}: {done.stderr}")
    wall_s, cpu_s, peak = usage
    peak_unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, else KB
    return Usage(wall_s, cpu_s, peak / peak_unit)


def run(
    command: list[str],
    environ: dict[str, str],
    stop_after_s: float = 600,
    statuses: tuple[int, ...] = (0,),
) -> None:
    """Run a module to its end, or stop it; events go to a file. Raises RuntimeError."""
    with tempfile.TemporaryFile(dir=os.path.dirname(environ["DUO_CHECKPOINT_FILE"])) as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.PIPE)
        stop = threading.Timer(stop_after_s, process.terminate)
        stop.start()
        said = process.communicate()[1]
        stop.cancel()
    if process.returncode not in statuses:
        raise RuntimeError(f"exit status {process.returncode}: {said.decode()}")


def under(conditions: dict[str, Any], command: list[str]) -> list[str]:
    """The same command of Python under other conditions; see under.py."""
    return [command[0], UNDER, json.dumps(conditions), *command[1:]]
