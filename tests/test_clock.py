"""A local clock that is wrong: collection goes by Duo's."""

import json
import re

import pytest
from conftest import (
    ALL,
    DAY,
    DEFAULT,
    HOUR,
    JSON,
    MINUTE,
    NONE,
    ONLY,
    before,
    differences,
    events_of,
    fill,
    now_ms,
    running,
)
from duo import LOG_TYPES, make_events


@pytest.mark.parametrize("offset_s", [-600, -200, -20, -3, 3, 20, 200, 600])
@pytest.mark.parametrize("young", ["cut", "empty"])
def test_a_wrong_local_clock_neither_loses_nor_delays(duo, collector, offset_s, young):
    duo.rules.clock_offset, duo.rules.young = offset_s, young
    names = ["authentication", "administrator"]
    for log_type, (key, unit_ms) in {
        "authentication": ("AUTH_SINCE_TIME", 1),
        "administrator": ("ADMIN_SINCE_TIME", 1000),
    }.items():
        collector.environ[key] = str((duo.now_ms() - HOUR) // unit_ms)
        end = duo.now_ms() - 150_000
        duo.add(log_type, make_events(log_type, 40, end - 30_000, end))
    first = collector.once("--log-types", ",".join(names))
    assert first.status == 0, first.stderr
    assert differences(duo, first.events, names) == NONE
    said = f"local clock is {abs(offset_s)} s {'behind' if offset_s > 0 else 'ahead of'} Duo's"
    near = [said.replace(str(abs(offset_s)), str(abs(offset_s) + by)) for by in (-2, -1, 0, 1, 2)]
    assert sum(first.stderr.count(text) for text in near) == (abs(offset_s) > 30)
    last = [request for request in duo.requests if "maxtime" in request.params][
        -1
    ]  # the first may not know better
    assert int(last.params["maxtime"]) <= last.wall * 1000 + offset_s * 1000 - 119_000

    end = duo.now_ms() - 125_000
    duo.add("authentication", make_events("authentication", 5, end - 2_000, end, seed=2))
    second = collector.once("--log-types", ",".join(names))
    assert (second.status, len(second.events)) == (0, 5), second.stderr
    assert len(duo.requests) < 12


def assert_all_written_but(result, fresh):
    assert {event["txid"] for event in result.events} == {event["txid"] for event in fresh}


def test_a_clock_that_falls_behind_does_not_stop_collection(duo, collector):
    collector.seed(authentication=now_ms() - HOUR)
    assert collector.once("--log-types", "authentication").status == 0
    duo.rules.clock_offset = (
        900  # as after a machine slept: local time is a quarter of an hour behind the checkpoint
    )
    seeded = duo.now_ms() - 200_000
    collector.seed(authentication=seeded)
    duo.add(
        "authentication", make_events("authentication", 4, seeded + 1000, seeded + 20_000, seed=5)
    )
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(result.events)) == (0, 4), result.stderr


@pytest.mark.parametrize("how_often", [1, 20])
@pytest.mark.parametrize(
    "date", ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2038 00:00:00 GMT", "soon"]
)
def test_a_date_that_cannot_be_moves_nothing(duo, collector, date, how_often):
    fill(duo, "authentication", 5)
    since_ms = now_ms() - 9 * HOUR
    collector.seed(authentication=since_ms)
    page = {
        "authlogs": duo.events("authentication"),
        "metadata": {"next_offset": None, "total_objects": 5},
    }
    body = json.dumps({"stat": "OK", "response": page}).encode()
    duo.inject("authentication", *[(200, {**JSON, "Date": date}, body)] * how_often)
    events = []
    for _ in range(3):
        result = collector.once("--log-types", "authentication")
        events += result.events
        assert (result.status, since_ms <= collector.since("authentication") <= now_ms()) == (
            0,
            True,
        ), result.stderr
    assert {event["txid"] for event in events} == {
        event["txid"] for event in duo.events("authentication")
    }


@pytest.mark.parametrize("apart_s", [7, 20])
def test_two_servers_with_two_clocks(duo, collector, apart_s):
    fill(duo, DEFAULT, 5)
    toggle = iter(range(10**6))
    read = type(duo).now_ms
    duo.now_ms = lambda: read(duo) - (next(toggle) % 2) * apart_s * 1000
    result = collector.once()
    assert result.status == 0, result.stderr
    assert len(result.events) == 15


@pytest.mark.parametrize("off_s", [-1_200, 1_200, 90_000])
def test_a_date_that_a_proxy_stamps_is_not_believed(duo, collector, off_s):
    duo.rules.date_offset = off_s
    for log_type in DEFAULT:
        fill(duo, log_type, 1_100)
    result = collector.once()
    assert (result.status, differences(duo, result.events, DEFAULT)) == (0, NONE), result.stderr
    assert {request.status for request in duo.requests} == {200}
    assert "local clock" not in result.stderr
    again = collector.once()
    assert (again.status, again.stdout) == (0, "")


@pytest.mark.parametrize("then", ["error_500", "reset", "error_429"])
def test_a_proxys_date_on_a_refusal_does_not_stay(duo, collector, then):
    """A 401 under a proxy's Date, 20 minutes off, then a second try that proves nothing: later
    passes collect."""
    duo.rules.date_offset = 1_200
    fill(duo, "telephony", 5)
    duo.inject("telephony", "clock_401", then)
    process = collector.start(
        *ONLY, "--interval", "0.3", environ={"DUO_REQUESTS_PER_MINUTE": "600"}
    )
    lines = []
    while not any("telephony: 5 events" in line for line in lines) and len(lines) < 20:
        lines.append(process.stderr.readline().decode())
    process.terminate()
    stdout, _ = process.communicate(timeout=10)
    assert (process.returncode, len(stdout.splitlines())) == (0, 5), lines


@pytest.mark.parametrize("off_s", [3_000, 3 * 3_600, 86_400, 200 * 86_400, -200 * 86_400])
def test_a_first_run_with_a_wrong_local_clock(duo, collector, off_s):
    """Its window starts 180 days back by that clock, which is further than Duo serves where the
    clock is behind."""
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 10 * MINUTE
    for log_type in DEFAULT:
        duo.add(log_type, make_events(log_type, 5, end_ms - HOUR, end_ms))
    result = collector.once()
    assert (result.status, differences(duo, result.events, DEFAULT)) == (0, NONE), result.stderr


OFF_S = {"10 min": 600, "1 day": 86_400, "200 days": 200 * 86_400}  # Duo's time minus the local
WRONG = [sign * off_s for sign in (1, -1) for off_s in OFF_S.values()]


def assert_told(text, off_s):
    """The log warns of the clock once, with the figure."""
    (line,) = [line for line in text.splitlines() if "WARNING" in line]
    said = re.search(r" the local clock is ([\d,]+) s (behind|ahead of) Duo's; ", line)
    assert said and said[2] == ("behind" if off_s > 0 else "ahead of"), line
    assert int(said[1].replace(",", "")) == pytest.approx(abs(off_s), abs=2)


@pytest.mark.parametrize("off_s", WRONG)
def test_a_clock_that_is_wrong_by_days_loses_and_repeats_nothing_and_is_told_once(
    duo, collector, off_s
):
    duo.rules.clock_offset = off_s
    collector.seed(**dict.fromkeys(LOG_TYPES, duo.now_ms() - 5 * MINUTE))
    results = []
    for seed in range(2):
        end_ms = duo.now_ms() - 130_000
        for log_type in LOG_TYPES:
            duo.add(log_type, make_events(log_type, 30, end_ms - MINUTE, end_ms, seed=seed))
        results.append(collector.once("--log-types", ALL))
        assert results[-1].status == 0, results[-1].stderr
        assert_told(results[-1].stderr, off_s)
    assert differences(duo, events_of(results)) == NONE
    assert {request.status for request in duo.requests} == {200}


@pytest.mark.parametrize("off_s", WRONG)
def test_check_tells_how_far_the_clock_is_off(duo, collector, off_s):
    duo.rules.clock_offset = off_s
    result = collector.run("--check", *ONLY)
    assert (result.status, result.stdout) == (0, "telephony: ok\n")
    assert_told(result.stderr, off_s)
    duo.rules.clock_offset = 20
    assert "local clock" not in collector.run("--check", *ONLY).stderr


def test_a_service_tells_a_difference_once_and_another_one_again(duo, collector):
    before(collector, "duo_collector.Clock.SHARED_S = 0.0")
    duo.rules.clock_offset = 600
    with running(collector, *ONLY, "--interval", "0.05") as process:
        lines = [process.stderr.readline() for _ in range(6)]
        duo.rules.clock_offset = -600
        lines += [process.stderr.readline() for _ in range(6)]
    told = [line for line in lines if b"WARNING" in line]
    assert [b" s behind Duo's" in line for line in told] == [True, False], lines


@pytest.mark.parametrize("options", [["--once"], ["--check"], ["--accounts"]], ids=" ".join)
def test_duos_time_is_asked_for_once_a_process(duo, collector, options):
    collector.run(*options)
    assert [request.path for request in duo.requests].count("/auth/v2/ping") == 1
    assert duo.requests[0].path == "/auth/v2/ping"


@pytest.mark.parametrize("off_s", [600, -600])
def test_a_clock_that_is_set_right_changes_nothing(duo, collector, off_s):
    """Duo's time is its own: whatever the local clock was before, the next pass finds what is
    new."""
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 125_000
    duo.add("authentication", make_events("authentication", 10, end_ms - MINUTE, end_ms))
    first = collector.once("--log-types", "authentication")
    before(collector, f"import time; now = time.time; time.time = lambda: now() + {off_s}")
    end_ms = duo.now_ms() - 122_000
    duo.add("authentication", make_events("authentication", 3, end_ms - 2_000, end_ms, seed=4))
    second = collector.once("--log-types", "authentication")
    assert differences(duo, events_of([first, second]), ["authentication"]) == NONE
    assert "local clock" not in second.stderr


# Where the ping is not answered

NO_PING = ["error_404", "html_502", "reset"]


@pytest.mark.parametrize("ping", NO_PING)
@pytest.mark.parametrize("off_s", [200, -200])
def test_the_local_clock_counts_where_the_ping_is_not_answered(duo, collector, ping, off_s):
    duo.rules.ping_faults, duo.rules.clock_offset = (ping,), off_s
    fill(duo, DEFAULT, 20)
    result = collector.once()
    assert (result.status, differences(duo, result.events, DEFAULT)) == (0, NONE), result.stderr


@pytest.mark.parametrize("ping", NO_PING)
@pytest.mark.parametrize("off_s", [2_400, -86_400])
def test_a_date_of_the_local_clock_that_is_refused_is_told_as_that(duo, collector, ping, off_s):
    duo.rules.ping_faults, duo.rules.clock_offset = (ping,), off_s
    collector.seed(telephony=duo.now_ms() - 300 * DAY)
    result = collector.once(*ONLY)
    assert (result.status, result.stdout) == (77, ""), result.stderr
    assert "Duo refuses the request's date (401 40105 Bad request timestamp)" in result.stderr
    assert "which is the local clock's" in result.stderr and "set the clock right" in result.stderr


REFUSED_DATES = {  # code, message, words
    "40105 Bad request timestamp": "Duo refuses the request's date",
    "40104 Bad request timestamp": "Duo refuses the request's date",
    "40104 Missing request timestamp": "a proxy strips it",
    "40101 Missing request credentials": "a proxy strips it",
}


@pytest.mark.parametrize("said", REFUSED_DATES)
def test_a_refused_date_is_known_by_its_words(duo, collector, said):
    code, message = said.split(" ", 1)
    body = json.dumps({"code": int(code), "message": message, "stat": "FAIL"})
    duo.inject("telephony", (401, JSON, body.encode()))
    result = collector.once(*ONLY)
    assert (result.status, REFUSED_DATES[said] in result.stderr) == (77, True), result.stderr
    assert f"(401 {said})" in result.stderr
    assert "local clock" not in result.stderr, "the date was Duo's own"


@pytest.mark.parametrize("off_s", [-200 * 86_400, -86_400, 86_400])
@pytest.mark.parametrize(
    "more", [["--until", "now"], ["--missing-from", "/dev/null"]], ids=" ".join
)
def test_a_range_by_a_wrong_local_clock_is_no_success(duo, collector, more, off_s):
    """Nobody tells the time, so nobody knows what is in the range."""
    duo.rules.clock_offset, duo.rules.ping_faults = off_s, ("error_404",)
    end_ms = duo.now_ms() - HOUR
    collector.seed(telephony=end_ms)  # where a range of --missing-from ends
    duo.add("telephony", make_events("telephony", 10, end_ms - HOUR, end_ms - MINUTE))
    options = ["--since", "3h", *more, *ONLY]
    result = collector.run(*options)
    assert (result.status in (75, 77), result.stdout) == (True, ""), result.stderr
    duo.rules.ping_faults = ()
    result = collector.run(*options)
    assert (result.status, len(result.events)) == (0, 10), result.stderr
