"""Answers that take long, and links that are slow."""

import time

import pytest
from conftest import ONLY, before, fill


@pytest.mark.slow
def test_a_slow_link_gets_its_page(duo, collector):
    fill(duo, "telephony", 1_000)
    duo.rules.bytes_per_s = 6_200.0  # 32 s for what was once given 30
    result = collector.once(*ONLY, timeout=120)
    assert (result.status, len(result.events), len(duo.requests)) == (0, 1_000, 2), result.stderr


def test_an_answer_that_never_ends_is_given_up(duo, collector):
    """The limits are those of a process of its own, or this would take five minutes."""
    fill(duo, "telephony", 50)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    before(collector, "duo_collector.ANSWER_S = 1.5")
    duo.inject("telephony", drip)
    result = collector.once(*ONLY)
    assert (result.status, len(result.events)) == (0, 50)
    assert "no complete answer within 1.5 s" in result.stderr
