"""The simulated tenant where Duo's own client cannot vouch for it, and the demo."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pytest
from conftest import SCRIPT

ROOT = SCRIPT.parent

# The demo


def demo_environment(home):
    return {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb"}


@pytest.fixture
def terminal():
    """One at a time: in a terminal the demo writes its file."""
    with open(ROOT / "tests" / "demo") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield demo_in_a_terminal


def demo_in_a_terminal(home, columns, interrupt_after_s=None, term="dumb"):
    """(exit status, what the terminal was sent)"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [ROOT / "tests" / "demo"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**demo_environment(home), "TERM": term},
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # all have closed the terminal
            break
        if not piece:
            break
        said += piece
        if interrupt_after_s is not None and b"Collecting" in said:
            time.sleep(interrupt_after_s)
            interrupt_after_s = None
            os.killpg(process.pid, signal.SIGINT)
    os.close(ours)
    return process.wait(timeout=50), said.decode().replace("\r\n", "\n")


def test_the_demo_in_a_pipe_prints_events_alone(tmp_path):
    environment = {**demo_environment(tmp_path), "DUO_LOG_TYPES": "none of Duo's"}
    run = subprocess.run(
        [ROOT / "tests" / "demo"], capture_output=True, text=True, env=environment, timeout=50
    )
    assert run.returncode == 0
    counts = dict.fromkeys(("authentication", "administrator", "telephony"), 0)
    for line in run.stdout.splitlines():
        counts[json.loads(line)["eventtype"]] += 1
    assert set(counts.values()) == {100}
    said = [line.split(" ", 1)[1] for line in run.stderr.splitlines()]
    assert sorted(line.split(":")[0] for line in said) == [
        "INFO administrator",
        "INFO authentication",
        "INFO telephony",
    ]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_the_demo_in_a_terminal_shows_a_few_events_and_what_is_next(term, terminal, tmp_path):
    status, said = terminal(tmp_path, 60, term=term)
    assert status == 0
    before, events, after = re.split(r"shortened.*\n\n|\n\nAll ", said)
    assert ("% " in before.replace(",", " ")) == (term == "xterm"), before
    assert len(re.findall(r"INFO (?:authentication|administrator|telephony): ", before)) == 3
    assert "180 d" not in said
    lines = events.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("{") and len(line) <= 60 for line in lines)
    written = (ROOT / "demo.jsonl").read_text().splitlines()
    assert after.startswith(f"{len(written):,} lines are in demo.jsonl")
    assert all(any(line.startswith(start) for line in written) for start in lines)
    commands = re.findall(r"^  (\S.*)$", after, re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["demo.jsonl", "--check", "README.md"]


def test_the_demo_ends_cleanly_on_ctrl_c(terminal, tmp_path):
    status, said = terminal(tmp_path, 80, interrupt_after_s=1)
    assert status == 75
    assert "stopped by a signal" in said
    assert "Traceback" not in said
    assert "Next" not in said
