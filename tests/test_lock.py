"""Two runs at once: one lock a checkpoint file."""

import shutil
import time

import pytest
from conftest import ONLY, fill_and_seed, finish, log_requests, repeated_and_torn, wait_for


@pytest.mark.parametrize(
    "spelling", ["checkpoints.json", "../here/./checkpoints.json", "link.json"]
)
def test_second_run_on_a_checkpoint_file_is_75_at_once_and_the_first_goes_on(
    duo, collector, tmp_path, spelling
):
    here = tmp_path / "here"
    here.mkdir()
    fill_and_seed(duo, collector, 10, "telephony")
    collector.checkpoint_file = collector.checkpoint_file.rename(here / "checkpoints.json")
    collector.environ["DUO_CHECKPOINT_FILE"] = str(collector.checkpoint_file)
    (here / "link.json").symlink_to("checkpoints.json")
    duo.rules.stall_s = 2
    duo.inject("telephony", "stall")  # the first is at work when the second comes
    with open(tmp_path / "events", "ab") as file:
        first = collector.start("--once", *ONLY, stdout=file)
    wait_for(lambda: log_requests(duo), "request")
    before = collector.checkpoint_file.read_bytes()
    began = time.monotonic()
    second = collector.once(*ONLY, "--checkpoint-file", spelling, cwd=here)
    assert time.monotonic() - began < 5
    assert (second.status, second.stdout, second.stderr.count("\n")) == (75, "", 1), second.stderr
    assert str(collector.checkpoint_file.resolve()) in second.stderr
    assert (len(log_requests(duo)), collector.checkpoint_file.read_bytes()) == (1, before)
    assert finish(first).status == 0
    assert repeated_and_torn((tmp_path / "events").read_bytes(), duo, "telephony") == ([], [])


def test_a_killed_run_leaves_no_lock_and_other_checkpoint_files_are_free(duo, collector, tmp_path):
    fill_and_seed(duo, collector, 10, "telephony")
    duo.rules.stall_s = 60
    duo.inject("telephony", "stall")
    first = collector.start("--once", *ONLY)
    wait_for(lambda: log_requests(duo), "request")
    other = shutil.copy(collector.checkpoint_file, tmp_path / "other.json")
    beside = collector.once(*ONLY, "--checkpoint-file", other)
    assert (beside.status, len(beside.events)) == (0, 10), beside.stderr
    first.kill()
    finish(first)
    after = collector.once(*ONLY)
    assert (after.status, after.stdout) == (0, beside.stdout), after.stderr


def test_another_run_is_named(duo, collector):
    assert collector.once().status == 0  # whose number is in the lock file, too
    duo.requests.clear()
    duo.rules.latency_s = 5.0
    process = collector.start("--once")
    wait_for(lambda: log_requests(duo), "first request")
    result = collector.once()
    process.kill()
    process.communicate()
    assert (result.status, f"another run (process {process.pid}) holds " in result.stderr) == (
        75,
        True,
    ), result.stderr
