"""Requests, connections and fsyncs of a pass, and how soon an event gets through."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .rig import (
    DAY_MS,
    DEFAULT_LOG_TYPES,
    EVENTS_PER_DAY,
    UNHURRIED,
    Module,
    Note,
    environment,
    run,
    tenant,
    under,
)
from .tables import Figure, above


def passes(module: Module, events: int = 100_000) -> list[Figure]:
    """Requests and connections: of a backlog, and when caught up with and without events."""
    passes_of_notes: list[list[Note]] = []
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        start_ms = end_ms - events * DAY_MS // EVENTS_PER_DAY
        for log_type in DEFAULT_LOG_TYPES:
            duo.fill(log_type, events, start_ms, end_ms, False)
        for number in range(4):
            if number == 2:  # before this there is nothing in the lookback
                now_ms = duo.now_ms()
                for log_type in DEFAULT_LOG_TYPES:
                    duo.fill(log_type, 200, now_ms - 400_000, now_ms - 130_000, True)
            environ = environment(duo, folder, start_ms, **UNHURRIED)
            run(module.once(*DEFAULT_LOG_TYPES), environ)
            passes_of_notes.append(duo.take_notes())
    backlog, idle, _, looking_back = (
        Counter(note.log_type for note in notes) for notes in passes_of_notes
    )
    opened = max(len({note.connection for note in notes}) for notes in passes_of_notes)
    per_thousand = {name: backlog[name] / (events / 1000) for name in DEFAULT_LOG_TYPES}
    shown = ", ".join(f"{name} {count:.2f}" for name, count in per_thousand.items())
    most = round(max(per_thousand.values()), 1)
    return [
        Figure("requests per 1,000 events in a backlog", shown, above(most, 1)),
        caught_up("nothing in the lookback", idle),
        caught_up("events in the lookback", looking_back),
        Figure(
            f"connections opened in a pass over {len(DEFAULT_LOG_TYPES)} log types",
            str(opened),
            above(opened, len(DEFAULT_LOG_TYPES) + 1),
        ),
    ]


def caught_up(where: str, counts: Counter[str | None]) -> Figure:
    shown = ", ".join(f"{log_type} {counts[log_type]}" for log_type in DEFAULT_LOG_TYPES)
    most = max(counts[log_type] for log_type in DEFAULT_LOG_TYPES)
    name = f"requests of a pass when caught up, {where}; besides them, `/auth/v2/ping`"
    return Figure(name, f"{shown}; {counts[None]}", above(most, 1))


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


def run_on_slow_disk(
    module: Module, duo: Any, environ: dict[str, str], loop_s: float = 0
) -> Fsyncs:
    """A pass on a disk whose fsync takes long, or passes for some seconds."""
    report = Path(environ["DUO_CHECKPOINT_FILE"] + ".fsyncs")
    report.write_text("")
    how = ("--interval", "0.2") if loop_s else ("--once",)
    command = module.command("--log-types", "authentication", *how)
    run(under({"fsyncs": str(report)}, command), environ, loop_s or 600, statuses=(0, 77))
    end_s = time.monotonic()
    spent_s = [float(line) for line in report.read_text().split()]
    notes = duo.take_notes()
    requests = sum(note.log_type is not None for note in notes)
    return Fsyncs(len(spent_s), sum(spent_s), end_s - notes[0].at_s, requests)


def saves(module: Module, pages: int = 10) -> list[Figure]:
    """What a page's fsyncs cost, and how many there are where nothing is new."""
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        start_ms = end_ms - DAY_MS // 8
        duo.fill("authentication", pages * 1000, start_ms, end_ms, False)
        environ = environment(duo, folder, start_ms)
        paced = run_on_slow_disk(module, duo, environ)
        os.unlink(environ["DUO_CHECKPOINT_FILE"])
        environ.update(UNHURRIED)
        fast = run_on_slow_disk(module, duo, environ)
        idle = run_on_slow_disk(module, duo, environ)
        loop = run_on_slow_disk(module, duo, environ, loop_s=6)
        duo.change_after(0, "no_permission", True)
        refused = run_on_slow_disk(module, duo, environ)
    page_ms = fast.spent_s / pages * 1000
    shares = f"{paced.share:.1%} at the default pace, {fast.share:.0%} without one"
    idling = f"caught up {idle.count}, refused {refused.count}"
    looping = f"{loop.requests} in a loop {loop.count}"
    # A pass keeps what --status shows. A save is two fsyncs, of the new file and of its folder.
    per_pass = max(idle.count, refused.count, loop.count / loop.requests)
    return [
        Figure(
            "a page's fsyncs on a disk where each takes 20 ms more",
            f"{fast.count / pages:.1f} fsyncs, {page_ms:.0f} ms; share of a pass {shares}",
        ),
        Figure(
            "fsyncs of passes with no event",
            f"{idling}, {looping}",
            above(per_pass, 2),
        ),
    ]


# From an event's publication to its line


def publication(module: Module, run_s: float = 45, pause_s: float = 5) -> list[Figure]:
    """How late lines come in a loop, while two events a second are published in each log."""
    with tenant() as (duo, folder):
        now_ms = duo.now_ms()
        for log_type in DEFAULT_LOG_TYPES:
            duo.fill(log_type, 400, now_ms - 200_000, now_ms, True)
        environ = environment(duo, folder, now_ms - DAY_MS)
        started_s = time.time()
        command = module.command("-q", "--interval", str(pause_s))
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
            threading.Timer(run_s, process.terminate).start()
            lines = [(json.loads(line), time.time()) for line in process.stdout]
    late_s = []
    for event, seen_s in lines:
        published_s = event["at_ms"] / 1000 + 120
        if published_s > started_s:
            late_s.append(seen_s - published_s)
    if len(late_s) < 2 * len(DEFAULT_LOG_TYPES) * (run_s - pause_s - 3):
        raise RuntimeError(f"only {len(late_s)} events came in {run_s} s")
    return [
        Figure(
            "from an event's publication to its line, loop mode, the longest",
            f"{max(late_s):.1f} s, median {median(late_s):.1f} s (pause {pause_s:g} s)",
            above(max(late_s), pause_s + 2),
        )
    ]
