"""How long a pass takes where Duo takes long to answer."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from duo import LOG_TYPES

from .rig import DAY_MS, DEFAULT_LOG_TYPES, Module, environment, run, tenant, under
from .tables import Row, above, say, say_missed
from .under import Clock

PAGES = 13
INTERVAL_S = 61 / 50  # between two requests of a log type, at the default pace
FEW = DEFAULT_LOG_TYPES
ALL = tuple(LOG_TYPES)
PAGE_SIZES = {"trust_monitor": 200}  # 1,000 in the others


class Case(NamedTuple):
    """Answers that take some time, and a common clock of collector and tenant.

    What a page takes in CPU has to be little beside the time between two.
    """

    latency_s: float
    speed: float


CASES = (Case(0, 2), Case(0.3, 2), Case(1, 3), Case(3, 4))


class Pass(NamedTuple):
    """A pass, from its first request to its last answer."""

    took_s: float
    requests: int  # of the log type that had most of them


def run_pass(module: Module, duo: Any, case: Case, clock: Clock, environ: dict[str, str]) -> Pass:
    run(under({"clock": clock}, module.command("--once")), environ)
    notes = duo.take_notes()
    asked = [note.log_type for note in notes if note.log_type]
    requests = max(asked.count(log_type) for log_type in asked)
    return Pass(notes[-1].at_s - notes[0].at_s + case.latency_s, requests)


def fill(duo: Any, start_ms: int, end_ms: int) -> None:
    """So many pages in each log that the last one is not full."""
    for log_type in ALL:
        events = PAGES * PAGE_SIZES.get(log_type, 1000)
        duo.fill(log_type, events - events // (2 * PAGES), start_ms, end_ms, True)


def measure_case(case: Case, modules: list[Module]) -> list[Row]:
    """A pass through a backlog, and one that is caught up, of each module."""
    clock = Clock.from_now(case.speed)
    rows = []
    with tenant(clock, latency_s=case.latency_s) as (duo, folder):
        end_ms = duo.now_ms() - DAY_MS // 24
        fill(duo, end_ms - DAY_MS // 4, end_ms)
        for log_types in (FEW, ALL):
            backlogs = []
            caught_up = []
            for module in modules:
                environ = environment(
                    duo, folder, end_ms - DAY_MS // 4, DUO_LOG_TYPES=",".join(log_types)
                )
                backlogs.append(run_pass(module, duo, case, clock, environ))
                caught_up.append(run_pass(module, duo, case, clock, environ))
                os.unlink(environ["DUO_CHECKPOINT_FILE"])
                what = f"{module.label}, {len(log_types)} logs, {case.latency_s:g} s an answer"
                say(f"{what}: {backlogs[-1].took_s:.1f} s, {caught_up[-1].took_s:.2f} s")
            rows.append(case_row(case, len(log_types), modules, backlogs, caught_up))
    return rows


def case_row(
    case: Case, logs: int, modules: list[Module], backlogs: list[Pass], caught_up: list[Pass]
) -> Row:
    between_s = max(case.latency_s, INTERVAL_S)
    own_s = (backlogs[0].requests - 1) * between_s + case.latency_s
    where = f"{logs} logs, {case.latency_s:g} s an answer"
    say_missed(where, above(backlogs[0].took_s / own_s, 1.5))
    # Duo's time, then all logs at once; 1 s, on the fast clock, for what takes CPU
    say_missed(f"{where}, caught up", above(caught_up[0].took_s, 2 * case.latency_s + 1))
    labels = [module.label for module in modules]
    columns = (
        "an answer takes",
        "log types",
        "the busiest log's own requests",
        *(f"{label}, {PAGES} pages a log" for label in labels),
        *(f"{label}, caught up" for label in labels),
    )
    cells = (
        f"{case.latency_s:g} s",
        str(logs),
        f"{own_s:.1f} s",
        *(f"{each.took_s:.1f} s" for each in backlogs),
        *(f"{each.took_s:.2f} s" for each in caught_up),
    )
    return Row(columns, cells)


def latency(modules: list[Module]) -> list[Row]:
    """The cases side by side, since they mostly wait."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        results = pool.map(lambda case: measure_case(case, modules), CASES)
        return [row for rows in results for row in rows]
