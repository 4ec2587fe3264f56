"""--missing-from beside a service that appends to the same file: neither repeats the other."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import (
    ALL,
    HOUR,
    MINUTE,
    NONE,
    ONLY,
    V1,
    append,
    collect,
    differences,
    events_in,
    fill,
    in_ms,
    instant,
    mend,
    now_ms,
    odd,
    told,
    wait_for,
)
from duo import LOG_TYPES, make_events


def split(at_ms, log_type):
    """Events of the instants around this one, which is where the service's next pass starts."""
    steps = (-1000, -1, 0, 1, 1000) if log_type not in V1 else (-1000, 0, 1000)
    return [event for step in steps for event in instant(log_type, 2, at_ms + step, spread_us=0)]


@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
def test_the_range_ends_where_the_next_pass_starts(duo, collector, file, mintime):
    """To the ms or the second, whichever the log counts in: neither leaves out what the other
    leaves to it."""
    duo.rules.v1_mintime = mintime
    fill(duo, LOG_TYPES, 20, hours=(6, 1))
    collect(duo, collector, file)
    starts = {log_type: collector.saved["state"][log_type]["start_ms"] for log_type in LOG_TYPES}
    for log_type, start_ms in starts.items():
        assert start_ms < now_ms() - 6 * MINUTE
        duo.add(log_type, split(start_ms, log_type))
    result = mend(collector, file, "--log-types", ALL)
    assert result.status == 0, result.stderr
    for log_type, start_ms in starts.items():
        early = [event for event in split(start_ms, log_type) if in_ms(log_type, event) < start_ms]
        assert told(result)[log_type][2] == len(early), log_type
    assert append(collector, file, "--once", "--log-types", ALL).status == 0
    assert differences(duo, events_in(file)) == NONE


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_an_event_without_a_time_is_written_by_one_of_the_two(duo, collector, file, log_type):
    fill(duo, log_type, 20, hours=(6, 1))
    collect(duo, collector, file, [log_type])
    start_ms = collector.saved["state"][log_type]["start_ms"]
    for number, age_ms in enumerate((HOUR, 2 * MINUTE, -MINUTE, -2 * MINUTE)):
        duo.add(log_type, [odd(log_type, number)], at_ms=start_ms - age_ms)
    duo.add(log_type, make_events(log_type, 3, start_ms + MINUTE, start_ms + 2 * MINUTE, seed=8))
    for _ in range(2):
        assert mend(collector, file, "--log-types", log_type).status == 0
        assert append(collector, file, "--once", "--log-types", log_type).status == 0
    found = differences(duo, events_in(file), [log_type])
    # A v1 log has no maxtime: nobody can tell on which side of the end an event without a time is.
    repeated = 4 if log_type in V1 else 0
    assert (found["lost"], found["doubled"] <= repeated) == (0, True), found


@contextlib.contextmanager
def service(collector, path, *options):
    """The long-running collector, appending to the file for a block."""
    with open(path, "ab") as stdout:
        process = collector.start("--interval", "0.3", *options, stdout=stdout)
    try:
        yield process
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr.decode()


TROUBLE = {
    "nothing": {},
    "faults": {
        "fault_rate": 0.12,
        "fault_kinds": ("reset", "cut", "truncated", "error_503", "error_500", "no_metadata"),
    },
    "limits": {"rate_limit": 12, "rate_window_s": 2.0, "retry_after": "seconds"},
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_beside_a_running_service_each_event_is_written_once(duo, collector, file, trouble):
    fill(duo, LOG_TYPES, 150, hours=(6, 1))
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms() - 7 * HOUR))
    collector.environ.update(DUO_LOG_TYPES=ALL, DUO_LOOKBACK="60")
    statuses, number, draw = [], 100, random.Random(trouble)
    with service(collector, file):
        wait_for(lambda: differences(duo, events_in(file)) == NONE, "first pass", 40)
        for name, value in TROUBLE[trouble].items():
            setattr(duo.rules, name, value)
        for _ in range(3):
            held = file.stat().st_size
            process = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    f'exec "$@" >>{file}',
                    "sh",
                    *collector.command("--since", "48h", "--missing-from", file),
                ],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=collector.environ,
            )
            while process.poll() is None:  # on time, late within the lookback, hours late
                for log_type in draw.sample(sorted(LOG_TYPES), 3):
                    for age_s, span_s in ((125, 4), (170, 20), (4_000, 12_000)):
                        number, end_ms = number + 1, now_ms() - age_s * 1000
                        duo.add(
                            log_type,
                            make_events(log_type, 2, end_ms - span_s * 1000, end_ms, seed=number),
                        )
                time.sleep(0.2)
            statuses.append(process.returncode)
            assert process.returncode in (0, 75), process.stderr.read().decode()
            process.stderr.close()
        assert file.stat().st_size > held
        duo.rules.fault_rate, duo.rules.rate_limit = 0.0, None
        time.sleep(1)
    assert append(collector, file, "--once").status == 0
    result = mend(collector, file)
    assert (result.status, differences(duo, events_in(file))) == (0, NONE), result.stderr
    assert number > 120


def test_a_run_that_is_killed_is_run_again(duo, collector, file):
    fill(duo, "telephony", 2_400, hours=(6, 1))
    fill(duo, "administrator", 300, hours=(6, 1))
    duo.rules.v1_limit = 50
    collector.environ["DUO_LOG_TYPES"] = "telephony,administrator"
    collect(duo, collector, file, ["telephony", "administrator"])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join({*(line for line in lines if sum(line) % 2), *last_of_each(lines)}))
    sizes = [file.stat().st_size]
    checkpoints = collector.checkpoint_file.read_bytes()
    for pages in (1, 2):
        duo.inject("telephony", *[None] * pages, lambda handler: time.sleep(2))
        duo.inject("administrator", *[None] * pages, lambda handler: time.sleep(2))
        duo.requests.clear()
        with open(file, "ab") as stdout:
            process = collector.start("--since", "48h", "--missing-from", file, stdout=stdout)
        wait_for(
            lambda: any(request.fault is not None for request in duo.requests), "request that hangs"
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
        duo._injected.clear()
        sizes.append(file.stat().st_size)
    assert sizes == sorted(set(sizes)), "each of the killed runs wrote something"
    result = mend(collector, file)
    assert (result.status, differences(duo, events_in(file), ["telephony", "administrator"])) == (
        0,
        NONE,
    ), result.stderr
    assert collector.checkpoint_file.read_bytes() == checkpoints
    assert append(collector, file, "--once").status == 0
    assert differences(duo, events_in(file), ["telephony", "administrator"]) == NONE


def last_of_each(lines):
    """The line of each log type that stands last: what the service knows, and will not write
    again."""
    return {json.loads(line)["eventtype"]: line for line in lines}.values()


def test_nothing_is_changed_and_no_lock_is_taken(duo, collector, file):
    fill(duo, LOG_TYPES, 50, hours=(6, 1))
    collect(duo, collector, file, ["telephony"])
    fill(duo, "telephony", 30, hours=(6, 1), seed=5)
    collector.environ["DUO_LOG_TYPES"] = "telephony"
    folder = collector.checkpoint_file.parent
    copy = folder / "copy.json"
    shutil.copy2(collector.checkpoint_file, copy)
    before = collector.checkpoint_file.stat()
    names = sorted(os.listdir(folder))
    folder_time = folder.stat().st_mtime_ns
    duo.rules.latency_s = 0.5
    with open(file, "ab") as stdout:
        both = [
            collector.start(
                "--since", "48h", "--missing-from", "/dev/null", stdout=subprocess.DEVNULL
            )
            for _ in "ab"
        ]
        both.append(collector.start("--since", "48h", "--missing-from", file, *ONLY, stdout=stdout))
    ends = [process.communicate(timeout=30)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], ends
    after = collector.checkpoint_file.stat()
    assert collector.checkpoint_file.read_bytes() == copy.read_bytes()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (sorted(os.listdir(folder)), folder.stat().st_mtime_ns) == (names, folder_time)
    assert differences(duo, events_in(file), ["telephony"]) == NONE
