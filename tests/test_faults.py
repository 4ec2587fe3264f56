"""Faults between the collector and Duo: what passes is tried again, what lasts ends the pass."""

import re
import socket
import time

import pytest
from conftest import (
    ALL,
    DEFAULT,
    JSON,
    NONE,
    assert_complete,
    before,
    differences,
    failing_pass,
    fill,
)
from duo import FAULT_KINDS, LOG_TYPES

import duo_collector


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_a_fault_passes(duo, collector, fault):
    fill(duo, DEFAULT, 1_200)
    duo.rules.stall_s = 0.3
    for log_type in DEFAULT:
        duo.inject(log_type, None, fault)
    result = collector.once()
    if fault in ("clock_401", "error_404", "empty_401"):  # refusals: the next pass goes on
        assert result.status == 77
        return
    assert result.status == 0, result.stderr
    if fault == "nan":  # is written as Duo wrote it; the overlap of v1 pages may show it unspoilt
        assert 3 * 1_200 <= len(result.events) <= 3 * 1_200 + 1
    else:
        assert differences(duo, result.events, DEFAULT) == NONE


@pytest.mark.parametrize("seed", range(3))
def test_a_mix_of_all_faults_loses_nothing_and_writes_nothing_twice(duo, collector, seed):
    fill(duo, LOG_TYPES, 1_500)
    duo.rules.short_pages = True
    duo.rules.fault_rate, duo.rules.stall_s = 0.25, 0.2
    duo._fault_random.seed(seed)
    events = []
    for _ in range(6):
        result = collector.once("--log-types", ALL, timeout=200)
        events += result.events
        if result.status == 0:
            break
        assert result.status == 75, result.stderr
    assert result.status == 0, result.stderr
    assert differences(duo, events, LOG_TYPES) == NONE
    assert "Traceback" not in result.stderr


NONSENSE = {
    "not the list": b'{"stat":"OK","response":{"authlogs":{"a":1},"metadata":{}}}',
    "no list": b'{"stat":"OK","response":{"metadata":{"next_offset":null,"total_objects":0}}}',
    "a null list": b'{"stat":"OK","response":{"authlogs":null}}',
    "the list elsewhere": b'{"stat":"OK","response":{"metadata":{"authlogs":[]}}}',
    "stat is missing": b'{"response":{"authlogs":[],"metadata":{}}}',
    "unexpected type of cursor": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}],"metadata":{"next_offset":{"a":1}}}}',
    "metadata of another kind": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}],"metadata":[1]}}',
    "a list that does not end": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}',
    "two documents": b'{"stat":"OK","response":{"authlogs":[]}}{"stat":"OK"}',
    "deep nesting": b'{"stat":"OK","response":{"authlogs":[' + b"[" * 200_000,
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.slow
def test_nobody_listens(duo, collector):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = {"DUO_API_HOST": f"http://127.0.0.1:{bound.getsockname()[1]}"}
        result = collector.once(environ=where, timeout=120)
    assert result.status == 75
    assert result.stderr.count("the connection is refused") >= 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("what", NONSENSE)
def test_an_answer_that_makes_no_sense_is_asked_for_again(duo, collector, what):
    fill(duo, "authentication", 20)
    duo.inject("authentication", (200, JSON, NONSENSE[what]))
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    assert_complete(duo, result, "authentication")
    assert re.search("INFO authentication: .*; trying again in [0-2] s", result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("per_minute, tries", [(1, 2), (3, 2), (60, 4)])
def test_failures_keep_to_the_ceiling_and_are_tried_again(tmp_path, per_minute, tries):
    problem = duo_collector.Retryable("500")
    times, collector = failing_pass(tmp_path, problem, per_minute)
    assert (collector.status, collector.health["failed"]) == (75, len(times))
    assert len(times) >= tries
    assert all(after - before >= 60 / per_minute for before, after in zip(times, times[1:])), times
    assert collector.health["last_error"] == "500; given up for this pass"


@pytest.mark.parametrize("latency_s", [0, 25, 70, 119])
def test_what_only_fails_is_given_up_after_two_tries_and_30_s(tmp_path, latency_s):
    problem = duo_collector.Retryable("no answer")
    times, _ = failing_pass(tmp_path, problem, latency_s=latency_s)
    last_end_s = times[-1] + latency_s
    assert len(times) >= 2
    assert 30 <= last_end_s <= max(75, 2 * latency_s + 5), times


OUTAGES = {
    "silence": (lambda handler: time.sleep(40), "Read timed out"),
    "503": ("error_503", "not an answer of Duo's API (503"),
}


@pytest.mark.slow
@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_ends_the_pass_with_75_and_its_reason(duo, collector, outage):
    fault, said = OUTAGES[outage]
    before(collector, "duo_collector.SILENCE_S = 18")
    duo.inject(None, *[fault] * 30)
    start = time.monotonic()
    result = collector.once("--log-types", "authentication", timeout=120)
    assert result.status == 75
    assert said in result.stderr.splitlines()[-1], result.stderr
    assert 30 < time.monotonic() - start < 100
    assert "AUTH_SINCE_TIME" not in collector.saved
