"""A proxy that cannot be used: which one, why, and never its password."""

import pytest
from conftest import ONLY, SECRET

HOST = {"DUO_API_HOST": "https://api-12345678.duosecurity.com"}  # the proxy is asked, never Duo


def check(collector, **environ):
    result = collector.run("--check", *ONLY, environ={**HOST, **environ})
    assert result.status == 75, result.stderr
    (line,) = result.stdout.splitlines()
    assert SECRET[:12] not in line + result.stderr
    return line


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY"])
def test_a_socks_proxy_needs_pysocks(collector, name):
    line = check(collector, **{name: "socks5h://127.0.0.1:1"})
    assert "a SOCKS proxy needs the package PySocks: install it, or set HTTPS_PROXY to " in line
    assert "firewall" not in line


USERS = {
    "nobody": "",
    "a password": f"collector:{SECRET}@",
    "a space": f"us er:{SECRET}@",
    "an at sign": f"collector:{SECRET}@x@",
}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_a_proxy_that_is_away_is_named_without_its_password(collector, user):
    line = check(collector, HTTPS_PROXY=f"http://{user}127.0.0.1:1")
    assert "the proxy http://127.0.0.1:1 refuses or cannot be reached (" in line
    assert "check HTTPS_PROXY and NO_PROXY" in line


def test_a_proxy_for_all_is_named(collector):
    assert "the proxy http://127.0.0.1:1 refuses" in check(
        collector, ALL_PROXY="http://127.0.0.1:1"
    )


def test_a_connection_that_is_refused_keeps_its_port(collector):
    result = collector.run("--check", *ONLY, environ={"DUO_API_HOST": "https://127.0.0.1:1"})
    assert result.status == 75
    assert "127.0.0.1:1: the connection is refused: check DUO_API_HOST" in result.stdout
