"""What takes CPU: collecting, --missing-from, and the start of a process."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from .rig import DAY_MS, EVENTS_PER_DAY, UNHURRIED, Module, Usage, environment, measure, run, tenant
from .tables import Figure, Row, above, figure_row, say, say_missed

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
PEERS = {"a": PEER_A, "b": PEER_B}


def measure_peer(duo: Any, folder: str, peer: Module | str, since_ms: int) -> tuple[Usage, int]:
    """What a module or peer takes for the events since a time, and how many events it has written
    or, in (b), counted."""
    told = duo.told()
    url = urlsplit(told["DUO_API_HOST"])
    output = os.path.join(folder, "events")
    if isinstance(peer, Module):
        command = peer.once("authentication")
    else:
        keys = (told["DUO_INTEGRATION_KEY"], told["DUO_SECRET_KEY"])
        window = (str(since_ms), str(duo.now_ms() - 120_000))
        command = [sys.executable, "-c", PEERS[peer], *keys, url.hostname, str(url.port), *window]
    usage = measure(command, environment(duo, folder, since_ms, **UNHURRIED), output)
    with open(output, "rb") as file:
        blocks = iter(lambda: file.read(1 << 20), b"")
        count = int(file.read()) if peer == "b" else sum(block.count(b"\n") for block in blocks)
    for name in os.listdir(folder):  # the next one starts anew
        os.unlink(os.path.join(folder, name))
    label = getattr(peer, "label", peer)
    took = f"{usage.wall_s:.1f} s, CPU {usage.cpu_s:.1f} s, peak {usage.peak_mb:.1f} MB"
    say(f"{label}, {count:,} events: {took}")
    return usage, count


def cost(modules: list[Module]) -> list[Row]:
    utf_8 = cost_of(modules, "utf-8", rounds=5, most=1_000_000)
    ascii_only = cost_of(modules, "ascii", rounds=3, most=200_000)
    return utf_8 + ascii_only[:2]


def cost_of(
    modules: list[Module],
    text: str,
    rounds: int,
    most: int,
    events: int = 200_000,
    least: int = 10_000,
) -> list[Row]:
    """The cost of events whose names and places are in UTF-8, or escaped: nobody documents which
    Duo sends."""
    usages: dict[Module | str, list[Usage]] = {peer: [] for peer in (*modules, *PEERS)}
    counts = set()
    # (b) signs nothing, so nothing but parameters is checked; the others sign all the same.
    with tenant(check_order=("parameters",), text=text) as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        since_ms = {
            count: end_ms - count * DAY_MS // EVENTS_PER_DAY for count in (events, most, least)
        }
        duo.fill("authentication", most, since_ms[most], end_ms, False)
        for _ in range(rounds):
            for peer, of_peer in usages.items():
                usage, count = measure_peer(duo, folder, peer, since_ms[events])
                of_peer.append(usage)
                counts.add(count)
        memory = [memory_of(duo, folder, module, since_ms, least, most) for module in modules]
    if len(counts) > 1:
        raise RuntimeError(f"not all have read the same: {counts}")
    events_read = counts.pop()
    cpu_s = {peer: median(u.cpu_s for u in usages[peer]) for peer in usages}
    wall_s = {peer: median(u.wall_s for u in usages[peer]) for peer in usages}
    million_s = {peer: spent_s / events_read * 1e6 for peer, spent_s in cpu_s.items()}
    what = f"events in {text.upper()}"
    say_missed(f"CPU {what} against (b)", above(cpu_s[modules[0]] / cpu_s["b"], 1.6))
    return [
        peers_row(modules, f"CPU for a million {what}", million_s, 0.7),
        peers_row(modules, f"time for {events:,} {what}, no rate limit", wall_s, 0.6),
        figure_row([module.label for module in modules], memory),
    ]


def peers_row(
    modules: list[Module], name: str, took_s: dict[Module | str, float], most: float
) -> Row:
    """A row of times; most: the target, as a share of what (a) takes."""
    figures = [
        Figure(name, f"{took_s[module]:.1f} s", above(took_s[module] / took_s["a"], most))
        for module in modules
    ]
    peers = [f"{took_s[peer]:.1f} s" for peer in PEERS]
    return figure_row([module.label for module in modules], figures, [*peers, ""])


def memory_of(
    duo: Any, folder: str, module: Module, since_ms: dict[int, int], least: int, most: int
) -> Figure:
    short, _ = measure_peer(duo, folder, module, since_ms[least])
    long, count = measure_peer(duo, folder, module, since_ms[most])
    if count != most:
        raise RuntimeError(f"{count} events of {most}")
    return Figure(
        f"peak memory, {least:,} and {most:,} events",
        f"{short.peak_mb:.0f} MB, {long.peak_mb:.0f} MB",
        above(long.peak_mb / short.peak_mb, 1.1) or above(long.peak_mb, 50),
    )


def missing(
    modules: list[Module], rounds: int = 3, events: int = 200_000, most: int = 1_000_000
) -> list[Row]:
    """--missing-from against collecting the same range, and what it takes for a long file and a
    short range."""
    with tenant() as (duo, folder):
        end_ms = duo.now_ms() - 600_000
        since_ms = end_ms - events * DAY_MS // EVENTS_PER_DAY
        long_since_ms = end_ms - most * DAY_MS // EVENTS_PER_DAY
        duo.fill("authentication", most, long_since_ms, end_ms, False)
        pairs: dict[Module, list[tuple[Usage, Usage]]] = {module: [] for module in modules}
        for _ in range(rounds):
            for module, of_module in pairs.items():
                of_module.append(collect_and_find(duo, folder, module, since_ms, since_ms))
        hour_ms = end_ms - DAY_MS // 24
        long = [
            collect_and_find(duo, folder, module, long_since_ms, hour_ms)[1] for module in modules
        ]
    medians_s = [
        [median(usage.wall_s for usage in usages) for usages in zip(*of_module)]
        for of_module in pairs.values()
    ]
    finding = [
        Figure(
            f"time of `--missing-from` for {events:,} events, none of them missing",
            f"{find_s:.1f} s; collecting them takes {collect_s:.1f} s",
            above(find_s / collect_s, 2.5),
        )
        for collect_s, find_s in medians_s
    ]
    finding_in_long = [
        Figure(
            f"peak memory and time of `--missing-from` with {most:,} lines, for the last hour",
            f"{usage.peak_mb:.0f} MB, {usage.wall_s:.1f} s",
        )
        for usage in long
    ]
    labels = [module.label for module in modules]
    return [figure_row(labels, finding), figure_row(labels, finding_in_long)]


def collect_and_find(
    duo: Any, folder: str, module: Module, since_ms: int, find_since_ms: int
) -> tuple[Usage, Usage]:
    """Collect what is since a time, and then look for what is missing since a time."""
    environ = environment(duo, folder, since_ms, **UNHURRIED)
    lines = os.path.join(folder, "lines")
    found = os.path.join(folder, "found")
    collecting = measure(module.once("authentication"), environ, lines)
    start = datetime.fromtimestamp(find_since_ms / 1000, timezone.utc).isoformat()
    options = ("--log-types", "authentication", "--since", start, "--missing-from", lines)
    finding = measure(module.command(*options), environ, found)
    if os.path.getsize(found):
        raise RuntimeError("--missing-from has found what was not missing")
    os.unlink(environ["DUO_CHECKPOINT_FILE"])
    say(f"{module.label}: collected in {collecting.wall_s:.1f} s, found in {finding.wall_s:.1f} s")
    return collecting, finding


def start(modules: list[Module], rounds: int = 15) -> list[Row]:
    """The time until --status has answered, against what importing requests takes."""
    importing = [sys.executable, "-c", "import requests"]
    commands = [*(module.command("--status") for module in modules), importing]
    with tenant() as (duo, folder):
        environ = environment(duo, folder, duo.now_ms() - DAY_MS)
        run(modules[-1].once("authentication"), environ)  # so that there is a checkpoint file
        rounds_s = [
            [measure(command, environ).wall_s for command in commands] for _ in range(rounds)
        ]
    *us_s, import_s = (median(column) for column in zip(*rounds_s))
    importing_takes = f'`python -c "import requests"` takes {import_s * 1000:.0f} ms'
    figures = [
        Figure(
            "time of `--status`",
            f"{each_s * 1000:.0f} ms; {importing_takes}",
            above(each_s / import_s, 1),
        )
        for each_s in us_s
    ]
    return [figure_row([module.label for module in modules], figures)]
