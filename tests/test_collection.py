"""Passes: every event once, in the order of time, in few requests."""

import json
import re
import subprocess
import time
from collections import Counter

import pytest
from conftest import (
    ALL,
    DEFAULT,
    HOUR,
    MINUTE,
    ONLY,
    V1,
    assert_complete,
    canonical,
    fill,
    log_requests,
    now_ms,
    wait_for,
)
from duo import LOG_TYPES, make_events


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_a_pass_writes_every_event_once_in_few_requests(duo, collector, log_type):
    fill(duo, log_type, 2_345)
    result = collector.once("--log-types", log_type)
    assert (result.status, len(result.of(log_type))) == (0, 2_345)
    assert_complete(duo, result, log_type)
    page_size = 200 if log_type == "trust_monitor" else 1000
    assert len(log_requests(duo)) <= -(-2_345 // page_size) + 1
    assert (
        f"{log_type}: 2,345 events in {len(log_requests(duo))} requests, up to 20" in result.stderr
    )
    assert all(
        event["eventtype"] == log_type and event["host"] == "127.0.0.1" for event in result.events
    )

    asked_before = len(log_requests(duo))
    again = collector.once("--log-types", log_type)
    assert (again.status, again.stdout) == (0, "")
    assert len(log_requests(duo)) == asked_before + 1


def test_passes_that_follow_each_other_write_what_is_new_and_nothing_else(duo, collector):
    names = ALL
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
        of_type = [
            e for e in events if e.pop("host") and e["eventtype"] == log_type and e.pop("eventtype")
        ]
        assert canonical(of_type) == canonical(duo.events(log_type)), log_type


def test_loop_mode_collects_pause_after_pause(duo, collector):
    collector.seed(**dict.fromkeys(DEFAULT, now_ms() - HOUR))
    process = collector.start("--interval", "0.3")
    seen = []
    for number in range(3):
        event = make_events(
            "authentication", 1, now_ms() - 125_000, now_ms() - 124_000, seed=number
        )[0]
        duo.add("authentication", event)
        seen.append(json.loads(process.stdout.readline())["txid"] == event["txid"])
    process.terminate()
    stdout, _ = process.communicate(timeout=10)
    assert seen == [True, True, True]
    assert (process.returncode, stdout) == (0, b"")
    assert duo.connections >= 2  # one for each pass


def test_once_starts_no_log_type_twice(duo, collector):
    fill(duo, "telephony", 5_500)
    collector.seed(**dict.fromkeys(DEFAULT, now_ms() - 7 * HOUR))
    duo.rules.missing["administrator"], duo.rules.latency_s = 403, 0.15
    result = collector.once("--interval", "0.1")
    passes = re.findall(r"(\w+): [\d,]+ events? in [\d,]+ requests?", result.stderr)
    assert sorted(passes) == sorted(DEFAULT)
    assert [request.log_type for request in duo.requests].count("administrator") == 1
    assert (result.status, len(result.events)) == (77, 5_500)


@pytest.mark.parametrize("interval, pause_s", [("1s", 1), ("0.5", 0.5)])
def test_the_interval_may_be_an_age(duo, collector, interval, pause_s):
    process = collector.start("--interval", interval, *ONLY)
    wait_for(lambda: len(log_requests(duo)) >= 3, "three passes")
    process.terminate()
    process.communicate(timeout=10)
    times = [request.monotonic for request in log_requests(duo)[1:3]]
    assert pause_s - 0.1 < times[1] - times[0] < pause_s + 1.5


@pytest.mark.parametrize("recent", [0, 40], ids=["nothing new", "events in the lookback"])
def test_a_pass_that_is_caught_up_asks_once(duo, collector, recent):
    at_ms = now_ms() - 4 * MINUTE
    for log_type in LOG_TYPES:
        fill(duo, log_type, 300)
        duo.add(log_type, make_events(log_type, recent, at_ms - 10_000, at_ms))
    for _ in range(2):  # the second still looks at the end of the backlog
        collector.once("--log-types", ALL)
    asked = len(log_requests(duo))
    for _ in range(2):
        result = collector.once("--log-types", ALL)
        assert (result.status, result.stdout) == (0, "")
    asked = Counter(request.log_type for request in log_requests(duo)[asked:])
    for log_type in LOG_TYPES:
        if log_type in V1 and recent:
            # v1 logs do not count, so there the end has to be seen; a third request where the
            # newest second holds ten events or more, as that may be a full page.
            assert 4 <= asked[log_type] <= 6, asked
        else:
            assert asked[log_type] == 2, asked


def test_loop_mode_outlives_refusals_and_outages(duo, collector):
    fill(duo, "authentication", 10)
    duo.rules.no_permission = True
    process = collector.start(
        "--log-types", "authentication", "--interval", "0.2", stdout=subprocess.PIPE
    )
    wait_for(lambda: len(log_requests(duo)) >= 3, "three passes")
    duo.rules.no_permission = False
    assert sum(1 for _ in zip(range(10), process.stdout)) == 10
    duo.stop()
    time.sleep(0.5)
    duo.start()
    fresh = make_events("authentication", 1, now_ms() - 200_000, now_ms() - 199_000, seed=9)
    duo.add("authentication", fresh)
    assert json.loads(process.stdout.readline())["txid"] == fresh[0]["txid"]
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"Duo refuses the permission" in stderr
