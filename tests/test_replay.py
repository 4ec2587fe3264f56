"""--since with --until: a range is printed, and no checkpoint is touched."""

import json
import os
import re
from collections import Counter

import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    DAY,
    DEFAULT,
    HOUR,
    JSON,
    MINUTE,
    ONLY,
    canonical,
    fill,
    in_ms,
    instant,
    log_requests,
    now_ms,
    running,
    stamp,
    stamp_ms,
    wait_for,
)
from duo import LOG_TYPES, make_events


@pytest.mark.parametrize("bound_ms", [0, 250])
def test_neighbouring_ranges_give_every_event_once_as_the_ordinary_run_does(
    duo, collector, bound_ms
):
    start = (now_ms() - 3 * HOUR) // 1000 * 1000
    middle, end = start + HOUR + bound_ms, start + 2 * HOUR
    for log_type in LOG_TYPES:
        duo.add(
            log_type, make_events(log_type, 1_100 if log_type == "telephony" else 60, start, end)
        )
        unit_ms = CHECKPOINT_KEYS[log_type][1]
        edges = (
            start - 1000,
            start,
            middle // 1000 * 1000,
            middle,
            middle + 1000,
            end - 1000,
            end,
            end + 500,
        )
        for at_ms in {edge // unit_ms * unit_ms for edge in edges}:
            duo.add(log_type, instant(log_type, 3, at_ms, spread_us=1))
    names = ("--log-types", ALL)
    ranges = [
        collector.run("--since", stamp_ms(since), "--until", stamp_ms(until), *names)
        for since, until in ((start, middle), (middle, end))
    ]
    assert not collector.checkpoint_file.exists()
    assert [run.status for run in ranges] == [0, 0], [run.stderr for run in ranges]
    assert "a hole" not in ranges[0].stderr + ranges[1].stderr
    asked = len(log_requests(duo))
    collector.seed(**dict.fromkeys(LOG_TYPES, start))
    ordinary = collector.once(*names)
    assert asked < len(log_requests(duo))
    time_of = dict(
        zip(
            ordinary.stdout.splitlines(),
            (in_ms(event["eventtype"], event) for event in ordinary.events),
        )
    )
    expected = Counter(line for line in ordinary.stdout.splitlines() if time_of[line] < end)
    replayed = Counter(line for run in ranges for line in run.stdout.splitlines())
    assert (replayed - expected, expected - replayed) == (Counter(), Counter())
    assert all(time_of[line] < middle for line in ranges[0].stdout.splitlines())


@pytest.mark.parametrize(
    "content", [None, b'{"TELEPHONY_SINCE_TIME": 1771000000000}', b"not even JSON"]
)
def test_a_replay_leaves_the_checkpoint_alone(duo, collector, content):
    fill(duo, "telephony", 30)
    if content:
        collector.checkpoint_file.write_bytes(content)
        os.utime(collector.checkpoint_file, (1, 1))
    result = collector.run("--since", "12h", "--until", "1m", *ONLY)
    assert (result.status, len(result.events)) == (0, 30), result.stderr
    assert os.listdir(collector.checkpoint_file.parent) == (
        [collector.checkpoint_file.name] if content else []
    )
    if content:
        assert (
            collector.checkpoint_file.read_bytes() == content
            and collector.checkpoint_file.stat().st_mtime == 1
        )


def test_a_replay_works_beside_a_service(duo, collector):
    fill(duo, "telephony", 30)
    with running(collector, "--interval", "60", *ONLY) as process:
        assert sum(1 for _ in zip(range(30), process.stdout)) == 30
        wait_for(lambda: b" 30 events in 1 request" in process.stderr.readline(), "end of the pass")
        kept = collector.checkpoint_file.read_bytes(), collector.checkpoint_file.stat().st_mtime_ns
        assert collector.once(*ONLY).status == 75
        result = collector.run("--since", "12h", "--until", "now", *ONLY)
        assert (result.status, len(result.events)) == (0, 30), result.stderr
        assert (
            collector.checkpoint_file.read_bytes(),
            collector.checkpoint_file.stat().st_mtime_ns,
        ) == kept


@pytest.mark.parametrize("log_type", ["administrator", "telephony"])
def test_a_replay_is_not_confused_by_all_that_comes_after_it(duo, collector, log_type):
    start = (now_ms() - 3 * HOUR) // 1000 * 1000
    duo.add(log_type, make_events(log_type, 50, start, start + HOUR))
    duo.add(log_type, make_events(log_type, 2_500, start + HOUR, start + 2 * HOUR, seed=1))
    result = collector.run(
        "--since", stamp_ms(start), "--until", stamp_ms(start + HOUR), "--log-types", log_type
    )
    assert (result.status, len(result.events)) == (0, 50), result.stderr
    assert "a hole" not in result.stderr
    # Of a v1 log, a page that shows later events is no end: one of them may be dated in the future.
    assert len(log_requests(duo)) <= (3 if LOG_TYPES[log_type].cursor else 4)


@pytest.mark.parametrize("until", ["1h", "190d"])
def test_a_replay_of_what_duo_no_longer_serves_warns(duo, collector, until):
    for log_type in DEFAULT:
        duo.add(log_type, make_events(log_type, 20, now_ms() - 199 * DAY, now_ms() - 195 * DAY))
    result = collector.run("--since", "200d", "--until", until)
    assert (result.status, len(result.of("administrator")), len(result.events)) == (0, 20, 20)
    for log_type in ("authentication", "telephony"):
        assert (
            result.stderr.count(
                f"WARNING {log_type}: Duo serves only the last 180 days; passed over: 20"
            )
            == 1
        )
    assert "WARNING administrator" not in result.stderr


@pytest.mark.parametrize("log_type", ["telephony", "administrator"])
def test_a_replay_does_not_rely_on_what_looks_whole(duo, collector, log_type):
    duo.rules.total, duo.rules.short_pages = "page", True
    fill(duo, log_type, 400, hours=(0.5, 0.13))
    result = collector.run("--since", "50m", "--until", "1m", "--log-types", log_type)
    assert (result.status, len(result.events)) == (0, 400)


def test_a_replay_prints_what_has_no_time_wherever_it_stands_on_the_page(duo, collector):
    now_s = now_ms() // 1000
    page = [
        {"timestamp": now_s - 3600, "n": 1},
        {"timestamp": "odd", "n": 2},
        {"timestamp": now_s - 9000, "n": 3},
    ]
    duo.inject("administrator", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    result = collector.run("--log-types", "administrator", "--since", "3h", "--until", "2h")
    assert (result.status, sorted(event["n"] for event in result.events)) == (0, [2, 3]), (
        result.stderr
    )


def test_since_and_until_are_by_duos_clock(duo, collector):
    duo.rules.clock_offset = 3_600  # so by the local clock all of this is ahead
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 60, end_ms - 40 * MINUTE, end_ms))
    since_ms, until_ms = end_ms - 20 * MINUTE, end_ms - 5 * MINUTE
    since_ms, until_ms = since_ms // 1000 * 1000, until_ms // 1000 * 1000
    after = [event for event in duo.events("telephony") if in_ms("telephony", event) >= since_ms]
    between = [event for event in after if in_ms("telephony", event) < until_ms]
    replay = collector.run("--since", stamp(since_ms), "--until", stamp(until_ms), *ONLY)
    assert (replay.status, canonical(replay.of("telephony"))) == (0, canonical(between)), (
        replay.stderr
    )
    assert re.search("local clock is 3,(600|599) s behind", replay.stderr)
    started = collector.once("--since", stamp(since_ms), *ONLY)
    assert (started.status, canonical(started.of("telephony"))) == (0, canonical(after)), (
        started.stderr
    )
    ahead = collector.once("--since", stamp(duo.now_ms() + 20 * MINUTE), *ONLY)
    assert (ahead.status, "ahead of now" in ahead.stderr) == (2, True), ahead.stderr
