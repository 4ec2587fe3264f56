"""No event is lost where one day's file ends and the next begins, nor where a receiver closes an idle connection.

rsyslog and syslog-ng are real. Those that are not run here are emulated: what identifies a file, when new files are
looked for, and how long a file is followed once its name does not match any more, as documented by each.
"""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
from conftest import SCRIPT
from duo import make_events

from deploy.common import DEPLOY, changed, program
from deploy.shipper import BOTH, HOUR_MS, LOG_TYPES, numbered, wait_for

FIRST_DAY = "2026-12-01"
SECOND_DAY = "2026-12-02"


class Machine:
    """What deploy/duo-collector finds, in a folder: a tenant's settings, a Python, and the date."""

    def __init__(self, folder, collector):
        self.logs = folder / "log"
        self.logs.mkdir(exist_ok=True)
        programs = folder / "bin"
        programs.mkdir()
        settings = folder / "etc" / "acme.env"
        settings.parent.mkdir()
        lines = [f"{name}={value}\n" for name, value in collector.environ.items() if name != "PATH"]
        settings.write_text("".join(lines))
        settings.chmod(0o600)
        wrapper = (DEPLOY / "duo-collector").read_text()
        changes = {
            "/opt/duo-collector/.venv/bin/python /opt/duo-collector/duo_collector.py": f"{sys.executable} {SCRIPT}",
            "/etc/duo-collector": str(settings.parent),
            "/var/log/duo": str(self.logs),
            '"$(id -u)" = 0': "no = yes",
        }
        self.wrapper = programs / "duo-collector"
        self.wrapper.write_text(changed(wrapper, changes))
        self.date = programs / "date"
        for path in (self.wrapper, self.date):
            path.touch()
            path.chmod(0o755)
        self.environ = {"PATH": f"{programs}:/usr/bin:/bin"}

    def file(self, day):
        return self.logs / f"acme-{day}.jsonl"

    def start_pass(self, day):
        self.date.write_text(f"#!/bin/sh\necho {day}\n")
        command = [self.wrapper, "--append", "acme", "--once", "-q"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=self.environ)

    def lines(self):
        paths = sorted(self.logs.glob("*.jsonl*"))
        return [line for path in paths for line in path.read_bytes().splitlines()]


@pytest.fixture
def machine(tmp_path, duo, collector):
    """A tenant with so many events that a pass takes some seconds."""
    now_ms = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 1000, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms - 7 * HOUR_MS))
    duo.rules.short_pages = True
    duo.rules.latency_s = 0.2
    return Machine(tmp_path, collector)


def cross_midnight(machine, duo, at_midnight=lambda: None):
    """A long pass that begins on the first day, and one of the second day after it."""
    first = machine.start_pass(FIRST_DAY)
    wait_for(lambda: len(machine.lines()) > 300, "first pages")
    before = len(machine.lines())
    at_midnight()
    # Other tenants' files of the second day: their first events are equal for over 1024 bytes.
    for number, name in enumerate(("globex", "initech")):
        event = {"access_device": "x" * 1100, "txid": number}
        path = machine.logs / f"{name}-{SECOND_DAY}.jsonl"
        path.write_text(json.dumps(event) + "\n")
    assert first.wait(60) == 0
    assert len(machine.lines()) > before + 500  # midnight was in the middle of the pass
    now_ms = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 5, now_ms - 250_000, now_ms - 200_000, seed=1))
    assert machine.start_pass(SECOND_DAY).wait(60) == 0
    assert machine.file(SECOND_DAY).read_bytes().count(b"\n") == 15


@BOTH
def test_midnight_loses_nothing(shipper, machine, duo):
    """With the daemon reading while it comes: each line once, whole."""
    shipper.start()
    cross_midnight(machine, duo)
    written = machine.lines()
    wait_for(lambda: len(shipper.receiver.lines()) >= len(written), "last line")
    # Old files go, as the wrapper's do, and another one comes.
    machine.file(FIRST_DAY).unlink()
    last = b'{"day":3}'
    machine.file("2026-12-03").write_bytes(last + b"\n")
    wait_for(lambda: last in shipper.receiver.lines(), "line of the third day")
    shipper.stop()
    assert sorted(shipper.receiver.lines()) == sorted([*written, last])


@BOTH
def test_a_daemon_that_is_stopped_over_midnight_loses_nothing(shipper, machine, duo):
    def stop():
        # A stop before that may lose the one event that a comment in rsyslog.conf speaks of.
        wait_for(shipper.receiver.lines, "line that has come")
        shipper.stop()

    shipper.start()
    cross_midnight(machine, duo, at_midnight=stop)
    shipper.start()
    written = machine.lines()
    wait_for(lambda: set(shipper.receiver.lines()) >= set(written), "last line")
    shipper.stop()
    assert sorted(shipper.receiver.lines()) == sorted(written)


# The followers


@dataclass
class Follower:
    """A file follower that knows files by `identity`, looks for new ones, and drops those that do not match."""

    identity: object  # of a path and its first bytes; None where there are too few of them yet
    scan_s: float
    rotate_wait_s: float  # how long it follows a file whose name does not match any more
    close_inactive_s: float = 1e9
    files: dict = field(
        default_factory=dict
    )  # identity: [open file, offset, last change, gone since]
    received: list = field(default_factory=list)
    scanned: float = 0

    def poll(self, folder, now):
        """One look at the folder at a time in s."""
        if now - self.scanned >= self.scan_s:
            self.scanned = now
            self.scan(folder, now)
        for known in self.files.values():
            if known["file"]:
                self.read(known, now)

    def scan(self, folder, now):
        here = {}
        for path in sorted(folder.glob("*.jsonl")):
            head = path.read_bytes()[:4096]
            name = self.identity(path, head)
            if name is not None:
                here[name] = path
        for name, path in here.items():
            known = self.files.setdefault(
                name, {"file": None, "offset": 0, "at": now, "gone": None}
            )
            known["gone"] = None
            if not known["file"] and path.stat().st_size != known["offset"]:
                known.update(file=open(path, "rb"), at=now)
        for name, known in self.files.items():
            if name not in here and known["file"] and known["gone"] is None:
                known["gone"] = now

    def read(self, known, now):
        known["file"].seek(known["offset"])
        data = known["file"].read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            self.received += whole.splitlines()
            known["offset"] += len(whole)
            known["at"] = now
        gone = known["gone"] is not None and now - known["gone"] >= self.rotate_wait_s
        if gone or now - known["at"] >= self.close_inactive_s:
            known["file"].close()
            known["file"] = None


def by_path(path, head):
    return str(path)


def by_inode_and_name(path, head):
    return path.stat().st_ino, path.name


def by_first_line(path, head):
    """Vector's checksum."""
    return head.split(b"\n")[0] if b"\n" in head else None


def by_first_1024(path, head):
    """Filebeat's fingerprint, by default."""
    return head[:1024] if len(head) >= 1024 else None


# Seconds of the documentation, a tenth of them here: a pass here takes some seconds and not minutes.
FOLLOWERS = {
    # file_identity.path, prospector.scanner.check_interval 10s, close.on_state_change.renamed at the next check,
    # close.on_state_change.inactive 5m
    "Filebeat": lambda: Follower(by_path, 1, 0, 30),
    # inode and name (db.compare_filename), refresh_interval 5 as in the recipe, rotate_wait 5
    "Fluent Bit": lambda: Follower(by_inode_and_name, 0.5, 0.5),
    # poll_interval 200ms; a file that does not match any more is read once more
    "OpenTelemetry": lambda: Follower(by_path, 0.02, 0.02),
    # crcSalt = <SOURCE>: the path and the first bytes; time_before_close 3
    "Splunk": lambda: Follower(by_path, 0.1, 0.3, 0.3),
    # checksum of the first line, glob_minimum_cooldown_ms 1000
    "Vector": lambda: Follower(by_first_line, 0.1, 0.1),
}


def follow(follower, folder, process):
    """Let a follower look until a function has ended, and then for as long as it takes to see all."""
    ended = threading.Event()
    failure = []

    def run():
        try:
            process()
        except BaseException as error:
            failure.append(error)
        ended.set()

    threading.Thread(target=run).start()
    end = None
    while end is None or time.monotonic() < end:
        follower.poll(folder, time.monotonic())
        time.sleep(0.01)
        if ended.is_set() and end is None:
            end = time.monotonic() + 2.5
    if failure:
        raise failure[0]


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_follower_gets_every_line_over_midnight(name, machine, duo):
    """And none twice."""
    follower = FOLLOWERS[name]()
    follow(follower, machine.logs, lambda: cross_midnight(machine, duo))
    assert sorted(follower.received) == sorted(machine.lines())


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_follower_would_lose_the_end_of_a_renamed_file(name, machine, duo):
    """Why no file is renamed; and that the emulation can tell."""

    def rename():
        machine.file(FIRST_DAY).rename(machine.logs / "acme.jsonl.1")

    follower = FOLLOWERS[name]()
    follow(follower, machine.logs, lambda: cross_midnight(machine, duo, at_midnight=rename))
    assert len(follower.received) < len(machine.lines()) - 500


def test_filebeats_default_would_lose_a_small_file_and_one_that_begins_alike(machine, duo):
    """Why the recipe identifies files by their path."""
    follower = Follower(by_first_1024, 1, 0, 30)
    (machine.logs / f"umbrella-{SECOND_DAY}.jsonl").write_bytes(b'{"small":true}\n')
    follow(follower, machine.logs, lambda: cross_midnight(machine, duo))
    lost = set(machine.lines()) - set(follower.received)
    assert b'{"small":true}' in lost
    assert sum(b"xxxx" in line for line in lost) == 1


# A receiver that closes an idle connection


def lost_after_closing(shipper, properly, count=3):
    """Have the receiver close the connection some times after an event has come; which of the events never come."""
    shipper.start()
    number = 0
    for _ in range(count):
        (event,) = numbered(number, number + 1)
        shipper.append(event)
        number += 1
        # One that is lost makes the next one open a connection.
        deadline = time.monotonic() + (60 if number == 1 else 4)
        while time.monotonic() < deadline and event not in shipper.receiver.lines():
            time.sleep(0.05)
        time.sleep(1)
        shipper.receiver.hang_up(properly)
        time.sleep(1)
    shipper.append(*numbered(number, number + 5))
    (last,) = numbered(number + 4, number + 5)
    shipper.receiver.wait_for(last)
    got = shipper.receiver.lines()
    return [number for number, line in enumerate(numbered(0, number + 5)) if line not in got]


@pytest.mark.slow
@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
@pytest.mark.parametrize("properly", [True, False])
def test_rsyslog_over_relp_loses_nothing_when_an_idle_connection_is_closed(shipper, properly):
    shipper.choose_relp()
    assert lost_after_closing(shipper, properly) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "shipper, properly, loses",
    [
        ("rsyslog", True, True),
        ("rsyslog", False, False),
        ("syslog-ng", True, True),
        ("syslog-ng", False, True),
    ],
    indirect=["shipper"],
)
def test_what_tls_loses_when_an_idle_connection_is_closed(shipper, properly, loses):
    """As the table in deploy/shippers.md says: the event after it, and no other."""
    lost = lost_after_closing(shipper, properly)
    assert bool(lost) == loses
    assert len(lost) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_with_a_connection_for_each_event_loses_nothing(shipper):
    """RebindInterval, as the comment in rsyslog.conf says."""
    shipper.change(
        {
            'action.resumeRetryCount="-1"       #': 'RebindInterval="1" action.resumeRetryCount="-1" #'
        }
    )
    assert lost_after_closing(shipper, True) == []


def test_a_loss_is_found_by_counts(machine, duo):
    """deploy/shippers.md's command."""
    program("jq", "jq")
    cross_midnight(machine, duo)
    page = (DEPLOY / "shippers.md").read_text()
    (command,) = re.findall(
        r"^(jq -r .*/var/log/duo/acme-\*\.jsonl \| sort \| uniq -c)$", page, re.M
    )
    command = command.replace("/var/log/duo", str(machine.logs))
    counted = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True
    ).stdout
    expected = {}
    for path in machine.logs.glob("acme-*.jsonl"):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            hour = (event.get("isotimestamp") or event["ts"])[:13]
            key = (event["eventtype"], hour)
            expected[key] = expected.get(key, 0) + 1
    found = [line.split() for line in counted.splitlines()]
    assert {(log_type, hour): int(count) for count, log_type, hour in found} == expected
