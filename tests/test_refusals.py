"""401, 403 and 404: told with their most likely reason, and no reason to stop another log type."""

import json
import re

import pytest
from conftest import DEFAULT, JSON, NONE, ONLY, differences, fill, log_requests, running


@pytest.mark.parametrize("status", [403, 404, 400])
def test_a_log_type_that_duo_refuses_does_not_stop_the_others(duo, collector, status):
    fill(duo, DEFAULT, 30)
    duo.rules.missing["authentication"] = status
    result = collector.once()
    assert result.status == (75 if status == 400 else 77)
    assert differences(duo, result.events, ["administrator", "telephony"]) == NONE
    asked = [request.log_type for request in log_requests(duo)]
    assert asked.count("authentication") == 1
    said = f"ERROR authentication: 0 events in 1 request, up to [^ ]+; Duo [^\n]*{status}"
    assert re.search(said, result.stderr)


@pytest.mark.parametrize("mode", ["--check", "--once"])
@pytest.mark.parametrize("log_type", DEFAULT)
def test_a_403_names_the_permission_and_the_plan(duo, collector, log_type, mode):
    duo.rules.missing[log_type] = 403
    result = collector.run(mode)
    lines = (result.stdout + result.stderr).splitlines()
    (line,) = [line for line in lines if f"{log_type}: " in line and "403" in line]
    assert result.status == 77
    assert 'tick "Grant read log" in the Duo Admin Panel' in line
    assert "If these keys can read other logs, the account's plan does not include this" in line


def test_a_refusal_with_http_200_is_no_permission(duo, collector):
    body = b'{"stat": "FAIL", "code": 40301, "message": "Access forbidden"}'
    for options in (("--once",), ("--check",)):
        duo.inject("telephony", (200, JSON, body))
        result = collector.run(*options, *ONLY)
        assert result.status == 77 and 'tick "Grant read log"' in result.stdout + result.stderr, (
            result
        )


def test_wrong_keys_are_tried_once_and_explained(duo, collector):
    result = collector.once(environ={"DUO_SECRET_KEY": "0" * 40})
    assert (result.status, len(log_requests(duo)), result.stdout) == (77, 3, "")
    assert "401 40103 Invalid signature in request credentials" in result.stderr
    assert "stray spaces" in result.stderr
    assert list(collector.saved) == ["state"]


def test_77_outweighs_75(duo, collector):
    fill(duo, DEFAULT, 5)
    duo.rules.missing["administrator"] = 403
    headers = {"Retry-After": "1000"}
    duo.inject("telephony", (503, headers, b"down"))
    result = collector.once()
    assert result.status == 77
    assert "telephony: 0 events in 1 request" in result.stderr
    assert differences(duo, result.events, ["authentication"]) == NONE


def test_a_refusal_is_told_by_each_pass_of_the_loop(duo, collector):
    """And the other log types go on."""
    fill(duo, "authentication", 20)
    duo.rules.missing["telephony"] = 403
    options = ["--log-types", "telephony,authentication", "--interval", "0.2"]
    lines = []
    with running(collector, *options) as process:
        while sum(b"ERROR telephony" in line for line in lines) < 5:
            lines.append(process.stderr.readline())
        duo.rules.missing.clear()
        while not any(b"INFO telephony: 0 events" in line for line in lines):
            lines.append(process.stderr.readline())
    told = [line for line in lines if b"ERROR telephony" in line]
    for line in told:
        assert b"Duo refuses the permission (403 40301 " in line and b"plan" in line, line
    assert sum(b"INFO authentication: " in line for line in lines) >= 3


CODES = {  # Duo's message, the exit status, what to do about it
    40001: ("Missing required request parameters", 75, "check the since time"),
    40002: ("Invalid request parameters", 75, "check the since time"),
    40003: ("Duplicate resource", 75, "check the since time"),
    40101: ("Missing request credentials", 77, "a proxy strips it"),
    40102: (
        "Invalid integration key in request credentials",
        77,
        "DUO_INTEGRATION_KEY is not known at DUO_API_HOST",
    ),
    40103: (
        "Invalid signature in request credentials",
        77,
        "DUO_INTEGRATION_KEY does not match DUO_SECRET_KEY",
    ),
    40104: ("Missing request timestamp", 77, "a proxy strips it"),
    40105: ("Bad request timestamp", 77, "though it is Duo's own"),
    40112: (
        "Signature type is not supported",
        77,
        "are the keys those of an Admin API application",
    ),
    40301: ("Access forbidden", 77, 'tick "Grant read log"'),
    40401: ("Resource not found", 77, "remove it from DUO_LOG_TYPES"),
    40501: ("Method not allowed", 75, "a proxy changes requests"),
    42901: ("Too Many Requests", 75, "raise DUO_INTERVAL"),
    50001: ("unknown internal error", 75, "Duo fails"),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_duo_has_a_reason(duo, collector, code):
    message, status, remedy = CODES[code]
    body = {"code": code, "message": message, "message_detail": f"of {duo.skey}", "stat": "FAIL"}
    headers = {**JSON, "Retry-After": "1000"}
    duo.inject("telephony", (code // 100, headers, json.dumps(body).encode()))
    duo.inject(
        "telephony", (code // 100, headers, json.dumps({**body, "code": str(code)}).encode())
    )
    check = collector.run("--check", "-q", *ONLY)
    once = collector.once(*ONLY)
    assert [check.status, once.status, check.stderr, once.stdout] == [status, status, "", ""]
    told = collector.run("--status", *ONLY).stdout
    for line in (*check.stdout.splitlines(), *once.stderr.splitlines(), *told.splitlines()):
        assert f"({code // 100} {code} {message} of ***)" in line and remedy in line
    assert duo.skey not in collector.checkpoint_file.read_text()
    assert len(check.stdout.splitlines()) == len(once.stderr.splitlines()) == 1
    assert len(log_requests(duo)) == 2


RIGHT_KEY = "deadbeef" * 5
OTHER_KEY = "0123456789" * 4


SUSPECTS = {
    "a short integration key": (
        "DIXXX",
        RIGHT_KEY,
        "the integration key has 5 characters, the secret key 40; Duo's have 20",
    ),
    "a lower-case integration key": (
        "dixxxxxxxxxxxxxxxxxx",
        RIGHT_KEY,
        "has 20 characters, the secret key 40; Duo's have 20, beginning with DI",
    ),
    "a short secret key": (
        None,
        RIGHT_KEY[1:],
        "the integration key has 20 characters, the secret key 39; Duo's have 20",
    ),
    "a long secret key": (
        None,
        RIGHT_KEY + "f",
        "the integration key has 20 characters, the secret key 41; Duo's have 20",
    ),
    "swapped keys": (RIGHT_KEY, "DIXXXXXXXXXXXXXXXXXX", "swapped"),
    "an unknown integration key": (
        "DIYYYYYYYYYYYYYYYYYY",
        RIGHT_KEY,
        "DUO_INTEGRATION_KEY is not known at DUO_API_HOST",
    ),
    "another's secret key": (
        None,
        OTHER_KEY,
        "DUO_INTEGRATION_KEY does not match DUO_SECRET_KEY at DUO_API_HOST",
    ),
}


@pytest.mark.parametrize("suspect", SUSPECTS)
def test_a_401_says_what_it_most_likely_is(duo, collector, suspect):
    integration_key, secret_key, words = SUSPECTS[suspect]
    collector.environ.update(
        DUO_INTEGRATION_KEY=integration_key or duo.ikey, DUO_SECRET_KEY=secret_key
    )
    runs = [collector.run("--check", "-v"), collector.once("-v"), collector.run("--status")]
    assert [run.status for run in runs] == [77, 77, 0]
    said = "".join(run.stdout + run.stderr for run in runs)
    assert [(run.stdout + run.stderr).count(words) for run in runs] == [1, 3, 3]
    assert runs[0].stdout.splitlines()[1:] == [f"{log_type}: the same" for log_type in DEFAULT[1:]]
    assert RIGHT_KEY[:20] not in said + collector.checkpoint_file.read_text()
    assert OTHER_KEY not in said


@pytest.mark.parametrize(
    "answer, status, words",
    [
        (401, 77, "Duo refuses the credentials (401)"),
        (403, 75, "not an answer of Duo's API (403"),  # Duo sends none: a proxy does
    ],
)
def test_a_refusal_without_a_body_has_its_reason(duo, collector, answer, status, words):
    duo.inject("telephony", (answer, {}, b""))
    result = collector.run("--check", *ONLY)
    assert (result.status, words in result.stdout) == (status, True), result.stdout


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_log_that_duo_deprecates_is_told_with_its_successor(collector, duo, status):
    duo.rules.missing.update(administrator=status, trust_monitor=status)
    lines = collector.run(
        "--check", "--log-types", "authentication,administrator,trust_monitor"
    ).stdout.splitlines()
    advice = "; Duo is deprecating this log in favour of activity"
    assert [line.partition(": ")[0] for line in lines if line.endswith(advice)] == ["administrator"]
