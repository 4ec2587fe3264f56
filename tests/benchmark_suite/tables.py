"""Figures, the targets that they are to meet, and the Markdown tables that show them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PEERS = ("(a)", "(b)", "(c)")


class Figure(NamedTuple):
    """What was measured of one module."""

    name: str
    measured: str
    missed: str = ""  # what was measured and what the target is, where it is missed


class Row(NamedTuple):
    """A row of the table that has these columns."""

    columns: tuple[str, ...]
    cells: tuple[str, ...]


def say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def say_missed(name: str, missed: str) -> None:
    """Name a target that is missed. It is no error: the exit status is 0."""
    if missed:
        say(f"TARGET MISSED: {name}: {missed}")


def above(value: float, most: float) -> str:
    """What is missed, where a value is above its target."""
    return "" if value <= most else f"{value:.3g}, target ≤ {most}"


def figure_row(
    labels: Sequence[str], figures: Sequence[Figure], peers: Sequence[str] | None = None
) -> Row:
    """The row of a figure of each module; with peers, in the table that has columns for them.

    The first module is the one that targets are for.
    """
    columns = ("", *labels, *(() if peers is None else PEERS))
    name, _, missed = figures[0]
    say_missed(name, missed)
    return Row(columns, (name, *(figure.measured for figure in figures), *(peers or ())))


def markdown(rows: Iterable[Row]) -> str:
    """One table for all rows that have the same columns, in the order in which they first come."""
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        tables.setdefault(row.columns, []).append(row)
    return "\n".join(_table(columns, tables[columns]) for columns in tables)


def _table(columns: tuple[str, ...], rows: list[Row]) -> str:
    head = "".join(f"| {column} " if column else "| " for column in columns)
    lines = [f"{head}|", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    return "".join(f"{line}\n" for line in lines)
