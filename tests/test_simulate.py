"""The simulation of whole years."""

import os
import subprocess
import sys

import pytest
from conftest import SCRIPT
from simulation import DISTURBANCES

# Whole lives. A failure prints the command that replays it; see README.md.


def simulate(*arguments):
    """tests/simulate, as it is called by hand."""
    command = [sys.executable, str(SCRIPT.parent / "tests" / "simulation"), *map(str, arguments)]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        timeout=600,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_some_days_full_of_trouble(seed):
    status, said = simulate("--seed", seed, "--until", "6d", "--often", 8)
    assert status == 0, said


BROKEN = {  # what is written instead of what, the disturbance that shows it, and words of the failure
    "an event is lost": (
        "min(self.since_ms - lookback_ms, newest_ms)", "self.since_ms - lookback_ms", "pipeline_stall", "was written 0 times"),
    "an event is written twice": (" and identity not in state.written:", ":", "late", "was written 2 times"),
    "another tenant's file is taken": (
        "if settings.base_url and owner != settings.account:", "if False:", "another_tenant", "another tenant's keys"),
    "a log type starts twice with --once": (
        "yield math.inf if self.run.once else", "yield", "reconfigure,rate_limit,since_back", "passes in it"),
    "a first run by a clock that is behind fails each time": (
        "if walk.pages or opened == 3 or abs(duo.clock_offset_s - known_s) <= JITTER_S:", "if True:",
        "first_run,clock_step", "asked for what it does not serve"),
    "a proxy's Date stays": (
        "self.clock_offset_s = self.accepted_s\n", "self.clock_offset_s = known_s\n", "proxy_date,date_outage",
        "Duo refuses the date, though all has been well"),
    "Duo's time is told by the ping alone": (
        "            self.fetch_page(log_type, Walk(log_type, until_ms - 60_000", '            raise Failed("no time") from None  # (("',
        "no_ping,clock_step,replay", "does not get on"),
    "a new file is not synced": ("            os.fsync(file.fileno())\n", "", "power_failure,kill", "ended with 78"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_the_simulation_can_fail(what, tmp_path):
    right, wrong, disturbance, words = BROKEN[what]
    text = SCRIPT.read_text()
    assert text.count(right) == 1
    (tmp_path / "duo_collector.py").write_text(text.replace(right, wrong))
    needed = {*disturbance.split(","), "late"}
    without = ",".join(name for name in DISTURBANCES if name not in needed)
    status, said = simulate(
        "--module",
        tmp_path / "duo_collector.py",
        "--seed",
        1,
        "--until",
        "20d",
        "--often",
        12,
        "--without",
        without,
    )
    assert (status, words in said, "replay: tests/simulate --seed 1" in said) == (1, True, True), (
        said
    )
