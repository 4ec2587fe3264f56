"""Messages that sent their reader the wrong way name the culprit."""

import ssl
import subprocess
import sys

import pytest
from conftest import NOBODY, ONLY, SCRIPT, assert_refused, before, settings_of

import duo_collector

DUO = "https://api-12345678.duosecurity.com"


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


@pytest.mark.parametrize(
    "environ, words",
    [
        ({"ALL_PROXY": "socks5://user:hidden@127.0.0.1:1"}, "PySocks"),
        ({"HTTPS_PROXY": "http://user:hidden@127.0.0.1:1"}, "the proxy http://127.0.0.1:1 "),
        ({"HTTPS_PROXY": "http://us er:hid den@127.0.0.1:1"}, "the proxy http://127.0.0.1:1 "),
    ],
)
def test_a_proxy_is_named_without_its_password(collector, environ, words):
    result = collector.run("--check", *ONLY, environ={"DUO_API_HOST": DUO, **environ})
    assert (result.status, words in result.stdout) == (75, True), result.stdout
    assert "hid" not in result.stdout + result.stderr


def test_a_refused_connection_names_port_and_setting(collector):
    result = collector.run("--check", *ONLY, environ={"DUO_API_HOST": NOBODY})
    words = "no answer from 127.0.0.1:1: the connection is refused: check DUO_API_HOST"
    assert (result.status, words in result.stdout) == (75, True), result.stdout


@pytest.mark.parametrize(
    "environ, words",
    [
        ({"DUO_API_HOST": "http://api-12345678.duosecurity.com"}, "http is not encrypted"),
        ({"DUO_SECRET_KEY": "dead beef"}, "character 5 of 9 is a space"),
        ({"DUO_SECRET_KEY": "deadbeef\u200b"}, "character 9 of 9 is a zero width space"),
        ({"DUO_INTEGRATION_KEY": '"DIX'}, "character 1 of 4 is a quotation mark"),
    ],
)
def test_a_wrong_setting_is_named_by_what_is_wrong(collector, environ, words):
    result = collector.once(environ=environ)
    assert_refused(result, 78, words)
    assert "dead" not in result.stderr


def test_a_month_that_does_not_exist_is_named(collector):
    assert_refused(collector.once("--since", "2026-13-01"), 2, "month must be in 1..12")


def test_a_settings_file_in_utf_16_is_to_be_saved_as_utf_8(collector, tmp_path):
    path = tmp_path / "env"
    path.write_bytes("DUO_LOOKBACK=300\n".encode("utf-16"))
    assert_refused(collector.once("--env-file", path), 78, "save it as UTF-8")


@pytest.mark.parametrize("value", ["corp.pem", "~/corp.pem"])
def test_a_bundle_in_a_settings_file_starts_at_its_folder(collector, tmp_path, value):
    path = tmp_path / "env"
    path.write_text(f"REQUESTS_CA_BUNDLE={value}\n")
    environ = {"HOME": str(tmp_path)}
    assert_refused(collector.once("--env-file", path, environ=environ), 78, "REQUESTS_CA_BUNDLE")
    (tmp_path / "corp.pem").touch()
    result = collector.once("--env-file", path, *ONLY, environ=environ)
    assert result.status == 0, result.stderr


def test_an_outage_is_told_once_when_it_begins_and_once_when_all_give_up(collector):
    before(collector, "duo_collector.Retryable.patience_s = 3")
    result = collector.once(environ={"DUO_API_HOST": NOBODY})
    lines = result.stderr.splitlines()
    assert result.status == 75
    assert sum("trying again" in line for line in lines) == 1, result.stderr
    assert sum("connection is refused" in line for line in lines) == 2, result.stderr
    assert sum("given up for the same reason" in line for line in lines) == 2, result.stderr


def test_a_lock_that_fails_is_told_by_check(collector):
    broken = "duo_collector.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(37, 'No locks'))"
    before(collector, broken)
    result = collector.run("--check", *ONLY)
    assert (result.status, "cannot be locked: No locks" in result.stdout) == (78, True)


def test_the_end_of_a_pass_says_when_the_next_one_is(collector):
    process = collector.start("--interval", "10m", *ONLY)
    line = next(line for line in process.stderr if b"telephony: " in line)
    process.terminate()
    process.communicate(timeout=10)
    assert b"next pass in 10 min" in line
