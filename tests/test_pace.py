"""The pace of requests, in virtual time: near to every limit, with few 429s, below the ceiling."""

import random

import pytest
from benchmark_suite.limits import CASES, WANTED, drain_often, judge
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duo_collector import Pace


@pytest.fixture(scope="module")
def results():
    return [drain_often(Pace, case) for case in CASES]


def test_a_backlog_is_drained_near_the_limit_whatever_its_shape(results):
    each = {case.name: round(result.of_floor, 2) for case, result in zip(CASES, results)}
    verdict = judge(results)
    assert verdict.worst <= WANTED.worst, each
    assert verdict.geometric_mean <= WANTED.geometric_mean, each


def test_few_requests_are_answered_with_429(results):
    each = {case.name: round(result.refused, 3) for case, result in zip(CASES, results)}
    assert judge(results).refused <= WANTED.refused, each


def test_requests_under_a_limit_are_never_closer_than_the_ceiling_allows(results):
    for case, result in zip(CASES, results):
        assert result.closest_s >= 60 / case.ceiling, case.name


@settings(max_examples=300, deadline=None)
@given(
    ceiling=st.sampled_from([0.5, 1, 2, 50, 600, 60_000]),
    answers=st.lists(
        st.tuples(
            st.sampled_from(["page", "limited", "failed"]),
            st.floats(0, 130),  # s until the answer
        ),
        min_size=2,
        max_size=80,
    ),
    seed=st.integers(0, 1000),
)
@example(ceiling=50, answers=[("failed", 0), ("failed", 0)], seed=0)
@example(ceiling=50, answers=[("limited", 0)] * 40 + [("page", 0)], seed=0)
@example(ceiling=50, answers=[("limited", 0)] * 40 + [("failed", 0)] * 40, seed=0)
def test_whatever_comes_the_next_request_is_after_the_ceiling_and_within_75_s(
    ceiling, answers, seed
):
    random.seed(seed)
    pace = Pace(ceiling)
    shortest_s = 60 / ceiling
    now = 1000.0
    for answer, latency_s in answers:
        sent = now = max(now, pace.due)
        now += latency_s
        if answer == "failed":
            pace.failed(now)
        else:
            getattr(pace, answer)(sent)
        assert pace.due >= sent + shortest_s
        assert pace.due <= now + max(75, 61 / ceiling)


def failures_of(pace, count):
    """When the next request is due (s) after each of so many failures in a row at one time."""
    waits_s = []
    for _ in range(count):
        pace.failed(1000.0)
        waits_s.append(pace.due - 1000.0)
    return waits_s


def test_failures_back_off_up_to_a_minute_until_a_page_comes():
    steps_s = [1, 2, 4, 8, 16, 32, 60, 60]
    jitter = []
    for seed in range(40):
        random.seed(seed)
        pace = Pace(600)
        for _ in range(2):  # the second time after a page, as if nothing had been
            waits_s = failures_of(pace, len(steps_s))
            jitter += [wait_s / step_s for wait_s, step_s in zip(waits_s, steps_s)]
            pace.page(1000.0)
            assert pace.due == pytest.approx(1000.0 + 61 / 600)
    assert 0.75 <= min(jitter) < 0.8
    assert 1.2 < max(jitter) <= 1.25


def test_a_failure_says_nothing_about_the_limit():
    pace = Pace(50)
    pace.failed(1000.0)
    pace.page(1010.0)
    assert pace.due == pytest.approx(1010.0 + 61 / 50)


def test_a_429_slows_down_and_pages_speed_up_again():
    pace = Pace(50)
    pace.limited(1000.0)
    pace.page(1010.0)
    slower_s = pace.due - 1010.0
    assert slower_s > 1.2 * 61 / 50
    for number in range(200):
        pace.page(1020.0 + number)
    assert pace.due == pytest.approx(1219.0 + 61 / 50)
