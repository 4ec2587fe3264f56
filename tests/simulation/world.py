"""The clock that all go by, the timeline of what happens, and the processes."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import random
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from duo import Rules, Simulator
from greenlet import getcurrent

from . import checks
from .basics import DAY, HOUR, START, Failure, Killed, checkpoints_in, stamp
from .disturbances import DISTURBANCES, habits, lasts
from .ledger import Ledger
from .machine import Disk, Stream
from .operators import Operator
from .process import Process
from .publication import Publication
from .turns import Turns

ALL_DAY = ("missing_from", "rotation")  # so frequent that no shorter interval is tried around them


class Life(NamedTuple):
    """What is asked for on the command line."""

    module: Path
    seed: int
    days: float
    without: tuple[str, ...] = ()
    often: float = 1
    interval: float | None = None  # s; None: drawn
    is_verbose: bool = False


class Stdout:
    """As much of sys.stdout as the collector uses."""

    def __init__(self, world: World) -> None:
        self.world = world

    def fileno(self) -> int:
        return self.world.process.stdout

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass


class World:
    def __init__(self, module: Any, life: Life, folder: Path) -> None:
        self.module, self.life, self.folder = module, life, folder
        self.seed, self.is_verbose, self.interval = life.seed, life.is_verbose, life.interval
        self.draw = random.Random(f"{self.seed} world")
        self.latency = random.Random(f"{self.seed} latency")
        self.turns = Turns(self.seed, START)
        self.end = START + life.days * DAY
        # The local clock, and what else goes by it (s)
        self.wall_offset = self.drift = self.drift_since = self.suspended = self.stepped = 0.0
        self.was_wrong = -math.inf  # when the local clock was set, wrong or right
        self.steps_due: list[tuple[int, float]] = []  # after so many requests, by so many s
        self.booted = self.time - 1000
        # What happens
        self.active: collections.Counter = collections.Counter()
        self.happened: collections.Counter = collections.Counter()
        self.calm_since = self.time
        self.network: str | None = None
        self.link_bytes_per_s = 0.0
        self.lookback = self.draw.choice((60, 300, 300, 600, 1800))
        self.has_odd_v1_times = self.draw.random() < 0.5
        self.habits: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []
        # Who is there
        self.duo = Simulator(
            Rules(seed=self.seed), wall=lambda: self.time, monotonic=lambda: self.time
        )
        self.processes: list[Process] = []
        self.streams: dict[int, Stream] = {}
        self.output: Stream
        self.lives = self.requests = self.passes = 0
        self.checkpoints: dict[str, float] = {}  # s, by log type, of the service
        self.checkpoints_before: dict[str, float] = {}
        self.checkpoint_file = str(folder / "checkpoints.json")
        self.ledger = Ledger(self)
        self.publication = Publication(self)
        self.disk = Disk(self)
        self.install()
        self.operator = Operator(self)
        self.draw_timeline()

    def install(self) -> None:
        """Put the edges that main() is not given in their places."""

        def no_edge(*_: Any) -> None:
            raise Failure("the clock was read past the edges")

        clocks = dict.fromkeys(("time", "monotonic", "sleep", "time_ns", "monotonic_ns"), no_edge)
        self.module.os = self.disk
        self.module.open = self.disk.open_file
        self.module.time = types.SimpleNamespace(**{**vars(time), **clocks})
        self.module.random = random.Random(f"{self.seed} module")

    def has(self, name: str) -> bool:
        return name not in self.life.without

    # Time

    @property
    def time(self) -> float:
        return self.turns.time

    def wall(self) -> float:
        return self.time + self.wall_offset + self.drift * (self.time - self.drift_since)

    def monotonic(self) -> float:
        return max(0.0, self.time - self.booted) - self.suspended

    @property
    def is_clock_wrong(self) -> bool:
        return abs(self.wall() - self.time) > 30

    def step_clock(self, seconds: float) -> None:
        self.wall_offset += seconds
        self.was_wrong = self.time
        self.stepped = self.time
        self.tell(f"the clock steps by {seconds:.1f} s")

    def step_in_midst_of_a_pass(self, noted: Any) -> None:
        """After an answer of a log: the clock steps if it was to do so after so many."""
        if noted.log_type and self.steps_due:
            for left, step in self.steps_due:
                if left == 0:
                    self.step_clock(step)
            self.steps_due = [(left - 1, step) for left, step in self.steps_due if left > 0]

    def rest(self, seconds: float) -> None:
        """Of the operator: at least for so long, and while there is no power."""
        self.turns.sleep(max(seconds, self.booted + 5 - self.time))

    def at(self, when: float, happens: Callable[[], Any]) -> None:
        self.turns.at(when, happens)

    def draw_timeline(self) -> None:
        for name in DISTURBANCES:
            if self.has(name):
                self.draw_disturbance(name)
        for stall in self.publication.stalls:
            self.at(stall.end, lambda stall=stall: self.ledger.stall_ends(stall))
            if self.has("full_output") and self.draw.random() < 0.3:  # by what comes then at once
                fill = lambda: self.happen("full_output", self.draw.uniform(0.1, 2), self.draw)  # noqa: E731
                self.at(stall.end - self.draw.uniform(0, 0.3) * HOUR, fill)
        for day in range(int(self.life.days) + 1):
            self.at(START + day * DAY, lambda day=day: self.new_day(day))
            for half in range(48):
                when = START + day * DAY + half * 1800 + 900
                self.at(when, lambda: checks.check_progress(self))
        self.at(self.end, self.stop_service)
        self.publication.history()

    def draw_disturbance(self, name: str) -> None:
        """When it begins, and where the service runs more often around it; each from a generator of
        its own, so that one can be left out without changing the others."""
        row = DISTURBANCES[name]
        draw = random.Random(f"{self.seed} {name}")
        haste = random.Random(f"{self.seed} haste {name}")
        if name == "habits":
            habits(self, draw)
        often = self.life.often
        if name == "missing_from":
            often = min(3, often)  # at most once a day
        when = float(START)
        while row.per_year:
            when += draw.expovariate(row.per_year * often / (365 * DAY))
            if when > self.end + 5 * HOUR:  # the haste before it may begin earlier
                break
            hours = lasts(*row.hours, draw)
            seed = draw.random()
            if name == "pipeline_stall":
                self.publication.draw_stall(when, when + hours * HOUR, draw)
            begins = lambda h=hours, s=seed: self.happen(name, h, random.Random(s))  # noqa: E731
            self.at(when, begins)
            if not self.interval and name not in ALL_DAY and haste.random() < 0.08:
                begin = when - haste.uniform(0, 5) * HOUR
                end = when + (min(hours, 12) + haste.uniform(0, 8)) * HOUR
                interval = haste.choice((120.0, 300.0, 300.0, 300.0, 300.0))
                self.at(begin, lambda i=interval: self.operator.hurry(i))
                self.at(end, lambda i=interval: self.operator.slow_down(i))

    def new_day(self, day: int) -> None:
        for name in self.ledger.by_time:
            self.publication.make_day(name, START + day * DAY)
        if day % 30 == 0:
            self.ledger.forget()
        if len(self.duo._issued) > 5000:
            self.duo._issued = dict(list(self.duo._issued.items())[-1000:])
        if day % 7 == 0:
            self.operator.back_up()

    def happen(self, name: str, hours: float, draw: random.Random) -> None:
        row = DISTURBANCES[name]
        self.tell(f"{name}" + (f" for {hours:.1f} h" if hours else ""))
        self.happened[name] += 1
        for process in self.processes:
            process.met.add(name)
        if hours:
            self.active[name] += 1
        elif not row.is_harmless:
            self.calm_since = self.time
        end = row.begin(self, draw)
        if hours:
            self.at(self.time + hours * HOUR, lambda: self.over(name, end))
        elif not row.is_harmless:
            self.calm_since = self.time

    def over(self, name: str, end: Callable[[], Any] | None) -> None:
        self.tell(f"{name} is over")
        self.active[name] -= 1
        if end:
            end()
        if not DISTURBANCES[name].is_harmless:
            self.calm_since = self.time

    def change_rules(self, changes: dict[str, Any]) -> Callable[[], Any]:
        """Add changes to the habits; what is returned takes them back."""
        self.changes.append(changes)
        self.apply_rules()

        def take_back() -> None:
            self.changes = [one for one in self.changes if one is not changes]
            self.apply_rules()

        return take_back

    def apply_rules(self) -> None:
        wanted = dict(self.habits)
        for changes in self.changes:
            wanted.update(changes)
        for name, default in vars(Rules(seed=self.seed)).items():
            value = wanted.get(name, default)
            if getattr(self.duo.rules, name) != value:
                setattr(self.duo.rules, name, value)

    # Processes

    @property
    def process(self) -> Process:
        """The one whose thread has its turn."""
        return getcurrent().process

    @property
    def service(self) -> Process | None:
        return next((one for one in self.processes if one.kind == "service"), None)

    @property
    def is_on(self) -> bool:
        return self.booted < self.time

    def run(
        self, kind: str, environ: dict[str, str], *arguments: str, stdout: int, since: float = 0.0
    ) -> Process:
        """A process from its start to its end, in the present thread."""
        process = Process(self, kind, {"PATH": "", **environ}, arguments, stdout, since)
        process.met.update(name for name, count in self.active.items() if count)
        if environ["DUO_SECRET_KEY_FILE"] == str(self.folder / "wrong.key"):
            process.met.add("wrong_key")
        self.processes.append(process)
        process.main.process = process
        self.tell(f"{kind} begins: {' '.join(arguments)}")
        try:
            process.status = self.module.main(
                ["--env-file", "/dev/null", *arguments], process.edges()
            )
        except Killed:
            pass
        except Exception:
            raise Failure(f"{kind} crashed: {traceback.format_exc()}") from None
        process.end()
        self.processes.remove(process)
        process.main.process = None
        if kind == "missing":  # of which no checkpoint file knows
            self.disk.undone += [(self.time, entry) for entry in process.unsaved]
        for stream in self.streams.values():
            stream.process_ended()
        self.lives += kind == "service"
        status = "killed" if process.status is None else process.status
        self.tell(f"{kind} ends: {status}")
        checks.check_status(self, process)
        return process

    def stop_service(self) -> None:
        if self.service:
            self.service.stop()

    def kill_service(self) -> None:
        if self.service:
            self.service.kill()
            self.forgive(self.service)

    def die(self, process: Process) -> None:
        """Of the process whose turn it is."""
        if self.has("power_failure") and self.draw.random() < 0.3:
            self.power_fails(self.draw)
        else:
            process.kill()
            self.forgive(process)
        raise Killed

    def power_fails(self, draw: random.Random) -> None:
        self.disk.power_fails(draw)
        self.booted = self.time + draw.uniform(20, 300)
        self.suspended = 0.0
        for process in self.processes:
            process.kill()
            self.forgive(process)

    def forgive(self, process: Process) -> None:
        """What the process wrote since its last checkpoint may be written again."""
        process.met.add("disk")
        if process.kind == "service":
            for entry in process.unsaved:
                entry.allowed += 1
        for stream in self.streams.values():
            stream.orphans.update(map(id, process.unsaved))
        process.unsaved = []

    def saved(self, data: bytes) -> None:
        """A new checkpoint file is in place."""
        process = self.process
        self.disk.undone += [(self.time, entry) for entry in process.unsaved]
        process.unsaved = []
        if len(data) > 600_000:
            raise Failure(f"the checkpoint file has {len(data):,} bytes")
        if process.kind != "service":
            raise Failure(f"{process.kind} has changed the checkpoint file")
        for name, at in checkpoints_in(data).items():
            self.checkpoints[name] = at
            self.ledger.checkpoint(name, at, process)

    def said(self, text: str) -> None:
        for line in text.splitlines():
            self.process.lines.append(line)
            if self.is_verbose:
                self.tell("    " + line[21:] if line[:2] == "20" else line)
            checks.check_words(self, self.process, line)

    def tell(self, text: str) -> None:
        if self.is_verbose:
            day = (self.time - START) / DAY
            print(f"{day:8.3f} {stamp(self.time)} {text}", file=sys.__stdout__, flush=True)

    def live(self) -> None:
        """From the first day to the last. Raises Failure."""
        try:
            with contextlib.redirect_stdout(Stdout(self)):
                self.turns.run(self.operator.live)
        finally:
            self.close()

    def close(self) -> None:
        """No thread is left behind: it would run on where it is collected."""
        for process in self.processes:
            process.killed = True
        self.turns.end()
        for stream in self.streams.values():
            os.close(stream.fd)
