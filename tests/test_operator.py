"""What an operator sees of it, and asks of it: progress, health, metrics, reasons, replays, few requests."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import termios
import threading
import time
from collections import Counter

import pytest
from conftest import CHECKPOINT_KEYS, before, wait_for
from duo import LOG_TYPES, make_events
from prometheus_client.parser import text_string_to_metric_families
from test_collection import DAY, HOUR, MINUTE, V1, V2, canonical, fill, in_ms, instant, now_ms
from test_network import tls_tenant

import duo_collector

DEFAULT = ("authentication", "administrator", "telephony")
JSON = {"Content-Type": "application/json"}
PROGRESS = re.compile(r"(\w+): (\d+)%, (?:(.+) left|just started); (\S+) events so far, ([\d,]+) a minute, up to (\S+)")


def stamp(at_ms):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{int(at_ms) % 1000:03}Z"


def start_with(collector, stderr, *options, stdout=subprocess.DEVNULL, **environ):
    env = {name: value for name, value in {**collector.environ, **environ}.items() if value is not None}
    command, stdin = collector.command(*options), subprocess.DEVNULL
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env)


@contextlib.contextmanager
def running(collector, *options, **more):
    """The collector for a block, and SIGTERM at its end."""
    process = collector.start(*options, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


# Progress


@pytest.fixture
def backlog(duo, collector):
    """Six slow pages of telephony, eleven of administrator."""
    fill(duo, "telephony", 5_500)
    fill(duo, "administrator", 1_050)
    duo.rules.v1_limit, duo.rules.latency_s = 100, 0.12
    collector.seed(telephony=now_ms() - 7 * HOUR, administrator=now_ms() - 7 * HOUR)
    collector.environ["DUO_LOG_TYPES"] = "telephony,administrator"
    before(collector, "duo_collector.REPORT_S = 0.4")
    return duo


class Screen:
    """As much of a terminal as is written to here: whatever else is sent to it is an error."""

    def __init__(self, columns=10_000):
        self.columns, self.rows, self.at, self.column = columns, [""], 0, 0

    def feed(self, text):
        for code, count, letter, plain in re.findall(r"(\x1b\[(\d*)([FJ])|[\r\n])|(.)", text, re.DOTALL):
            if letter == "F":
                self.at, self.column = max(0, self.at - int(count or 1)), 0
            elif letter == "J":
                self.rows[self.at :] = [self.rows[self.at][: self.column]]
            elif code == "\r":
                self.column = 0
            elif code == "\n" or self.column == self.columns:
                self.at += 1
                self.rows += [""] * (self.at == len(self.rows))
                self.column = self.column if code else 0
            if plain:
                assert plain.isprintable(), repr(text)
                row = self.rows[self.at].ljust(self.column)
                self.rows[self.at] = row[: self.column] + plain + row[self.column + 1 :]
                self.column += 1

    @property
    def progress(self):
        return [row for row in self.rows if re.match(r"\w+: -?\d+%", row)]


def on_terminal(collector, *options, columns=160, stdout_too=False, at=None, **environ):
    """Run it with a terminal for stderr: its status, and what was sent there, until `at` says to close that."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {"TERM": "xterm", **environ}
    process = start_with(collector, its, *options, stdout=its if stdout_too else subprocess.DEVNULL, **environ)
    os.close(its)
    sent = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            sent += os.read(ours, 65_536)
        except OSError:  # which is how a terminal ends
            break
        if at and at(process, sent):
            break
    os.close(ours)
    return process.wait(10), sent.decode()


def screens(sent, columns=160):
    """The screen after every line."""
    screen = Screen(columns)
    for line in sent.splitlines(keepends=True):
        screen.feed(line)
        yield screen


def test_a_terminal_shows_how_far_it_is_in_place(backlog, collector):
    backlog.inject("telephony", None, None, "error_500")  # a line of the log in between
    status, sent = on_terminal(collector, "--once")
    seen = set()
    for screen in screens(sent):
        assert len(screen.progress) <= 2, screen.rows
        seen.update(screen.progress)
    assert status == 0, sent
    shown = [PROGRESS.fullmatch(line) for line in seen]
    assert all(shown), seen
    assert Counter(log_type for log_type, _ in {(match[1], match[2]) for match in shown}) == {
        "telephony": 6, "administrator": 11}  # fmt: skip
    logged = [row[21:] for row in screen.rows if row]
    assert re.fullmatch("INFO telephony: Duo fails .*; again in 1 s", logged[0]), screen.rows
    assert [line.split(", ")[0] for line in sorted(logged[1:])] == [
        "INFO administrator: 1,050 events in 12 requests", "INFO telephony: 5,500 events in 8 requests"]


@pytest.mark.parametrize("columns, width", [(60, 60), (200, 200), (1, 1), (0, 80)])
def test_progress_keeps_to_the_width_of_the_terminal(backlog, collector, columns, width):
    status, sent = on_terminal(collector, "--once", "--log-types", "telephony", columns=columns)
    drawn = [line.split("\x1b[J")[-1].rstrip() for line in sent.splitlines() if " INFO " not in line]
    *_, screen = screens(sent, width)
    assert (status, screen.progress) == (0, [])
    assert len(drawn) > 4 and max(map(len, drawn)) <= width
    assert width < 200 or "up to 20" in drawn[0]
    assert "".join(screen.rows).count("telephony: 5,500 events in 7 requests") == 1


@pytest.mark.parametrize("options, environ, terminal", [
    (["-q"], {}, {}), ([], {"TERM": "dumb"}, {}), ([], {}, {"stdout_too": True}),
], ids=["-q", "dumb", "stdout too"])  # fmt: skip
def test_a_terminal_where_nothing_is_redrawn(backlog, collector, options, environ, terminal):
    status, sent = on_terminal(collector, "--once", *options, **environ, **terminal)
    assert (status, "\x1b" in sent) == (0, False)
    assert ("so far" in sent) == ("-q" not in options)


def test_a_signal_leaves_no_progress_behind(backlog, collector):
    def stop(process, sent):
        if sent.count(b"so far") >= 3 and not asked:
            asked.append(process.terminate())

    asked = []
    status, sent = on_terminal(collector, "--once", at=stop)
    *_, screen = screens(sent)
    assert (status, screen.progress) == (75, []), sent
    assert "stopped by a signal" in screen.rows[-2]


def test_a_log_says_now_and_then_how_far_it_is(backlog, collector):
    began = now_ms()
    result = collector.once()
    took_s = (now_ms() - began) / 1000
    assert (result.status, len(result.events)) == (0, 6_550), result.stderr
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = [PROGRESS.fullmatch(line) for line in lines]
    assert all(shown), lines
    for log_type in ("telephony", "administrator"):
        times = sorted(in_ms(log_type, event) for event in result.of(log_type))
        of_type = [match.groups() for match in shown if match[1] == log_type]
        assert 1 <= len(of_type) <= took_s / 0.4
        for _, share, left, events, rate, reached in of_type:
            written = int(events.replace(",", ""))
            first, last = began - 7 * HOUR, times[written - 1]
            assert reached == stamp(last)[:-5] + "Z"
            of_all = written / 5_500 if log_type == "telephony" else (last - first) / (began - 2 * MINUTE - first)
            elapsed_s = written / int(rate.replace(",", "")) * 60
            assert int(share) == pytest.approx(100 * of_all, abs=1) and 0.3 < elapsed_s < took_s
            assert -1.2 < int(left.split(" s")[0]) - elapsed_s * (1 / of_all - 1) < 0.2
    assert duo_collector.REPORT_S == 30
    (line,) = collector.once("-q", "--log-types", "telephony", "--since", "7h").stderr.splitlines()
    assert " WARNING telephony: --since repeats the events from 20" in line


@pytest.mark.parametrize("total", ["absent", "remaining", "changing", "page"])
def test_progress_without_a_count_and_with_a_wrong_one(backlog, collector, total):
    backlog.rules.total = total
    result = collector.once("--log-types", "telephony", "--since", "7h")
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = [PROGRESS.fullmatch(line) for line in lines]
    assert result.status == 0 and lines and all(match and int(match[2]) <= 100 for match in shown), result.stderr


def test_progress_of_a_log_without_order_goes_by_its_slices(backlog, collector):
    fill(backlog, "trust_monitor", 1_000)
    result = collector.once("--log-types", "trust_monitor", "--since", "7h")
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = r"trust_monitor: (0%, just started|\d+%, \d+ s left); [\d,]+ events so far, .* up to 20"
    assert lines and "just started" in lines[0] and all(re.match(shown, line) for line in lines), lines


def test_a_terminal_that_is_closed_stops_nothing(backlog, collector):
    assert on_terminal(collector, "--once", at=lambda *_: True)[0] == 0
    assert Counter(request.log_type for request in backlog.requests) == {"telephony": 7, "administrator": 12}


# Health


def status(collector, *options):
    result = collector.run("--status", "--json", *options)
    assert result.stdout.count("\n") == 1, result.stderr
    return result.status, json.loads(result.stdout)


def test_status_tells_how_the_passes_end(duo, collector):
    fill(duo, "telephony", 5)
    _, document = status(collector)
    assert document["telephony"]["last_success"] is document["telephony"]["last_error"] is None
    assert (document["telephony"]["checkpoint"], sorted(document)) == ("2022-08-20T19:15:59Z", sorted(DEFAULT))
    collector.once()
    duo.rules.missing["administrator"] = 403
    kept = json.loads(collector.checkpoint_file.read_text())
    assert collector.once("--log-types", "administrator").status == 77
    after = json.loads(collector.checkpoint_file.read_text())
    after_state, kept_state = after.pop("state"), kept.pop("state")
    assert (after, list(after_state)) == (kept, list(kept_state))
    changed = {(log_type, name) for log_type, state in after_state.items() for name, value in state.items()
               if value != kept_state[log_type][name]}  # fmt: skip
    assert changed == {("administrator", "health")}
    health = [state["administrator"]["health"] for state in (after_state, kept_state)]
    changed = {name for name, value in health[0].items() if value != health[1][name]}
    assert changed - {"pass_ms"} == {"refused", "last_error", "last_error_ms"} and health[0]["refused"] == 1

    asked, (_, document) = len(duo.requests), status(collector)
    at_ms = {key: duo_collector.parse_iso(str(value)) for key, value in document["administrator"].items()}
    assert at_ms["checkpoint"] == collector.since("administrator") * 1000
    assert document["administrator"]["lag_seconds"] == pytest.approx((now_ms() - at_ms["checkpoint"]) / 1000, abs=2)
    assert now_ms() - 30_000 < at_ms["last_success"] <= at_ms["last_error_time"] <= now_ms()
    assert document["administrator"]["last_error"].startswith("Duo refuses the permission (403 40301 Access forbidden)")
    assert document["telephony"]["last_error"] is document["telephony"]["last_error_time"] is None
    lines = collector.run("--status").stdout.splitlines()
    healthy = r"\S+Z  2 min( \d+ s)? behind now, last success \d+ s ago"
    assert re.fullmatch("telephony +" + healthy, lines[2]), lines
    assert re.fullmatch("administrator +" + healthy + r", last error \d+ s ago: Duo refuses .*", lines[1])
    assert len(duo.requests) == asked


def test_a_run_that_fails_makes_no_checkpoint(duo, collector):
    duo.rules.no_permission = True
    assert collector.once().status == 77
    assert not {key for key, _ in CHECKPOINT_KEYS.values()} & set(json.loads(collector.checkpoint_file.read_text()))
    duo.rules.no_permission = False
    collector.environ["TELEPHONY_SINCE_TIME"] = str(now_ms() - HOUR)  # a seed that is put right afterwards still counts
    assert collector.once("--log-types", "telephony").status == 0
    assert duo.requests[-1].params["mintime"] == collector.environ["TELEPHONY_SINCE_TIME"]


@pytest.mark.parametrize("minutes, status", [(10, 0), (-10, 0), (20, 75), (-20, 75)])
def test_max_lag_is_an_exit_status(collector, minutes, status):
    collector.seed(**{**dict.fromkeys(DEFAULT, now_ms()), "administrator": now_ms() - minutes * MINUTE})
    for options in (["--json"], []):
        result = collector.run("--status", "--max-lag", "15m", *options)
        assert (result.status, result.stderr.count("\n")) == (status, status == 75), result.stdout
        said = f" ERROR {collector.checkpoint_file}: behind or ahead by more than 15 min: administrator\n"
        assert status == 0 or result.stderr.endswith(said), result.stderr
    assert collector.run("--status", "--max-lag", "15m", "--log-types", "telephony").status == 0
    assert collector.run("--status").status == 0


WRONG_OPTIONS = [
    *(["--status", "--max-lag", text] for text in ("", "15", "-15m", "1.5h", "soon", "now", "99999999d")),
    ["--max-lag", "15m"], ["--json"], ["--check", "--json"], ["--until", "now"], ["--once", "--until", "2026-11-01"],
    *(["--since", "1h", "--until", text] for text in ("", "1h", "2h", "soon", "2999-01-01")),
    ["--since", "2026-11-01T00:00Z", "--until", "2026-11-01T01:00+01:00"],
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=" ".join)
def test_wrong_options_are_told_in_a_line(duo, collector, options):
    result = collector.run(*options)
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, [r.path for r in duo.requests if r.log_type]) == (2, "", [])
    assert any(option in line for option in options if option.startswith("--")), line
    assert not collector.checkpoint_file.exists()


NONSENSE = [
    {"ok": "many", "events": 1.5, "last_error": 7, "holes": True}, {},
    {"ok": -3, "last_success_ms": -1, "last_error_ms": -5, "last_error": "\ud800", "other": 1},
    *(dict.fromkeys(("last_success_ms", "last_error_ms", "pass_ms", "ok"), 10**n) for n in (16, 400)),
]  # fmt: skip


NONSENSE_BY_KEY = [
    *(("health", health) for health in (None, 7, "x", [], {"telephony": 7})),  # as version 1 kept it
    *(("state", health) for health in NONSENSE),
]


@pytest.mark.parametrize("key, health", NONSENSE_BY_KEY, ids=lambda value: json.dumps(value)[:60])
def test_nonsense_for_health_stops_nothing(duo, collector, key, health, tmp_path):
    fill(duo, "telephony", 5)
    collector.environ.update(DUO_METRICS_FILE=str(tmp_path / "duo.prom"), DUO_LOG_TYPES="telephony")
    since_ms = now_ms() - 9 * HOUR
    if key == "state":
        health = {"telephony": {"since_ms": since_ms, "start_ms": since_ms, "written": {}, "health": health}}
    collector.checkpoint_file.write_text(json.dumps({"TELEPHONY_SINCE_TIME": since_ms, key: health}))
    runs = [collector.run("--status"), collector.run("--status", "--json"), collector.once(), collector.run("--status")]
    assert [run.status for run in runs] == [0] * 4, [run.stderr for run in runs]
    assert len(runs[2].events) == 5
    assert [len(run.stdout.splitlines()) for run in runs] == [1, 1, 5, 1]


# Metrics


@pytest.fixture
def metrics(collector, tmp_path):
    """A function that reads the metrics file: (name, log type, outcome) and their value."""
    folder = tmp_path / "textfiles"
    folder.mkdir()
    path = folder / "duo.prom"
    collector.environ["DUO_METRICS_FILE"] = str(path)

    def read():
        families = list(text_string_to_metric_families(path.read_text()))
        samples = [sample for family in families for sample in family.samples]
        assert {sample.labels.pop("host") for sample in samples} == {"127.0.0.1"}
        assert all(sample.name.startswith("duo_collector_") for sample in samples)
        labels = [(s.name[14:], s.labels.pop("log_type", None), s.labels.pop("outcome", None)) for s in samples]
        assert not any(sample.labels for sample in samples) and len(set(labels)) == len(labels)
        return dict(zip(labels, (sample.value for sample in samples)))

    read.path = path
    return read


OUTCOMES = ("ok", "limited", "refused", "failed")
NAMES = ("events_total", "holes_total", "checkpoint_timestamp_seconds", "last_success_timestamp_seconds",
         "pass_duration_seconds")  # fmt: skip


def test_metrics_are_right_and_go_on_from_run_to_run(duo, collector, metrics):
    for log_type in DEFAULT:
        fill(duo, log_type, 1_200)
    duo.rules.clock_offset = 100.0
    duo.inject("telephony", "error_500", "error_429")
    began = time.monotonic()
    collector.once()
    took_s, seen = time.monotonic() - began, metrics()
    rows = [*((name, None) for name in NAMES), *(("requests_total", outcome) for outcome in OUTCOMES)]
    assert set(seen) - {("clock_difference_seconds", None, None)} == {
        (name, log_type, outcome) for name, outcome in rows for log_type in DEFAULT}  # fmt: skip
    for log_type in DEFAULT:
        assert (seen["events_total", log_type, None], seen["holes_total", log_type, None]) == (1_200, 0)
        unit_s = CHECKPOINT_KEYS[log_type][1] / 1000
        assert seen["checkpoint_timestamp_seconds", log_type, None] == pytest.approx(collector.since(log_type) * unit_s)
        assert seen["last_success_timestamp_seconds", log_type, None] == pytest.approx(time.time() + 100, abs=10)
        assert 0 < seen["pass_duration_seconds", log_type, None] < took_s
        answers = Counter(request.status for request in duo.requests if request.log_type == log_type)
        assert seen["requests_total", log_type, "ok"] == answers[200] >= 2
        once = int(log_type == "telephony")
        assert [seen["requests_total", log_type, outcome] for outcome in OUTCOMES[1:]] == [once, 0, once]
    assert seen["clock_difference_seconds", None, None] == pytest.approx(100, abs=3)

    duo.rules.clock_offset, duo.rules.missing["administrator"] = 0, 404
    at_ms = now_ms() - 200_000
    duo.add("authentication", make_events("authentication", 3, at_ms, at_ms + 1000, seed=9))
    page = {"items": [], "metadata": {"next_offset": None, "total_objects": 7}}
    duo.inject("telephony", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    collector.once()
    again = metrics()
    grown = {key: again[key] - seen[key] for key in seen if key[0].endswith("_total") and again[key] != seen[key]}
    assert grown.pop(("requests_total", "authentication", "ok")) >= 1
    assert grown == {("events_total", "authentication", None): 3, ("holes_total", "telephony", None): 1,
                     ("requests_total", "administrator", "refused"): 1, ("requests_total", "telephony", "ok"): 1}
    success = [again["last_success_timestamp_seconds", log_type, None] for log_type in DEFAULT]
    assert success[1] == seen["last_success_timestamp_seconds", "administrator", None] != success[0]


def test_counters_do_not_go_back_over_a_restart(duo, collector, metrics):
    fill(duo, "telephony", 5)
    before(collector, "duo_collector.REPORT_S = 0.1")
    collector.environ["DUO_LOG_TYPES"] = "telephony"
    collector.once()
    duo.inject("telephony", *["error_500"] * 9)
    failed = ("requests_total", "telephony", "failed")
    with running(collector):
        wait_for(lambda: metrics()[failed] >= 2, "failures in the metrics file")
    seen = metrics()
    duo._injected.clear()
    collector.once()
    again = metrics()
    assert not {key for key in again if key[0].endswith("_total") and again[key] < seen[key]}, (seen, again)
    assert again["requests_total", "telephony", "ok"] == sum(request.status == 200 for request in duo.requests)


def test_metrics_are_there_before_the_first_answer_and_renewed_in_a_long_pass(backlog, collector, metrics):
    there = []

    def look(handler):
        there.append(metrics.path.exists())
        handler.send(200, JSON, b'{"stat": "OK", "response": []}')

    backlog.inject("administrator", look)
    backlog.rules.latency_s = 0.3
    process, seen = collector.start("--once", stdout=subprocess.DEVNULL), set()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            seen.add(metrics()["events_total", "telephony", None])
        time.sleep(0.02)
    process.communicate()
    assert there == [True] and {0, 5_500} < seen and len(seen) >= 4, seen


def test_the_metrics_file_is_replaced_whole_and_readable(duo, collector, metrics):
    metrics.path.write_text("old\n")
    metrics.path.chmod(0o600)
    duo.rules.v1_hold_back_s = 0.0
    duo.rules.latency_s = 0.02  # so that a pass takes longer than the pause
    with running(collector, "--interval", "0.01", umask=0o077):
        wait_for(lambda: metrics.path.read_text() != "old\n", "metrics")
        size, inodes = len(metrics()), set()
        for _ in range(300):
            with metrics.path.open() as file:
                inodes.add(os.fstat(file.fileno()).st_ino)
                assert len([line for line in file.read().split("\n") if line and line[0] != "#"]) == size
        wait_for(lambda: inodes - {metrics.path.stat().st_ino}, "another file in its place")
    assert metrics.path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(metrics.path.parent) == ["duo.prom"]


def test_metrics_that_cannot_be_written_any_more_stop_nothing(duo, collector, metrics):
    with running(collector, "--interval", "0.2", "--log-types", "telephony") as process:
        wait_for(metrics.path.exists, "metrics")
        metrics.path.parent.rename(metrics.path.parent.with_name("away"))
        line = next(line for line in iter(process.stderr.readline, b"") if b"WARNING DUO_METRICS_FILE" in line)
        assert b"No such file" in line and str(metrics.path).encode() in line
        at_ms = now_ms() - 200_000
        duo.add("telephony", make_events("telephony", 1, at_ms, at_ms + 1000))
        assert json.loads(process.stdout.readline())["eventtype"] == "telephony"
        metrics.path.parent.mkdir()
        wait_for(metrics.path.exists, "metrics once there is a folder again")


def test_a_metrics_file_in_the_working_directory(duo, collector, tmp_path):
    result = collector.once("--log-types", "telephony", environ={"DUO_METRICS_FILE": "duo.prom"}, cwd=tmp_path)
    assert (result.status, "DUO_METRICS_FILE" in result.stderr) == (0, False), result.stderr
    assert (tmp_path / "duo.prom").read_text()


def test_metrics_need_no_package(duo, collector, metrics):
    fill(duo, "telephony", 3)
    before(collector, "sys.modules['prometheus_client'] = None")
    result = collector.once("--log-types", "telephony")
    assert (result.status, "DUO_METRICS_FILE" in result.stderr) == (0, False), result.stderr
    assert metrics()["events_total", "telephony", None] == 3


@pytest.mark.parametrize("path, named", [
    ("/nowhere/duo.prom", "/nowhere/"), ("checkpoints", "another path"), ("folder", "folder"), ("pipe", "of a file")])
def test_metrics_that_can_never_be_written_are_78(duo, collector, path, named, tmp_path):
    if path == "checkpoints":
        path = str(collector.checkpoint_file)
    os.mkfifo(tmp_path / "pipe")  # which a file would replace, like /dev/null
    path = {"folder": tmp_path, "pipe": tmp_path / "pipe"}.get(path, path)
    result = collector.once(environ={"DUO_METRICS_FILE": str(path)})
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, duo.requests) == (78, "", [])
    assert "DUO_METRICS_FILE" in line and named in line
    assert collector.once(environ={"DUO_METRICS_FILE": ""}).status == 0


@pytest.mark.parametrize("options", [["--check"], ["--status"], ["--since", "2h", "--until", "1h"]], ids=" ".join)
def test_metrics_are_those_of_collection_only(duo, collector, metrics, options):
    assert collector.run(*options).status == 0
    assert not metrics.path.exists()


# Reasons

CODES = {  # Duo's message, the exit status, what to do about it
    40001: ("Missing required request parameters", 75, "check the since time"),
    40002: ("Invalid request parameters", 75, "check the since time"),
    40003: ("Duplicate resource", 75, "check the since time"),
    40101: ("Missing request credentials", 77, "a proxy strips it"),
    40102: ("Invalid integration key in request credentials", 77, "DUO_INTEGRATION_KEY is not known at DUO_API_HOST"),
    40103: ("Invalid signature in request credentials", 77, "DUO_INTEGRATION_KEY does not match DUO_SECRET_KEY"),
    40104: ("Missing request timestamp", 77, "a proxy strips it"),
    40105: ("Bad request timestamp", 77, "the local clock is within 1 s of Duo's, so the fault is Duo's"),
    40112: ("Signature type is not supported", 77, "are the keys those of an Admin API application"),
    40301: ("Access forbidden", 77, 'tick "Grant read log"'),
    40401: ("Resource not found", 77, "remove it from DUO_LOG_TYPES"),
    40501: ("Method not allowed", 75, "a proxy changes requests"),
    42901: ("Too Many Requests", 75, "raise DUO_INTERVAL"),
    50001: ("unknown internal error", 75, "Duo fails"),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_duo_has_a_reason(duo, collector, code):
    message, status, remedy = CODES[code]
    body = {"code": code, "message": message, "message_detail": f"of {duo.skey}", "stat": "FAIL"}
    headers = {**JSON, "Retry-After": "1000"}
    duo.inject("telephony", (code // 100, headers, json.dumps(body).encode()))
    duo.inject("telephony", (code // 100, headers, json.dumps({**body, "code": str(code)}).encode()))
    check, once = collector.run("--check", "--log-types", "telephony"), collector.once("--log-types", "telephony")
    assert [check.status, once.status, check.stderr, once.stdout] == [status, status, "", ""]
    told = collector.run("--status", "--log-types", "telephony").stdout
    for line in (*check.stdout.splitlines(), *once.stderr.splitlines(), *told.splitlines()):
        assert f"({code // 100} {code} {message} of ***)" in line and remedy in line
    assert duo.skey not in collector.checkpoint_file.read_text()
    assert len(check.stdout.splitlines()) == len(once.stderr.splitlines()) == 1
    assert len(duo.requests) == 2


SECRET, OTHER = "deadbeef" * 5, "0123456789" * 4
SUSPECTS = {
    "a short integration key": ("DIXXX", SECRET, "the integration key has 5 characters, the secret key 40; Duo's have 20"),
    "a lower-case integration key": ("dixxxxxxxxxxxxxxxxxx", SECRET, "has 20 characters, the secret key 40; Duo's have 20, beginning with DI"),
    "a short secret key": (None, SECRET[1:], "the integration key has 20 characters, the secret key 39; Duo's have 20"),
    "a long secret key": (None, SECRET + "f", "the integration key has 20 characters, the secret key 41; Duo's have 20"),
    "swapped keys": (SECRET, "DIXXXXXXXXXXXXXXXXXX", "swapped"),
    "an unknown integration key": ("DIYYYYYYYYYYYYYYYYYY", SECRET, "DUO_INTEGRATION_KEY is not known at DUO_API_HOST"),
    "another's secret key": (None, OTHER, "DUO_INTEGRATION_KEY does not match DUO_SECRET_KEY at DUO_API_HOST"),
}


@pytest.mark.parametrize("suspect", SUSPECTS)
def test_a_401_says_what_it_most_likely_is(duo, collector, suspect):
    integration_key, secret_key, words = SUSPECTS[suspect]
    collector.environ.update(DUO_INTEGRATION_KEY=integration_key or duo.ikey, DUO_SECRET_KEY=secret_key)
    runs = [collector.run("--check", "-v"), collector.once("-v"), collector.run("--status")]
    assert [run.status for run in runs] == [77, 77, 0]
    said = "".join(run.stdout + run.stderr for run in runs)
    assert [(run.stdout + run.stderr).count(words) for run in runs] == [1, len(DEFAULT), len(DEFAULT)]
    assert runs[0].stdout.splitlines()[1:] == [f"{log_type}: the same" for log_type in DEFAULT[1:]]
    assert SECRET[:20] not in said + collector.checkpoint_file.read_text() and OTHER not in said


@pytest.mark.parametrize("status, words", [(401, "Duo refuses the credentials (401)"), (403, 'tick "Grant read log"')])
def test_a_refusal_without_a_body_has_its_reason(duo, collector, status, words):
    duo.inject("telephony", (status, {}, b""))
    result = collector.run("--check", "--log-types", "telephony")
    assert (result.status, words in result.stdout) == (77, True), result.stdout


@pytest.mark.parametrize("code", ["40103", "40105"])
def test_a_401_with_a_clock_that_is_off_is_of_the_clock(duo, collector, code):
    duo.rules.clock_offset = 400.0
    body = json.dumps({"code": int(code), "message": "no", "stat": "FAIL"}).encode()
    duo.inject("telephony", *[(401, JSON, body)] * 2)
    result = collector.run("--check", "--log-types", "telephony")
    assert re.search(r"the local clock is (399|400|401) s off Duo's: set it right", result.stdout), result.stdout
    assert result.status == 77


@contextlib.contextmanager
def answering(reply):
    """A server that answers a connection with this."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection = server.accept()[0]
            with connection:
                connection.recv(65_536)
                connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


FAR = {"DUO_API_HOST": "https://api-12345678.duosecurity.invalid", "RES_OPTIONS": "timeout:1 attempts:1"}
REFUSES = {**FAR, "HTTPS_PROXY": "http://user:hunter2@127.0.0.1:1"}


def test_what_keeps_duo_out_of_reach_is_told_apart(duo, collector, tmp_path):
    def check_line(collector, **environ):
        result = collector.run("--check", "--log-types", "telephony", environ=environ)
        warned = re.findall(r"WARNING (DUO_API_HOST) is \S+\.invalid, which is not a Duo host", result.stderr)
        far = environ.get("DUO_API_HOST") == FAR["DUO_API_HOST"]
        assert (result.status, len(warned), result.stderr.count("\n"), result.stdout.count("\n")) == (75, far, far, 1)
        return result.stdout

    duo.inject("telephony", "error_503", "error_500")
    with answering(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy, tls_tenant(tmp_path) as (_, by_tls):
        lines = {
            "name": check_line(collector, **FAR),
            "proxy": check_line(collector, **REFUSES),
            "407": check_line(collector, **{**FAR, "HTTPS_PROXY": f"http://{proxy}"}),
            "certificate": check_line(by_tls, REQUESTS_CA_BUNDLE=None),
            "refused": check_line(collector, DUO_API_HOST="http://127.0.0.1:1"),
            "503": check_line(collector),
            "500": check_line(collector),
        }
    says = {
        "the name does not resolve": {"name"}, "check DUO_API_HOST, DNS, and": {"name"},
        "the proxy refuses": {"proxy", "407"}, "check HTTPS_PROXY": {"proxy", "407"}, "407 Proxy Auth": {"407"},
        "its certificate is not trusted": {"certificate"}, "set REQUESTS_CA_BUNDLE to": {"certificate"},
        "Duo is down": {"refused"}, "Connection refused": {"proxy", "refused"},
        "not an answer from Duo": {"503"}, "Duo fails": {"500"},
    }  # fmt: skip
    assert {words: {name for name, line in lines.items() if words in line} for words in says} == says, lines
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize("whose", ["ours", "a file of ours", "somebody else's", None])
def test_the_journal_gets_priorities(duo, collector, tmp_path, whose):
    duo.rules.missing["administrator"] = 403
    end, stderr = None, os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    if whose != "a file of ours":
        end, stderr = os.pipe()
    at = os.fstat(stderr)
    stream = {"somebody else's": f"{at.st_dev}:{at.st_ino + 1}", None: None}.get(whose, f"{at.st_dev}:{at.st_ino}")
    process = start_with(collector, stderr, "--once", "-v", JOURNAL_STREAM=stream)
    os.close(stderr)
    assert process.wait(10) == 77
    text = open(end or tmp_path / "log").read()
    priorities = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>"}
    levels = [re.search("DEBUG|INFO|WARNING|ERROR", line)[0] for line in text.splitlines()]
    assert set(levels) == set(priorities)
    ours = whose and "ours" in whose
    for level, line in zip(levels, text.splitlines()):
        assert re.match(f"{priorities[level]}{level} " if ours else rf"20[^ ]+Z {level} ", line), line


# Replays


@pytest.mark.parametrize("bound_ms", [0, 250])
def test_neighbouring_ranges_give_every_event_once_as_the_ordinary_run_does(duo, collector, bound_ms):
    start = (now_ms() - 3 * HOUR) // 1000 * 1000
    middle, end = start + HOUR + bound_ms, start + 2 * HOUR
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 1_100 if log_type == "telephony" else 60, start, end))
        unit_ms = CHECKPOINT_KEYS[log_type][1]
        edges = (start - 1000, start, middle // 1000 * 1000, middle, middle + 1000, end - 1000, end, end + 500)
        for at_ms in {edge // unit_ms * unit_ms for edge in edges}:
            duo.add(log_type, instant(log_type, 3, at_ms, spread_us=1))
    names = ("--log-types", ",".join(LOG_TYPES))
    ranges = [collector.run("--since", stamp(since), "--until", stamp(until), *names)
              for since, until in ((start, middle), (middle, end))]
    assert not collector.checkpoint_file.exists()
    assert [run.status for run in ranges] == [0, 0], [run.stderr for run in ranges]
    assert "a hole" not in ranges[0].stderr + ranges[1].stderr
    asked = len(duo.requests)
    collector.seed(**dict.fromkeys(LOG_TYPES, start))
    ordinary = collector.once(*names)
    assert asked < len(duo.requests)
    time_of = dict(zip(ordinary.stdout.splitlines(), (in_ms(event["eventtype"], event) for event in ordinary.events)))
    expected = Counter(line for line in ordinary.stdout.splitlines() if time_of[line] < end)
    replayed = Counter(line for run in ranges for line in run.stdout.splitlines())
    assert (replayed - expected, expected - replayed) == (Counter(), Counter())
    assert all(time_of[line] < middle for line in ranges[0].stdout.splitlines())


@pytest.mark.parametrize("content", [None, b'{"TELEPHONY_SINCE_TIME": 1771000000000}', b"not even JSON"])
def test_a_replay_leaves_the_checkpoint_alone(duo, collector, content):
    fill(duo, "telephony", 30)
    if content:
        collector.checkpoint_file.write_bytes(content)
        os.utime(collector.checkpoint_file, (1, 1))
    result = collector.run("--since", "12h", "--until", "1m", "--log-types", "telephony")
    assert (result.status, len(result.events)) == (0, 30), result.stderr
    assert os.listdir(collector.checkpoint_file.parent) == ([collector.checkpoint_file.name] if content else [])
    if content:
        assert collector.checkpoint_file.read_bytes() == content and collector.checkpoint_file.stat().st_mtime == 1


def test_a_replay_works_beside_a_service(duo, collector):
    fill(duo, "telephony", 30)
    with running(collector, "--interval", "60", "--log-types", "telephony") as process:
        assert sum(1 for _ in zip(range(30), process.stdout)) == 30
        wait_for(lambda: b" 30 events in 1 request" in process.stderr.readline(), "end of the pass")
        kept = collector.checkpoint_file.read_bytes(), collector.checkpoint_file.stat().st_mtime_ns
        assert collector.once("--log-types", "telephony").status == 75
        result = collector.run("--since", "12h", "--until", "now", "--log-types", "telephony")
        assert (result.status, len(result.events)) == (0, 30), result.stderr
        assert (collector.checkpoint_file.read_bytes(), collector.checkpoint_file.stat().st_mtime_ns) == kept


@pytest.mark.parametrize("log_type", ["administrator", "telephony"])
def test_a_replay_is_not_confused_by_all_that_comes_after_it(duo, collector, log_type):
    start = (now_ms() - 3 * HOUR) // 1000 * 1000
    duo.add(log_type, make_events(log_type, 50, start, start + HOUR))
    duo.add(log_type, make_events(log_type, 2_500, start + HOUR, start + 2 * HOUR, seed=1))
    result = collector.run("--since", stamp(start), "--until", stamp(start + HOUR), "--log-types", log_type)
    assert (result.status, len(result.events)) == (0, 50), result.stderr
    assert "a hole" not in result.stderr
    assert len(duo.requests) <= 3


@pytest.mark.parametrize("until", ["1h", "190d"])
def test_a_replay_of_what_duo_no_longer_serves_warns(duo, collector, until):
    for log_type in DEFAULT:
        duo.add(log_type, make_events(log_type, 20, now_ms() - 199 * DAY, now_ms() - 195 * DAY))
    result = collector.run("--since", "200d", "--until", until)
    assert (result.status, len(result.of("administrator")), len(result.events)) == (0, 20, 20)
    for log_type in ("authentication", "telephony"):
        assert result.stderr.count(f"WARNING {log_type}: Duo serves only the last 180 days; passed over: 20") == 1
    assert "WARNING administrator" not in result.stderr


# Few requests


@pytest.mark.parametrize("recent", [0, 40], ids=["nothing new", "events in the lookback"])
def test_a_pass_that_is_caught_up_asks_once(duo, collector, recent):
    at_ms = now_ms() - 4 * MINUTE
    for log_type in LOG_TYPES:
        fill(duo, log_type, 300)
        duo.add(log_type, make_events(log_type, recent, at_ms - 10_000, at_ms))
    for _ in range(2):  # the second still looks at the end of the backlog
        collector.once("--log-types", ",".join(LOG_TYPES))
    asked = len(duo.requests)
    for _ in range(2):
        result = collector.once("--log-types", ",".join(LOG_TYPES))
        assert (result.status, result.stdout) == (0, "")
    # The v1 logs do not count, so there the end has to be seen.
    wanted = {log_type: 4 if log_type in V1 and recent else 2 for log_type in LOG_TYPES}
    assert Counter(request.log_type for request in duo.requests[asked:]) == wanted


@pytest.mark.parametrize("names, cursor", [(V2, "last"), (V2, "next")])
def test_what_looks_whole_and_is_not_comes_with_the_next_passes(duo, collector, names, cursor):
    duo.rules.total, duo.rules.short_pages, duo.rules.cursor = "page", True, cursor
    at_ms = now_ms() - 50 * MINUTE
    for log_type in names:
        duo.add(log_type, make_events(log_type, 400, at_ms, now_ms() - 8 * MINUTE))
        duo.add(log_type, instant(log_type, 40, at_ms + 10 * MINUTE, spread_us=1))
    collector.seed(**dict.fromkeys(names, at_ms - 1000))
    events = {log_type: canonical(duo.events(log_type)) for log_type in names}
    written, passes = {log_type: Counter() for log_type in names}, 0
    while written != events and passes < 50:
        result, passes = collector.once("--log-types", ",".join(names)), passes + 1
        assert (result.status, "a hole" in result.stderr) == (0, False), result.stderr
        for log_type in names:
            written[log_type] += canonical(result.of(log_type))
    assert written == events
    assert passes > 2, "or the hint was not believed, and nothing is tested"
    assert collector.once("--log-types", ",".join(names)).stdout == ""


def test_what_looks_whole_but_leads_nowhere_is_not_relied_upon(duo, collector):
    at_ms = now_ms() - HOUR
    events = instant("telephony", 5, at_ms)
    duo.add("telephony", events)
    collector.seed(telephony=at_ms)
    cursor = f"{at_ms},{events[0]['telephony_id']}"
    page = {"items": events[:1], "metadata": {"next_offset": cursor, "total_objects": 1}}
    duo.inject("telephony", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    assert len(collector.once("--log-types", "telephony").events) == 5


@pytest.mark.parametrize("log_type", ["telephony", "administrator"])
def test_a_replay_does_not_rely_on_what_looks_whole(duo, collector, log_type):
    duo.rules.total, duo.rules.short_pages = "page", True
    fill(duo, log_type, 400, hours=0.5)
    result = collector.run("--since", "50m", "--until", "1m", "--log-types", log_type)
    assert (result.status, len(result.events)) == (0, 400)
