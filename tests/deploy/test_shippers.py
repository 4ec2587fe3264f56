"""deploy/shippers: the real daemons, with the configurations as shipped, bring every event as it was written.

A daemon runs in the foreground with a folder of its own and sends to a receiver on loopback. Changed in a
configuration is only what a user would set: the file, the receiver, seconds of patience. Debian's packages rsyslog
and syslog-ng-core exclude each other: one of them may be unpacked (dpkg-deb -x) to the folder that SHIPPER_ROOT
names. What is not installed is skipped, but not in CI.
"""

import configparser
import contextlib
import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
import trustme
from conftest import SCRIPT, Collector
from conftest import wait_for as wait
from duo import Simulator, make_events

SHIPPERS = pathlib.Path(__file__).parent.parent / "deploy" / "shippers"
HOUR_MS = 3_600_000
LOG_TYPES = ("authentication", "administrator", "telephony")
BOTH = pytest.mark.parametrize("shipper", ["rsyslog", "syslog-ng"], indirect=True)
# What a commented variant takes the place of.
RSYSLOG_TLS = r'^    action\(type="omfwd".*?"60"\)\n'
SYSLOG_NG_TLS = r"^    network\(.*?^        time-reopen\(.\)\);.*?\n"


def wait_for(condition, what):
    """rsyslog's TLS driver looks for large primes when it starts; on a busy machine that takes long now and then."""
    return wait(condition, what, timeout_s=60)


def missing(what):
    """A test that cannot be had here is skipped; CI is where all can be had."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {what}")


def program(name, package):
    """The path of a daemon, and the folder that its package is unpacked in."""
    root = pathlib.Path(os.environ.get("SHIPPER_ROOT", "/"))
    path = shutil.which(name, path=f"{root}/usr/sbin") or shutil.which(name, path="/usr/sbin")
    return (
        (path, pathlib.Path(path).parent.parent.parent)
        if path
        else missing(f"{name} (Debian: {package})")
    )


def changed(text, changes):
    """Text with replacements, each of which must find something: a test of a change not made tests nothing."""
    for old, new in changes.items():
        assert old in text, f"not in the configuration: {old}"
        text = text.replace(old, new)
    return text


def certificate(authority, name, **more):
    """A receiver's TLS context, with a certificate for this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **more).configure_cert(context)
    return context


class Receiver:
    """A TCP or TLS server that keeps what each connection brought; while `reading` is clear it reads nothing."""

    def __init__(self, port=0, context=None):
        self.context, self.attempts = context, 0
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 65536
        )  # small, or a pause would hold nobody up
        self.server.bind(("127.0.0.1", port))
        self.server.listen()
        self.port = self.server.getsockname()[1]
        self.connections, self.received = [], []
        self.reading = threading.Event()
        self.reading.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection):
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            self.received.append(bytearray())
            received = self.received[-1]
            while self.reading.wait():
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        except OSError:  # a handshake that the shipper broke off among them
            pass
        self.attempts += 1
        connection.close()

    def lines(self):
        """Whole lines: what a connection ends with, short of a newline, a receiver has to drop."""
        return [line for received in self.received for line in bytes(received).split(b"\n")[:-1]]

    def wait_for(self, line):
        """Until this line has come; it is the last that was written."""
        wait_for(lambda: any(r.endswith(line + b"\n") for r in self.received), f"line {line[:60]}")

    def close(self):
        for one in [self.server, *self.connections]:
            with contextlib.suppress(OSError):
                one.shutdown(
                    socket.SHUT_RDWR
                )  # close alone would leave it to the thread that waits in it
            one.close()


class Shipper:
    """A daemon with its configuration, in a folder of its own."""

    def __init__(self, name, folder):
        self.name, self.folder, self.process = name, folder, None
        self.events = folder / "log" / "duo.jsonl"
        self.events.parent.mkdir()
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.receiver = Receiver(context=certificate(self.authority, "localhost"))
        self.text = changed(
            (SHIPPERS / f"{name}.conf").read_text(),
            {
                "siem.example.com": "localhost",
                "6514": str(self.receiver.port),
                "/var/log/duo/": f"{folder}/log/",
                "/etc/ssl/certs/ca-certificates.crt": f"{folder}/ca.pem",
            },
        )
        if name == "rsyslog":
            path, root = program("rsyslogd", "rsyslog")
            modules = next(root.glob("usr/lib/*/rsyslog"))
            if not (modules / "lmnsd_gtls.so").exists():
                missing("rsyslog's TLS driver (Debian: rsyslog-gnutls)")
            self.command = [
                path,
                "-n",
                "-f",
                f"{folder}/main.conf",
                "-i",
                f"{folder}/pid",
                "-M",
                str(modules),
            ]
            main = f"$WorkDirectory {folder}\n$IncludeConfig {folder}/shipper.conf\n"  # as in Debian's rsyslog.conf
            self.change({'resumeInterval="5"': 'resumeInterval="1"'})
        else:
            path, _ = program("syslog-ng", "syslog-ng-core")
            own = {
                "cfgfile": "main.conf",
                "persist-file": "persist",
                "pidfile": "pid",
                "control": "control",
            }
            self.command = [
                path,
                "-F",
                "-e",
                "--no-caps",
                *(f"--{o}={folder}/{file}" for o, file in own.items()),
            ]
            main = f'@version: 3.35\n@include "{folder}/shipper.conf"\n'
            self.change({"time-reopen(5)": "time-reopen(1)", "/var/lib/syslog-ng": str(folder)})
        (folder / "main.conf").write_text(main)

    def change(self, changes):
        self.text = changed(self.text, changes)

    def choose(self, variant, instead_of):
        """Take what a configuration offers as a comment, in place of what a pattern finds."""
        self.text, count = re.subn(instead_of, "", self.text, flags=re.MULTILINE | re.DOTALL)
        assert count == 1
        self.change({f"#{variant} ": ""})

    def choose_plain(self):
        self.receiver.close()
        self.receiver = Receiver()
        self.choose("plain", RSYSLOG_TLS if self.name == "rsyslog" else SYSLOG_NG_TLS)
        self.change({"5514": str(self.receiver.port)})

    def start(self):
        (self.folder / "shipper.conf").write_text(self.text)
        with open(self.folder / "stderr", "ab") as stderr:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(20)

    def written(self):
        return self.events.read_bytes().splitlines()

    def append(self, *lines):
        with open(self.events, "ab") as file:
            file.writelines(line + b"\n" for line in lines)

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            print((self.folder / "stderr").read_text())  # pytest shows it where a test fails
        self.receiver.close()


@pytest.fixture
def shipper(request, tmp_path):
    made = Shipper(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tenant(duo, collector):
    """The simulated tenant with a backlog of every log type: names of the world, and an event of 200 KB."""
    now_ms = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 400, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
    long = make_events("authentication", 1, now_ms - 3 * HOUR_MS, now_ms - 2 * HOUR_MS, seed=1)[0]
    names = {
        "name": "Zoë 張偉 \U0001f600",
        "key": "DUXXXXXXXXXXXXXXXXXX",
        "groups": ['<13>"a\\b"\t%m'] * 10_000,
    }
    duo.add("authentication", json.dumps({**long, "user": names}, ensure_ascii=False))
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms - 7 * HOUR_MS))
    return duo


def numbered(start, end, size=500):
    return [b'{"n":%d,"padding":"%s"}' % (number, b"x" * size) for number in range(start, end)]


@BOTH
def test_every_event_arrives_as_written(shipper, tenant, collector):
    """The collector writes while the shipper is stopped and started: each line once, whole, in order."""
    tenant.rules.short_pages, tenant.rules.latency_s = True, 0.05
    with open(shipper.events, "ab") as events:
        collecting = collector.start("--once", "-q", stdout=events)
    receiver = shipper.receiver
    for connections in range(1, 4):
        shipper.start()
        size = shipper.events.stat().st_size
        wait_for(
            lambda size=size: shipper.events.stat().st_size > size or collecting.poll() is not None,
            "page",
        )
        # A stop before that could lose the one event that a comment in rsyslog.conf speaks of.
        wait_for(
            lambda at_least=connections: (
                len(receiver.received) >= at_least or receiver.lines() == shipper.written()
            ),
            "connection",
        )
        shipper.stop()
    assert (collecting.wait(30), collecting.stderr.read()) == (0, b"")
    shipper.start()
    written = shipper.written()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert len(written) == 1201
    assert max(map(len, written)) > 200_000
    assert any(b"\\u5f35" in line for line in written)
    assert shipper.receiver.lines() == written


@BOTH
def test_half_a_line_waits_for_the_rest(shipper):
    """A page is one write for the collector, but not for who reads meanwhile."""
    first, second, third = numbered(0, 3, 5000)
    shipper.append(first, second[:2500])
    shipper.events.write_bytes(shipper.events.read_bytes()[:-1])
    shipper.start()
    shipper.receiver.wait_for(first)
    shipper.stop()
    with open(shipper.events, "ab") as file:
        file.write(second[2500:] + b"\n")
    shipper.append(third)
    shipper.start()
    shipper.receiver.wait_for(third)
    shipper.stop()
    assert shipper.receiver.lines() == [first, second, third]


@BOTH
def test_a_kill_loses_nothing(shipper):
    """Killed in the middle: nothing is missing, and what comes twice are some last lines before the kill."""
    written = numbered(0, 12_000)
    shipper.append(*written)
    shipper.start()
    wait_for(
        lambda: shipper.receiver.received and len(shipper.receiver.received[0]) > 1_000_000,
        "first megabyte",
    )
    shipper.receiver.reading.clear()  # so that it is held up, and the kill comes before the end
    shipper.stop(signal.SIGKILL)
    positions = [path.stat().st_size for path in shipper.folder.glob("imfile-state*")]
    shipper.receiver.reading.set()
    shipper.start()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    before, after = (bytes(received).split(b"\n")[:-1] for received in shipper.receiver.received)
    assert 0 < len(before) < len(written)
    assert before == written[: len(before)]
    twice = len(before) + len(after) - len(written)
    if shipper.name == "syslog-ng":  # what the disk buffer held may come from the file once more
        after = list(dict.fromkeys(after))
    assert after == written[-len(after) :]
    assert len(before) + len(after) >= len(written)
    # The comment on persistStateInterval says when rsyslog begins anew.
    assert twice <= (1001 if shipper.name == "rsyslog" else 200) or 0 in positions


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("number", [None, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("transport", ["TLS", "plain"])
def test_a_receiver_that_is_away_is_waited_for(shipper, number, transport):
    """Also when the shipper is killed or stopped meanwhile."""
    if transport == "plain":
        shipper.choose_plain()
    before, during = numbered(0, 50), numbered(50, 300)
    shipper.append(*before)
    shipper.start()
    shipper.receiver.wait_for(before[-1])
    shipper.receiver.close()
    shipper.append(*during)
    wait_for(lambda: "refused" in (shipper.folder / "stderr").read_text(), "try to connect")
    if not number:
        time.sleep(
            5
        )  # rsyslog would give events up after its third try, were it not for resumeRetryCount
    else:
        shipper.stop(number)
        shipper.start()
    back = Receiver(shipper.receiver.port, shipper.receiver.context)
    try:
        back.wait_for(during[-1])
        lines = back.lines()
    finally:
        back.close()
    if number == signal.SIGKILL:  # rsyslog begins anew then, as it had not kept its position yet
        lines = [line for line in lines if line not in before]
    if (shipper.name, number, transport) == ("syslog-ng", signal.SIGKILL, "TLS"):
        # From the disk buffer, and again from the file: as many lines as syslog-ng reads before it notes its position.
        twice = len(lines) - len(dict.fromkeys(lines))
        assert twice <= 100
        lines = lines[twice:]
    missing_lines = [line for line in during if line not in lines]
    # The one event that comments in both files speak of.
    told = (shipper.name, number) == ("rsyslog", signal.SIGTERM) or (shipper.name, transport) == (
        "syslog-ng",
        "TLS",
    )
    assert len(missing_lines) <= (1 if told else 0)
    assert lines == [line for line in during if line not in missing_lines]


WRONG = {
    "name": lambda shipper: certificate(shipper.authority, "other.example.com"),
    "authority": lambda shipper: certificate(trustme.CA(), "localhost"),
    "expired": lambda shipper: certificate(
        shipper.authority, "localhost", not_after=datetime.now(timezone.utc) - timedelta(hours=1)
    ),
    "no TLS": lambda shipper: None,
}


@BOTH
@pytest.mark.parametrize("wrong", WRONG)
def test_a_receiver_that_cannot_prove_itself_gets_nothing(shipper, wrong):
    """And every event arrives once the right certificate is there."""
    port, right = shipper.receiver.port, shipper.receiver.context
    shipper.receiver.close()
    written = numbered(0, 200)
    shipper.append(*written)
    false = Receiver(port, WRONG[wrong](shipper))
    shipper.start()
    if wrong == "no TLS":
        wait_for(lambda: any(false.received), "try to connect")  # a greeting that nobody answers
    else:
        wait_for(lambda: false.attempts >= 2 or any(false.received), "second try to connect")
    false.close()
    assert not any(
        b"padding" in received if wrong == "no TLS" else received for received in false.received
    )
    shipper.receiver = Receiver(port, right)
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    lines = shipper.receiver.lines()
    missing_lines = [line for line in written if line not in lines]
    # The event that a failed try may lose, as a comment in syslog-ng.conf says.
    assert len(missing_lines) <= (false.attempts if shipper.name == "syslog-ng" else 0)
    assert lines == [line for line in written if line not in missing_lines]


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_stopped_while_it_refuses_the_receiver_loses_one_event(shipper):
    """The one that a comment in rsyslog.conf speaks of, and no more: what was read before is not lost or sent again."""
    port, right = shipper.receiver.port, shipper.receiver.context
    before, during = numbered(0, 50), numbered(50, 200)
    shipper.append(*before)
    shipper.start()
    shipper.receiver.wait_for(before[-1])
    shipper.stop()
    assert shipper.receiver.lines() == before
    shipper.receiver.close()
    false = Receiver(port, WRONG["authority"](shipper))
    shipper.start()
    time.sleep(1)  # the events are to be appended while it runs
    shipper.append(*during)
    wait_for(lambda: false.attempts >= 2, "second try to connect")
    shipper.stop()
    false.close()
    shipper.receiver = Receiver(port, right)
    shipper.start()
    shipper.receiver.wait_for(during[-1])
    shipper.stop()
    assert shipper.receiver.lines() in (during, during[1:])


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_reads_a_corrected_ca_file_without_a_restart(shipper):
    """And loses nothing, as deploy/README.md says."""
    ca = shipper.folder / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    written = numbered(0, 50)
    shipper.append(*written[:25])
    shipper.start()
    wait_for(
        lambda: "signer not found" in (shipper.folder / "stderr").read_text(),
        "message about the CA",
    )
    shipper.append(*written[25:])
    assert not any(shipper.receiver.received)
    shipper.authority.cert_pem.write_to_path(ca)
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert shipper.receiver.lines() == written


@BOTH
def test_plain_tcp_is_there_for_the_asking(shipper):
    shipper.choose_plain()
    written = numbered(0, 100)
    shipper.append(*written)
    shipper.start()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert shipper.receiver.lines() == written


@BOTH
def test_a_rotation_loses_nothing(shipper):
    """The file is renamed, as logrotate does, and the next run of the collector begins a new one."""
    old, late, new = numbered(0, 100), numbered(100, 200), numbered(200, 300)
    shipper.append(*old)
    shipper.start()
    shipper.receiver.wait_for(old[-1])
    shipper.append(*late)
    shipper.events.rename(shipper.events.with_name("duo.jsonl.1"))
    shipper.append(*new)
    shipper.receiver.wait_for(new[-1])
    wait_for(lambda: len(shipper.receiver.lines()) >= 300, "lines of the old file")
    shipper.stop()
    assert shipper.receiver.lines() == old + late + new


def long_and_short(shipper, setting):
    """What arrives of an event of 200 KB when a setting is left at its default, and the event."""
    long, short = numbered(0, 1, 200_000)[0], numbered(1, 2)[0]
    shipper.change({setting: ""})
    shipper.append(long, short)
    shipper.start()
    shipper.receiver.wait_for(short)
    return shipper.receiver.lines()[:-1], long


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_by_default_drops_the_end_of_a_long_event(shipper):
    """The comment says so, and the setting is what keeps the event whole."""
    pieces, long = long_and_short(shipper, 'global(maxMessageSize="1m")')
    assert pieces == [long[:8096]]


@pytest.mark.parametrize("shipper", ["syslog-ng"], indirect=True)
def test_syslog_ng_by_default_splits_a_long_event(shipper):
    pieces, long = long_and_short(shipper, "log-msg-size(1048576)\n        ")
    assert pieces == [long[at : at + 65536] for at in range(0, len(long), 65536)]


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_reads_the_files_of_all_tenants(shipper):
    shipper.start()
    second = shipper.events.with_name("second.jsonl")
    shipper.append(*numbered(0, 50))
    second.write_bytes(b"".join(line + b"\n" for line in numbered(50, 100)))
    wait_for(lambda: len(shipper.receiver.lines()) >= 100, "both files")
    shipper.stop()
    assert sorted(shipper.receiver.lines()) == sorted(numbered(0, 100))


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_hands_events_to_a_program(shipper):
    """omprog: the program ends without an answer in the middle, and is given that event again."""
    sink, out = shipper.folder / "sink", shipper.folder / "out"
    sink.write_text(f"""#!{sys.executable}
import pathlib, sys
out, once = open({str(out)!r}, "ab"), pathlib.Path({str(out)!r} + ".once")
print("OK", flush=True)
for line in sys.stdin.buffer:
    if line.startswith(b'{{"n":20,') and not once.exists():
        once.touch()
        sys.exit(1)
    out.write(line)
    out.flush()
    print("OK", flush=True)
""")
    sink.chmod(0o755)
    shipper.choose("omprog", RSYSLOG_TLS)
    shipper.change({"/usr/local/bin/duo_sink": str(sink)})
    written = [*numbered(0, 50), *numbered(50, 51, 200_000), *numbered(51, 60)]
    shipper.append(*written)
    shipper.start()
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 60, "last event")
    shipper.stop()
    assert out.read_bytes().splitlines() == written


@pytest.mark.parametrize("shipper", ["syslog-ng"], indirect=True)
def test_syslog_ng_runs_the_collector(shipper, tenant, collector):
    """program(): whole lines without a file."""
    settings = shipper.folder / "env"
    settings.write_text(
        "".join(f"{name}={value}\n" for name, value in collector.environ.items() if name != "PATH")
    )
    settings.chmod(0o600)
    shipper.choose("program", r"^source s_duo \{.*?^\};\n")
    command = "/opt/duo_collector/.venv/bin/python /opt/duo_collector/duo_collector.py"
    shipper.change(
        {command: shlex.join([sys.executable, str(SCRIPT), "--env-file", str(settings)])}
    )
    shipper.start()
    wait_for(lambda: len(shipper.receiver.lines()) >= 1201, "last event")
    shipper.stop()
    # With a checkpoint file of its own: the first collector may still be ending.
    own = ("--checkpoint-file", shipper.folder / "expected.json")
    expected = collector.once("--since", "7h", "-q", *own).stdout.encode().splitlines()
    assert sorted(shipper.receiver.lines()) == sorted(expected)


# What follows is not run: its syntax is checked, what is connected to what, and its expressions, on lines that the
# collector wrote.

ALL_TYPES = (*LOG_TYPES, "activity", "offline_enrollment", "trust_monitor")
VECTOR = ("vector.yaml", "vector-secops.yaml", "vector-sentinel.yaml")
MISLEADING = json.dumps(
    {"eventtype": "activity", "host": "evil", "ts": "1999-01-01T00:00:00+00:00"},
    separators=(",", ":"),
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Each log type's lines; among them some whose content looks like what the collector adds, and one of 200 KB."""
    with Simulator() as duo:
        collector = Collector(tmp_path_factory.mktemp("lines"), duo)
        now_ms = duo.now_ms()
        for log_type in ALL_TYPES:
            duo.add(log_type, make_events(log_type, 100, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
        for log_type in ("administrator", "offline_enrollment"):
            event = make_events(log_type, 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
            duo.add(
                log_type,
                json.dumps(
                    {**event, "description": MISLEADING, "object": '"eventtype":"telephony"'}
                ),
            )
        event = make_events("activity", 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
        event["target"] = {"host": "nested", "eventtype": "nested"}
        duo.add("activity", json.dumps(event, separators=(",", ":")))
        event = make_events("authentication", 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
        user = {"name": MISLEADING, "key": "DUXXXXXXXXXXXXXXXXXX", "groups": ["group"] * 25_000}
        duo.add("authentication", json.dumps({**event, "user": user}))
        collector.seed(**dict.fromkeys(ALL_TYPES, now_ms - 7 * HOUR_MS))
        written = collector.once("--log-types", ",".join(ALL_TYPES), "-q").stdout.splitlines()
    assert len(written) == 604
    assert max(map(len, written)) > 200_000
    return {
        one: [line for line in written if json.loads(line)["eventtype"] == one] for one in ALL_TYPES
    }


def from_yaml(text):
    try:
        return importlib.import_module("yaml").safe_load(text)
    except ImportError:
        return missing("PyYAML")


def configuration(name):
    return from_yaml((SHIPPERS / name).read_text())


def uncommented(name):
    """A configuration's lines that do something."""
    return "".join(re.findall(r"^\s*[^#\s].*\n", (SHIPPERS / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "name", [*VECTOR, "fluent-bit.yaml", "filebeat.yml", "otel-collector.yaml"]
)
def test_a_configuration_that_is_not_run_is_yaml(name):
    """And says in its head that it is not run."""
    assert "NOT RUN" in (SHIPPERS / name).read_text().split("\n\n")[0]
    assert isinstance(configuration(name), dict)


def connected(config):
    """The sources of a Vector configuration: each of its parts must be there, and be read by another."""
    sources, transforms = set(config["sources"]), config.get("transforms", {})
    routes = {
        f"{name}.{route}" for name, one in transforms.items() for route in one.get("route", ())
    }
    whole = {name for name, one in transforms.items() if "route" not in one}
    read = {
        name for one in [*transforms.values(), *config["sinks"].values()] for name in one["inputs"]
    }
    assert read == sources | whole | routes
    return sources


@pytest.mark.parametrize("name", VECTOR)
def test_vector_has_one_source(name):
    """One that nothing reads would run all the same: the collector, whose events would be gone."""
    assert connected(configuration(name)) == {"duo_file"}


@pytest.mark.parametrize(
    "variant, options", [("streaming", ["-q"]), ("scheduled", ["--once", "-q"])]
)
def test_vector_may_run_the_collector(variant, options):
    text = (SHIPPERS / "vector.yaml").read_text()
    text, count = re.subn(r"^  duo_file:.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    config = from_yaml(changed(text, {f"#{variant} ": "", "[duo_file]": "[duo]"}))
    assert connected(config) == {"duo"}
    assert config["sources"]["duo"]["mode"] == variant
    assert variant in config["sources"]["duo"]
    assert config["sources"]["duo"]["include_stderr"] is False
    python, script, *given = config["sources"]["duo"]["command"]
    assert (python, script) == (
        "/opt/duo_collector/.venv/bin/python",
        "/opt/duo_collector/duo_collector.py",
    )
    assert given == options


def test_other_shippers_have_one_source_too():
    fluent_bit, filebeat = (
        configuration("fluent-bit.yaml")["pipeline"],
        configuration("filebeat.yml"),
    )
    assert [(one["name"], one["tag"]) for one in fluent_bit["inputs"]] == [("tail", "duo")]
    assert [one["match"] for one in fluent_bit["outputs"]] == ["duo"]
    assert [one["type"] for one in filebeat["filebeat.inputs"]] == ["filestream"]
    assert [name for name in filebeat if name.startswith("output.")] == ["output.elasticsearch"]
    otel = configuration("otel-collector.yaml")
    service = otel["service"]
    assert service["extensions"] == list(otel["extensions"])
    assert service["pipelines"] == {
        "logs": {"receivers": list(otel["receivers"]), "exporters": list(otel["exporters"])}
    }
    assert len(otel["receivers"]) == len(otel["exporters"]) == 1
    storage = [
        otel["receivers"]["filelog/duo"]["storage"],
        otel["exporters"]["otlp/siem"]["sending_queue"]["storage"],
    ]
    assert storage == 2 * service["extensions"]
    assert re.findall(r"\b(?:input|action)\(type=\"(\w+)\"", uncommented("rsyslog.conf")) == [
        "omfwd",
        "imfile",
    ]
    syslog_ng = re.findall(
        r"^(?:source|destination|log)\b|(?<![\w-])(?:file|program|network)\(",
        uncommented("syslog-ng.conf"),
        re.M,
    )
    assert syslog_ng == ["source", "file(", "destination", "network(", "log"]
    assert splunk("inputs.conf").sections() == ["monitor:///var/log/duo/*.jsonl"]


def test_tls_is_the_default_where_it_is_not_run():
    """With the receiver's certificate checked, and its name."""
    vector = configuration("vector.yaml")["sinks"]["siem"]
    assert vector["address"].endswith(":6514")
    assert vector["tls"] == {"enabled": True, "verify_certificate": True, "verify_hostname": True}
    fluent_bit = configuration("fluent-bit.yaml")["pipeline"]["outputs"][0]
    assert fluent_bit["port"] == 6514
    assert all(fluent_bit[name] is True for name in ("tls", "tls.verify", "tls.verify_hostname"))
    otel = configuration("otel-collector.yaml")["exporters"]["otlp/siem"]["tls"]
    assert not {"insecure", "insecure_skip_verify"} & set(otel)


def test_filebeat_fills_the_data_streams_of_elastics_integration(lines):
    """And each line has the field from which the ingest pipeline of its data stream takes the time."""
    streams = {
        "authentication": ("cisco_duo.auth", "timestamp"),
        "administrator": ("cisco_duo.admin", "timestamp"),
        "telephony": ("cisco_duo.telephony_v2", "ts"),
        "activity": ("cisco_duo.activity", "ts"),
        "offline_enrollment": ("cisco_duo.offline_enrollment", "timestamp"),
        "trust_monitor": ("cisco_duo.trust_monitor", "surfaced_timestamp"),
    }
    config = configuration("filebeat.yml")

    def data_stream(line):
        fields = {}
        for processor in config["processors"]:
            if "if" not in processor or processor["if"]["contains"]["message"] in line:
                for one in processor.get("then", [processor]):
                    assert one["add_fields"]["target"] == "data_stream"
                    fields.update(one["add_fields"]["fields"])
        return re.sub(
            r"%\{\[data_stream\.(\w+)\]\}",
            lambda found: fields[found[1]],
            config["output.elasticsearch"]["index"],
        )

    for log_type, (dataset, time_field) in streams.items():
        for line in lines[log_type]:
            assert data_stream(line) == f"logs-{dataset}-default"
            assert json.loads(line)[time_field]
            assert data_stream(line[: len(line) // 3]) == "logs-generic-default"


def test_vector_labels_log_types_for_google_secops(lines):
    source = configuration("vector-secops.yaml")["transforms"]["duo_labeled"]["source"]
    labels = re.findall(
        r"""if contains\(line, s'(.+?)'\) \{\s+\.log_type = "(\w+)"$""", source, re.MULTILINE
    )
    found = {
        one: {next((label for text, label in labels if text in line), None) for line in lines[one]}
        for one in lines
    }
    assert found == {
        "authentication": {"DUO_AUTH"},
        "administrator": {"DUO_ADMIN"},
        "activity": {"DUO_ACTIVITY"},
        "telephony": {"DUO_TELEPHONY"},
        "offline_enrollment": {None},
        "trust_monitor": {"DUO_TRUST_MONITOR"},
    }


def test_vector_routes_log_types_to_sentinels_tables(lines):
    config = configuration("vector-sentinel.yaml")
    streams = {
        sink["inputs"][0].split(".")[1]: sink["stream_name"] for sink in config["sinks"].values()
    }
    found = {one: set() for one in lines}
    for log_type in lines:
        for line in lines[log_type]:
            for route, condition in config["transforms"]["duo_table"]["route"].items():
                field, value = re.fullmatch(r'\.(\w+) == "(\w+)"', condition).groups()
                if json.loads(line)[field] == value:
                    found[log_type].add(streams[route])
    assert {one: names for one, names in found.items() if names} == {
        "authentication": {"Custom-DuoAuthentication_CL"},
        "activity": {"Custom-DuoActivity_CL"},
        "telephony": {"Custom-DuoTelephony_CL"},
    }


def given_time(event):
    """When an event happened, by Duo."""
    if "surfaced_timestamp" in event:
        return datetime.fromtimestamp(event["surfaced_timestamp"] / 1000, timezone.utc)
    return datetime.fromisoformat(event.get("isotimestamp") or event["ts"])


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_the_opentelemetry_collector_finds_the_time(log_type, lines):
    parser, *times = configuration("otel-collector.yaml")["receivers"]["filelog/duo"]["operators"]
    assert (parser["type"], parser["parse_to"]) == ("json_parser", "attributes.duo")
    for line in lines[log_type]:
        attributes = {"duo": json.loads(line)}
        found = []
        for one in times:
            field = re.fullmatch(r"attributes\.duo\?\.(\w+) != nil", one["if"])[1]
            assert one["parse_from"] == f"attributes.duo.{field}"
            value = attributes["duo"].get(field)
            if value is not None:
                epoch = (one["layout_type"], one["layout"]) == ("epoch", "ms")
                assert epoch or (one["layout_type"], one["layout"]) == (
                    "gotime",
                    "2006-01-02T15:04:05Z07:00",
                )
                found.append(
                    datetime.fromtimestamp(value / 1000, timezone.utc)
                    if epoch
                    else datetime.fromisoformat(value)
                )
        assert found == [given_time(attributes["duo"])]


def splunk(name):
    """A .conf file of Splunk's; a setting given twice in a stanza is an error."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string((SHIPPERS / "splunk" / name).read_text())
    return parser


def test_splunk_knows_the_sourcetype():
    monitor = splunk("inputs.conf")["monitor:///var/log/duo/*.jsonl"]
    assert monitor["sourcetype"] in splunk("props.conf")


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_splunk_finds_event_and_time(log_type, lines):
    """The expressions: each line is an event, at the time that Duo gave it."""
    props = splunk("props.conf")["duo:trust_monitor" if log_type == "trust_monitor" else "duo"]
    stdout = "".join(f"{line}\n" for line in lines[log_type])
    events = re.split(props["LINE_BREAKER"], stdout)[::2][
        :-1
    ]  # it captures, so every other piece is a line break
    assert events == lines[log_type]
    for text in events:
        assert len(text) < int(props["TRUNCATE"])
        start = re.search(props["TIME_PREFIX"], text).end()
        found = text[start : start + int(props["MAX_TIMESTAMP_LOOKAHEAD"])]
        event = json.loads(text)
        if props["TIME_FORMAT"] == "%s%3N":
            assert int(found) == event["surfaced_timestamp"]
        else:
            at = datetime.strptime(found, props["TIME_FORMAT"]).replace(tzinfo=timezone.utc)
            assert (at, props["TZ"]) == (given_time(event).replace(microsecond=0), "UTC")


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_splunk_gives_the_sourcetype_that_its_detections_search(log_type, lines):
    """Whichever comes first, SEDCMD or TRANSFORMS; and Duo's own fields stay as they are."""
    props, transforms = splunk("props.conf"), splunk("transforms.conf")
    stanza = props["duo:trust_monitor" if log_type == "trust_monitor" else "duo"]
    commands = [stanza[name].split("/") for name in stanza if name.startswith("SEDCMD-")]
    transform = transforms[stanza["TRANSFORMS-duo_sourcetype"]]
    sourcetype = f"cisco:duo:{log_type}"
    assert props[sourcetype]["KV_MODE"] == "json"
    of_a_child = lines[log_type][0][:-1] + ',"child_account_id":"DAXXXXXXXXXXXXXXXXXX"}'
    for line in [*lines[log_type], of_a_child]:
        renamed = line
        for s, pattern, replacement, flags in commands:
            assert (s, flags) == ("s", "")
            renamed = re.sub(pattern, replacement, renamed, count=1)
        event = json.loads(line)
        event["extracted_eventtype"], event["extracted_host"] = (
            event.pop("eventtype"),
            event.pop("host"),
        )
        assert json.loads(renamed) == event
        for text in (line, renamed):
            found = re.search(transform["REGEX"], text[: int(transform["LOOKAHEAD"])])
            assert (
                found.expand(transform["FORMAT"].replace("$1", r"\1"))
                == f"sourcetype::{sourcetype}"
            )
        torn = re.search(transform["REGEX"], line[: len(line) // 3])
        assert torn is None
    if log_type == "administrator":
        assert props[sourcetype]["EVAL-actionlabel"] == "coalesce(actionlabel, action)"
        assert all("action" in json.loads(line) for line in lines[log_type])
