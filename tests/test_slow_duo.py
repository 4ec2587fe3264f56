"""Answers that take long, and links that are slow."""

import pytest
from conftest import ONLY, fill, log_requests


@pytest.mark.slow
def test_a_slow_link_gets_its_page(duo, collector):
    fill(duo, "telephony", 1_000)
    duo.rules.bytes_per_s = 6_200.0  # 32 s for what was once given 30
    result = collector.once(*ONLY, timeout=120)
    assert (result.status, len(result.events), len(log_requests(duo))) == (0, 1_000, 2), (
        result.stderr
    )
