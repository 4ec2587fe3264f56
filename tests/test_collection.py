"""Is everything written, once, in order: under each reading of what Duo does not document."""

import json
import re
import time
from collections import Counter

import pytest
from duo import LOG_TYPES, make_events

import duo_collector

V2 = ("authentication", "activity", "telephony")
V1 = ("administrator", "offline_enrollment")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def now_ms():
    return int(time.time() * 1000)


def canonical(events):
    """Events as a multiset: the same one twice is two."""
    return Counter(json.dumps(event, sort_keys=True) for event in events)


def id_of(log_type, event):
    return event.get(LOG_TYPES[log_type].id_field)


def event_times(log_type, events):
    return [next(event[name] for name in LOG_TYPES[log_type].time_fields if name in event) for event in events]


def fill(duo, log_type, count, hours=6.0, seed=0):
    """Events up to five minutes ago, so that nothing of them is hidden and nothing is in the lookback."""
    end = now_ms() - 8 * MINUTE
    duo.add(log_type, make_events(log_type, count, end - int(hours * HOUR), end, seed))


def instant(log_type, count, at_ms, spread_us=0):
    """Events of one instant; in a v2 log spread over the microseconds of one ms."""
    events = make_events(log_type, count, at_ms, at_ms + 1, seed=at_ms)
    seconds, ms = divmod(at_ms, 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    for number, event in enumerate(events):
        us = ms * 1000 + (number * 7) % 1000 if spread_us else ms * 1000
        if "isotimestamp" in event:
            in_v1 = log_type in V1
            event["isotimestamp"] = f"{stamp}+00:00" if in_v1 else f"{stamp}.{us:06}+00:00"
            event["timestamp"] = seconds
        elif "ts" in event:
            event["ts"] = f"{stamp}.{us:06}+00:00"
        else:
            event["surfaced_timestamp"] = at_ms
    return events


def assert_complete(duo, result, log_type):
    """Every event of the tenant once, unchanged, in the order of time."""
    written = result.of(log_type)
    assert canonical(written) == canonical(duo.events(log_type))
    times = event_times(log_type, written)
    assert times == sorted(times)


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_a_pass_writes_every_event_once_in_few_requests(duo, collector, log_type):
    fill(duo, log_type, 2_345)
    result = collector.once("--log-types", log_type)
    assert (result.status, len(result.of(log_type))) == (0, 2_345)
    assert_complete(duo, result, log_type)
    page_size = 200 if log_type == "trust_monitor" else 1000
    assert len(duo.requests) <= -(-2_345 // page_size) + 1
    assert f"{log_type}: 2,345 events in {len(duo.requests)} requests, up to 20" in result.stderr
    assert all(event["eventtype"] == log_type and event["host"] == "127.0.0.1" for event in result.events)

    asked_before = len(duo.requests)
    again = collector.once("--log-types", log_type)
    assert (again.status, again.stdout) == (0, "")
    assert len(duo.requests) == asked_before + 1


def test_passes_that_follow_each_other_write_what_is_new_and_nothing_else(duo, collector):
    names = ",".join(LOG_TYPES)
    lines = []
    for number in range(5):
        for log_type in LOG_TYPES:
            end = now_ms() - 121_000 - (4 - number) * 20_000
            # each pass finds events that lie before and after the checkpoint of the last one
            duo.add(log_type, make_events(log_type, 60, end - 100_000, end, seed=number))
        if number == 0:
            collector.seed(**dict.fromkeys(LOG_TYPES, now_ms() - HOUR))
        result = collector.once("--log-types", names)
        assert result.status == 0, result.stderr
        lines += result.stdout.splitlines()
    for log_type in LOG_TYPES:
        events = [json.loads(line) for line in lines]
        of_type = [e for e in events if e.pop("host") and e["eventtype"] == log_type and e.pop("eventtype")]
        assert canonical(of_type) == canonical(duo.events(log_type)), log_type


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
    result = collector.once("--log-types", ",".join(LOG_TYPES))
    assert result.status == 0, result.stderr
    for log_type in LOG_TYPES:
        assert_complete(duo, result, log_type)
    assert "a hole" not in result.stderr


@pytest.mark.parametrize("log_type", V2)
def test_a_cursor_that_duo_has_forgotten_is_done_without(duo, collector, log_type):
    duo.rules.cursor_lifetime = 0.0
    fill(duo, log_type, 3_300)
    result = collector.once("--log-types", log_type)
    assert result.status == 0, result.stderr
    assert_complete(duo, result, log_type)
    assert "a hole" not in result.stderr


def test_a_cursor_that_comes_again_is_not_the_end(duo, collector):
    fill(duo, "telephony", 3_300)
    events = duo.events("telephony")
    cursor = f"{int(in_ms('telephony', events[999]))},{events[999]['telephony_id']}"
    page = {"items": events[:1000], "metadata": {"next_offset": cursor, "total_objects": 3_300}}
    answer = (200, {"Content-Type": "application/json"}, json.dumps({"stat": "OK", "response": page}).encode())
    duo.inject("telephony", answer, answer)
    result = collector.once("--log-types", "telephony")
    assert_complete(duo, result, "telephony")


def test_the_only_hole_that_cannot_be_closed_is_not_passed_in_silence(duo, collector):
    # Duo shuffles the events of one ms between two calls, and a page ends among them: some never show
    duo.rules.ties = "shuffled"
    duo.add("telephony", instant("telephony", 1_500, now_ms() - HOUR, spread_us=1))
    result = collector.once("--log-types", "telephony")
    missing = len(canonical(duo.events("telephony")) - canonical(result.of("telephony")))
    assert missing == 0 or "telephony: perhaps a hole: from " in result.stderr


def test_a_hole_that_duo_counts_is_named(duo, collector):
    fill(duo, "authentication", 10)
    events = ",".join(json.dumps(event) for event in duo.events("authentication")[:7])
    body = '{"stat":"OK","response":{"authlogs":[%s],"metadata":{"next_offset":null,"total_objects":10}}}' % events
    duo.inject("authentication", (200, {"Content-Type": "application/json"}, body.encode()))
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(result.events)) == (0, 7)
    assert "authentication: perhaps a hole: from " in result.stderr
    assert "Duo shows only 7 of 10 events" in result.stderr


def test_a_total_that_is_a_lower_bound_is_none():
    assert duo_collector.read_total({"value": 3, "relation": "eq"}) == duo_collector.read_total({"value": 3}) == 3
    assert duo_collector.read_total({"value": 10_000, "relation": "gte"}) is duo_collector.read_total(None) is None


@pytest.mark.parametrize("total", ["remaining", "changing"])
def test_a_total_that_changes_loses_nothing(duo, collector, total):
    duo.rules.total = total
    fill(duo, "activity", 2_100)
    result = collector.once("--log-types", "activity")
    assert_complete(duo, result, "activity")


def test_events_published_late_are_written_by_a_later_pass(duo, collector):
    at_ms = (now_ms() - 4 * MINUTE) // 1000 * 1000
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 50, at_ms - 10_000, at_ms + 10_000, seed=1))
    collector.seed(**dict.fromkeys(LOG_TYPES, at_ms - HOUR))
    names = ",".join(LOG_TYPES)
    first = collector.once("--log-types", names)
    late = {log_type: make_events(log_type, 30, at_ms - 10_000, at_ms + 10_000, seed=2) for log_type in LOG_TYPES}
    for log_type, events in late.items():
        duo.add(log_type, events)
    second = collector.once("--log-types", names)
    third = collector.once("--log-types", names)
    for log_type in LOG_TYPES:
        assert len(first.of(log_type)) == 50
        assert canonical(second.of(log_type)) == canonical(late[log_type])
    assert third.stdout == ""


@pytest.mark.parametrize(("lookback_s", "newest_known", "late"), [(30, True, 0), (600, True, 5), (30, False, 5)])
def test_the_lookback_is_a_setting(duo, collector, lookback_s, newest_known, late):
    setting = {"DUO_LOOKBACK": str(lookback_s)}
    # No pass starts later than the newest event known, whatever the lookback; without one, at the seed.
    newest_ms = now_ms() - (125_000 if newest_known else HOUR)
    collector.seed(telephony=now_ms() - HOUR)
    if newest_known:
        duo.add("telephony", make_events("telephony", 1, newest_ms, newest_ms + 1, seed=1))
    assert len(collector.once("--log-types", "telephony", environ=setting).events) == newest_known
    at_ms = now_ms() - 8 * MINUTE
    duo.add("telephony", make_events("telephony", 5, at_ms, at_ms + 1000))
    assert len(collector.once("--log-types", "telephony", environ=setting).events) == late
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


@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
@pytest.mark.parametrize("counts", [(600, 600), (999, 2, 999), (1, 1000), (1000, 1), (1001, 5), (2500, 0, 7)])
def test_seconds_of_many_administrator_events(duo, collector, mintime, counts):
    duo.rules.v1_mintime = mintime
    start_ms = (now_ms() - HOUR) // 1000 * 1000
    for second, count in enumerate(counts):
        duo.add("administrator", instant("administrator", count, start_ms + second * 1000))
    collector.seed(administrator=start_ms)
    result = collector.once("--log-types", "administrator")
    # what Duo shows of a second is the first 1,000; the rest of it no parameter asks for
    assert len(result.events) == sum(min(count, 1000) for count in counts)
    times = event_times("administrator", result.of("administrator"))
    assert times == sorted(times)
    overfull = [second for second, count in enumerate(counts) if count > 1000]
    for second in overfull:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start_ms // 1000 + second))
        assert f"from {stamp} to {stamp} Duo shows only 1,000 events" in result.stderr
    assert ("a hole" in result.stderr) == (max(counts) >= 1000)  # of 1,000 one can't tell whether that was all
    again = collector.once("--log-types", "administrator")
    assert again.stdout == ""


def test_a_millisecond_of_many_events(duo, collector):
    duo.add("authentication", instant("authentication", 2_700, now_ms() - HOUR, spread_us=1))
    result = collector.once("--log-types", "authentication")
    assert canonical(result.of("authentication")) == canonical(duo.events("authentication"))


def test_identical_administrator_events_are_events_each(duo, collector):
    at_ms = (now_ms() - 4 * MINUTE) // 1000 * 1000
    same = instant("administrator", 1, at_ms)[0]
    collector.seed(administrator=at_ms - HOUR)
    duo.add("administrator", [same, same])
    assert len(collector.once("--log-types", "administrator").events) == 2
    assert len(collector.once("--log-types", "administrator").events) == 0
    duo.add("administrator", [same])  # and a third time, late
    assert len(collector.once("--log-types", "administrator").events) == 1
    assert len(collector.once("--log-types", "administrator").events) == 0


def test_an_event_that_changes_after_it_was_written_stays_one(duo, collector):
    at_ms = now_ms() - 4 * MINUTE
    collector.seed(trust_monitor=at_ms - HOUR)
    event = make_events("trust_monitor", 1, at_ms, at_ms + 1)[0]
    duo.add("trust_monitor", event)
    assert len(collector.once("--log-types", "trust_monitor").events) == 1
    duo.revise("trust_monitor", event["sekey"], state="processed")
    assert collector.once("--log-types", "trust_monitor").stdout == ""


ODD_EVENTS = [
    '{"txid": "odd-1", "n": 1.10, "e": 1e2, "z": -0, "big": 12345678901234567890, "f": 0.30000000000000004}',
    '{"txid": "odd-2", "s": "\\ud800 \\u2028 \\u0000 \\u007f", "raw": "\u2028 \u00e9 \U0001f600"}',
    '{"b": 1, "a": {"y": [], "x": null}, "txid": "odd-3", "b": 2}',
    '{"txid": null, "isotimestamp": null, "timestamp": "soon"}',
    '{"txid": 17, "isotimestamp": "0001-01-01T00:00:00+14:00"}',
    '{"isotimestamp": "9999-12-31T23:59:59Z"}',
    '{"txid": ["a"], "isotimestamp": 7}',
    '{"txid": "", "deep": ' + "[" * 200 + "]" * 200 + "}",
    "{}",
    '{"txid": "odd-4", "host": "mine", "eventtype": "theirs", "x": 1.50}',
    '{\n  "txid": "odd-5",\r\n\t"pretty": true\n}',
    '"just a string"',
    "null",
    "[1, 2]",
]


def test_events_that_are_not_understood_are_written_all_the_same(duo, collector):
    body = '{"stat": "OK", "response": {"metadata": {"next_offset": null}, "authlogs": [%s]}}' % " , ".join(ODD_EVENTS)
    answer = (200, {"Content-Type": "application/json"}, body.encode())
    duo.inject("authentication", answer)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    assert len(result.events) == len(ODD_EVENTS)
    assert result.stdout.isascii()
    assert all(event["eventtype"] == "authentication" and event["host"] == "127.0.0.1" for event in result.events)
    assert all(line.count('"eventtype"') == line.count('"host"') == 1 for line in result.stdout.splitlines())
    for text in ODD_EVENTS[0], ODD_EVENTS[2]:
        assert text[:-1] + ',"eventtype":"authentication","host":"127.0.0.1"}' in result.stdout.splitlines()
    values = {event.get("txid"): event for event in result.events if isinstance(event.get("txid"), str)}
    assert values["odd-2"]["s"] == "\ud800 \u2028 \x00 \x7f"
    assert values["odd-2"]["raw"] == "\u2028 é 😀"
    assert [event["event"] for event in result.events if "event" in event] == ["just a string", None, [1, 2]]

    duo.inject("authentication", answer)  # and again, in the lookback of the next pass
    again = collector.once("--log-types", "authentication")
    assert (again.status, again.stdout) == (0, "")


def test_an_event_that_a_page_holds_twice_is_written_once(duo, collector):
    event = '{"txid": "twin", "isotimestamp": "2026-01-01T00:00:00+00:00"}'
    page = '{"stat": "OK", "response": {"metadata": {}, "authlogs": [%s, %s]}}' % (event, event)
    duo.inject("authentication", (200, {"Content-Type": "application/json"}, page.encode()))
    assert len(collector.once("--log-types", "authentication").events) == 1


def test_a_wrong_byte_keeps_no_event_back(duo, collector):
    event = b'{"txid": "%d", "isotimestamp": "2026-01-01T00:00:00+00:00", "name": "M\xfcller \xed\xa0\x80 \xe2\x82\xac"}'
    page = b'{"stat": "OK", "response": {"metadata": {}, "authlogs": [%s, %s]}}' % (event % 1, event % 2)
    duo.inject("authentication", (200, {"Content-Type": "application/json"}, page))
    result = collector.once("--log-types", "authentication")
    assert (result.status, [event["txid"] for event in result.events]) == (0, ["1", "2"]), result.stderr
    assert all(re.fullmatch("M\ufffdller \ufffd+ \u20ac", event["name"]) for event in result.events)


def test_a_seed_older_than_duo_keeps_starts_at_the_oldest_with_one_warning(duo, collector):
    for log_type in LOG_TYPES:
        start = now_ms() - 181 * DAY
        duo.add(log_type, make_events(log_type, 200, start, now_ms() - HOUR, seed=3))
    result = collector.once("--log-types", ",".join(LOG_TYPES))
    assert result.status == 0, result.stderr
    for log_type in LOG_TYPES:
        assert result.stderr.count(f"{log_type}: Duo serves only the last 180 days") == (log_type not in V1)
        lost = canonical(duo.events(log_type)) - canonical(result.of(log_type))
        if log_type in V1:
            assert not lost
        else:
            assert len(lost) == len([
                event for event in duo.events(log_type)
                if in_ms(log_type, event) < now_ms() - 180 * DAY + HOUR
            ]), "no more is given up than what Duo no longer serves, and an hour"
    assert "2022-08-20T19:15:59Z to 20" in result.stderr


def in_ms(log_type, event):
    value = event_times(log_type, [event])[0]
    if isinstance(value, str):
        from datetime import datetime

        return datetime.fromisoformat(value).timestamp() * 1000
    return value * LOG_TYPES[log_type].unit_ms


def test_a_checkpoint_ahead_of_now_is_reported_and_kept(duo, collector):
    fill(duo, "authentication", 5)
    collector.seed(authentication=now_ms() + 2 * HOUR + 30_000, administrator=now_ms() - HOUR)
    before = json.loads(collector.checkpoint_file.read_text())
    result = collector.once("--log-types", "authentication,administrator")
    assert result.status == 75
    (line,) = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert f"AUTH_SINCE_TIME in {collector.checkpoint_file} " in line and re.search("is 2 h [0-9]+ s ahead of now", line)
    assert Counter(request.path for request in duo.requests) == {
        "/auth/v2/ping": 1, "/admin/v1/logs/administrator": 1}  # fmt: skip
    after = json.loads(collector.checkpoint_file.read_text())
    assert after["AUTH_SINCE_TIME"] == before["AUTH_SINCE_TIME"]


def test_since_starts_elsewhere_and_writes_again(duo, collector):
    fill(duo, "telephony", 300, hours=3)
    assert len(collector.once("--log-types", "telephony").events) == 300
    since_ms = now_ms() - 90 * MINUTE
    newer = [event for event in duo.events("telephony") if in_ms("telephony", event) >= since_ms]
    again = collector.once("--log-types", "telephony", "--since", "90m")
    assert abs(len(again.events) - len(newer)) <= 2
    assert len(again.events) > 50
    duo.add("telephony", make_events("telephony", 4, now_ms() - 3 * MINUTE, now_ms() - 2 * MINUTE - 5000))
    assert len(collector.once("--log-types", "telephony").events) == 4


def test_since_says_what_it_passes_over(duo, collector):
    fill(duo, "telephony", 20)
    collector.seed(telephony=now_ms() - 9 * HOUR)
    collector.once("--log-types", "telephony")
    assert "passes over" not in collector.once("--log-types", "telephony", "--since", "24h").stderr
    result = collector.once("--log-types", "telephony", "--since", "1s")
    assert re.search("WARNING telephony: --since passes over the events from 20[^ ]+ to 20[^ ]+Z$", result.stderr, re.MULTILINE)


def test_since_now_skips_the_past_and_is_remembered(duo, collector):
    fill(duo, "telephony", 30)
    assert collector.once("--log-types", "telephony", "--since", "now").stdout == ""
    assert now_ms() - collector.since("telephony") < 30_000
    assert collector.once("--log-types", "telephony").stdout == ""


def test_loop_mode_collects_pause_after_pause(duo, collector):
    collector.seed(**dict.fromkeys(("authentication", "administrator", "telephony"), now_ms() - HOUR))
    process = collector.start("--interval", "0.3")
    seen = []
    for number in range(3):
        event = make_events("authentication", 1, now_ms() - 125_000, now_ms() - 124_000, seed=number)[0]
        duo.add("authentication", event)
        seen.append(json.loads(process.stdout.readline())["txid"] == event["txid"])
    process.terminate()
    stdout, _ = process.communicate(timeout=10)
    assert seen == [True, True, True]
    assert (process.returncode, stdout) == (0, b"")
    assert duo.connections >= 2  # one for each pass
