"""The pace of a module under eighteen kinds of rate limit, in simulated time."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from .limits import CASES, WANTED, drain_often, judge
from .rig import Module
from .tables import Row, above, say_missed


def load_pace(module: Module) -> Any:
    """The class Pace of a module."""
    name = f"measured_{abs(hash(module.path))}"
    spec = importlib.util.spec_from_file_location(name, module.path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # where its dataclasses look for their annotations
    spec.loader.exec_module(loaded)
    return loaded.Pace


def pace(modules: list[Module]) -> list[Row]:
    results = [[drain_often(load_pace(module), case) for case in CASES] for module in modules]
    verdicts = [judge(of_module) for of_module in results]
    for name, value, wanted in zip(WANTED._fields, verdicts[0], WANTED):
        say_missed(f"pace, {name}", above(value, wanted))
    head = ("limit", *(f"{module.label}: time over the floor, 429s" for module in modules))
    rows = [
        Row(head, (case.name, *(f"{each.of_floor:.2f}, {each.refused:.1%}" for each in of_case)))
        for case, *of_case in zip(CASES, *results)
    ]
    worst = [f"{verdict.worst:.2f}" for verdict in verdicts]
    means = [f"{verdict.geometric_mean:.2f}, {verdict.refused:.1%}" for verdict in verdicts]
    return [*rows, Row(head, ("worst", *worst)), Row(head, ("geometric mean, mean", *means))]
