"""The walk through a v1 log over random stores: all that can be had comes, what cannot is told."""

import random
from collections import Counter
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from duo_collector import LOG_TYPES, Page, Walk, read_event

ROW = LOG_TYPES["administrator"]
FIRST_S = 1_800_000_000  # the time of the first second
SIZES = st.one_of(st.integers(1, 150), st.sampled_from([1, 9, 10, 11, 59, 60, 61, 150]))


class Store(NamedTuple):
    """A v1 log: seconds (their distance to the one before, and their events), and how it pages."""

    seconds: list
    page_size: int
    is_inclusive: bool
    is_shuffled: bool  # within a page
    kinds: int  # different events in a second: the rest are twins of these
    seed: int

    def events(self):
        """All events, in the order in which Duo keeps them."""
        at_s = FIRST_S
        found = []
        for distance_s, count in self.seconds:
            at_s += distance_s
            for number in range(count):
                value = {"timestamp": at_s, "object": number % self.kinds}
                found.append(read_event(ROW, "{}", value))
        return found


STORES = st.builds(
    Store,
    seconds=st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 5]), SIZES), min_size=1, max_size=8),
    page_size=st.one_of(st.integers(10, 200), st.sampled_from([10, 11, 60, 100, 1000])),
    is_inclusive=st.booleans(),
    is_shuffled=st.booleans(),
    kinds=st.sampled_from([1, 7, 1000]),
    seed=st.integers(0, 1000),
)


def walked(store, from_s=FIRST_S):
    """What a walk returns of a store: the events of each second by identity, the holes, and the
    newest second if it may hold more."""
    chance = random.Random(store.seed)
    events = store.events()
    until_ms = int(events[-1].time_ms) + 200_000
    holes = []
    written = Counter()
    walk = Walk(ROW, from_s * 1000, until_ms, lambda first_ms, *_: holes.append(first_ms))
    while not walk.done:
        assert walk.pages < 2_000, "it never ends"
        least_ms = int(walk.parameters["mintime"]) * 1000 + (0 if store.is_inclusive else 1)
        shown = [event for event in events if event.time_ms >= least_ms][: store.page_size]
        if store.is_shuffled:
            chance.shuffle(shown)
        walk.step(Page(shown))
        for identity, event in walk.fresh.items():
            written[identity, int(event.time_ms)] = 1  # as the collector drops what it has written
    assert not walk.stuck
    by_second = Counter(time_ms for _, time_ms in written)
    return by_second, holes, walk.cut[0] if walk.cut else None


@settings(max_examples=3_000, deadline=None)
@given(STORES)
@example(Store([(1, 2), (1, 90), (1, 3)], 60, True, False, 1000, 0))
@example(Store([(1, 2), (1, 90), (1, 3)], 60, False, False, 1000, 0))
@example(Store([(1, 150), (1, 150), (1, 150)], 10, True, True, 1, 0))
@example(Store([(1, 10), (1, 10)], 10, False, False, 7, 0))
def test_all_that_can_be_had_comes_and_what_cannot_is_told(store):
    there = Counter(int(event.time_ms) for event in store.events())
    written, holes, unfinished_ms = walked(store)
    assert set(written) <= set(there)
    for time_ms, count in there.items():
        can_be_had = min(count, store.page_size)
        assert can_be_had <= written[time_ms] <= count
        if written[time_ms] < count:
            assert time_ms in holes or time_ms == unfinished_ms, "events are missing without a word"
    assert all(there[time_ms] >= store.page_size for time_ms in holes), "told, and there is no hole"
    assert len(holes) == len(set(holes))


@settings(max_examples=500, deadline=None)
@given(STORES, st.integers(-2, 20))
def test_nothing_is_returned_from_before_the_start(store, start_s):
    written, _, _ = walked(store, FIRST_S + start_s)
    assert all(time_ms >= (FIRST_S + start_s) * 1000 for time_ms in written)


def test_the_seconds_that_once_were_lost():
    """2, 90 and 3 events, pages of 60, mintime inclusive: 65 of 95 came, without a word."""
    store = Store([(1, 2), (1, 90), (1, 3)], 60, True, False, 1000, 0)
    written, holes, _ = walked(store)
    assert sorted(written.values()) == [2, 3, 60]
    assert holes == [(FIRST_S + 2) * 1000]
