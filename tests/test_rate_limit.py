"""429: waited out, with patience, and for one log type without delaying another."""

import json
import time
from collections import Counter

import pytest
from conftest import DEFAULT, JSON, NONE, ONLY, differences, failing_pass, fill, log_requests

import duo_collector


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [None, "seconds", "x_seconds"])
def test_a_429_is_waited_out(duo, collector, retry_after):
    fill(duo, "telephony", 2_500)
    duo.rules.rate_limit, duo.rules.rate_window_s, duo.rules.retry_after = 2, 4.0, retry_after
    result = collector.once(*ONLY)
    assert result.status == 0, result.stderr
    assert differences(duo, result.events, ["telephony"]) == NONE
    assert "rate-limited by Duo (429 42901 Too Many Requests)" in result.stderr
    if retry_after:
        asked = log_requests(duo)
        for before, after in zip(asked, asked[1:]):
            if before.status == 429:
                assert after.status == 200, "a Retry-After that is followed meets no second 429"


def test_a_retry_after_beyond_all_patience_ends_the_pass_at_once(duo, collector):
    headers = {**JSON, "Retry-After": "3600"}
    body = b'{"code":42901,"message":"Too Many Requests","stat":"FAIL"}'
    duo.inject("authentication", (429, headers, body))
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(log_requests(duo))) == (75, 1)


@pytest.mark.slow
def test_administrator_events_keep_coming_while_authentication_is_limited(duo, collector):
    fill(duo, DEFAULT, 1_200)
    duo.inject("authentication", *["error_429"] * 4)
    process = collector.start("--once")
    seen = [json.loads(process.stdout.readline())["eventtype"] for _ in range(2_400)]
    assert Counter(seen) == {"administrator": 1_200, "telephony": 1_200}
    rest = [json.loads(line) for line in process.stdout]
    assert (len(rest), process.wait(30)) == (1_200, 0)
    process.stderr.close()


def test_patience_with_429_lasts_five_minutes(tmp_path):
    times, collector = failing_pass(tmp_path, duo_collector.RateLimited("429"))
    assert times[-2] < 300 <= times[-1] <= 375
    assert 5 <= len(times) <= 15
    assert (collector.status, collector.health["limited"]) == (75, len(times))
    assert collector.health["last_error"] == "429; given up for this pass"


def test_refusals_keep_to_the_pace(duo, collector):
    duo.rules.no_permission = True
    process = collector.start(
        *ONLY, "--interval", "0.01", environ={"DUO_REQUESTS_PER_MINUTE": "120"}
    )
    deadline = time.monotonic() + 30
    while len(log_requests(duo)) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=10)
    first, *_, fifth = [request.monotonic for request in duo.requests[:5]]
    assert fifth - first > 1.5, (
        "four intervals of 0.5 s, and half a second for a first request that was delayed"
    )


@pytest.mark.parametrize("header", ["Retry-After", "X-Retry-After"])
def test_the_header_that_says_how_long_to_wait_is_followed(duo, collector, header):
    body = b'{"code":42901,"message":"Too Many Requests","stat":"FAIL"}'
    duo.inject("telephony", (429, {**JSON, header: "7"}, body))
    assert collector.once(*ONLY).status == 0
    first, second = [request.monotonic for request in log_requests(duo)]
    assert 7 <= second - first < 12
