"""From where to where a pass reads: lookback, stalls of Duo's pipeline, seeds, retention."""

import re
from collections import Counter

import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    DAY,
    HOUR,
    MINUTE,
    NONE,
    ONLY,
    V1,
    canonical,
    differences,
    events_of,
    fill,
    in_ms,
    instant,
    log_requests,
    now_ms,
)
from duo import LOG_TYPES, make_events


def test_events_published_late_are_written_by_a_later_pass(duo, collector):
    at_ms = (now_ms() - 4 * MINUTE) // 1000 * 1000
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 50, at_ms - 10_000, at_ms + 10_000, seed=1))
    collector.seed(**dict.fromkeys(LOG_TYPES, at_ms - HOUR))
    names = ALL
    first = collector.once("--log-types", names)
    late = {
        log_type: make_events(log_type, 30, at_ms - 10_000, at_ms + 10_000, seed=2)
        for log_type in LOG_TYPES
    }
    for log_type, events in late.items():
        duo.add(log_type, events)
    second = collector.once("--log-types", names)
    third = collector.once("--log-types", names)
    for log_type in LOG_TYPES:
        assert len(first.of(log_type)) == 50
        assert canonical(second.of(log_type)) == canonical(late[log_type])
    assert third.stdout == ""


@pytest.mark.parametrize(
    ("lookback_s", "newest_known", "late"), [(30, True, 0), (600, True, 5), (30, False, 5)]
)
def test_the_lookback_is_a_setting(duo, collector, lookback_s, newest_known, late):
    setting = {"DUO_LOOKBACK": str(lookback_s)}
    # No pass starts later than the newest event known, whatever the lookback; without one, at the
    # seed.
    newest_ms = now_ms() - (125_000 if newest_known else HOUR)
    collector.seed(telephony=now_ms() - HOUR)
    if newest_known:
        duo.add("telephony", make_events("telephony", 1, newest_ms, newest_ms + 1, seed=1))
    assert len(collector.once(*ONLY, environ=setting).events) == newest_known
    at_ms = now_ms() - 8 * MINUTE
    duo.add("telephony", make_events("telephony", 5, at_ms, at_ms + 1000))
    assert len(collector.once(*ONLY, environ=setting).events) == late
    started_ms = int(duo.requests[-1].params["mintime"])
    assert abs(started_ms - min(newest_ms, now_ms() - 120_000 - lookback_s * 1000)) < 20_000


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_nothing_older_than_a_seed_is_written_to_the_millisecond(duo, collector, log_type):
    unit_ms = LOG_TYPES[log_type].unit_ms
    seed_ms = (now_ms() - 3 * MINUTE) // 1000 * 1000 + (277 if unit_ms == 1 else 0)
    for offset in (-2, -1, 0, 1):
        duo.add(log_type, instant(log_type, 3, seed_ms + offset * unit_ms))
    collector.seed(**{log_type: seed_ms})
    result = collector.once("--log-types", log_type)
    assert len(result.of(log_type)) == 6
    duo.add(log_type, instant(log_type, 2, seed_ms - unit_ms))  # a late one from before the seed
    again = collector.once("--log-types", log_type)
    assert (again.status, again.stdout) == (0, "")


@pytest.mark.parametrize("chosen", [False, True], ids=["default", "chosen"])
def test_a_start_older_than_duo_keeps_begins_at_the_oldest_and_says_so(duo, collector, chosen):
    """As a warning where somebody chose the start; otherwise in a word for all log types."""
    for log_type in LOG_TYPES:
        start = now_ms() - 181 * DAY
        duo.add(log_type, make_events(log_type, 200, start, now_ms() - HOUR, seed=3))
    if chosen:
        collector.seed(**dict.fromkeys(LOG_TYPES, now_ms() - 200 * DAY))
    result = collector.once("--log-types", ALL)
    assert result.status == 0, result.stderr
    for log_type in LOG_TYPES:
        told = f"WARNING {log_type}: Duo serves only the last 180 days; passed over: 20"
        assert result.stderr.count(told) == (chosen and log_type not in V1)
        there = duo.events(log_type)
        if log_type not in V1:  # and an hour less
            oldest_ms = now_ms() - 180 * DAY + HOUR
            there = [event for event in there if in_ms(log_type, event) >= oldest_ms]
        assert canonical(result.of(log_type)) == canonical(there)
    first_run = " INFO first run: starts 180 days back, as far as Duo serves"
    assert result.stderr.count(first_run) == (not chosen)


@pytest.mark.parametrize("known", [20, 0], ids=["after some events", "before the first event"])
def test_what_duo_shows_after_hours_of_empty_answers_is_collected(duo, collector, known):
    start_ms, end_ms = (now_ms() - 5 * HOUR) // 1000 * 1000, now_ms() + HOUR
    collector.seed(**dict.fromkeys(LOG_TYPES, start_ms - HOUR))
    duo.stall(start_ms, end_ms)
    for log_type in LOG_TYPES:
        duo.add(
            log_type, make_events(log_type, known, start_ms - 30 * MINUTE, start_ms - 1000, seed=1)
        )
        duo.add(log_type, make_events(log_type, 250, start_ms, now_ms() - 3 * MINUTE, seed=2))
    results = [collector.once("--log-types", ALL) for _ in range(3)]
    assert [(result.status, len(result.events)) for result in results] == [
        (0, 6 * known),
        (0, 0),
        (0, 0),
    ]
    asked = len(log_requests(duo))
    results.append(collector.once("--log-types", ALL))
    assert len(log_requests(duo)) - asked <= 2 * len(LOG_TYPES), (
        "a quiet pass takes a request, or one more"
    )
    for store in duo._stores.values():  # which ends it now
        store.publish(end_ms)
    results += [collector.once("--log-types", ALL) for _ in range(2)]
    assert differences(duo, events_of(results), LOG_TYPES) == NONE
    assert results[-1].stdout == ""


@pytest.mark.parametrize("log_type", ["trust_monitor", "authentication"])
def test_the_edge_of_180_days_moves_and_nothing_comes_twice(duo, collector, log_type):
    size = 200 if log_type == "trust_monitor" else 1000
    start_ms = now_ms() - 179 * DAY
    duo.add(log_type, make_events(log_type, 4 * size, start_ms, now_ms() - HOUR))
    duo.inject(log_type, None, None, (503, {"Retry-After": "3600"}, b"down"))
    results = [collector.once("--log-types", log_type)]
    assert (results[0].status, len(results[0].events)) == (75, 2 * size), results[0].stderr
    duo.rules.clock_offset = 31 * 60  # half an hour later, by Duo's clock
    results.append(collector.once("--log-types", log_type))
    assert (results[1].status, differences(duo, events_of(results), [log_type])) == (0, NONE), (
        results[1].stderr
    )


def test_a_checkpoint_ahead_of_now_is_reported_and_kept(duo, collector):
    fill(duo, "authentication", 5)
    collector.seed(authentication=now_ms() + 2 * HOUR + 30_000, administrator=now_ms() - HOUR)
    before = collector.saved
    result = collector.once("--log-types", "authentication,administrator")
    assert result.status == 75
    (line,) = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert f"AUTH_SINCE_TIME in {collector.checkpoint_file} " in line and re.search(
        "is 2 h [0-9]+ s ahead of now", line
    )
    assert Counter(request.path for request in duo.requests) == {
        "/auth/v2/ping": 1,
        "/admin/v1/logs/administrator": 1,
    }
    after = collector.saved
    assert after["AUTH_SINCE_TIME"] == before["AUTH_SINCE_TIME"]


@pytest.mark.parametrize("log_type", ["authentication", "administrator"])
def test_a_checkpoint_that_really_is_ahead_takes_one_request_and_is_75(duo, collector, log_type):
    collector.seed(**{log_type: now_ms() + 2 * HOUR})
    since = collector.since(log_type)
    result = collector.once("--log-types", log_type)
    assert (result.status, [request.path for request in duo.requests]) == (75, ["/auth/v2/ping"]), (
        result.stderr
    )
    assert re.search(
        f"{CHECKPOINT_KEYS[log_type][0]} in .* is (2 h|1 h 59 min).* ahead of now", result.stderr
    )
    assert collector.since(log_type) == since
