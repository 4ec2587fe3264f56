"""--missing-from: what Duo has and a file does not, each event once, beside a service that goes on writing."""

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest
from conftest import wait_for
from duo import LOG_TYPES, Simulator, make_events
from prometheus_client.parser import text_string_to_metric_families
from test_collection import HOUR, MINUTE, V1, in_ms, instant, now_ms

ALL = ",".join(LOG_TYPES)
ADDED = ("eventtype", "host", "child_account_id")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "acme.jsonl"
    path.touch()
    return path


def append(collector, path, *options, **more):
    """A run whose stdout is appended to the file, as the shell's >> does."""
    with open(path, "ab") as stdout:
        return collector.run(*options, stdout=stdout, **more)


def mend(collector, path, *options, since="48h", **more):
    return append(collector, path, "--since", since, "--missing-from", path, *options, **more)


def read(text):
    """The events of lines, as text without what the collector adds, by log type."""
    found = {log_type: Counter() for log_type in LOG_TYPES}
    for line in text.splitlines():
        event = json.loads(line)
        log_type = event["eventtype"]
        found[log_type][canonical({name: value for name, value in event.items() if name not in ADDED})] += 1
    return found


def canonical(event):
    return json.dumps(event, sort_keys=True)


def differences(duo, path, log_types=LOG_TYPES):
    """How many events of the tenant are not in the file, and how many lines are too many."""
    found = read(path.read_bytes())
    there = {log_type: Counter(map(canonical, duo.events(log_type))) for log_type in log_types}
    lost = sum(sum((there[name] - found[name]).values()) for name in log_types)
    doubled = sum(sum((found[name] - there[name]).values()) for name in log_types)
    return {"lost": lost, "doubled": doubled}


NONE = {"lost": 0, "doubled": 0}


def told(result):
    """What the log says was found: log type: (level, events in the range, missing)."""
    lines = re.findall(r"(INFO|WARNING) (\w+): of ([\d,]+) events?\b.*?, ([\d,]+) (?:was |were )?missing from", result.stderr)
    return {name: (level, *(int(text.replace(",", "")) for text in counts)) for level, name, *counts in lines}


def states(collector):
    return json.loads(collector.checkpoint_file.read_text())["state"]


def fill(duo, count, seed=0, hours=(6, 1), log_types=LOG_TYPES):
    for log_type in log_types:
        start, end = ((now_ms() - int(hour * HOUR)) // 1000 * 1000 for hour in hours)
        duo.add(log_type, make_events(log_type, count, start, end, seed))


def collect(duo, collector, path, log_types=LOG_TYPES):
    """A pass of the service, after which its next one starts at the lookback: there is a young event of each log type."""
    collector.seed(**dict.fromkeys(log_types, now_ms() - 7 * HOUR))
    for log_type in log_types:
        duo.add(log_type, make_events(log_type, 1, now_ms() - 4 * MINUTE, now_ms() - 3 * MINUTE, seed=99))
    result = append(collector, path, "--once", "--log-types", ",".join(log_types))
    assert result.status == 0, result.stderr


# What is missing


def test_what_is_missing_is_written_once_and_said(duo, collector, file):
    fill(duo, 300)
    collect(duo, collector, file)
    assert differences(duo, file) == NONE
    lines = file.read_bytes().splitlines(keepends=True)
    young = {log_type: states(collector)[log_type]["start_ms"] for log_type in LOG_TYPES}
    lost = [line for number, line in enumerate(lines) if number % 7 == 3]
    lost = [line for line in lost if in_ms((event := json.loads(line))["eventtype"], event) < young[event["eventtype"]]]
    kept = [line for line in lines if line not in set(lost)]
    random.Random(7).shuffle(kept)
    file.write_bytes(b"".join(kept))
    missing = Counter(json.loads(line)["eventtype"] for line in lines if line not in set(kept))
    fill(duo, 40, seed=5, hours=(5, 2))  # published hours late
    missing.update(dict.fromkeys(LOG_TYPES, 40))

    asked, checkpoints = len(duo.requests), collector.checkpoint_file.read_bytes()
    size = file.stat().st_size
    result = mend(collector, file, "--log-types", ALL)
    assert result.status == 0, result.stderr
    assert differences(duo, file) == NONE
    assert told(result) == {log_type: ("WARNING", 340, missing[log_type]) for log_type in LOG_TYPES}
    assert len(duo.requests) - asked <= 2 * len(LOG_TYPES) + 2
    with open(file, "rb") as found:
        found.seek(size)
        assert read(found.read()) != read(b"")

    again = append(collector, file, "--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (again.status, differences(duo, file)) == (0, NONE)
    assert told(again) == dict.fromkeys(LOG_TYPES, ("INFO", 340, 0))
    assert "WARNING" not in again.stderr
    assert collector.checkpoint_file.read_bytes() == checkpoints


def test_an_auditor_needs_no_checkpoint_file(duo, collector, file):
    fill(duo, 50)
    result = collector.run("--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (result.status, len(result.events)) == (0, 300), result.stderr
    file.write_text(result.stdout)
    again = collector.run("--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (again.status, again.stdout) == (0, "")
    assert told(again) == dict.fromkeys(LOG_TYPES, ("INFO", 50, 0))
    assert not collector.checkpoint_file.exists()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_until_is_kept_to(duo, collector, file):
    fill(duo, 100)
    since_ms, until_ms = ((now_ms() - hours * HOUR) // 1000 * 1000 for hours in (4, 3))
    options = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms // 1000)) for at_ms in (since_ms, until_ms)]
    result = collector.run("--since", options[0], "--until", options[1], "--missing-from", file, "--log-types", ALL)
    wanted = {
        log_type: Counter(canonical(event) for event in duo.events(log_type) if since_ms <= in_ms(log_type, event) < until_ms)
        for log_type in LOG_TYPES
    }
    assert (result.status, read(result.stdout)) == (0, wanted), result.stderr


def odd(log_type, number, **more):
    """An event without an id and without a time that can be read."""
    return {LOG_TYPES[log_type].time_fields[0]: "soon", "odd": number, **more}


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_events_without_id_or_time_and_twins(duo, collector, file, log_type):
    """As often as Duo has them, if they can't be told apart; once, if they have an id."""
    at_ms = (now_ms() - 3 * HOUR) // 1000 * 1000
    twin = {**instant(log_type, 1, at_ms)[0], LOG_TYPES[log_type].id_field or "none": None}
    duo.add(log_type, [twin, twin, twin])
    duo.add(log_type, [odd(log_type, 1), odd(log_type, 2), odd(log_type, 2)], at_ms=at_ms + 1)
    if LOG_TYPES[log_type].id_field:
        duo.add(log_type, [odd(log_type, 3, **{LOG_TYPES[log_type].id_field: "odd-1"})], at_ms=at_ms + 2)
    fill(duo, 20, log_types=[log_type])
    whole = collector.run("--since", "48h", "--missing-from", "/dev/null", "--log-types", log_type)
    file.write_text(whole.stdout)
    assert (whole.status, differences(duo, file, [log_type])) == (0, NONE), whole.stderr

    lines = whole.stdout.splitlines(keepends=True)
    tail = '"eventtype":"%s","host":"127.0.0.1"}\n' % log_type
    for event in twin, odd(log_type, 2):  # take all but one of them away
        alike = [line for line in lines if canonical(without_added(line)) == canonical(event)]
        assert len(alike) == (3 if event is twin else 2) and all(line.endswith(tail) for line in alike)
        for line in alike[1:]:
            lines.remove(line)
    file.write_text("".join(lines))
    result = mend(collector, file, "--log-types", log_type)
    assert (result.status, differences(duo, file, [log_type])) == (0, NONE), result.stderr
    assert told(result)[log_type][2] == 3
    assert told(mend(collector, file, "--log-types", log_type))[log_type][2] == 0


def without_added(line):
    return {name: value for name, value in json.loads(line).items() if name not in ADDED}


# What a file may hold

RUBBISH = [
    b"", b"\r", b"   ", b"null", b"[]", b"7", b'"text"', b"{}", b'{"eventtype": "authentication"}', b"\xff\xfe\x00\x80",
    b"M\xfcller", b"\x00" * 50, b"\xef\xbb\xbf{}", b'{"eventtype": ["x"], "host": {}}', b'{"eventtype": "dns", "host": "127.0.0.1"}',
    b"[" * 100_000, b'{"eventtype": "telephony", "host": "127.0.0.1", "n": 1' + b"0" * 5_000 + b"}", b"Nov 24 10:00:00 gw sshd[1]: x",
    b'{"eventtype": "telephony", "host": null, "telephony_id": "x"}', b'{"eventtype": "telephony", "host": "127.0.0.1"}',
]  # fmt: skip


def as_of(lines, **fields):
    """Lines as another tenant has them."""
    return [json.dumps({**json.loads(line), **fields}).encode() for line in lines]


@pytest.mark.parametrize("how", ["a file", "standard input"])
def test_lines_of_anything_else_are_passed_over(duo, collector, file, how):
    fill(duo, 60)
    whole = collector.run("--since", "48h", "--missing-from", "/dev/null", "--log-types", ALL).stdout.encode().splitlines()
    halves = whole[::2], whole[1::2]
    torn = [line[: len(line) // 2] for line in halves[1][:20]]
    others = [*as_of(halves[1], host="api-00000000.duosecurity.com"), *as_of(halves[1], child_account_id="DACHILD0000000000001")]
    wrong_type = as_of(halves[1], eventtype="activity2")
    lines = [*halves[0], *halves[0][:50], *torn, *others, *wrong_type, *RUBBISH]
    random.Random(3).shuffle(lines)
    content = b"\n".join(lines) + b"\n"
    if how == "a file":
        file.write_bytes(content + halves[1][0][:40])  # the last line is torn, and has no end
        result = collector.run("--since", "48h", "--missing-from", file, "--log-types", ALL)
    else:
        middle = content.index(b"\n", len(content) // 2) + 1
        file.write_bytes(content[middle:])
        with gzip.open(f"{file}.1.gz", "wb") as rotated:
            rotated.write(content[:middle])
        command = collector.command
        collector.command = lambda *options: ["sh", "-c", f'zcat -f {file}* | "$@"', "sh", *command(*options)]
        result = collector.run("--since", "48h", "--missing-from", "-", "--log-types", ALL)
    assert result.status == 0, result.stderr
    assert read(result.stdout) == read(b"\n".join(halves[1]))
    assert "Traceback" not in result.stderr


def test_a_line_that_a_killed_run_left_is_ended_by_the_service(duo, collector, tmp_path):
    """--missing-from appends to the file of a running service, and is killed, or finds the disk full, within a line."""
    collector.seed(telephony=duo.now_ms() - HOUR)
    duo.add("telephony", make_events("telephony", 10, duo.now_ms() - 50 * MINUTE, duo.now_ms() - 5 * MINUTE))
    file = tmp_path / "duo.jsonl"
    with open(file, "ab") as stdout:
        service = collector.start("--log-types", "telephony", "--interval", "1", stdout=stdout)
        wait_for(lambda: file.read_bytes().count(b"\n") == 10, "the first pass")
        with open(file, "ab") as other:
            other.write(b'{"txid": "half a li')
        duo.add("telephony", make_events("telephony", 5, duo.now_ms() - 5 * MINUTE, duo.now_ms() - 4 * MINUTE, seed=9))
        wait_for(lambda: file.read_bytes().count(b"\n") == 16, "the next pass")
        service.terminate()
        service.communicate(timeout=10)
    lines = file.read_bytes().splitlines()
    assert lines[10] == b'{"txid": "half a li' and all(json.loads(line) for line in lines[:10] + lines[11:])


def test_a_file_whose_last_line_is_torn_gets_whole_lines_after_it(duo, collector, file):
    fill(duo, 40, log_types=["telephony"])
    whole = collector.run("--since", "48h", "--missing-from", "/dev/null", "--log-types", "telephony").stdout
    torn = whole.splitlines()[-1][:50]
    file.write_text("".join(whole.splitlines(keepends=True)[:20]) + torn)
    assert mend(collector, file, "--log-types", "telephony").status == 0
    lines = file.read_text().splitlines()
    lines.remove(torn)
    file.write_text("\n".join(lines) + "\n")
    assert differences(duo, file, ["telephony"]) == NONE


# What is wrong


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_78_before_duo_is_asked(duo, collector, tmp_path, what):
    path = tmp_path / "none.jsonl" if what == "missing" else tmp_path
    result = collector.run("--since", "48h", "--missing-from", path)
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, duo.requests) == (78, "", [])
    assert f"--missing-from {path} " in line


def test_an_empty_name_is_no_ordinary_run(duo, collector):
    """As where the variable of a script is not set: that would move the checkpoint back, and repeat two days."""
    fill(duo, 20, log_types=["telephony"])
    result = collector.once("--since", "48h", "--missing-from", "")
    assert result.status in (2, 78), f"{len(result.events)} events written, the checkpoint moved"
    assert (result.stdout, duo.requests, collector.checkpoint_file.exists()) == ("", [], False)
    assert "--missing-from" in result.stderr


def test_without_since_it_is_a_wrong_command_line(duo, collector, file):
    for options in (["--missing-from", file], ["--once", "--missing-from", file], ["--missing-from", ""]):
        result = collector.run(*options)
        assert (result.status, result.stdout, duo.requests) == (2, "", [])
        assert "--missing-from" in result.stderr and "--since" in result.stderr


def test_refusals_and_outages_have_their_status(duo, collector, file):
    fill(duo, 20)
    duo.rules.missing["administrator"] = 403
    result = mend(collector, file)
    assert (result.status, differences(duo, file, ["authentication", "telephony"])) == (77, NONE), result.stderr
    duo.rules.missing.clear()
    duo.inject("telephony", (503, {"Retry-After": "3600"}, b"down"))
    assert mend(collector, file).status == 75
    assert mend(collector, file).status == 0
    assert differences(duo, file, ["authentication", "administrator", "telephony"]) == NONE


# Where the range ends


def split(at_ms, log_type):
    """Events of the instants around this one, which is where the service's next pass starts."""
    steps = (-1000, -1, 0, 1, 1000) if log_type not in V1 else (-1000, 0, 1000)
    return [event for step in steps for event in instant(log_type, 2, at_ms + step, spread_us=0)]


@pytest.mark.parametrize("mintime", ["inclusive", "exclusive"])
def test_the_range_ends_where_the_next_pass_starts(duo, collector, file, mintime):
    """To the ms or the second, whichever the log counts in: neither leaves out what the other leaves to it."""
    duo.rules.v1_mintime = mintime
    fill(duo, 20)
    collect(duo, collector, file)
    starts = {log_type: states(collector)[log_type]["start_ms"] for log_type in LOG_TYPES}
    for log_type, start_ms in starts.items():
        assert start_ms < now_ms() - 6 * MINUTE
        duo.add(log_type, split(start_ms, log_type))
    result = mend(collector, file, "--log-types", ALL)
    assert result.status == 0, result.stderr
    for log_type, start_ms in starts.items():
        early = [event for event in split(start_ms, log_type) if in_ms(log_type, event) < start_ms]
        assert told(result)[log_type][2] == len(early), log_type
    assert append(collector, file, "--once", "--log-types", ALL).status == 0
    assert differences(duo, file) == NONE


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_an_event_without_a_time_is_written_by_one_of_the_two(duo, collector, file, log_type):
    fill(duo, 20, log_types=[log_type])
    collect(duo, collector, file, [log_type])
    start_ms = states(collector)[log_type]["start_ms"]
    for number, age_ms in enumerate((HOUR, 2 * MINUTE, -MINUTE, -2 * MINUTE)):
        duo.add(log_type, [odd(log_type, number)], at_ms=start_ms - age_ms)
    duo.add(log_type, make_events(log_type, 3, start_ms + MINUTE, start_ms + 2 * MINUTE, seed=8))
    for _ in range(2):
        assert mend(collector, file, "--log-types", log_type).status == 0
        assert append(collector, file, "--once", "--log-types", log_type).status == 0
    found = differences(duo, file, [log_type])
    # A v1 log has no maxtime: of an event without a time that follows the last one before the end nobody can tell on which
    # side it lies, so it may come twice, and is not lost.
    assert (found["lost"], found["doubled"] <= (log_type in V1)) == (0, True), found


def test_how_far_was_compared_is_said_where_the_service_has_not_got_so_far(duo, collector, file):
    """The service will write all of the range."""
    fill(duo, 50, log_types=["telephony"])
    collector.seed(telephony=(start_ms := now_ms() - 72 * HOUR))
    result = mend(collector, file, "--log-types", "telephony")
    assert (result.status, file.read_bytes()) == (0, b"")
    assert f"INFO telephony: of 0 events up to {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(start_ms // 1000))}, 0 missing from " in result.stderr, result.stderr


def test_another_accounts_checkpoint_file_is_refused(duo, collector, file):
    collector.checkpoint_file.write_text('{"account": "api-00000000.duosecurity.com"}')
    result = mend(collector, file)
    assert (result.status, duo.requests, file.read_bytes()) == (78, [], b""), result.stderr


# Beside a service


@contextlib.contextmanager
def service(collector, path, *options):
    """The long-running collector, appending to the file for a block."""
    with open(path, "ab") as stdout:
        process = collector.start("--interval", "0.3", *options, stdout=stdout)
    try:
        yield process
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr.decode()


TROUBLE = {
    "nothing": {},
    "faults": {"fault_rate": 0.12, "fault_kinds": ("reset", "cut", "truncated", "error_503", "error_500", "no_metadata")},
    "limits": {"rate_limit": 12, "rate_window_s": 2.0, "retry_after": "seconds"},
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_beside_a_running_service_each_event_is_written_once(duo, collector, file, trouble):
    fill(duo, 150)
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms() - 7 * HOUR))
    collector.environ.update(DUO_LOG_TYPES=ALL, DUO_LOOKBACK="60")
    statuses, number, draw = [], 100, random.Random(trouble)
    with service(collector, file):
        wait_for(lambda: differences(duo, file) == NONE, "first pass", 40)
        for name, value in TROUBLE[trouble].items():
            setattr(duo.rules, name, value)
        for _ in range(3):
            held = file.stat().st_size
            process = subprocess.Popen(
                ["sh", "-c", f'exec "$@" >>{file}', "sh", *collector.command("--since", "48h", "--missing-from", file)],
                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=collector.environ)  # fmt: skip
            while process.poll() is None:  # on time, late within the lookback, hours late
                for log_type in draw.sample(sorted(LOG_TYPES), 3):
                    for age_s, span_s in ((125, 4), (170, 20), (4_000, 12_000)):
                        number, end_ms = number + 1, now_ms() - age_s * 1000
                        duo.add(log_type, make_events(log_type, 2, end_ms - span_s * 1000, end_ms, seed=number))
                time.sleep(0.2)
            statuses.append(process.returncode)
            assert process.returncode in (0, 75), process.stderr.read().decode()
            process.stderr.close()
        assert file.stat().st_size > held
        duo.rules.fault_rate, duo.rules.rate_limit = 0.0, None
        time.sleep(1)
    assert append(collector, file, "--once").status == 0
    result = mend(collector, file)
    assert (result.status, differences(duo, file)) == (0, NONE), result.stderr
    assert number > 120


def test_a_run_that_is_killed_is_run_again(duo, collector, file):
    fill(duo, 2_400, log_types=["telephony"])
    fill(duo, 300, log_types=["administrator"])
    duo.rules.v1_limit = 50
    collector.environ["DUO_LOG_TYPES"] = "telephony,administrator"
    collect(duo, collector, file, ["telephony", "administrator"])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join({*(line for line in lines if sum(line) % 2), *last_of_each(lines)}))
    sizes = [file.stat().st_size]
    checkpoints = collector.checkpoint_file.read_bytes()
    for pages in (1, 2):
        duo.inject("telephony", *[None] * pages, lambda handler: time.sleep(2))
        duo.inject("administrator", *[None] * pages, lambda handler: time.sleep(2))
        duo.requests.clear()
        with open(file, "ab") as stdout:
            process = collector.start("--since", "48h", "--missing-from", file, stdout=stdout)
        wait_for(lambda: any(request.fault is not None for request in duo.requests), "request that hangs")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        duo._injected.clear()
        sizes.append(file.stat().st_size)
    assert sizes == sorted(set(sizes)), "each of the killed runs wrote something"
    result = mend(collector, file)
    assert (result.status, differences(duo, file, ["telephony", "administrator"])) == (0, NONE), result.stderr
    assert collector.checkpoint_file.read_bytes() == checkpoints
    assert append(collector, file, "--once").status == 0
    assert differences(duo, file, ["telephony", "administrator"]) == NONE


def last_of_each(lines):
    """The line of each log type that stands last: what the service knows, and will not write again."""
    return {json.loads(line)["eventtype"]: line for line in lines}.values()


def test_nothing_is_changed_and_no_lock_is_taken(duo, collector, file):
    fill(duo, 50)
    collect(duo, collector, file, ["telephony"])
    fill(duo, 30, seed=5, log_types=["telephony"])
    folder = collector.checkpoint_file.parent
    copy = folder / "copy.json"
    shutil.copy2(collector.checkpoint_file, copy)
    before = collector.checkpoint_file.stat()
    names = sorted(os.listdir(folder))
    folder_time = folder.stat().st_mtime_ns
    duo.rules.latency_s = 0.5
    with open(file, "ab") as stdout:
        both = [collector.start("--since", "48h", "--missing-from", "/dev/null", stdout=subprocess.DEVNULL) for _ in "ab"]
        both.append(collector.start("--since", "48h", "--missing-from", file, "--log-types", "telephony", stdout=stdout))
    ends = [process.communicate(timeout=30)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], ends
    after = collector.checkpoint_file.stat()
    assert collector.checkpoint_file.read_bytes() == copy.read_bytes()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (sorted(os.listdir(folder)), folder.stat().st_mtime_ns) == (names, folder_time)
    assert differences(duo, file, ["telephony"]) == NONE


# What monitoring is told


def test_the_counter_of_late_events_goes_on_from_run_to_run(duo, collector, file, tmp_path):
    metrics = tmp_path / "missing.prom"
    collector.environ.update(DUO_METRICS_FILE=str(metrics), DUO_LOG_TYPES="telephony,administrator")

    def late():
        (family,) = text_string_to_metric_families(metrics.read_text())
        assert (family.name, family.type) == ("duo_collector_late_events", "counter")
        assert {sample.labels["host"] for sample in family.samples} == {"127.0.0.1"}
        return {sample.labels["log_type"]: sample.value for sample in family.samples}

    fill(duo, 30, log_types=["telephony", "administrator"])
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 30, "administrator": 30}
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 30, "administrator": 30}
    fill(duo, 7, seed=4, log_types=["telephony"])
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 37, "administrator": 30}


@pytest.mark.parametrize("off_s", [-7_200, 7_200])
def test_since_is_by_duos_clock(off_s, collector, duo, file):
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 40, end_ms - 40 * MINUTE, end_ms))
    result = mend(collector, file, "--log-types", "telephony", since="1h")
    assert (result.status, differences(duo, file, ["telephony"])) == (0, NONE), result.stderr


def test_a_tenant_of_another_host_in_the_same_file(collector, duo, file):
    """Two tenants with the same events, byte for byte, and one file."""
    with Simulator(host="127.0.0.2", port=duo.port) as other:
        fill(duo, 30)
        for log_type in LOG_TYPES:
            other.add(log_type, duo.events(log_type))
        first = mend(collector, file, "--log-types", ALL)
        second = mend(collector, file, "--log-types", ALL, environ=other.settings)
    assert [first.status, second.status] == [0, 0]
    assert all(found == ("WARNING", 30, 30) for found in (*told(first).values(), *told(second).values()))
    hosts = Counter(json.loads(line)["host"] for line in file.read_bytes().splitlines())
    assert hosts == {"127.0.0.1": 180, "127.0.0.2": 180}


def test_a_file_without_any_event_of_ours_is_told(duo, collector, tmp_path):
    """Such as a compressed one: everything is missing from it."""
    duo.add("telephony", make_events("telephony", 5, now_ms() - 2 * HOUR, now_ms() - HOUR))
    written = collector.once("--log-types", "telephony").stdout.encode()
    file, options = tmp_path / "duo.jsonl.gz", ["--since", "48h", "--log-types", "telephony", "--missing-from"]
    file.write_bytes(gzip.compress(written))
    assert f"{file} holds no event of this account" in collector.run(*options, file).stderr
    file.write_bytes(written)
    assert "holds no event" not in collector.run(*options, file).stderr
