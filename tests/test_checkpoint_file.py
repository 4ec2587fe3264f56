"""What the checkpoint file may hold, whose it is, and when it is refused."""

import json
import logging
import os
import re
import signal
from unittest import mock

import duo as tenant
import pytest
from conftest import (
    CHECKPOINT_KEYS,
    DEFAULT,
    HOUR,
    ONLY,
    Collector,
    assert_refused,
    fill,
    log_requests,
    now_ms,
)
from duo import Simulator

import duo_collector

AT_MS = 1661022959934


WRONG_SINCE = {
    "AUTH_SINCE_TIME": (
        *(
            "null",
            "true",
            "0",
            "1661022959",
            "166102295993",
            "16610229599345",
            "-1661022959934",
            "1661022959934.0",
        ),
        *(
            "1.661022959934e12",
            "NaN",
            "Infinity",
            '"1661022959934"',
            "[1661022959934]",
            "{}",
            '""',
            "9" * 30,
        ),
    ),
    "ADMIN_SINCE_TIME": ("1661022959934", "166102295", "-1661022959", "1661022959.934"),
    "TELEPHONY_SINCE_TIME": ("1661022959",),
    "OFFLINE_ENROLLMENT_SINCE_TIME": ("1661022959934",),
    "TRUST_MONITOR_SINCE_TIME": ("1661022959",),
}


KEPT = '{"authentication": {"since": %d, %%s}}' % AT_MS


DAMAGED = (
    *(
        "null",
        "[]",
        "5",
        '"x"',
        '{"authentication": []}',
        '{"authentication": "x"}',
        '{"authentication": {}}',
    ),
    *(
        KEPT % '"from": 1',
        KEPT % '"events": {}',
        KEPT % '"from": "x", "events": {}',
        KEPT % '"from": 1, "events": []',
    ),
    *(KEPT % '"from": 1, "events": {"a": null}', KEPT % '"from": 1, "events": {"a": NaN}'),
    *(KEPT % '"from": Infinity, "events": {}', KEPT % '"from": 1, "events": {"a": 1e999}'),
)


DAMAGED_STATE = tuple(
    kept.replace('"events"', '"written"')
    .replace('"from"', '"start_ms"')
    .replace('"since"', '"since_ms"')
    for kept in DAMAGED
)


WRONG_FILES = {
    "empty": b"",
    "blank": b"\n",
    "truncated": b'{"AUTH_SINCE_TIME": 16610229',
    "two documents": b"{} {}",
    "a list": b"[]",
    "a string": b'"1661022959934"',
    "a number": b"1661022959934",
    "null": b"null",
    "nothing but damaged state": b'{"state": null}',
    "nothing but a list for a state": b'{"state": []}',
    "not UTF-8": b'{"AUTH_SINCE_TIME": 1661022959934, "x": "\xff"}',
    "UTF-16": '{"AUTH_SINCE_TIME": 1661022959934}'.encode("utf-16"),
    "nested": b"[" * 100_000,
    "nested value": b'{"AUTH_SINCE_TIME": ' + b"[" * 100_000,
    **{
        f"{key} {value[:20]}": f'{{"{key}": {value}}}'.encode()
        for key, row in WRONG_SINCE.items()
        for value in row
    },
    **{
        f"state {kept}": f'{{"AUTH_SINCE_TIME": {AT_MS}, "state": {kept}}}'.encode()
        for kept in DAMAGED_STATE
    },
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_wrong_checkpoint_file_is_refused_and_left_alone(what, tmp_path, caplog, capfd):
    path = tmp_path / "checkpoints.json"
    path.write_bytes(WRONG_FILES[what])
    handler = signal.getsignal(signal.SIGINT)
    with mock.patch.dict(os.environ, clear=True):
        status = duo_collector.main(
            ["--status", "--env-file", "/dev/null", "--checkpoint-file", str(path)]
        )
    signal.signal(signal.SIGINT, handler)
    (record,) = caplog.records
    assert (status, record.levelno, capfd.readouterr().out) == (78, logging.ERROR, "")
    assert record.getMessage().isprintable() and str(path) in record.getMessage()
    key = what.split()[0]
    assert key in record.getMessage() or not key.endswith("_SINCE_TIME")
    assert path.read_bytes() == WRONG_FILES[what]


@pytest.mark.parametrize(
    "what",
    [
        *("empty", "truncated", "a list", "not UTF-8", "nested", "AUTH_SINCE_TIME 1661022959"),
        f"state {DAMAGED_STATE[4]}",
    ],
)
def test_a_run_from_a_wrong_checkpoint_file_requests_nothing(what, collector, duo):
    collector.checkpoint_file.write_bytes(WRONG_FILES[what])
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    assert collector.checkpoint_file.read_bytes() == WRONG_FILES[what]
    assert duo.requests == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_checkpoint_file_that_is_none_is_refused_without_waiting(make, collector, duo):
    make(collector.checkpoint_file)
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    for mode in "--status", "--check":
        assert_refused(collector.run(mode), 78, str(collector.checkpoint_file))
    assert duo.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_file_that_may_not_be_read_is_refused(collector, duo):
    collector.seed(authentication=AT_MS)
    collector.checkpoint_file.chmod(0)
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    assert duo.requests == []


@pytest.fixture
def other():
    with Simulator(host="127.0.0.2") as simulator:
        yield simulator


MODES = {
    "--once": ["--once"],
    "the loop": [],
    "--check": ["--check"],
    "--missing-from": ["--since", "2h", "--missing-from", "/dev/null"],
}


@pytest.mark.parametrize("mode", MODES)
def test_the_checkpoint_file_of_another_account_is_refused(duo, other, collector, tmp_path, mode):
    fill(duo, "telephony", 50)
    fill(other, "telephony", 1_500, seed=1)
    collector.seed(telephony=now_ms() - 7 * HOUR)
    assert collector.once(*ONLY).status == 0
    kept = collector.checkpoint_file.read_bytes()
    result = Collector(tmp_path, other).run(*MODES[mode], *ONLY)
    assert (result.status, result.stdout, len(other.requests)) == (78, "", 0), (
        f"{len(result.events)} of 1,500 written"
    )
    (line,) = result.stderr.splitlines()
    assert str(collector.checkpoint_file) in line
    assert re.search("belongs to 127.0.0.1, .*settings.* 127.0.0.2", line)
    assert collector.checkpoint_file.read_bytes() == kept
    assert collector.once(*ONLY).status == 0


def test_a_replay_asks_nobody_whose_checkpoint_file_it_is(duo, other, collector, tmp_path):
    fill(other, "telephony", 50)
    collector.once(*ONLY)
    kept = collector.checkpoint_file.read_bytes()
    result = Collector(tmp_path, other).run("--since", "1d", "--until", "1m", *ONLY)
    assert (result.status, len(result.events)) == (0, 50), result.stderr
    assert collector.checkpoint_file.read_bytes() == kept


def test_a_checkpoint_file_that_names_no_account_is_taken(duo, collector):
    fill(duo, "telephony", 50)
    collector.seed(telephony=now_ms() - 3 * HOUR)
    result = collector.once(*ONLY)
    assert (result.status, collector.saved["account"]) == (0, "127.0.0.1")


def test_a_run_that_collects_nothing_claims_no_checkpoint_file(duo, other, collector, tmp_path):
    """Wrong keys or a wrong host at first: put right, collection begins."""
    result = collector.once(*ONLY, environ={"DUO_SECRET_KEY": "0" * 40})
    assert result.status == 77
    result = Collector(tmp_path, other).once(*ONLY)
    assert result.status == 0, result.stderr


NONSENSE = [
    {"ok": "many", "events": 1.5, "last_error": 7, "holes": True},
    {},
    {"ok": -3, "last_success_ms": -1, "last_error_ms": -5, "last_error": "\ud800", "other": 1},
    *(
        dict.fromkeys(("last_success_ms", "last_error_ms", "pass_ms", "ok"), 10**n)
        for n in (16, 400)
    ),
]


NONSENSE_BY_KEY = [
    *(
        ("health", health) for health in (None, 7, "x", [], {"telephony": 7})
    ),  # as version 1 kept it
    *(("state", health) for health in NONSENSE),
]


@pytest.mark.parametrize("key, health", NONSENSE_BY_KEY, ids=lambda value: json.dumps(value)[:60])
def test_nonsense_for_health_stops_nothing(duo, collector, key, health, tmp_path):
    fill(duo, "telephony", 5)
    collector.environ.update(DUO_METRICS_FILE=str(tmp_path / "duo.prom"), DUO_LOG_TYPES="telephony")
    since_ms = now_ms() - 9 * HOUR
    if key == "state":
        health = {
            "telephony": {
                "since_ms": since_ms,
                "start_ms": since_ms,
                "written": {},
                "health": health,
            }
        }
    collector.checkpoint_file.write_text(
        json.dumps({"TELEPHONY_SINCE_TIME": since_ms, key: health})
    )
    runs = [
        collector.run("--status"),
        collector.run("--status", "--json"),
        collector.once(),
        collector.run("--status"),
    ]
    assert [run.status for run in runs] == [0] * 4, [run.stderr for run in runs]
    assert len(runs[2].events) == 5
    assert [len(run.stdout.splitlines()) for run in runs] == [1, 1, 5, 1]


def test_a_run_that_fails_makes_no_checkpoint(duo, collector):
    duo.rules.no_permission = True
    assert collector.once().status == 77
    assert not {key for key, _ in CHECKPOINT_KEYS.values()} & set(collector.saved)
    duo.rules.no_permission = False
    collector.environ["TELEPHONY_SINCE_TIME"] = str(
        now_ms() - HOUR
    )  # a seed that is put right afterwards still counts
    assert collector.once(*ONLY).status == 0
    assert duo.requests[-1].params["mintime"] == collector.environ["TELEPHONY_SINCE_TIME"]


def test_nothing_is_saved_when_nothing_has_changed(duo, collector):
    collector.seed(**dict.fromkeys(DEFAULT, duo.now_ms() - 60_000))
    before = collector.checkpoint_file.stat()
    assert collector.once().status == 0
    after = collector.checkpoint_file.stat()
    assert (after.st_ino, after.st_mtime_ns, log_requests(duo)) == (
        before.st_ino,
        before.st_mtime_ns,
        [],
    )


def test_only_the_failure_is_saved_when_the_checkpoint_is_ahead(duo, collector):
    collector.seed(**dict.fromkeys(DEFAULT, duo.now_ms() + HOUR))
    before = collector.saved
    for _ in range(2):
        result = collector.once()
        assert (result.status, result.stdout) == (75, "")
        after = collector.saved
        states = after.pop("state")
        assert (after, sorted(states)) == (before, sorted(tenant.LOG_TYPES))
        assert all(
            state["since_ms"] == state["start_ms"] and not state["written"]
            for state in states.values()
        )
        assert all(
            ("ahead of now" in states[name]["health"]["last_error"]) == (name in DEFAULT)
            for name in states
        )
    assert [request.path for request in duo.requests] == ["/auth/v2/ping"] * 2
