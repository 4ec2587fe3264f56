"""--since in an ordinary run: where it starts, what it says, what it accepts."""

import re
import shutil
import time
from datetime import datetime, timezone

import pytest
from conftest import (
    DAY,
    DEFAULT,
    HOUR,
    MINUTE,
    ONLY,
    SCRIPT,
    assert_refused,
    fill,
    in_ms,
    log_requests,
    now_ms,
    settings_of,
    stamp,
    wait_for,
)
from duo import LOG_TYPES, make_events

import duo_collector


def test_since_starts_elsewhere_and_writes_again(duo, collector):
    fill(duo, "telephony", 300, hours=(3, 0.13))
    assert len(collector.once(*ONLY).events) == 300
    since_ms = now_ms() - 90 * MINUTE
    newer = [event for event in duo.events("telephony") if in_ms("telephony", event) >= since_ms]
    again = collector.once(*ONLY, "--since", "90m")
    assert abs(len(again.events) - len(newer)) <= 2
    assert len(again.events) > 50
    duo.add(
        "telephony",
        make_events("telephony", 4, now_ms() - 3 * MINUTE, now_ms() - 2 * MINUTE - 5000),
    )
    assert len(collector.once(*ONLY).events) == 4


def test_since_says_what_it_passes_over(duo, collector):
    fill(duo, "telephony", 20)
    collector.seed(telephony=now_ms() - 9 * HOUR)
    collector.once(*ONLY)
    assert "passes over" not in collector.once(*ONLY, "--since", "24h").stderr
    result = collector.once(*ONLY, "--since", "1s")
    assert re.search(
        "WARNING telephony: --since passes over the events from 20[^ ]+ to 20[^ ]+Z$",
        result.stderr,
        re.MULTILINE,
    )


def test_since_now_skips_the_past_and_is_remembered(duo, collector):
    fill(duo, "telephony", 30)
    assert collector.once(*ONLY, "--since", "now").stdout == ""
    assert now_ms() - collector.since("telephony") < 30_000
    assert collector.once(*ONLY).stdout == ""


@pytest.mark.parametrize("how", ["refused", "killed"])
def test_since_is_kept_though_the_first_pass_comes_to_nothing(duo, collector, how):
    shutil.copy(
        SCRIPT.parent / "checkpoints.json", collector.checkpoint_file
    )  # which has a value for each
    asked_ms = now_ms()
    if how == "refused":
        assert collector.once("--since", "24h", environ={"DUO_SECRET_KEY": "0" * 40}).status == 77
    else:
        duo.inject(None, lambda handler: time.sleep(1))
        process = collector.start("--once", "--since", "24h")
        wait_for(
            lambda: [request for request in duo.requests if request.log_type], "request for a log"
        )
        process.kill()
        process.communicate()
    duo.requests.clear()
    result = collector.once()
    assert result.status == 0, result.stderr
    assert "passed over" not in result.stderr
    for log_type in DEFAULT:
        first = next(request for request in duo.requests if request.log_type == log_type)
        assert int(first.params["mintime"]) * LOG_TYPES[log_type].unit_ms == pytest.approx(
            asked_ms - DAY, abs=9_000
        )


def test_since_warns_when_it_repeats_events(duo, collector):
    fill(duo, "telephony", 300, hours=(3, 0.13))
    first = collector.once(*ONLY, "--since", "4h")
    assert (len(first.events), "WARNING" in first.stderr) == (300, False), (
        first.stderr
    )  # nothing is repeated yet
    again = collector.once(*ONLY, "--since", "4h")
    assert len(again.events) == 300
    (line,) = [line for line in again.stderr.splitlines() if "WARNING" in line]
    span = re.search(r"telephony: --since repeats the events from (\S+) to (\S+)$", line)
    assert span and span[1] < span[2] <= stamp(now_ms())


UTC = timezone.utc


NOW_MS = int(datetime(2027, 1, 15, 8, tzinfo=UTC).timestamp() * 1000)


def utc_ms(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def new_york(monkeypatch):
    """A local time that is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "text, at_ms",
    [
        ("now", NOW_MS),
        ("90m", utc_ms(2027, 1, 15, 6, 30)),
        ("24h", utc_ms(2027, 1, 14, 8)),
        ("7d", utc_ms(2027, 1, 8, 8)),
        ("2026-11-01", utc_ms(2026, 11, 1)),
        ("2026-11-01T08:00", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01 08:00", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01T08:00Z", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01T08:00:30.250Z", utc_ms(2026, 11, 1, 8, 0, 30) + 250),
        ("2026-11-01T08:00:00+02:00", utc_ms(2026, 11, 1, 6)),
        ("2027-01-15T08:00:00Z", NOW_MS),
        ("1970-01-01", 10**12),  # before Duo was, so as early as the checkpoint file can say
        ("1969-12-31", 10**12),
    ],
)
def test_since_takes_a_time_or_an_age(text, at_ms, new_york):
    assert settings_of("--since", text).since(NOW_MS) == at_ms


@pytest.mark.parametrize(
    "text", ["2098-01-15T08:01Z", "2098-01-15T09:00:00.001+01:00", "2099-12-31"]
)
def test_a_time_ahead_of_now_is_refused(duo, collector, text):
    result = collector.once("--since", text)
    assert (result.status, log_requests(duo), collector.checkpoint_file.exists()) == (2, [], False)
    assert re.search("ERROR --since: 209[0-9T:-]+Z is .* ahead of now$", result.stderr.strip())


@pytest.mark.parametrize("offset_s", [-3600, 0, 3600])
@pytest.mark.parametrize("ahead_s", [-60, 60])
def test_since_is_judged_by_duos_clock(duo, collector, offset_s, ahead_s):
    duo.rules.clock_offset = offset_s
    at = datetime.fromtimestamp(duo.now_ms() // 1000 + ahead_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = collector.once(*ONLY, "--since", at)
    assert [request.path for request in duo.requests] == [
        "/auth/v2/ping"
    ]  # there is no window to ask for
    if ahead_s < 0:
        assert result.stderr.count(" WARNING the local clock is ") == bool(offset_s)
        assert (result.status, collector.since("telephony")) == (0, duo_collector.parse_iso(at)), (
            result.stderr
        )
    else:
        assert (result.status, collector.checkpoint_file.exists()) == (2, False)
        assert re.search(
            f"ERROR --since: {at} is (1 min|5[0-9] s) ahead of now$", result.stderr, re.MULTILINE
        )


@pytest.mark.parametrize("text", ["1712123151234", "1712123151", "20261101"])
def test_a_number_is_not_a_time_for_since(duo, collector, text):
    """Python 3.11 and later read 1712123151234 as half past twelve on the last day of 1712."""
    result = collector.once("--since", text)
    assert (result.status, result.stdout, duo.requests) == (2, "", []), result.stderr
    assert f"--since '{text}': write a time such as" in result.stderr
    assert not collector.checkpoint_file.exists()


def test_a_seed_that_is_not_used_is_told_once(duo, collector):
    collector.seed(telephony=now_ms() - HOUR)
    collector.environ.update(
        TELEPHONY_SINCE_TIME="1661022959934", AUTH_SINCE_TIME=str(now_ms() - HOUR)
    )
    process = collector.start("--interval", "0.1")
    wait_for(
        lambda: [request.log_type for request in duo.requests].count("telephony") >= 4,
        "four passes",
    )
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    lines = [line for line in stderr.decode().splitlines() if "is not used" in line]
    assert len(lines) == 1, stderr.decode()
    assert re.search("INFO TELEPHONY_SINCE_TIME is not used: the checkpoint file says 20", lines[0])


def test_a_month_that_does_not_exist_is_named(collector):
    assert_refused(collector.once("--since", "2026-13-01"), 2, "month must be in 1..12")
