"""The simulated tenant where Duo's own client cannot vouch for it, and the demo."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import formatdate, parsedate_to_datetime

import duo as tenant
import duo_client
import duo_client.client
import pytest
import requests
from conftest import HOUR, MINUTE, SCRIPT
from duo import LOG_TYPES, Rules, Simulator, make_events

ROOT = SCRIPT.parent

# The demo


def demo_environment(home):
    # The environment of this run, as two tests at once may not make one.
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb"}
    return {**environ, "VENV": sys.prefix}


@pytest.fixture
def terminal():
    """One at a time: in a terminal the demo writes its file."""
    with open(ROOT / "tests" / "demo") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield demo_in_a_terminal


def demo_in_a_terminal(home, columns, interrupt_after_s=None, term="dumb"):
    """(exit status, what the terminal was sent)"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [ROOT / "tests" / "demo"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**demo_environment(home), "TERM": term},
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # all have closed the terminal
            break
        if not piece:
            break
        said += piece
        if interrupt_after_s is not None and b"Collecting" in said:
            time.sleep(interrupt_after_s)
            interrupt_after_s = None
            os.killpg(process.pid, signal.SIGINT)
    os.close(ours)
    return process.wait(timeout=50), said.decode().replace("\r\n", "\n")


def test_the_demo_in_a_pipe_prints_events_alone(tmp_path):
    environment = {**demo_environment(tmp_path), "DUO_LOG_TYPES": "none of Duo's"}
    run = subprocess.run(
        [ROOT / "tests" / "demo"], capture_output=True, text=True, env=environment, timeout=50
    )
    assert run.returncode == 0
    counts = dict.fromkeys(("authentication", "administrator", "telephony"), 0)
    for line in run.stdout.splitlines():
        counts[json.loads(line)["eventtype"]] += 1
    assert set(counts.values()) == {100}
    said = [line.split(" ", 1)[1] for line in run.stderr.splitlines()]
    assert sorted(line.split(":")[0] for line in said) == [
        "INFO administrator",
        "INFO authentication",
        "INFO telephony",
    ]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_the_demo_in_a_terminal_shows_a_few_events_and_what_is_next(term, terminal, tmp_path):
    status, said = terminal(tmp_path, 60, term=term)
    assert status == 0
    before, events, after = re.split(r"shortened.*\n\n|\n\nAll ", said)
    assert ("% " in before.replace(",", " ")) == (term == "xterm"), before
    assert len(re.findall(r"INFO (?:authentication|administrator|telephony): ", before)) == 3
    assert "180 d" not in said
    lines = events.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("{") and len(line) <= 60 for line in lines)
    written = (ROOT / "demo.jsonl").read_text().splitlines()
    assert after.startswith(f"{len(written):,} lines are in demo.jsonl")
    assert all(any(line.startswith(start) for line in written) for start in lines)
    commands = re.findall(r"^  (\S.*)$", after, re.MULTILINE)
    assert [command.split()[-1] for command in commands] == ["demo.jsonl", "--check", "README.md"]


def test_the_demo_ends_cleanly_on_ctrl_c(terminal, tmp_path):
    status, said = terminal(tmp_path, 80, interrupt_after_s=1)
    assert status == 75
    assert "stopped by a signal" in said
    assert "Traceback" not in said
    assert "Next" not in said


# The tenant


def ask(duo, log_type, date=None, **parameters):
    """One signed request, as Duo's client signs it: (status, headers, the JSON that came)."""
    host, path = duo.host, tenant.LOG_TYPES[log_type].path
    date, lists = date or formatdate(), {name: [str(value)] for name, value in parameters.items()}
    signed = duo_client.client.sign(
        duo.ikey,
        duo.skey,
        "GET",
        host,
        path,
        date,
        5,
        lists,
        body="",
        digestmod="sha512",
        additional_headers={},
    )
    url = f"{duo.url}{path}?{urllib.parse.urlencode(lists, doseq=True)}"
    request = urllib.request.Request(url, headers={"Date": date, "Authorization": signed})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=30
        ) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers, json.loads(refusal.read())


def window(duo, hours=1):
    return {
        "mintime": duo.now_ms() - hours * HOUR,
        "maxtime": duo.now_ms() - 2 * MINUTE,
        "sort": "ts:asc",
    }


def telephony(duo, count, hours=1):
    duo.add(
        "telephony",
        make_events("telephony", count, duo.now_ms() - hours * HOUR, duo.now_ms() - 5 * MINUTE),
    )


def test_a_stall_hides_a_share_of_the_events_until_its_end():
    clock = [1.7e9]
    duo = Simulator(wall=lambda: clock[0], monotonic=lambda: clock[0])
    now = duo.now_ms()
    duo.add("telephony", make_events("telephony", 100, now - 3 * HOUR, now - 2 * HOUR))
    duo.stall(now - 3 * HOUR, now + HOUR, 0.5, ["telephony", "activity"])
    for log_type in ("telephony", "activity"):
        duo.add(log_type, make_events(log_type, 100, now - 2 * HOUR, now - HOUR))
    duo.add("authentication", make_events("authentication", 100, now - 2 * HOUR, now - HOUR))

    def shown():
        stores = {name: duo._stores[name] for name in ("telephony", "activity", "authentication")}
        for store in stores.values():
            store.publish(duo.now_ms())
        return {name: len(store.rows) for name, store in stores.items()}

    before = shown()
    assert before["authentication"] == 100
    assert 70 < before["telephony"] < 130
    assert 30 < before["activity"] < 70
    clock[0] += 3600
    assert shown() == {"telephony": 200, "activity": 100, "authentication": 100}


@pytest.mark.parametrize(
    "fault, kept", [("no_metadata", None), ("no_cursor", {"total_objects": 9})]
)
def test_the_nth_page_without_metadata_or_without_a_cursor(fault, kept, duo):
    telephony(duo, 9)
    duo.inject("telephony", None, fault)
    pages = [ask(duo, "telephony", limit=5, **window(duo))[2]["response"] for _ in range(3)]
    assert [len(page["items"]) for page in pages] == [5, 5, 5]
    assert pages[1].get("metadata") == kept
    assert "next_offset" in pages[0]["metadata"]
    assert pages[0] == pages[2]


def test_metadata_in_an_event_of_a_v1_log_are_not_those_of_the_page(duo):
    event = {
        "timestamp": duo.now_ms() // 1000 - 600,
        "metadata": {"next_offset": "none"},
        "response": [],
    }
    duo.add("administrator", event)
    duo.inject("administrator", "no_metadata", "no_cursor")
    for _ in range(2):
        assert ask(duo, "administrator", mintime=event["timestamp"] - 1)[2]["response"] == [event]


def test_a_cursor_that_is_refused_after_some_pages_of_a_walk(duo):
    duo.rules.cursor_pages = 2
    duo.add(
        "trust_monitor",
        make_events("trust_monitor", 30, duo.now_ms() - HOUR, duo.now_ms() - 5 * MINUTE),
    )
    span = {"mintime": duo.now_ms() - 2 * HOUR, "maxtime": duo.now_ms() - 2 * MINUTE, "limit": 5}
    for _ in range(2):  # each walk anew
        first = ask(duo, "trust_monitor", **span)[2]["response"]["metadata"]["next_offset"]
        second = ask(duo, "trust_monitor", **span, offset=first)[2]["response"]["metadata"][
            "next_offset"
        ]
        assert ask(duo, "trust_monitor", **span, offset=second)[0] == 400


def test_a_short_page_where_cursors_fail_reaches_beyond_its_first_ms(duo):
    duo.rules.short_pages, duo.rules.cursor_pages = True, 1
    at_ms = duo.now_ms() - 10 * MINUTE
    duo.add(
        "telephony",
        make_events("telephony", 3, at_ms, at_ms + 1)
        + make_events("telephony", 9, at_ms + 1000, at_ms + 2000),
    )
    counts = {
        len(ask(duo, "telephony", limit=1000, **window(duo))[2]["response"]["items"])
        for _ in range(40)
    }
    assert min(counts) >= 4
    assert len(counts) > 3


def test_a_proxys_date_is_off_while_duo_goes_by_its_own(duo):
    duo.rules.date_offset = 1200
    status, headers, _ = ask(duo, "telephony", **window(duo))
    assert status == 200
    assert abs(parsedate_to_datetime(headers["Date"]).timestamp() - time.time() - 1200) < 5
    with urllib.request.urlopen(f"{duo.url}/auth/v2/ping") as answer:
        assert (
            abs(parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time() - 1200) < 5
        )
        assert abs(json.loads(answer.read())["response"]["time"] - time.time()) < 5
    assert ask(duo, "telephony", date=formatdate(time.time() + 1200), **window(duo))[0] == 401


@pytest.mark.parametrize("code", [40105, 40104])
def test_the_code_and_the_words_for_a_date_that_is_off(code, duo):
    duo.rules.date_code, duo.rules.date_message = code, "Bad request timestamp, it says"
    status, _, answer = ask(duo, "telephony", date=formatdate(time.time() - 3600), **window(duo))
    assert (status, answer["code"], answer["message"]) == (
        401,
        code,
        "Bad request timestamp, it says",
    )


def test_duos_time_is_not_to_be_had(duo):
    def ping():
        try:
            with urllib.request.urlopen(f"{duo.url}/auth/v2/ping") as answer:
                return answer.status, json.loads(answer.read())["response"]
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())["stat"]

    duo.rules.ping_faults = ("error_404",)
    assert [ping(), ping()] == [(404, "FAIL")] * 2
    duo.rules.ping_faults = ("no_time",)
    assert ping() == (200, {})
    assert ask(duo, "telephony", **window(duo))[0] == 200


def test_events_that_are_no_json_and_a_slow_link(duo):
    telephony(duo, 3)
    duo.inject("telephony", "nan", "deep")
    assert str(ask(duo, "telephony", **window(duo))[2]["response"]["items"][0]["score"]) == "nan"
    with pytest.raises(RecursionError):
        ask(duo, "telephony", **window(duo))
    duo.rules.bytes_per_s = 500
    began = time.monotonic()
    assert len(ask(duo, "telephony", **window(duo))[2]["response"]["items"]) == 3
    assert time.monotonic() - began > 1


@pytest.fixture
def parent():
    duo = Simulator(Rules(application="accounts"))
    for name, rules in (
        ("Acme", Rules()),
        ("Bäckerei", Rules()),
        ("Elsewhere", Rules(deployment="other")),
    ):
        duo.add_child(name, rules)
    with duo:
        for child, count in zip(duo.children, (3, 5, 7)):
            telephony(child, count)
        yield duo


def accounts_of(duo):
    return duo_client.Accounts(
        duo.ikey, duo.skey, duo.host, port=duo.port, ca_certs="HTTP"
    ).get_child_accounts()


def test_duos_own_client_gets_the_list_of_children_and_their_logs(parent):
    listed = accounts_of(parent)
    assert [account["name"] for account in listed] == ["Acme", "Bäckerei", "Elsewhere"]
    assert [account["api_hostname"] for account in listed] == [
        f"127.0.0.{n}:{parent.port}" for n in (2, 3, 4)
    ]
    for account, count in zip(listed[:2], (3, 5)):
        host, _, port = account["api_hostname"].partition(":")
        admin = duo_client.Admin(parent.ikey, parent.skey, host, port=int(port), ca_certs="HTTP")
        admin.account_id = account["account_id"]
        span = window(parent)
        page = admin.get_telephony_log(
            api_version=2, mintime=span["mintime"], maxtime=span["maxtime"]
        )
        assert len(page["items"]) == count


@pytest.mark.parametrize("version", [2, 4, 5])
def test_the_list_is_signed_with_its_body(version, parent):
    client = duo_client.client.Client(parent.ikey, parent.skey, parent.host, ca_certs="HTTP", port=parent.port,
                                      sig_version=version, digestmod="sha512")  # fmt: skip
    assert len(client.json_api_call("POST", tenant.ACCOUNT_LIST, {})) == 3
    client.skey = "0" * 40
    with pytest.raises(RuntimeError, match="Invalid signature"):
        client.json_api_call("POST", tenant.ACCOUNT_LIST, {})


def test_what_the_accounts_api_refuses(parent, duo):
    acme, elsewhere = parent.children[0], parent.children[2]
    with pytest.raises(RuntimeError, match="403 Access forbidden"):
        accounts_of(duo)
    mine = acme.account["account_id"]
    assert ask(acme, "telephony", account_id=mine, **window(acme))[0] == 200
    refusals = [
        ask(acme, "telephony", **window(acme)),
        ask(acme, "telephony", account_id="DA" + "X" * 18, **window(acme)),
        ask(parent, "telephony", **window(acme)),
        ask(elsewhere, "telephony", account_id=elsewhere.account["account_id"], **window(acme)),
    ]
    assert [(status, answer["code"]) for status, _, answer in refusals] == [
        (401, 40102), (403, 40301), (403, 40301), (400, 40002)]  # fmt: skip
    assert "Cross-deployment Admin API usage" in refusals[3][2]["message"]


def test_the_command_line_starts_a_parent_with_children():
    command = [
        sys.executable,
        str(SCRIPT.parent / "tests" / "duo"),
        "--children",
        "3",
        "--events",
        "10",
        "--stall",
        "24:-1:0.5:telephony",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        settings = dict(process.stdout.readline().strip().split("=", 1) for _ in range(3))
        _, port = settings["DUO_API_HOST"].rsplit(":", 1)
        keys = settings["DUO_INTEGRATION_KEY"], settings["DUO_SECRET_KEY"]
        listed = duo_client.Accounts(
            *keys, "127.0.0.1", port=int(port), ca_certs="HTTP"
        ).get_child_accounts()
        assert [account["api_hostname"] for account in listed] == [
            f"127.0.0.{n}:{port}" for n in (2, 3, 4)
        ]
    finally:
        process.terminate()
        process.communicate()


def plain(duo, log_type="telephony", accepts="gzip", **parameters):
    """The same question as ask's with requests: its answer."""
    path, date = LOG_TYPES[log_type].path, formatdate()
    lists = {name: [str(value)] for name, value in (parameters or window(duo)).items()}
    signed = duo_client.client.sign(
        duo.ikey, duo.skey, "GET", duo.host, path, date, 5, lists, body="", digestmod="sha512",
        additional_headers={},
    )  # fmt: skip
    headers = {"Date": date, "Authorization": signed, "Accept-Encoding": accepts}
    return requests.get(duo.url + path, lists, headers=headers, timeout=30)


def test_a_good_answer_is_compressed_where_that_is_accepted(duo):
    telephony(duo, 900)
    span = window(duo, hours=2)
    compressed, whole = plain(duo, limit=900, **span), plain(duo, accepts="identity")
    assert len(compressed.json()["response"]["items"]) == 900
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in compressed.headers
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    for answer in (compressed, whole):
        assert answer.headers["Server"] == "Duo/1.0"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["ETag"]
    duo.inject("telephony", "cut")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        plain(duo)
    duo.skey = "0" * 40
    duo.ikey = "DI" + "Y" * 18
    refused = requests.get(duo.url + LOG_TYPES["telephony"].path, timeout=30)
    assert refused.status_code == 401
    expected = {"Server", "Date", "Content-Type", "Content-Length", "Connection"}
    assert set(refused.headers) == expected


def limited(**rules):
    """A tenant in time that stands still, its clock, and what answers a request at a second."""
    clock = [1.7e9]
    duo = Simulator(Rules(**rules), wall=lambda: clock[0], monotonic=lambda: clock[0])

    def waits(at_s):
        clock[0] = 1.7e9 + at_s
        return duo._limiter.wait_s("account", clock[0], duo.rules)

    return duo, waits


def test_a_limit_that_lasts_refuses_everything_for_so_long():
    _, waits = limited(rate_limit=2, limit_lasts_s=120)
    assert [waits(at_s) for at_s in (0, 1, 2, 65, 121, 123)] == [0, 0, 120, 57, 1, 0]
    _, waits = limited(rate_limit=2)
    assert [waits(at_s) for at_s in (0, 1, 2, 65)] == [0, 0, 58, 0]


@pytest.mark.parametrize("shape", ["sliding", "fixed", "bucket"])
def test_other_clients_eat_the_quota(shape):
    def let_through(others):
        _, waits = limited(rate_limit=60, other_clients=others, rate_shape=shape)
        return sum(waits(at_s + 0.25) == 0 for at_s in range(640, 1240))  # whole fixed windows

    assert let_through(0) >= 590
    assert 240 <= let_through(30) <= 400
    assert let_through(6000) < 30


def test_how_long_a_limit_lasts_is_in_x_retry_after(duo):
    duo.rules.rate_limit, duo.rules.retry_after, duo.rules.limit_lasts_s = 1, "x_seconds", 600
    assert ask(duo, "telephony", **window(duo))[0] == 200
    status, headers, _ = ask(duo, "telephony", **window(duo))
    assert status == 429
    assert (headers["X-Retry-After"], headers["Retry-After"]) == ("600", None)


def test_an_empty_page_has_a_cursor_that_comes_again(duo):
    duo.rules.empty_page = "cursor"
    span = window(duo)
    for log_type in ("authentication", "telephony"):
        first = ask(duo, log_type, **span)[2]["response"]["metadata"]
        cursor = first["next_offset"]
        assert first["total_objects"] == 0
        assert cursor
        if isinstance(cursor, list):
            cursor = ",".join(cursor)
        second = ask(duo, log_type, **span, next_offset=cursor)[2]["response"]["metadata"]
        assert second == first


def test_two_events_a_minute_apart_share_an_id(duo):
    duo.rules.shared_ids = True
    for log_type in ("authentication", "activity", "telephony"):
        log = LOG_TYPES[log_type]
        now = duo.now_ms()
        duo.add(log_type, make_events(log_type, 20, now - HOUR, now - 5 * MINUTE))
        stored = duo.events(log_type)
        ids = [event[log.id_field] for event in stored]
        assert (len(ids), len(set(ids))) == (22, 20)
        times = {}
        for row in duo._stores[log_type].rows:
            times.setdefault(row.id, []).append(row.time_us)
        apart = [max(of_id) - min(of_id) for of_id in times.values() if len(of_id) > 1]
        assert apart == [60_000_000] * 2


def test_an_answer_takes_longer_for_one_log_type():
    duo = Simulator(Rules(latency_s={"telephony": 7}))
    delays = [
        duo.respond("GET", path, {}, 1).delay_s
        for path in (LOG_TYPES["telephony"].path, LOG_TYPES["activity"].path, "/auth/v2/ping")
    ]
    assert delays == [7, 0, 0]
    with pytest.raises(ValueError, match="phone"):
        duo.rules.latency_s = {"phone": 1}


@pytest.mark.parametrize(
    "fault, status, body",
    [(f"html_{status}", status, b"<html>") for status in (200, 401, 403, 404, 407, 502)]
    + [("empty_401", 401, b""), ("fail_1000", 200, b'{"stat":"FAIL","code":1000,')],
)
def test_what_is_answered_in_place_of_duo(fault, status, body, duo):
    duo.inject("telephony", fault)
    answer = plain(duo)
    assert answer.status_code == status
    assert answer.content[: len(body) or None] == body
    assert "Server" not in answer.headers


@pytest.mark.parametrize("log_type", LOG_TYPES)
def test_a_good_answer_without_its_list_or_with_another(log_type, duo):
    now = duo.now_ms()
    duo.add(log_type, make_events(log_type, 3, now - HOUR // 2, now - 5 * MINUTE))
    duo.inject(log_type, "no_list", "other_list")
    span = window(duo)
    if LOG_TYPES[log_type].cursor is None:
        span = {"mintime": span["mintime"] // 1000}
    none, other = (ask(duo, log_type, **span)[2] for _ in range(2))
    assert none["stat"] == other["stat"] == "OK"
    lists = [value for value in none["response"].values() if isinstance(value, list)]
    assert lists == []
    assert len(other["response"]["entries"]) == 3
    assert LOG_TYPES[log_type].list_key not in other["response"]
