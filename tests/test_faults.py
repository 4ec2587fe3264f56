"""Faults between the collector and Duo: what passes is tried again, what lasts ends the pass."""

import socket
import time

import pytest
from conftest import (
    ALL,
    DEFAULT,
    HOUR,
    JSON,
    MINUTE,
    NONE,
    ONLY,
    before,
    differences,
    failing_pass,
    fill,
    now_ms,
)
from duo import FAULT_KINDS, LOG_TYPES

import duo_collector


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_a_fault_passes(duo, collector, fault):
    fill(duo, DEFAULT, 1_200)
    duo.rules.stall_s = 0.3
    for log_type in DEFAULT:
        duo.inject(log_type, None, fault)
    if fault in (
        "clock_401",
        "error_404",
    ):  # a refusal: Duo had such an outage once; the next pass goes on
        assert collector.once().status == 77
        return
    result = collector.once()
    assert result.status == 0, result.stderr
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
    "NaN": b'{"stat":"OK","response":{"authlogs":[{"txid":"x","n":NaN}],"metadata":{}}}',
    "a list that does not end": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}',
    "a trailing comma": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"},]}}',
    "two documents": b'{"stat":"OK","response":{"authlogs":[]}}{"stat":"OK"}',
    "deep nesting": b'{"stat":"OK","response":{"authlogs":[' + b"[" * 200_000,
    "a list": b"[]",
    "nothing": b"",
}


def test_answers_that_make_no_sense_are_asked_for_again(duo, collector):
    fill(duo, "authentication", 20)
    headers = JSON
    # one after the other, with a good page in between so that none waits longer than a second
    for body in NONSENSE.values():
        process_once_with(duo, collector, (200, headers, body))
    assert (
        differences(
            duo,
            collector.once("--log-types", "authentication", "--since", "24h").events,
            ["authentication"],
        )
        == NONE
    )


def process_once_with(duo, collector, answer):
    asked = len(duo.requests)
    duo.inject("authentication", answer)
    settings = duo_collector.Settings(
        base_url=duo.url, integration_key=duo.ikey, secret_key=duo.skey
    )
    client = duo_collector.Duo(
        settings,
        duo_collector.Edges(time.time, time.monotonic, time.sleep, duo_collector.open_session),
    )
    log_type = duo_collector.LOG_TYPES["authentication"]
    walk = duo_collector.Walk(log_type, now_ms() - HOUR, now_ms() - 3 * MINUTE, pytest.fail)
    with pytest.raises(duo_collector.Failed):
        client.fetch_page(log_type, walk.parameters)
    client.session.close()
    assert len(duo.requests) == asked + 1


@pytest.mark.parametrize(("per_minute", "tries"), [(1, 2), (3, 2), (60, 4)])
def test_failures_keep_to_the_ceiling_and_are_tried_again(per_minute, tries):
    """In simulated time."""
    times, collector = failing_pass(duo_collector.Failed("500"), per_minute)
    assert (collector.status, collector.state.health["failed"]) == (75, len(times))
    assert len(times) >= tries and all(
        after - before >= 60 / per_minute for before, after in zip(times, times[1:])
    ), times


def hang(handler):
    time.sleep(60)


def drip(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


OUTAGES = {
    "hang": (hang, "Read timed out"),
    "drip": (drip, "no complete answer within 30 s"),
    "503": ("error_503", "503"),
}


@pytest.mark.slow
@pytest.mark.parametrize("outage", OUTAGES)
def test_what_only_fails_is_given_up_after_some_30_s(duo, collector, outage):
    fault, said = OUTAGES[outage]
    if outage == "drip":
        assert (
            duo_collector.ANSWER_S == 300
        )  # which a slow link needs for 1,000 events, and a test does not wait for
        before(collector, "duo_collector.ANSWER_S = 30")
    duo.inject(None, *[fault] * 30)
    start = time.monotonic()
    result = collector.once("--log-types", "authentication", timeout=120)
    assert result.status == 75
    assert said in result.stderr.splitlines()[-1]
    assert 15 < time.monotonic() - start < 75
    assert "AUTH_SINCE_TIME" not in collector.saved


@pytest.mark.slow
def test_nobody_listens(duo, collector):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = {"DUO_API_HOST": f"http://127.0.0.1:{bound.getsockname()[1]}"}
        result = collector.once(environ=where, timeout=120)
    assert result.status == 75
    assert result.stderr.count("Connection refused") >= 3
    assert "Traceback" not in result.stderr


def test_an_answer_without_end_is_cut_off(duo, collector):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        for _ in range(2_000):
            handler.wfile.write(b" " * 100_000)

    fill(duo, "authentication", 10)
    duo.inject("authentication", endless)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    assert "an answer of more than 64,000,000 bytes" in result.stderr
    assert differences(duo, result.events, ["authentication"]) == NONE


@pytest.mark.parametrize(
    "fault, words",
    [("nan", "it holds NaN, which is not JSON"), ("deep", "maximum recursion depth exceeded")],
)
def test_a_page_that_is_no_json_is_told_as_what_it_is(duo, collector, fault, words):
    fill(duo, "telephony", 50)
    duo.inject("telephony", fault)
    result = collector.once(*ONLY)
    assert (result.status, len(result.events)) == (0, 50)
    assert (
        words in result.stderr and "proxy" not in result.stderr and "Traceback" not in result.stderr
    )
