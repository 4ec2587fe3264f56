"""Progress of a first run, a signal that ends it, and the pause between two passes."""

import re
import signal

from conftest import (
    DAY,
    HOUR,
    ONLY,
    before,
    events_in,
    fill,
    finish,
    in_ms,
    now_ms,
    stamp,
    wait_for,
)
from duo import make_events


def often(collector):
    """Progress each 0.2 s, not each 30 s."""
    before(collector, "duo_collector.Reports.EVERY_S = 0.2; duo_collector.Threads.WAKE_S = 0.02")


def test_the_share_counts_from_the_first_event(duo, collector):
    """A log that begins in 2022 and has its first event a week ago is not at 90 % from the start."""
    often(collector)
    start_ms = (now_ms() - 7 * DAY) // 1000 * 1000
    duo.add("administrator", make_events("administrator", 1_000, start_ms, now_ms() - HOUR))
    duo.rules.v1_limit, duo.rules.latency_s = 100, 0.2
    result = collector.once("--log-types", "administrator")
    assert (result.status, len(result.events)) == (0, 1_000), result.stderr
    times = [in_ms("administrator", event) for event in result.events]
    shown = re.findall(r"(?:(\d+)%|just started).*? ([\d,]+) events so far", result.stderr)
    assert len(shown) >= 4, result.stderr
    for share, count in shown:
        reached = times[int(count.replace(",", "")) - 1]
        assert abs(int(share or 0) - 100 * (reached - start_ms) / (7 * DAY)) < 3


def test_a_signal_says_how_far_each_log_has_got(duo, collector, tmp_path):
    fill(duo, "telephony", 5_500)
    duo.rules.latency_s = 0.2
    path = tmp_path / "events"
    with open(path, "wb") as file:
        process = collector.start("--once", *ONLY, stdout=file)
    wait_for(lambda: path.read_bytes().count(b"\n") >= 1_000, "a page")
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.status == 75
    line, last = result.stderr.splitlines()[-2:]
    events = events_in(path)
    count = len(events)
    assert 1_000 <= count < 5_500
    reached = stamp(in_ms("telephony", events[-1]))
    assert re.search(rf"INFO telephony: {count:,} events in \d requests?, up to {reached}", line)
    assert line.endswith("; stopped")
    assert "stopped by a signal; everything written is checkpointed" in last


def test_the_loop_says_when_the_next_pass_is_and_once_does_not(duo, collector):
    fill(duo, "telephony", 5)
    process = collector.start("--interval", "300", *ONLY)
    line = next(line for line in process.stderr if b"5 events" in line)
    process.terminate()
    process.communicate(timeout=10)
    assert line.endswith(b"; next pass in 5 min\n")
    assert "next pass" not in collector.once(*ONLY).stderr
