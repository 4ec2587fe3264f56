"""A first run, and a log type that is added later."""

import json

from conftest import DAY, HOUR, ONLY, fill, now_ms, stamp


def test_status_before_the_first_run_says_not_started(collector):
    result = collector.run("--status")
    assert result.status == 0
    for line in result.stdout.splitlines():
        assert "not started; will start at 20" in line and "behind" not in line
    lines = json.loads(collector.run("--status", "--json").stdout)
    assert {line["lag_seconds"] for line in lines.values()} == {None}


def test_the_first_run_says_once_where_it_starts(duo, collector):
    fill(duo, "telephony", 5)
    result = collector.once()
    assert result.status == 0
    (line,) = [line for line in result.stderr.splitlines() if "180 days" in line]
    assert " INFO first run: starts 180 days back, as far as Duo serves" in line
    for word in (" WARNING ", "2022", "seed", "passed over"):
        assert word not in result.stderr
    again = collector.once()
    assert (again.status, "first run" in again.stderr) == (0, False)


def test_nobody_is_told_of_seeds(collector):
    shown = [collector.run(option).stdout for option in ("--help", "--status")]
    collector.environ["TELEPHONY_SINCE_TIME"] = "12"
    shown.append(collector.once(*ONLY).stderr)
    assert "TELEPHONY_SINCE_TIME '12'" in shown[-1]
    assert not [text for text in shown if "seed" in text.lower()]


def test_activity_that_is_added_later_starts_a_day_back_and_moves_no_other(duo, collector):
    at_ms = now_ms() - 3 * HOUR
    collector.seed(authentication=at_ms, administrator=at_ms, telephony=at_ms)
    fill(duo, ["authentication", "administrator", "telephony"], 20, hours=(2, 1))
    assert len(collector.once().events) == 60
    before = collector.saved
    fill(duo, "activity", 48, hours=(48, 1))
    late = ("--log-types", "activity", "--once", "--since", "24h")
    result = collector.run(*late)
    assert result.status == 0, result.stderr
    assert " WARNING " not in result.stderr
    first = min(event["ts"] for event in result.events)
    assert first >= stamp(now_ms() - DAY - HOUR)[:-1] and 20 < len(result.events) < 28
    after = collector.saved
    for name in before:
        if name != "state":
            assert after[name] == before[name]
    for log_type in ("authentication", "administrator", "telephony"):
        assert after["state"][log_type] == before["state"][log_type]
    assert after["ACTIVITY_SINCE_TIME"] > at_ms
    everything = "authentication,administrator,telephony,activity"
    result = collector.once("--log-types", everything)
    assert (result.status, result.stdout) == (0, ""), result.stderr
