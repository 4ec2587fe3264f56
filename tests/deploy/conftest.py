"""Fixtures of the tests of deploy/."""

import json

import pytest
from duo import make_events

from deploy.machine import booted
from deploy.shipper import HOUR_MS, LOG_TYPES, Shipper


@pytest.fixture
def bare_machine(tmp_path):
    """A machine with nothing of the collector's."""
    with booted(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def machine(bare_machine):
    """A machine on which deploy/install has run."""
    bare_machine.install()
    return bare_machine


@pytest.fixture
def shipper(request, tmp_path):
    """A daemon, by its name, that is not started yet."""
    made = Shipper(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tenant(duo, collector):
    """The simulated tenant with a backlog of every log type: names of the world, and an event of 200 KB."""
    now_ms = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 400, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
    long = make_events("authentication", 1, now_ms - 3 * HOUR_MS, now_ms - 2 * HOUR_MS, seed=1)[0]
    names = {
        "name": "Zoë 張偉 \U0001f600",
        "key": "DUXXXXXXXXXXXXXXXXXX",
        "groups": ['<13>"a\\b"\t%m'] * 10_000,
    }
    duo.add("authentication", json.dumps({**long, "user": names}, ensure_ascii=False))
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms - 7 * HOUR_MS))
    return duo
