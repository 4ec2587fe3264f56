"""Nothing is lost and nothing comes twice: kills, signals, full disks, closed pipes, two runs at once.

All of it with real processes, pipes, files and signals. What needs a right or a tool that is not
everywhere (mount, unshare, strace) is tried, and skipped where it cannot be had.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter

import duo as tenant
import pytest
from conftest import Result, wait_for
from duo import make_events

HOUR_MS = 3_600_000
PROMISE_S = 5  # in which a signal ends it, wherever it is
WHOLE = ["telephony", "authentication", "administrator"]
ONLY = ("--log-types", "telephony")


def fill(duo, collector, count, *log_types, span_ms=5 * HOUR_MS):
    """A backlog of this many events of each log type, and a checkpoint file that is older than all of them."""
    now_ms = duo.now_ms()
    for log_type in log_types:
        duo.add(log_type, make_events(log_type, count, now_ms - HOUR_MS - span_ms, now_ms - HOUR_MS))
    collector.seed(**dict.fromkeys(log_types, now_ms - 7 * HOUR_MS))


@pytest.fixture
def small_pages(duo, monkeypatch):
    """A function that makes Duo's pages small, so that few events take many pages."""

    def shrink(size):
        for name, log in tenant.LOG_TYPES.items():
            monkeypatch.setitem(tenant.LOG_TYPES, name, dataclasses.replace(log, max_limit=size))
        duo.rules.limit, duo.rules.v1_limit = "clamp", size

    return shrink


@pytest.fixture(autouse=True)
def no_survivors(monkeypatch):
    """A test that fails leaves no collector behind, to go on for ever."""
    started, popen = [], subprocess.Popen

    def record(*command, **more):
        started.append(popen(*command, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def shell(collector, script, *options, environ=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    """Start it from a shell, where it is "$@"."""
    command = ["sh", "-c", script, "sh", *collector.command(*options)]
    environ = {**collector.environ, **(environ or {})}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environ)


def finish(process, timeout_s=60):
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {timeout_s} s: {process.communicate()[1]}")
    return Result(process.returncode, (stdout or b"").decode("ascii"), (stderr or b"").decode())


def signalled(process, number):
    """Send the signal; return how it ended, which has to be soon."""
    process.send_signal(number)
    return finish(process, PROMISE_S)


def run_until(process, condition, timeout_s=30):
    """Watch closely, for wait_for is too slow to meet an instant; false where the process ended before."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if condition():
            return True
        time.sleep(0.0005)
    process.kill()
    return pytest.fail(f"nothing met within {timeout_s} s: {finish(process).stderr}")


def key(event):
    return json.dumps(event, sort_keys=True)


def account(output, duo, *log_types):
    """Compare an output with the tenant: nothing may be missing or foreign. Returns the extra lines, and the torn."""
    assert output.endswith(b"\n")
    lines, torn, forms = Counter(), [], {}
    for line in output[:-1].split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            torn.append(line)
            continue
        lines[line] += 1
        assert event.pop("host") == duo.host
        same = forms.setdefault(key(event), line)
        assert same == line, "an event came again in other bytes"
    for fragment in torn:  # merged with an event, it would be the beginning of no line
        assert fragment, "an empty line"
        assert any(line.startswith(fragment) for line in lines), fragment
    published = Counter(key({**event, "eventtype": name}) for name in log_types for event in duo.events(name))
    written = Counter({event: lines[line] for event, line in forms.items()})
    assert not published - written, "lost"
    assert set(written) == set(published), "never published"
    return [forms[event] for event in (written - published).elements()], torn


def largest_page(duo):
    return max(request.events for request in duo.requests)


# Kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_types", "count", "page", "span_ms", "lookback"),
    [
        (WHOLE, 2000, 60, 5 * HOUR_MS, "300"),
        (WHOLE[:1], 14_000, 100, 5000, "0"),  # many events a ms, and none to spare around a checkpoint
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
    fill(duo, collector, count, *log_types, span_ms=span_ms)
    collector.environ["DUO_LOOKBACK"] = lookback
    options = ("--once", "--log-types", ",".join(log_types))
    for _ in range(26):
        with open(output, "ab") as file:
            process = collector.start(*options, stdout=file)
        goal = len(duo.requests) + chance.choice([0, 1, 1, 2, 2, 3])  # 0: somewhere in its start
        started = goal > len(duo.requests)
        run_until(process, lambda goal=goal: len(duo.requests) >= goal)
        time.sleep(chance.random() * (0.015 if started else 0.3))
        process.kill()
        kills += finish(process).status == -signal.SIGKILL
    assert kills >= 25
    with open(output, "ab") as file:
        assert collector.run(*options, stdout=file).status == 0
    again, torn = account(output.read_bytes(), duo, *log_types)
    assert len(again) <= kills * largest_page(duo)
    assert len(torn) <= kills


@pytest.mark.parametrize("cut", [0, 50], ids=["whole", "torn"])
def test_killed_between_write_and_save_exactly_that_page_comes_again(duo, collector, tmp_path, small_pages, cut):
    output, size = tmp_path / "events", 100
    small_pages(size)
    fill(duo, collector, 3000, "telephony")
    # What else is in the file stays there; so much of it makes a save long enough to be met.
    document = {**json.loads(collector.checkpoint_file.read_text()), "note": "x" * 4_000_000}
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
                when = tenant.datetime.fromisoformat(json.loads(lines[-1])["ts"])
                if collector.since("telephony") < int(when.timestamp() * 1000):
                    break
        process.send_signal(signal.SIGCONT)
    process.kill()
    assert finish(process).status == -signal.SIGKILL
    os.truncate(output, len(written) - cut)  # as if it had come a moment earlier, amid the write
    document = json.loads(collector.checkpoint_file.read_text())
    collector.checkpoint_file.write_text(json.dumps({**document, "note": ""}))
    with open(output, "ab") as file:
        assert collector.once(*ONLY, stdout=file).status == 0
    again, torn = account(output.read_bytes(), duo, "telephony")
    *whole, rest = written[: len(written) - cut].split(b"\n")
    page = whole[-size:] if not cut else whole[1 - size :]
    assert (sorted(again), torn) == (sorted(page), [rest] if cut else [])


@pytest.mark.parametrize("mode", [("--once",), ("--interval", "0.05")], ids=["once", "loop"])
def test_sigterm_and_sigint_at_random_instants_lose_and_repeat_nothing(duo, collector, tmp_path, small_pages, mode):
    chance, output = random.Random(str(mode)), tmp_path / "events"
    small_pages(40)
    duo.rules.latency_s = 0.01  # or a fast machine is through before the last signal
    fill(duo, collector, 1500, *WHOLE)
    options = (*mode, "--log-types", ",".join(WHOLE))
    for round_ in range(12):
        with open(output, "ab") as file:
            process = collector.start(*options, stdout=file)
        goal = len(duo.requests) + chance.randint(1, 4)
        assert run_until(process, lambda goal=goal: len(duo.requests) >= goal)
        time.sleep(chance.random() * 0.02)
        result = signalled(process, [signal.SIGTERM, signal.SIGINT][round_ % 2])
        assert result.status == (75 if mode == ("--once",) else 0), result.stderr
        assert not output.read_bytes() or output.read_bytes().endswith(b"\n")
    with open(output, "ab") as file:
        assert collector.once(*options[len(mode) :], stdout=file).status == 0
    assert account(output.read_bytes(), duo, *WHOLE) == ([], [])


# Signals, wherever it is


def in_a_pause(duo, collector):
    before = collector.checkpoint_file.read_text()

    def ready():
        return collector.checkpoint_file.read_text() != before

    return ready


def between_tries(duo, collector):
    duo.rules.fault_kinds, duo.rules.fault_rate = ("error_500",), 1.0
    return lambda: len(duo.requests) >= 2


def in_silence(duo, collector):
    duo.rules.stall_s = 60
    duo.inject("telephony", "stall")
    return lambda: duo.requests


def in_a_trickle(duo, collector):
    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not duo.stopping.wait(0.1):
            handler.wfile.write(b" ")

    duo.inject("telephony", drip)
    return lambda: duo.requests


LOOP, ONCE = ("--interval", "600"), ("--once",)


IGNORED = 'trap "" INT TERM; '  # as a background job of a shell and what nohup starts inherit it


@pytest.mark.parametrize(
    ("where", "inherited", "mode", "number", "status"),
    [
        (in_a_pause, "", LOOP, signal.SIGTERM, 0),
        (in_a_pause, "", LOOP, signal.SIGINT, 0),
        (in_a_pause, IGNORED, LOOP, signal.SIGTERM, 0),
        (in_a_pause, IGNORED, LOOP, signal.SIGINT, 0),
        (between_tries, "", LOOP, signal.SIGTERM, 0),
        (between_tries, IGNORED, ONCE, signal.SIGINT, 75),
        (in_silence, IGNORED, LOOP, signal.SIGINT, 0),
        (in_silence, "", ONCE, signal.SIGTERM, 75),
        (in_a_trickle, "", LOOP, signal.SIGTERM, 0),
        (in_a_trickle, IGNORED, ONCE, signal.SIGINT, 75),
    ],
)
def test_signal_ends_it_within_5_s(duo, collector, where, inherited, mode, number, status):
    collector.seed(telephony=duo.now_ms() - HOUR_MS)
    ready = where(duo, collector)
    process = shell(collector, f'{inherited}exec "$@"', *mode, *ONLY)
    wait_for(ready, "such a moment")
    result = signalled(process, number)
    assert (result.status, result.stdout) == (status, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("mode", "number"), [(LOOP, signal.SIGTERM), (ONCE, signal.SIGINT)])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
def test_signal_ends_a_write_that_nobody_reads_and_the_checkpoint_stays(duo, collector, mode, number, blocking):
    fill(duo, collector, 1000, "telephony")
    before = collector.checkpoint_file.read_bytes()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, blocking)
    process = collector.start(*mode, *ONLY, stdout=write_end)
    os.close(write_end)
    wait_for(lambda: select.select([read_end], [], [], 0)[0], "event")  # a page is more than a pipe holds
    process.send_signal(number)
    began = time.monotonic()
    process.wait(20)
    took_s, result = time.monotonic() - began, finish(process)
    os.close(read_end)
    assert took_s < PROMISE_S
    assert (result.status, collector.checkpoint_file.read_bytes()) == (74, before), result.stderr
    assert "ERROR stopped by a signal while writing a page" in result.stderr
    assert collector.once(*ONLY).status == 0
    assert collector.since("telephony") > json.loads(before)["TELEPHONY_SINCE_TIME"]


def test_signal_ends_it_though_nobody_reads_its_log(duo, collector):
    collector.seed(telephony=duo.now_ms() - HOUR_MS)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for piece in (b"x" * 4096, b"x"):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, piece)
    os.set_blocking(write_end, True)
    ready = in_a_pause(duo, collector)
    process = shell(collector, 'exec "$@"', *LOOP, *ONLY, stderr=write_end)
    os.close(write_end)
    wait_for(ready, "pass")
    time.sleep(0.3)  # what is said about a pass follows at once
    assert signalled(process, signal.SIGTERM).status == 0
    os.close(read_end)


def unshared(*options):
    """What starts a command in namespaces of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", *options, "true"], capture_output=True).returncode:
        pytest.skip(f"no right to, or no, unshare {' '.join(options)}")
    return " ".join(["unshare", *options])


def test_signal_ends_it_as_process_1(duo, collector):
    """Nothing is deadly to process 1 by default: what it does not handle passes it by."""
    unshare = unshared("--pid", "--fork", "--kill-child")
    collector.seed(telephony=duo.now_ms() - HOUR_MS)
    ready = in_a_pause(duo, collector)
    process = shell(collector, f'exec {unshare} "$@"', *LOOP, *ONLY)
    wait_for(ready, "pass")
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(int(children.read_text()), signal.SIGTERM)
    assert finish(process, PROMISE_S).status == 0


@pytest.mark.parametrize("options, status, number", [(LOOP, 0, 213), (["--check"], 75, 214), (["--accounts"], 75, 215)])
def test_signal_ends_a_name_look_up(collector, tmp_path, options, status, number):
    unshare = unshared("--mount")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver 127.0.0.{number}\noptions timeout:30\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.settimeout(20)
        try:
            silent.bind((f"127.0.0.{number}", 53))
        except OSError as error:
            pytest.skip(f"no right to be a name server: {error}")
        mount = f"mount --bind '{resolver}' /etc/resolv.conf"
        environ = {"DUO_API_HOST": "https://api-00000000.duosecurity.com"}
        process = shell(collector, f'exec {unshare} sh -c \'{mount} && exec "$@"\' sh "$@"', *options, environ=environ)
        try:
            silent.recv(1000)
        except socket.timeout:
            process.kill()
            pytest.skip(f"names are not looked up by /etc/resolv.conf here: {finish(process).stderr}")
        assert signalled(process, signal.SIGTERM).status == status


# An output that cannot be written


@pytest.mark.parametrize("mode", [ONCE, LOOP], ids=["once", "loop"])
def test_closed_pipe_is_74_in_one_line_and_the_checkpoint_stays(duo, collector, mode):
    fill(duo, collector, 1000, "telephony")
    before = collector.checkpoint_file.read_bytes()
    process = collector.start(*mode, *ONLY)
    head = subprocess.run(["head", "-c", "100"], stdin=process.stdout, capture_output=True, check=True)
    process.stdout.close()
    process.stdout = None  # or communicate would read it
    result = finish(process)
    assert len(head.stdout) == 100
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert collector.checkpoint_file.read_bytes() == before


@pytest.mark.parametrize(
    ("redirection", "requests"), [(">/dev/full", 1), (">&-", 0), (">&- 2>&-", 0), ("1</dev/null", 1)]
)
def test_unwritable_stdout_is_74_and_the_checkpoint_stays(duo, collector, redirection, requests):
    if not os.path.exists("/dev/full") and "/dev/full" in redirection:
        pytest.skip("no /dev/full here")
    fill(duo, collector, 10, "telephony")
    before = collector.checkpoint_file.read_bytes()
    result = finish(shell(collector, f'exec "$@" {redirection}', "--once", *ONLY))
    assert (result.status, len(duo.requests)) == (74, requests), result.stderr
    assert result.stderr.count("\n") == (0 if "2>" in redirection else 1)
    assert collector.checkpoint_file.read_bytes() == before


def test_nonblocking_pipe_with_a_slow_reader_brings_everything(duo, collector):
    fill(duo, collector, 2000, "telephony")
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
    assert account(bytes(received), duo, "telephony") == ([], [])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["disk", "limit"])
def cramped(request, tmp_path):
    """Where no file can get larger than 1 MB: the folder, the shell's words for it, and what makes room."""
    if request.param == "limit":  # everywhere, and by other error numbers than a full disk
        return tmp_path, "ulimit -f 2000; ", lambda: None
    folder = request.getfixturevalue("small_disk")
    return folder, "", lambda: subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)


def test_full_disk_is_74_and_after_making_room_all_goes_on_on_a_new_line(duo, collector, cramped, small_pages):
    folder, limit, make_room = cramped
    output, size = folder / "events", 200
    small_pages(size)
    fill(duo, collector, 2000, "authentication")
    before = collector.since("authentication")
    options = ("--once", "--log-types", "authentication")
    with open(output, "ab") as file:
        result = finish(shell(collector, f'{limit}exec "$@"', *options, stdout=file))
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert "stdout" in result.stderr
    full = output.read_bytes()
    assert not full.endswith(b"\n"), "the disk was full at the end of a line: choose other events"
    whole = full.count(b"\n") // size * size
    when = tenant.datetime.fromisoformat(json.loads(full.split(b"\n")[whole - 1])["isotimestamp"])
    assert collector.since("authentication") == int(when.timestamp() * 1000) > before
    make_room()
    with open(output, "ab") as file:
        assert collector.run(*options, stdout=file).status == 0
    again, torn = account(output.read_bytes(), duo, "authentication")
    assert len(again) == full.count(b"\n") - whole
    assert torn == [full.split(b"\n")[-1]]


# The checkpoint file


def test_full_disk_under_the_checkpoint_file_is_74_and_leaves_it_whole(duo, collector, cramped):
    folder, limit, _ = cramped
    fill(duo, collector, 100, "telephony")
    # A save needs more than there is, by either way of having little.
    document = {**json.loads(collector.checkpoint_file.read_text()), "note": "x" * (2_000_000 if limit else 20_000)}
    file, filler = folder / "kept.json", folder / "filler"
    file.write_text(json.dumps(document))
    before = file.read_bytes()
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as fill_up:
        while not limit:
            fill_up.write(bytes(4096))
    environ = {"DUO_CHECKPOINT_FILE": str(file)}
    result = finish(shell(collector, f'{limit}exec "$@"', "--once", *ONLY, environ=environ))
    assert (result.status, result.stderr.count("\n")) == (74, 1), result.stderr
    assert str(file) in result.stderr
    assert file.read_bytes() == before
    filler.unlink()
    last = collector.once(*ONLY, environ=environ)
    assert last.status == 0
    assert account(last.stdout.encode(), duo, "telephony") == ([], [])
    assert sorted(path.name for path in folder.iterdir() if "kept" in path.name) == [".kept.json.lock", "kept.json"]


def test_full_disk_for_what_only_people_need_is_no_reason_to_stop(duo, collector, small_disk):
    file = small_disk / "kept.json"
    collector.environ["DUO_CHECKPOINT_FILE"] = str(file)
    assert collector.once(*ONLY).status == 0
    before, duo.rules.no_permission = file.read_bytes(), True
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    process = collector.start("--interval", "0.2", *ONLY)
    wait_for(lambda: [request.status for request in duo.requests].count(403) >= 3, "three refused passes")
    process.send_signal(signal.SIGTERM)
    assert finish(process).status == 0
    assert file.read_bytes() == before


def test_checkpoint_file_is_never_seen_missing_or_half_and_never_goes_back(duo, collector, small_pages):
    small_pages(25)
    fill(duo, collector, 1000, "telephony")
    document = {**json.loads(collector.checkpoint_file.read_text()), "note": "x" * 300_000}  # half of it can be seen
    collector.checkpoint_file.write_text(json.dumps(document))
    seen, process = [], collector.start("--once", *ONLY)
    reader = threading.Thread(target=process.stdout.read)  # or the pipe would fill
    reader.start()
    while process.poll() is None:
        seen.append(json.loads(collector.checkpoint_file.read_bytes())["TELEPHONY_SINCE_TIME"])
    reader.join()
    assert finish(process).status == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_mode_owner_and_link_of_the_checkpoint_file_are_kept_and_nothing_else_is_left(duo, collector, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    fill(duo, collector, 10, "telephony")
    target = collector.checkpoint_file.rename(kept / "target.json")
    collector.checkpoint_file.symlink_to(target)
    target.chmod(0o640)
    if os.getuid() == 0:
        os.chown(target, 12345, 23456)
    before = target.stat()
    assert collector.once(*ONLY).status == 0
    after = target.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert collector.checkpoint_file.is_symlink()
    assert collector.since("telephony") > duo.now_ms() - HOUR_MS
    assert sorted(path.name for path in kept.iterdir()) == [".target.json.lock", "target.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints.json", "kept"]


@pytest.mark.parametrize("kind", ["garbage", "link"])
def test_leftovers_of_a_killed_run_do_no_harm(duo, collector, tmp_path, kind):
    """What a kill in the middle of a save leaves; or what somebody laid there for us to write into."""
    fill(duo, collector, 10, "telephony")
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
    assert collector.since("telephony") > duo.now_ms() - HOUR_MS


def test_nothing_is_saved_when_nothing_has_changed(duo, collector):
    collector.seed(**dict.fromkeys(WHOLE, duo.now_ms() - 60_000))
    before = collector.checkpoint_file.stat()
    assert collector.once().status == 0
    after = collector.checkpoint_file.stat()
    assert (after.st_ino, after.st_mtime_ns, duo.requests) == (before.st_ino, before.st_mtime_ns, [])


def test_only_the_failure_is_saved_when_the_checkpoint_is_ahead(duo, collector):
    collector.seed(**dict.fromkeys(WHOLE, duo.now_ms() + HOUR_MS))
    before = json.loads(collector.checkpoint_file.read_bytes())
    for _ in range(2):
        result = collector.once()
        assert (result.status, result.stdout) == (75, "")
        after = json.loads(collector.checkpoint_file.read_bytes())
        states = after.pop("state")
        assert (after, sorted(states)) == (before, sorted(tenant.LOG_TYPES))
        assert all(state["since_ms"] == state["start_ms"] and not state["written"] for state in states.values())
        assert all(("ahead of now" in states[name]["health"]["last_error"]) == (name in WHOLE) for name in states)
    assert [request.path for request in duo.requests] == ["/auth/v2/ping"] * 2 * len(WHOLE)


def test_a_page_is_on_the_disk_before_its_checkpoint(duo, collector, tmp_path, small_pages):
    trace, output = tmp_path / "trace", tmp_path / "events"
    calls = "trace=write,fsync,?fdatasync,?rename,?renameat,?renameat2"
    strace = f"strace -f -y -o '{trace}' -e {calls}"
    if not shutil.which("strace") or subprocess.run(f"{strace} true", shell=True, capture_output=True).returncode:
        pytest.skip("no strace, or no right to use it")
    small_pages(100)
    duo.rules.last_cursor = "null"  # so that each page has events
    fill(duo, collector, 300, "telephony")
    with open(output, "ab") as file:
        assert finish(shell(collector, f'exec {strace} "$@"', "--once", *ONLY, stdout=file)).status == 0
    new, done = f"{collector.checkpoint_file}.new", []
    names = {str(output): "events", new: "new", str(tmp_path): "folder"}
    for call, path in re.findall(r"(write|f\w*sync|rename)\w*\((?:\d+<([^>]*)>)?", trace.read_text()):
        step = f"{call} {names.get(path, '')}".strip()
        if (call == "rename" or path in names) and step not in done[-1:]:
            done.append(step)
    one = ["write new", "fsync new", "write events", "fsync events", "rename", "fsync folder"]
    assert done == one * 3


# Two runs at once


@pytest.mark.parametrize("spelling", ["checkpoints.json", "../here/./checkpoints.json", "link.json"])
def test_second_run_on_a_checkpoint_file_is_75_at_once_and_the_first_goes_on(duo, collector, tmp_path, spelling):
    here = tmp_path / "here"
    here.mkdir()
    fill(duo, collector, 10, "telephony")
    collector.checkpoint_file = collector.checkpoint_file.rename(here / "checkpoints.json")
    collector.environ["DUO_CHECKPOINT_FILE"] = str(collector.checkpoint_file)
    (here / "link.json").symlink_to("checkpoints.json")
    duo.rules.stall_s = 2
    duo.inject("telephony", "stall")  # the first is at work when the second comes
    with open(tmp_path / "events", "ab") as file:
        first = collector.start("--once", *ONLY, stdout=file)
    wait_for(lambda: duo.requests, "request")
    before = collector.checkpoint_file.read_bytes()
    began = time.monotonic()
    second = collector.once(*ONLY, "--checkpoint-file", spelling, cwd=here)
    assert time.monotonic() - began < 5
    assert (second.status, second.stdout, second.stderr.count("\n")) == (75, "", 1), second.stderr
    assert str(collector.checkpoint_file.resolve()) in second.stderr
    assert (len(duo.requests), collector.checkpoint_file.read_bytes()) == (1, before)
    assert finish(first).status == 0
    assert account((tmp_path / "events").read_bytes(), duo, "telephony") == ([], [])


def test_a_killed_run_leaves_no_lock_and_other_checkpoint_files_are_free(duo, collector, tmp_path):
    fill(duo, collector, 10, "telephony")
    duo.rules.stall_s = 60
    duo.inject("telephony", "stall")
    first = collector.start("--once", *ONLY)
    wait_for(lambda: duo.requests, "request")
    other = shutil.copy(collector.checkpoint_file, tmp_path / "other.json")
    beside = collector.once(*ONLY, "--checkpoint-file", other)
    assert (beside.status, len(beside.events)) == (0, 10), beside.stderr
    first.kill()
    finish(first)
    after = collector.once(*ONLY)
    assert (after.status, after.stdout) == (0, beside.stdout), after.stderr


# Where it is started


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "reader gone", "<&-"])
def test_events_come_without_a_log_or_an_input(duo, collector, streams):
    if not os.path.exists("/dev/full") and "/dev/full" in streams:
        pytest.skip("no /dev/full here")
    fill(duo, collector, 100, "telephony")
    if streams == "reader gone":
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = shell(collector, 'exec "$@"', "--once", *ONLY, stderr=write_end)
        os.close(write_end)
    else:
        process = shell(collector, f'exec "$@" {streams}', "--once", *ONLY)
    result = finish(process)
    assert account(result.stdout.encode(), duo, "telephony") == ([], [])
    assert result.status == 0


@pytest.mark.parametrize("folder", ["/", "/proc", "gone"])
def test_it_runs_anywhere_and_with_nothing_in_its_environment(duo, collector, tmp_path, folder):
    """/proc is read-only even for root."""
    if not os.path.isdir(folder) and folder != "gone":
        pytest.skip(f"no {folder} here")
    fill(duo, collector, 10, "telephony")
    collector.environ = {name: value for name, value in collector.environ.items() if name.startswith("DUO_")}
    gone = tmp_path / "gone"
    gone.mkdir()
    change = f"cd '{gone}' && /bin/rmdir '{gone}'" if folder == "gone" else f"cd {folder}"
    result = finish(shell(collector, f'{change} && unset PATH PWD OLDPWD && exec "$@"', "--once", *ONLY))
    assert (result.status, len(result.events)) == (0, 10), result.stderr
