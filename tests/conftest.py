"""What the tests share: a simulated tenant, and the collector as its users run it, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]

from duo import Simulator  # noqa: E402

SCRIPT = pathlib.Path(__file__).parent.parent / "duo_collector.py"
CHECKPOINT_KEYS = {
    "authentication": ("AUTH_SINCE_TIME", 1),
    "administrator": ("ADMIN_SINCE_TIME", 1000),
    "telephony": ("TELEPHONY_SINCE_TIME", 1),
    "activity": ("ACTIVITY_SINCE_TIME", 1),
    "offline_enrollment": ("OFFLINE_ENROLLMENT_SINCE_TIME", 1000),
    "trust_monitor": ("TRUST_MONITOR_SINCE_TIME", 1),
}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: mostly waits, so it is started first")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@dataclass
class Result:
    """How a run ended."""

    status: int
    stdout: str
    stderr: str

    @cached_property
    def events(self):
        return [json.loads(line) for line in self.stdout.splitlines()]

    def of(self, log_type):
        """The events of one log type, without the two fields that the collector adds."""
        added = ("eventtype", "host")
        return [
            {name: value for name, value in event.items() if name not in added}
            for event in self.events
            if event["eventtype"] == log_type
        ]


class Collector:
    """Runs duo_collector.py against a simulator, with nothing of this machine's environment."""

    def __init__(self, folder, simulator):
        self.checkpoint_file = folder / "checkpoints.json"
        self.environ = {
            "PATH": os.environ["PATH"],
            "DUO_CHECKPOINT_FILE": str(self.checkpoint_file),
            "DUO_REQUESTS_PER_MINUTE": "60000",
            **simulator.settings,
        }

    def command(self, *options):
        return [sys.executable, str(SCRIPT), "--env-file", "/dev/null", *map(str, options)]

    def start(self, *options, stdout=subprocess.PIPE, environ=None, **more):
        """Start it; an environ value of None takes a variable away."""
        merged = {**self.environ, **(environ or {})}
        return subprocess.Popen(
            self.command(*options),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={name: value for name, value in merged.items() if value is not None},
            **more,
        )

    def run(self, *options, environ=None, timeout=60, **more):
        process = self.start(*options, environ=environ, **more)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            pytest.fail(f"still running after {timeout} s: {stderr.decode()}")
        return Result(process.returncode, (stdout or b"").decode("ascii"), stderr.decode())

    def once(self, *options, **more):
        return self.run("--once", *options, **more)

    def seed(self, **since_ms):
        """Write a checkpoint file with these since times, given in ms for every log type."""
        document = {}
        for log_type, at_ms in since_ms.items():
            key, unit_ms = CHECKPOINT_KEYS[log_type]
            document[key] = at_ms // unit_ms
        self.checkpoint_file.write_text(json.dumps(document))

    def since(self, log_type):
        """Where a log type has got to by the checkpoint file, in its own unit."""
        return json.loads(self.checkpoint_file.read_text())[CHECKPOINT_KEYS[log_type][0]]


def before(collector, statement):
    """Let the collector's process do something before it begins; the rest of it is as ever."""
    code = f"import sys, duo_collector; {statement}; sys.exit(duo_collector.main())"
    collector.environ["PYTHONPATH"] = str(SCRIPT.parent)
    collector.command = lambda *options: [sys.executable, "-c", code, "--env-file", "/dev/null", *map(str, options)]


@pytest.fixture
def duo():
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def collector(tmp_path, duo):
    return Collector(tmp_path, duo)


def wait_for(condition, what, timeout_s=20):
    """Wait until a condition holds, and return what it gives; fail in words when it never does."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"after {timeout_s} s still no {what}")
