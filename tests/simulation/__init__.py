"""The collector's whole life in virtual time: a year in minutes, in a world that goes wrong in every way it can.

The real main() runs in this process. Only its edges are others: the clocks, waiting and the HTTP session, which
asks the simulated Duo without a socket, are passed in; and the system calls that open for writing, write, sync
and rename go through `Disk`, so that a kill, a power failure or a full disk can come between any two of them.
All that happens is drawn from a seed, each disturbance from a generator of its own, so that a failure can be
replayed, and a disturbance left out without changing the others.

It reads in this order: what Duo publishes and what has to become of it (Ledger), the machine (Disk, Machine),
the network (Session), what goes wrong (DISTURBANCES), who runs it (Operator), the command line.
"""

import argparse
import builtins
import collections
import contextlib
import errno
import gc
import heapq
import importlib.util
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
import types
from bisect import bisect_left
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import requests
import urllib3
from duo import COMMON_FAULTS, LOG_TYPES, Rules, Simulator

SCRIPT = Path(__file__).parent.parent.parent / "duo_collector.py"
HOST = "api-simulate.duosecurity.com"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
START = 1_798_761_600  # 2027-01-01
SINCE_KEYS = {
    "authentication": "AUTH_SINCE_TIME", "administrator": "ADMIN_SINCE_TIME", "telephony": "TELEPHONY_SINCE_TIME",
    "activity": "ACTIVITY_SINCE_TIME", "offline_enrollment": "OFFLINE_ENROLLMENT_SINCE_TIME",
    "trust_monitor": "TRUST_MONITOR_SINCE_TIME"}  # fmt: skip
CHECKPOINT = re.compile(rb'"([A-Z_]+_SINCE_TIME)": ([0-9]+)')
PASSED_OVER = re.compile(r"(\w+): Duo serves only the last 180 days; passed over: (\S+) to")
PASS = re.compile(r"(\w+): [\d,]+ events? in [\d,]+ requests?")
LOG_OF_KEY = {key.encode(): name for name, key in SINCE_KEYS.items()}
BUSY = ("authentication", "administrator", "telephony")  # the others have a tenth of their events
OTHERS = ("activity", "offline_enrollment", "trust_monitor")
HIDDEN_S = 120  # Duo shows nothing younger
CURSOR_TROUBLE = ("forgotten_cursors", "refused_cursors", "missing_metadata")
CALM_S = 3 * HOUR  # after so long without trouble every log type has caught up
BUSY_DAYS = 40  # of the busy logs Duo keeps no more, so that a first run costs seconds; of the others half a year


class Failure(BaseException):
    """Something does not hold that has to. No Exception: the collector must not catch it."""


class Killed(BaseException):
    """The process is gone, wherever it was."""


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()[:19] + "Z"


def read_file(path: str) -> Optional[bytes]:
    """A file's content, or None; open() would take three times as long."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def checkpoints_in(data: bytes) -> Dict[str, float]:
    """The checkpoints in a checkpoint file, in s."""
    return {LOG_OF_KEY[key]: float(value) / (1000 if len(value) == 13 else 1)
            for key, value in CHECKPOINT.findall(data.partition(b'"state": {')[0])}  # fmt: skip


# What Duo publishes, and what has to become of it


class Entry:
    """An event, or several that are equal to the byte."""

    __slots__ = ("allowed", "count", "log_type", "odd", "shown", "time", "written")

    def __init__(self, log_type: str, time_s: float, shown: float, odd: bool) -> None:
        self.log_type = log_type
        self.time = time_s  # s; where Duo has it, whatever the event itself says
        self.shown = shown  # s; from when Duo shows it
        self.odd = odd  # its time cannot be read
        self.count = 1  # in Duo
        self.written = 0
        self.allowed = 1  # times that it may be written

    def __str__(self) -> str:
        return f"{self.log_type}: the event of {stamp(self.time)}, shown at {stamp(self.shown)},"

    def __lt__(self, other: "Entry") -> bool:
        return self.time < other.time


ODDITIES = (  # members that are to come through as they are
    '"factor":"duo_push","ip":null', '"n":12345678901234567890,"f":1.0,"g":1e5,"h":-0.00', '"a":1,"a":2',
    '"name":"Björn \\"B\\" Lefèvre – 山田太郎"', '"emoji":"\\ud83d\\ude00 😀","lone":"\\ud800"', '"list":[ 1, {} ,[]]',
    '"metadata":{"next_offset":"none"},"response":[]', '"path":"C:\\\\x\\/y\\u000a"', '"result":"SUCCESS"')  # fmt: skip
TAILS = {name: f'"{name}","host":"{HOST}"}}'.encode() for name in LOG_TYPES}  # the two fields that the collector adds


class Ledger:
    """All events of the tenant: makes them day by day, and knows which have to be written, and how often they were."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.entries: Dict[bytes, Entry] = {}  # by the line up to the fields that the collector adds
        self.by_time: Dict[str, List[Tuple[float, bytes]]] = {name: [] for name in LOG_TYPES}
        # Those that an ordinary pass has to write, by the checkpoint at which they must have been: a pass that
        # moves it there began later than they were shown.
        self.due: Dict[str, List[Tuple[float, Entry]]] = {name: [] for name in LOG_TYPES}
        self.floor = dict.fromkeys(LOG_TYPES, 0.0)  # nothing older is wanted
        self.newest = dict.fromkeys(LOG_TYPES, 0.0)  # of the written ones
        # Seconds of more events than Duo shows: in how many lives of the service that was told; those still to come
        self.crowds: Dict[Tuple[str, int], List[int]] = {}
        self.crowds_due: List[Tuple[str, int]] = []
        self.holes: set = set()  # other seconds of which the collector said that it cannot get all
        self.published = 0

    def make(self, first: float, days: int) -> None:
        """Fill Duo with the events of some days."""
        for day in range(days):
            for name in LOG_TYPES:
                self.make_day(name, first + day * DAY)

    def make_day(self, name: str, start: float) -> None:
        draw = random.Random(f"{self.world.seed} {name} {start}")
        weekend = datetime.fromtimestamp(start, timezone.utc).weekday() >= 5
        count = int(draw.gauss(200, 20) * (0.3 if weekend else 1.28) * (1 if name in BUSY else 0.1))
        times = [start + draw.triangular(0, DAY, 9 * HOUR) if draw.random() < 0.8 else start + draw.random() * DAY
                 for _ in range(count)]  # fmt: skip
        v1 = LOG_TYPES[name].unit_ms == 1000
        for at in draw.sample(times, k=min(3, count)):  # some at one instant
            times += [at] * draw.randrange(1, 4)
        if draw.random() < (0.15 if name in BUSY else 0.05):  # a burst within a second or a ms
            size = draw.choice((30, 100, 300))
            at, width = start + draw.random() * DAY, draw.choice((0, 0.0009, 0.9))
            times += [at + draw.random() * width for _ in range(size)]
        if draw.random() < (0.01 if name in BUSY else 0.002):  # more than a page
            at, size = start + draw.random() * DAY, draw.randrange(1000, 2600)
            times += [at + draw.random() * HOUR for _ in range(size)]
        if v1 and self.world.has("crowds") and draw.random() < 0.1:  # a directory sync: one second, and the minutes after it
            at = float(int(start + draw.random() * (DAY - 200)))
            size = draw.choice((400, 700, 950, 1300))
            times += [at] * size + [at + draw.random() * 120 for _ in range(draw.choice((0, 20, 400)))]
        stalls = [s for s in self.world.stalls if name in s.log_types and s.start < start + 2 * DAY and s.end > start]
        on_time, at_once = [], collections.Counter()
        world, chance, lookback = self.world, draw.random, self.world.lookback
        has_late, has_hours_late, has_odd_times = (world.has(what) for what in ("late", "hours_late", "odd_times"))
        for time_s in sorted(times):
            time_s = float(int(time_s)) if v1 else int(time_s * 1000) / 1000
            shown, hours_late = time_s + HIDDEN_S, False
            if has_late and chance() < 0.05:
                shown += chance() * (lookback - 15)
            elif has_hours_late and chance() < 0.002:
                shown, hours_late = shown + draw.uniform(0.2, 40) * HOUR, True
            stall = stalls and next((s for s in stalls if s.start <= time_s < s.end and chance() < s.share), None)
            shown = max(shown, stall.end) if stall else shown
            odd_time = has_odd_times and chance() < 0.003 and (world.odd_v1_times or not v1)
            time_us, event_id, text = self._event(draw, name, time_s, odd_time)
            entry, again = self._enter(name, text, time_s, shown, odd_time)
            late, event = entry.shown > time_s + HIDDEN_S, (time_us, event_id, text.encode())
            if late or odd_time:
                world.duo.add_encoded(name, [event], int(entry.shown * 1000) if late else None)
            else:
                on_time.append(event)
                at_once[int(time_s)] += 1
            if again or hours_late:
                continue
            if stall:
                stall.held.append(entry)
            else:
                self.expect(entry)
        world.duo.add_encoded(name, on_time)
        if v1:
            seconds = collections.Counter(int(time_s) for time_s in times)
            self.crowds.update(((name, second), []) for second, n in seconds.items() if n > 1000)
            # It has to be told where so many are shown at once; what comes late may come when no pass looks there any more.
            self.crowds_due += [(name, second) for second, n in at_once.items() if n > 1000]

    def _event(self, draw: random.Random, name: str, time_s: float, odd_time: bool) -> Tuple[int, str, str]:
        """An event of that time: where Duo has it (µs), its id and its text."""
        log, second, micros, event_id = LOG_TYPES[name], int(time_s), draw.randrange(1000), ""
        iso, field = datetime.fromtimestamp(second, timezone.utc).isoformat()[:19], log.time_fields[0]
        ms = round(time_s % 1 * 1000)
        time_us = second * 1_000_000 + ms * 1000
        if field == "timestamp":
            when = str(second)
        elif field == "surfaced_timestamp":
            when = str(int(time_s * 1000))
            time_us = int(when) * 1000
        else:
            when, time_us = f'"{iso}.{ms:03d}{micros:03d}+00:00"', time_us + micros
        if odd_time:
            when, time_us = json.dumps(draw.choice((None, "soon", {}))), int(time_s * 1000) * 1000
        text = f'{{"{field}":{when},{draw.choice(ODDITIES)},'
        if log.id_field is None:  # twins are possible
            text += f'"action":"{name}","username":"{draw.randrange(40)}","isotimestamp":"{iso}+00:00"'
        else:
            event_id = f"{draw.getrandbits(64):016x}"
            text += f'"{log.id_field}":"{event_id}"'
        if odd_time:  # or it might be equal to another, years apart
            text += f',"nonce":"{draw.getrandbits(64):016x}"'
        return time_us, event_id, text + "}"

    def _enter(self, name: str, text: str, time_s: float, shown: float, odd: bool) -> Tuple[Entry, bool]:
        """The entry of a text, and whether there was one."""
        self.published += 1
        if not text.isascii():
            text = re.sub(r"[^\x00-\x7f]+", lambda run: json.dumps(run[0])[1:-1], text)
        key = text[:-1].encode()
        known = self.entries.get(key)
        if known:
            known.count += 1
            known.allowed += 1
            return known, True
        entry = self.entries[key] = Entry(name, time_s, shown, odd)
        self.by_time[name].append((time_s, key))
        return entry, False

    def expect(self, entry: Entry) -> None:
        heapq.heappush(self.due[entry.log_type], (max(entry.time, entry.shown - HIDDEN_S), entry))

    def stall_ends(self, stall: "Stall") -> None:
        """Duo shows what it held back. An ordinary pass finds it where nothing later had been shown."""
        for name in stall.log_types:
            recent = [self.entries[key] for time_s, key in self.by_time[name][-3000:] if time_s > stall.start - DAY]
            newest = max((e.time for e in recent if e.shown < stall.end and e.time < stall.end), default=0.0)
            for entry in (e for e in stall.held if e.log_type == name):
                in_time = entry.shown <= entry.time + HIDDEN_S + self.world.lookback - 15
                if in_time or newest < entry.time - LOG_TYPES[name].unit_ms / 1000:
                    self.expect(entry)

    def took(self, line: bytes, process: "Process") -> Optional[Entry]:
        """A whole line was written. The entry, where it is an event."""
        key, _, tail = line.rpartition(b',"eventtype":')
        entry = self.entries.get(key)
        if entry is None:
            raise Failure(f"a line that Duo did not publish: {line[:300]!r}")
        if tail != TAILS[entry.log_type]:
            raise Failure(f"{entry.log_type}: not the two fields of the collector: {tail[:100]!r}")
        return entry

    def counted(self, entry: Entry, process: "Process", line: bytes) -> None:
        if process.kind == "missing" and entry.odd and not entry.written and LOG_TYPES[entry.log_type].cursor is None:
            # A v1 log has no maxtime: nobody can tell on which side of the service's start an event without a time
            # lies, so both may write it.
            entry.allowed += 1
        elif process.kind == "missing" and entry.time < self.world.operator.missing_since:
            process.met.add("another range")  # of which the file it was given may hold nothing
            entry.allowed += 1
        entry.written += 1
        self.newest[entry.log_type] = max(self.newest[entry.log_type], entry.time)
        if entry.written > entry.allowed:
            raise Failure(f"{entry} was written {entry.written} times; {entry.allowed} may be ({process.kind}): {line[:200]!r}")
        if process.kind == "service" and entry.time < self.floor[entry.log_type] - LOG_TYPES[entry.log_type].unit_ms / 1000:
            raise Failure(f"{entry} was written, though it is older than --since {stamp(self.floor[entry.log_type])}")

    def checkpoint(self, name: str, at: float) -> None:
        """The checkpoint file says `at`: what an ordinary pass has to write by then is written."""
        due, oldest = self.due[name], self.world.time - (BUSY_DAYS if name in BUSY else 179.5) * DAY
        while due and due[0][0] < at:
            entry = heapq.heappop(due)[1]
            if entry.written < entry.count and entry.time >= max(self.floor[name], oldest):
                if self.out_of_reach(name, entry.time):
                    continue
                raise Failure(f"{entry} was written {entry.written} times of {entry.count}, and the checkpoint is {stamp(at)}")
        for crowd in [c for c in self.crowds_due if c[0] == name and c[1] < at - 10]:
            self.crowds_due.remove(crowd)
            if not self.crowds[crowd] and crowd[1] > self.floor[name]:
                raise Failure(f"{name}: of {stamp(crowd[1])} Duo does not show all, and nothing was said")

    def out_of_reach(self, name: str, time_s: float) -> bool:
        """Whether it is of a second of which Duo does not show all."""
        return (name, int(time_s)) in self.crowds or (name, int(time_s)) in self.holes

    def hole(self, name: str, line: str, process: "Process") -> None:
        """The collector says that Duo left a hole."""
        for text in re.findall(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", line):
            at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
            told = self.crowds.get((name, int(at)))
            if told is not None and process.kind == "service":
                if self.world.lives in told:
                    raise Failure(f"told twice: {line}")
                told.append(self.world.lives)
            if told is not None:
                return
            # Where cursors are refused or missing, what shares a ms cannot be had page by page; nor can, of a log in
            # no order, a page's worth of events within less than a second, the shortest slice that is asked for.
            times = sorted(t for t, _ in self.by_time[name] if int(at) <= t < int(at) + 2)
            instants = collections.Counter(int(t * 1000) for t in times if t < int(at) + 1)
            page = LOG_TYPES[name].max_limit
            crowded = any(last - first < 1 for first, last in zip(times, times[page - 1 :]))
            if process.met & set(CURSOR_TROUBLE):
                if LOG_TYPES[name].v2 and max(instants.values(), default=0) > 1:
                    self.holes.add((name, int(at)))
                    return
                if LOG_TYPES[name].cursor and not LOG_TYPES[name].v2 and crowded:
                    self.holes |= {(name, int(at)), (name, int(at) + 1)}  # such a slice may reach into the next second
                    return
        if self.world.duo.rules.total in ("int", "object", "absent"):
            raise Failure(f"there is no hole: {line}")

    def again_from(self, since: Dict[str, float]) -> None:
        """The operator has asked for what is newer once more: each event that was written may be so once again."""
        for name, from_s in since.items():
            for time_s, key in self.since(name, from_s - 1):
                if time_s >= from_s - 1:
                    entry = self.entries[key]
                    entry.allowed = max(entry.allowed, entry.written + entry.count)

    def start_over(self) -> None:
        """A first run begins: all that Duo shows has to be written once more, and only once."""
        self.world.output.sync()
        for name, times in self.by_time.items():
            self.floor[name] = 0.0
            for entry in (self.entries[key] for _, key in times):
                entry.written, entry.allowed = 0, entry.count
                if entry.shown <= self.world.time:
                    self.expect(entry)

    def since(self, name: str, from_s: float) -> List[Tuple[float, bytes]]:
        """At least the events from then on. They are in order but for what goes on beyond midnight."""
        times = self.by_time[name]
        return times[bisect_left(times, (from_s - DAY,)) :]

    def forget(self) -> None:
        """What is long over, so that ten years fit into memory."""
        ages = {name: self.world.time - (BUSY_DAYS if name in BUSY else 200) * DAY for name in LOG_TYPES}
        for name, times in self.by_time.items():
            old = ages[name]
            times.sort()
            gone = bisect_left(times, (old,))
            for _, key in times[:gone]:
                self.entries.pop(key, None)
            del times[:gone]
            store = self.world.duo._stores[name]
            store.publish(int(self.world.time * 1000))
            del store.rows[: bisect_left(store.rows, (old * 1e6,))]
        self.crowds_due = [crowd for crowd in self.crowds_due if crowd[1] >= ages[crowd[0]]]
        gc.collect(1)  # what came since the last time


# The machine: processes, files, clocks


class Process:
    """A run of main()."""

    def __init__(self, kind: str, arguments: Tuple[str, ...], began: float) -> None:
        self.kind, self.arguments, self.began = kind, arguments, began
        self.status: Optional[int] = None  # None: killed
        self.stopping = False  # SIGTERM came
        self.killed = False
        self.knows_time = False  # Duo has told it
        self.answered: set = set()  # log types, by the last answer for each
        self.warned: Dict[str, int] = {}  # passes ended at the last warning of the clock
        self.passed_over: set = set()  # log types, and since when
        self.lines: collections.deque = collections.deque(maxlen=200)  # of its log
        self.passes: collections.Counter = collections.Counter()  # ended, by log type
        self.met: set = set()  # what its requests met, and what else happened to it
        self.files: set = set()  # descriptors to close at its end
        self.unsaved: List[Entry] = []  # written, and in no checkpoint file
        self.fault: Any = None  # in the answer to its latest request
        self.steps: Any = None  # of time, when it began
        self.alarm, self.on_alarm = math.inf, signal.default_int_handler  # when SIGALRM comes (s, monotonic), and to whom


class Stream:
    """A file that stdout leads to."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path, self.ledger = path, ledger
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.tail = b""  # of a line that is not whole
        self.doubted = False  # a process was killed, and the next one cannot read what it left
        self.torn = False  # the tail is what a process left that ended in the middle of a write
        self.size = self.synced = os.fstat(self.fd).st_size
        self.unsynced: List[Tuple[int, Entry]] = []  # where the lines end that a power failure may take
        self.orphans: set = set()  # of these, ids of what no checkpoint will cover: its process ended before that

    def write(self, data: Any, process: Process) -> int:
        os.write(self.fd, data)
        start = self.size - len(self.tail)
        *lines, tail = (self.tail + bytes(data)).split(b"\n")
        for number, line in enumerate(lines):
            start += len(line) + 1
            ends_line = number == 0 and ((self.torn and line == self.tail) or (self.doubted and not line))
            self.torn = self.doubted = False
            if ends_line:  # a line that was cut short, or may have been, was ended before anything else
                continue
            entry = self.ledger.took(line, process)
            self.ledger.counted(entry, process, line)
            process.unsaved.append(entry)
            self.unsynced.append((start, entry))
        self.tail, self.size = tail, self.size + len(data)
        return len(data)

    def sync(self) -> None:
        self.synced = self.size
        self.unsynced.clear()
        self.orphans.clear()

    def process_ended(self, in_doubt: bool) -> None:
        self.torn, self.doubted = bool(self.tail), self.doubted or in_doubt

    def power_fails(self, draw: random.Random, unsaved: set) -> None:
        """Lose what was not synced, or the last part of it."""
        size = draw.choice((self.synced, self.size, draw.randint(self.synced, self.size)))
        unsaved = unsaved | self.orphans
        for end, entry in self.unsynced:
            entry.written -= end > size
            if end > size and id(entry) not in unsaved:
                raise Failure(f"{entry.log_type}: a power failure takes {stamp(entry.time)}, which the checkpoint is beyond")
        os.truncate(self.path, size)
        data = self.path.read_bytes()[-100_000:]
        self.tail, self.size, self.synced = data[data.rfind(b"\n") + 1 :], size, size
        self.torn = bool(self.tail)
        self.unsynced.clear()
        self.orphans.clear()

    def close(self) -> None:
        os.close(self.fd)


class Disk(types.SimpleNamespace):
    """What the collector has for `os`: the real one, but for the calls between which it can end, or that can fail."""

    def __init__(self, world: "World") -> None:
        super().__init__(**vars(os))
        self.world = world
        self.environ: Dict[str, str] = {}
        self.real_fsync_is_skipped = True
        self.durable: set = set()  # inodes that were synced since they were written
        # Of the last minute, unless their folder was synced since: when, what was there before, and the floor of that
        self.renamed: Dict[str, List[Tuple[float, Optional[bytes], Dict[str, float]]]] = {}
        self.contents: Dict[str, bytes] = {}  # of what was renamed
        self.floor: Dict[str, float] = {}  # what the checkpoint file goes by
        self.undone: List[Tuple[float, Entry]] = []  # written since then: again, once a power failure undoes that
        self.hollow: set = set()  # files of which a power failure leaves the name only
        self.full = self.odd_folder = self.unreadable = False
        self.stdin = "/dev/null"
        self.left: Optional[int] = None  # calls until the process is killed
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "isatty", "fdatasync"):
            setattr(self, name, getattr(self, "_" + name))

    def strike(self) -> None:
        """A call that the process may not survive."""
        if self.world.process.killed:
            raise Killed
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                if self.world.has("power_failure") and self.world.draw.random() < 0.3:
                    power_failure(self.world, self.world.draw)
                self.world.kill()

    def _isatty(self, fd: int) -> bool:
        return False

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        self.strike()
        if self.odd_folder == errno.EACCES and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        if self.full and flags & os.O_CREAT and not os.path.exists(path) and self.world.draw.random() < 0.3:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        fd = os.open(path, flags, mode, **more)
        self.world.process.files.add(fd)
        return fd

    def open_file(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        """In place of the built-in open."""
        file = self.stdin if file == 0 else file
        if isinstance(file, int):
            self.world.process.files.discard(file)  # it is closed with the object
        elif set(mode) & set("wax+"):
            self.strike()
        if self.unreadable and str(file).startswith(("/dev/fd/", str(self.world.output.path))):
            raise PermissionError(errno.EACCES, "Permission denied", file)
        return builtins.open(file, mode, *more, **named)

    def _write(self, fd: int, data: Any) -> int:
        world = self.world
        if fd == 2:
            world.said(bytes(data).decode(errors="replace"))
            return len(data)
        stream, process = world.streams.get(fd), world.process
        if stream is None:
            self.strike()
            return os.write(fd, data)
        try:
            self.strike()
        except Killed:
            if world.booted < world.time:  # or the power has failed, and nothing is written any more
                stream.write(data[: world.draw.randint(0, len(data))], process)
                world.forgive(process)
            raise
        if self.full:
            room = world.draw.choice((0, 0, len(data) // 2))
            if room:
                return stream.write(data[:room], process)
            world.forgive(process)  # the page in flight
            raise OSError(errno.ENOSPC, "No space left on device")
        return stream.write(data, process)

    def _fsync(self, fd: int) -> None:
        self.strike()
        stream = self.world.streams.get(fd)
        status = None if stream else os.fstat(fd)
        if status and stat.S_ISDIR(status.st_mode):
            if self.odd_folder:
                raise OSError(self.odd_folder, os.strerror(self.odd_folder))
            self.settled()
        elif self.full:
            if stream:
                self.world.forgive(self.world.process)
            raise OSError(errno.ENOSPC, "No space left on device")
        elif stream:
            stream.sync()
        else:
            self.durable.add(status.st_ino)

    _fdatasync = _fsync

    def _replace(self, source: str, target: str) -> None:
        self.strike()
        durable = os.stat(source).st_ino in self.durable
        before, content = self.contents.pop(target, None) or read_file(target), read_file(source)
        os.replace(source, target)
        if content is not None:
            self.contents[target] = content
        self.durable.clear()
        world, recent = self.world, self.renamed.get(target, [])
        self.renamed[target] = [one for one in recent if one[0] > world.time - MINUTE] + [(world.time, before, self.floor)]
        self.floor = dict(world.ledger.floor)
        (self.hollow.discard if durable else self.hollow.add)(target)
        if target == world.checkpoint_file:
            world.saved(content or b"")

    _rename = _replace

    def _unlink(self, path: str) -> None:
        self.strike()
        os.unlink(path)

    def settled(self) -> None:
        """What was renamed is so for good."""
        self.renamed.clear()
        self.undone = []

    def changed(self) -> None:
        """Files were changed by others than the collector."""
        self.settled()
        self.contents.clear()

    def power_fails(self, draw: random.Random) -> None:
        """A folder that cannot be synced loses the last minute: by then every file system has written it down."""
        world, since = self.world, self.world.time - MINUTE
        unsaved = {id(entry) for process in self.world.stack for entry in process.unsaved}
        for target in self.hollow:
            os.truncate(target, 0)
        for target, recent in self.renamed.items():
            before = next((one for one in recent if one[0] > since), None)
            if before and draw.random() < 0.5:
                Path(target).unlink() if before[1] is None else Path(target).write_bytes(before[1])
                if target == world.checkpoint_file:
                    world.ledger.floor = self.floor = dict(before[2] or world.ledger.floor)
                    for entry in (entry for at, entry in self.undone if at > since):
                        entry.allowed += 1
                        unsaved.add(id(entry))
        self.changed()
        for stream in self.world.streams.values():
            stream.power_fails(draw, unsaved)


# The network


class Prepared:
    """A request as the collector's signing sees it."""

    def __init__(self, method: str, url: str, body: Optional[bytes]) -> None:
        self.method, self.url, self.body = method, url, body
        self.headers = {"Host": HOST}


class Body:
    """What comes of an answer, as fast as the link brings it."""

    def __init__(self, world: "World", data: bytes, cut: bool, silence_s: float) -> None:
        self.world, self.data, self.at, self.cut, self.silence_s = world, data, 0, cut, silence_s

    def read(self, amount: Optional[int] = None, decode_content: Optional[bool] = None) -> bytes:
        end = len(self.data) if amount is None else min(self.at + amount, len(self.data))
        piece, self.at = self.data[self.at : end], end
        if self.world.link_bytes_per_s and piece:
            self.world.take(len(piece) / self.world.link_bytes_per_s)
        if self.cut and not piece:
            raise urllib3.exceptions.ProtocolError("Connection broken: IncompleteRead")
        return piece


class Response:
    def __init__(self, status: int, headers: Dict[str, str], raw: Body) -> None:
        self.status_code, self.raw = status, raw
        self.headers = headers

    def close(self) -> None:
        pass


class Session:
    """In place of requests.Session: asks the simulated Duo, in virtual time."""

    auth: Any = None

    def __init__(self, world: "World") -> None:
        self.world, self.headers = world, {}

    def request(self, method: str, url: str, data: Optional[bytes] = None, timeout: Any = None, stream: bool = True,
                **more: Any) -> Response:
        world, (connect_s, read_s) = self.world, timeout
        process, suspended = world.process, world.suspended
        prepared = Prepared(method, url, data)
        prepared.headers.update(more.get("headers") or {})
        if world.network:
            process.met.add("no answer")
            world.advance({"refused": 0.01, "unreachable": connect_s, "silent": read_s}[world.network])
            raise (requests.ReadTimeout if world.network == "silent" else requests.ConnectionError)(world.network)
        world.advance(world.latency.uniform(0.02, 0.2))
        (self.auth or (lambda request: request))(prepared)
        try:
            answer = world.duo.respond(method, url.partition(HOST)[2], prepared.headers, 1, data or b"")
        except Exception:  # which the collector would take for one of the network's
            raise Failure("the simulated Duo crashed: " + traceback.format_exc()) from None
        noted, world.duo.requests[:] = world.duo.requests[-1], []
        process.fault = noted.fault
        world.requests += 1
        if world.verbose:
            parameters = ", ".join(f"{name} {value}" for name, value in noted.params.items())
            world.tell(f"    {noted.log_type or noted.path}, {parameters}: {answer.status}, {noted.events} events, {noted.fault}")
        if noted.fault or answer.status != 200:
            process.met |= {noted.fault, answer.status}
        date = world.duo.date()
        world.advance(min(answer.delay_s, read_s) + world.latency.uniform(0.02, 0.2))
        if answer.delay_s > read_s:
            raise requests.ReadTimeout("Read timed out.")
        if answer.delivery == "reset" or world.suspended > suspended:
            process.met.add("reset")
            raise requests.ConnectionError("Connection reset by peer")
        if answer.status == 200 and not noted.fault:
            process.knows_time = True
            process.answered |= {noted.log_type} - {None}
        elif answer.status in (401, 403):
            process.answered.discard(noted.log_type)
        cut = answer.delivery == "half"
        body = answer.body[: len(answer.body) // 2] if cut else answer.body
        return Response(answer.status, {"Date": date, **answer.headers}, Body(world, body, cut, read_s))

    def close(self) -> None:
        pass


# What goes wrong


class Stall(NamedTuple):
    """Duo's log pipeline stands still: a share of the events of this time is shown at its end."""

    start: float
    end: float
    share: float
    log_types: Tuple[str, ...]
    held: List[Entry]


class Disturbance(NamedTuple):
    """begin() is given the world and a generator; what it returns is called at the end."""

    per_year: float
    hours: Tuple[float, float]  # that it lasts
    calm: bool  # may no log type fall behind while it lasts
    begin: Callable[["World", random.Random], Optional[Callable[[], Any]]]


def rules(**choices: Any) -> Callable:
    """Change Duo's rules to one of these values each; what can be called is called with the generator."""

    def begin(world: "World", draw: random.Random) -> Callable[[], Any]:
        return world.change_rules({name: c(draw) if callable(c) else draw.choice(c) for name, c in choices.items()})

    return begin


def lasts(low: float, high: float, draw: random.Random) -> float:
    return low * (high / low) ** draw.random() if low else 0


def often_beside(other: str, begin: Callable) -> Callable:
    """What alone would seldom meet another disturbance: that one begins first, three times in four."""

    def both(world: "World", draw: random.Random) -> Optional[Callable[[], Any]]:
        if world.has(other) and draw.random() < 0.75:
            world.happen(other, lasts(*DISTURBANCES[other].hours, draw), draw)
        return begin(world, draw)

    return both


LIMITS = (  # requests, in s, shape
    (20, 60, "sliding"), (2, 60, "sliding"), (12, 60, "sliding"), (20, 60, "fixed"), (10, 60, "fixed"),
    (5, 10, "sliding"), (1, 30, "sliding"), (5, 60, "bucket"), (1, 2, "bucket"), (10, 60, "bucket"))  # fmt: skip


def rate_limit(world: "World", draw: random.Random) -> Callable[[], Any]:
    limit, window_s, shape = draw.choice(LIMITS)
    return world.change_rules({
        "rate_limit": limit, "rate_window_s": float(window_s), "rate_shape": shape,
        "rate_scope": draw.choice(("endpoint", "endpoint", "account")), "count_refused": draw.random() < 0.2,
        "retry_after": draw.choice((None, None, "seconds", "date"))})  # fmt: skip


def habits(world: "World", draw: random.Random) -> None:
    """Another answer to the questions that nobody's documentation answers. Not `ties`: what Duo shuffles between two
    calls cannot be read whole."""
    choose = draw.choice
    world.habits.update(
        cursor=choose(("last", "next")), last_cursor=choose(("present", "null", "missing")),
        auth_cursor=choose(("list", "string")), trust_cursor=choose(("string", "int")),
        trust_order=choose(("ascending", "descending")), short_pages=draw.random() < 0.3 and not world.odd_v1_times,
        total=choose(("int", "int", "object", "absent")), v1_order=choose(("ascending", "shuffled")),
        v1_mintime=choose(("inclusive", "exclusive")), young=choose(("cut", "empty")), old=choose(("400", "400", "accept")),
        unknown_parameters=choose(("ignore", "400")), code_as_string=draw.random() < 0.3,
        date_code=choose((40105, 40104)), cursor_window=choose(("free", "same")), fault_rate=0.002)  # fmt: skip
    world.change_rules({})


def network(*kinds: str) -> Callable:
    def begin(world: "World", draw: random.Random) -> Callable[[], Any]:
        world.network = draw.choice(kinds)
        return lambda: setattr(world, "network", None)

    return begin


def slow_link(world: "World", draw: random.Random) -> Callable[[], Any]:
    world.link_bytes_per_s = draw.uniform(800, 3_000)
    return lambda: setattr(world, "link_bytes_per_s", 0)


def proxy_date(world: "World", draw: random.Random) -> Optional[Callable[[], Any]]:
    if world.active["clock_step"] or world.active["drift"]:  # then nothing would be left to tell the time by
        return None
    return world.change_rules({"date_offset": draw.choice((-1, 1)) * draw.uniform(1200, 9000)})


def no_ping(world: "World", draw: random.Random) -> Callable[[], Any]:
    """Duo does not tell its time; soon, somebody needs that."""
    if world.has("replay"):
        world.at(world.time + draw.uniform(0, 2) * HOUR, "replay", lambda: world.happen("replay", 0, draw))
    return world.change_rules({"ping_faults": draw.choice((
        ("error_404",), ("error_500",), ("html_502",), ("no_time",), ("reset", "cut")))})  # fmt: skip


def clock_step(world: "World", draw: random.Random) -> Optional[Callable[[], Any]]:
    if world.active["proxy_date"]:
        return None
    step = draw.choice((-1, 1)) * draw.choice(
        (draw.uniform(60, 3600), draw.uniform(1, 24) * HOUR, draw.uniform(1, 9) * DAY, 200 * DAY))

    def move(seconds: float) -> None:
        world.wall_offset += seconds
        world.stepped = world.time

    move(step)
    return lambda: move(-step)


def drift(world: "World", draw: random.Random) -> Optional[Callable[[], Any]]:
    if world.active["proxy_date"]:
        return None
    world.drift, world.drift_since = draw.uniform(-4e-5, 4e-5), world.time
    return lambda: setattr(world, "drift", 0.0)


def suspend(world: "World", draw: random.Random) -> None:
    length = draw.uniform(0.05, 60) * HOUR
    world.time += length
    world.suspended += length


def sigterm(world: "World", draw: random.Random) -> None:
    world.stop_service()


def kill(world: "World", draw: random.Random) -> None:
    if draw.random() < 0.2:
        world.kill()
    else:
        world.disk.left = draw.randrange(30)


def power_failure(world: "World", draw: random.Random) -> None:
    world.disk.power_fails(draw)
    world.booted, world.suspended = world.time + draw.uniform(20, 300), 0.0
    world.kill(everybody=True)


def disk(**attributes: Any) -> Callable:
    def begin(world: "World", draw: random.Random) -> Callable[[], Any]:
        for name, values in attributes.items():
            setattr(world.disk, name, draw.choice(values))
        return lambda: [setattr(world.disk, name, False) for name in attributes]

    return begin


def of_operator(action: str) -> Callable:
    """Something that the operator does: see `Operator`."""
    return lambda world, draw: getattr(world.operator, action)(draw)


SOME_LOGS = lambda draw: {draw.choice(list(LOG_TYPES)): draw.choice((403, 403, 404, 400))}  # noqa: E731

DISTURBANCES: Dict[str, Disturbance] = {
    # What Duo publishes; these are not begun, they are in the events from the start
    "late": Disturbance(0, (0, 0), True, lambda *_: None),
    "hours_late": Disturbance(0, (0, 0), True, lambda *_: None),
    "odd_times": Disturbance(0, (0, 0), True, lambda *_: None),
    "crowds": Disturbance(0, (0, 0), True, lambda *_: None),
    "pipeline_stall": Disturbance(8, (1, 16), True, lambda *_: None),
    # How Duo answers
    "habits": Disturbance(12, (0, 0), True, habits),
    "outage": Disturbance(10, (0.05, 20), False, rules(fault_rate=[1.0], fault_kinds=[
        ("error_500",), ("error_503",), ("html_502", "not_json"), ("empty_200", "stat_fail"), ("reset", "cut")])),
    "flaky": Disturbance(8, (1, 48), False, rules(
        fault_rate=[0.05, 0.2, 0.5], fault_kinds=[COMMON_FAULTS], stall_s=[5.0, 60.0])),
    "rate_limit": Disturbance(12, (1, 100), False, rate_limit),
    "forgotten_cursors": Disturbance(4, (24, 300), True, rules(cursor_lifetime=[0.0, 1.0, 10.0])),
    "refused_cursors": Disturbance(4, (24, 300), True, rules(cursor_pages=[1, 2, 5])),
    # Without short pages: where there is no cursor to go on with, they could not be told from the end.
    "missing_metadata": Disturbance(6, (100, 700), True, rules(short_pages=[False],
        fault_rate=[0.3], fault_kinds=[("no_metadata",), ("no_cursor",), ("no_metadata", "no_cursor")])),
    "spoilt_json": Disturbance(3, (1, 24), True, rules(fault_rate=[0.1], fault_kinds=[("nan", "deep", "truncated")])),
    # Without them, too: a short page that holds as many events as Duo counts is taken for the whole window.
    "lying_counts": Disturbance(4, (24, 300), True, rules(short_pages=[False], total=["remaining", "changing", "page"])),
    "refused_log": Disturbance(4, (1, 40), False, rules(missing=SOME_LOGS)),
    "date_outage": Disturbance(2, (0.5, 4), False, rules(fault_rate=[1.0], fault_kinds=[
        ("clock_401",), *2 * [("clock_401", "error_500", "error_429", "reset", "cut")]])),
    "no_ping": Disturbance(5, (2, 72), True, often_beside("clock_step", no_ping)),
    # What lies between
    "no_network": Disturbance(12, (0.02, 30), False, network("refused", "unreachable", "silent")),
    "slow_link": Disturbance(4, (2, 60), True, slow_link),
    "proxy_date": Disturbance(6, (1, 60), True, often_beside("date_outage", proxy_date)),
    # The machine
    "kill": Disturbance(80, (0, 0), False, kill),
    "power_failure": Disturbance(12, (0, 0), False, power_failure),
    "sigterm": Disturbance(30, (0, 0), False, sigterm),
    "suspend": Disturbance(12, (0, 0), False, suspend),
    "clock_step": Disturbance(12, (0.2, 100), True, clock_step),
    "drift": Disturbance(3, (100, 700), True, drift),
    "full_disk": Disturbance(8, (0.1, 6), False, disk(full=[True])),
    "odd_folder": Disturbance(4, (2, 48), True, disk(odd_folder=[errno.EINVAL])),
    "closed_folder": Disturbance(2, (1, 10), False, disk(odd_folder=[errno.EACCES])),
    "unreadable_output": Disturbance(3, (24, 300), True, disk(unreadable=[True])),
    "rotation": Disturbance(250, (0, 0), True, of_operator("rotate")),
    # The operator
    "reconfigure": Disturbance(12, (0, 0), False, of_operator("reconfigure")),
    "since_back": Disturbance(4, (0, 0), False, of_operator("since_back")),
    "since_forward": Disturbance(3, (0, 0), False, of_operator("since_forward")),
    "first_run": Disturbance(3, (0, 0), False, often_beside("clock_step", of_operator("first_run"))),
    "lost_checkpoint": Disturbance(3, (0, 0), False, of_operator("lose_checkpoint")),
    "restored_checkpoint": Disturbance(4, (0, 0), False, of_operator("restore_checkpoint")),
    "replay": Disturbance(12, (0, 0), True, of_operator("replay")),
    "missing_from": Disturbance(120, (0, 0), True, of_operator("missing_from")),
    "wrong_key": Disturbance(4, (0.2, 20), False, of_operator("wrong_key")),
    "fractional_lookback": Disturbance(2, (24, 200), True, of_operator("fractional_lookback")),
    "another_tenant": Disturbance(3, (0, 0), False, of_operator("another_tenant")),
}  # fmt: skip
TROUBLE_TOGETHER = (  # each alone is none
    {"slow_link", "spoilt_json"},  # the deep one takes longer than the collector tries
    {"clock_step", "spoilt_json"})  # the refusal that tells the time cannot be read  # fmt: skip


class World:
    """The clock that all go by, the timeline of what happens, and what has to hold."""

    def __init__(self, module: Any, seed: int, folder: Path, days: float, without: Tuple[str, ...], often: float,
                 verbose: bool, interval: Optional[float]) -> None:  # fmt: skip
        self.module, self.seed, self.folder = module, seed, folder
        self.without, self.often, self.verbose, self.interval = without, often, verbose, interval
        self.draw, self.latency = random.Random(f"{seed} world"), random.Random(f"{seed} latency")
        self.time, self.end = float(START), START + days * DAY
        self.wall_offset = self.drift = self.drift_since = self.suspended = self.stepped = 0.0
        self.booted = self.time - 1000
        self.timeline: List[Tuple[float, int, str, Callable[[], Any]]] = []
        self.number = 0
        self.active: collections.Counter = collections.Counter()
        self.happened: collections.Counter = collections.Counter()
        self.calm_since = self.time
        self.network: Optional[str] = None
        self.link_bytes_per_s = 0.0
        self.lookback = self.draw.choice((60, 300, 300, 600, 1800))
        self.odd_v1_times = self.draw.random() < 0.5  # or short pages: nobody can page on from an event without a time
        self.habits: Dict[str, Any] = {}
        self.changes: Dict[int, Dict[str, Any]] = {}
        self.duo = Simulator(Rules(seed=seed), wall=lambda: self.time, monotonic=lambda: self.time)
        self.stack: List[Process] = []
        self.streams: Dict[int, Stream] = {}
        self.lives = self.requests = self.passes = 0
        self.checkpoints: Dict[str, float] = {}
        self.checkpoints_before: Dict[str, float] = {}
        self.checkpoint_file = str(folder / "checkpoints.json")
        self.stalls: List[Stall] = []
        self.ledger = Ledger(self)
        self.disk = Disk(self)
        self.edges = module.Edges(now=self.wall, monotonic=self.monotonic, wait=self.wait, session=lambda: Session(self))
        self.install()
        self.operator = Operator(self)
        self.draw_timeline()

    def install(self) -> None:
        """Put the edges that main() is not given in their places."""

        def no_edge(*_: Any) -> None:
            raise Failure("the clock was read past the edges")

        clocks = dict.fromkeys(("time", "monotonic", "sleep", "time_ns", "monotonic_ns"), no_edge)
        self.module.os, self.module.open = self.disk, self.disk.open_file
        self.module.time = types.SimpleNamespace(**{**vars(time), **clocks})
        set_alarm = {"signal": self.on_signal, "setitimer": self.set_timer}
        self.module.signal = types.SimpleNamespace(**{**vars(signal), **set_alarm})
        self.module.random = random.Random(f"{self.seed} module")

    def has(self, name: str) -> bool:
        return name not in self.without

    # Time

    def wall(self) -> float:
        return self.time + self.wall_offset + self.drift * (self.time - self.drift_since)

    @property
    def steps(self) -> Tuple[float, float]:
        """What changes where time jumps: an age that was reckoned before that is another after it."""
        return self.wall_offset, self.suspended

    def monotonic(self) -> float:
        return max(0.0, self.time - self.booted) - self.suspended

    def wait(self, seconds: float) -> bool:
        process = self.process
        if not process.stopping:
            self.advance(max(0.0, seconds) + 0.0005, process)  # a sleep is never too short
        return process.stopping

    def advance(self, seconds: float, waiting: Optional[Process] = None) -> None:
        """Let time go on, and happen what happens. `waiting` is a process that SIGTERM wakes."""
        end = self.time + seconds
        while self.timeline and self.timeline[0][0] <= end:
            at, _, _, happens = heapq.heappop(self.timeline)
            self.time, suspended = max(self.time, at), self.suspended
            happens()
            end += max(0.0, self.suspended - suspended)
            if self.stack and self.process.killed:
                raise Killed
            if waiting and waiting.stopping:
                return
        self.time = max(self.time, end)

    def on_signal(self, number: int, handler: Any) -> None:
        self.process.on_alarm = handler

    def set_timer(self, which: int, seconds: float) -> None:
        self.process.alarm = self.monotonic() + seconds if seconds else math.inf

    def take(self, seconds: float) -> None:
        """Something takes so long, or until the alarm."""
        process, left = self.process, max(0.0, self.process.alarm - self.monotonic())
        self.advance(min(seconds, left))
        if seconds >= left:
            process.alarm = math.inf
            process.on_alarm(signal.SIGALRM, None)

    def at(self, when: float, name: str, happens: Callable[[], Any]) -> None:
        self.number += 1
        heapq.heappush(self.timeline, (when, self.number, name, happens))

    def draw_timeline(self) -> None:
        days = int((self.end - START) / DAY) + 1
        for name, row in DISTURBANCES.items():
            draw, when = random.Random(f"{self.seed} {name}"), float(START)
            haste = random.Random(f"{self.seed} haste {name}")
            if not self.has(name):
                continue
            if name == "habits":
                habits(self, draw)
            while row.per_year:
                often = min(3, self.often) if name == "missing_from" else self.often  # at most once a day
                when += draw.expovariate(row.per_year * often / (365 * DAY))
                if when > self.end + 5 * HOUR:  # the haste before it may begin earlier, so that a replay ends like the whole
                    break
                low, high = row.hours
                hours = lasts(low, high, draw)
                seed = draw.random()
                if name == "pipeline_stall":
                    self.draw_stall(when, when + hours * HOUR, draw)
                self.at(when, name, lambda n=name, h=hours, s=seed: self.happen(n, h, random.Random(s)))
                if not self.interval and name not in ("missing_from", "rotation") and haste.random() < 0.08:
                    begin, end = when - haste.uniform(0, 5) * HOUR, when + (min(hours, 12) + haste.uniform(0, 8)) * HOUR
                    interval = haste.choice((120.0, 300.0, 300.0, 300.0, 300.0))
                    self.at(begin, "haste", lambda i=interval: self.operator.hurry(i))
                    self.at(end, "haste is over", lambda i=interval: self.operator.slow_down(i))
        for stall in self.stalls:
            self.at(stall.end, "stall ends", lambda stall=stall: self.ledger.stall_ends(stall))
        for day in range(days):
            self.at(START + day * DAY, "day", lambda day=day: self.new_day(day))
            for half in range(48):
                self.at(START + day * DAY + half * 1800 + 900, "check", self.check_progress)
        self.at(self.end, "end", self.stop_service)
        self.history()

    def history(self) -> None:
        """What was before the service was begun: little of the busy logs, half a year of the others."""
        self.ledger.make(START - 3 * DAY, 3)
        make_day = self.ledger.make_day
        for day in range(4, 190):
            for name in OTHERS:
                make_day(name, START - day * DAY)
        self.ledger.published = 0

    def draw_stall(self, start: float, end: float, draw: random.Random) -> None:
        share = 1.0 if draw.random() < 0.6 else draw.uniform(0.2, 0.9)
        log_types = tuple(LOG_TYPES) if draw.random() < 0.5 else tuple(draw.sample(list(LOG_TYPES), k=3))
        self.stalls.append(Stall(start, end, share, log_types, []))

    def new_day(self, day: int) -> None:
        self.ledger.make(START + day * DAY, 1)
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
        if hours:
            self.active[name] += 1
        elif not row.calm:
            self.calm_since = self.time
        for process in self.stack:
            process.met.add(name)
        end = row.begin(self, draw)
        if hours:
            self.at(self.time + hours * HOUR, name, lambda: self.over(name, end))
        elif not row.calm:
            self.calm_since = self.time

    def over(self, name: str, end: Optional[Callable[[], Any]]) -> None:
        self.tell(f"{name} is over")
        self.active[name] -= 1
        if end:
            end()
        if not DISTURBANCES[name].calm:
            self.calm_since = self.time

    def change_rules(self, changes: Dict[str, Any]) -> Callable[[], Any]:
        """Add changes to the habits; what is returned takes them back."""
        self.number += 1
        key = self.number
        self.changes[key] = changes
        self.apply_rules()

        def take_back() -> None:
            del self.changes[key]
            self.apply_rules()

        return take_back

    def apply_rules(self) -> None:
        wanted = dict(self.habits)
        for changes in self.changes.values():
            wanted.update(changes)
        for name, default in vars(Rules(seed=self.seed)).items():
            value = wanted.get(name, default)
            if getattr(self.duo.rules, name) != value:
                setattr(self.duo.rules, name, value)

    # Processes

    @property
    def process(self) -> Process:
        return self.stack[-1]

    def run(self, kind: str, environ: Dict[str, str], *arguments: str, stdout: Any) -> Process:
        """A process from its start to its end."""
        process = Process(kind, arguments, self.time)
        process.met.update(name for name, count in self.active.items() if count)
        process.steps = self.steps
        process.met |= {"wrong_key"} if environ["DUO_SECRET_KEY"] != self.duo.skey else set()
        before, self.disk.environ = self.disk.environ, {"PATH": "", **environ}
        self.stack.append(process)
        self.tell(f"{kind} begins: {' '.join(arguments)}")
        try:
            with contextlib.redirect_stdout(stdout):
                process.status = self.module.main(["--env-file", "/dev/null", *arguments], self.edges)
        except Killed:
            process.killed = True
        except Exception:
            raise Failure("crashed: " + traceback.format_exc()) from None
        finally:
            for fd in process.files:
                with contextlib.suppress(OSError):
                    os.close(fd)
            self.stack.pop()
            self.disk.environ = before
        if kind == "missing":  # of which no checkpoint file knows
            self.disk.undone += [(self.time, entry) for entry in process.unsaved]
        for stream in self.streams.values():
            stream.process_ended(self.disk.unreadable and process.status in (None, 74))
        self.lives += kind == "service"
        self.tell(f"{kind} ends: {'killed' if process.killed else process.status}")
        self.check_status(process)
        return process

    def kill(self, everybody: bool = False) -> None:
        if not self.stack:
            return
        for process in self.stack if everybody else self.stack[-1:]:
            process.killed = True
            self.forgive(process)
        raise Killed

    def stop_service(self) -> None:
        if self.stack:
            self.stack[0].stopping = True

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
        self.disk.undone += [(self.time, entry) for entry in self.process.unsaved]
        self.process.unsaved = []
        if len(data) > 600_000:
            raise Failure(f"the checkpoint file has {len(data):,} bytes")
        if self.process.kind == "service":
            for name, at in checkpoints_in(data).items():
                self.checkpoints[name] = at
                self.ledger.checkpoint(name, at)

    def said(self, text: str) -> None:
        process = self.process
        for line in text.splitlines():
            process.lines.append(line)
            if self.verbose:
                self.tell("    " + line[21:] if line[:2] == "20" else line)
            if "from a proxy?" in line and process.fault in ("nan", "deep"):
                raise Failure(f"what Duo itself sent ({process.fault}) is told as a proxy's: {line}")
            if "Bad request timestamp" in line and not re.search("date|clock", line):
                raise Failure(f"Duo refuses the date, and nothing is said of it: {line}")
            if "Grant read log" in line and process.answered:
                raise Failure(f"told as a missing permission, though {', '.join(process.answered)} were answered: {line}")
            if "collection goes by Duo's clock" in line:
                again = [name for name, passes in process.warned.items() if passes == process.passes[name]]
                if again:
                    raise Failure(f"the clock is told twice in one pass of {', '.join(again)}: {line}")
                process.warned = dict(process.passes)
            gap = "passed over" in line and PASSED_OVER.search(line)
            if gap and gap.groups() in process.passed_over:
                raise Failure(f"told twice: {line}")
            process.passed_over |= {gap.groups()} if gap else set()
            words = PASS.search(line)
            # A step in the middle of a request is learned from the next one.
            is_settled = self.time > self.stepped + MINUTE and self.is_calm(self.operator.interval + 5 * MINUTE)
            if words and "Bad request timestamp" in line and is_settled:
                raise Failure(f"Duo refuses the date, though all has been well since {stamp(self.calm_since)}: {line}")
            if words and "Duo rejects the request" in line and not {"refused_log", "suspend"} & process.met:
                raise Failure(f"Duo was asked for what it does not serve: {line}")
            if words:
                process.passes[words[1]] += 1
                self.passes += 1
            elif "Traceback" in line:
                raise Failure(line)
            elif "a hole" in line:
                self.ledger.hole(re.search(r"(\w+): ", line)[1], line, process)

    def tell(self, text: str) -> None:
        if self.verbose:
            print(f"{(self.time - START) / DAY:8.3f} {stamp(self.time)} {text}", file=sys.__stdout__, flush=True)

    # What has to hold

    def check_status(self, process: Process) -> None:
        status, met, is_service = process.status, process.met, process.kind == "service"
        once = "--once" in process.arguments or not is_service
        if process.killed or process.kind == "another":
            return
        how = f"{' '.join(process.arguments)} ended with {status}"
        disk = {"disk", "full_disk", "closed_folder"} & met
        # A wrong clock costs one 401, from which it is set right, if that answer comes through.
        refused = {"refused_log", "date_outage", "wrong_key"} & met or {"clock_step", 401} <= met
        # A slow link may take longer for a page than the collector waits.
        excuse = met - {name for name, row in DISTURBANCES.items() if row.calm and name != "slow_link"} - {
            400, 401, "no_metadata", "no_cursor"}  # fmt: skip
        right = {
            0: once or process.stopping,
            2: "--since" in process.arguments and "clock_step" in met and not process.knows_time,  # it seems to be ahead
            74: bool(disk),
            75: once and bool(process.stopping or excuse or self.steps != process.steps),
            77: once and bool(refused),
            78: bool(disk or "fractional_lookback" in met or self.operator.lookback != self.lookback),
        }.get(status, False)
        if not right:
            raise Failure(f"{how}, which does not fit what it met: {sorted(map(str, met))}")
        for name, passes in process.passes.items():
            if once and passes > 1:
                raise Failure(f"{how}, and {name} had {passes} passes in it")
        if once and is_service and status == 0:
            for name in self.operator.log_types:
                behind = process.began - HIDDEN_S - self.checkpoints.get(name, 0)
                if behind > 30:  # an answer may have taken so long
                    raise Failure(f"{how}, though {name} is {behind:.0f} s behind what Duo showed when it began")

    def check_progress(self) -> None:
        """With Duo and the machine well, each log type gets on."""
        operator = self.operator
        if self.is_far_behind() or not self.is_calm(CALM_S + operator.interval):
            return
        interval = operator.interval
        if self.time < operator.changed + 15 * MINUTE:  # the first pass since then may not be over
            interval = max(interval, operator.former)
        for name in operator.log_types:
            behind = self.time - self.checkpoints.get(name, 0)
            if behind > interval + 20 * MINUTE:
                raise Failure(f"{name} does not get on: calm since {stamp(self.calm_since)}, {behind:.0f} s behind")

    def is_calm(self, seconds: float) -> bool:
        """Whether there has been no trouble for so long."""
        now = {name for name, count in self.active.items() if count}
        met = now.union(*(process.met for process in self.stack[:1]))  # a clock that was set right may still be thought wrong
        if any(not DISTURBANCES[name].calm for name in now) or any(now & pair and met >= pair for pair in TROUBLE_TOGETHER):
            self.calm_since = self.time
        return self.time - self.calm_since >= seconds

    def is_far_behind(self) -> bool:
        """Whether a log type is weeks behind, as in a first run, and has got on since this was last asked."""
        before, self.checkpoints_before = self.checkpoints_before, dict(self.checkpoints)
        is_far = any(before.get(name, 0) < at < self.time - 21 * DAY for name, at in self.checkpoints.items())
        self.calm_since = self.time if is_far else self.calm_since
        return is_far


# Who runs it


class Stdout:
    """As much of sys.stdout as the collector uses."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass


class Operator:
    """Runs the service, by a timer or as a loop, and does what operators do."""

    def __init__(self, world: World) -> None:
        self.world, self.ledger = world, world.ledger
        self.todo: List[Callable[[], Any]] = []
        self.log_types, self.once = BUSY, False
        self.settled = world.interval or self.draw_interval(world.draw)
        self.haste: List[float] = []  # shorter intervals that are wanted for a time
        self.interval = self.former = self.settled  # of the running service, and before it was changed
        self.changed = 0.0
        self.lookback: Any = world.lookback
        self.secret_key = world.duo.skey
        self.has_seeds = True
        self.off_s = 0.0  # that the service is left alone after the next kill
        self.rotated: Dict[Path, float] = {}  # files, and when their last line was written
        self.backup: Tuple[Optional[bytes], Dict[str, float]] = (None, {})
        self.open_output()
        for name in BUSY:
            self.ledger.floor[name] = START - 2 * DAY

    @property
    def environ(self) -> Dict[str, str]:
        seeds = {SINCE_KEYS[name]: str((START - 2 * 86_400) * (1000 // LOG_TYPES[name].unit_ms))
                 for name in BUSY if self.has_seeds}  # fmt: skip
        return {
            "DUO_API_HOST": f"https://{HOST}", "DUO_INTEGRATION_KEY": self.world.duo.ikey,
            "DUO_SECRET_KEY": self.secret_key, "DUO_CHECKPOINT_FILE": self.world.checkpoint_file,
            "DUO_LOG_TYPES": ",".join(self.log_types), "DUO_INTERVAL": "300" if self.once else f"{self.interval:.0f}",
            "DUO_LOOKBACK": str(self.lookback), **seeds}  # fmt: skip

    @property
    def is_busy(self) -> bool:
        """Whether another job than the service is running."""
        return any(process.kind != "service" for process in self.world.stack)

    def open_output(self) -> None:
        world = self.world
        world.output = Stream(world.folder / "output.jsonl", self.ledger)
        world.streams = {world.output.fd: world.output}

    def live(self) -> None:
        """Until the end of the world: run the service, and between its runs what waits for that."""
        world = self.world
        while world.time < world.end:
            while self.todo:
                self.todo.pop(0)()
            if world.time >= world.end:
                break
            process = world.run("service", self.environ, *(["--once"] if self.once else []), stdout=Stdout(world.output.fd))
            if process.status == 78 and self.lookback != world.lookback:
                self.lookback = world.lookback  # the message says what to write
            pause = 60 if process.status in (74, 78) else self.interval if self.once else world.draw.uniform(1, 60)
            if process.killed or (self.once and process.stopping):  # the timer starts it again only after its interval
                pause, self.off_s = max(pause, self.off_s), 0.0
                world.calm_since = max(world.calm_since, world.time + pause)
            world.advance(max(pause, world.booted + 5 - world.time))

    def between_runs(self, action: Callable[[], Any]) -> None:
        """Stop the service, do that, start it again."""
        self.todo.append(action)
        self.world.stop_service()

    # Beside the service

    def rotate(self, draw: random.Random) -> None:
        world, stream = self.world, self.world.output
        if stream.tail or self.is_busy or stream.path in self.rotated:
            return
        for path in [path for path, at in self.rotated.items() if at < world.time - 3 * DAY]:
            path.unlink()
            del self.rotated[path]
        rotated = world.folder / f"output.jsonl.{world.happened['rotation']}"
        self.rotated[rotated] = world.time
        if draw.random() < 0.75:  # copytruncate
            shutil.copyfile(stream.path, rotated)
            os.truncate(stream.path, 0)
            stream.size = stream.synced = 0
            stream.unsynced.clear()
            stream.orphans.clear()
        else:
            os.replace(stream.path, rotated)
            stream.path = rotated
            self.between_runs(lambda: (stream.close(), self.open_output()))

    def replay(self, draw: random.Random) -> None:
        """Prints what lies between, each event once, whatever the service does."""
        world, now = self.world, self.world.time
        if self.is_busy:
            return
        since = int(now - draw.uniform(1, 72) * HOUR)
        until = int(min(since + draw.uniform(0.1, 24) * HOUR, now - 200))
        when, slack = self.way_to_write(draw)
        path, steps = world.folder / "replay.jsonl", world.steps
        with open(path, "wb") as file:
            process = world.run("replay", self.environ, "--since", when(since), "--until", when(until), stdout=file)
        if process.status != 0 or world.steps != steps:
            return
        got = collections.Counter(line.rpartition(b',"eventtype":')[0] for line in path.read_bytes().splitlines())
        printed = collections.defaultdict(list)  # by log type, for those far outside
        for key in got:
            if key in self.ledger.entries:
                entry = self.ledger.entries[key]
                printed[entry.log_type].append((entry.time, key))
        for name in self.log_types:
            within = [(time_s, key) for time_s, key in self.ledger.since(name, since - slack) if time_s < until + DAY]
            for time_s, key in dict.fromkeys(within + printed[name]):
                entry = self.ledger.entries[key]
                count = got.pop(key, 0)
                if count < entry.count and entry.shown < now and since + slack < time_s < until - slack and \
                        not self.ledger.out_of_reach(name, time_s):
                    raise Failure(f"replay from {stamp(since)} to {stamp(until)}: {entry} was printed {count} times of {entry.count}")
                within = since - slack <= time_s <= until + slack or (entry.odd and LOG_TYPES[name].cursor is None)
                if count > (entry.count if within and entry.shown <= world.time else 0):
                    raise Failure(f"replay from {stamp(since)} to {stamp(until)}: {entry} was printed {count} times")
        if got:
            raise Failure(f"replay: lines that Duo did not publish: {list(got)[:3]}")

    def way_to_write(self, draw: random.Random) -> Tuple[Callable[[float], str], float]:
        """A time as --since and --until take it, and by how many s it may be off: an age is reckoned from the moment at
        which the collector knows the time, or by a local clock of which it says nothing."""
        now = self.world.time
        return (stamp, 1) if draw.random() < 0.5 else (lambda at: f"{now - at:.0f}s", 60)

    def missing_from(self, draw: random.Random) -> None:
        """The daily job that finds what Duo published hours late."""
        world, now = self.world, self.world.time
        if not world.knows_missing_from or world.output.tail or not world.checkpoints or self.is_busy:
            return
        if world.disk.unreadable:  # nor can this job read it
            return
        since, file = int(now - draw.choice((10, 26, 48)) * HOUR), str(world.output.path)
        when, slack = self.way_to_write(draw)
        rotated = [path for path, at in self.rotated.items() if at > since]  # or all in it happened before that
        if rotated:
            together = world.folder / "together.jsonl"
            together.write_bytes(b"".join(path.read_bytes() for path in (*rotated, world.output.path)))
            world.disk.stdin, file = str(together), "-"
        self.missing_since, steps = since - slack, world.steps
        process = world.run("missing", self.environ, "--since", when(since), "--missing-from", file,
                            stdout=Stdout(world.output.fd))  # fmt: skip
        if process.status != 0 or world.steps != steps:
            return
        if "another range" in process.met:
            raise Failure(f"--missing-from printed events older than --since {when(since)}, and ended with 0")
        for name in self.log_types:
            end = min(self.ledger.newest[name], world.checkpoints.get(name, 0) - world.lookback) - 2
            for time_s, key in reversed(self.ledger.by_time[name]):
                if time_s < since - DAY:  # which is in order but for what goes on beyond midnight
                    break
                entry = self.ledger.entries[key]
                if since + slack < time_s < end and entry.shown < now and entry.written < entry.count and \
                        not self.ledger.out_of_reach(name, time_s):
                    raise Failure(f"--missing-from has not written {name} of {stamp(time_s)}, shown at {stamp(entry.shown)}")

    # Between two runs of the service

    def reconfigure(self, draw: random.Random) -> None:
        def act() -> None:
            self.log_types = BUSY + tuple(draw.sample(OTHERS, k=draw.choice((0, 0, 1, 2, 3))))
            self.once = draw.random() < 0.3
            self.settled = self.world.interval or self.draw_interval(draw)
            self.set_interval()
            self.kill_soon(draw)

        self.between_runs(act)

    def draw_interval(self, draw: random.Random) -> float:
        """Long ones, since a simulated year takes as long as its passes."""
        return draw.choice((1800.0, 3600.0, 3600.0, 3600.0, 3600.0))

    def hurry(self, interval: float) -> None:
        """Have it run more often for a time, so that each disturbance comes at the default interval, too."""
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
            self.former, self.interval, self.changed = self.interval, self.wanted_interval, self.world.time

    def kill_soon(self, draw: random.Random) -> None:
        """The first pass over half a year is the one that is most worth being killed."""
        if self.world.has("kill") and draw.random() < 0.4:
            self.world.disk.left = draw.randrange(200)
            self.off_s = draw.choice((0, 0, 2)) * HOUR

    def fractional_lookback(self, draw: random.Random) -> Callable[[], Any]:
        def set_to(value: Any) -> Callable[[], Any]:
            return lambda: self.between_runs(lambda: setattr(self, "lookback", value))

        set_to(self.world.lookback + 0.5)()
        return set_to(self.world.lookback)

    def wrong_key(self, draw: random.Random) -> Callable[[], Any]:
        def set_to(value: Any) -> Callable[[], Any]:
            return lambda: self.between_runs(lambda: setattr(self, "secret_key", value))

        set_to("0" * 40)()
        return set_to(self.world.duo.skey)

    def since_back(self, draw: random.Random) -> None:
        hours = draw.choice((100, 500)) * draw.random()
        self.between_runs(lambda: self.start_at(self.world.time - hours * HOUR, draw))

    def since_forward(self, draw: random.Random) -> None:
        self.between_runs(lambda: self.start_at(self.world.time - draw.uniform(0, 600), draw))

    def lose_checkpoint(self, draw: random.Random) -> None:
        """Gone, or with the file that is shipped in its place."""

        def act() -> None:
            self.remove_checkpoint(draw)
            self.ledger.again_from(dict.fromkeys(OTHERS, 0.0))
            self.ledger.floor.update(dict.fromkeys(OTHERS, 0.0))
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
            self.has_seeds, self.once, self.backup = False, draw.random() < 0.7, (None, {})
            self.remove_checkpoint(draw)
            self.ledger.start_over()
            self.world.disk.floor = dict(self.ledger.floor)
            self.kill_soon(draw)

        self.between_runs(act)

    def start_at(self, since: float, draw: random.Random) -> None:
        """--once --since, maybe with a wrong key: it counts from there on, whatever becomes of that run."""
        world, environ, log_types = self.world, self.environ, self.log_types
        since = float(int(since))
        world.lives += 1
        if draw.random() < 0.3:
            environ["DUO_SECRET_KEY"] = "0" * 40
        while world.time < world.end:
            self.ledger.floor.update(dict.fromkeys(log_types, since))
            self.ledger.again_from(dict.fromkeys(log_types, since))  # each time
            began = {"wrong_key"} if environ["DUO_SECRET_KEY"] != world.duo.skey else set()
            world.active["wrong_key"] += len(began)
            process = world.run("service", environ, "--once", "--since", stamp(since), stdout=Stdout(world.output.fd))
            world.active["wrong_key"] -= len(began)
            if process.status in (0, 75, 77):
                break
            environ["DUO_LOOKBACK"] = str(world.lookback)  # 78: the message says what to write
            world.advance(max(600, world.booted + 5 - world.time))

    def back_up(self) -> None:
        path = Path(self.world.checkpoint_file)
        floor = self.world.disk.floor or self.ledger.floor  # not that of a --since that has not been able to save it
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
                self.ledger.again_from({name: restored.get(name, 0) - 17 * HOUR})
            self.ledger.floor, self.world.disk.floor = dict(floor), dict(floor)
            self.world.lives += 1

        self.between_runs(act)

    def another_tenant(self, draw: random.Random) -> None:
        """An .env copied with its checkpoint file: nothing is asked, nothing changed."""

        def act() -> None:
            world, path = self.world, Path(self.world.checkpoint_file)
            if not path.exists() or b'"account"' not in path.read_bytes():  # nothing has been collected
                return
            before, asked = path.read_bytes(), world.requests
            environ = {**self.environ, "DUO_API_HOST": "https://api-another.duosecurity.com"}
            with open(world.folder / "another.jsonl", "wb") as file:
                process = world.run("another", environ, "--once", stdout=file)
            if not process.killed and (process.status, path.read_bytes(), world.requests) != (78, before, asked):
                raise Failure(f"another tenant's keys with this checkpoint file: ended with {process.status}, "
                              f"{world.requests - asked} requests, file changed: {path.read_bytes() != before}")  # fmt: skip

        self.between_runs(act)


# The command line


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("simulated_collector", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Verdict(NamedTuple):
    failure: str  # empty: all held
    day: float
    world: World


def simulate(path: Path, seed: int, days: float, without: Tuple[str, ...] = (), often: float = 1,
             interval: Optional[float] = None, verbose: bool = False, yearly: Any = None) -> Verdict:  # fmt: skip
    """One life. `yearly` is called with the world at the end of each year."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="simulate.", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        for name in (None, "duo_collector"):  # of the life before
            logging.getLogger(name).handlers.clear()
        module = load(path)
        world = World(module, seed, Path(folder), days, without, often, verbose, interval)
        world.knows_missing_from = "--missing-from" in path.read_text()
        for year in range(1, int(days / 365) + 1):
            if yearly:
                world.at(START + year * 365 * DAY - 1, "year", lambda: yearly(world))
        try:
            world.operator.live()
            failure = ""
        except Failure as failed:
            failure = str(failed)
        finally:
            world.output.close()
        return Verdict(failure, (world.time - START) / DAY, world)


def days_of(text: str) -> float:
    """118d or 118, in days."""
    return float(text[:-1] if text.endswith("d") else text)


def shrink(path: Path, seed: int, days: float, without: Tuple[str, ...], often: float, interval: Optional[float]) -> None:
    """Say which disturbances a failure needs: leave out one after the other, for good where it fails all the same."""
    first = simulate(path, seed, days, without, often, interval)
    if not first.failure:
        print(f"seed {seed} does not fail within {days:g} days")
        return
    needed, gone = [], list(without)
    for name in DISTURBANCES:
        if name in without:
            continue
        verdict = simulate(path, seed, days, (*gone, name), often, interval)
        (gone if verdict.failure else needed).append(name)
        print(f"  without {name}: {'fails all the same' if verdict.failure else 'holds, so it is needed'}", flush=True)
    last = simulate(path, seed, days, tuple(gone), often, interval)
    print(f"seed {seed} fails with {', '.join(needed) or 'none of them'} alone, on day {last.day:.1f}: {last.failure}")
    print(f"replay: {command(path, seed, last.day, tuple(gone), often, interval)} --verbose")


def command(path: Path, seed: int, day: float, without: Tuple[str, ...], often: float, interval: Optional[float]) -> str:
    """What to type to see the same again."""
    more = ["--without", ",".join(without)] if without else []
    more += ["--often", f"{often:g}"] if often != 1 else []
    more += ["--interval", f"{interval:g}"] if interval else []
    more += ["--module", str(path)] if path != SCRIPT else []
    return " ".join(["tests/simulate", "--seed", str(seed), "--until", f"{day + 0.01:.2f}d", *more])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="disturbances: " + ", ".join(DISTURBANCES))  # fmt: skip
    parser.add_argument("--years", type=int, default=1, help="how long each seed's life is (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, which is printed")
    parser.add_argument("--until", type=days_of, metavar="DAYS", help="end there, as 118d, in place of --years")
    parser.add_argument("--often", type=float, default=1, metavar="TIMES",
                        help="every disturbance so many times as often (default: %(default)s)")  # fmt: skip
    parser.add_argument("--interval", type=float, metavar="SECONDS", help="always this DUO_INTERVAL (default: drawn)")
    parser.add_argument("--without", default="", metavar="NAME,...", help="leave these disturbances out")
    parser.add_argument("--shrink", action="store_true", help="find out which disturbances a failing seed needs")
    parser.add_argument("--module", type=Path, default=SCRIPT, metavar="PATH", help="another duo_collector.py")
    parser.add_argument("--verbose", action="store_true", help="all that happens, and what the collector says")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    without = tuple(name for name in options.without.split(",") if name)
    if set(without) - set(DISTURBANCES):
        parser.error(f"no such disturbance: {', '.join(set(without) - set(DISTURBANCES))}")
    days = options.until or options.years * 365
    if options.shrink:
        shrink(options.module, seed, days, without, options.often, options.interval)
        return 0
    gc.disable()  # hundreds of thousands of events that stay; forget() collects what cycles there are
    began, year = time.monotonic(), [0, collections.Counter(), 0, 0]

    def line(world: World, verdict: str = "all held") -> None:
        what = ", ".join(f"{name} {count}" for name, count in (world.happened - year[1]).most_common())
        print(f"seed {seed}, year {year[0] + 1}: {world.ledger.published - year[2]:,} events, {world.passes - year[3]:,} passes, "
              f"{time.monotonic() - began:.0f} s; {what}; {verdict}", file=sys.__stdout__, flush=True)  # fmt: skip
        year[:] = [year[0] + 1, world.happened.copy(), world.ledger.published, world.passes]

    verdict = simulate(options.module, seed, days, without, options.often, options.interval, options.verbose, line)
    if verdict.failure or days % 365:
        line(verdict.world, "FAILED" if verdict.failure else "all held")
    if verdict.failure:
        print(f"seed {seed}, day {verdict.day:.3f}: {verdict.failure}")
        for said in list(verdict.world.stack[-1].lines if verdict.world.stack else [])[-8:]:
            print("    " + said)
        again = command(options.module, seed, verdict.day, without, options.often, options.interval)
        print(f"replay: {again} --verbose\nshrink: {again} --shrink")
    return 1 if verdict.failure else 0
