"""How the checkpoint file is replaced, and folders where it cannot be."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading

import pytest
from conftest import (
    HOUR,
    ONLY,
    fill,
    fill_and_seed,
    finish,
    now_ms,
    repeated_and_torn,
    under_strace,
    wait_for,
    without_privileges,
)


def test_full_disk_under_the_checkpoint_file_is_74_and_leaves_it_whole(duo, collector, cramped):
    folder, limit, _ = cramped
    fill_and_seed(duo, collector, 100, "telephony")
    # A save needs more than there is, by either way of having little.
    document = {**collector.saved, "note": "x" * (2_000_000 if limit else 20_000)}
    file, filler = folder / "kept.json", folder / "filler"
    file.write_text(json.dumps(document))
    before = file.read_bytes()
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as fill_up:
        while not limit:
            fill_up.write(bytes(4096))
    environ = {"DUO_CHECKPOINT_FILE": str(file)}
    result = finish(collector.shell(f'{limit}exec "$@"', "--once", *ONLY, environ=environ))
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert str(file) in result.stderr
    assert file.read_bytes() == before
    filler.unlink()
    last = collector.once(*ONLY, environ=environ)
    assert last.status == 0
    assert repeated_and_torn(last.stdout.encode(), duo, "telephony") == ([], [])
    assert sorted(path.name for path in folder.iterdir() if "kept" in path.name) == [
        ".kept.json.lock",
        "kept.json",
    ]


def test_full_disk_for_what_only_people_need_is_no_reason_to_stop(duo, collector, small_disk):
    file = small_disk / "kept.json"
    collector.environ["DUO_CHECKPOINT_FILE"] = str(file)
    assert collector.once(*ONLY).status == 0
    before, duo.rules.no_permission = file.read_bytes(), True
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    process = collector.start("--interval", "0.2", *ONLY)
    wait_for(
        lambda: [request.status for request in duo.requests].count(403) >= 3, "three refused passes"
    )
    process.send_signal(signal.SIGTERM)
    assert finish(process).status == 0
    assert file.read_bytes() == before


def test_checkpoint_file_is_never_seen_missing_or_half_and_never_goes_back(
    duo, collector, small_pages
):
    small_pages(25)
    fill_and_seed(duo, collector, 1000, "telephony")
    document = {**collector.saved, "note": "x" * 300_000}  # half of it can be seen
    collector.checkpoint_file.write_text(json.dumps(document))
    seen, process = [], collector.start("--once", *ONLY)
    reader = threading.Thread(target=process.stdout.read)  # or the pipe would fill
    reader.start()
    while process.poll() is None:
        seen.append(collector.saved["TELEPHONY_SINCE_TIME"])
    reader.join()
    assert finish(process).status == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_mode_owner_and_link_of_the_checkpoint_file_are_kept_and_nothing_else_is_left(
    duo, collector, tmp_path
):
    kept = tmp_path / "kept"
    kept.mkdir()
    fill_and_seed(duo, collector, 10, "telephony")
    target = collector.checkpoint_file.rename(kept / "target.json")
    collector.checkpoint_file.symlink_to(target)
    target.chmod(0o640)
    if os.getuid() == 0:
        os.chown(target, 12345, 23456)
    before = target.stat()
    assert collector.once(*ONLY).status == 0
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert collector.checkpoint_file.is_symlink()
    assert collector.since("telephony") > duo.now_ms() - HOUR
    assert sorted(path.name for path in kept.iterdir()) == [".target.json.lock", "target.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints.json", "kept"]


@pytest.mark.parametrize("kind", ["garbage", "link"])
def test_leftovers_of_a_killed_run_do_no_harm(duo, collector, tmp_path, kind):
    """What a kill in the middle of a save leaves; or what somebody laid there for us to write
    into."""
    fill_and_seed(duo, collector, 10, "telephony")
    left, elsewhere = tmp_path / "checkpoints.json.new", tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    if kind == "link":
        left.symlink_to(elsewhere)
    else:
        left.write_text('{"TELEPHONY_SINCE_TIME": 16')
        left.chmod(0)
    (tmp_path / ".checkpoints.json.lock").write_text("12345\n")
    result = collector.once(*ONLY)
    assert (result.status, len(result.events)) == (0, 10), result.stderr
    assert elsewhere.read_text() == "mine"
    assert not os.path.lexists(left)
    assert collector.since("telephony") > duo.now_ms() - HOUR


def test_a_folder_that_may_not_be_read_is_told_before_anything_is_written(duo, collector, tmp_path):
    fill(duo, "telephony", 50)
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o300)
    without_privileges(collector)
    collector.environ["DUO_CHECKPOINT_FILE"] = str(folder / "checkpoints.json")
    results = [collector.once(*ONLY) for _ in range(2)]
    folder.chmod(0o700)
    assert [(result.status, len(result.events)) for result in results] == [(78, 0), (78, 0)], (
        results[0].stderr
    )
    assert f"no permission to read and write folder {folder}" in results[0].stderr
    assert duo.requests == []


def test_a_folder_that_knows_no_fsync_is_good_enough(duo, collector, tmp_path):
    """As some shared folders are: fsync of the folder answers EINVAL, and nothing is wrong."""
    fill(duo, "telephony", 50)
    folder, trace = tmp_path / "state", tmp_path / "trace"
    folder.mkdir()
    collector.environ["DUO_CHECKPOINT_FILE"] = str(folder / "checkpoints.json")
    under_strace(
        collector, trace, "-P", str(folder), "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL"
    )
    results = [collector.once(*ONLY) for _ in range(2)]
    assert "EINVAL" in trace.read_text()
    assert [(result.status, len(result.events)) for result in results] == [(0, 50), (0, 0)], (
        results[0].stderr
    )


@pytest.mark.parametrize("mode", ["--once", "--check"])
def test_a_folder_that_is_missing_is_told_with_the_command_that_makes_it(
    duo, collector, tmp_path, mode
):
    folder = tmp_path / "var" / "acme"
    result = collector.run(mode, environ={"DUO_CHECKPOINT_FILE": str(folder / "checkpoints.json")})
    line = (result.stdout if mode == "--check" else result.stderr).splitlines()[-1]
    assert (result.status, f"mkdir -p {folder}" in line) == (78, True), line
    assert not folder.exists() and (mode == "--check" or duo.requests == [])


def test_a_checkpoint_file_that_cannot_be_replaced_is_refused_before_anything_is_written(
    duo, collector, tmp_path
):
    """A file that is mounted into a container: saving would fail after each page, and each run
    would repeat it."""
    fill(duo, "telephony", 20)
    collector.seed(telephony=now_ms() - 7 * HOUR)
    (tmp_path / "other").mkdir()
    mounts = f"mount -t tmpfs none '{tmp_path}/other' && cp '{collector.checkpoint_file}' '{tmp_path}/other/file'"
    mounts += f" && mount --bind '{tmp_path}/other/file' '{collector.checkpoint_file}'"
    unshare = ["unshare", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, mounts], capture_output=True).returncode
    ):
        pytest.skip("no unshare, or no right to mount")
    command = collector.command
    collector.command = lambda *options: [
        *unshare,
        f'{mounts} && exec "$@"',
        "sh",
        *command(*options),
    ]
    result = collector.once(*ONLY)
    assert (result.status, result.stdout, duo.requests) == (78, "", []), result.stderr
    assert "mount its folder instead" in result.stderr
    result = collector.run("--check", *ONLY)
    assert (result.status, "mount its folder instead" in result.stdout) == (78, True), result.stdout
