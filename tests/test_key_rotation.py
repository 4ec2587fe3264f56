"""A key that is rotated while the collector runs."""

import pytest
from conftest import ONLY, fill, now_ms, wait_for
from duo import make_events

NEW_KEY = "0123456789abcdef" * 2 + "01234567"


def rotate(duo):
    """Give the application another key, and publish an event for the next pass."""
    duo.skey = NEW_KEY
    end_ms = now_ms() - 130_000
    duo.add("telephony", make_events("telephony", 1, end_ms - 1000, end_ms, seed=3))


def read_until(process, words):
    """The lines of stderr up to one that has these words."""
    lines = []
    for line in process.stderr:
        lines.append(line.decode())
        if words in lines[-1]:
            return lines
    pytest.fail(f"{words} is not in {lines}")


def test_a_key_file_is_read_again_when_duo_refuses_the_key(duo, collector, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(duo.skey + "\n")
    key_file.chmod(0o600)
    fill(duo, "telephony", 5)
    environ = {"DUO_SECRET_KEY": None, "DUO_SECRET_KEY_FILE": str(key_file)}
    path = tmp_path / "out"
    with open(path, "wb") as file:
        process = collector.start("--interval", "0.3", *ONLY, environ=environ, stdout=file)
    try:
        wait_for(lambda: path.read_bytes().count(b"\n") == 5, "events")
        rotate(duo)
        key_file.write_text(NEW_KEY)
        wait_for(lambda: path.read_bytes().count(b"\n") == 6, "an event read with the new key")
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_key_that_came_another_way_needs_a_restart(duo, collector):
    fill(duo, "telephony", 5)
    process = collector.start("--interval", "0.3", *ONLY)
    try:
        read_until(process, "5 events")
        rotate(duo)
        lines = read_until(process, "ERROR")
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert "they worked before: if the key was changed, restart this process" in lines[-1]


def test_a_key_file_that_all_users_can_read_is_warned_of(duo, collector, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(duo.skey)
    environ = {"DUO_SECRET_KEY": None, "DUO_SECRET_KEY_FILE": str(key_file)}
    for mode, warned in ((0o644, True), (0o640, False), (0o600, False)):
        key_file.chmod(mode)
        result = collector.once(*ONLY, environ=environ)
        assert (result.status, "chmod 600 it" in result.stderr) == (0, warned), result.stderr
