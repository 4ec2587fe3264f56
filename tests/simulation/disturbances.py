"""What goes wrong, how often, and what may come of it.

A disturbance is *reported* if somebody's documentation or report tells of it, or if it is one of
the failures that any machine has; its row names the source. Of these and all that happens together
with them, no event is lost, and none is written twice but for the page in progress. The others are
*invented*: the simplest safe treatment will do. Nothing is lost or skipped without a word either,
but a pass may fail, and what its row says may happen besides.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from duo import COMMON_FAULTS, LOG_TYPES

from .basics import DAY, HOUR

if TYPE_CHECKING:
    from .world import World

Begin = Callable[["World", random.Random], Any]


class Disturbance(NamedTuple):
    begin: Begin  # what it returns is called at the end
    per_year: float
    hours: tuple[float, float]  # that it lasts
    is_harmless: bool  # each log type gets on while it lasts
    statuses: tuple[int, ...]  # besides 0, of a run with --once that met it
    source: str  # who reported it; empty: invented

    @property
    def is_reported(self) -> bool:
        return bool(self.source)


def lasts(low: float, high: float, draw: random.Random) -> float:
    """Some hours between these, as often 1 to 2 as 10 to 20."""
    return low * (high / low) ** draw.random() if low else 0


def from_the_start(world: World, draw: random.Random) -> None:
    """It is in the events: see publication.py."""


def rules(**choices: Any) -> Begin:
    """Change Duo's rules to one of these values each, or to what a function draws."""

    def begin(world: World, draw: random.Random) -> Callable[[], Any]:
        changes = {}
        for name, choice in choices.items():
            changes[name] = choice(draw) if callable(choice) else draw.choice(choice)
        return world.change_rules(changes)

    return begin


def often_beside(other: str, begin: Begin) -> Begin:
    """What alone would seldom meet another disturbance: three times in four that begins first."""

    def both(world: World, draw: random.Random) -> Any:
        if world.has(other) and draw.random() < 0.75:
            world.happen(other, lasts(*DISTURBANCES[other].hours, draw), draw)
        return begin(world, draw)

    return both


# How Duo answers

LIMITS = (  # requests, in s, shape
    (20, 60, "sliding"), (2, 60, "sliding"), (12, 60, "sliding"), (20, 60, "fixed"), (10, 60, "fixed"),
    (5, 10, "sliding"), (1, 30, "sliding"), (5, 60, "bucket"), (1, 2, "bucket"), (10, 60, "bucket"))  # fmt: skip
OUTAGES = [
    ("error_500",), ("error_503",), ("html_502", "not_json"), ("empty_200", "stat_fail"), ("reset", "cut")]  # fmt: skip


def habits(world: World, draw: random.Random) -> None:
    """Another answer to the questions that nobody's documentation answers. Not `ties`: what Duo
    shuffles between two calls cannot be read whole."""
    choose = draw.choice
    world.habits.update(
        cursor=choose(("last", "next")),
        last_cursor=choose(("present", "null", "missing")),
        auth_cursor=choose(("list", "string")),
        trust_cursor=choose(("string", "int")),
        trust_order=choose(("ascending", "descending")),
        # Nobody can page on from a short page of v1 that ends in an event without a time.
        short_pages=draw.random() < 0.3 and not world.has_odd_v1_times,
        total=choose(("int", "int", "object", "absent")),
        v1_order=choose(("ascending", "shuffled")),
        v1_mintime=choose(("inclusive", "exclusive")),
        young=choose(("cut", "empty")),
        old=choose(("400", "400", "accept")),
        unknown_parameters=choose(("ignore", "400")),
        code_as_string=draw.random() < 0.3,
        date_code=choose((40105, 40104)),
        cursor_window=choose(("free", "same")),
        fault_rate=0.002,
    )
    world.change_rules({})


def outage(world: World, draw: random.Random) -> Callable[[], Any]:
    kinds = draw.choice(OUTAGES)
    ping_faults = draw.choice((kinds, kinds, ()))
    return world.change_rules({"fault_rate": 1.0, "fault_kinds": kinds, "ping_faults": ping_faults})


def rate_limit(world: World, draw: random.Random) -> Callable[[], Any]:
    limit, window_s, shape = draw.choice(LIMITS)
    return world.change_rules(
        {
            "rate_limit": limit,
            "rate_window_s": float(window_s),
            "rate_shape": shape,
            "rate_scope": draw.choice(("endpoint", "endpoint", "account")),
            "count_refused": draw.random() < 0.2,
            "retry_after": draw.choice((None, None, "seconds", "date")),
        }
    )


def refused_log(draw: random.Random) -> dict[str, int]:
    return {draw.choice(list(LOG_TYPES)): draw.choice((403, 403, 404, 400))}


def no_ping(world: World, draw: random.Random) -> Callable[[], Any]:
    """Duo does not tell its time; soon, somebody needs that."""
    if world.has("replay"):
        world.at(world.time + draw.uniform(0, 2) * HOUR, lambda: world.happen("replay", 0, draw))
    faults = draw.choice(
        (("error_404",), ("error_500",), ("html_502",), ("no_time",), ("reset", "cut"))
    )
    return world.change_rules({"ping_faults": faults})


def proxy_date(world: World, draw: random.Random) -> Callable[[], Any]:
    return world.change_rules({"date_offset": draw.choice((-1, 1)) * draw.uniform(1200, 9000)})


# What lies between, and the machine


def network(*kinds: str) -> Begin:
    def begin(world: World, draw: random.Random) -> Callable[[], Any]:
        world.network = draw.choice(kinds)
        return lambda: setattr(world, "network", None)

    return begin


def slow_link(world: World, draw: random.Random) -> Callable[[], Any]:
    world.link_bytes_per_s = draw.uniform(800, 3_000)
    return lambda: setattr(world, "link_bytes_per_s", 0)


def clock_step(world: World, draw: random.Random) -> Callable[[], Any]:
    minutes, hours, days = (
        draw.uniform(60, 3600),
        draw.uniform(1, 24) * HOUR,
        draw.uniform(1, 9) * DAY,
    )
    step = draw.choice((-1, 1)) * draw.choice((minutes, hours, days, 200 * DAY))
    world.step_clock(step)
    return lambda: world.step_clock(-step)


def ntp_step(world: World, draw: random.Random) -> Callable[[], Any]:
    """A clock that was set wrong is set right while a pass asks."""
    step = draw.choice((-1, 1)) * draw.choice((draw.uniform(0.2, 20), draw.uniform(20, 900)))
    world.steps_due.append((draw.randrange(6), step))
    return lambda: world.steps_due.append((draw.randrange(6), -step))


def drift(world: World, draw: random.Random) -> Callable[[], Any]:
    world.drift, world.drift_since = draw.uniform(-4e-5, 4e-5), world.time
    return lambda: setattr(world, "drift", 0.0)


def suspend(world: World, draw: random.Random) -> None:
    length = draw.uniform(0.05, 60) * HOUR
    world.turns.suspend(length)
    world.suspended += length


def sigterm(world: World, draw: random.Random) -> None:
    world.stop_service()


def kill(world: World, draw: random.Random) -> None:
    """At once, or in one of the next system calls."""
    if draw.random() < 0.2:
        world.kill_service()
    else:
        world.disk.left = draw.randrange(30)


def power_failure(world: World, draw: random.Random) -> None:
    world.power_fails(draw)


def disk(attribute: str, value: Any) -> Begin:
    def begin(world: World, draw: random.Random) -> Callable[[], Any]:
        setattr(world.disk, attribute, value)
        return lambda: setattr(world.disk, attribute, type(value)())

    return begin


def of_operator(action: str) -> Begin:
    """Something that the operator does: see operators.py."""
    return lambda world, draw: getattr(world.operator, action)(draw)


Row = Disturbance
DISTURBANCES: dict[str, Disturbance] = {
    # What Duo publishes
    "late": Row(from_the_start, 0, (0, 0), True, (), "demisto/content #35588"),
    "hours_late": Row(from_the_start, 0, (0, 0), True, (), "status.duo.com: 2020-08, 2023-06, 2023-09"),
    # --missing-from may print such an event again
    "odd_times": Row(from_the_start, 0, (0, 0), True, (), ""),
    "crowds": Row(from_the_start, 0, (0, 0), True, (), "elastic/integrations: directory syncs; duo_api_golang steps a second"),
    "pipeline_stall": Row(from_the_start, 8, (1, 16), True, (), "status.duo.com: 2020-08, 2023-06, 2023-09"),
    # How Duo answers
    "habits": Row(habits, 12, (0, 0), True, (), "Duo's clients and documentation contradict each other"),
    "slow_answers": Row(rules(latency_s=lambda draw: draw.uniform(1, 60)), 8, (1, 48), True, (),
        "Sentinel's connectors wait 60 s, others 120 s; demisto/content #35617"),
    "outage": Row(outage, 10, (0.05, 20), False, (75,), "Duo's documentation: 50001; the mock of duo_unix: empty bodies"),
    "flaky": Row(rules(fault_rate=[0.05, 0.2, 0.5], fault_kinds=[COMMON_FAULTS], stall_s=[5.0, 60.0]), 8, (1, 48), False, (75,),
        "any network"),
    "rate_limit": Row(rate_limit, 12, (1, 100), False, (75,), "duo_client_python #101, #240; elastic/integrations #11441"),
    "forgotten_cursors": Row(rules(cursor_lifetime=[0.0, 1.0, 10.0]), 4, (24, 300), False, (75,), ""),
    "refused_cursors": Row(rules(cursor_pages=[1, 2, 5]), 4, (24, 300), False, (75,), ""),
    # Without short pages: where there is no cursor to go on with, they could not be told from the end.
    # Of trust monitor, a hole may be told where there is none: a full page may be the last.
    "missing_metadata": Row(rules(short_pages=[False], fault_rate=[0.3], fault_kinds=[
        ("no_metadata",), ("no_cursor",), ("no_metadata", "no_cursor")]), 6, (100, 700), False, (75,), ""),
    "spoilt_json": Row(rules(fault_rate=[0.1], fault_kinds=[("deep", "truncated")]), 3, (1, 24), False, (75,), ""),
    # Without them, too: a short page that holds as many events as Duo counts is the end of a window.
    "lying_counts": Row(rules(short_pages=[False], total=["remaining", "changing", "page"]), 4, (24, 300), True, (),
        "elastic/integrations: its mock counts down"),
    "refused_log": Row(rules(missing=refused_log), 4, (1, 40), False, (75, 77), "duo_log_sync #34; Azure-Sentinel #6183"),
    "date_outage": Row(rules(fault_rate=[1.0], fault_kinds=[
        ("clock_401",), *2 * [("clock_401", "error_500", "error_429", "reset", "cut")]]), 2, (0.5, 4), False, (75, 77),
        "2024-03-10: 40105 to everybody (Auto-2FA #8)"),
    # The local clock counts. Where it is wrong, a pass fails, and late events are for --missing-from.
    "no_ping": Row(often_beside("clock_step", no_ping), 5, (2, 72), True, (75,), ""),
    # What lies between
    "no_network": Row(network("refused", "unreachable", "silent"), 12, (0.02, 30), False, (75,), "any network"),
    "slow_link": Row(slow_link, 4, (2, 60), True, (75,), "any network"),
    "proxy_date": Row(proxy_date, 6, (1, 60), True, (), ""),
    # The machine
    "kill": Row(kill, 80, (0, 0), False, (), "any machine"),
    "power_failure": Row(power_failure, 12, (0, 0), False, (), "any machine"),
    "sigterm": Row(sigterm, 30, (0, 0), False, (75,), "any machine"),
    "suspend": Row(suspend, 12, (0, 0), False, (75, 77), ""),
    # --missing-from passes over files by when they were last changed, and may print their events again
    "clock_step": Row(clock_step, 12, (0.2, 100), True, (), "duo_unix #311, #354"),
    "ntp_step": Row(ntp_step, 12, (0.02, 3), True, (), "duo_unix #311, #354"),
    "drift": Row(drift, 3, (100, 700), True, (), "duo_unix #311, #354"),
    "full_disk": Row(disk("is_full", True), 8, (0.1, 6), False, (74, 78), "any machine"),
    "full_output": Row(disk("is_output_full", True), 8, (0.1, 6), False, (74,), "any machine"),
    # A power failure takes back the last minute, which comes again
    "odd_folder": Row(disk("folder_errno", errno.EINVAL), 4, (2, 48), True, (), ""),
    "closed_folder": Row(disk("folder_errno", errno.EACCES), 2, (1, 10), False, (74, 78), ""),
    # A page may begin with an empty line
    "unreadable_output": Row(disk("is_unreadable", True), 3, (24, 300), True, (), ""),
    "rotation": Row(of_operator("rotate"), 250, (0, 0), True, (), "any machine"),
    # The operator
    "reconfigure": Row(of_operator("reconfigure"), 12, (0, 0), False, (), "README"),
    "since_back": Row(of_operator("since_back"), 4, (0, 0), False, (), "README"),
    "since_forward": Row(of_operator("since_forward"), 3, (0, 0), False, (), "README"),
    "first_run": Row(often_beside("clock_step", of_operator("first_run")), 3, (0, 0), False, (), "README"),
    "lost_checkpoint": Row(of_operator("lose_checkpoint"), 3, (0, 0), False, (), "any machine"),
    "restored_checkpoint": Row(of_operator("restore_checkpoint"), 4, (0, 0), False, (), "any machine"),
    "replay": Row(of_operator("replay"), 12, (0, 0), True, (), "README"),
    "missing_from": Row(of_operator("missing_from"), 120, (0, 0), True, (), "README"),
    "wrong_key": Row(of_operator("wrong_key"), 3, (0.2, 20), False, (77,), "duo_log_sync #2"),
    "rotated_key": Row(of_operator("rotate_key"), 3, (0.01, 20), False, (77,), "duo_log_sync #2"),
    "another_tenant": Row(of_operator("another_tenant"), 3, (0, 0), False, (), "README"),
}  # fmt: skip
INVENTED = tuple(name for name, row in DISTURBANCES.items() if not row.is_reported)
