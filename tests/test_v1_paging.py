"""Pages by time, as of administrator and offline_enrollment: seconds that hold more than a page."""

import re
import time

import pytest
from conftest import DAY, HOUR, MINUTE, differences, event_times, events_of, holes, instant, now_ms
from duo import make_events

import duo_collector


@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
@pytest.mark.parametrize(
    "counts", [(600, 600), (999, 2, 999), (1, 1000), (1000, 1), (1001, 5), (2500, 0, 7)]
)
def test_seconds_of_many_administrator_events(duo, collector, mintime, counts):
    duo.rules.v1_mintime = mintime
    start_ms = (now_ms() - HOUR) // 1000 * 1000
    for second, count in enumerate(counts):
        duo.add("administrator", instant("administrator", count, start_ms + second * 1000))
    collector.seed(administrator=start_ms)
    result = collector.once("--log-types", "administrator")
    # what Duo shows of a second is the first 1,000; the rest of it no parameter asks for
    assert len(result.events) == sum(min(count, 1000) for count in counts)
    times = event_times("administrator", result.of("administrator"))
    assert times == sorted(times)
    overfull = [second for second, count in enumerate(counts) if count > 1000]
    for second in overfull:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start_ms // 1000 + second))
        assert f"from {stamp} to {stamp} Duo shows only 1,000 events" in result.stderr
    assert ("a hole" in result.stderr) == (
        max(counts) >= 1000
    )  # of 1,000 one can't tell whether that was all
    again = collector.once("--log-types", "administrator")
    assert again.stdout == ""


@pytest.mark.parametrize("count, told", [(200, True), (9, False)])
def test_a_hole_is_told_where_all_that_follows_is_in_the_next_second(count, told):
    """A page below 1,000 that one second fills, mintime exclusive; then one of the next second."""
    row = duo_collector.LOG_TYPES["administrator"]
    second = now_ms() // 1000 * 1000 - HOUR
    events = [
        duo_collector.read_event(row, "{}", {"timestamp": second // 1000, "n": number})
        for number in range(count)
    ]
    later = duo_collector.read_event(row, "{}", {"timestamp": second // 1000 + 1})
    holes = []
    until_ms = now_ms() - 10 * MINUTE
    walk = duo_collector.Walk(row, second, until_ms, lambda *hole: holes.append(hole[:2]))
    while not walk.done:
        mintime_ms = int(walk.parameters["mintime"]) * 1000
        assert walk.pages < 10
        shown = [event for event in events if event.time_ms > mintime_ms]
        if not shown and later.time_ms > mintime_ms:
            shown = [later]
        walk.step(duo_collector.Page(shown))
    assert holes == ([(second, second)] if told else [])


def test_a_v1_server_that_ignores_mintime_ends_the_walk():
    row = duo_collector.LOG_TYPES["administrator"]
    now = now_ms()
    old = [
        duo_collector.read_event(row, "{}", {"timestamp": (now - DAY) // 1000 + number})
        for number in range(12)
    ]
    walk = duo_collector.Walk(row, now - HOUR, now - 2 * MINUTE, pytest.fail)
    while not walk.done:
        assert walk.pages < 5
        walk.step(duo_collector.Page(old))


@pytest.mark.parametrize(
    "hold_back_s, age_s", [(120, 300), (0, 130)], ids=["of the window", "later than the window"]
)
def test_a_full_second_that_a_page_reaches_beyond_is_no_hole(duo, collector, hold_back_s, age_s):
    duo.rules.v1_hold_back_s, second_ms = hold_back_s, (now_ms() - age_s * 1000) // 1000 * 1000
    later_ms = second_ms + (1_000 if hold_back_s else 40_000)
    duo.add("administrator", instant("administrator", 700, second_ms))
    duo.add("administrator", make_events("administrator", 400, later_ms, later_ms + 85_000))
    collector.seed(administrator=second_ms - HOUR)
    results = [collector.once("--log-types", "administrator") for _ in range(3)]
    assert "".join(result.stderr for result in results).count("a hole") == 0
    seen = differences(duo, events_of(results), ["administrator"])
    assert seen["doubled"] == 0
    assert seen["lost"] <= (
        0 if hold_back_s else 100
    )  # of the last two minutes: a later pass reads that
    assert holes(collector, "administrator") == 0


def test_a_hole_is_told_and_counted_once(duo, collector, tmp_path):
    second_ms = (now_ms() - 5 * MINUTE) // 1000 * 1000
    duo.add("administrator", instant("administrator", 1_500, second_ms))
    duo.add(
        "administrator", make_events("administrator", 100, second_ms + 1000, second_ms + 2 * MINUTE)
    )
    collector.seed(administrator=second_ms - HOUR)
    collector.environ["DUO_METRICS_FILE"] = str(tmp_path / "duo.prom")
    results = [collector.once("--log-types", "administrator") for _ in range(3)]
    assert [len(result.events) for result in results] == [1_100, 0, 0]
    assert "".join(result.stderr for result in results).count("a hole") == 1
    assert re.search(
        r"^duo_collector_holes_total{.*} 1(\.0)?$",
        (tmp_path / "duo.prom").read_text(),
        re.MULTILINE,
    )


@pytest.mark.parametrize("cap", [10, 60])
@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
def test_a_v1_log_that_shows_fewer_than_it_says(duo, collector, cap, mintime):
    duo.rules.v1_limit, duo.rules.v1_mintime = cap, mintime
    start_s = now_ms() // 1000 - 3600
    template = make_events("administrator", 1, start_s * 1000, start_s * 1000 + 1)[0]
    counts = [1, cap, 2, cap + 3, 5, cap - 1, cap, 1]
    for second, count in enumerate(counts):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(start_s + second))
        duo.add(
            "administrator",
            [
                {
                    **template,
                    "timestamp": start_s + second,
                    "isotimestamp": stamp,
                    "object": f"{second}.{number}",
                }
                for number in range(count)
            ],
        )
    result = collector.once("--log-types", "administrator")
    assert result.status == 0, result.stderr
    assert len(result.events) == sum(counts) - 3
    assert "a hole" in result.stderr
