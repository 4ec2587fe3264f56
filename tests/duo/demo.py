"""A first look at the collector: one pass over a simulated tenant. See tests/demo."""

import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import unicodedata
from typing import Dict, List

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback, while importing, too

from duo.command import options_parser, run_beside, simulator_for  # noqa: E402

LINES = ROOT / "demo.jsonl"
SHOWN_OF_EACH = 2  # events of each log type
COLLECTOR = [sys.executable, str(ROOT / "duo_collector.py"), "--once", "--env-file", os.devnull]
NEXT = f"""
All {{count:,}} lines are in {LINES.name}. Next, in {ROOT}:

  less -S {LINES.name}
      looks at them
  {{python}} duo_collector.py --check
      tries your own tenant's settings, from a copy of .env.example named .env
  less README.md
      tells how to install, schedule and monitor it
"""


def start_times(first_ms: int) -> Dict[str, int]:
    """A checkpoint file's content that starts all three default logs there."""
    return {
        "AUTH_SINCE_TIME": first_ms,
        "ADMIN_SINCE_TIME": first_ms // 1000,
        "TELEPHONY_SINCE_TIME": first_ms,
    }


def shortened(line: str, columns: int) -> str:
    """What fits of it: some characters take two columns, some none."""
    for index, character in enumerate(line):
        if not unicodedata.combining(character):
            columns -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if columns < 0:
            return line[:index]
    return line


def show(lines: List[str]) -> None:
    """A few events, each cut to the width of the terminal, and what to do next."""
    sys.stdout.reconfigure(errors="replace")  # a terminal may not know all characters
    columns = shutil.get_terminal_size().columns
    print("\nThe first events of each log, shortened to this terminal's width:\n")
    shown: Dict[str, int] = {}
    for line in lines:
        log_type = json.loads(line)["eventtype"]
        shown[log_type] = shown.get(log_type, 0) + 1
        if shown[log_type] <= SHOWN_OF_EACH:
            print(shortened(line, columns))
    python = pathlib.Path(sys.executable)
    if ROOT in python.parents:
        python = python.relative_to(ROOT)
    print(NEXT.format(count=len(lines), python=python), end="")


def main(argv: List[str]) -> int:
    for name in [name for name in os.environ if name.startswith("DUO_")]:
        del os.environ[name]  # the caller's own settings
    parser = options_parser()
    parser.set_defaults(events=100)
    is_terminal = sys.stdout.isatty()
    if is_terminal:  # slow enough for the progress to be seen
        parser.set_defaults(events=4000, set=[("latency_s", 0.5)])
    options = parser.parse_args(argv)
    simulator = simulator_for(options)
    first_ms = simulator.now_ms() - int((options.hours * 60 + 1) * 60_000)
    with simulator, tempfile.TemporaryDirectory(prefix="duo.") as folder:
        checkpoints = pathlib.Path(folder, "checkpoints.json")
        checkpoints.write_text(json.dumps(start_times(first_ms)))
        settings = {**simulator.settings, "DUO_CHECKPOINT_FILE": str(checkpoints)}
        if not is_terminal:
            return run_beside(COLLECTOR, settings)
        print("Collecting three logs of a simulated tenant.\n", flush=True)
        with open(LINES, "wb") as output:
            status = run_beside(COLLECTOR, settings, output)
    if status == 0:
        show(LINES.read_text(encoding="utf-8").split("\n")[:-1])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
