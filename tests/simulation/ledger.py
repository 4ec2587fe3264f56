"""What has to become of what Duo publishes: which events must be written, and how often they were."""

from __future__ import annotations

import collections
import gc
import heapq
import re
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from duo import LOG_TYPES

from .basics import BUSY, BUSY_DAYS, DAY, HIDDEN_S, HOST, HOUR, MINUTE, Failure, kept_days, stamp
from .publication import Stall, escaped

if TYPE_CHECKING:
    from .process import Process
    from .world import World

# The fields that the collector adds
TAILS = {name: f'"{name}","host":"{HOST}"}}'.encode() for name in LOG_TYPES}
SMALLEST_FULL_PAGE = 10  # of a v1 log: the collector takes a smaller one for the last
CURSOR_TROUBLE = {"forgotten_cursors", "refused_cursors", "missing_metadata"}


class Entry:
    """An event, or several that are equal to the byte."""

    __slots__ = ("allowed", "count", "is_odd", "log_type", "shown", "time", "written")

    def __init__(self, log_type: str, time_s: float, shown: float, is_odd: bool) -> None:
        self.log_type = log_type
        self.time = time_s  # s; where Duo has it, whatever the event itself says
        self.shown = shown  # s; from when Duo shows it
        self.is_odd = is_odd  # its time cannot be read
        self.count = 1  # in Duo
        self.written = 0
        self.allowed = 1  # times that it may be written

    def __lt__(self, other: Entry) -> bool:
        return self.time < other.time

    def failure(self, what: str) -> Failure:
        name, odd = self.log_type, " (which has no time)" if self.is_odd else ""
        return Failure(
            f"{name}: the event of {stamp(self.time)}{odd}, shown at {stamp(self.shown)}, {what}"
        )


class Ledger:
    """All events of the tenant."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.entries: dict[
            bytes, Entry
        ] = {}  # by the line up to the fields that the collector adds
        self.by_time: dict[str, list[tuple[float, bytes]]] = {name: [] for name in LOG_TYPES}
        # Those that an ordinary pass has to write, by the checkpoint at which they must have been: a
        # pass that moves it there began later than they were shown.
        self.due: dict[str, list[tuple[float, Entry]]] = {name: [] for name in LOG_TYPES}
        self.floor = dict.fromkeys(LOG_TYPES, 0.0)  # nothing older is wanted
        self.newest = dict.fromkeys(LOG_TYPES, 0.0)  # of the written ones
        # Seconds of more events than Duo shows: in how many lives of the service that was told
        self.crowds: dict[tuple[str, int], list[int]] = {}
        self.crowds_due: list[tuple[str, int]] = []  # those of which it has to be told
        # Other ranges of which the collector said that it may not have got all
        self.holes: dict[str, list[tuple[int, int]]] = {name: [] for name in LOG_TYPES}
        self.published = 0

    # What is published

    def enter(
        self, name: str, text: str, time_s: float, shown: float, is_odd: bool
    ) -> tuple[Entry, bool]:
        """The entry of an event, and whether there was one."""
        self.published += 1
        key = escaped(text)
        known = self.entries.get(key)
        if known:
            known.count += 1
            known.allowed += 1
            return known, True
        entry = self.entries[key] = Entry(name, time_s, shown, is_odd)
        self.by_time[name].append((time_s, key))
        return entry, False

    def expect(self, entry: Entry) -> None:
        due = max(entry.time, entry.shown - HIDDEN_S)
        heapq.heappush(self.due[entry.log_type], (due, entry))

    def expect_crowds(
        self, name: str, seconds: collections.Counter, at_once: collections.Counter
    ) -> None:
        """It has to be told where so many are shown at once; what comes late may come when no pass
        looks there any more."""
        self.crowds.update({(name, second): [] for second, n in seconds.items() if n > 1000})
        self.crowds_due += [(name, second) for second, n in at_once.items() if n > 1000]

    def stall_ends(self, stall: Stall) -> None:
        """Duo shows what it held back. An ordinary pass finds it where nothing later had been
        shown; the rest is for --missing-from."""
        for name in stall.log_types:
            newest = 0.0
            for time_s, key in self.by_time[name][-3000:]:
                is_shown = self.entries[key].shown < stall.end and time_s < stall.end
                if stall.start - DAY < time_s and is_shown:
                    newest = max(newest, time_s)
            for entry in stall.held:
                if entry.log_type != name:
                    continue
                is_minutes_late = entry.shown <= entry.time + HIDDEN_S + self.world.lookback - 15
                if is_minutes_late or newest < entry.time - LOG_TYPES[name].unit_ms / 1000:
                    self.expect(entry)

    # What is written

    def took(self, line: bytes) -> Entry:
        """The entry of a whole line."""
        key, _, tail = line.rpartition(b',"eventtype":')
        entry = self.entries.get(key)
        if entry is None:
            raise Failure(f"a line that Duo did not publish: {line[:300]!r}")
        if tail != TAILS[entry.log_type]:
            raise Failure(f"{entry.log_type}: not the two fields of the collector: {tail[:100]!r}")
        return entry

    def counted(self, entry: Entry, process: Process, line: bytes) -> None:
        name = entry.log_type
        if process.kind == "missing":
            if entry.is_odd:
                entry.allowed += 1  # nobody can tell on which side of the service's start it lies
            elif self.world.is_clock_wrong or self.world.time < self.world.was_wrong + 5 * DAY:
                entry.allowed += 1  # when a file was last changed is told by the local clock
            elif entry.time < process.since:
                process.met.add("another range")  # of which its files may hold nothing
                entry.allowed += 1
        entry.written += 1
        if not entry.is_odd:
            self.newest[name] = max(self.newest[name], entry.time)
        if entry.written > entry.allowed:
            times = f"was written {entry.written} times; {entry.allowed} may be"
            raise entry.failure(f"{times} ({process.kind}): {line[:200]!r}")
        unit_s = LOG_TYPES[name].unit_ms / 1000
        if process.kind == "service" and entry.time < self.floor[name] - unit_s:
            raise entry.failure(f"was written, though it is older than {stamp(self.floor[name])}")

    def expect_later(self, entry: Entry, at: float) -> None:
        """The ping was not answered, and the local clock may be ahead: that pass asked for more than
        Duo showed. What is on time comes with the next; the rest is for --missing-from."""
        if entry.shown <= entry.time + HIDDEN_S:
            heapq.heappush(self.due[entry.log_type], (at + MINUTE, entry))

    def checkpoint(self, name: str, at: float, process: Process) -> None:
        """The checkpoint file says `at`: what an ordinary pass has to write by then is written."""
        due = self.due[name]
        oldest = max(self.floor[name], self.world.time - kept_days(name) * DAY)
        while due and due[0][0] < at:
            entry = heapq.heappop(due)[1]
            is_wanted = entry.time >= oldest and not self.is_out_of_reach(name, entry.time)
            if entry.written >= entry.count or not is_wanted:
                continue
            if self.world.time < process.untold_at + HOUR:
                self.expect_later(entry, at)
            else:
                times = f"{entry.written} times of {entry.count}"
                raise entry.failure(f"was written {times}, and the checkpoint is {stamp(at)}")
        # Something newer within the window shows that there may be more
        told_by = self.newest[name] if self.newest[name] < at else 0.0
        passed = [crowd for crowd in self.crowds_due if crowd[0] == name and crowd[1] < told_by]
        for crowd in passed:
            self.crowds_due.remove(crowd)
            if not self.crowds[crowd] and crowd[1] > self.floor[name]:
                raise Failure(
                    f"{name}: of {stamp(crowd[1])} Duo does not show all, and nothing was said"
                )

    # Holes

    def is_out_of_reach(self, name: str, time_s: float) -> bool:
        """Whether it is of a second of which Duo does not show all."""
        if (name, int(time_s)) in self.crowds:
            return True
        return any(first <= time_s < last + 1 for first, last in self.holes[name])

    def hole(self, name: str, line: str, process: Process) -> None:
        """The collector says that Duo left a hole."""
        texts = re.findall(r" (20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d)Z", line)
        first, last = (int(datetime.fromisoformat(text + "+00:00").timestamp()) for text in texts)
        told = self.crowds.get((name, first))
        if told is not None:
            if process.kind == "service":
                if self.world.lives in told:
                    raise Failure(f"told twice: {line}")
                told.append(self.world.lives)
            return
        is_unordered = not LOG_TYPES[name].v2 and LOG_TYPES[name].cursor
        if is_unordered and "missing_metadata" in process.met:
            # Full pages that may or may not be the last: of several in a row, one is told
            self.holes[name].append((first, last + int(3 * DAY)))
            return
        if process.met & CURSOR_TROUBLE and self.is_crowded_ms(name, first):
            self.holes[name].append((first, last))
            return
        shown = int(re.search(r"shows only ([\d,]+)", line)[1].replace(",", ""))
        if is_unordered and shown % LOG_TYPES[name].max_limit == 0:
            return  # a full page without a cursor: nobody can tell that it is the last
        if process.kind != "service" and first == last and shown >= SMALLEST_FULL_PAGE:
            return  # the end of a range: nobody asks what comes after it
        if self.has_just_shown_something(name, first):
            return  # between two requests: as if the first had been cut short
        if self.world.duo.rules.total in ("int", "object", "absent"):
            raise Failure(f"there is no hole: {line}")

    def has_just_shown_something(self, name: str, from_s: float) -> bool:
        """Whether an event that is newer than this came late, in the last minute."""
        now = self.world.time
        for _, key in self.since(name, from_s):
            entry = self.entries[key]
            is_late = entry.shown > entry.time + HIDDEN_S
            if is_late and entry.time > from_s and now - MINUTE < entry.shown <= now:
                return True
        return False

    def is_crowded_ms(self, name: str, second: int) -> bool:
        """Whether several events of this second share a ms: without cursors these cannot be had
        page by page."""
        if not LOG_TYPES[name].v2:
            return False
        times = [time_s for time_s, _ in self.by_time[name] if second <= time_s < second + 1]
        instants = collections.Counter(int(time_s * 1000) for time_s in times)
        return max(instants.values(), default=0) > 1

    # What the operator does to it

    def again_from(self, name: str, from_s: float) -> None:
        """He asks for what is newer once more: what was written may be so once again."""
        for time_s, key in self.since(name, from_s - 1):
            if time_s >= from_s - 1:
                entry = self.entries[key]
                entry.allowed = max(entry.allowed, entry.written + entry.count)

    def start_over(self) -> None:
        """A first run begins: all that Duo shows has to be written once more, and only once."""
        self.world.output.sync()
        for name, times in self.by_time.items():
            self.floor[name] = 0.0
            for _, key in times:
                entry = self.entries[key]
                entry.written = 0
                entry.allowed = entry.count
                if entry.shown <= self.world.time:
                    self.expect(entry)

    def since(self, name: str, from_s: float) -> Iterator[tuple[float, bytes]]:
        """At least the events from then on: they are in order but for what goes on beyond midnight."""
        times = self.by_time[name]
        return iter(times[bisect_left(times, (from_s - DAY,)) :])

    def forget(self) -> None:
        """What is long over, so that ten years fit into memory."""
        for name, times in self.by_time.items():
            days = BUSY_DAYS if name in BUSY else 200
            oldest = self.world.time - days * DAY
            times.sort()
            gone = bisect_left(times, (oldest,))
            for _, key in times[:gone]:
                self.entries.pop(key, None)
            del times[:gone]
            self.crowds_due = [one for one in self.crowds_due if one[0] != name or one[1] >= oldest]
            self.holes[name] = [one for one in self.holes[name] if one[1] >= oldest]
            store = self.world.duo._stores[name]
            store.publish(int(self.world.time * 1000))
            del store.rows[: bisect_left(store.rows, (oldest * 1e6,))]
        gc.collect(1)  # what came since the last time
