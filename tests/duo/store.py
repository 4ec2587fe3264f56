"""The events of a log: where they lie, and from when they are shown."""

import itertools
import json
import random
import threading
from bisect import bisect_left, insort
from datetime import datetime, timedelta
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from .rules import EPOCH, LogType


class Row(NamedTuple):
    """A stored event. Rows sort by time, then by the order in which they were added."""

    time_us: int
    number: int
    id: str
    body: bytes  # the JSON text, made once: a page is joined, not encoded


class Stall(NamedTuple):
    """Duo's log pipeline stands still while the API answers: a share of the events of this time is shown at its end."""

    start_ms: int
    end_ms: int
    share: float
    random: random.Random

    def holds(self, row: Row) -> bool:
        return (
            self.start_ms <= row.time_us // 1000 < self.end_ms and self.random.random() < self.share
        )


class EventStore:
    """The events of one log type in the order of time, sliced by bisection."""

    def __init__(self, log: LogType) -> None:
        self.log = log
        self.lock = threading.Lock()
        self.rows: List[Row] = []
        self.unpublished: List[Tuple[int, Row]] = []  # in the order of the ms of publication
        self.stalls: List[Stall] = []
        self.numbers = itertools.count()

    def add(self, events: Iterable[Any], published_ms: Optional[int], at_ms: Optional[int]) -> None:
        self.add_rows([self._row(event, at_ms) for event in events], published_ms)

    def add_rows(self, rows: List[Row], published_ms: Optional[int]) -> None:
        with self.lock:
            if published_ms is not None:
                for row in rows:
                    insort(self.unpublished, (published_ms, row))
                return
            if self.stalls:
                rows = self._hold(rows)
                self.unpublished.sort()
            self._insert(rows)

    def stall(self, stall: "Stall") -> None:
        """Hold back what is there of this time, and what is added later."""
        with self.lock:
            self.stalls.append(stall)
            self.rows = self._hold(self.rows)
            self.unpublished.sort()

    def _hold(self, rows: List[Row]) -> List[Row]:
        """Those of the rows that no stall holds back; the others are shown when the last of theirs ends."""
        shown = []
        for row in rows:
            ends = [stall.end_ms for stall in self.stalls if stall.holds(row)]
            if ends:
                self.unpublished.append((max(ends), row))
            else:
                shown.append(row)
        return shown

    def publish(self, now_ms: int) -> None:
        """Show the late events whose moment has come. The caller holds the lock."""
        due = bisect_left(self.unpublished, (now_ms + 1,))
        self._insert([row for _, row in self.unpublished[:due]])
        del self.unpublished[:due]

    def all_rows(self) -> List[Row]:
        with self.lock:
            return sorted(self.rows + [row for _, row in self.unpublished])

    def revise(self, event_id: str, fields: Dict[str, Any]) -> None:
        with self.lock:
            index = next(i for i, row in enumerate(self.rows) if row.id == event_id)
            event = {**json.loads(self.rows[index].body), **fields}
            del self.rows[index]
            self._insert([self._row(event, None)])

    def span(self, first_ms: int, last_ms: int) -> Tuple[int, int]:
        """Indices of the rows from first_ms to last_ms inclusive, as a half-open range."""
        # A one-element tuple sorts before every row of that time.
        first = bisect_left(self.rows, (first_ms * 1000,))
        return first, max(first, bisect_left(self.rows, ((last_ms + 1) * 1000,)))

    def cut(self, first: int, end: int, shuffle: Optional[random.Random]) -> List[Row]:
        """rows[first:end]; with a generator, events of the same instant trade places."""
        if shuffle is None or first == end:
            return self.rows[first:end]
        instant_us = self.log.unit_ms * 1000
        low = bisect_left(self.rows, (self.rows[first].time_us // instant_us * instant_us,))
        after_us = (self.rows[end - 1].time_us // instant_us + 1) * instant_us
        rows = sorted(
            self.rows[low : bisect_left(self.rows, (after_us,))],
            key=lambda row: (row.time_us // instant_us, shuffle.random()),
        )
        return rows[first - low : end - low]

    def position(self, time_ms: int, event_id: str) -> Tuple[int, bool]:
        """Index of an event and True, or of the start of its ms and False."""
        first, end = self.span(time_ms, time_ms)
        for index in range(first, end):
            if self.rows[index].id == event_id:
                return index, True
        return first, False

    def _insert(self, rows: List[Row]) -> None:
        if len(rows) < 10:
            for row in rows:
                insort(self.rows, row)
            return
        rows.sort()
        first = bisect_left(self.rows, rows[0])
        self.rows[first:] = sorted(self.rows[first:] + rows)  # quick: it merges two sorted runs

    def _row(self, event: Any, at_ms: Optional[int]) -> Row:
        body = event.encode() if isinstance(event, str) else event
        if isinstance(body, dict):
            body = _encode(body)
        else:
            event = json.loads(body)
        time_us = _event_time_us(self.log, event) if at_ms is None else at_ms * 1000
        event_id = event.get(self.log.id_field)
        return Row(time_us, next(self.numbers), "" if event_id is None else str(event_id), body)


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _encode(event: Dict[str, Any]) -> bytes:
    text = _compact(event)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate exists in JSON only as an escape
        return json.dumps(event, separators=(",", ":")).encode()


def _event_time_us(log: LogType, event: Dict[str, Any]) -> int:
    field = next(name for name in log.time_fields if event.get(name) is not None)
    if isinstance(event[field], str):
        moment = datetime.fromisoformat(event[field].replace("Z", "+00:00"))
        return (moment - EPOCH) // timedelta(microseconds=1)
    # `timestamp` is in s even in authentication, whose mintime is in ms.
    return int(event[field] * (1_000_000 if field == "timestamp" else 1000))
