"""What a year of collecting brings: outages of Duo's pipeline, wrong clocks, odd pages, shared folders, first mistakes.

Each of these once lost or repeated events, stopped collection in silence, or said what is not so.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
import requests
from conftest import CHECKPOINT_KEYS, SCRIPT, Collector, wait_for
from duo import LOG_TYPES, Simulator, make_events
from test_collection import DAY, HOUR, MINUTE, V2, canonical, fill, in_ms, instant, now_ms

import duo_collector

ALL = ",".join(LOG_TYPES)
DEFAULT = ("authentication", "administrator", "telephony")
JSON = {"Content-Type": "application/json"}


def events_of(results, log_type):
    return [event for result in results for event in result.of(log_type)]


def differences(duo, results, log_types):
    """How many events of the tenant were not written, and how many lines are too many."""
    lost = doubled = 0
    for log_type in log_types:
        written, there = canonical(events_of(results, log_type)), canonical(duo.events(log_type))
        lost += sum((there - written).values())
        doubled += sum((written - there).values())
    return {"lost": lost, "doubled": doubled}


NONE = {"lost": 0, "doubled": 0}


def holes(collector, log_type):
    return json.loads(collector.checkpoint_file.read_text())["state"][log_type]["health"]["holes"]


def before(collector, statement):
    """Let the collector's process do something before it begins; the rest of it is as ever."""
    code = f"import sys, duo_collector; {statement}; sys.exit(duo_collector.main())"
    collector.environ["PYTHONPATH"] = str(SCRIPT.parent)
    collector.command = lambda *options: [sys.executable, "-c", code, "--env-file", "/dev/null", *map(str, options)]


def under(collector, *wrapper):
    """Run the collector under another command."""
    command = collector.command
    collector.command = lambda *options: [*wrapper, *command(*options)]


def without_privileges(collector):
    """Have modes of files apply, to root too."""
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        wrapper = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
        if not shutil.which("setpriv") or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
            pytest.skip("root, and no setpriv to give up its rights")
        under(collector, *wrapper)


def under_strace(collector, trace, *options):
    wrapper = ["strace", "-D", "-f", "-o", str(trace), *options]
    if not shutil.which("strace") or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("no strace, or no right to use it")
    under(collector, *wrapper)


def stamp(at_ms):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms // 1000))


# 1: Duo's log pipeline stands still while its API answers


@pytest.mark.parametrize("known", [20, 0], ids=["after some events", "before the first event"])
def test_what_duo_shows_after_hours_of_empty_answers_is_collected(duo, collector, known):
    start_ms, end_ms = (now_ms() - 5 * HOUR) // 1000 * 1000, now_ms() + HOUR
    collector.seed(**dict.fromkeys(LOG_TYPES, start_ms - HOUR))
    duo.stall(start_ms, end_ms)
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, known, start_ms - 30 * MINUTE, start_ms - 1000, seed=1))
        duo.add(log_type, make_events(log_type, 250, start_ms, now_ms() - 3 * MINUTE, seed=2))
    results = [collector.once("--log-types", ALL) for _ in range(3)]
    assert [(result.status, len(result.events)) for result in results] == [(0, 6 * known), (0, 0), (0, 0)]
    asked = len(duo.requests)
    results.append(collector.once("--log-types", ALL))
    assert len(duo.requests) - asked <= 2 * len(LOG_TYPES), "a quiet pass takes a request, or one more"
    for store in duo._stores.values():  # which ends it now
        store.publish(end_ms)
    results += [collector.once("--log-types", ALL) for _ in range(2)]
    assert differences(duo, results, LOG_TYPES) == NONE
    assert results[-1].stdout == ""


# 2: a local clock that is far behind


def test_a_clock_told_by_a_refusal_opens_the_window_before_the_pass_ends(duo, collector):
    """By the local clock the checkpoint is ahead of now; Duo limits the request for its time, and tells it all the same."""
    duo.rules.clock_offset = 200
    collector.seed(telephony=duo.now_ms() - 180_000)
    end_ms = duo.now_ms() - 125_000
    duo.add("telephony", make_events("telephony", 10, end_ms - 30_000, end_ms))
    date = formatdate(duo.now_ms() / 1000, usegmt=True)
    duo.inject("ping", (429, {**JSON, "Date": date}, b'{"stat": "FAIL", "code": 42901, "message": "Too Many Requests"}'))
    result = collector.once("--log-types", "telephony")
    assert (result.status, len(result.events)) == (0, 10), result.stderr
    assert duo.requests[0].path == "/auth/v2/ping"


@pytest.mark.parametrize("ping", [(), ("error_404",), ("html_502",), ("reset",)], ids=["ping", "404", "HTML", "reset"])
@pytest.mark.parametrize("behind", ["40 min", "2 h", "1 day", "200 days"])
def test_a_local_clock_far_behind_the_checkpoint_stops_nothing(duo, collector, behind, ping):
    behind_s = {"40 min": 2_400, "2 h": 7_200, "1 day": 86_400, "200 days": 200 * 86_400}[behind]
    duo.rules.ping_faults = ping
    duo.rules.clock_offset = behind_s
    collector.seed(**dict.fromkeys(LOG_TYPES, duo.now_ms() - 5 * MINUTE))
    results = []
    for seed in range(2):
        end_ms = duo.now_ms() - 130_000
        for log_type in LOG_TYPES:
            duo.add(log_type, make_events(log_type, 30, end_ms - MINUTE, end_ms, seed=seed))
        results.append(collector.once("--log-types", ALL))
        assert results[-1].status == 0, results[-1].stderr
        told = re.findall(r"WARNING local clock is (\d+) s behind Duo's", results[-1].stderr)
        assert [abs(int(said) - behind_s) <= 2 for said in told] == [True], results[-1].stderr
        assert results[-1].stderr.count("WARNING") == 1
    assert differences(duo, results, LOG_TYPES) == NONE


def test_since_and_until_are_by_duos_clock(duo, collector):
    duo.rules.clock_offset = 3_600  # so by the local clock all of this is ahead
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 60, end_ms - 40 * MINUTE, end_ms))
    since_ms, until_ms = end_ms - 20 * MINUTE, end_ms - 5 * MINUTE
    since_ms, until_ms = since_ms // 1000 * 1000, until_ms // 1000 * 1000
    after = [event for event in duo.events("telephony") if in_ms("telephony", event) >= since_ms]
    between = [event for event in after if in_ms("telephony", event) < until_ms]
    only = ("--log-types", "telephony")
    replay = collector.run("--since", stamp(since_ms), "--until", stamp(until_ms), *only)
    assert (replay.status, canonical(replay.of("telephony"))) == (0, canonical(between)), replay.stderr
    assert "local clock is 3600 s behind" in replay.stderr or "local clock is 3599 s behind" in replay.stderr
    started = collector.once("--since", stamp(since_ms), *only)
    assert (started.status, canonical(started.of("telephony"))) == (0, canonical(after)), started.stderr
    ahead = collector.once("--since", stamp(duo.now_ms() + 20 * MINUTE), *only)
    assert (ahead.status, "ahead of now" in ahead.stderr) == (2, True), ahead.stderr


@pytest.mark.parametrize("log_type", ["authentication", "administrator"])
def test_a_checkpoint_that_really_is_ahead_takes_one_request_and_is_75(duo, collector, log_type):
    collector.seed(**{log_type: now_ms() + 2 * HOUR})
    since = collector.since(log_type)
    result = collector.once("--log-types", log_type)
    assert (result.status, [request.path for request in duo.requests]) == (75, ["/auth/v2/ping"]), result.stderr
    assert re.search(f"{CHECKPOINT_KEYS[log_type][0]} in .* is (2 h|1 h 59 min).* ahead of now", result.stderr)
    assert collector.since(log_type) == since


# 3: --once


def test_once_starts_no_log_type_twice(duo, collector):
    fill(duo, "telephony", 5_500)
    collector.seed(**dict.fromkeys(DEFAULT, now_ms() - 7 * HOUR))
    duo.rules.missing["administrator"], duo.rules.latency_s = 403, 0.15
    result = collector.once("--interval", "0.1")
    passes = re.findall(r"(\w+): [\d,]+ events? in [\d,]+ requests?", result.stderr)
    assert sorted(passes) == sorted(DEFAULT)
    assert [request.log_type for request in duo.requests].count("administrator") == 1
    assert (result.status, len(result.events)) == (77, 5_500)


# 4: whose checkpoint file it is


@pytest.fixture
def other():
    with Simulator(host="127.0.0.2") as simulator:
        yield simulator


MODES = {"--once": ["--once"], "the loop": [], "--check": ["--check"],
         "--missing-from": ["--since", "2h", "--missing-from", "/dev/null"]}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_the_checkpoint_file_of_another_account_is_refused(duo, other, collector, tmp_path, mode):
    fill(duo, "telephony", 50)
    fill(other, "telephony", 1_500, seed=1)
    collector.seed(telephony=now_ms() - 7 * HOUR)
    assert collector.once("--log-types", "telephony").status == 0
    kept = collector.checkpoint_file.read_bytes()
    result = Collector(tmp_path, other).run(*MODES[mode], "--log-types", "telephony")
    assert (result.status, result.stdout, len(other.requests)) == (78, "", 0), f"{len(result.events)} of 1,500 written"
    (line,) = result.stderr.splitlines()
    assert str(collector.checkpoint_file) in line
    assert re.search("belongs to 127.0.0.1, .*settings.* 127.0.0.2", line)
    assert collector.checkpoint_file.read_bytes() == kept
    assert collector.once("--log-types", "telephony").status == 0


def test_a_replay_asks_nobody_whose_checkpoint_file_it_is(duo, other, collector, tmp_path):
    fill(other, "telephony", 50)
    collector.once("--log-types", "telephony")
    kept = collector.checkpoint_file.read_bytes()
    result = Collector(tmp_path, other).run("--since", "1d", "--until", "1m", "--log-types", "telephony")
    assert (result.status, len(result.events)) == (0, 50), result.stderr
    assert collector.checkpoint_file.read_bytes() == kept


def test_a_checkpoint_file_that_names_no_account_is_taken(duo, collector):
    fill(duo, "telephony", 50)
    collector.seed(telephony=now_ms() - 3 * HOUR)
    result = collector.once("--log-types", "telephony")
    assert (result.status, json.loads(collector.checkpoint_file.read_text())["account"]) == (0, "127.0.0.1")


def test_a_run_that_collects_nothing_claims_no_checkpoint_file(duo, other, collector, tmp_path):
    """Wrong keys or a wrong host at first: put right, collection begins."""
    result = collector.once("--log-types", "telephony", environ={"DUO_SECRET_KEY": "0" * 40})
    assert result.status == 77
    result = Collector(tmp_path, other).once("--log-types", "telephony")
    assert result.status == 0, result.stderr


# 5: --since


@pytest.mark.parametrize("how", ["refused", "killed"])
def test_since_is_kept_though_the_first_pass_comes_to_nothing(duo, collector, how):
    shutil.copy(SCRIPT.parent / "checkpoints.json", collector.checkpoint_file)  # which has a value for each
    asked_ms = now_ms()
    if how == "refused":
        assert collector.once("--since", "24h", environ={"DUO_SECRET_KEY": "0" * 40}).status == 77
    else:
        duo.inject(None, lambda handler: time.sleep(1))
        process = collector.start("--once", "--since", "24h")
        wait_for(lambda: [request for request in duo.requests if request.log_type], "request for a log")
        process.kill()
        process.communicate()
    duo.requests.clear()
    result = collector.once()
    assert result.status == 0, result.stderr
    assert "passed over" not in result.stderr
    for log_type in DEFAULT:
        first = next(request for request in duo.requests if request.log_type == log_type)
        assert int(first.params["mintime"]) * LOG_TYPES[log_type].unit_ms == pytest.approx(asked_ms - DAY, abs=9_000)


def test_since_warns_when_it_repeats_events(duo, collector):
    fill(duo, "telephony", 300, hours=3)
    first = collector.once("--log-types", "telephony", "--since", "4h")
    assert (len(first.events), "WARNING" in first.stderr) == (300, False), first.stderr  # nothing is repeated yet
    again = collector.once("--log-types", "telephony", "--since", "4h")
    assert len(again.events) == 300
    (line,) = [line for line in again.stderr.splitlines() if "WARNING" in line]
    span = re.search(r"telephony: --since repeats the events from (\S+) to (\S+)$", line)
    assert span and span[1] < span[2] <= stamp(now_ms())


@pytest.mark.parametrize("count, told", [(200, True), (9, False)])
def test_a_hole_is_told_where_all_that_follows_is_in_the_next_second(count, told):
    """A page below 1,000 that one second fills, mintime exclusive; then a page with one event of the next second."""
    row, second = duo_collector.LOG_TYPES["administrator"], now_ms() // 1000 * 1000 - HOUR
    events = [duo_collector.read_event(row, "{}", {"timestamp": second // 1000, "n": number}) for number in range(count)]
    later = duo_collector.read_event(row, "{}", {"timestamp": second // 1000 + 1})
    holes, more = [], True
    walk = duo_collector.Walk(row, second, now_ms() - 10 * MINUTE, lambda *hole: holes.append(hole[:2]))
    while more:
        mintime_s = int(walk.parameters["mintime"])
        assert walk.pages < 10
        shown = [event for event in events if event.time_ms > mintime_s * 1000] or \
            [later] * (later.time_ms > mintime_s * 1000)  # fmt: skip
        more = walk.step(duo_collector.Page(shown))
    assert holes == ([(second, second)] if told else [])


def test_a_v1_server_that_ignores_mintime_ends_the_walk():
    row, now = duo_collector.LOG_TYPES["administrator"], now_ms()
    old = [duo_collector.read_event(row, "{}", {"timestamp": (now - DAY) // 1000 + n}) for n in range(12)]
    walk, pages = duo_collector.Walk(row, now - HOUR, now - 2 * MINUTE, pytest.fail), 1
    while walk.step(duo_collector.Page(old)):
        pages += 1
        assert pages < 5


def test_a_replay_prints_what_has_no_time_wherever_it_stands_on_the_page(duo, collector):
    now_s = now_ms() // 1000
    page = [{"timestamp": now_s - 3600, "n": 1}, {"timestamp": "odd", "n": 2}, {"timestamp": now_s - 9000, "n": 3}]
    duo.inject("administrator", (200, JSON, json.dumps({"stat": "OK", "response": page}).encode()))
    result = collector.run("--log-types", "administrator", "--since", "3h", "--until", "2h")
    assert (result.status, sorted(event["n"] for event in result.events)) == (0, [2, 3]), result.stderr


def test_a_known_difference_of_clocks_stays_while_answers_fit_it(duo):
    """Local clocks 0.7 s ahead of Duo's, and equal to it; an answer each 0.75 s, with Duo's time in whole seconds."""
    settings = duo_collector.Settings(base_url=duo.settings["DUO_API_HOST"])
    for ahead_ms in 700, 0:
        api = duo_collector.Duo(settings, duo_collector.Edges(time.time, time.monotonic, time.sleep, requests.Session))
        for number in range(20):
            sent_ms = 1_800_000_000_450 + 750 * number
            date = formatdate((sent_ms + 20 - ahead_ms) // 1000, usegmt=True)
            answer = duo_collector.Answer(200, {"Date": date}, {"stat": "OK"}, None, "", sent_ms, sent_ms + 50)
            api.learn_clock(answer)
            if number > 4:
                assert -1.3 < api.clock_offset_s <= -0.7 if ahead_ms else api.clock_offset_s == 0.0


# 6: pages without a cursor


@pytest.mark.parametrize("log_type", [*V2, "trust_monitor"])
@pytest.mark.parametrize("fault", ["no_metadata", "no_cursor"])
@pytest.mark.parametrize("how_often", ["once", "always"])
def test_a_full_page_without_a_cursor_is_not_the_end(duo, collector, log_type, fault, how_often):
    size = 200 if log_type == "trust_monitor" else 1000
    fill(duo, log_type, 2_350 * size // 1000)
    collector.seed(**{log_type: now_ms() - 7 * HOUR})
    if how_often == "once":
        duo.inject(log_type, None, fault)
    else:
        duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, (fault,)
    result = collector.once("--log-types", log_type)
    assert (result.status, differences(duo, [result], [log_type])) == (0, NONE), result.stderr
    assert "a hole" not in result.stderr


def test_a_millisecond_that_cannot_be_paged_past_is_a_hole_told_and_counted_once(duo, collector):
    """Full pages of one ms, and never a cursor: the rest of that ms cannot be asked for."""
    at_ms = now_ms() - 4 * MINUTE
    duo.add("telephony", instant("telephony", 1_200, at_ms, spread_us=1))
    duo.add("telephony", make_events("telephony", 100, at_ms + 1000, at_ms + 60_000, seed=1))
    collector.seed(telephony=at_ms - HOUR)
    duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, ("no_cursor",)
    results = [collector.once("--log-types", "telephony") for _ in range(3)]
    assert [(result.status, len(result.events)) for result in results] == [(0, 1_100), (0, 0), (0, 0)]
    told = "".join(result.stderr for result in results)
    assert told.count("a hole") == 1
    assert re.search("telephony: perhaps a hole: .*shows only 1,000 events of one millisecond", told)
    assert holes(collector, "telephony") == 1


# 7: trust monitor


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("pages", [1, 3])
def test_a_log_without_order_gets_on_where_cursors_are_refused(duo, collector, order, pages):
    fill(duo, "trust_monitor", 3_000)
    collector.seed(trust_monitor=now_ms() - 7 * HOUR)
    duo.rules.trust_order, duo.rules.cursor_pages = order, pages
    result = collector.once("--log-types", "trust_monitor")
    assert (result.status, differences(duo, [result], ["trust_monitor"])) == (0, NONE), result.stderr
    assert len(duo.requests) < 120


def test_a_log_without_order_keeps_what_a_pass_that_breaks_off_has_read(duo, collector):
    fill(duo, "trust_monitor", 1_800)  # nine pages
    before(collector, "duo_collector.SLICE_PAGES = 4")  # of 20
    collector.seed(trust_monitor=now_ms() - 7 * HOUR)
    seed, fatal = collector.since("trust_monitor"), (503, {"Retry-After": "3600"}, b"down")
    duo.inject("trust_monitor", *[None] * 8, fatal)
    first = collector.once("--log-types", "trust_monitor")
    assert (first.status, collector.since("trust_monitor") > seed) == (75, True), first.stderr
    asked = len(duo.requests)
    second = collector.once("--log-types", "trust_monitor")
    assert (second.status, differences(duo, [first, second], ["trust_monitor"])) == (0, NONE)
    assert len(duo.requests) - asked < 13


@pytest.mark.parametrize("log_type", ["trust_monitor", "authentication"])
def test_the_edge_of_180_days_moves_and_nothing_comes_twice(duo, collector, log_type):
    size = 200 if log_type == "trust_monitor" else 1000
    start_ms = now_ms() - 179 * DAY
    duo.add(log_type, make_events(log_type, 4 * size, start_ms, now_ms() - HOUR))
    duo.inject(log_type, None, None, (503, {"Retry-After": "3600"}, b"down"))
    results = [collector.once("--log-types", log_type)]
    assert (results[0].status, len(results[0].events)) == (75, 2 * size), results[0].stderr
    duo.rules.clock_offset = 31 * 60  # half an hour later, by Duo's clock
    results.append(collector.once("--log-types", log_type))
    assert (results[1].status, differences(duo, results, [log_type])) == (0, NONE), results[1].stderr


# 8: folders that do not do what other folders do


def test_a_folder_that_may_not_be_read_is_told_before_anything_is_written(duo, collector, tmp_path):
    fill(duo, "telephony", 50)
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o300)
    without_privileges(collector)
    collector.environ["DUO_CHECKPOINT_FILE"] = str(folder / "checkpoints.json")
    results = [collector.once("--log-types", "telephony") for _ in range(2)]
    folder.chmod(0o700)
    assert [(result.status, len(result.events)) for result in results] == [(78, 0), (78, 0)], results[0].stderr
    assert f"no permission to read and write folder {folder}" in results[0].stderr
    assert duo.requests == []


def test_a_folder_that_knows_no_fsync_is_good_enough(duo, collector, tmp_path):
    """As some shared folders are: fsync of the folder answers EINVAL, and nothing is wrong."""
    fill(duo, "telephony", 50)
    folder, trace = tmp_path / "state", tmp_path / "trace"
    folder.mkdir()
    collector.environ["DUO_CHECKPOINT_FILE"] = str(folder / "checkpoints.json")
    under_strace(collector, trace, "-P", str(folder), "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL")
    results = [collector.once("--log-types", "telephony") for _ in range(2)]
    assert "EINVAL" in trace.read_text()
    assert [(result.status, len(result.events)) for result in results] == [(0, 50), (0, 0)], results[0].stderr


# 9: DUO_LOOKBACK


@pytest.mark.parametrize("lookback", ["30.5", "0.5", "1e2", "-1", "300s"])
def test_the_lookback_has_whole_seconds(duo, collector, lookback):
    result = collector.once(environ={"DUO_LOOKBACK": lookback})
    assert (result.status, duo.requests) == (78, []), result.stderr
    assert f"DUO_LOOKBACK '{lookback}': write a number of whole seconds" in result.stderr


# 10: holes that are none


@pytest.mark.parametrize("hold_back_s, age_s", [(120, 300), (0, 130)], ids=["of the window", "later than the window"])
def test_a_full_second_that_a_page_reaches_beyond_is_no_hole(duo, collector, hold_back_s, age_s):
    duo.rules.v1_hold_back_s, second_ms = hold_back_s, (now_ms() - age_s * 1000) // 1000 * 1000
    later_ms = second_ms + (1_000 if hold_back_s else 40_000)
    duo.add("administrator", instant("administrator", 700, second_ms))
    duo.add("administrator", make_events("administrator", 400, later_ms, later_ms + 85_000))
    collector.seed(administrator=second_ms - HOUR)
    results = [collector.once("--log-types", "administrator") for _ in range(3)]
    assert "".join(result.stderr for result in results).count("a hole") == 0
    seen = differences(duo, results, ["administrator"])
    assert seen["doubled"] == 0
    assert seen["lost"] <= (0 if hold_back_s else 100)  # of the last two minutes: a later pass reads that
    assert holes(collector, "administrator") == 0


def test_a_hole_is_told_and_counted_once(duo, collector, tmp_path):
    second_ms = (now_ms() - 5 * MINUTE) // 1000 * 1000
    duo.add("administrator", instant("administrator", 1_500, second_ms))
    duo.add("administrator", make_events("administrator", 100, second_ms + 1000, second_ms + 2 * MINUTE))
    collector.seed(administrator=second_ms - HOUR)
    collector.environ["DUO_METRICS_FILE"] = str(tmp_path / "duo.prom")
    results = [collector.once("--log-types", "administrator") for _ in range(3)]
    assert [len(result.events) for result in results] == [1_100, 0, 0]
    assert "".join(result.stderr for result in results).count("a hole") == 1
    assert re.search(r"^duo_collector_holes_total{.*} 1(\.0)?$", (tmp_path / "duo.prom").read_text(), re.MULTILINE)


# 11 and 12: dates


@pytest.mark.parametrize("off_s", [-1_200, 1_200, 90_000])
def test_a_date_that_a_proxy_stamps_is_not_believed(duo, collector, off_s):
    duo.rules.date_offset = off_s
    for log_type in DEFAULT:
        fill(duo, log_type, 1_100)
    result = collector.once()
    assert (result.status, differences(duo, [result], DEFAULT)) == (0, NONE), result.stderr
    assert {request.status for request in duo.requests} == {200}
    assert "local clock" not in result.stderr
    again = collector.once()
    assert (again.status, again.stdout) == (0, "")


REFUSED_DATES = {  # code, message, words
    "40105 Bad request timestamp": "Duo refuses the request's date",
    "40104 Bad request timestamp": "Duo refuses the request's date",
    "40104 Missing request timestamp": "a proxy strips it",
    "40101 Missing request credentials": "a proxy strips it",
}


@pytest.mark.parametrize("said", REFUSED_DATES)
def test_a_refused_date_is_known_by_its_words(duo, collector, said):
    code, message = said.split(" ", 1)
    answer = (401, JSON, json.dumps({"code": int(code), "message": message, "stat": "FAIL"}).encode())
    duo.inject("telephony", answer, answer)
    result = collector.once("--log-types", "telephony")
    assert (result.status, f"{REFUSED_DATES[said]}" in result.stderr) == (77, True), result.stderr
    assert f"(401 {said})" in result.stderr


@pytest.mark.parametrize("code", [40104, 40105])
def test_a_wrong_local_clock_is_learnt_from_a_refusal(duo, collector, code):
    duo.rules.clock_offset, duo.rules.date_code = 900, code
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 30, end_ms - HOUR, end_ms))
    result = collector.once("--log-types", "telephony")
    assert (result.status, differences(duo, [result], ["telephony"])) == (0, NONE), result.stderr


@pytest.mark.parametrize("then", ["error_500", "reset", "error_429"])
def test_a_proxys_date_on_a_refusal_does_not_stay(duo, collector, then):
    """A 401 under a proxy's Date, 20 minutes off, then a second try that proves nothing: later passes collect."""
    duo.rules.date_offset = 1_200
    fill(duo, "telephony", 5)
    duo.inject("telephony", "clock_401", then)
    process = collector.start("--log-types", "telephony", "--interval", "0.3", environ={"DUO_REQUESTS_PER_MINUTE": "600"})
    lines = []
    while not any("telephony: 5 events" in line for line in lines) and len(lines) < 20:
        lines.append(process.stderr.readline().decode())
    process.terminate()
    stdout, _ = process.communicate(timeout=10)
    assert (process.returncode, len(stdout.splitlines())) == (0, 5), lines


@pytest.mark.parametrize("off_s", [3_000, 3 * 3_600, 86_400, 200 * 86_400, -200 * 86_400])
def test_a_first_run_with_a_wrong_local_clock(duo, collector, off_s):
    """Its window starts 180 days back by that clock, which is further than Duo serves where the clock is behind."""
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 10 * MINUTE
    for log_type in DEFAULT:
        duo.add(log_type, make_events(log_type, 5, end_ms - HOUR, end_ms))
    result = collector.once()
    assert (result.status, differences(duo, [result], DEFAULT)) == (0, NONE), result.stderr


RANGES = [["--until", "now"], ["--missing-from", "/dev/null"]]


@pytest.mark.parametrize("more", RANGES)
def test_a_range_by_a_wrong_local_clock_is_no_success(duo, collector, more):
    """The first requests, for Duo's time, fail; what the later answers tell comes too late for --since."""
    duo.rules.clock_offset = 7_200
    duo.add("telephony", make_events("telephony", 10, duo.now_ms() - 50 * MINUTE, duo.now_ms() - 5 * MINUTE))
    duo.inject("ping", (502, {"Content-Type": "text/html"}, b"<html>"))
    duo.inject("telephony", "error_503")
    options = ["--since", "1h", *more, "--log-types", "telephony"]
    result = collector.run(*options)
    assert (result.status, "the local clock was wrong, and so was the range" in result.stderr) == (75, True), result.stderr
    result = collector.run(*options)
    assert (result.status, len(result.events)) == (0, 10), result.stderr


@pytest.mark.parametrize("days", [-200, -1, 1])
@pytest.mark.parametrize("more", RANGES)
def test_a_range_is_by_duos_clock_where_the_ping_does_not_tell_it(duo, collector, more, days):
    duo.rules.clock_offset, duo.rules.ping_faults = days * 86_400, ("error_404",)
    end_ms = duo.now_ms() - HOUR
    collector.seed(telephony=end_ms)  # where a range of --missing-from ends
    duo.add("telephony", make_events("telephony", 10, end_ms - HOUR, end_ms - MINUTE))
    options = ["--since", "3h", *more, "--log-types", "telephony"]
    result = collector.run(*options)
    assert (result.status, len(result.events)) == (0, 10), result.stderr
    duo.rules.fault_rate, duo.rules.fault_kinds = 1.0, ("error_503",)
    assert collector.run(*options).status == 75, "nobody tells the time, so nobody knows what is missing"


# 13: the alarm


def test_status_with_max_lag_tells_a_tenant_that_is_stuck_though_its_file_is_new(duo, collector):
    fill(duo, "telephony", 20)
    assert collector.once().status == 0
    alarm = ["--status", "-q", "--max-lag", "1h", "--checkpoint-file", collector.checkpoint_file]
    healthy = collector.run(*alarm)
    assert (healthy.status, healthy.stderr) == (0, "")

    document = json.loads(collector.checkpoint_file.read_text())  # three days behind, one of three
    document["ADMIN_SINCE_TIME"] = now_ms() // 1000 - 3 * 86_400
    collector.checkpoint_file.write_text(json.dumps(document))
    os.utime(collector.checkpoint_file, (time.time() - 7_200,) * 2)
    duo.inject("administrator", (503, {"Retry-After": "3600"}, b"down"))
    assert collector.once("--log-types", "administrator").status == 75
    assert time.time() - collector.checkpoint_file.stat().st_mtime < 60  # so the age of the file says nothing
    result = collector.run(*alarm, environ=dict.fromkeys(("DUO_API_HOST", "DUO_INTEGRATION_KEY", "DUO_SECRET_KEY")))
    assert (result.status, result.stderr.count("\n")) == (75, 1)
    assert f"{collector.checkpoint_file}: behind or ahead by more than 1 h: administrator\n" in result.stderr


# 14: pages that cannot be read, links that are slow


@pytest.mark.parametrize("fault, words", [("nan", "it holds NaN, which is not JSON"), ("deep", "maximum recursion depth exceeded")])
def test_a_page_that_is_no_json_is_told_as_what_it_is(duo, collector, fault, words):
    fill(duo, "telephony", 50)
    duo.inject("telephony", fault)
    result = collector.once("--log-types", "telephony")
    assert (result.status, len(result.events)) == (0, 50)
    assert words in result.stderr and "proxy" not in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_slow_link_gets_its_page(duo, collector):
    fill(duo, "telephony", 1_000)
    duo.rules.bytes_per_s = 6_200.0  # 32 s for what was once given 30
    result = collector.once("--log-types", "telephony", timeout=120)
    assert (result.status, len(result.events), len(duo.requests)) == (0, 1_000, 2), result.stderr


def test_an_answer_that_never_ends_is_given_up(duo, collector):
    """The limits are those of a process of its own, or this would take five minutes."""
    fill(duo, "telephony", 50)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    before(collector, "duo_collector.ANSWER_S = 1.5")
    duo.inject("telephony", drip)
    result = collector.once("--log-types", "telephony")
    assert (result.status, len(result.events)) == (0, 50)
    assert "no complete answer within 1.5 s" in result.stderr


# 15: small ones


def test_a_seed_that_is_not_used_is_told_once(duo, collector):
    collector.seed(telephony=now_ms() - HOUR)
    collector.environ.update(TELEPHONY_SINCE_TIME="1661022959934", AUTH_SINCE_TIME=str(now_ms() - HOUR))
    process = collector.start("--interval", "0.1")
    wait_for(lambda: [request.log_type for request in duo.requests].count("telephony") >= 4, "four passes")
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    lines = [line for line in stderr.decode().splitlines() if "is not used" in line]
    assert len(lines) == 1, stderr.decode()
    assert re.search("INFO TELEPHONY_SINCE_TIME is not used: the checkpoint file says 20", lines[0])


def test_a_file_that_may_be_written_and_not_read_gets_no_empty_line(duo, collector, tmp_path):
    path = tmp_path / "events.jsonl"
    without_privileges(collector)
    collector.seed(telephony=now_ms() - HOUR)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o200), "ab") as file:
        for seed in range(3):
            at_ms = now_ms() - 4 * MINUTE
            duo.add("telephony", make_events("telephony", 2, at_ms, at_ms + 1000, seed=seed))
            assert collector.once("--log-types", "telephony", stdout=file).status == 0
    path.chmod(0o600)
    lines = path.read_bytes().splitlines()
    assert (len(lines), lines.count(b"")) == (6, 0)


def test_a_signal_during_a_slow_fsync_is_not_blamed_on_the_reader(duo, collector, tmp_path):
    fill(duo, "telephony", 50)
    path, trace = tmp_path / "events.jsonl", tmp_path / "trace"
    slow = ("-P", str(path), "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=9000000")
    path.touch()
    under_strace(collector, trace, *slow)
    with open(path, "ab") as file:
        process = collector.start("--once", "--log-types", "telephony", stdout=file)
    wait_for(lambda: path.stat().st_size, "page")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    line = next(line for line in iter(process.stderr.readline, b"") if b" ERROR " in line)
    assert time.monotonic() - began < 5  # what follows is up to strace
    assert b"writing a page: stdout's reader or the disk is slow" in line
    process.communicate(timeout=20)
    assert process.returncode == 74


# 16: what goes wrong in the first hour


@pytest.fixture
def installed(tmp_path, collector):
    """The script in a folder of its own, started elsewhere and without an option for its settings file."""
    folder = tmp_path / "opt"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (tmp_path / "cwd").mkdir()
    collector.command = lambda *options: [sys.executable, str(folder / "duo_collector.py"), *map(str, options)]
    start = collector.start
    collector.start = lambda *options, **more: start(*options, **{"cwd": tmp_path / "cwd", **more})
    return folder


KEYS = ("DUO_API_HOST", "DUO_INTEGRATION_KEY", "DUO_SECRET_KEY")


def test_without_a_settings_file_all_that_is_missing_is_told_at_once(duo, collector, installed):
    result = collector.once(environ={**dict.fromkeys(KEYS), "DUO_SECRET_KEY": ""})
    (line,) = result.stderr.splitlines()
    assert result.status == 78
    assert "DUO_API_HOST is not set, DUO_INTEGRATION_KEY is not set, DUO_SECRET_KEY is empty" in line
    assert f"{installed / '.env'}, which does not exist" in line and ".env.example" in line


def settings_file(collector, installed, **more):
    """Move the settings from the environment to .env."""
    names = [name for name in collector.environ if name.startswith("DUO_")]
    settings = {**{name: collector.environ.pop(name) for name in names}, **more}
    path = installed / ".env"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items() if value is not None))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("written", ["kept.json", "./kept.json", "~/kept.json", "../home/kept.json"])
def test_a_path_in_the_settings_file_does_not_depend_on_where_it_is_started(duo, collector, installed, tmp_path, written):
    home = tmp_path / "home"
    home.mkdir()
    collector.environ["HOME"] = str(home)
    settings_file(collector, installed, DUO_CHECKPOINT_FILE=written)
    result = collector.once("--log-types", "telephony")
    assert result.status == 0, result.stderr
    assert (home if "home" in written or "~" in written else installed).joinpath("kept.json").exists()
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_line_of_the_settings_file_that_is_none_is_told_with_the_file(duo, collector, installed):
    collector.seed(telephony=now_ms() - HOUR)
    path = settings_file(collector, installed)
    path.write_text(path.read_text() + "this is no setting\n")
    result = collector.once("--log-types", "telephony")
    assert result.status == 0
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert f"settings file {path}" in line and re.search(r"line \d", line)


UNKNOWN = {"DUO_LOGTYPES": "DUO_LOG_TYPES", "DUO_INTERVALL": "DUO_INTERVAL", "DUO_SECRET": "DUO_SECRET_KEY",
           "DUO_HOST": "DUO_API_HOST", "DUO_IKEY": "DUO_"}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_is_no_setting_is_told_with_the_nearest(duo, collector, name):
    collector.seed(telephony=now_ms() - HOUR)
    result = collector.once("--log-types", "telephony", environ={name: "x"})
    assert result.status == 0
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert re.search(f"{name} is not a setting and is ignored; did you mean {UNKNOWN[name]}", line)


@pytest.mark.parametrize("mode", ["--once", "--check"])
def test_a_folder_that_is_missing_is_told_with_the_command_that_makes_it(duo, collector, tmp_path, mode):
    folder = tmp_path / "var" / "acme"
    result = collector.run(mode, environ={"DUO_CHECKPOINT_FILE": str(folder / "checkpoints.json")})
    line = (result.stdout if mode == "--check" else result.stderr).splitlines()[-1]
    assert (result.status, f"mkdir -p {folder}" in line) == (78, True), line
    assert not folder.exists() and (mode == "--check" or duo.requests == [])


@pytest.mark.parametrize("host, words", [
    ("https://api-XXXXXXXX.duosecurity.com", "that is the placeholder"),
    ("api-xxxxxxxx.duosecurity.com", "that is the placeholder"),
])  # fmt: skip
def test_the_placeholder_for_the_host_is_told_as_that(collector, host, words):
    result = collector.once(environ={"DUO_API_HOST": host, "HTTPS_PROXY": "http://127.0.0.1:1"})
    assert (result.status, words in result.stderr) == (78, True), result.stderr


@pytest.mark.parametrize("host, told", [
    ("https://api-12345678.duosecurity.example", True), ("https://duosecurity.com.example", True),
    ("https://api-12345678.duosecurity.com", False), ("https://api-12345678.duofederal.com", False),
    ("http://127.0.0.1:1", False),
])  # fmt: skip
def test_a_host_that_is_not_duos_is_told(collector, host, told):
    """All of them over a proxy that is not there, so that nothing is sent anywhere."""
    environ = {"DUO_API_HOST": host, "HTTPS_PROXY": "http://127.0.0.1:1"}
    result = collector.run("--check", "--log-types", "telephony", environ=environ)
    assert result.status == 75, result.stderr
    assert ("signed requests are sent there" in result.stderr) == told


@pytest.mark.parametrize("interval, pause_s", [("1s", 1), ("0.5", 0.5)])
def test_the_interval_may_be_an_age(duo, collector, interval, pause_s):
    process = collector.start("--interval", interval, "--log-types", "telephony")
    wait_for(lambda: len(duo.requests) >= 3, "three passes")
    process.terminate()
    process.communicate(timeout=10)
    times = [request.monotonic for request in duo.requests[1:3]]
    assert pause_s - 0.1 < times[1] - times[0] < pause_s + 1.5


@pytest.mark.parametrize("mode", [["--once", "--status"], ["--once", "--check"], ["--once", "--accounts"],
                                  ["--since", "1h", "--status"], ["--check", "--since", "1h"]], ids=" ".join)  # fmt: skip
def test_options_that_exclude_each_other_are_told(duo, collector, mode):
    result = collector.run(*mode)
    assert (result.status, result.stdout, duo.requests) == (2, "", [])
    assert all(option in result.stderr for option in mode if option.startswith("--")), result.stderr


def test_a_checkpoint_file_that_is_empty_is_there(collector):
    collector.checkpoint_file.write_text("{}")
    result = collector.run("--status")
    assert (result.status, f"{collector.checkpoint_file} is empty" in result.stderr) == (0, True), result.stderr


def test_check_says_the_same_error_once(duo, collector):
    result = collector.run("--check", environ={"DUO_SECRET_KEY": "0" * 40})
    lines = result.stdout.splitlines()
    assert (result.status, lines[1:]) == (77, ["administrator: the same", "telephony: the same"])
    assert lines[0].startswith("authentication: Duo refuses the credentials")


def test_another_run_is_named(duo, collector):
    assert collector.once().status == 0  # whose number is in the lock file, too
    duo.requests.clear()
    duo.rules.latency_s = 5.0
    process = collector.start("--once")
    wait_for(lambda: duo.requests, "first request")
    result = collector.once()
    process.kill()
    process.communicate()
    assert (result.status, f"another run (process {process.pid}) holds " in result.stderr) == (75, True), result.stderr


@pytest.mark.parametrize("mode", ["--check", "--once"])
@pytest.mark.parametrize("log_type", DEFAULT)
def test_a_403_for_one_log_of_several_is_not_told_as_a_missing_permission(duo, collector, log_type, mode):
    duo.rules.missing[log_type] = 403
    result = collector.run(mode)
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if f"{log_type}: " in line]
    assert (result.status, "the account's plan does not include this log" in line, "Grant read log" in line) == (
        77, True, False), line  # fmt: skip
    duo.rules.no_permission = True
    assert '"Grant read log"' in collector.run("--check").stdout


def test_a_403_for_one_log_is_told_as_such_by_each_pass_of_the_loop(duo, collector):
    """Each log type has its own pause, so that the others may be idle when one is refused."""
    fill(duo, "authentication", 20)
    duo.rules.missing["telephony"], duo.rules.latency_s, duo.rules.clock_offset = 403, 0.05, 60
    process = collector.start("--log-types", "telephony,authentication", "--interval", "0.4")
    lines = []
    while sum("ERROR telephony" in line for line in lines) < 5:
        lines.append(process.stderr.readline().decode())
    told = [line for line in lines if "ERROR telephony" in line]
    assert all("the account's plan does not include this log" in line for line in told), told
    assert sum("local clock is" in line for line in lines) <= len(told), lines
    assert len({request.connection for request in duo.requests}) <= len(told) + 1
    duo.rules.no_permission = True
    while sum('"Grant read log"' in line for line in lines) < 4:
        lines.append(process.stderr.readline().decode())
        assert len(lines) < 200, lines
    process.terminate()
    assert process.wait(10) == 0


def test_a_checkpoint_file_that_cannot_be_replaced_is_refused_before_anything_is_written(duo, collector, tmp_path):
    """A file that is mounted into a container: saving would fail after each page, and each run would repeat it."""
    fill(duo, "telephony", 20)
    collector.seed(telephony=now_ms() - 7 * HOUR)
    (tmp_path / "other").mkdir()
    mounts = f"mount -t tmpfs none '{tmp_path}/other' && cp '{collector.checkpoint_file}' '{tmp_path}/other/file'"
    mounts += f" && mount --bind '{tmp_path}/other/file' '{collector.checkpoint_file}'"
    unshare = ["unshare", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mounts], capture_output=True).returncode:
        pytest.skip("no unshare, or no right to mount")
    command = collector.command
    collector.command = lambda *options: [*unshare, f'{mounts} && exec "$@"', "sh", *command(*options)]
    result = collector.once("--log-types", "telephony")
    assert (result.status, result.stdout, duo.requests) == (78, "", []), result.stderr
    assert "mount its folder instead" in result.stderr
    result = collector.run("--check", "--log-types", "telephony")
    assert (result.status, "mount its folder instead" in result.stdout) == (78, True), result.stdout


@pytest.mark.parametrize("text", ["1712123151234", "1712123151", "20261101"])
def test_a_number_is_not_a_time_for_since(duo, collector, text):
    """Python 3.11 and later read 1712123151234 as half past twelve on the last day of 1712."""
    result = collector.once("--since", text)
    assert (result.status, result.stdout, duo.requests) == (2, "", []), result.stderr
    assert f"--since '{text}': write a time such as" in result.stderr
    assert not collector.checkpoint_file.exists()


def test_a_working_directory_that_is_gone(duo, collector, tmp_path):
    (tmp_path / "gone").mkdir()
    command = collector.command
    remove = 'rmdir "$PWD" && exec "$@"'
    collector.command = lambda *options: ["sh", "-c", remove, "sh", *command(*options), "--env-file", "duo.env"]
    result = collector.once(cwd=tmp_path / "gone")
    assert (result.status, len(result.stderr.splitlines())) == (78, 1), result.stderr
    assert "settings file duo.env cannot be read: No such file" in result.stderr
