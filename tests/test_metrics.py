"""The metrics file: right, monotonic, whole, and no reason to stop."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections import Counter

import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    DEFAULT,
    JSON,
    ONLY,
    before,
    fill,
    log_requests,
    now_ms,
    running,
    wait_for,
)
from duo import Simulator, make_events
from prometheus_client.parser import text_string_to_metric_families


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
        labels = [
            (s.name[14:], s.labels.pop("log_type", None), s.labels.pop("outcome", None))
            for s in samples
        ]
        assert not any(sample.labels for sample in samples) and len(set(labels)) == len(labels)
        return dict(zip(labels, (sample.value for sample in samples)))

    read.path = path
    return read


OUTCOMES = ("ok", "limited", "refused", "failed")


NAMES = (
    "events_total",
    "holes_total",
    "checkpoint_timestamp_seconds",
    "last_success_timestamp_seconds",
    "pass_duration_seconds",
    "clock_difference_seconds",
)


def test_metrics_are_right_and_go_on_from_run_to_run(duo, collector, metrics):
    for log_type in DEFAULT:
        fill(duo, log_type, 1_200)
    duo.rules.clock_offset = 100.0
    duo.inject("telephony", "error_500", "error_429")
    began = time.monotonic()
    collector.once()
    took_s, seen = time.monotonic() - began, metrics()
    rows = [
        *((name, None) for name in NAMES),
        *(("requests_total", outcome) for outcome in OUTCOMES),
    ]
    assert set(seen) == {
        (name, log_type, outcome) for name, outcome in rows for log_type in DEFAULT
    }
    for log_type in DEFAULT:
        assert (seen["events_total", log_type, None], seen["holes_total", log_type, None]) == (
            1_200,
            0,
        )
        unit_s = CHECKPOINT_KEYS[log_type][1] / 1000
        assert seen["checkpoint_timestamp_seconds", log_type, None] == pytest.approx(
            collector.since(log_type) * unit_s
        )
        assert seen["last_success_timestamp_seconds", log_type, None] == pytest.approx(
            time.time() + 100, abs=10
        )
        assert 0 < seen["pass_duration_seconds", log_type, None] < took_s
        answers = Counter(
            request.status for request in duo.requests if request.log_type == log_type
        )
        assert seen["requests_total", log_type, "ok"] == answers[200] >= 2
        once = int(log_type == "telephony")
        assert [seen["requests_total", log_type, outcome] for outcome in OUTCOMES[1:]] == [
            once,
            0,
            once,
        ]
    for log_type in DEFAULT:
        off_s = seen["clock_difference_seconds", log_type, None]
        assert off_s == pytest.approx(100, abs=3)

    duo.rules.clock_offset, duo.rules.missing["administrator"] = 0, 404
    at_ms = now_ms() - 200_000
    duo.add("authentication", make_events("authentication", 3, at_ms, at_ms + 1000, seed=9))
    page = {"items": [], "metadata": {"next_offset": None, "total_objects": 7}}
    duo.inject("telephony", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    collector.once()
    again = metrics()
    grown = {
        key: again[key] - seen[key]
        for key in seen
        if key[0].endswith("_total") and again[key] != seen[key]
    }
    assert grown.pop(("requests_total", "authentication", "ok")) >= 1
    assert grown == {
        ("events_total", "authentication", None): 3,
        ("holes_total", "telephony", None): 1,
        ("requests_total", "administrator", "refused"): 1,
        ("requests_total", "telephony", "ok"): 1,
    }
    success = [again["last_success_timestamp_seconds", log_type, None] for log_type in DEFAULT]
    assert success[1] == seen["last_success_timestamp_seconds", "administrator", None] != success[0]


def test_counters_do_not_go_back_over_a_restart(duo, collector, metrics):
    fill(duo, "telephony", 5)
    before(collector, "duo_collector.Reports.EVERY_S = 0.1; duo_collector.Threads.WAKE_S = 0.05")
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
    assert not {key for key in again if key[0].endswith("_total") and again[key] < seen[key]}, (
        seen,
        again,
    )
    assert again["requests_total", "telephony", "ok"] == sum(
        request.status == 200 for request in log_requests(duo)
    )


def test_metrics_are_there_before_the_first_answer_and_renewed_in_a_long_pass(
    backlog, collector, metrics
):
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
                assert (
                    len([line for line in file.read().split("\n") if line and line[0] != "#"])
                    == size
                )
        wait_for(lambda: inodes - {metrics.path.stat().st_ino}, "another file in its place")
    assert metrics.path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(metrics.path.parent) == ["duo.prom"]


def test_metrics_that_cannot_be_written_any_more_stop_nothing(duo, collector, metrics):
    with running(collector, "--interval", "0.2", *ONLY) as process:
        wait_for(metrics.path.exists, "metrics")
        metrics.path.parent.rename(metrics.path.parent.with_name("away"))
        line = next(
            line
            for line in iter(process.stderr.readline, b"")
            if b"WARNING DUO_METRICS_FILE" in line
        )
        assert b"No such file" in line and str(metrics.path).encode() in line
        at_ms = now_ms() - 200_000
        duo.add("telephony", make_events("telephony", 1, at_ms, at_ms + 1000))
        assert json.loads(process.stdout.readline())["eventtype"] == "telephony"
        metrics.path.parent.mkdir()
        wait_for(metrics.path.exists, "metrics once there is a folder again")


def test_a_metrics_file_in_the_working_directory(duo, collector, tmp_path):
    result = collector.once(*ONLY, environ={"DUO_METRICS_FILE": "duo.prom"}, cwd=tmp_path)
    assert (result.status, "DUO_METRICS_FILE" in result.stderr) == (0, False), result.stderr
    assert (tmp_path / "duo.prom").read_text()


def test_metrics_need_no_package(duo, collector, metrics):
    fill(duo, "telephony", 3)
    before(collector, "sys.modules['prometheus_client'] = None")
    result = collector.once(*ONLY)
    assert (result.status, "DUO_METRICS_FILE" in result.stderr) == (0, False), result.stderr
    assert metrics()["events_total", "telephony", None] == 3


@pytest.mark.parametrize(
    "path, named",
    [
        ("/nowhere/duo.prom", "/nowhere/"),
        ("checkpoints", "another path"),
        ("folder", "folder"),
        ("pipe", "of a file"),
    ],
)
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


@pytest.mark.parametrize(
    "options", [["--check"], ["--status"], ["--since", "2h", "--until", "1h"]], ids=" ".join
)
def test_metrics_are_those_of_collection_only(duo, collector, metrics, options):
    assert collector.run(*options).status == 0
    assert not metrics.path.exists()


def test_help_lines_are_the_same_for_every_tenant(duo, collector, metrics):
    """node_exporter before 1.4 drops a second tenant's series without them."""
    collector.once()
    first = metrics.path.read_text()
    with Simulator(host="127.0.0.2") as other:
        path = metrics.path.with_name("other.prom")
        environ = {**other.settings, "DUO_METRICS_FILE": str(path)}
        environ["DUO_CHECKPOINT_FILE"] = str(path.with_name("other.json"))
        collector.once("--log-types", ALL, environ=environ)
    texts = [
        [line for line in text.splitlines() if line[0] == "#"] for text in (first, path.read_text())
    ]
    assert texts[0] == texts[1]
    names = re.findall(r"^(duo_collector_\w+){", first, re.MULTILINE)
    assert {line.split()[2] for line in texts[0] if line.startswith("# HELP ")} == set(names)
