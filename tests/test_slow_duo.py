"""Slow answers and slow links: what needs 70 s comes, and delays nothing else."""

import signal
import time
from collections import Counter

import pytest
from conftest import (
    DEFAULT,
    HOUR,
    NONE,
    ONLY,
    assert_complete,
    before,
    differences,
    fill,
    finish,
    log_requests,
    now_ms,
    wait_for,
)
from duo import LOG_TYPES


def busiest(duo):
    """How many requests the log type that had most was sent."""
    asked = Counter(request.log_type for request in log_requests(duo))
    return max(asked.values())


@pytest.mark.slow
@pytest.mark.parametrize("latency_s", [70, 25])
def test_a_page_that_needs_long_is_collected(duo, collector, latency_s):
    """In real time once; the other as if all took a tenth."""
    fill(duo, "telephony", 50)
    duo.rules.latency_s = {"telephony": latency_s}
    if latency_s != 70:
        duo.rules.latency_s = {"telephony": latency_s / 10}
        constants = "duo_collector.SILENCE_S = 12.0; duo_collector.Retryable.patience_s = 3.0"
        before(collector, constants)
    result = collector.once(*ONLY, timeout=300)
    assert (result.status, len(log_requests(duo))) == (0, 1), result.stderr
    assert_complete(duo, result, "telephony")


def test_check_waits_for_a_slow_answer(duo, collector):
    duo.rules.latency_s = {"telephony": 7}
    before(collector, "duo_collector.SILENCE_S = 12.0; duo_collector.CONNECT_S = 1.0")
    result = collector.run("--check", *ONLY)
    assert (result.status, result.stdout) == (0, "telephony: ok\n"), result.stderr


def test_an_answer_that_begins_too_late_is_tried_again_and_then_given_up(duo, collector):
    fill(duo, "telephony", 50)
    duo.rules.latency_s = {"telephony": 3}
    before(collector, "duo_collector.SILENCE_S = 1.0; duo_collector.Retryable.patience_s = 2.0")
    result = collector.once(*ONLY)
    assert (result.status, len(log_requests(duo)) >= 2) == (75, True), result.stderr
    assert "Read timed out" in result.stderr and "given up for this pass" in result.stderr
    duo.rules.latency_s = 0.0
    assert_complete(duo, collector.once(*ONLY), "telephony")


@pytest.mark.parametrize("log_types", [DEFAULT, LOG_TYPES], ids=["three logs", "six logs"])
def test_several_logs_take_no_longer_than_the_busiest(duo, collector, log_types):
    """At 1 s an answer; the ping is one more."""
    fill(duo, log_types, 600)
    duo.rules.v1_limit = 200
    duo.rules.latency_s = 1.0
    began = time.monotonic()
    result = collector.once("--log-types", ",".join(log_types))
    took_s = time.monotonic() - began
    assert (result.status, differences(duo, result.events, log_types)) == (0, NONE), result.stderr
    assert took_s < 1.5 * (busiest(duo) + 1), f"{busiest(duo)} requests of the busiest log"


def test_a_slow_log_delays_no_other(duo, collector):
    fill(duo, DEFAULT, 50)
    duo.rules.latency_s = {"authentication": 6}
    began = time.monotonic()
    process = collector.start("--once")
    lines = [process.stdout.readline() for _ in range(100)]
    took_s = time.monotonic() - began
    assert not any(b'"eventtype":"authentication"' in line for line in lines)
    assert took_s < 4
    rest = process.stdout.readlines()
    assert (len(rest), finish(process).status) == (50, 0)


@pytest.mark.parametrize(
    "options, status",
    [
        (["--interval", "600"], 0),
        (["--once"], 75),
        (["--check"], 75),
        (["--since", "2h", "--until", "1h"], 75),
        (["--since", "2h", "--missing-from", "/dev/null"], 75),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sigterm_ends_it_within_5_s_during_a_slow_answer(duo, collector, options, status):
    fill(duo, DEFAULT, 50)
    collector.seed(**dict.fromkeys(DEFAULT, now_ms() - HOUR))
    duo.rules.latency_s = dict.fromkeys(DEFAULT, 70)
    process = collector.start(*options)
    wait_for(lambda: len(log_requests(duo)) == 3, "request of each log type")
    process.send_signal(signal.SIGTERM)
    result = finish(process, timeout_s=5)
    assert (result.status, result.stdout) == (status, ""), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_slow_link_gets_its_page(duo, collector):
    fill(duo, "telephony", 1_000)
    duo.rules.bytes_per_s = 6_200.0  # 32 s for the page
    result = collector.once(*ONLY, timeout=120)
    assert (result.status, len(log_requests(duo))) == (0, 2), result.stderr
    assert_complete(duo, result, "telephony")
