"""stdout: full disks, closed pipes, slow readers, torn lines."""

import json
import os
import subprocess
import time
from datetime import datetime

import pytest
from conftest import (
    HOUR,
    MINUTE,
    ONLY,
    events_in,
    fill,
    fill_and_seed,
    finish,
    log_requests,
    now_ms,
    repeated_and_torn,
    wait_for,
    without_privileges,
)
from duo import make_events

LOOP, ONCE = ("--interval", "600"), ("--once",)


@pytest.mark.parametrize("mode", [ONCE, LOOP], ids=["once", "loop"])
def test_closed_pipe_is_74_in_one_line_and_the_checkpoint_stays(duo, collector, mode):
    fill_and_seed(duo, collector, 1000, "telephony")
    before = collector.checkpoint_file.read_bytes()
    process = collector.start(*mode, *ONLY)
    head = subprocess.run(
        ["head", "-c", "100"], stdin=process.stdout, capture_output=True, check=True
    )
    process.stdout.close()
    process.stdout = None  # or communicate would read it
    result = finish(process)
    assert len(head.stdout) == 100
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert collector.checkpoint_file.read_bytes() == before


@pytest.mark.parametrize(
    ("redirection", "requests"),
    [(">/dev/full", 1), (">&-", 0), (">&- 2>&-", 0), ("1</dev/null", 1)],
)
def test_unwritable_stdout_is_74_and_the_checkpoint_stays(duo, collector, redirection, requests):
    if not os.path.exists("/dev/full") and "/dev/full" in redirection:
        pytest.skip("no /dev/full here")
    fill_and_seed(duo, collector, 10, "telephony")
    before = collector.checkpoint_file.read_bytes()
    result = finish(collector.shell(f'exec "$@" {redirection}', "--once", *ONLY))
    assert (result.status, len(log_requests(duo))) == (74, requests), result.stderr
    assert result.stderr.count("\n") == (0 if "2>" in redirection else 1)
    assert collector.checkpoint_file.read_bytes() == before


def test_nonblocking_pipe_with_a_slow_reader_brings_everything(duo, collector):
    fill_and_seed(duo, collector, 2000, "telephony")
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    process = collector.start("--once", *ONLY, stdout=write_end)
    os.close(write_end)
    received = bytearray()
    while True:
        piece = os.read(read_end, 8192)
        if not piece:
            break
        received += piece
        time.sleep(0.002)
    os.close(read_end)
    assert finish(process).status == 0
    assert repeated_and_torn(bytes(received), duo, "telephony") == ([], [])


def test_full_disk_is_74_and_after_making_room_all_goes_on_on_a_new_line(
    duo, collector, cramped, small_pages
):
    folder, limit, make_room = cramped
    output, size = folder / "events", 200
    small_pages(size)
    fill_and_seed(duo, collector, 2000, "authentication")
    before = collector.since("authentication")
    options = ("--once", "--log-types", "authentication")
    with open(output, "ab") as file:
        result = finish(collector.shell(f'{limit}exec "$@"', *options, stdout=file))
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert "stdout" in result.stderr
    full = output.read_bytes()
    assert not full.endswith(b"\n"), "the disk was full at the end of a line: choose other events"
    whole = full.count(b"\n") // size * size
    when = datetime.fromisoformat(json.loads(full.split(b"\n")[whole - 1])["isotimestamp"])
    assert collector.since("authentication") == int(when.timestamp() * 1000) > before
    make_room()
    with open(output, "ab") as file:
        assert collector.run(*options, stdout=file).status == 0
    again, torn = repeated_and_torn(output.read_bytes(), duo, "authentication")
    assert len(again) == full.count(b"\n") - whole
    assert torn == [full.split(b"\n")[-1]]


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "reader gone", "<&-"])
def test_events_come_without_a_log_or_an_input(duo, collector, streams):
    if not os.path.exists("/dev/full") and "/dev/full" in streams:
        pytest.skip("no /dev/full here")
    fill_and_seed(duo, collector, 100, "telephony")
    if streams == "reader gone":
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = collector.shell('exec "$@"', "--once", *ONLY, stderr=write_end)
        os.close(write_end)
    else:
        process = collector.shell(f'exec "$@" {streams}', "--once", *ONLY)
    result = finish(process)
    assert repeated_and_torn(result.stdout.encode(), duo, "telephony") == ([], [])
    assert result.status == 0


def test_a_file_that_may_be_written_and_not_read_gets_no_empty_line(duo, collector, tmp_path):
    path = tmp_path / "events.jsonl"
    without_privileges(collector)
    collector.seed(telephony=now_ms() - HOUR)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o200), "ab") as file:
        for seed in range(3):
            at_ms = now_ms() - 4 * MINUTE
            duo.add("telephony", make_events("telephony", 2, at_ms, at_ms + 1000, seed=seed))
            assert collector.once(*ONLY, stdout=file).status == 0
    path.chmod(0o600)
    lines = path.read_bytes().splitlines()
    assert (len(lines), lines.count(b"")) == (6, 0)


def test_a_line_that_a_killed_run_left_is_ended_by_the_service(duo, collector, tmp_path):
    """--missing-from appends to the file of a running service, and is killed, or finds the disk
    full, within a line."""
    collector.seed(telephony=duo.now_ms() - HOUR)
    duo.add(
        "telephony",
        make_events("telephony", 10, duo.now_ms() - 50 * MINUTE, duo.now_ms() - 5 * MINUTE),
    )
    file = tmp_path / "duo.jsonl"
    with open(file, "ab") as stdout:
        service = collector.start(*ONLY, "--interval", "1", stdout=stdout)
        wait_for(lambda: file.read_bytes().count(b"\n") == 10, "the first pass")
        with open(file, "ab") as other:
            other.write(b'{"txid": "half a li')
        duo.add(
            "telephony",
            make_events(
                "telephony", 5, duo.now_ms() - 5 * MINUTE, duo.now_ms() - 4 * MINUTE, seed=9
            ),
        )
        wait_for(lambda: file.read_bytes().count(b"\n") == 16, "the next pass")
        service.terminate()
        service.communicate(timeout=10)
    lines = file.read_bytes().splitlines()
    assert lines[10] == b'{"txid": "half a li' and all(
        json.loads(line) for line in lines[:10] + lines[11:]
    )


# A regular file is written at its end, however it was opened: with `>` and a loop, with systemd's
# StandardOutput=file: or by a supervisor, it has no O_APPEND.


def publish(duo, count, seed):
    """Publish events of the last minutes, which the next pass writes."""
    end_ms = now_ms() - 130_000
    duo.add("telephony", make_events("telephony", count, end_ms - 60_000, end_ms, seed=seed))


def test_a_second_writer_overwrites_nothing(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    fill(duo, "telephony", 40)
    with open(path, "wb") as file:
        process = collector.start(*ONLY, "--interval", "0.3", stdout=file)
    try:
        wait_for(lambda: path.read_bytes().count(b"\n") == 40, "events")
        with open(path, "ab") as other:
            other.write(b'{"written":"by another"}\n')
        publish(duo, 30, seed=7)
        wait_for(lambda: path.read_bytes().count(b"\n") == 71, "later events")
    finally:
        process.terminate()
        process.communicate(timeout=10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"written": "by another"} in lines
    found = [line["telephony_id"] for line in lines if "telephony_id" in line]
    assert sorted(found) == sorted(event["telephony_id"] for event in duo.events("telephony"))


def test_a_file_that_is_truncated_has_no_hole_in_it(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    fill(duo, "telephony", 40)
    with open(path, "wb") as file:
        process = collector.start(*ONLY, "--interval", "0.3", stdout=file)
    try:
        wait_for(lambda: path.read_bytes().count(b"\n") == 40, "events")
        with open(path, "r+b") as file:  # as logrotate's copytruncate does
            file.truncate()
        publish(duo, 30, seed=7)
        wait_for(lambda: path.read_bytes().count(b"\n") == 30, "later events")
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert b"\0" not in path.read_bytes()


def test_a_restart_overwrites_nothing(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    path.touch()
    fill(duo, "telephony", 40)
    for count in (40, 70):
        with open(path, "r+b") as file:  # at its beginning, as with StandardOutput=file:
            assert collector.once(*ONLY, stdout=file).status == 0
        ids = [event["telephony_id"] for event in events_in(path)]
        assert len(set(ids)) == len(ids) == count
        publish(duo, 30, seed=7)
