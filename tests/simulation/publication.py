"""What Duo publishes: events day by day, on time, late, at once, odd."""

from __future__ import annotations

import collections
import json
import random
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from duo import LOG_TYPES

from .basics import BUSY, DAY, HIDDEN_S, HOUR, OTHERS, START

if TYPE_CHECKING:
    from .ledger import Entry
    from .world import World

ODDITIES = (  # members that are to come through as they are
    '"factor":"duo_push","ip":null', '"n":12345678901234567890,"f":1.0,"g":1e5,"h":-0.00', '"a":1,"a":2',
    '"name":"Björn \\"B\\" Lefèvre – 山田太郎"', '"emoji":"\\ud83d\\ude00 😀","lone":"\\ud800"', '"list":[ 1, {} ,[]]',
    '"metadata":{"next_offset":"none"},"response":[]', '"path":"C:\\\\x\\/y\\u000a"', '"result":"SUCCESS"')  # fmt: skip


class Stall(NamedTuple):
    """Duo's log pipeline stands still: a share of the events of this time is shown at its end."""

    start: float
    end: float
    share: float
    log_types: tuple[str, ...]
    held: list[Entry]


class Publication:
    """Makes the tenant's events, puts them into Duo and enters them into the ledger."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stalls: list[Stall] = []

    def history(self) -> None:
        """Before the service was begun: little of the busy logs, half a year of the others."""
        for day in range(1, 190):
            for name in LOG_TYPES if day <= 3 else OTHERS:
                self.make_day(name, START - day * DAY)
        self.world.ledger.published = 0

    def draw_stall(self, start: float, end: float, draw: random.Random) -> None:
        share = 1.0 if draw.random() < 0.6 else draw.uniform(0.2, 0.9)
        names = list(LOG_TYPES)
        if draw.random() < 0.5:
            names = draw.sample(names, k=3)
        self.stalls.append(Stall(start, end, share, tuple(names), []))

    def make_day(self, name: str, start: float) -> None:
        """Fill a log with the events of a day."""
        world, ledger = self.world, self.world.ledger
        draw = random.Random(f"{world.seed} {name} {start}")
        is_v1 = LOG_TYPES[name].unit_ms == 1000
        times = self.draw_times(name, start, draw)
        stalls = [
            stall
            for stall in self.stalls
            if name in stall.log_types and stall.start < start + 2 * DAY and stall.end > start
        ]
        has_odd_times = world.has("odd_times") and (world.has_odd_v1_times or not is_v1)
        on_time: list[tuple[int, str, bytes]] = []
        at_once: collections.Counter = collections.Counter()
        for time_s in sorted(times):
            time_s = float(int(time_s)) if is_v1 else int(time_s * 1000) / 1000
            shown, is_hours_late = self.draw_shown(time_s, draw)
            stall = self.stall_at(stalls, time_s, draw)
            if stall:
                shown = max(shown, stall.end)
            is_odd = has_odd_times and draw.random() < 0.003
            time_us, event_id, text = make_event(draw, name, time_s, is_odd)
            entry, is_known = ledger.enter(name, text, time_s, shown, is_odd)
            event = (time_us, event_id, text.encode())
            if entry.shown > time_s + HIDDEN_S:
                world.duo.add_encoded(name, [event], int(entry.shown * 1000))
            elif is_odd:
                world.duo.add_encoded(name, [event])
            else:
                on_time.append(event)
                at_once[int(time_s)] += 1
            if is_known or is_hours_late:
                continue
            if stall:
                stall.held.append(entry)
            else:
                ledger.expect(entry)
        world.duo.add_encoded(name, on_time)
        if is_v1:
            ledger.expect_crowds(name, collections.Counter(map(int, times)), at_once)

    def draw_times(self, name: str, start: float, draw: random.Random) -> list[float]:
        is_busy = name in BUSY
        is_weekend = datetime.fromtimestamp(start, timezone.utc).weekday() >= 5
        count = draw.gauss(200, 20) * (0.3 if is_weekend else 1.28) * (1 if is_busy else 0.1)
        times = []
        for _ in range(int(count)):
            is_at_work = draw.random() < 0.8
            times.append(
                start + (draw.triangular(0, DAY, 9 * HOUR) if is_at_work else draw.random() * DAY)
            )
        for at in draw.sample(times, k=min(3, len(times))):  # some at one instant
            times += [at] * draw.randrange(1, 4)
        if draw.random() < (0.15 if is_busy else 0.05):  # a burst within a second or a ms
            at, width = start + draw.random() * DAY, draw.choice((0, 0.0009, 0.9))
            times += [at + draw.random() * width for _ in range(draw.choice((30, 100, 300)))]
        if draw.random() < (0.01 if is_busy else 0.002):  # more than a page
            at = start + draw.random() * DAY
            times += [at + draw.random() * HOUR for _ in range(draw.randrange(1000, 2600))]
        is_v1 = LOG_TYPES[name].unit_ms == 1000
        if is_v1 and self.world.has("crowds") and draw.random() < 0.1:
            at = float(int(start + draw.random() * (DAY - 200)))
            times += [at] * draw.choice((400, 700, 950, 1300))
            times += [at + draw.random() * 120 for _ in range(draw.choice((0, 20, 400)))]
        return times

    def draw_shown(self, time_s: float, draw: random.Random) -> tuple[float, bool]:
        """From when Duo shows an event (s), and whether that is hours late."""
        if self.world.has("late") and draw.random() < 0.05:
            return time_s + HIDDEN_S + draw.random() * (self.world.lookback - 15), False
        if self.world.has("hours_late") and draw.random() < 0.002:
            return time_s + HIDDEN_S + draw.uniform(0.2, 40) * HOUR, True
        return time_s + HIDDEN_S, False

    def stall_at(self, stalls: list[Stall], time_s: float, draw: random.Random) -> Stall | None:
        for stall in stalls:
            if stall.start <= time_s < stall.end and draw.random() < stall.share:
                return stall
        return None


def make_event(draw: random.Random, name: str, time_s: float, is_odd: bool) -> tuple[int, str, str]:
    """An event of that time: where Duo has it (µs), its id and its text."""
    log = LOG_TYPES[name]
    second, ms, micros = int(time_s), round(time_s % 1 * 1000), draw.randrange(1000)
    iso = datetime.fromtimestamp(second, timezone.utc).isoformat()[:19]
    time_us = second * 1_000_000 + ms * 1000
    when: Any = f"{iso}.{ms:03d}{micros:03d}+00:00"
    field = log.time_fields[0]
    if field == "timestamp":
        when = second
    elif field == "surfaced_timestamp":
        when = int(time_s * 1000)
        time_us = when * 1000
    elif not is_odd:
        time_us += micros
    if is_odd:
        when = draw.choice((None, "soon", {}))
    text = f'{{"{field}":{json.dumps(when)},{draw.choice(ODDITIES)},'
    event_id = ""
    if log.id_field is None:  # twins are possible
        user = draw.randrange(40)
        text += f'"action":"{name}","username":"{user}","isotimestamp":"{iso}+00:00"'
    else:
        event_id = f"{draw.getrandbits(64):016x}"
        text += f'"{log.id_field}":"{event_id}"'
    if is_odd:  # or it might be equal to another, years apart
        text += f',"nonce":"{draw.getrandbits(64):016x}"'
    return time_us, event_id, text + "}"


def escaped(text: str) -> bytes:
    """As the collector writes it, up to the fields that it adds."""
    if not text.isascii():
        text = re.sub(r"[^\x00-\x7f]+", lambda run: json.dumps(run[0])[1:-1], text)
    return text[:-1].encode()
