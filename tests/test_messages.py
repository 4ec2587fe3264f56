"""What the log says: what keeps Duo out of reach, durations, priorities for the journal."""

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading

import pytest
from conftest import NOBODY, ONLY, SCRIPT, before, settings_of, tls_tenant

import duo_collector


@contextlib.contextmanager
def answering(reply):
    """A server that answers each connection with this."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):  # once it is closed
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(65_536)
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


FAR = {
    "DUO_API_HOST": "https://api-12345678.duosecurity.invalid",
    "RES_OPTIONS": "timeout:1 attempts:1",
}


REFUSES = {**FAR, "HTTPS_PROXY": "http://user:hunter2@127.0.0.1:1"}


def test_what_keeps_duo_out_of_reach_is_told_apart(duo, collector, tmp_path):
    def check_line(collector, **environ):
        result = collector.run("--check", "-q", *ONLY, environ=environ)
        warned = re.findall(
            r"WARNING (DUO_API_HOST) is \S+\.invalid, which is not a Duo host", result.stderr
        )
        far = environ.get("DUO_API_HOST") == FAR["DUO_API_HOST"]
        assert (
            result.status,
            len(warned),
            result.stderr.count("\n"),
            result.stdout.count("\n"),
        ) == (75, far, far, 1)
        return result.stdout

    duo.inject("telephony", "error_503", "error_500")
    with (
        answering(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy,
        tls_tenant(tmp_path) as (_, by_tls),
    ):
        lines = {
            "name": check_line(collector, **FAR),
            "proxy": check_line(collector, **REFUSES),
            "407": check_line(collector, **{**FAR, "HTTPS_PROXY": f"http://{proxy}"}),
            "certificate": check_line(by_tls, REQUESTS_CA_BUNDLE=None),
            "refused": check_line(collector, DUO_API_HOST="http://127.0.0.1:1"),
            "503": check_line(collector),
            "500": check_line(collector),
        }
    says = {
        "the name does not resolve": {"name"},
        "check DUO_API_HOST, DNS, and": {"name"},
        "the proxy http://127.0.0.1:1 refuses or cannot be reached": {"proxy"},
        "refuses or cannot be reached": {"proxy", "407"},
        "check HTTPS_PROXY": {"proxy", "407"},
        "407 Proxy Auth": {"407"},
        "its certificate is not trusted": {"certificate"},
        "set REQUESTS_CA_BUNDLE to": {"certificate"},
        "the connection is refused": {"refused"},
        "Connection refused": {"proxy"},
        "not an answer of Duo's API": {"503"},
        "Duo fails": {"500"},
    }
    assert {
        words: {name for name, line in lines.items() if words in line} for words in says
    } == says, lines
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize("whose", ["ours", "a file of ours", "somebody else's", None])
def test_the_journal_gets_priorities(duo, collector, tmp_path, whose):
    duo.rules.missing["administrator"] = 403
    end, stderr = None, os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    if whose != "a file of ours":
        end, stderr = os.pipe()
    at = os.fstat(stderr)
    stream = {"somebody else's": f"{at.st_dev}:{at.st_ino + 1}", None: None}.get(
        whose, f"{at.st_dev}:{at.st_ino}"
    )
    environ = {"JOURNAL_STREAM": stream, "DUO_INTERVALL": "5"}  # which is a warning
    process = collector.start(
        "--once", "-v", environ=environ, stdout=subprocess.DEVNULL, stderr=stderr
    )
    os.close(stderr)
    assert process.wait(10) == 77
    text = open(end or tmp_path / "log").read()
    priorities = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>"}
    levels = [re.search("DEBUG|INFO|WARNING|ERROR", line)[0] for line in text.splitlines()]
    assert set(levels) == set(priorities)
    ours = whose and "ours" in whose
    for level, line in zip(levels, text.splitlines()):
        assert re.match(f"{priorities[level]}{level} " if ours else rf"20[^ ]+Z {level} ", line), (
            line
        )


@pytest.mark.parametrize(
    "length_ms, text",
    [
        (0, "0 s"),
        (999, "0 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (310_000, "5 min 10 s"),
        (3_600_000, "1 h"),
        (3_601_000, "1 h 1 s"),
        (86_399_000, "23 h 59 min"),
        (273_845_000, "3 d 4 h"),
        (86_400_000_000, "1,000 d"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(length_ms, text):
    assert duo_collector.duration(length_ms) == text


def test_an_environment_of_another_python_is_to_be_recreated():
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--once"]  # -S: no installed packages
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (78, "")
    (line,) = run.stderr.splitlines()
    assert "dotenv is not installed" in line and "python3 -m venv --clear .venv" in line


@pytest.mark.parametrize(
    "reason, words",
    [
        ("Missing Authority Key Identifier", "Python from 3.13 on refuses the CA"),
        ("Basic Constraints of CA cert not marked critical", "Python from 3.13 on refuses the CA"),
        ("CA cert does not include key usage extension", "Python from 3.13 on refuses the CA"),
        ("Hostname mismatch, certificate is not valid for 'a'", "for another name"),
        ("unable to get local issuer certificate", "set REQUESTS_CA_BUNDLE"),
    ],
)
def test_a_certificate_that_is_refused_is_explained(reason, words):
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {reason}")
    said = duo_collector.explain_no_answer(error, settings_of())
    assert words in said and reason in said
    assert ("set REQUESTS_CA_BUNDLE" in said) == (words == "set REQUESTS_CA_BUNDLE")


def test_a_refused_connection_names_port_and_setting(collector):
    result = collector.run("--check", *ONLY, environ={"DUO_API_HOST": NOBODY})
    words = "no answer from 127.0.0.1:1: the connection is refused: check DUO_API_HOST"
    assert (result.status, words in result.stdout) == (75, True), result.stdout


def test_an_outage_is_told_once_when_it_begins_and_once_when_all_give_up(collector):
    before(collector, "duo_collector.Retryable.patience_s = 3")
    result = collector.once(environ={"DUO_API_HOST": NOBODY})
    lines = result.stderr.splitlines()
    assert result.status == 75
    assert sum("trying again" in line for line in lines) == 1, result.stderr
    assert sum("connection is refused" in line for line in lines) == 2, result.stderr
    assert sum("given up for the same reason" in line for line in lines) == 2, result.stderr


def test_the_end_of_a_pass_says_when_the_next_one_is(collector):
    process = collector.start("--interval", "10m", *ONLY)
    line = next(line for line in process.stderr if b"telephony: " in line)
    process.terminate()
    process.communicate(timeout=10)
    assert b"next pass in 10 min" in line
