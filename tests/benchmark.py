#!/usr/bin/env python3
"""Measure the collector against a simulated Duo tenant, and print the results as Markdown tables.

    tests/benchmark                          all of it: some eight minutes
    tests/benchmark --only cost              some of it; --help lists the parts
    tests/benchmark --picture backlog.svg    draws the drain of a backlog, too

The peers, on the same events from the same server in the same run:

(a) what one would write on Duo's own client (duo_client): page to the end, json.dumps, print;
(b) a floor: the same bytes over one kept-alive connection through json.loads, and nothing else;
(c) Duo Log Sync's policy, a page of 1,000 each 120 s (its documented minimum): computed, not run.

What takes CPU runs alone, the peers in turn, and of several rounds the median counts. What merely waits for a
limit runs side by side, collector and tenant on a common clock that is several times as fast; the collector
is unchanged, the sockets and signatures are real. The tenant is always a process of its own.

A figure that misses its target is named on stderr. It is no error: the exit status is 0.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from duo import LOG_TYPES, Rules, Simulator, iter_events

COLLECTOR = str(Path(__file__).resolve().parent.parent / "duo_collector.py")
DAY_MS = 86_400_000
EVENTS_PER_DAY = 75_000  # of the busiest tenant known; a longer backlog is no denser
DEFAULT_LOG_TYPES = ("authentication", "telephony", "administrator")
UNHURRIED = {"DUO_REQUESTS_PER_MINUTE": "1000000"}  # so that no pace of its own holds it up
SLOW_FSYNC_S = 0.02  # more than this disk's: what a hard disk takes
LOG_SYNC_S = 120

PEER_A = """
import json, sys
import duo_client
ikey, skey, host, port, since, until = sys.argv[1:]
admin = duo_client.Admin(ikey, skey, host, port=int(port), ca_certs="HTTP")
window = {"mintime": since, "maxtime": until, "limit": "1000", "sort": "ts:asc"}
while True:
    page = admin.get_authentication_log(api_version=2, **window)
    for event in page["authlogs"]:
        print(json.dumps(event))
    if not page["authlogs"] or not page["metadata"].get("next_offset"):
        break
    window["next_offset"] = ",".join(page["metadata"]["next_offset"])
"""
PEER_B = """
import http.client, json, sys
host, port, since, until = sys.argv[3:]
connection, count, cursor = http.client.HTTPConnection(host, int(port)), 0, ""
path = f"/admin/v2/logs/authentication?mintime={since}&maxtime={until}&limit=1000&sort=ts:asc"
while True:
    connection.request("GET", path + cursor)
    page = json.loads(connection.getresponse().read())["response"]
    count += len(page["authlogs"])
    if not page["authlogs"] or not page["metadata"].get("next_offset"):
        break
    cursor = "&next_offset=" + ",".join(page["metadata"]["next_offset"])
print(count)
"""
# A process of its own and small, because a child's peak memory begins with that of its parent.
LAUNCHER = """
import json, os, sys, time
output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
start = time.monotonic()
pid = os.fork()
if not pid:
    os.dup2(output, 1)
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
wall = time.monotonic() - start
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


class Figure(NamedTuple):
    """A row of a table: of the one with peers, if there are any."""

    name: str
    measured: str
    peers: tuple[str, ...] = ()  # what (a), (b) and (c) take


def say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def expect(name: str, met: bool, value: str, target: str) -> None:
    """Say so where a target is missed."""
    if not met:
        say(f"TARGET MISSED: {name}: {value}, target {target}")


def ratio(name: str, value: float, most: float, measured: str, *peers: str) -> Figure:
    expect(name, value <= most, f"{value:.2f}", f"≤ {most}")
    return Figure(name, measured, peers)


def share(name: str, values: list[float], most: float) -> Figure:
    shown = ", ".join(f"{value:.1%}" for value in values)
    expect(name, max(values) <= most, shown, f"≤ {most:.0%}")
    return Figure(name, shown)


# The tenant, its clock and its process


class Clock(NamedTuple):
    """A clock that has run `speed` times as fast as the real one since a moment, in all processes the same."""

    speed: float
    since_s: float  # by time.monotonic, which all processes share
    wall_s: float

    def install(self) -> None:
        """From here on this process goes by it, but for the timeouts of sockets."""
        monotonic, sleep, wait = time.monotonic, time.sleep, threading.Event.wait
        time.monotonic = lambda: self.since_s + (monotonic() - self.since_s) * self.speed
        time.time = lambda: self.wall_s + (monotonic() - self.since_s) * self.speed
        time.sleep = lambda seconds: sleep(seconds / self.speed)
        threading.Event.wait = lambda event, timeout=None: wait(event, timeout and timeout / self.speed)


class Note(NamedTuple):
    """What is kept of a request."""

    at_s: float  # by time.monotonic
    log_type: str
    status: int
    connection: int


class Tenant(Simulator):
    """The simulated tenant, with what the benchmark asks of it from another process."""

    def __init__(self, rules: dict[str, Any]) -> None:
        super().__init__(Rules(**rules), wall=time.time, monotonic=time.monotonic)  # the fast clock, once installed
        self.left, self.then = -1, ("", None)
        self.start()

    def told(self) -> dict[str, str]:
        return self.settings

    def change_after(self, pages: int, rule: str, value: Any) -> None:
        """Change a rule once so many more requests have been let through."""
        self.left, self.then = pages, (rule, value)

    def respond(self, *request: Any) -> Any:
        if self.left == 0:
            setattr(self.rules, *self.then)
        answer = super().respond(*request)
        self.left -= answer.status == 200
        return answer

    def fill(self, log_type: str, count: int, start_ms: int, end_ms: int, tiny: bool = False) -> None:
        self.add(log_type, (iter_tiny if tiny else iter_events)(log_type, count, start_ms, end_ms))

    def take_notes(self) -> list[Note]:
        """The requests since the last call."""
        notes = [Note(r.monotonic, str(r.log_type), r.status, r.connection) for r in self.requests]
        self.requests.clear()
        return notes


def iter_tiny(log_type: str, count: int, start_ms: int, end_ms: int) -> Iterator[dict[str, Any]]:
    """Evenly spread events, so small that a page of them takes little CPU."""
    log = LOG_TYPES[log_type]
    for number in range(count):
        at_ms = (start_ms + number * (end_ms - start_ms) // count) // log.unit_ms * log.unit_ms
        iso = datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat()
        at = at_ms // 1000 if log.unit_ms == 1000 else iso
        yield {log.id_field or "object": f"{number:08}", log.time_fields[0]: at, "at_ms": at_ms}


class Manager(BaseManager):
    """Runs a Tenant in a process of its own."""


Manager.register("Tenant", Tenant, exposed=("told", "change_after", "fill", "take_notes", "now_ms"))


@contextlib.contextmanager
def tenant(clock: Clock | None = None, **rules: Any) -> Iterator[tuple[Any, str]]:
    """A Tenant, to be called as if it were here, and an empty folder on a disk (/tmp may be memory)."""
    manager = Manager(ctx=get_context("spawn"))
    manager.start(clock and clock.install)
    with manager, tempfile.TemporaryDirectory(prefix="duo_benchmark.", dir="/var/tmp") as folder:
        yield manager.Tenant(rules), folder


# Running the collector and its peers


def environment(duo: Any, folder: str, since_ms: int, **more: str) -> dict[str, str]:
    """The settings of a run that begins at a time, unless `folder` has a checkpoint file already."""
    seeds = {"AUTH_SINCE_TIME": since_ms, "TELEPHONY_SINCE_TIME": since_ms, "ADMIN_SINCE_TIME": since_ms // 1000}
    checkpoint_file = os.path.join(folder, "checkpoints.json")
    seeded = {name: str(value) for name, value in seeds.items()}
    return {"PATH": os.environ["PATH"], "DUO_CHECKPOINT_FILE": checkpoint_file, **duo.told(), **seeded, **more}


def collector(*options: str) -> list[str]:
    return [sys.executable, COLLECTOR, "--env-file", "/dev/null", *options]


ONCE = collector("--once", "--log-types", "authentication")


class Usage(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure(command: list[str], environ: dict[str, str], output: str = os.devnull) -> Usage:
    """Run a command, its stdout in a file. Raises RuntimeError."""
    launcher = [sys.executable, "-S", "-c", LAUNCHER, output, *command]
    done = subprocess.run(launcher, env=environ, capture_output=True, text=True)
    status, *usage = json.loads(done.stdout or "[1]")
    if status:
        raise RuntimeError(f"exit status {status}: {done.stderr}")
    wall_s, cpu_s, peak = usage
    return Usage(wall_s, cpu_s, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))  # bytes there, else KB


def run(command: list[str], environ: dict[str, str], stop_after_s: float = 600, statuses: tuple = (0,)) -> None:
    """Run the collector to its end, or stop it; events go to a file. Raises RuntimeError."""
    with tempfile.TemporaryFile(dir=os.path.dirname(environ["DUO_CHECKPOINT_FILE"])) as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.PIPE)
        stop = threading.Timer(stop_after_s, process.terminate)
        stop.start()
        said = process.communicate()[1]
        stop.cancel()
    if process.returncode not in statuses:
        raise RuntimeError(f"exit status {process.returncode}: {said.decode()}")


def under(conditions: dict[str, Any], command: list[str]) -> list[str]:
    """The same command of Python under other conditions."""
    return [command[0], __file__, "under", json.dumps(conditions), *command[1:]]


def run_under(conditions: dict[str, Any], script: str, arguments: list[str]) -> None:
    """Run a script on a fast clock, or with a slow fsync that is counted."""
    if "clock" in conditions:
        Clock(*conditions["clock"]).install()
    if "report" in conditions:
        slow_down_fsync(conditions["report"])
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def slow_down_fsync(report: str) -> None:
    fsync, spent_s = os.fsync, []

    def slow_fsync(fd: int) -> None:
        start_s = time.monotonic()
        fsync(fd)
        time.sleep(SLOW_FSYNC_S)
        spent_s.append(time.monotonic() - start_s)

    os.fsync = slow_fsync
    atexit.register(lambda: Path(report).write_text(json.dumps([len(spent_s), sum(spent_s), time.monotonic()])))


# CPU, time and memory; start


def measure_peer(duo: Any, folder: str, peer: str, since_ms: int) -> tuple[Usage, int]:
    """What a peer takes for the events since a time, and how many it has written or, in (b), counted."""
    told, output = duo.told(), os.path.join(folder, "events")
    url, window = urlsplit(told["DUO_API_HOST"]), (since_ms, duo.now_ms() - 120_000)
    words = told["DUO_INTEGRATION_KEY"], told["DUO_SECRET_KEY"], url.hostname, url.port, *window
    command = [sys.executable, "-c", PEER_A if peer == "a" else PEER_B, *map(str, words)]
    usage = measure(ONCE if peer == "us" else command, environment(duo, folder, since_ms, **UNHURRIED), output)
    with open(output, "rb") as file:
        blocks = iter(lambda: file.read(1 << 20), b"")
        count = int(file.read()) if peer == "b" else sum(block.count(b"\n") for block in blocks)
    for name in os.listdir(folder):  # the next one starts anew
        os.unlink(os.path.join(folder, name))
    say(f"{peer}, {count:,} events: {usage.wall_s:.1f} s, CPU {usage.cpu_s:.1f} s, peak {usage.peak_mb:.1f} MB")
    return usage, count


def cost() -> list[Figure]:
    return cost_of("utf-8", rounds=5) + cost_of("ascii", rounds=3)[:2]


def cost_of(text: str, rounds: int, events: int = 200_000, most: int = 1_000_000, least: int = 10_000) -> list[Figure]:
    """The cost of events whose names and places are in UTF-8, or escaped: nobody documents which Duo sends."""
    usages: dict[str, list[Usage]] = {"us": [], "a": [], "b": []}
    counts, all_events = set(), most if text == "utf-8" else events
    # (b) signs nothing, so nothing but parameters is checked; the others sign all the same.
    with tenant(check_order=("parameters",), text=text) as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        since_ms = {count: end_ms - count * DAY_MS // EVENTS_PER_DAY for count in (events, all_events, least)}
        duo.fill("authentication", all_events, since_ms[all_events], end_ms)
        for peer in (*usages,) * rounds:
            usage, count = measure_peer(duo, folder, peer, since_ms[events])
            usages[peer].append(usage)
            counts.add(count)
        short, _ = measure_peer(duo, folder, "us", since_ms[least])
        long, long_count = measure_peer(duo, folder, "us", since_ms[all_events])
    if long_count != all_events or len(counts) > 1:
        raise RuntimeError(f"not all have read the same: {counts}, {long_count}")
    cpu = {peer: median(usage.cpu_s for usage in of_peer) / count * 1e6 for peer, of_peer in usages.items()}
    wall = {peer: median(usage.wall_s for usage in of_peer) for peer, of_peer in usages.items()}
    what = f"of events in {text.upper()}"
    expect(f"CPU {what} against (b)", cpu["us"] / cpu["b"] <= 1.6, f"{cpu['us'] / cpu['b']:.2f}", "≤ 1.6")
    name, wall_name = f"CPU for a million {what}", f"time for {events:,} {what}, no rate limit"
    cpus, walls = ([f"{times[peer]:.1f} s" for peer in usages] for times in (cpu, wall))
    return [
        ratio(name, cpu["us"] / cpu["a"], 0.7, *cpus, ""),
        ratio(wall_name, wall["us"] / wall["a"], 0.6, *walls, ""),
        ratio(f"peak memory, {least:,} and {all_events:,} events", long.peak_mb / short.peak_mb, 1.1,
              f"{short.peak_mb:.0f} MB, {long.peak_mb:.0f} MB"),
    ]  # fmt: skip


def missing(rounds: int = 3, events: int = 200_000, most: int = 1_000_000) -> list[Figure]:
    """--missing-from against collecting the same range, and what it takes for a long file and a short range."""
    collecting, finding = [], []
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        since_ms = {count: end_ms - count * DAY_MS // EVENTS_PER_DAY for count in (events, most)}
        duo.fill("authentication", most, since_ms[most], end_ms)
        lines, found = os.path.join(folder, "lines"), os.path.join(folder, "found")

        def find(start_ms: int) -> Usage:
            start = datetime.fromtimestamp(start_ms / 1000, timezone.utc).isoformat()
            options = ("--log-types", "authentication", "--since", start, "--missing-from", lines)
            usage = measure(collector(*options), environ, found)
            if os.path.getsize(found):
                raise RuntimeError("--missing-from has found what was not missing")
            return usage

        for count in (events,) * rounds + (most,):
            environ = environment(duo, folder, since_ms[count], **UNHURRIED)
            usage = measure(ONCE, environ, lines)
            if count == events:
                collecting.append(usage)
                finding.append(find(since_ms[count]))
            else:
                usage = find(end_ms - DAY_MS // 24)
            os.unlink(environ["DUO_CHECKPOINT_FILE"])
    find_s, collect_s = (median(usage.wall_s for usage in usages) for usages in (finding, collecting))
    name = f"time of `--missing-from` for {events:,} events, none of them missing"
    note = f"{find_s:.1f} s; collecting them takes {collect_s:.1f} s"
    return [
        ratio(name, find_s / collect_s, 2.5, note),
        Figure(f"peak memory and time of `--missing-from` with {most:,} lines, for the last hour",
               f"{usage.peak_mb:.0f} MB, {usage.wall_s:.1f} s"),
    ]  # fmt: skip


def start(rounds: int = 15) -> list[Figure]:
    pair = collector("--status"), [sys.executable, "-c", "import requests"]
    with tenant() as (duo, folder):
        environ = environment(duo, folder, duo.now_ms() - DAY_MS)
        run(ONCE, environ)  # so that there is a checkpoint file
        times_s = [[measure(command, environ).wall_s for command in pair] for _ in range(rounds)]
    us_s, import_s = (median(column) for column in zip(*times_s))
    note = f"{us_s * 1000:.0f} ms; `python -c \"import requests\"` takes {import_s * 1000:.0f} ms"
    return [ratio("time of `--status`", us_s / import_s, 1.0, note)]


# Requests and connections


def passes(events: int = 100_000) -> list[Figure]:
    passes_of_notes: list[list[Note]] = []
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        start_ms = end_ms - events * DAY_MS // EVENTS_PER_DAY
        for log_type in DEFAULT_LOG_TYPES:
            duo.fill(log_type, events, start_ms, end_ms)
        for number in range(4):
            if number == 2:  # before this there is nothing in the lookback
                for log_type in DEFAULT_LOG_TYPES:
                    duo.fill(log_type, 200, duo.now_ms() - 400_000, duo.now_ms() - 130_000, True)
            run(collector("--once"), environment(duo, folder, start_ms, **UNHURRIED))
            passes_of_notes.append(duo.take_notes())
    backlog, idle, _, looking_back = (Counter(note.log_type for note in notes) for notes in passes_of_notes)
    opened = max(len({note.connection for note in notes}) for notes in passes_of_notes)
    each = {log_type: backlog[log_type] / (events / 1000) for log_type in DEFAULT_LOG_TYPES}
    shown = ", ".join(f"{log_type} {count:.2f}" for log_type, count in each.items())
    rows = [Figure("requests per 1,000 events in a backlog", shown)]
    expect(rows[0].name, round(max(each.values()), 1) <= 1, shown, "1.0")
    for counts, where in ((idle, "nothing in the lookback"), (looking_back, "events in the lookback")):
        shown = ", ".join(f"{log_type} {counts[log_type]}" for log_type in DEFAULT_LOG_TYPES)
        rows.append(Figure(f"requests of a pass when caught up, {where}", shown))
        expect(rows[-1].name, max(counts.values()) == 1, shown, "1")
    expect("connections opened in a pass", opened == 1, str(opened), "1")
    return [*rows, Figure("connections opened in a pass", str(opened))]


# Drains under a limit


class Drain(NamedTuple):
    """A backlog under a limit, on a fast clock.

    A page takes some 5 ms of CPU, which has to be little beside the time between two. Checked against the real
    clock: 10 → 50 (20 and 100 pages) takes 299 s either way, 50 → 200 (120 and 240 pages) 195 s and on the fast
    clock 196 s, 200 → 2 (240 and 10 pages) 379 s either way, each with the same number of 429s.
    """

    speed: float
    halves: tuple[tuple[int, int], ...]  # pages, and the limit a minute that they meet
    ceiling: str = "300"  # DUO_REQUESTS_PER_MINUTE

    @property
    def name(self) -> str:
        return " → ".join(str(limit) for _, limit in self.halves)

    def floor_s(self) -> list[float]:
        """When the limit lets each page through at the earliest: no more than it says in any 60 s."""
        times_s: list[float] = []
        for pages, limit in self.halves:
            for _ in range(pages):
                freed_s = times_s[-limit] + 60 if len(times_s) >= limit else 0
                times_s.append(max(freed_s, times_s[-1] if times_s else 0))
        return times_s


KNOWN = Drain(3, ((251, 50),), ceiling="50")
UNKNOWN = (
    Drain(25, ((120, 2), (120, 10))),
    Drain(6, ((120, 10), (120, 50))),
    Drain(3, ((240, 50), (240, 200))),
    Drain(10, ((240, 200), (60, 2))),
)


def run_drain(drain: Drain, ready: threading.Barrier) -> tuple[list[float], float]:
    """When each page was asked for (s), from the first request on, and the share of 429s."""
    clock, total = Clock(drain.speed, time.monotonic(), time.time()), sum(pages for pages, _ in drain.halves)
    with tenant(clock, rate_limit=drain.halves[0][1]) as (duo, folder):
        duo.change_after(drain.halves[0][0], "rate_limit", drain.halves[-1][1])
        end_ms = duo.now_ms() - DAY_MS // 24
        duo.fill("authentication", total * 1000 - 500, end_ms - DAY_MS, end_ms, True)
        ready.wait(180)
        environ = environment(duo, folder, end_ms - DAY_MS, DUO_REQUESTS_PER_MINUTE=drain.ceiling)
        run(under({"clock": clock}, ONCE), environ)
        notes = duo.take_notes()
    times_s = [note.at_s - notes[0].at_s for note in notes if note.status == 200]
    if len(times_s) < total:
        raise RuntimeError(f"{drain.name}: {len(times_s)} pages of {total}")
    return times_s[:total], 1 - len(times_s) / len(notes)


def drains(picture: str | None) -> list[Figure]:
    cases = (KNOWN, *UNKNOWN)
    ready = threading.Barrier(len(cases))  # loading events takes CPU that no drain should miss
    with ThreadPoolExecutor(len(cases)) as pool:
        results = list(pool.map(lambda drain: run_drain(drain, ready), cases))
    (known_s, *unknown_s), (known_share, *shares) = zip(*results)
    if picture:
        draw(known_s, picture)
    ratios = [times_s[-1] / drain.floor_s()[-1] for drain, times_s in zip(UNKNOWN, unknown_s)]
    each = ", ".join(f"{drain.name}: {value:.2f}" for drain, value in zip(UNKNOWN, ratios))
    pages, floor_s = len(known_s), KNOWN.floor_s()[-1]
    log_sync = f"{(pages - 1) * LOG_SYNC_S:,} s"
    setting = f"time for {pages} pages of 1,000 events under a limit of {KNOWN.name} requests a minute"
    return [
        ratio(setting, known_s[-1] / floor_s, 1.1, f"{known_s[-1]:.0f} s; the limit allows {floor_s:.0f} s",
              "", "", log_sync),
        share("429s in that", [known_share], 0.03),
        ratio("time under a limit that is not known and changes half way (requests a minute), against the earliest"
              " that the limit allows", max(ratios), 1.3, each),
        share("429s in those, in the same order", shares, 0.05),
    ]  # fmt: skip


def draw(us_s: list[float], path: str) -> None:
    """The backlog against time: ours, the limit's floor, and Duo Log Sync's policy."""
    import matplotlib

    matplotlib.use("svg" if path.endswith(".svg") else "agg")
    from matplotlib import pyplot

    pages, until_s = len(us_s), us_s[-1] * 1.3
    log_sync_s = [page * LOG_SYNC_S for page in range(pages)]
    policy = f"Duo Log Sync's policy, 1,000 events each {LOG_SYNC_S} s: {log_sync_s[-1] / 3600:.1f} h"
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "duo", "font.size": 11})
    figure, axes = pyplot.subplots(figsize=(8, 4.2), facecolor="white", layout="constrained")
    for times_s, colour, label, x_s, y in (
        (log_sync_s, "#a93226", policy, 0.38 * until_s, 1.02 * pages),
        (us_s, "#1f618d", "duo_collector", 0.36 * until_s, 0.55 * pages),
        (KNOWN.floor_s(), "#707070", f"the floor of {KNOWN.name} requests a minute", 0.02 * until_s, 0.08 * pages),
    ):
        shown_s = [time_s for time_s in times_s if time_s < until_s]
        left = [pages - page for page in range(len(shown_s) + 1)]
        axes.step([0, *shown_s, until_s], [*left, left[-1]], where="post", color=colour)
        axes.text(x_s, y, label, color=colour)
    axes.set(xlabel="time (s)", ylabel="backlog (thousands of events)", xlim=(0, until_s), ylim=(0, 1.1 * pages))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


# Saves


class Fsyncs(NamedTuple):
    """What the fsyncs of a run took."""

    count: int
    spent_s: float
    run_s: float  # from the first request to the end
    requests: int

    @property
    def share(self) -> float:
        return self.spent_s / self.run_s


def run_on_slow_disk(duo: Any, environ: dict[str, str], loop_s: float = 0) -> Fsyncs:
    """A pass on a disk whose fsync takes long, or passes for some seconds."""
    report = environ["DUO_CHECKPOINT_FILE"] + ".report"
    command = collector("--log-types", "authentication", *(["--interval", "0.2"] if loop_s else ["--once"]))
    run(under({"report": report}, command), environ, loop_s or 600, statuses=(0, 77))
    count, spent_s, end_s = json.loads(Path(report).read_text())
    notes = duo.take_notes()
    return Fsyncs(count, spent_s, end_s - notes[0].at_s, len(notes))


def saves(pages: int = 10) -> list[Figure]:
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        duo.fill("authentication", pages * 1000, end_ms - DAY_MS // 8, end_ms)
        environ = environment(duo, folder, end_ms - DAY_MS // 8)
        paced = run_on_slow_disk(duo, environ)
        os.unlink(environ["DUO_CHECKPOINT_FILE"])
        environ.update(UNHURRIED)
        fast, idle = run_on_slow_disk(duo, environ), run_on_slow_disk(duo, environ)
        loop = run_on_slow_disk(duo, environ, loop_s=6)
        duo.change_after(0, "no_permission", True)
        refused = run_on_slow_disk(duo, environ)
    cost = f"{fast.count / pages:.1f} fsyncs, {fast.spent_s / pages * 1000:.0f} ms"
    shares = f"share of a pass {paced.share:.1%} at the default pace, {fast.share:.0%} without one"
    idling = f"caught up {idle.count}, refused {refused.count}, {loop.requests} in {loop.run_s:.1f} s {loop.count}"
    # Time moves the checkpoint, by whole seconds, and an error is kept for --status. A save is two fsyncs, of the
    # new file and of its folder.
    sparing = max(idle.count, refused.count) <= 2 and loop.count <= 2 * (loop.run_s + 1)
    expect("fsyncs of passes with no event", sparing, idling, "2 where time or an error is new")
    return [
        Figure("a page's fsyncs on a disk where each takes 20 ms more", f"{cost}; {shares}"),
        Figure("fsyncs of passes with no event", idling),
    ]


# Latency


def latency(run_s: float = 45, pause_s: float = 5) -> list[Figure]:
    with tenant() as (duo, folder):
        now_ms = duo.now_ms()
        for log_type in DEFAULT_LOG_TYPES:
            duo.fill(log_type, 400, now_ms - 200_000, now_ms, True)
        environ, started_s = environment(duo, folder, now_ms - DAY_MS), time.time()
        command = collector("-q", "--interval", str(pause_s))
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
            threading.Timer(run_s, process.terminate).start()
            lines = [(json.loads(line), time.time()) for line in process.stdout]
    shown_s = [event["at_ms"] / 1000 + 120 for event, _ in lines]
    late_s = [seen_s - at_s for at_s, (_, seen_s) in zip(shown_s, lines) if at_s > started_s]
    if len(late_s) < 2 * len(DEFAULT_LOG_TYPES) * (run_s - pause_s - 3):  # each has two a second
        raise RuntimeError(f"only {len(late_s)} events came in {run_s} s")
    measured = f"{max(late_s):.1f} s, median {median(late_s):.1f} s (pause {pause_s:g} s)"
    name = "from an event's publication to its line, loop mode, the longest"
    expect(name, max(late_s) <= pause_s + 2, measured, "≤ pause + 2 s")
    return [Figure(name, measured)]


# The command line


def measure_parts(parts: list[str], picture: str | None) -> list[Figure]:
    """What takes CPU one after the other, then what waits side by side."""
    figures = []
    for part in (cost, missing, start, passes, saves):
        if part.__name__ in parts:
            say(part.__name__)
            figures += part()
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(drains, picture)] if "drains" in parts else []
        waiting += [pool.submit(latency)] if "latency" in parts else []
        say("waiting" if waiting else "done")
        return figures + [figure for future in waiting for figure in future.result()]


def main() -> None:
    if sys.argv[1:2] == ["under"]:
        run_under(json.loads(sys.argv[2]), sys.argv[3], sys.argv[4:])
        return
    parts = ["cost", "missing", "start", "passes", "saves", "drains", "latency"]
    parser = argparse.ArgumentParser(description="Measure the collector on a simulated Duo tenant, and print tables.")
    parser.add_argument("--only", metavar="PART", action="append", choices=parts, help="one of " + ", ".join(parts))
    parser.add_argument("--picture", metavar="FILE", help="draw the drain of a backlog here: .svg or .png")
    options = parser.parse_args()
    if options.picture and "drains" not in (options.only or parts):
        parser.error("--picture is drawn of the drains")
    began_s = time.monotonic()
    figures = measure_parts(options.only or parts, options.picture)
    print("| | duo_collector | (a) | (b) | (c) |\n|---|---|---|---|---|")
    for figure in (figure for figure in figures if figure.peers):
        print(f"| {figure.name} | {' | '.join((figure.measured, *figure.peers))} |")
    print("\n| | duo_collector |\n|---|---|")
    for figure in (figure for figure in figures if not figure.peers):
        print(f"| {figure.name} | {figure.measured} |")
    system = f"{platform.system()} {platform.release().partition('-')[0]} on {platform.machine()}"
    print(f"\n{os.cpu_count()} cores, Python {platform.python_version()}, {system}.")
    say(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
