"""A local clock that is wrong: collection goes by Duo's."""

import json
import re
import time
from email.utils import formatdate

import pytest
import requests
from conftest import (
    ALL,
    DEFAULT,
    HOUR,
    JSON,
    MINUTE,
    NONE,
    ONLY,
    differences,
    events_of,
    fill,
    now_ms,
)
from duo import LOG_TYPES, make_events

import duo_collector


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


@pytest.mark.parametrize("was_s", [-3600, 600])
def test_a_clock_that_is_set_right_is_believed(duo, collector, was_s):
    duo.rules.clock_offset = was_s
    fill(duo, "authentication", 10)
    assert len(collector.once("--log-types", "authentication").events) == 10
    duo.rules.clock_offset = 0
    fresh = make_events("authentication", 3, now_ms() - 200_000, now_ms() - 190_000, seed=4)
    duo.add("authentication", fresh)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    # was_s > 0: the checkpoint is ahead of this Duo by what its clock went back, but not the newest event known
    assert_all_written_but(result, fresh)
    assert "ahead of now" not in result.stderr


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


def test_a_clock_told_by_a_refusal_opens_the_window_before_the_pass_ends(duo, collector):
    """By the local clock the checkpoint is ahead of now; Duo limits the request for its time, and tells it all the same."""
    duo.rules.clock_offset = 200
    collector.seed(telephony=duo.now_ms() - 180_000)
    end_ms = duo.now_ms() - 125_000
    duo.add("telephony", make_events("telephony", 10, end_ms - 30_000, end_ms))
    date = formatdate(duo.now_ms() / 1000, usegmt=True)
    duo.inject(
        "ping",
        (
            429,
            {**JSON, "Date": date},
            b'{"stat": "FAIL", "code": 42901, "message": "Too Many Requests"}',
        ),
    )
    result = collector.once(*ONLY)
    assert (result.status, len(result.events)) == (0, 10), result.stderr
    assert duo.requests[0].path == "/auth/v2/ping"


@pytest.mark.parametrize(
    "ping", [(), ("error_404",), ("html_502",), ("reset",)], ids=["ping", "404", "HTML", "reset"]
)
@pytest.mark.parametrize("behind", ["40 min", "2 h", "1 day", "200 days"])
def test_a_local_clock_far_behind_the_checkpoint_stops_nothing(duo, collector, behind, ping):
    behind_s = {"40 min": 2_400, "2 h": 7_200, "1 day": 86_400, "200 days": 200 * 86_400}[behind]
    duo.rules.ping_faults = ping
    duo.rules.clock_offset = behind_s
    collector.seed(**dict.fromkeys(LOG_TYPES, duo.now_ms() - 5 * MINUTE))
    results = []
    for seed in range(2):
        end_ms = duo.now_ms() - 130_000
        for log_type in LOG_TYPES:
            duo.add(log_type, make_events(log_type, 30, end_ms - MINUTE, end_ms, seed=seed))
        results.append(collector.once("--log-types", ALL))
        assert results[-1].status == 0, results[-1].stderr
        told = re.findall(r"WARNING local clock is (\d+) s behind Duo's", results[-1].stderr)
        assert [abs(int(said) - behind_s) <= 2 for said in told] == [True], results[-1].stderr
        assert results[-1].stderr.count("WARNING") == 1
    assert differences(duo, events_of(results), LOG_TYPES) == NONE


def test_a_known_difference_of_clocks_stays_while_answers_fit_it(duo):
    """Local clocks 0.7 s ahead of Duo's, and equal to it; an answer each 0.75 s, with Duo's time in whole seconds."""
    settings = duo_collector.Settings(base_url=duo.settings["DUO_API_HOST"])
    for ahead_ms in 700, 0:
        api = duo_collector.Duo(
            settings, duo_collector.Edges(time.time, time.monotonic, time.sleep, requests.Session)
        )
        for number in range(20):
            sent_ms = 1_800_000_000_450 + 750 * number
            date = formatdate((sent_ms + 20 - ahead_ms) // 1000, usegmt=True)
            answer = duo_collector.Answer(
                200, {"Date": date}, {"stat": "OK"}, None, "", sent_ms, sent_ms + 50
            )
            api.learn_clock(answer)
            if number > 4:
                assert -1.3 < api.clock_offset_s <= -0.7 if ahead_ms else api.clock_offset_s == 0.0


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


REFUSED_DATES = {  # code, message, words
    "40105 Bad request timestamp": "Duo refuses the request's date",
    "40104 Bad request timestamp": "Duo refuses the request's date",
    "40104 Missing request timestamp": "a proxy strips it",
    "40101 Missing request credentials": "a proxy strips it",
}


@pytest.mark.parametrize("said", REFUSED_DATES)
def test_a_refused_date_is_known_by_its_words(duo, collector, said):
    code, message = said.split(" ", 1)
    answer = (
        401,
        JSON,
        json.dumps({"code": int(code), "message": message, "stat": "FAIL"}).encode(),
    )
    duo.inject("telephony", answer, answer)
    result = collector.once(*ONLY)
    assert (result.status, f"{REFUSED_DATES[said]}" in result.stderr) == (77, True), result.stderr
    assert f"(401 {said})" in result.stderr


@pytest.mark.parametrize("code", [40104, 40105])
def test_a_wrong_local_clock_is_learnt_from_a_refusal(duo, collector, code):
    duo.rules.clock_offset, duo.rules.date_code = 900, code
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 30, end_ms - HOUR, end_ms))
    result = collector.once(*ONLY)
    assert (result.status, differences(duo, result.events, ["telephony"])) == (0, NONE), (
        result.stderr
    )


@pytest.mark.parametrize("then", ["error_500", "reset", "error_429"])
def test_a_proxys_date_on_a_refusal_does_not_stay(duo, collector, then):
    """A 401 under a proxy's Date, 20 minutes off, then a second try that proves nothing: later passes collect."""
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
    """Its window starts 180 days back by that clock, which is further than Duo serves where the clock is behind."""
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 10 * MINUTE
    for log_type in DEFAULT:
        duo.add(log_type, make_events(log_type, 5, end_ms - HOUR, end_ms))
    result = collector.once()
    assert (result.status, differences(duo, result.events, DEFAULT)) == (0, NONE), result.stderr


RANGES = [["--until", "now"], ["--missing-from", "/dev/null"]]


@pytest.mark.parametrize("more", RANGES)
def test_a_range_by_a_wrong_local_clock_is_no_success(duo, collector, more):
    """The first requests, for Duo's time, fail; what the later answers tell comes too late for --since."""
    duo.rules.clock_offset = 7_200
    duo.add(
        "telephony",
        make_events("telephony", 10, duo.now_ms() - 50 * MINUTE, duo.now_ms() - 5 * MINUTE),
    )
    duo.inject("ping", (502, {"Content-Type": "text/html"}, b"<html>"))
    duo.inject("telephony", "error_503")
    options = ["--since", "1h", *more, *ONLY]
    result = collector.run(*options)
    assert (result.status, "the local clock was wrong, and so was the range" in result.stderr) == (
        75,
        True,
    ), result.stderr
    result = collector.run(*options)
    assert (result.status, len(result.events)) == (0, 10), result.stderr


@pytest.mark.parametrize("days", [-200, -1, 1])
@pytest.mark.parametrize("more", RANGES)
def test_a_range_is_by_duos_clock_where_the_ping_does_not_tell_it(duo, collector, more, days):
    duo.rules.clock_offset, duo.rules.ping_faults = days * 86_400, ("error_404",)
    end_ms = duo.now_ms() - HOUR
    collector.seed(telephony=end_ms)  # where a range of --missing-from ends
    duo.add("telephony", make_events("telephony", 10, end_ms - HOUR, end_ms - MINUTE))
    options = ["--since", "3h", *more, *ONLY]
    result = collector.run(*options)
    assert (result.status, len(result.events)) == (0, 10), result.stderr
    duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, ("error_503",)
    assert collector.run(*options).status == 75, (
        "nobody tells the time, so nobody knows what is missing"
    )


@pytest.mark.parametrize("code", ["40103", "40105"])
def test_a_401_with_a_clock_that_is_off_is_of_the_clock(duo, collector, code):
    duo.rules.clock_offset = 400.0
    body = json.dumps({"code": int(code), "message": "no", "stat": "FAIL"}).encode()
    duo.inject("telephony", *[(401, JSON, body)] * 2)
    result = collector.run("--check", *ONLY)
    assert re.search(
        r"the local clock is (399|400|401) s off Duo's: set it right", result.stdout
    ), result.stdout
    assert result.status == 77
