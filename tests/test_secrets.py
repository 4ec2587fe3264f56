"""The secret key, and a proxy's password, are said nowhere."""

import json
from unittest import mock

import pytest
import requests
from conftest import (
    DEFAULT,
    JSON,
    KEYS,
    NOBODY,
    ONLY,
    SECRET,
    Collector,
    assert_hidden,
    settings_of,
)
from duo import Simulator, make_events

import duo_collector


def test_the_secret_key_shows_in_no_repr():
    settings = settings_of()
    clock = mock.Mock()
    clock.now_ms.return_value = 0
    edges = mock.Mock(session=duo_collector.open_session)
    duo = duo_collector.Duo(settings, edges, clock)
    url = f"{settings.base_url}/?a=b"
    request = duo.session.prepare_request(requests.Request("GET", url, auth=duo.add_signature))
    assert request.headers["Authorization"]
    texts = [repr(settings), str(settings), repr(duo), f"{duo}", repr(duo.session.auth)]
    assert_hidden(*texts, str(vars(request)))


def test_the_secret_key_shows_in_no_output(tmp_path):
    with Simulator(skey=SECRET) as duo:
        collector = Collector(tmp_path, duo)
        now_ms = duo.now_ms()
        collector.seed(**dict.fromkeys(DEFAULT, now_ms - 900_000))
        duo.add("telephony", make_events("telephony", 3, now_ms - 600_000, now_ms - 300_000))
        duo.inject("administrator", "clock_401")
        results = [collector.once("-v")]
        assert (results[0].status, len(results[0].events)) == (77, 3)
    for status, environ in (
        (75, {"DUO_API_HOST": NOBODY}),
        (75, {"DUO_API_HOST": "api-12345678.duosecurity.com", "HTTPS_PROXY": NOBODY}),
        (78, {"DUO_SECRET_KEY": SECRET + "\n"}),
        (78, {"DUO_INTERVAL": "x"}),
    ):
        if "duosecurity" in environ.get("DUO_API_HOST", ""):  # of which the checkpoint file is not
            environ["DUO_CHECKPOINT_FILE"] = str(tmp_path / "other.json")
        results.append(collector.run("--check", "-v", environ=environ))
        assert results[-1].status == status
    outputs = [text for result in results for text in (result.stdout, result.stderr)]
    assert_hidden(collector.checkpoint_file.read_text(), *outputs)


def test_nothing_secret_is_said(duo, collector):
    secret = "Zq8" * 13 + "Z"
    for options, environ in (
        ([secret], {}),
        ([f"--secret-key={secret}"], {}),
        (["--once"], {"DUO_API_HOST": secret}),
        (["--once"], {"DUO_LOG_TYPES": secret}),
        (
            ["--check"],
            {
                "DUO_API_HOST": "https://api-1.duosecurity.com",
                "HTTPS_PROXY": f"http://user:{secret[:9]}@h:99999",
            },
        ),
        (
            ["--check"],
            {
                "DUO_API_HOST": "https://api-1.duosecurity.com",
                "HTTPS_PROXY": f"http://user:{secret[:9]}/@h:1",
            },
        ),
    ):
        result = collector.run(*options, environ=environ)
        assert result.status in (2, 75, 78)
        assert secret[:9] not in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_what_is_cut_short_is_masked_before():
    assert "ZZZZ" not in duo_collector.one_line("x " * 140 + "Z" * 40)


def test_a_key_that_duo_repeats_is_not(duo, collector):
    duo.skey = collector.environ["DUO_SECRET_KEY"] = "Zq8-" * 9 + "Zq8"
    body = {"code": 40103, "message": f"No: {duo.skey}", "stat": "FAIL"}
    duo.inject("telephony", (401, JSON, json.dumps(body).encode()))
    result = collector.once(*ONLY, "-v")
    status = collector.run("--status", "--json")
    assert (result.status, status.status) == (77, 0)
    assert "No: ***" in result.stderr and "No: ***" in status.stdout
    assert "Zq8-Zq8" not in result.stderr + status.stdout + collector.checkpoint_file.read_text()


@pytest.mark.parametrize(
    "environ, words",
    [
        ({"ALL_PROXY": "socks5://user:hidden@127.0.0.1:1"}, "PySocks"),
        ({"HTTPS_PROXY": "http://user:hidden@127.0.0.1:1"}, "the proxy http://127.0.0.1:1 "),
        ({"HTTPS_PROXY": "http://us er:hid den@127.0.0.1:1"}, "the proxy http://127.0.0.1:1 "),
    ],
)
def test_a_proxy_is_named_without_its_password(collector, environ, words):
    result = collector.run(
        "--check", *ONLY, environ={**environ, "DUO_API_HOST": KEYS["DUO_API_HOST"]}
    )
    assert (result.status, words in result.stdout) == (75, True), result.stdout
    assert "hid" not in result.stdout + result.stderr
