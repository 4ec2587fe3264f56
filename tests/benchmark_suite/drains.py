"""Backlogs under a limit, each on a fast clock."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from statistics import mean
from typing import NamedTuple

from .rig import DAY_MS, Module, environment, run, tenant, under
from .tables import Figure, Row, above, figure_row
from .under import Clock

LOG_SYNC_S = 120  # between two requests of Duo Log Sync


class Drain(NamedTuple):
    """A backlog under a limit that may change half way.

    A page takes some 5 ms of CPU, which has to be little beside the time between two. Checked
    against the real clock: 10 → 50 (20 and 100 pages) takes 299 s either way, 50 → 200 (120 and
    240 pages) 195 s and on the fast clock 196 s, 200 → 2 (240 and 10 pages) 379 s either way, each
    with the same number of 429s.
    """

    speed: float
    halves: tuple[tuple[int, int], ...]  # pages, and the limit a minute that they meet
    ceiling: str = "300"  # DUO_REQUESTS_PER_MINUTE

    @property
    def name(self) -> str:
        return " → ".join(str(limit) for _, limit in self.halves)

    @property
    def pages(self) -> int:
        return sum(pages for pages, _ in self.halves)

    def floor_s(self) -> list[float]:
        """When the limit lets each page through at the earliest: no more than it says in any
        60 s."""
        times_s: list[float] = []
        for pages, limit in self.halves:
            for _ in range(pages):
                previous_s = times_s[-1] if times_s else 0
                freed_s = times_s[-limit] + 60 if len(times_s) >= limit else 0
                times_s.append(max(freed_s, previous_s))
        return times_s


KNOWN = Drain(3, ((251, 50),), ceiling="50")
UNKNOWN = (
    Drain(25, ((120, 2), (120, 10))),
    Drain(6, ((120, 10), (120, 50))),
    Drain(3, ((240, 50), (240, 200))),
    Drain(10, ((240, 200), (60, 2))),
)


class Drained(NamedTuple):
    """How a module has drained a backlog."""

    times_s: list[float]  # when each page was asked for, from the first request on
    refused: float  # share of 429s


def run_drain(module: Module, drain: Drain, ready: threading.Barrier) -> Drained:
    clock = Clock.from_now(drain.speed)
    with tenant(clock, rate_limit=drain.halves[0][1]) as (duo, folder):
        duo.change_after(drain.halves[0][0], "rate_limit", drain.halves[-1][1])
        end_ms = duo.now_ms() - DAY_MS // 24
        start_ms = end_ms - DAY_MS
        duo.fill("authentication", drain.pages * 1000 - 500, start_ms, end_ms, True)
        ready.wait(180)  # loading events takes CPU that no drain should miss
        environ = environment(duo, folder, start_ms, DUO_REQUESTS_PER_MINUTE=drain.ceiling)
        run(under({"clock": clock}, module.once("authentication")), environ, stop_after_s=1200)
        notes = [note for note in duo.take_notes() if note.log_type]
    times_s = [note.at_s - notes[0].at_s for note in notes if note.status == 200]
    if len(times_s) < drain.pages:
        raise RuntimeError(f"{drain.name}: {len(times_s)} pages of {drain.pages}")
    return Drained(times_s[: drain.pages], 1 - len(times_s) / len(notes))


def drain_all(module: Module) -> list[Drained]:
    cases = (KNOWN, *UNKNOWN)
    ready = threading.Barrier(len(cases))
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(lambda drain: run_drain(module, drain, ready), cases))


def drains(modules: list[Module], picture: str | None) -> list[Row]:
    results = [drain_all(module) for module in modules]
    if picture:
        draw(results[0][0].times_s, picture)
    known = [known_figures(result[0]) for result in results]
    unknown = [unknown_figures(result[1:]) for result in results]
    labels = [module.label for module in modules]
    log_sync = f"{(KNOWN.pages - 1) * LOG_SYNC_S:,} s"
    times, *rest = zip(*(first + then for first, then in zip(known, unknown)))
    return [
        figure_row(labels, times, ("", "", log_sync)),
        *(figure_row(labels, figures) for figures in rest),
    ]


def known_figures(drained: Drained) -> list[Figure]:
    took_s = drained.times_s[-1]
    floor_s = KNOWN.floor_s()[-1]
    return [
        Figure(
            f"time for {KNOWN.pages} pages of 1,000 events under a limit of {KNOWN.name} requests"
            " a minute",
            f"{took_s:.0f} s; the limit allows {floor_s:.0f} s",
            above(took_s / floor_s, 1.1),
        ),
        Figure("429s in that", f"{drained.refused:.1%}", above(drained.refused, 0.03)),
    ]


def unknown_figures(results: list[Drained]) -> list[Figure]:
    ratios = [drained.times_s[-1] / drain.floor_s()[-1] for drain, drained in zip(UNKNOWN, results)]
    each = ", ".join(f"{drain.name}: {value:.2f}" for drain, value in zip(UNKNOWN, ratios))
    refused = [drained.refused for drained in results]
    return [
        Figure(
            "time under a limit that is not known and changes half way (requests a minute),"
            " against the earliest that the limit allows",
            each,
            above(max(ratios), 1.5),
        ),
        Figure(
            "429s in those, in the same order",
            ", ".join(f"{share:.1%}" for share in refused),
            above(mean(refused), 0.12),
        ),
    ]


def draw(us_s: list[float], path: str) -> None:
    """The backlog against time: ours, the limit's floor, and Duo Log Sync's policy."""
    import matplotlib

    matplotlib.use("svg" if path.endswith(".svg") else "agg")
    from matplotlib import pyplot

    pages = len(us_s)
    until_s = us_s[-1] * 1.3
    log_sync_s = [page * LOG_SYNC_S for page in range(pages)]
    hours = log_sync_s[-1] / 3600
    policy = f"Duo Log Sync's policy, 1,000 events each {LOG_SYNC_S} s: {hours:.1f} h"
    floor = f"the floor of {KNOWN.name} requests a minute"
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "duo", "font.size": 11})
    figure, axes = pyplot.subplots(figsize=(8, 4.2), facecolor="white", layout="constrained")
    for times_s, colour, label, x, y in (
        (log_sync_s, "#a93226", policy, 0.38, 1.02),
        (us_s, "#1f618d", "duo_collector", 0.36, 0.55),
        (KNOWN.floor_s(), "#707070", floor, 0.02, 0.08),
    ):
        shown_s = [time_s for time_s in times_s if time_s < until_s]
        left = [pages - page for page in range(len(shown_s) + 1)]
        axes.step([0, *shown_s, until_s], [*left, left[-1]], where="post", color=colour)
        axes.text(x * until_s, y * pages, label, color=colour)
    axes.set(
        xlabel="time (s)",
        ylabel="backlog (thousands of events)",
        xlim=(0, until_s),
        ylim=(0, 1.1 * pages),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
