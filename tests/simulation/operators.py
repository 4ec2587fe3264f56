"""Who runs the collector: by a timer or as a loop, with all that operators do."""

from __future__ import annotations

import collections
import gzip
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duo import LOG_TYPES

from .basics import (
    BUSY,  # fmt: skip
    DAY,
    HOST,
    HOUR,
    OTHERS,
    SCRIPT,
    SINCE_KEYS,
    START,
    Failure,
    checkpoints_in,
    stamp,
)
from .machine import Stream
from .turns import Thread

if TYPE_CHECKING:
    from .world import World

SEED = START - 2 * 86_400  # s; what is older is not wanted, at first


class Operator:
    def __init__(self, world: World) -> None:
        self.world, self.ledger = world, world.ledger
        self.todo: list[Callable[[], Any]] = []  # as soon as the service does not run
        self.jobs = 0  # that run beside the service
        self.log_types: tuple[str, ...] = BUSY
        self.is_timer = False  # with --once, by a timer; or as a loop
        self.settled = world.interval or self.draw_interval(world.draw)
        self.haste: list[float] = []  # shorter intervals that are wanted for a time
        self.interval = self.former = (
            self.settled
        )  # of the running service, and before it was changed
        self.changed = 0.0
        self.key_file = world.folder / "secret.key"
        self.wrong_key_file = world.folder / "wrong.key"
        self.wrong_key_file.write_text("0" * 40)
        self.write_key()
        self.has_seeds = True
        self.off_s = 0.0  # that the service is left alone after the next kill
        self.rotated: dict[Path, float] = {}  # files, and when their last line was written
        self.backup: tuple[bytes | None, dict[str, float]] = (None, {})
        self.open_output()
        for name in BUSY:
            self.ledger.floor[name] = SEED

    @property
    def environ(self) -> dict[str, str]:
        seeds = {}
        if self.has_seeds:
            for name in BUSY:
                seeds[SINCE_KEYS[name]] = str(SEED * (1000 // LOG_TYPES[name].unit_ms))
        return {
            "DUO_API_HOST": f"https://{HOST}",
            "DUO_INTEGRATION_KEY": self.world.duo.ikey,
            "DUO_SECRET_KEY_FILE": str(self.key_file),
            "DUO_CHECKPOINT_FILE": self.world.checkpoint_file,
            "DUO_LOG_TYPES": ",".join(self.log_types),
            "DUO_INTERVAL": "300" if self.is_timer else f"{self.interval:.0f}",
            "DUO_LOOKBACK": str(self.world.lookback),
            **seeds,
        }

    def open_output(self) -> None:
        world = self.world
        world.output = Stream(world.folder / "output.jsonl", self.ledger)
        world.streams = {world.output.fd: world.output}

    def live(self) -> None:
        """Until the end of the world: run the service, and between its runs what waits for that."""
        world = self.world
        while world.time < world.end:
            while self.todo:
                while self.jobs:
                    world.rest(10)
                self.todo.pop(0)()
            if world.time >= world.end:
                break
            once = ["--once"] if self.is_timer else []
            process = world.run("service", self.environ, *once, stdout=world.output.fd)
            if process.status in (74, 78):
                pause = 60.0
            elif self.is_timer:
                pause = self.interval
            else:
                pause = world.draw.uniform(1, 60)
            if process.status is None or (self.is_timer and process.stopping):
                pause = max(pause, self.off_s)  # a timer starts it again only after its interval
                self.off_s = 0.0
                world.calm_since = max(world.calm_since, world.time + pause)
            world.rest(pause)

    def between_runs(self, action: Callable[[], Any]) -> None:
        """Stop the service, do that, start it again."""
        self.todo.append(action)
        self.world.stop_service()

    # Beside the service

    def begin_job(self, job: Callable[[random.Random], None], draw: random.Random) -> None:
        """In a thread of its own, unless another runs, or there is no power."""

        def run() -> None:
            try:
                job(draw)
            finally:
                self.jobs -= 1

        if not self.jobs and self.world.is_on:
            self.jobs += 1
            self.world.turns.wake(Thread(self.world.turns, run))

    def rotate(self, draw: random.Random) -> None:
        world, stream = self.world, self.world.output
        if stream.tail or self.jobs or stream.path in self.rotated or not world.is_on:
            return
        for path in [path for path, at in self.rotated.items() if at < world.time - 3 * DAY]:
            path.unlink(missing_ok=True)
            del self.rotated[path]
        path = world.folder / f"output.jsonl.{world.happened['rotation']}"
        if draw.random() < 0.75:  # copytruncate
            shutil.copyfile(stream.path, path)
            os.truncate(stream.path, 0)
            stream.truncated()
            if draw.random() < 0.3:
                path.write_bytes(gzip.compress(path.read_bytes(), 1))
                path = path.rename(f"{path}.gz")
            os.utime(path, (stream.changed, stream.changed))
        else:
            os.replace(stream.path, path)
            stream.path = path
            self.between_runs(lambda: (stream.close(), self.open_output()))
        self.rotated[path] = world.time

    def rotate_key(self, draw: random.Random) -> Callable[[], Any]:
        """Duo has a new secret key, and after a while so has the file; the service runs on."""
        self.world.duo.skey = f"{draw.getrandbits(160):040x}"
        return self.write_key

    def write_key(self) -> None:
        (self.world.folder / "secret.key").write_text(self.world.duo.skey)

    def replay(self, draw: random.Random) -> None:
        self.begin_job(self.run_replay, draw)

    def run_replay(self, draw: random.Random) -> None:
        """Prints what lies between, each event once, whatever the service does."""
        world, now = self.world, self.world.time
        since = int(now - draw.uniform(1, 72) * HOUR)
        until = int(min(since + draw.uniform(0.1, 24) * HOUR, now - 200))
        when, slack = self.way_to_write(draw)
        path, log_types = world.folder / "replay.jsonl", self.log_types
        arguments = ("--since", when(since), "--until", when(until))
        with open(path, "wb") as file:
            process = world.run("replay", self.environ, *arguments, stdout=file.fileno())
        if process.status != 0 or not process.is_sure_of_time:
            return
        got: collections.Counter = collections.Counter()
        for line in path.read_bytes().splitlines():
            entry = self.ledger.took(line)
            got[entry] += 1
        within = (since - slack, until + slack)
        for entry, count in got.items():
            is_in_range = within[0] <= entry.time <= within[1] or entry.is_odd
            if count > (entry.count if is_in_range and entry.shown <= world.time else 0):
                raise entry.failure(f"was printed {count} times by {' '.join(arguments)}")
        for name in log_types:
            for time_s, key in self.ledger.since(name, since + slack):
                entry = self.ledger.entries[key]
                is_due = since + slack < time_s < until - slack and entry.shown < now
                if (
                    is_due
                    and got[entry] < entry.count
                    and not self.ledger.is_out_of_reach(name, time_s)
                ):
                    times = f"{got[entry]} times of {entry.count}"
                    raise entry.failure(f"was printed {times} by {' '.join(arguments)}")

    def way_to_write(self, draw: random.Random) -> tuple[Callable[[float], str], float]:
        """A time as --since and --until take it, and by how many s it may be off: an age is reckoned
        from the moment at which the collector knows the time."""
        now = self.world.time
        if draw.random() < 0.5:
            return stamp, 1
        return lambda at: f"{now - at:.0f}s", 150

    def missing_from(self, draw: random.Random) -> None:
        if (
            self.world.checkpoints
            and not self.world.disk.is_unreadable
            and not self.world.output.tail
        ):
            self.begin_job(self.run_missing_from, draw)

    def run_missing_from(self, draw: random.Random) -> None:
        """The daily job that finds what Duo published hours late."""
        world, now = self.world, self.world.time
        since = int(now - draw.choice((10, 26, 48)) * HOUR)
        when, slack = self.way_to_write(draw)
        rotated = [str(path) for path, at in self.rotated.items() if at > since and path.exists()]
        files = (
            [f"{world.folder}/output.jsonl*"]
            if draw.random() < 0.5
            else [*rotated, str(world.output.path)]
        )
        log_types = self.log_types
        checkpoints = dict(world.checkpoints)
        arguments = ("--since", when(since), "--missing-from", *files)
        process = world.run(
            "missing", self.environ, *arguments, stdout=world.output.fd, since=since - slack
        )
        if process.status != 0 or not process.is_sure_of_time:
            return
        if "another range" in process.met:
            raise Failure(f"{' '.join(arguments)} printed what is older, and ended with 0")
        for name in log_types:
            end = min(self.ledger.newest[name], checkpoints.get(name, 0) - world.lookback) - 2
            for time_s, key in self.ledger.since(name, since + slack):
                entry = self.ledger.entries[key]
                is_due = since + slack < time_s < end and entry.shown < now
                is_written = entry.written >= entry.count
                if is_due and not is_written and not self.ledger.is_out_of_reach(name, time_s):
                    raise entry.failure(f"was not written by {' '.join(arguments)}")

    # Between two runs of the service

    def reconfigure(self, draw: random.Random) -> None:
        def act() -> None:
            self.log_types = BUSY + tuple(draw.sample(OTHERS, k=draw.choice((0, 0, 1, 2, 3))))
            self.is_timer = draw.random() < 0.3
            self.settled = self.world.interval or self.draw_interval(draw)
            self.set_interval()
            self.kill_soon(draw)

        self.between_runs(act)

    def draw_interval(self, draw: random.Random) -> float:
        """Long ones, since a simulated year takes as long as its passes."""
        return draw.choice((1800.0, 3600.0, 3600.0, 3600.0, 3600.0))

    def hurry(self, interval: float) -> None:
        """Have it run more often for a time, so that each disturbance comes at the default interval,
        too."""
        self.haste.append(interval)
        self.restart_at_interval()

    def slow_down(self, interval: float) -> None:
        self.haste.remove(interval)
        self.restart_at_interval()

    @property
    def wanted_interval(self) -> float:
        return min([self.settled, *self.haste])

    def restart_at_interval(self) -> None:
        if self.wanted_interval != self.interval:
            self.between_runs(self.set_interval)

    def set_interval(self) -> None:
        if self.wanted_interval != self.interval:
            self.former = self.interval
            self.interval = self.wanted_interval
            self.changed = self.world.time

    def kill_soon(self, draw: random.Random) -> None:
        """The first pass over half a year is the one that is most worth being killed."""
        if self.world.has("kill") and draw.random() < 0.4:
            self.world.disk.left = draw.randrange(200)
            self.off_s = draw.choice((0, 0, 2)) * HOUR

    def wrong_key(self, draw: random.Random) -> Callable[[], Any]:
        def exchange() -> None:
            self.key_file, self.wrong_key_file = self.wrong_key_file, self.key_file

        self.between_runs(exchange)
        return lambda: self.between_runs(exchange)

    def since_back(self, draw: random.Random) -> None:
        hours = draw.choice((100, 500)) * draw.random()
        self.between_runs(lambda: self.start_at(self.world.time - hours * HOUR, draw))

    def since_forward(self, draw: random.Random) -> None:
        self.between_runs(lambda: self.start_at(self.world.time - draw.uniform(0, 600), draw))

    def lose_checkpoint(self, draw: random.Random) -> None:
        """Gone, or with the file that is shipped in its place."""

        def act() -> None:
            self.remove_checkpoint(draw)
            for name in OTHERS:
                self.ledger.again_from(name, 0.0)
                self.ledger.floor[name] = 0.0
            self.start_at(self.world.time - draw.uniform(0.2, 100) * HOUR, draw)
            self.kill_soon(draw)

        self.between_runs(act)

    def remove_checkpoint(self, draw: random.Random) -> None:
        path = Path(self.world.checkpoint_file)
        if draw.random() < 0.5:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes((SCRIPT.parent / "checkpoints.json").read_bytes())
        self.world.disk.changed()
        self.world.checkpoints.clear()
        self.world.lives += 1

    def first_run(self, draw: random.Random) -> None:
        """From the default seeds, which are older than what Duo keeps."""

        def act() -> None:
            self.has_seeds = False
            self.is_timer = draw.random() < 0.7
            self.backup = (None, {})
            self.remove_checkpoint(draw)
            self.ledger.start_over()
            self.world.disk.floor = dict(self.ledger.floor)
            self.kill_soon(draw)

        self.between_runs(act)

    def start_at(self, since: float, draw: random.Random) -> None:
        """--once --since, maybe with a wrong key: it counts from there on, whatever becomes of that
        run."""
        world, environ, log_types = self.world, self.environ, self.log_types
        since = float(int(since))
        world.lives += 1
        if draw.random() < 0.3:
            environ["DUO_SECRET_KEY_FILE"] = str(self.world.folder / "wrong.key")
        while world.time < world.end:
            for name in log_types:
                self.ledger.floor[name] = since
                self.ledger.again_from(name, since)  # each time
            arguments = ("--once", "--since", stamp(since))
            process = world.run("service", environ, *arguments, stdout=world.output.fd)
            if process.status in (0, 75, 77):
                break
            world.rest(600)

    def back_up(self) -> None:
        path = Path(self.world.checkpoint_file)
        # Not that of a --since that has not been able to save it
        floor = self.world.disk.floor or self.ledger.floor
        self.backup = (path.read_bytes() if path.exists() else None, dict(floor))

    def restore_checkpoint(self, draw: random.Random) -> None:
        def act() -> None:
            data, floor = self.backup
            if data is None:
                return
            Path(self.world.checkpoint_file).write_bytes(data)
            self.world.disk.changed()
            restored = checkpoints_in(data)
            for name in LOG_TYPES:
                self.ledger.again_from(name, restored.get(name, 0) - 17 * HOUR)
            self.ledger.floor, self.world.disk.floor = dict(floor), dict(floor)
            self.world.lives += 1

        self.between_runs(act)

    def another_tenant(self, draw: random.Random) -> None:
        """An .env copied with its checkpoint file: nothing is asked, nothing changed."""

        def act() -> None:
            world, path = self.world, Path(self.world.checkpoint_file)
            if not path.exists() or b'"account"' not in path.read_bytes():  # nothing was collected
                return
            before, asked = path.read_bytes(), world.requests
            environ = {**self.environ, "DUO_API_HOST": "https://api-another.duosecurity.com"}
            with open(world.folder / "another.jsonl", "wb") as file:
                process = world.run("another", environ, "--once", stdout=file.fileno())
            after = path.read_bytes(), world.requests
            if process.status not in (None, 78) or after != (before, asked):
                raise Failure(
                    f"another tenant's keys with this checkpoint file: ended with {process.status}, "
                    f"{world.requests - asked} requests, file changed: {after[0] != before}"
                )

        self.between_runs(act)
