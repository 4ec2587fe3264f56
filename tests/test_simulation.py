"""The simulation of whole years: its threads, and that it holds and can fail."""

import os
import subprocess
import sys

import pytest
from conftest import SCRIPT
from simulation import DISTURBANCES, INVENTED
from simulation.basics import Killed
from simulation.process import Process
from simulation.turns import Turns


class Machine:
    """As much of a world as threads need."""

    suspended = 0.0

    def __init__(self, seed=0):
        self.turns = Turns(seed, 1000.0)
        self.said = []

    @property
    def time(self):
        return self.turns.time

    def say(self, what):
        self.said.append((round(self.time - 1000, 1), what))

    def run(self, main):
        """Run main(process) to its end, or until it is killed."""

        def first():
            self.process = Process(self, "service", {}, (), 1, 0.0)
            self.process.main.process = self.process
            try:
                self.say(f"main returns {main(self.process)}")
            except RuntimeError as error:
                self.say(f"main raises {error}")
            self.process.end()

        self.turns.run(first)
        return self.said


def worker(machine, name, pauses):
    """Says its name after each of the pauses, and ends early where wait() says so."""

    def work():
        for pause in pauses:
            if machine.process.wait(pause):
                machine.say(f"{name} is told to end")
                return
            machine.say(name)

    return work


def side_by_side(machine, *functions, every_s=60):
    return machine.run(
        lambda process: process.side_by_side(functions, lambda: machine.say("report"), every_s)
    )


def test_threads_take_turns_in_virtual_time():
    machine = Machine()
    said = side_by_side(machine, worker(machine, "a", [1, 3]), worker(machine, "b", [2, 0.5]))
    assert said == [(1.0, "a"), (2.0, "b"), (2.5, "b"), (4.0, "a"), (4.0, "main returns False")]


def test_the_seed_picks_one_of_several_that_are_ready():
    def order(seed):
        machine = Machine(seed)
        said = side_by_side(machine, *(worker(machine, name, [1]) for name in "abcde"))
        return "".join(name for _, name in said[:5])

    assert order(1) == order(1)
    orders = {order(seed) for seed in range(20)}
    assert len(orders) > 10
    assert all(sorted(one) == list("abcde") for one in orders)


def test_a_report_comes_only_after_some_thread_has_run():
    machine = Machine()
    said = side_by_side(machine, worker(machine, "a", [1, 5, 1800]), every_s=2)
    assert said == [
        (1.0, "a"), (2.0, "report"), (6.0, "a"), (6.0, "report"), (1806.0, "a"),
        (1806.0, "main returns False")]  # fmt: skip


def test_sigterm_wakes_what_waits():
    machine = Machine()
    machine.turns.at(1005, lambda: machine.process.stop())
    said = side_by_side(machine, worker(machine, "a", [1, 50]), worker(machine, "b", [60]))
    assert said[0] == (1.0, "a")
    assert sorted(said[1:3]) == [(5.0, "a is told to end"), (5.0, "b is told to end")]
    assert said[3:] == [(5.0, "main returns True")]


def test_sigterm_ends_a_process_of_which_a_thread_hangs():
    machine = Machine()

    def hang():
        machine.process.sleep(100)
        machine.say("never")

    machine.turns.at(1005, lambda: machine.process.stop())
    assert side_by_side(machine, hang) == [(8.0, "main returns True")]


def test_an_exception_ends_the_others_and_is_raised_in_the_main_thread():
    machine = Machine()

    def fail():
        machine.process.wait(2)
        raise RuntimeError("no room")

    said = side_by_side(machine, worker(machine, "a", [1, 50]), fail)
    assert said == [(1.0, "a"), (2.0, "a is told to end"), (2.0, "main raises no room")]


@pytest.mark.parametrize("by", ["itself", "another"])
def test_a_killed_process_does_nothing_any_more(by):
    machine = Machine()

    def die():
        machine.process.sleep(5)
        machine.process.kill()
        machine.process.check_alive()

    if by == "another":
        machine.turns.at(1005, lambda: machine.process.kill())
    functions = [
        worker(machine, "a", [1, 50]),
        die if by == "itself" else worker(machine, "b", [9]),
    ]
    with pytest.raises(Killed):
        side_by_side(machine, *functions)
    assert machine.said == [(1.0, "a")]


def test_one_thread_at_a_time_holds_a_lock():
    machine = Machine()

    def hold(name):
        def work():
            with lock():
                machine.say(f"{name} has it")
                machine.process.sleep(3)
                machine.say(f"{name} gives it back")

        return work

    locks = []
    lock = lambda: locks[0]  # noqa: E731

    def main(process):
        locks.append(process.lock())
        return process.side_by_side([hold(name) for name in "abc"], lambda: None, 60)

    said = machine.run(main)
    times = [at for at, _ in said]
    assert times == [0, 3, 3, 6, 6, 9, 9]
    assert [what[2:] for _, what in said[:-1]] == ["has it", "gives it back"] * 3
    assert not locks[0].locked()


# Whole lives. A failure prints the command that replays it; see README.md.


def simulate(*arguments):
    """tests/simulate, as it is called by hand."""
    command = [sys.executable, str(SCRIPT.parent / "tests" / "simulation"), *map(str, arguments)]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=600)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_some_days_full_of_trouble(seed):
    status, said = simulate("--seed", seed, "--until", "6d", "--often", 8)
    assert status == 0, said


def test_every_disturbance_is_reported_or_invented():
    reported = {name for name, row in DISTURBANCES.items() if row.source}
    assert reported.isdisjoint(INVENTED)
    assert reported | set(INVENTED) == set(DISTURBANCES)
    status, said = simulate("--seed", 1, "--until", "6d", "--often", 12, "--only-reported")
    assert status == 0, said
    happened = {part.split()[0] for part in said.split(";")[1].split(",")}
    assert len(happened) > 10
    assert happened <= reported


OFTEN = "--seed 1 --until 20d --often 12"
BROKEN = {  # written instead of what, the disturbances that show it, words of the failure
    "an event is lost": (
        "min(self.since_ms - lookback_ms, newest_ms)",
        "self.since_ms - lookback_ms",
        "pipeline_stall",
        "was written 0 times",
    ),
    "an event is written twice": (
        "if identity in state.written or",
        "if",
        "late",
        "was written 2 times",
    ),
    "the checkpoint is saved before the page is written": (
        "        with self.checkpoints.saving(*rows):\n            self.output.write(lines)\n",
        "        with self.checkpoints.saving(*rows):\n            pass\n        self.output.write(lines)\n",
        "kill",
        "was written 0 times",
    ),
    "a page is written and saved without the lock": (
        "        with self.run.writing:\n            self.new_events += len(lines)\n",
        "        with contextlib.nullcontext():\n            self.new_events += len(lines)\n",
        "kill",
        "does not get on",
    ),
    "a checkpoint is saved after a write that failed": (
        "        if self.has_failed:\n            raise Stopped\n",
        "",
        "full_output,slow_answers,pipeline_stall",
        "was written 0 times",
        "--seed 4 --until 2d --often 40 --interval 120",
    ),
    "half a line is not ended": (
        "        if size and is_half:\n",
        "        if False:\n",
        "kill",
        "a line that Duo did not publish",
    ),
    "a smaller page of v1 is taken for the last": (
        "elif is_full or self.newest_ms > newest_before_ms:",
        "elif len(page.events) >= 1000:",
        "habits",
        "was written 0 times",
    ),
    "Duo's time is asked for once": (
        "    SHARED_S = 60.0",
        "    SHARED_S = math.inf",
        "suspend",
        "Duo refuses the date",
    ),
    "a new key is not taken from its file": (
        "if answer.status == 401 and self.key_was_rotated():",
        "if False:",
        "rotated_key",
        "does not get on",
        "--seed 2 --until 20d --often 12",
    ),
    "another tenant's file is taken": (
        "if settings.base_url and owner != settings.account:",
        "if False:",
        "another_tenant",
        "has changed the checkpoint file",
    ),
    "a log type starts twice with --once": (
        "                if self.run.once:\n                    return\n",
        "",
        "reconfigure,rate_limit,since_back",
        "passes in it",
    ),
    "a new file is not synced": (
        "            os.fsync(fd)\n",
        "",
        "power_failure,kill",
        "ended with 78",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_simulation_can_fail(what, tmp_path):
    right, wrong, disturbances, words, *options = BROKEN[what]
    text = SCRIPT.read_text()
    assert text.count(right) == 1
    module = tmp_path / "duo_collector.py"
    module.write_text(text.replace(right, wrong))
    needed = {*disturbances.split(","), "late"}
    without = ",".join(name for name in DISTURBANCES if name not in needed)
    chosen = (options or [OFTEN])[0].split()
    status, said = simulate("--module", module, *chosen, "--without", without)
    assert status == 1, said
    assert words in said
    assert "replay: tests/simulate --seed" in said
