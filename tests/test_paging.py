"""Pages by cursor: complete under each reading of what Duo does not document."""

import json
import re
from collections import Counter

import pytest
from conftest import (
    ALL,
    HOUR,
    JSON,
    MINUTE,
    NONE,
    ONLY,
    V2,
    assert_complete,
    canonical,
    differences,
    events_of,
    fill,
    holes,
    in_ms,
    instant,
    log_requests,
    now_ms,
)
from duo import LOG_TYPES, make_events

import duo_collector

QUESTIONS = {
    "the cursor names the last event given": {"cursor": "last"},
    "the cursor names the first event to come": {"cursor": "next"},
    "the last page has a cursor": {"last_cursor": "present"},
    "the last page has a null cursor": {"last_cursor": "null"},
    "the last page has no cursor": {"last_cursor": "missing"},
    "short pages": {"short_pages": True},
    "short pages, cursor of the next": {"short_pages": True, "cursor": "next"},
    "total is an object": {"total": "object"},
    "total is of what remains": {"total": "remaining"},
    "no total": {"total": "absent"},
    "the authentication cursor is a string": {"auth_cursor": "string"},
    "the trust monitor cursor is a string": {"trust_cursor": "string"},
    "the trust monitor cursor is an int": {"trust_cursor": "int"},
    "a v1 page is shuffled": {"v1_order": "shuffled"},
    "mintime is exclusive in v1": {"v1_mintime": "exclusive"},
    "mintime is exclusive in v1, pages are short": {"v1_mintime": "exclusive", "short_pages": True},
    "v1 pages hold 300": {"v1_limit": 300},
    "a young maxtime gives nothing": {"young": "empty"},
    "unknown parameters are refused": {"unknown_parameters": "400", "limit": "error"},
    "old mintimes are accepted": {"old": "accept"},
    "JSON is in ASCII": {"text": "ascii"},
    "codes are strings": {"code_as_string": True},
    "only signature version 5 passes": {"signatures": ("v5",)},
    "permission is checked before the signature": {
        "check_order": ("permission", "rate", "signature", "date", "parameters")
    },
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_open_questions_of_the_api(duo, collector, question):
    for name, value in QUESTIONS[question].items():
        setattr(duo.rules, name, value)
    for log_type in LOG_TYPES:
        fill(duo, log_type, 1_100 if log_type != "trust_monitor" else 250)
        # bursts, one of them where a page ends
        at_ms = (now_ms() - 7 * HOUR) // 1000 * 1000
        duo.add(log_type, instant(log_type, 40, at_ms + 300_000, spread_us=1))
    result = collector.once("--log-types", ALL)
    assert result.status == 0, result.stderr
    for log_type in LOG_TYPES:
        assert_complete(duo, result, log_type)
    assert "a hole" not in result.stderr


@pytest.mark.parametrize("log_type", V2)
def test_a_cursor_that_is_refused_ends_the_pass_and_the_next_one_goes_on(duo, collector, log_type):
    duo.rules.cursor_lifetime = 0.0
    fill(duo, log_type, 3_300)
    results = [collector.once("--log-types", log_type) for _ in range(4)]
    assert [result.status for result in results] == [75, 75, 75, 0]
    assert "Duo rejects the request (400 40002 " in results[0].stderr
    assert differences(duo, events_of(results), [log_type]) == NONE
    assert "a hole" not in "".join(result.stderr for result in results)


def test_a_cursor_that_comes_again_is_not_the_end(duo, collector):
    fill(duo, "telephony", 3_300)
    events = duo.events("telephony")
    cursor = f"{int(in_ms('telephony', events[999]))},{events[999]['telephony_id']}"
    page = {"items": events[:1000], "metadata": {"next_offset": cursor, "total_objects": 3_300}}
    answer = (200, JSON, json.dumps({"stat": "OK", "response": page}).encode())
    duo.inject("telephony", answer, answer)
    result = collector.once(*ONLY)
    assert_complete(duo, result, "telephony")


def test_the_only_hole_that_cannot_be_closed_is_not_passed_in_silence(duo, collector):
    # Duo shuffles the events of one ms between two calls, and a page ends among them: some never
    # show
    duo.rules.ties = "shuffled"
    duo.add("telephony", instant("telephony", 1_500, now_ms() - HOUR, spread_us=1))
    result = collector.once(*ONLY)
    missing = len(canonical(duo.events("telephony")) - canonical(result.of("telephony")))
    assert missing == 0 or "telephony: perhaps a hole: from " in result.stderr


def test_a_hole_that_duo_counts_is_named(duo, collector):
    fill(duo, "authentication", 10)
    events = ",".join(json.dumps(event) for event in duo.events("authentication")[:7])
    body = (
        '{"stat":"OK","response":{"authlogs":[%s],"metadata":{"next_offset":null,"total_objects":10}}}'
        % events
    )
    duo.inject("authentication", (200, JSON, body.encode()))
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(result.events)) == (0, 7)
    assert "authentication: perhaps a hole: from " in result.stderr
    assert "Duo shows only 7 of 10 events" in result.stderr


def test_a_total_that_is_a_lower_bound_is_none():
    assert (
        duo_collector.read_total({"value": 3, "relation": "eq"})
        == duo_collector.read_total({"value": 3})
        == 3
    )
    assert (
        duo_collector.read_total({"value": 10_000, "relation": "gte"})
        is duo_collector.read_total(None)
        is None
    )


@pytest.mark.parametrize("total", ["remaining", "changing"])
def test_a_total_that_changes_loses_nothing(duo, collector, total):
    duo.rules.total = total
    fill(duo, "activity", 2_100)
    result = collector.once("--log-types", "activity")
    assert_complete(duo, result, "activity")


def test_a_millisecond_of_many_events(duo, collector):
    duo.add("authentication", instant("authentication", 2_700, now_ms() - HOUR, spread_us=1))
    result = collector.once("--log-types", "authentication")
    assert canonical(result.of("authentication")) == canonical(duo.events("authentication"))


@pytest.mark.parametrize("log_type", V2)
@pytest.mark.parametrize("fault", ["no_metadata", "no_cursor"])
@pytest.mark.parametrize("how_often", ["once", "always"])
def test_a_full_page_without_a_cursor_is_not_the_end(duo, collector, log_type, fault, how_often):
    fill(duo, log_type, 2_350)
    collector.seed(**{log_type: now_ms() - 7 * HOUR})
    if how_often == "once":
        duo.inject(log_type, None, fault)
    else:
        duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, (fault,)
    result = collector.once("--log-types", log_type)
    assert result.status == 0, result.stderr
    assert_complete(duo, result, log_type)
    assert "a hole" not in result.stderr


@pytest.mark.parametrize("fault", ["no_metadata", "no_cursor"])
def test_a_full_page_of_trust_monitor_without_a_cursor_is_told_as_a_hole(duo, collector, fault):
    """It has no order, so there is no time to go on from."""
    fill(duo, "trust_monitor", 470)
    collector.seed(trust_monitor=now_ms() - 7 * HOUR)
    duo.inject("trust_monitor", None, fault)
    result = collector.once("--log-types", "trust_monitor")
    assert (result.status, len(result.events)) == (0, 400), result.stderr
    assert result.stderr.count("trust_monitor: perhaps a hole: ") == 1
    assert holes(collector, "trust_monitor") == 1


def test_a_millisecond_that_cannot_be_paged_past_is_a_hole_told_and_counted_once(duo, collector):
    """Full pages of one ms, and never a cursor: the rest of that ms cannot be asked for."""
    at_ms = now_ms() - 4 * MINUTE
    duo.add("telephony", instant("telephony", 1_200, at_ms, spread_us=1))
    duo.add("telephony", make_events("telephony", 100, at_ms + 1000, at_ms + 60_000, seed=1))
    collector.seed(telephony=at_ms - HOUR)
    duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, ("no_cursor",)
    results = [collector.once(*ONLY) for _ in range(3)]
    assert [(result.status, len(result.events)) for result in results] == [
        (0, 1_100),
        (0, 0),
        (0, 0),
    ]
    told = "".join(result.stderr for result in results)
    assert told.count("a hole") == 1
    assert re.search(
        "telephony: perhaps a hole: .*shows only 1,000 events of one millisecond", told
    )
    assert holes(collector, "telephony") == 1


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_a_log_without_order_has_a_checkpoint_once_it_was_read_to_its_end(duo, collector, order):
    duo.rules.trust_order = order
    fill(duo, "trust_monitor", 1_800)  # nine pages
    collector.seed(trust_monitor=now_ms() - 7 * HOUR)
    seed = collector.since("trust_monitor")
    down = (503, {**JSON, "Retry-After": "3600"}, b'{"stat": "FAIL", "code": 50301}')
    duo.inject("trust_monitor", *[None] * 8, down)
    first = collector.once("--log-types", "trust_monitor")
    assert (first.status, collector.since("trust_monitor")) == (75, seed), first.stderr
    second = collector.once("--log-types", "trust_monitor")
    assert (second.status, collector.since("trust_monitor") > seed) == (0, True)
    both = events_of([first, second])
    assert (len(first.events), differences(duo, both, ["trust_monitor"])) == (1_600, NONE)


@pytest.mark.parametrize("names, cursor", [(V2, "last"), (V2, "next")])
def test_what_looks_whole_and_is_not_comes_with_the_next_passes(duo, collector, names, cursor):
    duo.rules.total, duo.rules.short_pages, duo.rules.cursor = "page", True, cursor
    at_ms = now_ms() - 50 * MINUTE
    for log_type in names:
        duo.add(log_type, make_events(log_type, 400, at_ms, now_ms() - 8 * MINUTE))
        duo.add(log_type, instant(log_type, 40, at_ms + 10 * MINUTE, spread_us=1))
    collector.seed(**dict.fromkeys(names, at_ms - 1000))
    events = {log_type: canonical(duo.events(log_type)) for log_type in names}
    written, passes = {log_type: Counter() for log_type in names}, 0
    while written != events and passes < 50:
        result, passes = collector.once("--log-types", ",".join(names)), passes + 1
        assert (result.status, "a hole" in result.stderr) == (0, False), result.stderr
        for log_type in names:
            written[log_type] += canonical(result.of(log_type))
    assert written == events
    assert passes > 2, "or the hint was not believed, and nothing is tested"
    assert collector.once("--log-types", ",".join(names)).stdout == ""


def test_what_a_page_that_looked_whole_lacked_comes_with_the_next_pass(duo, collector):
    at_ms = now_ms() - HOUR
    events = instant("telephony", 5, at_ms)
    duo.add("telephony", events)
    collector.seed(telephony=at_ms)
    cursor = f"{at_ms},{events[0]['telephony_id']}"
    page = {"items": events[:1], "metadata": {"next_offset": cursor, "total_objects": 1}}
    duo.inject("telephony", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    results = [collector.once(*ONLY) for _ in range(2)]
    assert [len(result.events) for result in results] == [1, 4]


def test_the_same_page_under_ever_new_cursors_ends(duo, collector):
    fill(duo, "telephony", 30)
    events = duo.events("telephony")[:10]
    for number in range(60):
        page = {"items": events, "metadata": {"next_offset": f"{number},x", "total_objects": 30}}
        answer = json.dumps({"stat": "OK", "response": page}).encode()
        duo.inject("telephony", (200, JSON, answer))
    result = collector.once(*ONLY)
    assert len(log_requests(duo)) < 10
    assert "a hole" in result.stderr or result.status == 75 or len(result.events) == 30
