"""The command line."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from . import __doc__ as about
from .cost import cost, missing, start
from .drains import drains
from .latency import latency
from .pace import pace
from .passes import passes, publication, saves
from .rig import Module, read_modules
from .tables import Figure, Row, figure_row, markdown, say

COLLECTOR = Path(__file__).resolve().parent.parent.parent / "duo_collector.py"


def in_turn(measure_one: Callable[[Module], list[Figure]]) -> Callable[[list[Module]], list[Row]]:
    """Measure one module after the other."""

    def measure(modules: list[Module]) -> list[Row]:
        results = [measure_one(module) for module in modules]
        labels = [module.label for module in modules]
        return [figure_row(labels, figures) for figures in zip(*results)]

    return measure


def parts(picture: str | None) -> dict[str, Callable[[list[Module]], list[Row]]]:
    return {
        "cost": cost,
        "missing": missing,
        "start": start,
        "passes": in_turn(passes),
        "saves": in_turn(saves),
        "publication": in_turn(publication),
        "drains": lambda modules: drains(modules, picture),
        "latency": latency,
        "pace": pace,
    }


def main() -> None:
    names = list(parts(None))
    parser = argparse.ArgumentParser(
        prog="tests/benchmark",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", metavar="PART", action="append", choices=names, help=", ".join(names))
    add("--module", metavar="PATH", default=str(COLLECTOR), help="another duo_collector.py")
    add("--beside", metavar="PATH", help="one more duo_collector.py, to measure side by side")
    add("--picture", metavar="FILE", help="draw the drain of a backlog here: .svg or .png")
    options = parser.parse_args()
    wanted = options.only or names
    if options.picture and "drains" not in wanted:
        parser.error("--picture is drawn of the drains")
    try:
        modules = read_modules(options.module, options.beside)
    except OSError as error:
        parser.error(str(error))
    began_s = time.monotonic()
    rows: list[Row] = []
    for name, measure in parts(options.picture).items():
        if name in wanted:
            say(name)
            rows += measure(modules)
    print(markdown(rows))
    system = f"{platform.system()} {platform.release().partition('-')[0]} on {platform.machine()}"
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {system}.")
    say(f"took {time.monotonic() - began_s:.0f} s")
