"""SIGTERM and SIGINT end it within 5 s, wherever it is, and lose and repeat nothing."""

import contextlib
import json
import os
import pathlib
import random
import select
import signal
import socket
import time

import pytest
from conftest import (
    DEFAULT,
    HOUR,
    ONLY,
    fill,
    fill_and_seed,
    finish,
    log_requests,
    repeated_and_torn,
    run_until,
    under_strace,
    unshared,
    wait_for,
)

PROMISE_S = 5  # in which a signal ends it, wherever it is


def signalled(process, number):
    """Send the signal; return how it ended, which has to be soon."""
    process.send_signal(number)
    return finish(process, PROMISE_S)


@pytest.mark.parametrize("mode", [("--once",), ("--interval", "0.05")], ids=["once", "loop"])
def test_sigterm_and_sigint_at_random_instants_lose_and_repeat_nothing(
    duo, collector, tmp_path, small_pages, mode
):
    chance, output = random.Random(str(mode)), tmp_path / "events"
    small_pages(40)
    duo.rules.latency_s = 0.01  # or a fast machine is through before the last signal
    fill_and_seed(duo, collector, 1500, *DEFAULT)
    options = (*mode, "--log-types", ",".join(DEFAULT))
    for round_ in range(12):
        with open(output, "ab") as file:
            process = collector.start(*options, stdout=file)
        goal = len(log_requests(duo)) + chance.randint(1, 4)
        assert run_until(process, lambda goal=goal: len(log_requests(duo)) >= goal)
        time.sleep(chance.random() * 0.02)
        result = signalled(process, [signal.SIGTERM, signal.SIGINT][round_ % 2])
        assert result.status == (75 if mode == ("--once",) else 0), result.stderr
        assert not output.read_bytes() or output.read_bytes().endswith(b"\n")
    with open(output, "ab") as file:
        assert collector.once(*options[len(mode) :], stdout=file).status == 0
    assert repeated_and_torn(output.read_bytes(), duo, *DEFAULT) == ([], [])


def in_a_pause(duo, collector):
    before = collector.checkpoint_file.read_text()

    def ready():
        return collector.checkpoint_file.read_text() != before

    return ready


def between_tries(duo, collector):
    duo.rules.fault_kinds, duo.rules.fault_rate = ("error_500",), 1.0
    return lambda: len(log_requests(duo)) >= 2


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
    collector.seed(telephony=duo.now_ms() - HOUR)
    ready = where(duo, collector)
    process = collector.shell(f'{inherited}exec "$@"', *mode, *ONLY)
    wait_for(ready, "such a moment")
    result = signalled(process, number)
    assert (result.status, result.stdout) == (status, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("mode", "number"), [(LOOP, signal.SIGTERM), (ONCE, signal.SIGINT)])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
def test_signal_ends_a_write_that_nobody_reads_and_the_checkpoint_stays(
    duo, collector, mode, number, blocking
):
    fill_and_seed(duo, collector, 1000, "telephony")
    before = collector.checkpoint_file.read_bytes()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, blocking)
    process = collector.start(*mode, *ONLY, stdout=write_end)
    os.close(write_end)
    wait_for(
        lambda: select.select([read_end], [], [], 0)[0], "event"
    )  # a page is more than a pipe holds
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
    collector.seed(telephony=duo.now_ms() - HOUR)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for piece in (b"x" * 4096, b"x"):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, piece)
    os.set_blocking(write_end, True)
    ready = in_a_pause(duo, collector)
    process = collector.shell('exec "$@"', *LOOP, *ONLY, stderr=write_end)
    os.close(write_end)
    wait_for(ready, "pass")
    time.sleep(0.3)  # what is said about a pass follows at once
    assert signalled(process, signal.SIGTERM).status == 0
    os.close(read_end)


def test_signal_ends_it_as_process_1(duo, collector):
    """Nothing is deadly to process 1 by default: what it does not handle passes it by."""
    unshare = unshared("--pid", "--fork", "--kill-child")
    collector.seed(telephony=duo.now_ms() - HOUR)
    ready = in_a_pause(duo, collector)
    process = collector.shell(f'exec {unshare} "$@"', *LOOP, *ONLY)
    wait_for(ready, "pass")
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(int(children.read_text()), signal.SIGTERM)
    assert finish(process, PROMISE_S).status == 0


@pytest.mark.parametrize(
    "options, status, number", [(LOOP, 0, 213), (["--check"], 75, 214), (["--accounts"], 75, 215)]
)
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
        process = collector.shell(
            f'exec {unshare} sh -c \'{mount} && exec "$@"\' sh "$@"', *options, environ=environ
        )
        try:
            silent.recv(1000)
        except socket.timeout:
            process.kill()
            pytest.skip(
                f"names are not looked up by /etc/resolv.conf here: {finish(process).stderr}"
            )
        assert signalled(process, signal.SIGTERM).status == status


def test_a_signal_during_a_slow_fsync_is_not_blamed_on_the_reader(duo, collector, tmp_path):
    fill(duo, "telephony", 50)
    path, trace = tmp_path / "events.jsonl", tmp_path / "trace"
    slow = ("-P", str(path), "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=9000000")
    path.touch()
    under_strace(collector, trace, *slow)
    with open(path, "ab") as file:
        process = collector.start("--once", *ONLY, stdout=file)
    wait_for(lambda: path.stat().st_size, "page")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    line = next(line for line in iter(process.stderr.readline, b"") if b" ERROR " in line)
    assert time.monotonic() - began < 5  # what follows is up to strace
    assert b"writing a page: stdout's reader or the disk is slow" in line
    process.communicate(timeout=20)
    assert process.returncode == 74
