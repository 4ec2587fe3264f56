"""What goes wrong between the collector and Duo: faults, limits, refusals, clocks."""

import json
import random
import re
import socket
import subprocess
import time
from collections import Counter, deque

import pytest
from conftest import before, wait_for
from duo import FAULT_KINDS, LOG_TYPES, make_events

import duo_collector

DEFAULT = ("authentication", "administrator", "telephony")
MINUTE, HOUR = 60_000, 3_600_000


def now_ms():
    return int(time.time() * 1000)


def fill(duo, count, log_types=DEFAULT):
    end = duo.now_ms() - 8 * MINUTE
    for log_type in log_types:
        duo.add(log_type, make_events(log_type, count, end - 6 * HOUR, end))


def canonical(events):
    return Counter(json.dumps(event, sort_keys=True) for event in events)


def assert_all_written(duo, events, log_types=DEFAULT):
    for log_type in log_types:
        of_type = [dict(event) for event in events if event["eventtype"] == log_type]
        for event in of_type:
            del event["eventtype"], event["host"]
        assert canonical(of_type) == canonical(duo.events(log_type)), log_type


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_a_fault_passes(duo, collector, fault):
    fill(duo, 1_200)
    duo.rules.stall_s = 0.3
    for log_type in DEFAULT:
        duo.inject(log_type, None, fault)
    if fault in ("clock_401", "error_404"):  # a refusal: Duo had such an outage once; the next pass goes on
        assert collector.once().status == 77
        return
    result = collector.once()
    assert result.status == 0, result.stderr
    assert_all_written(duo, result.events)


@pytest.mark.parametrize("seed", range(3))
def test_a_mix_of_all_faults_loses_nothing_and_writes_nothing_twice(duo, collector, seed):
    fill(duo, 1_500, LOG_TYPES)
    duo.rules.short_pages = True
    duo.rules.fault_rate, duo.rules.stall_s = 0.25, 0.2
    duo._fault_random.seed(seed)
    events = []
    for _ in range(6):
        result = collector.once("--log-types", ",".join(LOG_TYPES), timeout=200)
        events += result.events
        if result.status == 0:
            break
        assert result.status == 75, result.stderr
    assert result.status == 0, result.stderr
    assert_all_written(duo, events, LOG_TYPES)
    assert "Traceback" not in result.stderr


NONSENSE = {
    "not the list": b'{"stat":"OK","response":{"authlogs":{"a":1},"metadata":{}}}',
    "no list": b'{"stat":"OK","response":{"metadata":{"next_offset":null,"total_objects":0}}}',
    "a null list": b'{"stat":"OK","response":{"authlogs":null}}',
    "the list elsewhere": b'{"stat":"OK","response":{"metadata":{"authlogs":[]}}}',
    "stat is missing": b'{"response":{"authlogs":[],"metadata":{}}}',
    "unexpected type of cursor": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}],"metadata":{"next_offset":{"a":1}}}}',
    "metadata of another kind": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}],"metadata":[1]}}',
    "NaN": b'{"stat":"OK","response":{"authlogs":[{"txid":"x","n":NaN}],"metadata":{}}}',
    "a list that does not end": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"}',
    "a trailing comma": b'{"stat":"OK","response":{"authlogs":[{"txid":"x"},]}}',
    "two documents": b'{"stat":"OK","response":{"authlogs":[]}}{"stat":"OK"}',
    "deep nesting": b'{"stat":"OK","response":{"authlogs":[' + b"[" * 200_000,
    "a list": b"[]",
    "nothing": b"",
}


def test_answers_that_make_no_sense_are_asked_for_again(duo, collector):
    fill(duo, 20, ["authentication"])
    headers = {"Content-Type": "application/json"}
    # one after the other, with a good page in between so that none waits longer than a second
    for body in NONSENSE.values():
        process_once_with(duo, collector, (200, headers, body))
    assert_all_written(duo, collector.once("--log-types", "authentication", "--since", "24h").events, ["authentication"])


def process_once_with(duo, collector, answer):
    asked = len(duo.requests)
    duo.inject("authentication", answer)
    settings = duo_collector.Settings(
        base_url=duo.url, integration_key=duo.ikey, secret_key=duo.skey
    )
    client = duo_collector.Duo(settings, duo_collector.Edges(time.time, time.monotonic, time.sleep, duo_collector.open_session))
    log_type = duo_collector.LOG_TYPES["authentication"]
    walk = duo_collector.Walk(log_type, now_ms() - HOUR, now_ms() - 3 * MINUTE, pytest.fail)
    with pytest.raises(duo_collector.Failed):
        client.fetch_page(log_type, walk.parameters)
    client.session.close()
    assert len(duo.requests) == asked + 1


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [None, "seconds", "date"])
def test_a_429_is_waited_out(duo, collector, retry_after):
    fill(duo, 2_500, ["telephony"])
    duo.rules.rate_limit, duo.rules.rate_window_s, duo.rules.retry_after = 2, 4.0, retry_after
    result = collector.once("--log-types", "telephony")
    assert result.status == 0, result.stderr
    assert_all_written(duo, result.events, ["telephony"])
    assert "rate-limited by Duo (429 42901 Too Many Requests)" in result.stderr
    if retry_after:
        for before, after in zip(duo.requests, duo.requests[1:]):
            if before.status == 429:
                assert after.status == 200, "a Retry-After that was honoured is never met by a second 429"


def test_a_retry_after_beyond_all_patience_ends_the_pass_at_once(duo, collector):
    headers = {"Content-Type": "application/json", "Retry-After": "3600"}
    body = b'{"code":42901,"message":"Too Many Requests","stat":"FAIL"}'
    duo.inject("authentication", (429, headers, body))
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(duo.requests)) == (75, 1)


@pytest.mark.slow
def test_administrator_events_keep_coming_while_authentication_is_limited(duo, collector):
    fill(duo, 1_200)
    duo.inject("authentication", *["error_429"] * 4)
    process = collector.start("--once")
    seen = [json.loads(process.stdout.readline())["eventtype"] for _ in range(2_400)]
    assert Counter(seen) == {"administrator": 1_200, "telephony": 1_200}
    rest = [json.loads(line) for line in process.stdout]
    assert (len(rest), process.wait(30)) == (1_200, 0)
    process.stderr.close()


def test_the_pace_never_exceeds_the_setting(duo, collector):
    fill(duo, 400)
    duo.rules.short_pages = True
    result = collector.once(environ={"DUO_REQUESTS_PER_MINUTE": "240"})
    assert result.status == 0
    for log_type in DEFAULT:
        times = [request.monotonic for request in duo.requests if request.log_type == log_type]
        assert len(times) >= 2
        # a request a quarter of a second; what the machine delays one is not held against the next
        assert all(after - before > 0.2 for before, after in zip(times, times[1:]))


def limited_drain(limits, window_s, pages, per_minute):
    """Drain `pages` under each of these sliding limits, in simulated time: (time in s over its floor, share of 429s)."""
    pace, now, let_through, refused, floor = duo_collector.Pace(per_minute), 0.0, [], 0, 0
    for limit in limits:
        floor += (pages - 1) // limit * window_s
        for _ in range(pages):
            now = max(now, pace.due)
            while sum(1 for at in let_through if at > now - window_s) >= limit:
                refused += 1
                pace.limited(now)
                now = max(now + 0.05, pace.due)
            let_through.append(now)
            pace.page(now)
            now += 0.05
    return now / floor, refused / (len(let_through) + refused)


def test_a_limit_that_is_the_ceiling_is_never_met():
    for limit in (10, 50):
        time_over_floor, share = limited_drain([limit], 60, 251, limit)
        assert (time_over_floor < 1.1, share) == (True, 0)


@pytest.mark.parametrize("pages", [60, 100, 300, 1000])
def test_a_limit_four_times_lower_costs_little(pages):
    runs = [limited_drain([12], 60, pages, 48) for _ in range(20)]
    assert max(time for time, _ in runs) <= 1.15
    assert max(share for _, share in runs) <= 0.05


@pytest.mark.parametrize("limits", [(2, 10), (10, 50), (50, 200), (200, 2), (50, 10)])
def test_a_limit_that_changes_half_way_is_found(limits):
    runs = [limited_drain(limits, 60, 240, 300) for _ in range(5)]
    assert max(time for time, _ in runs) <= 1.3
    assert max(share for _, share in runs) <= 0.05


class Sliding:
    """At most `count` requests in any `window_s` seconds."""

    def __init__(self, count, window_s=60.0):
        self.count, self.window_s, self.passed = count, window_s, deque()

    def floor_s(self, pages):
        return (pages - 1) // self.count * self.window_s

    def lets_through(self, now):
        while self.passed and now - self.passed[0] >= self.window_s:
            self.passed.popleft()
        passes = len(self.passed) < self.count
        if passes:
            self.passed.append(now)
        return passes


class Calendar(Sliding):
    """At most `count` requests in each minute of the clock."""

    minute, seen = None, 0

    def lets_through(self, now):
        if now // 60 != self.minute:
            self.minute, self.seen = now // 60, 0
        self.seen += 1
        return self.seen <= self.count


class Bucket:
    """Tokens that come back evenly, at most `burst` of them."""

    def __init__(self, per_minute, burst):
        self.rate, self.burst, self.tokens, self.at = per_minute / 60, burst, burst, None

    def floor_s(self, pages):
        return max(1, (pages - self.burst) / self.rate)

    def lets_through(self, now):
        self.tokens = min(self.burst, self.tokens + (0 if self.at is None else now - self.at) * self.rate)
        self.at, passes = now, self.tokens >= 1
        self.tokens -= passes
        return passes


class Changing:
    """A sliding minute whose limit is another after some time."""

    def __init__(self, first, then, after_s):
        self.first, self.then, self.after_s, self.began = Sliding(first), Sliding(then), after_s, None

    def floor_s(self, pages):
        return self.after_s + max(0, (pages - self.after_s / 60 * self.first.count) / self.then.count * 60)

    def lets_through(self, now):
        self.began = now if self.began is None else self.began
        return (self.first if now < self.began + self.after_s else self.then).lets_through(now)


LIMITS = {  # limit, pages, ceiling a minute: at most so many times its floor, and this share of 429s
    "sliding 20": (Sliding, (20,), 100, 50, 1.15, 0.05),
    "sliding 20, many pages": (Sliding, (20,), 1000, 50, 1.15, 0.05),
    "sliding 50, the ceiling": (Sliding, (50,), 500, 50, 1.15, 0.05),
    "sliding 50": (Sliding, (50,), 500, 200, 1.15, 0.05),
    "sliding 12": (Sliding, (12,), 60, 48, 1.15, 0.05),
    "calendar 20": (Calendar, (20,), 200, 50, 1.15, 0.05),
    "10, after 10 min 50": (Changing, (10, 50, 600), 300, 50, 1.15, 0.05),
    "50, after 5 min 200": (Changing, (50, 200, 300), 600, 200, 1.15, 0.05),
    # Fewer than 10 a minute, or not by the minute at all: what the rule is known to cost there, and no more.
    "2, after 10 min 10": (Changing, (2, 10, 600), 200, 50, 1.1, 0.04),
    "sliding 2": (Sliding, (2,), 12, 50, 1.05, 0.15),
    "sliding 2, many pages": (Sliding, (2,), 60, 50, 1.05, 0.09),
    "bucket 30 a minute, of 5": (Bucket, (30, 5), 150, 50, 1.05, 0.07),
    "bucket 30 a minute, of 1": (Bucket, (30, 1), 150, 50, 1.55, 0.08),
    "bucket 20 a minute, of 1": (Bucket, (20, 1), 150, 50, 1.55, 0.09),
    "bucket 10 a minute, of 10": (Bucket, (10, 10), 80, 50, 1.05, 0.1),
    "10 in 10 s": (Sliding, (10, 10.0), 200, 600, 6.2, 0.05),
    "5 in 10 s": (Sliding, (5, 10.0), 200, 50, 1.45, 0.075),
    "1 in 30 s": (Sliding, (1, 30.0), 40, 50, 2.05, 0.15),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_backlog_under_a_limit_takes_little_more_than_it_must(limit):
    """In simulated time; the mean of eight runs that begin at another second of the minute."""
    kind, arguments, pages, ceiling, most_time, most_429s = LIMITS[limit]
    times, shares = [], []
    for seed in range(8):
        random.seed(seed)
        pace, duo = duo_collector.Pace(ceiling), kind(*arguments)
        began = now = random.uniform(0, 60)
        asked = got = 0
        while got < pages:
            sent = now = max(now, pace.due)
            passes = duo.lets_through(now + random.uniform(0.08, 0.12))  # not all travel equally long
            now, asked, got = now + 0.2, asked + 1, got + passes
            (pace.page if passes else pace.limited)(sent)
        times.append((now - began) / duo.floor_s(pages))
        shares.append(1 - pages / asked)
    assert sum(times) / 8 <= most_time
    assert sum(shares) / 8 <= most_429s


def test_a_429_on_a_quiet_log_does_not_slow_down_the_next_backlog():
    pace, now = duo_collector.Pace(50), 0.0
    for _ in range(40):  # a page each five minutes
        now = max(now + 300, pace.due)
        pace.page(now)
    now += 300
    pace.limited(now)
    for _ in range(45):
        now = pace.due
        pace.page(now)
    assert now - 41 * 300 < 45 * 61


def test_a_limit_that_does_not_count_by_the_minute_starves_nobody():
    runs = [limited_drain([10], 10, 200, 300) for _ in range(20)]
    assert max(time for time, _ in runs) <= 8
    assert max(share for _, share in runs) <= 0.05


def failing_pass(problem, per_minute=50):
    """A pass in simulated time that meets nothing but this problem: the times (s) of its requests, and its collector."""
    clock, times = [0.0], []
    log_type = duo_collector.LOG_TYPES["telephony"]
    settings = duo_collector.Settings(
        log_types=(log_type,), seeds={log_type: duo_collector.SEED_MS}, base_url="https://127.0.0.1",
        requests_per_minute=per_minute,
    )  # fmt: skip
    edges = duo_collector.Edges(lambda: 1.8e9 + clock[0], lambda: clock[0], pytest.fail, duo_collector.open_session)
    duo = duo_collector.Duo(settings, edges)

    def fetch_page(*_):
        times.append(clock[0])
        raise problem

    duo.fetch_page = fetch_page
    run = duo_collector.Run(settings, edges, duo, duo_collector.Checkpoints("", settings), None, None, once=True)
    collector = duo_collector.Collector(run, log_type)
    while collector.busy:
        clock[0] = max(clock[0], collector.due)
        collector.due = next(collector.turns)
    assert (clock[0], len(times)) == (times[-1], collector.requests)
    return times, collector


def test_patience_with_429_lasts_five_minutes():
    """In simulated time: what waits is the caller of passes(), so no clock of the machine is involved."""
    times, collector = failing_pass(duo_collector.RateLimited("429"))
    assert times[-1] == 300
    assert 5 <= len(times) <= 10
    assert (collector.status, collector.state.health["limited"]) == (75, len(times))
    assert collector.state.health["last_error"] == "429; given up for this pass"


def hang(handler):
    time.sleep(60)


def drip(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


OUTAGES = {"hang": (hang, "Read timed out"), "drip": (drip, "no complete answer within 30 s"), "503": ("error_503", "503")}


@pytest.mark.slow
@pytest.mark.parametrize("outage", OUTAGES)
def test_what_only_fails_is_given_up_after_some_30_s(duo, collector, outage):
    fault, said = OUTAGES[outage]
    if outage == "drip":
        assert duo_collector.ANSWER_S == 300  # which a slow link needs for 1,000 events, and a test does not wait for
        before(collector, "duo_collector.ANSWER_S = 30")
    duo.inject(None, *[fault] * 30)
    start = time.monotonic()
    result = collector.once("--log-types", "authentication", timeout=120)
    assert result.status == 75
    assert said in result.stderr.splitlines()[-1]
    assert 15 < time.monotonic() - start < 75
    assert "AUTH_SINCE_TIME" not in json.loads(collector.checkpoint_file.read_text())


@pytest.mark.slow
def test_nobody_listens(duo, collector):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = {"DUO_API_HOST": f"http://127.0.0.1:{bound.getsockname()[1]}"}
        result = collector.once(environ=where, timeout=120)
    assert result.status == 75
    assert result.stderr.count("Connection refused") >= 3
    assert "Traceback" not in result.stderr


def test_an_answer_without_end_is_cut_off(duo, collector):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        for _ in range(2_000):
            handler.wfile.write(b" " * 100_000)

    fill(duo, 10, ["authentication"])
    duo.inject("authentication", endless)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    assert "an answer of more than 64,000,000 bytes" in result.stderr
    assert_all_written(duo, result.events, ["authentication"])


@pytest.mark.parametrize("status", [403, 404, 400])
def test_a_log_type_that_duo_refuses_does_not_stop_the_others(duo, collector, status):
    fill(duo, 30)
    duo.rules.missing["authentication"] = status
    result = collector.once()
    assert result.status == (75 if status == 400 else 77)
    assert_all_written(duo, result.events, ["administrator", "telephony"])
    assert len([request for request in duo.requests if request.log_type == "authentication"]) == 1
    assert re.search("ERROR authentication: 0 events in 1 request, up to [^ ]+; Duo [^\n]*" + str(status), result.stderr)
    if status == 403:  # the same keys are answered for the others, so it is not the permission
        assert "the account's plan does not include this log" in result.stderr
        assert 'tick "Grant read log"' not in result.stderr
        duo.rules.no_permission = True
        again = collector.once()
        assert again.status == 77
        assert again.stderr.count('tick "Grant read log"') == len(DEFAULT), "an answer of an earlier run says nothing of now"


def test_a_permission_that_is_taken_away_is_not_told_as_the_plan(duo, collector):
    names = ("authentication", "telephony")
    collector.seed(**dict.fromkeys(names, now_ms() - HOUR))
    process = collector.start("--log-types", ",".join(names), "--interval", "2")
    ended = [process.stderr.readline() for _ in names]
    assert all(b" INFO " in line and b" up to 20" in line for line in ended), ended
    duo.rules.no_permission = True  # in the pause: an answer of the pass before says nothing of the next one
    refused = [process.stderr.readline() for _ in names]
    process.terminate()
    process.communicate(timeout=10)
    assert all(b'tick "Grant read log"' in line and b"plan" not in line for line in refused), refused


def test_a_refusal_with_http_200_is_no_permission(duo, collector):
    body = b'{"stat": "FAIL", "code": 40301, "message": "Access forbidden"}'
    for options in (("--once",), ("--check",)):
        duo.inject("telephony", (200, {"Content-Type": "application/json"}, body))
        result = collector.run(*options, "--log-types", "telephony")
        assert result.status == 77 and 'tick "Grant read log"' in result.stdout + result.stderr, result


def test_a_log_that_was_read_shows_the_permission_while_it_is_limited(duo, collector):
    fill(duo, 10, ["administrator"])
    duo.rules.v1_limit = 5
    duo.inject("administrator", None, "error_429")
    duo.inject("telephony", "error_503", "error_503", (403, {"Content-Type": "application/json"},
               b'{"stat": "FAIL", "code": 40301, "message": "Access forbidden"}'))  # fmt: skip
    result = collector.once("--log-types", "administrator,telephony")
    assert result.status == 77 and "the account's plan does not include this log" in result.stderr, result.stderr


def test_wrong_keys_are_tried_once_and_explained(duo, collector):
    result = collector.once(environ={"DUO_SECRET_KEY": "0" * 40})
    assert (result.status, len(duo.requests), result.stdout) == (77, 3, "")
    assert "401 40103 Invalid signature in request credentials" in result.stderr
    assert "stray spaces" in result.stderr
    assert list(json.loads(collector.checkpoint_file.read_text())) == ["state"]


def test_77_outweighs_75(duo, collector):
    fill(duo, 5)
    duo.rules.missing["administrator"] = 403
    headers = {"Retry-After": "1000"}
    duo.inject("telephony", (503, headers, b"down"))
    result = collector.once()
    assert result.status == 77
    assert "telephony: 0 events in 1 request" in result.stderr
    assert_all_written(duo, result.events, ["authentication"])


def test_loop_mode_outlives_refusals_and_outages(duo, collector):
    fill(duo, 10, ["authentication"])
    duo.rules.no_permission = True
    process = collector.start("--log-types", "authentication", "--interval", "0.2", stdout=subprocess.PIPE)
    wait_for(lambda: len(duo.requests) >= 3, "three passes")
    duo.rules.no_permission = False
    assert sum(1 for _ in zip(range(10), process.stdout)) == 10
    duo.stop()
    time.sleep(0.5)
    duo.start()
    fresh = make_events("authentication", 1, now_ms() - 200_000, now_ms() - 199_000, seed=9)
    duo.add("authentication", fresh)
    assert json.loads(process.stdout.readline())["txid"] == fresh[0]["txid"]
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"Duo refuses the permission" in stderr


@pytest.mark.parametrize("offset_s", [-600, -200, -20, -3, 3, 20, 200, 600])
@pytest.mark.parametrize("young", ["cut", "empty"])
def test_a_wrong_local_clock_neither_loses_nor_delays(duo, collector, offset_s, young):
    duo.rules.clock_offset, duo.rules.young = offset_s, young
    names = ["authentication", "administrator"]
    for log_type, (key, unit_ms) in {"authentication": ("AUTH_SINCE_TIME", 1), "administrator": ("ADMIN_SINCE_TIME", 1000)}.items():
        collector.environ[key] = str((duo.now_ms() - HOUR) // unit_ms)
        end = duo.now_ms() - 150_000
        duo.add(log_type, make_events(log_type, 40, end - 30_000, end))
    first = collector.once("--log-types", ",".join(names))
    assert first.status == 0, first.stderr
    assert_all_written(duo, first.events, names)
    said = f"local clock is {abs(offset_s)} s {'behind' if offset_s > 0 else 'ahead of'} Duo's"
    near = [said.replace(str(abs(offset_s)), str(abs(offset_s) + by)) for by in (-2, -1, 0, 1, 2)]
    assert sum(first.stderr.count(text) for text in near) == (abs(offset_s) > 30)
    last = [request for request in duo.requests if "maxtime" in request.params][-1]  # the first may not know better
    assert int(last.params["maxtime"]) <= last.wall * 1000 + offset_s * 1000 - 119_000

    end = duo.now_ms() - 125_000
    duo.add("authentication", make_events("authentication", 5, end - 2_000, end, seed=2))
    second = collector.once("--log-types", ",".join(names))
    assert (second.status, len(second.events)) == (0, 5), second.stderr
    assert len(duo.requests) < 12


@pytest.mark.parametrize("was_s", [-3600, 600])
def test_a_clock_that_is_set_right_is_believed(duo, collector, was_s):
    duo.rules.clock_offset = was_s
    fill(duo, 10, ["authentication"])
    assert len(collector.once("--log-types", "authentication").events) == 10
    duo.rules.clock_offset = 0
    fresh = make_events("authentication", 3, now_ms() - 200_000, now_ms() - 190_000, seed=4)
    duo.add("authentication", fresh)
    result = collector.once("--log-types", "authentication")
    assert result.status == 0, result.stderr
    # was_s > 0: the checkpoint is ahead of this Duo by what its clock went back, but not the newest event known
    assert_all_written_but(result, fresh)
    assert "ahead of now" not in result.stderr


def assert_all_written_but(result, fresh):
    assert {event["txid"] for event in result.events} == {event["txid"] for event in fresh}


def test_a_clock_that_falls_behind_does_not_stop_collection(duo, collector):
    collector.seed(authentication=now_ms() - HOUR)
    assert collector.once("--log-types", "authentication").status == 0
    duo.rules.clock_offset = 900  # as after a machine slept: local time is a quarter of an hour behind the checkpoint
    seeded = duo.now_ms() - 200_000
    collector.seed(authentication=seeded)
    duo.add("authentication", make_events("authentication", 4, seeded + 1000, seeded + 20_000, seed=5))
    result = collector.once("--log-types", "authentication")
    assert (result.status, len(result.events)) == (0, 4), result.stderr


@pytest.mark.parametrize("how_often", [1, 20])
@pytest.mark.parametrize("date", ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2038 00:00:00 GMT", "soon"])
def test_a_date_that_cannot_be_moves_nothing(duo, collector, date, how_often):
    fill(duo, 5, ["authentication"])
    since_ms = now_ms() - 9 * HOUR
    collector.seed(authentication=since_ms)
    page = {"authlogs": duo.events("authentication"), "metadata": {"next_offset": None, "total_objects": 5}}
    body = json.dumps({"stat": "OK", "response": page}).encode()
    duo.inject("authentication", *[(200, {"Content-Type": "application/json", "Date": date}, body)] * how_often)
    events = []
    for _ in range(3):
        result = collector.once("--log-types", "authentication")
        events += result.events
        assert (result.status, since_ms <= collector.since("authentication") <= now_ms()) == (0, True), result.stderr
    assert {event["txid"] for event in events} == {event["txid"] for event in duo.events("authentication")}


@pytest.mark.parametrize("apart_s", [7, 20])
def test_two_servers_with_two_clocks(duo, collector, apart_s):
    fill(duo, 5)
    toggle = iter(range(10**6))
    read = type(duo).now_ms
    duo.now_ms = lambda: read(duo) - (next(toggle) % 2) * apart_s * 1000
    result = collector.once()
    assert result.status == 0, result.stderr
    assert len(result.events) == 15


@pytest.mark.parametrize("log_type", ["administrator", "trust_monitor", "authentication"])
@pytest.mark.parametrize("value", ["1e999", "-1e999", "1e306", "9" * 400, '"9999-12-31T23:59:59-14:00"', "true", "{}"])
def test_a_time_beyond_all_reason_is_written_like_any_other(duo, collector, log_type, value):
    event = '{"txid": "a", "sekey": "a", "%s": %s}' % (duo_collector.LOG_TYPES[log_type].time_field, value)
    events = "[" + event + "]"
    response = {"administrator": "%s", "trust_monitor": '{"events": %s}', "authentication": '{"authlogs": %s}'}
    body = '{"stat": "OK", "response": ' + response[log_type] % events + "}"
    duo.inject(log_type, (200, {"Content-Type": "application/json"}, body.encode()))
    result = collector.once("--log-types", log_type)
    assert result.status == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_refusals_keep_to_the_pace(duo, collector):
    duo.rules.no_permission = True
    process = collector.start("--log-types", "telephony", "--interval", "0.01", environ={"DUO_REQUESTS_PER_MINUTE": "120"})
    deadline = time.monotonic() + 30
    while len(duo.requests) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=10)
    first, *_, fifth = [request.monotonic for request in duo.requests[:5]]
    assert fifth - first > 1.5, "four intervals of 0.5 s, and half a second for a first request that was delayed"


def test_the_same_page_under_ever_new_cursors_ends(duo, collector):
    fill(duo, 30, ["telephony"])
    events = duo.events("telephony")[:10]
    for number in range(60):
        page = {"items": events, "metadata": {"next_offset": f"{number},x", "total_objects": 30}}
        duo.inject("telephony", (200, {}, json.dumps({"stat": "OK", "response": page}).encode()))
    result = collector.once("--log-types", "telephony")
    assert result.status == 0, result.stderr
    assert len(duo.requests) < 10
    assert "a hole" in result.stderr or len(result.events) == 30


@pytest.mark.parametrize("cap", [10, 60])
@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
def test_a_v1_log_that_shows_fewer_than_it_says(duo, collector, cap, mintime):
    duo.rules.v1_limit, duo.rules.v1_mintime = cap, mintime
    start_s = now_ms() // 1000 - 3600
    template = make_events("administrator", 1, start_s * 1000, start_s * 1000 + 1)[0]
    counts = [1, cap, 2, cap + 3, 5, cap - 1, cap, 1]
    for second, count in enumerate(counts):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(start_s + second))
        duo.add("administrator", [
            {**template, "timestamp": start_s + second, "isotimestamp": stamp, "object": f"{second}.{number}"}
            for number in range(count)
        ])
    result = collector.once("--log-types", "administrator")
    assert result.status == 0, result.stderr
    assert len(result.events) == sum(counts) - 3
    assert "a hole" in result.stderr


def test_nothing_secret_is_said(duo, collector):
    secret = "Zq8" * 13 + "Z"
    for options, environ in (
        ([secret], {}),
        ([f"--secret-key={secret}"], {}),
        (["--once"], {"DUO_API_HOST": secret}),
        (["--once"], {"DUO_LOG_TYPES": secret}),
        (["--check"], {"DUO_API_HOST": "https://api-1.duosecurity.com", "HTTPS_PROXY": f"http://user:{secret[:9]}@h:99999"}),
        (["--check"], {"DUO_API_HOST": "https://api-1.duosecurity.com", "HTTPS_PROXY": f"http://user:{secret[:9]}/@h:1"}),
    ):
        result = collector.run(*options, environ=environ)
        assert result.status in (2, 75, 78)
        assert secret[:9] not in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_what_is_cut_short_is_masked_before():
    assert "ZZZZ" not in duo_collector.one_line("x " * 140 + "Z" * 40)


@pytest.mark.parametrize(("per_minute", "tries"), [(1, 2), (3, 2), (60, 4)])
def test_failures_keep_to_the_ceiling_and_are_tried_again(per_minute, tries):
    """In simulated time."""
    times, collector = failing_pass(duo_collector.Failed("500"), per_minute)
    assert (collector.status, collector.state.health["failed"]) == (75, len(times))
    assert len(times) >= tries and all(after - before >= 60 / per_minute for before, after in zip(times, times[1:])), times


def test_a_key_that_duo_repeats_is_not(duo, collector):
    duo.skey = collector.environ["DUO_SECRET_KEY"] = "Zq8-" * 9 + "Zq8"
    body = {"code": 40103, "message": f"No: {duo.skey}", "stat": "FAIL"}
    duo.inject("telephony", (401, {"Content-Type": "application/json"}, json.dumps(body).encode()))
    result = collector.once("--log-types", "telephony", "-v")
    status = collector.run("--status", "--json")
    assert (result.status, status.status) == (77, 0)
    assert "No: ***" in result.stderr and "No: ***" in status.stdout
    assert "Zq8-Zq8" not in result.stderr + status.stdout + collector.checkpoint_file.read_text()
