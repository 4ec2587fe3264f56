"""Files of another user: a message says whose they are, and never to move them away."""

import os
import pathlib
import tempfile

import pytest
from conftest import ONLY, now_ms, under, works

NOBODY = 65534
AS_NOBODY = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]


@pytest.fixture
def as_nobody(collector):
    """The collector as another user than who owns its files; pytest's folders admit no other."""
    if os.geteuid() != 0 or not works(*AS_NOBODY, "true"):
        pytest.skip("needs root and setpriv, to run as another user")
    under(collector, *AS_NOBODY)
    if not works(*collector.command("--version")):
        pytest.skip("user 65534 may not read the collector or its Python here")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        collector.checkpoint_file = pathlib.Path(folder).resolve() / "checkpoints.json"
        collector.environ["DUO_CHECKPOINT_FILE"] = str(collector.checkpoint_file)
        yield collector


@pytest.mark.parametrize("options", [["--once"], ["--check"], ["--status"]], ids=" ".join)
def test_a_checkpoint_file_of_another_user(duo, as_nobody, options):
    collector = as_nobody
    collector.seed(telephony=now_ms())
    collector.checkpoint_file.chmod(0o600)
    result = collector.run(*options, *ONLY)
    assert (result.status, duo.requests) == (78, []), result.stderr
    (line,) = result.stderr.splitlines()
    assert f"checkpoint file {collector.checkpoint_file} cannot be read: " in line
    assert "it belongs to user root, and this is nobody: run as its owner, or chown it" in line
    assert "move it away" not in line and "JSON" not in line


def test_a_lock_of_another_user(duo, as_nobody):
    collector = as_nobody
    lock = collector.checkpoint_file.with_name(".checkpoints.json.lock")
    lock.touch(0o600)
    result = collector.once(*ONLY)
    assert (result.status, duo.requests) == (78, []), result.stderr
    assert f"{lock} belongs to root: chown it, or remove it" in result.stderr


def test_a_folder_of_another_user(duo, as_nobody):
    collector = as_nobody
    folder = collector.checkpoint_file.parent
    os.chown(folder, 0, 0)
    result = collector.once(*ONLY)
    assert (result.status, duo.requests) == (78, []), result.stderr
    assert f"folder {folder}: it belongs to root, and this is nobody" in result.stderr


def test_a_folder_above_that_no_other_user_may_enter(duo, as_nobody):
    """Not "there is no such folder": mkdir would not help."""
    collector = as_nobody
    above = collector.checkpoint_file.parent
    folder = above / "state"
    folder.mkdir()
    os.chown(above, 0, 0)
    path = str(folder / "checkpoints.json")
    result = collector.once(*ONLY, environ={"DUO_CHECKPOINT_FILE": path})
    assert (result.status, duo.requests) == (78, []), result.stderr
    assert f"no permission to enter a folder above {folder}: it belongs to root" in result.stderr
    assert "mkdir" not in result.stderr


def test_a_folder_in_place_of_the_checkpoint_file(duo, collector):
    collector.checkpoint_file.mkdir()
    result = collector.once(*ONLY)
    words = f"checkpoint file {collector.checkpoint_file} is a folder: name a file in it"
    assert (result.status, words in result.stderr) == (78, True), result.stderr
    assert "move it away" not in result.stderr
