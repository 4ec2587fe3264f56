"""Kills: nothing is lost, and at most the page in progress is repeated."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from datetime import datetime

import pytest
from conftest import (
    DEFAULT,
    HOUR,
    ONLY,
    fill_and_seed,
    finish,
    log_requests,
    repeated_and_torn,
    run_until,
)


def largest_page(duo):
    return max(request.events for request in duo.requests)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_types", "count", "page", "span_ms", "lookback"),
    [
        (DEFAULT, 2000, 60, 5 * HOUR, "300"),
        (
            DEFAULT[:1],
            14_000,
            100,
            5000,
            "0",
        ),  # many events a ms, and none to spare around a checkpoint
    ],
    ids=["three_log_types", "one_log_type"],
)
def test_sigkill_at_random_instants_loses_nothing_and_repeats_at_most_a_page_each(
    duo, collector, tmp_path, small_pages, log_types, count, page, span_ms, lookback
):
    chance, output, kills = random.Random(count), tmp_path / "events", 0
    small_pages(page)
    duo.rules.short_pages = len(log_types) > 1
    duo.rules.latency_s = 0.008  # or a fast machine is through before the last kill
    fill_and_seed(duo, collector, count, *log_types, hours=(1 + span_ms / HOUR, 1))
    collector.environ["DUO_LOOKBACK"] = lookback
    options = ("--once", "--log-types", ",".join(log_types))
    for _ in range(26):
        with open(output, "ab") as file:
            process = collector.start(*options, stdout=file)
        goal = len(log_requests(duo)) + chance.choice(
            [0, 1, 1, 2, 2, 3]
        )  # 0: somewhere in its start
        started = goal > len(log_requests(duo))
        run_until(process, lambda goal=goal: len(log_requests(duo)) >= goal)
        time.sleep(chance.random() * (0.015 if started else 0.3))
        process.kill()
        kills += finish(process).status == -signal.SIGKILL
    assert kills >= 25
    with open(output, "ab") as file:
        assert collector.run(*options, stdout=file).status == 0
    again, torn = repeated_and_torn(output.read_bytes(), duo, *log_types)
    assert len(again) <= kills * largest_page(duo)
    assert len(torn) <= kills


@pytest.mark.parametrize("cut", [0, 50], ids=["whole", "torn"])
def test_killed_between_write_and_save_exactly_that_page_comes_again(
    duo, collector, tmp_path, small_pages, cut
):
    output, size = tmp_path / "events", 100
    small_pages(size)
    fill_and_seed(duo, collector, 3000, "telephony")
    # What else is in the file stays there; so much of it makes a save long enough to be met.
    document = {**collector.saved, "note": "x" * 4_000_000}
    collector.checkpoint_file.write_text(json.dumps(document))
    with open(output, "ab") as file:
        process = collector.start("--once", *ONLY, stdout=file)
    while True:
        seen = output.stat().st_size
        if not run_until(process, lambda seen=seen: output.stat().st_size > seen):
            pytest.fail(f"never met between a write and a save: {finish(process).stderr}")
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # from now on nothing moves
        written = output.read_bytes()
        lines = written.splitlines(keepends=True)
        if written.endswith(b"\n") and len(lines) % size == 0:
            with contextlib.suppress(ValueError):
                when = datetime.fromisoformat(json.loads(lines[-1])["ts"])
                if collector.since("telephony") < int(when.timestamp() * 1000):
                    break
        process.send_signal(signal.SIGCONT)
    process.kill()
    assert finish(process).status == -signal.SIGKILL
    os.truncate(output, len(written) - cut)  # as if it had come a moment earlier, amid the write
    document = collector.saved
    collector.checkpoint_file.write_text(json.dumps({**document, "note": ""}))
    with open(output, "ab") as file:
        assert collector.once(*ONLY, stdout=file).status == 0
    again, torn = repeated_and_torn(output.read_bytes(), duo, "telephony")
    *whole, rest = written[: len(written) - cut].split(b"\n")
    page = whole[-size:] if not cut else whole[1 - size :]
    assert (sorted(again), torn) == (sorted(page), [rest] if cut else [])


def test_a_page_is_on_the_disk_before_its_checkpoint(duo, collector, tmp_path, small_pages):
    trace, output = tmp_path / "trace", tmp_path / "events"
    calls = "trace=write,fsync,?fdatasync,?rename,?renameat,?renameat2"
    strace = f"strace -f -y -o '{trace}' -e {calls}"
    if (
        not shutil.which("strace")
        or subprocess.run(f"{strace} true", shell=True, capture_output=True).returncode
    ):
        pytest.skip("no strace, or no right to use it")
    small_pages(100)
    duo.rules.last_cursor = "null"  # so that each page has events
    fill_and_seed(duo, collector, 300, "telephony")
    with open(output, "ab") as file:
        assert (
            finish(collector.shell(f'exec {strace} "$@"', "--once", *ONLY, stdout=file)).status == 0
        )
    new, done = f"{collector.checkpoint_file}.new", []
    names = {str(output): "events", new: "new", str(tmp_path): "folder"}
    for call, path in re.findall(
        r"(write|f\w*sync|rename)\w*\((?:\d+<([^>]*)>)?", trace.read_text()
    ):
        step = f"{call} {names.get(path, '')}".strip()
        if (call == "rename" or path in names) and step not in done[-1:]:
            done.append(step)
    one = ["write new", "fsync new", "write events", "fsync events", "rename", "fsync folder"]
    assert done == one * 3
