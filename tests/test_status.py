"""--status: how far each log type is, without a request."""

import json
import os
import re
import time
from datetime import timezone

import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    DAY,
    DEFAULT,
    HOUR,
    MINUTE,
    NO_KEYS,
    ONLY,
    V1,
    assert_refused,
    fill,
    log_requests,
    now_ms,
    stamp,
    wait_for,
)

import duo_collector

UTC = timezone.utc


def collected(collector, *log_types, **since_ms):
    """A pass of these log types; then since times are set by hand, as if it had been long ago."""
    assert collector.once("--log-types", ",".join(log_types)).status == 0
    document = collector.saved
    for log_type, at_ms in since_ms.items():
        key, unit_ms = CHECKPOINT_KEYS[log_type]
        document[key] = at_ms // unit_ms
    collector.checkpoint_file.write_text(json.dumps(document))


def test_status_says_where_each_log_type_is(collector, duo):
    now_ms = duo.now_ms()
    since_ms = {"authentication": now_ms - 600_000, "telephony": now_ms + 7_300_000}
    collected(collector, "authentication", "telephony", **since_ms)
    before = collector.checkpoint_file.read_bytes()
    asked = len(duo.requests)
    environ = {**NO_KEYS, "ADMIN_SINCE_TIME": "1700000000", "TZ": "America/New_York"}
    result = collector.run("--status", environ=environ)
    authentication, administrator, telephony = result.stdout.splitlines()
    assert re.match(
        rf"authentication +{stamp(now_ms - 600_000)}  10 min.* behind now", authentication
    )
    assert re.match("administrator +not started; will start at 2023-11-14T22:13:20Z", administrator)
    assert re.match(r"telephony +\S+Z  2 h .*ahead of now", telephony)
    assert (result.status, result.stderr) == (0, "")
    assert (collector.checkpoint_file.read_bytes(), len(duo.requests)) == (before, asked)


def test_status_without_a_file_says_where_each_log_type_will_start(collector, duo):
    result = collector.run("--status", "--log-types", ALL, environ=NO_KEYS)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(CHECKPOINT_KEYS)
    for line in lines:
        start = "2022-08-20T19:15:59Z"
        if line.split()[0] not in V1:  # as far back as Duo serves
            start = stamp(now_ms() - 180 * DAY + HOUR)[:-4]
        assert f"not started; will start at {start}" in line
    assert (result.status, collector.checkpoint_file.exists(), duo.requests) == (0, False, [])


def test_status_works_beside_a_running_collector(collector, duo):
    collector.seed(**dict.fromkeys(DEFAULT, duo.now_ms() - 600_000))
    process = collector.start()
    try:
        wait_for(lambda: "state" in collector.saved, "checkpoint")
        assert_refused(collector.once(), 75, str(collector.checkpoint_file))  # it holds the lock
        result = collector.run("--status")
        assert (result.status, len(result.stdout.splitlines())) == (0, 3)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def status(collector, *options):
    result = collector.run("--status", "--json", *options)
    assert result.stdout.count("\n") == 1, result.stderr
    return result.status, json.loads(result.stdout)


def test_status_tells_how_the_passes_end(duo, collector):
    fill(duo, "telephony", 5)
    _, document = status(collector)
    assert document["telephony"]["last_success"] is document["telephony"]["last_error"] is None
    assert sorted(document) == sorted(DEFAULT)
    assert document["telephony"]["lag_seconds"] is None  # not started
    collector.once()
    duo.rules.missing["administrator"] = 403
    kept = collector.saved
    assert collector.once("--log-types", "administrator").status == 77
    after = collector.saved
    after_state, kept_state = after.pop("state"), kept.pop("state")
    assert (after, list(after_state)) == (kept, list(kept_state))
    changed = {
        (log_type, name)
        for log_type, state in after_state.items()
        for name, value in state.items()
        if value != kept_state[log_type][name]
    }
    assert changed == {("administrator", "health")}
    health = [state["administrator"]["health"] for state in (after_state, kept_state)]
    changed = {name for name, value in health[0].items() if value != health[1][name]}
    assert (
        changed - {"pass_ms"} == {"refused", "last_error", "last_error_ms"}
        and health[0]["refused"] == 1
    )

    asked, (_, document) = len(log_requests(duo)), status(collector)
    times = {
        key: value for key, value in document["administrator"].items() if str(value)[-1] == "Z"
    }
    at_ms = {key: duo_collector.parse_iso(value) for key, value in times.items()}
    assert at_ms["checkpoint"] == collector.since("administrator") * 1000
    assert document["administrator"]["lag_seconds"] == pytest.approx(
        (now_ms() - at_ms["checkpoint"]) / 1000, abs=2
    )
    assert now_ms() - 30_000 < at_ms["last_success"] <= at_ms["last_error_time"] <= now_ms()
    assert document["administrator"]["last_error"].startswith(
        "Duo refuses the permission (403 40301 Access forbidden)"
    )
    assert document["telephony"]["last_error"] is document["telephony"]["last_error_time"] is None
    lines = collector.run("--status").stdout.splitlines()
    healthy = r"\S+Z  2 min( \d+ s)? behind now, last success \d+ s ago"
    assert re.fullmatch("telephony +" + healthy, lines[2]), lines
    assert re.fullmatch(
        "administrator +" + healthy + r", last error \d+ s ago: Duo refuses .*", lines[1]
    )
    assert len(log_requests(duo)) == asked


@pytest.mark.parametrize("minutes, status", [(10, 0), (-10, 0), (20, 75), (-20, 75)])
def test_max_lag_is_an_exit_status(duo, collector, minutes, status):
    collected(collector, *DEFAULT, administrator=now_ms() - minutes * MINUTE)
    for options in (["--json"], []):
        result = collector.run("--status", "--max-lag", "15m", *options)
        assert (result.status, result.stderr.count("\n")) == (status, status == 75), result.stdout
        said = "behind or ahead by more than 15 min, or not started: administrator\n"
        said = f" ERROR {collector.checkpoint_file}: {said}"
        assert status == 0 or result.stderr.endswith(said), result.stderr
    assert collector.run("--status", "--max-lag", "15m", *ONLY).status == 0
    assert collector.run("--status").status == 0


def test_max_lag_is_exceeded_by_what_was_never_collected(duo, collector):
    collected(collector, "telephony")
    result = collector.run("--status", "--max-lag", "15m", "--log-types", "telephony,activity")
    assert result.status == 75
    assert result.stderr.endswith("by more than 15 min, or not started: activity\n")


def test_status_with_max_lag_tells_a_tenant_that_is_stuck_though_its_file_is_new(duo, collector):
    fill(duo, "telephony", 20)
    assert collector.once().status == 0
    alarm = ["--status", "-q", "--max-lag", "1h", "--checkpoint-file", collector.checkpoint_file]
    healthy = collector.run(*alarm)
    assert (healthy.status, healthy.stderr) == (0, "")

    document = collector.saved  # three days behind, one of three
    document["ADMIN_SINCE_TIME"] = now_ms() // 1000 - 3 * 86_400
    collector.checkpoint_file.write_text(json.dumps(document))
    os.utime(collector.checkpoint_file, (time.time() - 7_200,) * 2)
    duo.inject("administrator", (503, {"Retry-After": "3600"}, b"down"))
    assert collector.once("--log-types", "administrator").status == 75
    assert (
        time.time() - collector.checkpoint_file.stat().st_mtime < 60
    )  # so the age of the file says nothing
    result = collector.run(
        *alarm, environ=dict.fromkeys(("DUO_API_HOST", "DUO_INTEGRATION_KEY", "DUO_SECRET_KEY"))
    )
    assert (result.status, result.stderr.count("\n")) == (75, 1)
    assert (
        f"{collector.checkpoint_file}: behind or ahead by more than 1 h, or not started: administrator\n"
        in result.stderr
    )


def test_a_checkpoint_file_that_is_empty_is_there(collector):
    collector.checkpoint_file.write_text("{}")
    result = collector.run("--status")
    assert (result.status, f"{collector.checkpoint_file} is empty" in result.stderr) == (0, True), (
        result.stderr
    )
