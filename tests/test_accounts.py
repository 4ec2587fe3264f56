"""Child accounts: listed with --accounts, and each collected with its parent's keys."""

import json
import re
import subprocess

import duo_client
import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    DEFAULT,
    HOUR,
    JSON,
    MINUTE,
    NONE,
    ONLY,
    Collector,
    differences,
    fill,
    log_requests,
    now_ms,
)
from duo import LOG_TYPES, Rules, Simulator, make_events

UNKNOWN = "DAUNKNOWN00000000000"


@pytest.fixture
def parent():
    """A parent with five children; the last of them is in another deployment."""
    simulator = Simulator(Rules(application="accounts", api_hostname="url"))
    for number in range(5):
        simulator.add_child(
            f'Kunde {number} – Zoë & "Co"', Rules(deployment="other" if number == 4 else "same")
        )
    with simulator:
        yield simulator


@pytest.fixture
def child(parent):
    return parent.children[0]


@pytest.fixture
def collector(tmp_path, child):
    """Of the first child."""
    return Collector(tmp_path, child)


@pytest.fixture
def of_parent(tmp_path, parent):
    return Collector(tmp_path, parent)


def id_of(child):
    return child.account["account_id"]


def assert_is_all_of(child, events):
    """These are all events of that child, each once, with its host and its id."""
    assert {event["child_account_id"] for event in events} == {id_of(child)}
    assert {event["host"] for event in events} == {child.host}
    assert differences(child, events) == NONE


def test_every_request_names_the_child_and_every_event_does(child, parent, collector):
    child.rules.unknown_parameters = "400"
    fill(child, LOG_TYPES, 1_200, hours=(6, 1))
    result = collector.once("--log-types", ALL)
    assert result.status == 0, result.stderr
    assert_is_all_of(child, result.events)
    assert {request.params.get("account_id") for request in log_requests(child)} == {id_of(child)}
    assert {request.status for request in child.requests} == {
        200
    }  # it checks the signature, parameters included
    assert {request.log_type for request in log_requests(child)} == set(LOG_TYPES)
    assert parent.requests == []
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f'"host":"{child.host}","child_account_id":"{id_of(child)}"' + "}")


@pytest.mark.parametrize(
    "options",
    [
        ["--check"],
        ["--since", "48h", "--until", "30m"],
        ["--since", "48h", "--missing-from", "/dev/null"],
    ],
    ids=" ".join,
)
def test_so_it_is_in_all_that_asks_duo(child, parent, collector, options):
    fill(child, LOG_TYPES, 30, hours=(6, 1))
    result = collector.run(*options, "--log-types", ALL)
    assert result.status == 0, result.stderr
    asked = [request for request in child.requests if request.log_type]
    assert {request.params.get("account_id") for request in asked} == {id_of(child)}
    if options == ["--check"]:
        assert result.stdout == "".join(f"{log_type}: ok\n" for log_type in CHECKPOINT_KEYS)
    else:
        assert_is_all_of(child, result.events)


def test_a_field_of_that_name_in_an_event_gives_way(child, collector):
    event = make_events("telephony", 1, now_ms() - HOUR, now_ms() - HOUR + 1)[0]
    child.add("telephony", [{**event, "child_account_id": "x", "host": "y"}])
    result = collector.once(*ONLY)
    (line,) = result.stdout.splitlines()
    assert (line.count('"child_account_id"'), json.loads(line)["child_account_id"]) == (
        1,
        id_of(child),
    )
    assert collector.once(*ONLY).stdout == ""


def test_a_tenant_of_its_own_has_no_such_field(tmp_path):
    with Simulator() as duo:
        fill(duo, LOG_TYPES, 5, hours=(6, 1))
        result = Collector(tmp_path, duo).once("--log-types", ALL, environ={"DUO_ACCOUNT_ID": ""})
    assert (result.status, len(result.events)) == (0, 30), result.stderr
    assert not any("child_account_id" in event for event in result.events)
    assert not any("account_id" in request.params for request in duo.requests)


@pytest.mark.parametrize(
    "account_id",
    ["DA123", "DACHILD000000000000 ", "DACHILD00000000000-1", "DACHILD00000000000011", "é" * 20],
)
def test_an_id_that_can_be_none_is_78(child, parent, collector, account_id):
    result = collector.once(environ={"DUO_ACCOUNT_ID": account_id})
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, child.requests) == (78, "", [])
    assert "DUO_ACCOUNT_ID" in line and "20 letters and digits" in line and "--accounts" in line


def test_the_metrics_tell_children_apart(parent, tmp_path):
    for number, child in enumerate(parent.children[:2]):
        folder = tmp_path / str(number)
        folder.mkdir()
        collector = Collector(folder, child)
        assert collector.once(environ={"DUO_METRICS_FILE": str(folder / "duo.prom")}).status == 0
        hosts = set(re.findall('host="([^"]*)"', (folder / "duo.prom").read_text()))
        assert len(hosts) == 1 and id_of(child) in hosts.pop()


def test_the_checkpoint_file_of_another_child_is_refused(child, parent, collector, tmp_path):
    """On the same host too: the id is what differs."""
    fill(child, LOG_TYPES, 20, hours=(6, 1))
    assert collector.once().status == 0
    kept = collector.checkpoint_file.read_bytes()
    asked = len(child.requests)
    for environ in (
        {"DUO_ACCOUNT_ID": id_of(parent.children[1])},
        {"DUO_ACCOUNT_ID": None},
        parent.children[1].settings,
    ):
        for options in (["--once"], ["--check"], ["--since", "2h", "--missing-from", "/dev/null"]):
            result = collector.run(*options, environ=environ)
            (line,) = result.stderr.splitlines()
            assert (result.status, result.stdout) == (78, ""), line
            assert f"{child.host}/{id_of(child)}" in line and str(collector.checkpoint_file) in line
    assert (len(child.requests), parent.children[1].requests) == (asked, [])
    assert collector.checkpoint_file.read_bytes() == kept
    assert (
        collector.run("--status", environ=dict.fromkeys(("DUO_API_HOST", "DUO_ACCOUNT_ID"))).status
        == 0
    )
    assert collector.once().status == 0


def listed(result):
    assert result.status == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def noted(simulator):
    """A list that fills with what a simulator is sent: method, target, the headers, the body."""
    seen, respond = [], simulator.respond

    def note(method, target, headers, connection, body=b""):
        seen.append(
            (method, target, {name.lower(): value for name, value in headers.items()}, body)
        )
        return respond(method, target, headers, connection, body)

    simulator.respond = note
    return seen


@pytest.mark.parametrize("api_hostname", ["url", "host"])
def test_accounts_lists_what_duos_own_client_lists_by_the_same_request(tmp_path, api_hostname):
    simulator = Simulator(Rules(application="accounts", api_hostname=api_hostname))
    for number in range(3):
        simulator.add_child(f'Kunde {number} – Zoë & "Co"\n')
    with simulator as parent:
        seen = noted(parent)
        client = duo_client.Accounts(
            parent.ikey, parent.skey, parent.host, ca_certs="HTTP", port=parent.port
        )
        wanted = client.get_child_accounts()
        result = Collector(tmp_path, parent).run("--accounts")
    assert listed(result) == wanted == [child.account for child in parent.children]
    assert result.stdout.isascii() and result.stdout.count("\n") == 3
    assert list(tmp_path.iterdir()) == []
    theirs, ping, ours = seen  # the ping tells Duo's time
    assert ping[:2] == ("GET", "/auth/v2/ping")
    assert ours[:2] == theirs[:2] == ("POST", "/accounts/v1/account/list")
    assert ours[3] == theirs[3] == b"{}"
    assert ours[2].get("content-type") == theirs[2]["content-type"] == "application/json"


def test_no_children_are_no_lines(of_parent, parent):
    parent.children.clear()
    result = of_parent.run("--accounts")
    assert (result.status, result.stdout) == (0, "")


NOT_ACCOUNTS = "use the host and keys of an Accounts API application"


@pytest.mark.parametrize("code", [40301, 40102])
def test_keys_of_another_application_are_told(parent, of_parent, code):
    parent.rules.application, parent.rules.accounts_code = "admin", code
    result = of_parent.run("--accounts")
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout) == (77, "")
    assert f"({code // 100} {code} " in line and NOT_ACCOUNTS in line, line


@pytest.mark.parametrize(
    "answer, status, words",
    [
        ((503, {}, b"down"), 75, "503"),
        (
            (429, JSON, b'{"code":42901,"message":"Too Many Requests","stat":"FAIL"}'),
            75,
            "rate-limited by Duo",
        ),
        (
            (500, JSON, b'{"code":50001,"message":"unknown internal error","stat":"FAIL"}'),
            75,
            "Duo fails",
        ),
        ((200, JSON, b'{"stat":"OK","response":{}}'), 75, "does not document"),
        ((200, {"Content-Type": "text/html"}, b"<html>log in</html>"), 75, "a proxy or a filter"),
        (
            (404, JSON, b'{"code":40401,"message":"Resource not found","stat":"FAIL"}'),
            77,
            "404 40401",
        ),
    ],
)
def test_what_else_may_come_of_it_is_told_in_a_line(parent, of_parent, answer, status, words):
    respond = parent.respond

    def spoilt(*arguments):
        return respond(*arguments)._replace(status=answer[0], headers=answer[1], body=answer[2])

    parent.respond = spoilt
    result = of_parent.run("--accounts")
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout) == (status, ""), line
    assert words in line and "Traceback" not in line


def test_a_wrong_local_clock_does_not_keep_accounts_from_being_listed(parent, of_parent):
    parent.rules.clock_offset = 900.0
    assert len(listed(of_parent.run("--accounts"))) == 5
    assert [request.status for request in parent.requests] == [200, 200]


def test_accounts_goes_with_nothing_that_collects(of_parent, parent):
    for options in (["--once"], ["--check"], ["--status"], ["--since", "2h"]):
        result = of_parent.run("--accounts", *options)
        assert (result.status, result.stdout, parent.requests) == (2, "", [])


@pytest.mark.parametrize("code", [40002, 40003, 40301])
def test_a_child_in_another_deployment_is_told(parent, tmp_path, code):
    other = parent.children[4]
    other.rules.deployment_code = code
    collector = Collector(tmp_path, other)
    results = [collector.once(), collector.run("--check")]
    assert [result.status for result in results] == [77, 77], results[0].stderr
    for text in results[0].stderr, results[1].stdout:
        assert f"({code // 100} {code} Cross-deployment Admin API usage" in text
        assert "it is in another deployment" in text
        assert "needs an Admin API application of its own" in text
    assert "--accounts" not in results[0].stderr


@pytest.mark.parametrize("code", [40301, 40102, 40401, 40002])
def test_an_id_that_the_parent_does_not_have_is_told(child, parent, collector, code):
    child.rules.account_code = code
    result = collector.once(environ={"DUO_ACCOUNT_ID": UNKNOWN})
    lines = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert (result.status, len(lines)) == (75 if code == 40002 else 77, 3)
    for line in lines:
        assert f"({code // 100} {code} " in line
        assert "DUO_ACCOUNT_ID" in line and "--accounts" in line, line


@pytest.mark.parametrize("code", [40102, 40301])
def test_a_childs_host_without_its_id_is_refused(child, parent, collector, code):
    child.rules.no_account_code = code
    result = collector.once(environ={"DUO_ACCOUNT_ID": None})
    assert (result.status, result.stdout) == (77, "")
    assert f"({code // 100} {code} " in result.stderr


def test_the_parents_own_logs_are_not_to_be_had_with_these_keys(parent, of_parent):
    result = of_parent.once()
    assert (result.status, result.stdout) == (77, ""), result.stderr
    assert "403 40301" in result.stderr


def test_a_log_that_one_child_does_not_have_stops_no_other_log(child, parent, collector):
    fill(child, LOG_TYPES, 20, hours=(6, 1))
    child.rules.missing["telephony"] = 403
    result = collector.once()
    assert (result.status, len(result.events)) == (77, 40)
    assert "the account's plan does not include this log" in result.stderr


def settings_files(accounts, parent, folder):
    """A settings file, a checkpoint file and an output for each line of --accounts, as a recipe
    would make them."""
    key = folder / "provider.key"
    key.write_text(parent.skey + "\n")
    key.chmod(0o600)
    for account in accounts:
        path = folder / f"{account['account_id']}.env"
        path.write_text(
            f"DUO_API_HOST={account['api_hostname']}\nDUO_ACCOUNT_ID={account['account_id']}\n"
            f"DUO_INTEGRATION_KEY={parent.ikey}\nDUO_SECRET_KEY_FILE=provider.key\n"
            f"DUO_CHECKPOINT_FILE={account['account_id']}/checkpoints.json\nDUO_REQUESTS_PER_MINUTE=60000\n"
        )
        path.chmod(0o600)
        (folder / account["account_id"]).mkdir()
        yield path


def test_children_at_once_end_up_each_in_its_file(parent, of_parent, tmp_path):
    children = parent.children[:4]
    for seed, child in enumerate(children):
        fill(child, LOG_TYPES, 300, hours=(6, 1), seed=seed)
        fill(child, LOG_TYPES, 20, hours=(6, 1), seed=99)  # the same events everywhere
        child.rules.short_pages, child.rules.latency_s = True, 0.02
    accounts = listed(of_parent.run("--accounts"))
    assert [account["name"] for account in accounts] == [
        child.account["name"] for child in parent.children
    ]
    paths = list(settings_files(accounts[:4], parent, tmp_path))
    command = of_parent.command()[:2]  # without its --env-file
    for turn in range(2):
        started = []
        for path in paths:
            with open(path.with_suffix(".jsonl"), "ab") as stdout:
                options = ["--env-file", str(path), "--once", "--log-types", ALL]
                started.append(
                    subprocess.Popen(
                        [*command, *options],
                        stdin=subprocess.DEVNULL,
                        stdout=stdout,
                        stderr=subprocess.PIPE,
                        env={"PATH": of_parent.environ["PATH"]},
                    )
                )
        ends = [process.communicate(timeout=60)[1].decode() for process in started]
        assert [process.returncode for process in started] == [0] * 4, ends
        assert not any(parent.skey in end for end in ends)
        if turn == 0:
            for seed, child in enumerate(children):
                start = now_ms() - 4 * MINUTE
                child.add(
                    "telephony",
                    make_events("telephony", 5, start, start + MINUTE, seed=1_000 + seed),
                )
    for child, path in zip(children, paths):
        lines = path.with_suffix(".jsonl").read_bytes().splitlines()
        assert len(lines) == 6 * 320 + 5
        assert_is_all_of(child, [json.loads(line) for line in lines])
        document = json.loads((tmp_path / id_of(child) / "checkpoints.json").read_text())
        assert document["account"] == f"{child.host}/{id_of(child)}"


def test_missing_from_a_file_that_holds_several_children(parent, tmp_path):
    """Two of them with the same events, byte for byte, so that only the id tells whose they are."""
    children = parent.children[:3]
    for seed, child in enumerate(children):
        fill(child, LOG_TYPES, 40, hours=(6, 1), seed=min(seed, 1))
    path, kept = tmp_path / "all.jsonl", []
    for number, child in enumerate(children):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = Collector(folder, child).once("--log-types", ALL).stdout.splitlines(keepends=True)
        kept += [line for at, line in enumerate(lines) if at % 3 != number]
        (folder / "checkpoints.json").unlink()
    path.write_text("".join(kept))
    for number, child in enumerate(children):
        with open(path, "ab") as stdout:
            result = Collector(tmp_path / str(number), child).run(
                "--since", "48h", "--missing-from", path, "--log-types", ALL, stdout=stdout
            )
        assert result.status == 0, result.stderr
        assert result.stderr.count("WARNING") == len(LOG_TYPES)
    lines = path.read_text().splitlines()
    assert len(lines) == 3 * 240
    for child in children:
        assert_is_all_of(
            child,
            [
                event
                for event in map(json.loads, lines)
                if event["child_account_id"] == id_of(child)
            ],
        )


def test_a_service_for_a_child_stops_and_goes_on(child, collector):
    fill(child, LOG_TYPES, 50, hours=(6, 1))
    collector.seed(**dict.fromkeys(DEFAULT, now_ms() - 7 * HOUR))
    process = collector.start("--interval", "0.2")
    events = [json.loads(process.stdout.readline()) for _ in range(150)]
    start = now_ms() - 4 * MINUTE
    child.add("telephony", make_events("telephony", 5, start, start + MINUTE, seed=3))
    events += [json.loads(process.stdout.readline()) for _ in range(5)]
    process.terminate()
    stdout, _ = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (0, b"")
    child.add("telephony", make_events("telephony", 5, start, start + MINUTE, seed=4))
    events += collector.once().events
    assert len(events) == 160
    telephony = [event for event in events if event["eventtype"] == "telephony"]
    assert sorted(event["telephony_id"] for event in telephony) == sorted(
        event["telephony_id"] for event in child.events("telephony")
    )
