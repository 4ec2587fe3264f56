"""The command line: live one life, or find out what a failing one needs."""

from __future__ import annotations

import argparse
import collections
import gc
import importlib.util
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .basics import DAY, SCRIPT, START, Failure
from .disturbances import DISTURBANCES, INVENTED
from .world import Life, World


class Verdict(NamedTuple):
    failure: str  # empty: all held
    day: float
    world: World


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("simulated_collector", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def simulate(life: Life, yearly: Callable[[World], Any] | None = None) -> Verdict:
    """One life. `yearly` is called with the world at the end of each year."""
    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="simulate.", dir=place) as folder:
        for name in (None, "duo_collector"):  # of the life before
            logging.getLogger(name).handlers.clear()
        world = World(load(life.module), life, Path(folder))
        if yearly:
            for year in range(1, int(life.days / 365) + 1):
                world.at(START + year * 365 * DAY - 1, lambda: yearly(world))
        failure = ""
        try:
            world.live()
        except Failure as failed:
            failure = str(failed)
        return Verdict(failure, (world.time - START) / DAY, world)


def shrink(life: Life) -> None:
    """Say which disturbances a failure needs: leave out one after the other, for good where it fails
    all the same."""
    if not simulate(life).failure:
        print(f"seed {life.seed} does not fail within {life.days:g} days")
        return
    needed = []
    for name in DISTURBANCES:
        if name in life.without:
            continue
        fewer = life._replace(without=(*life.without, name))
        if simulate(fewer).failure:
            life = fewer
            print(f"  without {name}: fails all the same", flush=True)
        else:
            needed.append(name)
            print(f"  without {name}: holds, so it is needed", flush=True)
    last = simulate(life)
    names = ", ".join(needed) or "none of them"
    print(f"seed {life.seed} fails with {names} alone, on day {last.day:.1f}: {last.failure}")
    print(f"replay: {command(life, last.day)} --verbose")


def command(life: Life, day: float) -> str:
    """What to type to see the same again."""
    words = ["tests/simulate", "--seed", str(life.seed), "--until", f"{day + 0.01:.2f}d"]
    if life.without == INVENTED:
        words.append("--only-reported")
    elif life.without:
        words += ["--without", ",".join(life.without)]
    if life.often != 1:
        words += ["--often", f"{life.often:g}"]
    if life.interval:
        words += ["--interval", f"{life.interval:g}"]
    if life.module != SCRIPT:
        words += ["--module", str(life.module)]
    return " ".join(words)


class Years:
    """Prints a line at the end of each year: what happened in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.began = time.monotonic()
        self.year = 0
        self.happened: collections.Counter = collections.Counter()
        self.published = self.passes = 0

    def line(self, world: World, verdict: str = "all held") -> None:
        self.year += 1
        happened = (world.happened - self.happened).most_common()
        what = ", ".join(f"{name} {count}" for name, count in happened)
        events = world.ledger.published - self.published
        passes = world.passes - self.passes
        took_s = time.monotonic() - self.began
        print(
            f"seed {self.seed}, year {self.year}: {events:,} events, {passes:,} passes, "
            f"{took_s:.0f} s; {what}; {verdict}",
            file=sys.__stdout__,
            flush=True,
        )
        self.happened = world.happened.copy()
        self.published, self.passes = world.ledger.published, world.passes


def days_of(text: str) -> float:
    """118d or 118, in days."""
    return float(text[:-1] if text.endswith("d") else text)


def names_of(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = set(names) - set(DISTURBANCES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such disturbance: {', '.join(unknown)}")
    return names


def parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/simulate",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="reported: "
        + ", ".join(name for name in DISTURBANCES if name not in INVENTED)
        + "\ninvented: "
        + ", ".join(INVENTED),
    )
    add = parser.add_argument
    add("--years", type=int, default=1, help="how long the life is (default: %(default)s)")
    add("--until", type=days_of, metavar="DAYS", help="end there, as 118d, in place of --years")
    add("--seed", type=int, help="default: a fresh one, which is printed")
    add("--often", type=float, default=1, metavar="TIMES",
        help="every disturbance so many times as often (default: %(default)s)")  # fmt: skip
    add("--interval", type=float, metavar="SECONDS", help="always this pause (default: drawn)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--without", type=names_of, default=(), metavar="NAME,...",
                        help="leave these disturbances out")  # fmt: skip
    chosen.add_argument("--only-reported", dest="without", action="store_const", const=INVENTED,
                        help="leave out those that nobody has reported")  # fmt: skip
    add("--shrink", action="store_true", help="find out which disturbances a failing seed needs")
    add("--module", type=Path, default=SCRIPT, metavar="PATH", help="another duo_collector.py")
    add("--verbose", action="store_true", help="all that happens, and what the collector says")
    return parser


def main(description: str) -> int:
    options = parser(description).parse_args()
    seed = options.seed
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    days = options.until or options.years * 365
    life = Life(
        options.module,
        seed,
        days,
        options.without,
        options.often,
        options.interval,
        options.verbose,
    )
    if options.shrink:
        shrink(life)
        return 0
    gc.disable()  # hundreds of thousands of events that stay; forget() collects what cycles there are
    years = Years(seed)
    verdict = simulate(life, years.line)
    if verdict.failure or days % 365:
        years.line(verdict.world, "FAILED" if verdict.failure else "all held")
    if not verdict.failure:
        return 0
    print(f"seed {seed}, day {verdict.day:.3f}: {verdict.failure}")
    for process in verdict.world.processes:
        print(f"  the last that the {process.kind} said:")
        for said in list(process.lines)[-8:]:
            print("    " + said)
    again = command(life, verdict.day)
    print(f"replay: {again} --verbose\nshrink: {again} --shrink")
    return 1
