"""What the tests share: a simulated tenant, and the collector as its users run it, in a process."""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pytest
import trustme

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import duo as tenant  # noqa: E402
from duo import LOG_TYPES, Simulator, make_events  # noqa: E402

import duo_collector  # noqa: E402

SCRIPT = TESTS.parent / "duo_collector.py"
CHECKPOINT_KEYS = {  # and the unit of their values in ms
    "authentication": ("AUTH_SINCE_TIME", 1),
    "administrator": ("ADMIN_SINCE_TIME", 1000),
    "telephony": ("TELEPHONY_SINCE_TIME", 1),
    "activity": ("ACTIVITY_SINCE_TIME", 1),
    "offline_enrollment": ("OFFLINE_ENROLLMENT_SINCE_TIME", 1000),
    "trust_monitor": ("TRUST_MONITOR_SINCE_TIME", 1),
}
V1 = ("administrator", "offline_enrollment")
V2 = ("authentication", "activity", "telephony")
DEFAULT = ("authentication", "administrator", "telephony")
ALL = ",".join(CHECKPOINT_KEYS)
ONLY = ("--log-types", "telephony")
ADDED = ("eventtype", "host", "child_account_id")  # to each event, by the collector
JSON = {"Content-Type": "application/json"}
MINUTE = 60_000  # ms
HOUR = 60 * MINUTE
DAY = 24 * HOUR
SECRET = "q7Rw2ZtB9xKpLmV4sHd8JfNcGy6TaEu3XoQiWv5b"  # its pieces are in no other text
KEYS = {
    "DUO_API_HOST": "https://api-12345678.duosecurity.com",
    "DUO_INTEGRATION_KEY": "DIXXXXXXXXXXXXXXXXXX",
    "DUO_SECRET_KEY": SECRET,
}
NO_KEYS = dict.fromkeys(KEYS)
NOBODY = "http://127.0.0.1:1"  # connections are refused; no other test is given this port
NONE = {"lost": 0, "doubled": 0}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: mostly waits, so it is started first")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# The collector


@dataclass
class Result:
    """How a run ended."""

    status: int
    stdout: str
    stderr: str

    @cached_property
    def events(self):
        return [json.loads(line) for line in self.stdout.splitlines()]

    def of(self, log_type):
        """The events of one log type, without the fields that the collector adds."""
        return [without_added(event) for event in self.events if event["eventtype"] == log_type]


class Collector:
    """Runs duo_collector.py against a simulator, with nothing of this machine's environment."""

    def __init__(self, folder, simulator):
        self.checkpoint_file = folder / "checkpoints.json"
        self.environ = {
            "PATH": os.environ["PATH"],
            "DUO_CHECKPOINT_FILE": str(self.checkpoint_file),
            "DUO_REQUESTS_PER_MINUTE": "60000",
            **simulator.settings,
        }

    started = []  # all processes of the test under way

    def command(self, *options):
        return [sys.executable, str(SCRIPT), "--env-file", "/dev/null", *map(str, options)]

    def start(self, *options, environ=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more):
        """Start it; an environ value of None takes a variable away."""
        return self.popen(self.command(*options), environ, stdout=stdout, stderr=stderr, **more)

    def shell(self, script, *options, environ=None, **more):
        """Start it from a shell, where it is "$@"."""
        command = ["sh", "-c", script, "sh", *self.command(*options)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return self.popen(command, environ, **streams)

    def popen(self, command, environ, **more):
        merged = {**self.environ, **(environ or {})}
        env = {name: value for name, value in merged.items() if value is not None}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, **more)
        self.started.append(process)
        return process

    def run(self, *options, environ=None, timeout=60, **more):
        return finish(self.start(*options, environ=environ, **more), timeout)

    def once(self, *options, **more):
        return self.run("--once", *options, **more)

    def seed(self, **since_ms):
        """Write a checkpoint file with these since times, given in ms for every log type."""
        document = {}
        for log_type, at_ms in since_ms.items():
            key, unit_ms = CHECKPOINT_KEYS[log_type]
            document[key] = at_ms // unit_ms
        self.checkpoint_file.write_text(json.dumps(document))

    def since(self, log_type):
        """Where a log type has got to by the checkpoint file, in its own unit."""
        return self.saved[CHECKPOINT_KEYS[log_type][0]]

    @property
    def saved(self):
        """What is in the checkpoint file."""
        return json.loads(self.checkpoint_file.read_bytes())


@pytest.fixture
def duo():
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def collector(tmp_path, duo):
    return Collector(tmp_path, duo)


@pytest.fixture(autouse=True)
def no_survivors():
    """A test that fails leaves no collector behind, to go on for ever."""
    yield
    for process in Collector.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    Collector.started.clear()


def finish(process, timeout_s=60):
    """Wait for a process to end, and return how it did."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {timeout_s} s: {process.communicate()[1]}")
    return Result(process.returncode, (stdout or b"").decode("ascii"), (stderr or b"").decode())


@contextlib.contextmanager
def running(collector, *options, **more):
    """The collector for a block, and SIGTERM at its end."""
    process = collector.start(*options, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


def wait_for(condition, what, timeout_s=20):
    """Wait until a condition holds, and return what it gives; fail in words when it never does."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    return pytest.fail(f"after {timeout_s} s still no {what}")


def run_until(process, condition, timeout_s=30):
    """Watch closely, as wait_for is too slow to meet an instant; false if the process ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if condition():
            return True
        time.sleep(0.0005)
    process.kill()
    return pytest.fail(f"nothing met within {timeout_s} s: {finish(process).stderr}")


def before(collector, statement):
    """Let the collector's process do something before it begins; the rest of it is as ever."""
    code = f"import sys, duo_collector; {statement}; sys.exit(duo_collector.main())"
    head = [sys.executable, "-c", code, "--env-file", "/dev/null"]
    collector.environ["PYTHONPATH"] = str(SCRIPT.parent)
    collector.command = lambda *options: [*head, *map(str, options)]


def under(collector, *wrapper):
    """Run the collector under another command."""
    command = collector.command
    collector.command = lambda *options: [*wrapper, *command(*options)]


def works(*command):
    """Whether this machine has a command, and the right to use it."""
    return shutil.which(command[0]) and not subprocess.run(command, capture_output=True).returncode


def without_privileges(collector):
    """Have modes of files apply, to root too."""
    if os.geteuid() != 0:
        return
    rights = "-dac_override,-dac_read_search"
    wrapper = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
    if not works(*wrapper, "true"):
        pytest.skip("root, and no setpriv to give up its rights")
    under(collector, *wrapper)


def under_strace(collector, trace, *options):
    wrapper = ["strace", "-D", "-f", "-o", str(trace), *options]
    if not works(*wrapper, "true"):
        pytest.skip("no strace, or no right to use it")
    under(collector, *wrapper)


def unshared(*options):
    """What starts a command in namespaces of its own."""
    if not works("unshare", *options, "true"):
        pytest.skip(f"no right to, or no, unshare {' '.join(options)}")
    return " ".join(["unshare", *options])


def settings_of(*options, **environ):
    """What a command line and an environment come to."""
    given = duo_collector.parse_options(list(options))
    return duo_collector.load_settings(given, {**KEYS, **environ})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["disk", "limit"])
def cramped(request, tmp_path):
    """Where no file can get larger than 1 MB: the folder, the shell's words for it, and what
    makes room."""
    if request.param == "limit":  # everywhere, and by other error numbers than a full disk
        return tmp_path, "ulimit -f 2000; ", lambda: None
    folder = request.getfixturevalue("small_disk")
    return (
        folder,
        "",
        lambda: subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True),
    )


def log_requests(duo):
    """The requests that a simulator had for logs: the ping is none."""
    return [request for request in duo.requests if request.log_type]


# Events


def now_ms():
    return int(time.time() * 1000)


def stamp(at_ms):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms // 1000))


def stamp_ms(at_ms):
    return stamp(at_ms)[:-1] + f".{int(at_ms) % 1000:03}Z"


def fill(duo, log_types, count, hours=(6, 0.13), seed=0):
    """So many events of a log type, or of each of several, from some hours ago up to others.

    As a rule they end eight minutes ago: Duo hides nothing of them, and nothing is in the lookback.
    """
    start, end = ((duo.now_ms() - int(hour * HOUR)) // 1000 * 1000 for hour in hours)
    for log_type in [log_types] if isinstance(log_types, str) else log_types:
        duo.add(log_type, make_events(log_type, count, start, end, seed))


def fill_and_seed(duo, collector, count, *log_types, hours=(6, 1)):
    """A backlog of each log type, and a checkpoint file that is older than all of it."""
    fill(duo, log_types, count, hours)
    collector.seed(**dict.fromkeys(log_types, duo.now_ms() - 7 * HOUR))


def instant(log_type, count, at_ms, spread_us=0):
    """Events of one instant; in a v2 log spread over the microseconds of one ms."""
    events = make_events(log_type, count, at_ms, at_ms + 1, seed=at_ms)
    seconds, ms = divmod(at_ms, 1000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    for number, event in enumerate(events):
        us = ms * 1000 + (number * 7) % 1000 if spread_us else ms * 1000
        if log_type in V1:
            event["isotimestamp"] = f"{text}+00:00"
            event["timestamp"] = seconds
        elif "isotimestamp" in event:
            event["isotimestamp"] = f"{text}.{us:06}+00:00"
            event["timestamp"] = seconds
        elif "ts" in event:
            event["ts"] = f"{text}.{us:06}+00:00"
        else:
            event["surfaced_timestamp"] = at_ms
    return events


def event_times(log_type, events):
    names = LOG_TYPES[log_type].time_fields
    return [next(event[name] for name in names if name in event) for event in events]


def in_ms(log_type, event):
    """When an event of a simulator, or a line of the collector, happened."""
    value = event_times(log_type, [event])[0]
    if isinstance(value, str):
        return datetime.fromisoformat(value).timestamp() * 1000
    return value * LOG_TYPES[log_type].unit_ms


def as_text(event):
    return json.dumps(event, sort_keys=True)


def canonical(events):
    """Events as a multiset: the same one twice is two."""
    return Counter(map(as_text, events))


def without_added(event):
    return {name: value for name, value in event.items() if name not in ADDED}


def events_in(path):
    """The events of a file of lines."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def events_of(results):
    return [event for result in results for event in result.events]


def differences(duo, events, log_types=LOG_TYPES):
    """How many events of the tenant are not among these, and how many of these are too many."""
    lost = doubled = 0
    for log_type in log_types:
        of_type = [without_added(event) for event in events if event["eventtype"] == log_type]
        written, there = canonical(of_type), canonical(duo.events(log_type))
        lost += sum((there - written).values())
        doubled += sum((written - there).values())
    return {"lost": lost, "doubled": doubled}


def assert_complete(duo, result, log_type):
    """Every event of the tenant once, unchanged, in the order of time."""
    assert differences(duo, result.events, [log_type]) == NONE
    times = event_times(log_type, result.of(log_type))
    assert times == sorted(times)


def repeated_and_torn(output, duo, *log_types):
    """The lines of an output that repeat others, and the torn ones; nothing may be lost."""
    assert output.endswith(b"\n")
    lines, torn, forms = Counter(), [], {}
    for line in output[:-1].split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            torn.append(line)
            continue
        lines[line] += 1
        assert event.pop("host") == duo.host
        same = forms.setdefault(as_text(event), line)
        assert same == line, "an event came again in other bytes"
    for fragment in torn:  # merged with an event, it would be the beginning of no line
        assert fragment, "an empty line"
        assert any(line.startswith(fragment) for line in lines), fragment
    published = canonical(
        {**event, "eventtype": name} for name in log_types for event in duo.events(name)
    )
    written = Counter({event: lines[line] for event, line in forms.items()})
    assert not published - written, "lost"
    assert set(written) == set(published), "never published"
    return [forms[event] for event in (written - published).elements()], torn


def holes(collector, log_type):
    """How many holes of a log type the checkpoint file counts."""
    return collector.saved["state"][log_type]["health"]["holes"]


@pytest.fixture
def small_pages(duo, monkeypatch):
    """A function that makes Duo's pages small, so that few events take many pages."""

    def shrink(size):
        for name, log in tenant.LOG_TYPES.items():
            small = dataclasses.replace(log, max_limit=size)
            monkeypatch.setitem(tenant.LOG_TYPES, name, small)
        duo.rules.limit, duo.rules.v1_limit = "clamp", size

    return shrink


@pytest.fixture
def backlog(duo, collector):
    """Six slow pages of telephony, eleven of administrator; a report each 0.4 s at most."""
    fill(duo, "telephony", 5_500)
    fill(duo, "administrator", 1_050)
    duo.rules.v1_limit, duo.rules.latency_s = 100, 0.12
    collector.seed(telephony=now_ms() - 7 * HOUR, administrator=now_ms() - 7 * HOUR)
    collector.environ["DUO_LOG_TYPES"] = "telephony,administrator"
    before(collector, "duo_collector.Reports.EVERY_S = 0.4; duo_collector.Threads.WAKE_S = 0.02")
    return duo


# --missing-from


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


def told(result):
    """What the log says was found: log type: (level, events in the range, missing)."""
    lines = re.findall(
        r"(INFO|WARNING) (\w+): of ([\d,]+) events?\b.*?, ([\d,]+) (?:was |were )?missing from",
        result.stderr,
    )
    return {
        name: (level, *(int(text.replace(",", "")) for text in counts))
        for level, name, *counts in lines
    }


def collect(duo, collector, path, log_types=LOG_TYPES):
    """A pass of the service, after which its next one starts at the lookback: there is a young
    event of each log type."""
    collector.seed(**dict.fromkeys(log_types, now_ms() - 7 * HOUR))
    for log_type in log_types:
        duo.add(
            log_type,
            make_events(log_type, 1, now_ms() - 4 * MINUTE, now_ms() - 3 * MINUTE, seed=99),
        )
    result = append(collector, path, "--once", "--log-types", ",".join(log_types))
    assert result.status == 0, result.stderr


def odd(log_type, number, **more):
    """An event without an id and without a time that can be read."""
    return {LOG_TYPES[log_type].time_fields[0]: "soon", "odd": number, **more}


# One log type in virtual time


def failing_pass(folder, problem, per_minute=50, latency_s=0.0):
    """A pass of telephony in virtual time, in which every request comes to nothing but this, after
    so many s: the times (s) of its requests, and its collector."""
    now = [0.0]
    times = []
    log_type = duo_collector.LOG_TYPES["telephony"]

    def wait(seconds):
        now[0] += seconds
        return False

    def fetch_page(*_):
        times.append(now[0])
        now[0] += latency_s
        raise problem

    settings = duo_collector.Settings(
        base_url=NOBODY,
        log_types=(log_type,),
        requests_per_minute=per_minute,
        checkpoint_file=str(folder / "virtual.json"),
        start_times={log_type: duo_collector.SEED_MS},
    )
    edges = duo_collector.Edges(
        now=lambda: 1.8e9 + now[0],
        monotonic=lambda: now[0],
        wait=wait,
        lock=threading.Lock,
        session=duo_collector.open_session,
        side_by_side=pytest.fail,
    )
    checkpoints = duo_collector.Checkpoints(settings)
    mode = duo_collector.Collection(settings, duo_collector.Output(), checkpoints)
    run = duo_collector.Run(settings, edges, mode, True, None)
    collector = duo_collector.Collector(run, log_type)
    collector.duo.ping = lambda: None
    collector.duo.fetch_page = fetch_page
    collector.collect()
    assert len(times) == collector.requests
    return times, collector


# What is said


def assert_refused(result, status, named):
    """It ended with this status and a single line, which names what is wrong."""
    assert (result.status, result.stdout) == (status, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert " ERROR " in line and named in line


def assert_hidden(*texts):
    """No piece of SECRET, as it is or in base64 at any offset, in any of these."""
    padded = [b"\0" * shift + SECRET.encode() for shift in range(3)]
    forms = [SECRET, *(base64.b64encode(key).decode()[4:-4] for key in padded)]
    pieces = [form[at : at + 12] for form in forms for at in range(len(form) - 11)]
    for text in texts:
        assert not [piece for piece in pieces if piece in text]


# The network


@contextlib.contextmanager
def tls_tenant(folder, certified="127.0.0.1"):
    """A tenant behind TLS, its certificate made out to a name, and a collector that trusts who
    signed it; two pages of each log type."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    with Simulator(tls=context) as simulator:
        collector = Collector(folder, simulator)
        collector.environ["REQUESTS_CA_BUNDLE"] = str(folder / "authority.pem")
        fill_and_seed(simulator, collector, 1100, *DEFAULT)
        yield simulator, collector
