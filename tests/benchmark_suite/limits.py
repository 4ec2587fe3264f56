"""Eighteen kinds of rate limit, and how a pace drains a backlog under them, in simulated time.

Nobody knows the shape of Duo's limit: it documents none, and 2 to 50 requests a minute are
reported. So a pace has to do well under all of these, and is judged by the worst and the mean.
Times are in s.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import prod
from statistics import mean
from typing import Any, NamedTuple

LATENCY_S = 0.2  # from a request to its answer


class Sliding:
    """At most `most` requests are let through in any `window_s`."""

    def __init__(self, most: int, window_s: float = 60.0) -> None:
        self.most = most
        self.window_s = window_s
        self.passed: deque[float] = deque()

    def lets_through(self, now: float) -> bool:
        while self.passed and now - self.passed[0] >= self.window_s:
            self.passed.popleft()
        if len(self.passed) == self.most:
            return False
        self.passed.append(now)
        return True

    def floor_s(self, pages: int) -> float:
        """The shortest time in which this limit lets so many pages through."""
        return (pages - 1) // self.most * self.window_s


class Calendar:
    """At most `most` requests are let through in each minute of the clock; refused ones count."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.minute = -1.0
        self.count = 0

    def lets_through(self, now: float) -> bool:
        if now // 60 != self.minute:
            self.minute = now // 60
            self.count = 0
        self.count += 1
        return self.count <= self.most

    def floor_s(self, pages: int) -> float:
        return (pages - 1) // self.most * 60


class Bucket:
    """A request takes a token; tokens come back evenly, and at most `burst` are kept."""

    def __init__(self, per_minute: float, burst: int) -> None:
        self.per_s = per_minute / 60
        self.burst = burst
        self.tokens = float(burst)
        self.counted_at = 0.0

    def lets_through(self, now: float) -> bool:
        come_back = (now - self.counted_at) * self.per_s
        self.tokens = min(self.burst, self.tokens + come_back)
        self.counted_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def floor_s(self, pages: int) -> float:
        return max(1, (pages - self.burst) / self.per_s)


class Changing:
    """A sliding minute with another limit from some time after the first request."""

    def __init__(self, first: int, then: int, after_s: float) -> None:
        self.first = Sliding(first)
        self.then = Sliding(then)
        self.after_s = after_s
        self.began: float | None = None

    def lets_through(self, now: float) -> bool:
        if self.began is None:
            self.began = now
        is_first = now < self.began + self.after_s
        return (self.first if is_first else self.then).lets_through(now)

    def floor_s(self, pages: int) -> float:
        left = pages - self.first.most * self.after_s / 60
        return self.after_s + max(0, left / self.then.most * 60)


class Case(NamedTuple):
    """A backlog to drain under a limit."""

    name: str
    limit: Callable[[], Any]
    pages: int
    ceiling: int  # requests a minute: DUO_REQUESTS_PER_MINUTE


# fmt: off
CASES = (
    Case("20 in any minute", lambda: Sliding(20), 100, 50),
    Case("the same, ten times the pages", lambda: Sliding(20), 1000, 50),
    Case("50 in any minute", lambda: Sliding(50), 500, 50),
    Case("50 in any minute, ceiling 200", lambda: Sliding(50), 500, 200),
    Case("12 in any minute, ceiling 48", lambda: Sliding(12), 60, 48),
    Case("2 in any minute", lambda: Sliding(2), 12, 50),
    Case("the same, five times the pages", lambda: Sliding(2), 60, 50),
    Case("20 in each minute of the clock", lambda: Calendar(20), 200, 50),
    Case("bucket of 5, 30 a minute", lambda: Bucket(30, 5), 150, 50),
    Case("bucket of 1, 30 a minute", lambda: Bucket(30, 1), 150, 50),
    Case("bucket of 1, 20 a minute", lambda: Bucket(20, 1), 150, 50),
    Case("bucket of 10, 10 a minute", lambda: Bucket(10, 10), 80, 50),
    Case("10 in any 10 s, ceiling 600", lambda: Sliding(10, 10), 200, 600),
    Case("5 in any 10 s", lambda: Sliding(5, 10), 200, 50),
    Case("1 in any 30 s", lambda: Sliding(1, 30), 40, 50),
    Case("2 in any minute, 10 after 10 minutes", lambda: Changing(2, 10, 600), 200, 50),
    Case("10 in any minute, 50 after 10 minutes", lambda: Changing(10, 50, 600), 300, 50),
    Case("50 in any minute, 200 after 5 minutes, ceiling 200", lambda: Changing(50, 200, 300), 600, 200),
)
# fmt: on


class Drained(NamedTuple):
    """How a pace has drained a backlog."""

    of_floor: float  # the time it took, of the shortest that the limit allows
    refused: float  # share of requests answered with 429
    closest_s: float  # the shortest time between two requests


def drain(pace: Any, case: Case) -> Drained:
    """Drain the backlog of a case, with chance from `random`. The clock starts within a minute.

    A pace has `due`, and is told page(sent) or limited(sent).
    """
    limit = case.limit()
    began = now = random.uniform(0, 60)
    sent_at: list[float] = []
    pages = 0
    while pages < case.pages:
        now = max(now, pace.due)
        sent_at.append(now)
        if limit.lets_through(now + LATENCY_S / 2 * random.uniform(0.8, 1.2)):
            pages += 1
            pace.page(now)
        else:
            pace.limited(now)
        now += LATENCY_S
    closest_s = min(later - earlier for earlier, later in zip(sent_at, sent_at[1:]))
    of_floor = (now - began) / limit.floor_s(pages)
    return Drained(of_floor, 1 - pages / len(sent_at), closest_s)


def drain_often(make_pace: Callable[[int], Any], case: Case, seeds: int = 8) -> Drained:
    """The mean of several drains of a case, and the closest requests in all."""
    runs = []
    for seed in range(seeds):
        random.seed(seed)
        runs.append(drain(make_pace(case.ceiling), case))
    of_floor, refused, closest_s = zip(*runs)
    return Drained(mean(of_floor), mean(refused), min(closest_s))


class Verdict(NamedTuple):
    """How a pace did under all limits."""

    worst: float  # time of the floor
    geometric_mean: float  # the same
    refused: float  # share of 429s, mean


WANTED = Verdict(worst=1.5, geometric_mean=1.25, refused=0.12)


def judge(results: list[Drained]) -> Verdict:
    of_floor = [result.of_floor for result in results]
    geometric_mean = prod(of_floor) ** (1 / len(of_floor))
    return Verdict(max(of_floor), geometric_mean, mean(result.refused for result in results))
