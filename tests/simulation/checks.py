"""What has to hold besides the ledger: how a process ends, that collection gets on, what is said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duo import COMMON_FAULTS

from .basics import DAY, HIDDEN_S, HOUR, MINUTE, Failure, stamp
from .disturbances import DISTURBANCES

if TYPE_CHECKING:
    from .process import Process
    from .world import World

SLACK_S = 300  # a time that is written as an age may be off by so much
CALM_S = 3 * HOUR  # after so long without trouble every log type has caught up
PASSED_OVER = re.compile(r"(\w+): Duo serves only the last 180 days; passed over: (\S+) to")
PASS = re.compile(r"(\w+): [\d,]+ events? in [\d,]+ requests?")
FAILURES = {*COMMON_FAULTS, "no answer", 429, 500, 502, 503}


def check_status(world: World, process: Process) -> None:
    """The exit status fits what the process met."""
    status, met = process.status, process.met
    if status is None or process.kind == "another":
        return
    is_once = "--once" in process.arguments or process.kind != "service"
    right = set()
    if is_once or process.stopping:
        right.add(0)
    if is_once:
        for name in met & DISTURBANCES.keys():
            right.update(DISTURBANCES[name].statuses)
        if not process.is_sure_of_time:  # the local clock counts, and Duo refuses it
            right |= {75, 77}
        if process.stopping or met & FAILURES:
            right.add(75)
    if met & {"disk", "full_disk", "full_output", "closed_folder"}:
        right |= {74, 78}
    if process.kind == "missing" and "unreadable_output" in met:
        right.add(78)
    if process.kind == "missing" and world.checkpoints:
        oldest = min(world.checkpoints.get(name, 0) for name in world.operator.log_types)
        if oldest < process.since + 2 * SLACK_S:
            right.add(75)  # it has not got beyond --since: nothing can be compared
    if "--since" in process.arguments and not process.is_sure_of_time:
        right.add(2)  # it seems to be ahead
    how = f"{process.kind} {' '.join(process.arguments)} ended with {status}"
    if status not in right:
        raise Failure(f"{how}, which does not fit what it met: {sorted(map(str, met))}")
    for name, passes in process.passes.items():
        if is_once and passes > 1:
            raise Failure(f"{how}, and {name} had {passes} passes in it")
    if is_once and process.kind == "service" and status == 0:
        for name in world.operator.log_types:
            behind = process.began - HIDDEN_S - world.checkpoints.get(name, 0)
            if (
                behind > 90
            ):  # the ping may have taken a minute, and tells the time when it was asked
                raise Failure(f"{how}, though {name} is {behind:.0f} s behind what Duo showed then")


def check_progress(world: World) -> None:
    """With Duo and the machine well, each log type gets on."""
    operator = world.operator
    if is_far_behind(world) or not is_calm(world, CALM_S + operator.interval):
        return
    interval = operator.interval
    if world.time < operator.changed + 15 * MINUTE:  # the first pass since then may not be over
        interval = max(interval, operator.former)
    for name in operator.log_types:
        behind = world.time - world.checkpoints.get(name, 0)
        if behind > interval + 20 * MINUTE:
            calm = f"calm since {stamp(world.calm_since)}, {behind:.0f} s behind"
            raise Failure(f"{name} does not get on: {calm}")


def is_calm(world: World, seconds: float) -> bool:
    """Whether there has been no trouble for so long."""
    now = {name for name, count in world.active.items() if count}
    is_trouble = any(not DISTURBANCES[name].is_harmless for name in now)
    if is_trouble or (world.duo.rules.ping_faults and world.is_clock_wrong):
        world.calm_since = world.time
    return world.time - world.calm_since >= seconds


def is_far_behind(world: World) -> bool:
    """Whether a log type is weeks behind, as in a first run, and has got on since this was last
    asked."""
    before, world.checkpoints_before = world.checkpoints_before, dict(world.checkpoints)
    is_far = False
    for name, at in world.checkpoints.items():
        is_far |= before.get(name, 0) < at < world.time - 21 * DAY
    if is_far:
        world.calm_since = world.time
    return is_far


def check_words(world: World, process: Process, line: str) -> None:
    """A message names the cause, and once is enough."""
    if "Traceback" in line:
        raise Failure(line)
    if "Bad request timestamp" in line and not re.search("date|clock", line):
        raise Failure(f"Duo refuses the date, and nothing is said of it: {line}")
    gap = PASSED_OVER.search(line)
    if gap and gap.groups() in process.passed_over:
        raise Failure(f"told twice: {line}")
    if gap:
        process.passed_over.add(gap.groups())
    if "perhaps a hole" in line:
        world.ledger.hole(re.search(r"(\w+): ", line)[1], line, process)
    end = PASS.search(line)
    if end:
        process.passes[end[1]] += 1
        world.passes += 1
        check_end_of_pass(world, process, line)


def check_end_of_pass(world: World, process: Process, line: str) -> None:
    # A step in the middle of a request is learned from the next one.
    is_settled = world.time > world.stepped + MINUTE
    is_well = is_settled and is_calm(world, world.operator.interval + 5 * MINUTE)
    if "Bad request timestamp" in line and is_well:
        calm = f"though all has been well since {stamp(world.calm_since)}"
        raise Failure(f"Duo refuses the date, {calm}: {line}")
    excuses = {"refused_log", "suspend", "forgotten_cursors", "refused_cursors"}
    if "Duo rejects the request" in line and not excuses & process.met:
        raise Failure(f"Duo was asked for what it does not serve: {line}")
