"""--missing-from: what Duo has and a file does not, each event once."""

import gzip
import json
import os
import random
import time
from collections import Counter

import pytest
from conftest import (
    ADDED,
    ALL,
    HOUR,
    MINUTE,
    NONE,
    ONLY,
    append,
    as_text,
    collect,
    differences,
    events_in,
    fill,
    in_ms,
    instant,
    log_requests,
    mend,
    now_ms,
    odd,
    stamp,
    told,
    under,
    without_added,
)
from duo import LOG_TYPES, Simulator, make_events
from prometheus_client.parser import text_string_to_metric_families


def read(text):
    """The events of lines, as text without what the collector adds, by log type."""
    found = {log_type: Counter() for log_type in LOG_TYPES}
    for line in text.splitlines():
        event = json.loads(line)
        log_type = event["eventtype"]
        found[log_type][
            as_text({name: value for name, value in event.items() if name not in ADDED})
        ] += 1
    return found


def test_what_is_missing_is_written_once_and_said(duo, collector, file):
    fill(duo, LOG_TYPES, 300, hours=(6, 1))
    collect(duo, collector, file)
    assert differences(duo, events_in(file)) == NONE
    lines = file.read_bytes().splitlines(keepends=True)
    young = {log_type: collector.saved["state"][log_type]["start_ms"] for log_type in LOG_TYPES}
    lost = [line for number, line in enumerate(lines) if number % 7 == 3]
    lost = [
        line
        for line in lost
        if in_ms((event := json.loads(line))["eventtype"], event) < young[event["eventtype"]]
    ]
    kept = [line for line in lines if line not in set(lost)]
    random.Random(7).shuffle(kept)
    file.write_bytes(b"".join(kept))
    missing = Counter(json.loads(line)["eventtype"] for line in lines if line not in set(kept))
    fill(duo, LOG_TYPES, 40, seed=5, hours=(5, 2))  # published hours late
    missing.update(dict.fromkeys(LOG_TYPES, 40))

    asked, checkpoints = len(log_requests(duo)), collector.checkpoint_file.read_bytes()
    size = file.stat().st_size
    result = mend(collector, file, "--log-types", ALL)
    assert result.status == 0, result.stderr
    assert differences(duo, events_in(file)) == NONE
    assert told(result) == {log_type: ("WARNING", 340, missing[log_type]) for log_type in LOG_TYPES}
    assert len(log_requests(duo)) - asked <= 2 * len(LOG_TYPES) + 2
    with open(file, "rb") as found:
        found.seek(size)
        assert read(found.read()) != read(b"")

    again = append(collector, file, "--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (again.status, differences(duo, events_in(file))) == (0, NONE)
    assert told(again) == dict.fromkeys(LOG_TYPES, ("INFO", 340, 0))
    assert "WARNING" not in again.stderr
    assert collector.checkpoint_file.read_bytes() == checkpoints


def test_an_auditor_needs_no_checkpoint_file(duo, collector, file):
    fill(duo, LOG_TYPES, 50, hours=(6, 1))
    result = collector.run("--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (result.status, len(result.events)) == (0, 300), result.stderr
    file.write_text(result.stdout)
    again = collector.run("--since", "48h", "--missing-from", file, "--log-types", ALL)
    assert (again.status, again.stdout) == (0, "")
    assert told(again) == dict.fromkeys(LOG_TYPES, ("INFO", 50, 0))
    assert not collector.checkpoint_file.exists()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_until_is_kept_to(duo, collector, file):
    fill(duo, LOG_TYPES, 100, hours=(6, 1))
    since_ms, until_ms = ((now_ms() - hours * HOUR) // 1000 * 1000 for hours in (4, 3))
    options = [
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms // 1000))
        for at_ms in (since_ms, until_ms)
    ]
    result = collector.run(
        "--since", options[0], "--until", options[1], "--missing-from", file, "--log-types", ALL
    )
    wanted = {
        log_type: Counter(
            as_text(event)
            for event in duo.events(log_type)
            if since_ms <= in_ms(log_type, event) < until_ms
        )
        for log_type in LOG_TYPES
    }
    assert (result.status, read(result.stdout)) == (0, wanted), result.stderr


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_events_without_id_or_time_and_twins(duo, collector, file, log_type):
    """As often as Duo has them, if they can't be told apart; once, if they have an id."""
    at_ms = (now_ms() - 3 * HOUR) // 1000 * 1000
    twin = {**instant(log_type, 1, at_ms)[0], LOG_TYPES[log_type].id_field or "none": None}
    duo.add(log_type, [twin, twin, twin])
    duo.add(log_type, [odd(log_type, 1), odd(log_type, 2), odd(log_type, 2)], at_ms=at_ms + 1)
    if LOG_TYPES[log_type].id_field:
        duo.add(
            log_type, [odd(log_type, 3, **{LOG_TYPES[log_type].id_field: "odd-1"})], at_ms=at_ms + 2
        )
    fill(duo, log_type, 20, hours=(6, 1))
    whole = collector.run("--since", "48h", "--missing-from", "/dev/null", "--log-types", log_type)
    file.write_text(whole.stdout)
    assert (whole.status, differences(duo, events_in(file), [log_type])) == (0, NONE), whole.stderr

    lines = whole.stdout.splitlines(keepends=True)
    tail = '"eventtype":"%s","host":"127.0.0.1"}\n' % log_type
    for event in twin, odd(log_type, 2):  # take all but one of them away
        alike = [
            line for line in lines if as_text(without_added(json.loads(line))) == as_text(event)
        ]
        assert len(alike) == (3 if event is twin else 2) and all(
            line.endswith(tail) for line in alike
        )
        for line in alike[1:]:
            lines.remove(line)
    file.write_text("".join(lines))
    result = mend(collector, file, "--log-types", log_type)
    assert (result.status, differences(duo, events_in(file), [log_type])) == (0, NONE), (
        result.stderr
    )
    assert told(result)[log_type][2] == 3
    assert told(mend(collector, file, "--log-types", log_type))[log_type][2] == 0


RUBBISH = [
    b"",
    b"\r",
    b"   ",
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"{}",
    b'{"eventtype": "authentication"}',
    b"\xff\xfe\x00\x80",
    b"M\xfcller",
    b"\x00" * 50,
    b"\xef\xbb\xbf{}",
    b'{"eventtype": ["x"], "host": {}}',
    b'{"eventtype": "dns", "host": "127.0.0.1"}',
    b"[" * 100_000,
    b'{"eventtype": "telephony", "host": "127.0.0.1", "n": 1' + b"0" * 5_000 + b"}",
    b"Nov 24 10:00:00 gw sshd[1]: x",
    b'{"eventtype": "telephony", "host": null, "telephony_id": "x"}',
    b'{"eventtype": "telephony", "host": "127.0.0.1"}',
]


def as_of(lines, **fields):
    """Lines as another tenant has them."""
    return [json.dumps({**json.loads(line), **fields}).encode() for line in lines]


@pytest.mark.parametrize("how", ["a file", "standard input"])
def test_lines_of_anything_else_are_passed_over(duo, collector, file, how):
    fill(duo, LOG_TYPES, 60, hours=(6, 1))
    whole = (
        collector.run("--since", "48h", "--missing-from", "/dev/null", "--log-types", ALL)
        .stdout.encode()
        .splitlines()
    )
    halves = whole[::2], whole[1::2]
    torn = [line[: len(line) // 2] for line in halves[1][:20]]
    others = [
        *as_of(halves[1], host="api-00000000.duosecurity.com"),
        *as_of(halves[1], child_account_id="DACHILD0000000000001"),
    ]
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
        collector.command = lambda *options: [
            "sh",
            "-c",
            f'zcat -f {file}* | "$@"',
            "sh",
            *command(*options),
        ]
        result = collector.run("--since", "48h", "--missing-from", "-", "--log-types", ALL)
    assert result.status == 0, result.stderr
    assert read(result.stdout) == read(b"\n".join(halves[1]))
    assert "Traceback" not in result.stderr


def test_a_file_whose_last_line_is_torn_gets_whole_lines_after_it(duo, collector, file):
    fill(duo, "telephony", 40, hours=(6, 1))
    whole = collector.run("--since", "48h", "--missing-from", "/dev/null", *ONLY).stdout
    torn = whole.splitlines()[-1][:50]
    file.write_text("".join(whole.splitlines(keepends=True)[:20]) + torn)
    assert mend(collector, file, *ONLY).status == 0
    lines = file.read_text().splitlines()
    lines.remove(torn)
    file.write_text("\n".join(lines) + "\n")
    assert differences(duo, events_in(file), ["telephony"]) == NONE


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_78_before_duo_is_asked(duo, collector, tmp_path, what):
    path = tmp_path / "none.jsonl" if what == "missing" else tmp_path
    result = collector.run("--since", "48h", "--missing-from", path)
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, duo.requests) == (78, "", [])
    assert f"--missing-from {path} " in line


def test_refusals_and_outages_have_their_status(duo, collector, file):
    fill(duo, LOG_TYPES, 20, hours=(6, 1))
    duo.rules.missing["administrator"] = 403
    result = mend(collector, file)
    assert (result.status, differences(duo, events_in(file), ["authentication", "telephony"])) == (
        77,
        NONE,
    ), result.stderr
    duo.rules.missing.clear()
    duo.inject("telephony", (503, {"Retry-After": "3600"}, b"down"))
    assert mend(collector, file).status == 75
    assert mend(collector, file).status == 0
    assert (
        differences(duo, events_in(file), ["authentication", "administrator", "telephony"]) == NONE
    )


def test_another_accounts_checkpoint_file_is_refused(duo, collector, file):
    collector.checkpoint_file.write_text('{"account": "api-00000000.duosecurity.com"}')
    result = mend(collector, file)
    assert (result.status, duo.requests, file.read_bytes()) == (78, [], b""), result.stderr


def test_the_counter_of_late_events_goes_on_from_run_to_run(duo, collector, file, tmp_path):
    """In a file of its own, beside that of the service."""
    metrics = tmp_path / "duo-missing.prom"
    collector.environ["DUO_METRICS_FILE"] = str(tmp_path / "duo.prom")
    collector.environ["DUO_LOG_TYPES"] = "telephony,administrator"

    def late():
        (family,) = text_string_to_metric_families(metrics.read_text())
        assert (family.name, family.type) == ("duo_collector_late_events", "counter")
        assert {sample.labels["host"] for sample in family.samples} == {"127.0.0.1"}
        return {sample.labels["log_type"]: sample.value for sample in family.samples}

    fill(duo, ["telephony", "administrator"], 30, hours=(6, 1))
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 30, "administrator": 30}
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 30, "administrator": 30}
    fill(duo, "telephony", 7, hours=(6, 1), seed=4)
    assert mend(collector, file).status == 0
    assert late() == {"telephony": 37, "administrator": 30}
    assert not (tmp_path / "duo.prom").exists()


@pytest.mark.parametrize("off_s", [-7_200, 7_200])
def test_since_is_by_duos_clock(off_s, collector, duo, file):
    duo.rules.clock_offset = off_s
    end_ms = duo.now_ms() - 10 * MINUTE
    duo.add("telephony", make_events("telephony", 40, end_ms - 40 * MINUTE, end_ms))
    result = mend(collector, file, *ONLY, since="1h")
    assert (result.status, differences(duo, events_in(file), ["telephony"])) == (0, NONE), (
        result.stderr
    )


def test_a_tenant_of_another_host_in_the_same_file(collector, duo, file):
    """Two tenants with the same events, byte for byte, and one file."""
    with Simulator(host="127.0.0.2", port=duo.port) as other:
        fill(duo, LOG_TYPES, 30, hours=(6, 1))
        for log_type in LOG_TYPES:
            other.add(log_type, duo.events(log_type))
        first = mend(collector, file, "--log-types", ALL)
        second = mend(collector, file, "--log-types", ALL, environ=other.settings)
    assert [first.status, second.status] == [0, 0]
    assert all(
        found == ("WARNING", 30, 30) for found in (*told(first).values(), *told(second).values())
    )
    hosts = Counter(json.loads(line)["host"] for line in file.read_bytes().splitlines())
    assert hosts == {"127.0.0.1": 180, "127.0.0.2": 180}


def test_a_file_without_any_event_of_ours_is_told(duo, collector, file):
    """Such as another account's: all is missing from it."""
    fill(duo, "telephony", 5, hours=(2, 1))
    written = collector.once(*ONLY).stdout
    options = ["--since", "48h", *ONLY, "--missing-from", file]
    file.write_text(written.replace("127.0.0.1", "127.0.0.9"))
    told = f"WARNING --missing-from {file} holds no event of this account"
    assert told in collector.run(*options).stderr
    file.write_text(written)
    assert "holds no event" not in collector.run(*options).stderr


def as_of_two_files(duo, collector, tmp_path):
    """The service's lines in two files, plain and compressed, and 5 in neither."""
    fill(duo, "telephony", 45, hours=(6, 1))
    collect(duo, collector, tmp_path / "all.jsonl", ["telephony"])
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "all.jsonl").unlink()
    (tmp_path / "acme.jsonl").write_bytes(b"".join(lines[25:]))
    (tmp_path / "acme.jsonl-20261130.gz").write_bytes(gzip.compress(b"".join(lines[5:25])))


@pytest.mark.parametrize("names", [["acme.jsonl", "acme.jsonl-20261130.gz"], ["acme.jsonl*"]])
def test_several_files_patterns_and_gzip(duo, collector, tmp_path, names):
    as_of_two_files(duo, collector, tmp_path)
    paths = [tmp_path / name for name in names]
    result = collector.run("--since", "48h", *ONLY, "--missing-from", *paths)
    assert (result.status, len(result.events)) == (0, 5), result.stderr
    assert told(result)["telephony"][2] == 5


def test_a_compressed_file_on_standard_input(duo, collector, tmp_path):
    as_of_two_files(duo, collector, tmp_path)
    (tmp_path / "acme.jsonl").unlink()
    under(collector, "sh", "-c", f'exec "$@" <{tmp_path}/acme.jsonl-20261130.gz', "sh")
    result = collector.run("--since", "48h", *ONLY, "--missing-from", "-")
    assert (result.status, len(result.events)) == (0, 25), result.stderr


def test_a_file_last_changed_before_the_range_is_not_read(duo, collector, tmp_path):
    """Two days before, as a local clock may have been wrong when it was written."""
    as_of_two_files(duo, collector, tmp_path)
    old = tmp_path / "acme.jsonl-20261130.gz"
    old.write_bytes(b"\x1f\x8b this is no gzip")
    options = ["--since", "48h", *ONLY, "--missing-from", tmp_path / "acme.jsonl*"]
    result = collector.run(*options)
    assert (result.status, str(old) in result.stderr) == (78, True), result.stderr
    os.utime(old, (time.time() - 5 * 86_400,) * 2)
    assert collector.run(*options).status == 0


@pytest.mark.parametrize("since_ms", [None, 3 * HOUR], ids=["default", "chosen"])
def test_nothing_is_compared_where_collection_has_not_got_beyond_since(
    duo, collector, file, since_ms
):
    """A file with seeds only, or a backlog: never `0 missing` of nothing that was compared."""
    fill(duo, "telephony", 50, hours=(6, 1))
    collector.seed(telephony=now_ms() - 72 * HOUR if since_ms is None else now_ms() - since_ms)
    since = "48h" if since_ms is None else "2h"
    result = mend(collector, file, *ONLY, since=since)
    assert (result.status, file.read_bytes()) == (75, b"")
    (line,) = result.stderr.splitlines()[-1:]
    at = stamp(collector.since("telephony"))
    assert str(collector.checkpoint_file) in line and at in line and "0 missing" not in line
