"""The command line of the simulated tenant."""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, Dict, List, Tuple

from .events import iter_events
from .rules import LOG_TYPES, Rules
from .server import Simulator


def _setting(text: str) -> Tuple[str, Any]:
    """A Rules field and its value from NAME=VALUE."""
    name, _, value = text.partition("=")
    fields = Rules.__dataclass_fields__
    if name not in fields:
        raise argparse.ArgumentTypeError(f"no such rule: {name}")
    try:
        typed = _typed(fields[name], getattr(Rules(), name), value)
        setattr(Rules(), name, typed)
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{name}={value}: {error}") from None
    return name, typed


def _typed(field: dataclasses.Field, default: Any, value: str) -> Any:
    if default is None and value.lower() == "none":
        return None
    if isinstance(default, str) or "choices" in field.metadata:
        return int(value) if isinstance(default, int) else value
    if field.name == "missing" or (field.name == "latency_s" and ":" in value):
        number = int if field.name == "missing" else float
        pairs = [pair.split(":") for pair in value.split(",") if pair]
        return {log_type: number(text) for log_type, text in pairs}
    if isinstance(default, tuple):
        return tuple(part for part in value.split(",") if part)
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    whole = ("rate_limit", "v1_limit", "seed", "cursor_pages", "deployment_code")
    return int(value) if field.name in whole else float(value)


def _stall(text: str) -> Tuple[float, float, float, Tuple[str, ...]]:
    """Hours, hours, share and log types from FROM:TO[:SHARE[:LOG_TYPE,...]]."""
    start, end, share, names = (*text.split(":"), *("", "1", "")[text.count(":") :])
    chosen = tuple(names.split(",") if names else LOG_TYPES)
    if set(chosen) - set(LOG_TYPES):
        raise argparse.ArgumentTypeError(f"no such log type in {names}")
    return float(start), float(end), float(share), chosen


def options_parser() -> argparse.ArgumentParser:
    rules = "\n".join(
        f"  {name}={'|'.join(map(str, field.metadata.get('choices', [getattr(Rules(), name)])))}"
        for name, field in Rules.__dataclass_fields__.items()
    )
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [-- COMMAND [ARGUMENT ...]]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve Duo's six log endpoints on 127.0.0.1 with made-up events.\n"
        "Without COMMAND, print the settings that lead a collector here, in the form of a .env\n"
        "file, and serve until interrupted. With COMMAND, run it with these settings in its\n"
        "environment, and a temporary checkpoint file unless one is named, and end as it ends.",
        epilog="rules, with their choices (the first is the default) or default; lists take a\n"
        "comma, missing takes log_type:status pairs, and latency_s may take log_type:seconds; see the class Rules for what they mean:\n"
        + rules,
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--events",
        type=int,
        default=2500,
        metavar="N",
        help="events of each log type (default: %(default)s)",
    )
    parser.add_argument(
        "--hours",
        type=float,
        default=24.0,
        metavar="H",
        help="spread over the last H hours (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the events and of all chance")
    parser.add_argument(
        "--stall",
        type=_stall,
        action="append",
        default=[],
        metavar="FROM:TO[:SHARE[:LOG,LOG]]",
        help="show events of the time from FROM to TO hours ago (a negative TO is to come) at its "
        "end only: all, or a share of them (0 to 1), of all log types or these",
    )
    parser.add_argument(
        "--children",
        type=int,
        default=0,
        metavar="N",
        help="be the parent of N child accounts on 127.0.0.2, 127.0.0.3, ..., with as many events "
        "each; the settings are those of its Accounts API application",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a rule; may be given several times",
    )
    return parser


def run_beside(command: List[str], settings: Dict[str, str], stdout: Any = None) -> int:
    """Run a command to its end, passing signals on; returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="duo.") as folder:
        # Nothing of the caller's own may lead elsewhere: a proxy, or the file of another secret key.
        environment = {
            **os.environ,
            **settings,
            "NO_PROXY": "127.0.0.0/8",
            "DUO_SECRET_KEY_FILE": "",
        }
        if not any(word.startswith("--checkpoint-file") for word in command):
            environment.setdefault("DUO_CHECKPOINT_FILE", os.path.join(folder, "checkpoints.json"))
        try:
            # In a session of its own, or Ctrl-C on a terminal would reach it twice.
            process = subprocess.Popen(
                command, env=environment, stdout=stdout, start_new_session=True
            )
        except OSError as error:
            print(f"duo: {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: process.send_signal(number))
        status = process.wait()
        return status if status >= 0 else 128 - status


def simulator_for(options: argparse.Namespace) -> Simulator:
    """What the command line asks for, with its events: one account, or a parent and its children."""
    rules = Rules(**{"seed": options.seed, **dict(options.set)})
    if not options.children:
        tenants = [simulator := Simulator(rules, port=options.port)]
    else:
        simulator = Simulator(dataclasses.replace(rules, application="accounts"), port=options.port)
        tenants = [
            simulator.add_child(f"Customer {number}", dataclasses.replace(rules))
            for number in range(1, options.children + 1)
        ]
    end_ms, hour_ms = simulator.now_ms(), 3_600_000
    for number, tenant in enumerate(tenants):
        for start, end, share, names in options.stall:
            tenant.stall(end_ms - int(start * hour_ms), end_ms - int(end * hour_ms), share, names)
        for name in LOG_TYPES:
            tenant.add(
                name,
                iter_events(
                    name,
                    options.events,
                    end_ms - int(options.hours * hour_ms),
                    end_ms,
                    options.seed + number,
                ),
            )
    return simulator


def main(argv: List[str]) -> int:
    own, _, command = argv, None, []
    if "--" in argv:
        split = argv.index("--")
        own, command = argv[:split], argv[split + 1 :]
    options = options_parser().parse_args(own)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    simulator = simulator_for(options)
    try:
        simulator.start()
    except OSError as error:
        print(f"duo: port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        print(
            f"duo: {options.events} events each of {', '.join(LOG_TYPES)}, the last "
            f"{options.hours:g} hours",
            file=sys.stderr,
        )
        if command:
            return run_beside(command, simulator.settings)
        for name, value in simulator.settings.items():
            print(f"{name}={value}", flush=True)
        threading.Event().wait()  # until a signal raises SystemExit
        return 0
    finally:
        simulator.stop()
