"""Fixtures of the tests of deploy/."""

import pytest

from deploy.machine import booted


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
