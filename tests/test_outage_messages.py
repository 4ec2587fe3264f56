"""A wrong host with --once: few lines, and no long one of them twice without need."""

import re

import pytest
from conftest import DEFAULT, NOBODY, before

pytestmark = pytest.mark.slow
ENDS = re.compile(r" ERROR (\w+): .*; (.*)")


def outage(collector, host):
    """A pass of three log types, with 3 s of patience in place of 30."""
    before(collector, "duo_collector.Retryable.patience_s = 3")
    result = collector.once(environ={"DUO_API_HOST": host})
    assert (result.status, result.stdout) == (75, "")
    return result.stderr.splitlines()


def assert_told_once(lines, words):
    """A line when it starts to fail, a long one when the first log gives up, then short ones."""
    (begins,) = [line for line in lines if "trying again in" in line]
    assert words in begins and " INFO " in begins
    ends = [match for match in map(ENDS.search, lines) if match]
    assert sorted(match[1] for match in ends) == sorted(DEFAULT)
    assert words in ends[0].string and "given up for this pass" in ends[0][2]
    assert [match[2] for match in ends[1:]] == ["given up for the same reason"] * 2
    assert len(lines) == 4, lines


def test_nobody_listens_there(collector):
    assert_told_once(outage(collector, NOBODY), "127.0.0.1:1: the connection is refused")


def test_the_name_does_not_resolve(collector):
    """Its warning, that it is no host of Duo's, comes before all of it."""
    warning, *lines = outage(collector, "https://api-12345678.duosecurity.invalid")
    assert " WARNING DUO_API_HOST is api-12345678.duosecurity.invalid, which is not a " in warning
    assert_told_once(lines, "the name does not resolve (")
