"""Which events are the same, and events of any content."""

import re

import pytest
from conftest import HOUR, JSON, MINUTE, assert_complete, instant, now_ms
from duo import make_events

import duo_collector


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


def test_an_event_that_a_page_holds_twice_is_written_once(duo, collector):
    event = '{"txid": "twin", "isotimestamp": "2026-01-01T00:00:00+00:00"}'
    page = '{"stat": "OK", "response": {"metadata": {}, "authlogs": [%s, %s]}}' % (event, event)
    duo.inject("authentication", (200, JSON, page.encode()))
    assert len(collector.once("--log-types", "authentication").events) == 1


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
    body = (
        '{"stat": "OK", "response": {"metadata": {"next_offset": null}, "authlogs": [%s]}}'
        % " , ".join(ODD_EVENTS)
    )
    answer = (200, JSON, body.encode())
    duo.inject("authentication", answer)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    assert len(result.events) == len(ODD_EVENTS)
    assert result.stdout.isascii()
    assert all(
        event["eventtype"] == "authentication" and event["host"] == "127.0.0.1"
        for event in result.events
    )
    assert all(
        line.count('"eventtype"') == line.count('"host"') == 1
        for line in result.stdout.splitlines()
    )
    for text in ODD_EVENTS[0], ODD_EVENTS[2]:
        assert (
            text[:-1] + ',"eventtype":"authentication","host":"127.0.0.1"}'
            in result.stdout.splitlines()
        )
    values = {
        event.get("txid"): event for event in result.events if isinstance(event.get("txid"), str)
    }
    assert values["odd-2"]["s"] == "\ud800 \u2028 \x00 \x7f"
    assert values["odd-2"]["raw"] == "\u2028 é 😀"
    assert [event["event"] for event in result.events if "event" in event] == [
        "just a string",
        None,
        [1, 2],
    ]

    duo.inject("authentication", answer)  # and again, in the lookback of the next pass
    again = collector.once("--log-types", "authentication")
    assert (again.status, again.stdout) == (0, "")


def test_a_wrong_byte_keeps_no_event_back(duo, collector):
    event = b'{"txid": "%d", "isotimestamp": "2026-01-01T00:00:00+00:00", "name": "M\xfcller \xed\xa0\x80 \xe2\x82\xac"}'
    page = b'{"stat": "OK", "response": {"metadata": {}, "authlogs": [%s, %s]}}' % (
        event % 1,
        event % 2,
    )
    duo.inject("authentication", (200, JSON, page))
    result = collector.once("--log-types", "authentication")
    assert (result.status, [event["txid"] for event in result.events]) == (0, ["1", "2"]), (
        result.stderr
    )
    assert all(re.fullmatch("M\ufffdller \ufffd+ \u20ac", event["name"]) for event in result.events)


@pytest.mark.parametrize("log_type", ["administrator", "trust_monitor", "authentication"])
@pytest.mark.parametrize(
    "value", ["1e999", "-1e999", "1e306", "9" * 400, '"9999-12-31T23:59:59-14:00"', "true", "{}"]
)
def test_a_time_beyond_all_reason_is_written_like_any_other(duo, collector, log_type, value):
    event = '{"txid": "a", "sekey": "a", "%s": %s}' % (
        duo_collector.LOG_TYPES[log_type].time_field,
        value,
    )
    events = "[" + event + "]"
    response = {
        "administrator": "%s",
        "trust_monitor": '{"events": %s}',
        "authentication": '{"authlogs": %s}',
    }
    body = '{"stat": "OK", "response": ' + response[log_type] % events + "}"
    duo.inject(log_type, (200, JSON, body.encode()))
    result = collector.once("--log-types", log_type)
    assert result.status == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1


def denied_then_fraud():
    """An authentication that is denied, and marked as fraud a minute later, under one id."""
    at_ms = (now_ms() - HOUR) // 1000 * 1000
    (denied,) = instant("authentication", 1, at_ms)
    (fraud,) = instant("authentication", 1, at_ms + MINUTE)
    return {**denied, "result": "denied"}, {**fraud, "txid": denied["txid"], "result": "fraud"}


def test_two_events_of_one_id_a_minute_apart_are_two_lines(duo, collector):
    duo.add("authentication", denied_then_fraud())
    result = collector.once("--log-types", "authentication")
    assert_complete(duo, result, "authentication")
    assert [event["result"] for event in result.events] == ["denied", "fraud"]
    assert collector.once("--log-types", "authentication").stdout == ""


@pytest.mark.parametrize("kept", [0, 1])
def test_missing_from_tells_two_events_of_one_id_apart(duo, collector, file, kept):
    duo.add("authentication", denied_then_fraud())
    options = ["--since", "3h", "--log-types", "authentication", "--missing-from"]
    lines = collector.run(*options, "/dev/null").stdout.splitlines(keepends=True)
    assert len(lines) == 2
    file.write_text(lines[kept])
    assert collector.run(*options, file).stdout == lines[1 - kept]
    file.write_text("".join(lines))
    assert collector.run(*options, file).stdout == ""


@pytest.mark.parametrize("odd", ['"n": NaN}', '"n": 1},'], ids=["NaN", "a comma too many"])
def test_json_that_is_almost_right_is_passed_on_as_duo_wrote_it(duo, collector, odd):
    page = '{"stat": "OK", "response": {"metadata": {}, "authlogs": [{"txid": "x", %s]}}' % odd
    duo.inject("authentication", (200, JSON, page.encode()))
    result = collector.once("--log-types", "authentication")
    value = odd.rstrip(",").rstrip("}")
    assert (result.status, result.stdout.startswith('{"txid": "x", ' + value)) == (0, True)
    assert result.stdout.count("\n") == 1
