"""Between the collector and Duo: certificates, proxies, connections, IPv6."""

import contextlib
import socket
import subprocess
import sys

import duo as tenant
import pytest
from conftest import DEFAULT, ONLY, Collector, fill_and_seed, log_requests, tls_tenant, wait_for
from duo import Simulator

EVENTS = 1100  # more than a page


def test_a_pass_takes_a_connection_for_each_log_type(duo, collector):
    fill_and_seed(duo, collector, EVENTS, *DEFAULT)
    result = collector.once()
    assert (result.status, len(result.events)) == (0, 3 * EVENTS), result.stderr
    assert duo.connections == len(DEFAULT)
    assert len(log_requests(duo)) >= 6


def test_a_bundle_of_authorities_is_honoured(tmp_path):
    with tls_tenant(tmp_path) as (duo, collector):
        result = collector.once()
        assert (result.status, len(result.events)) == (0, 3 * EVENTS), result.stderr
        assert duo.connections == len(DEFAULT)


@pytest.mark.slow
def test_an_unknown_authority_is_refused(tmp_path):
    with tls_tenant(tmp_path) as (duo, collector):
        before = collector.saved
        result = collector.once("-q", *ONLY, environ={"REQUESTS_CA_BUNDLE": None}, timeout=120)
        (line,) = result.stderr.splitlines()
        assert (result.status, result.stdout) == (75, ""), result.stderr
        assert "telephony" in line and "certificate verify failed" in line
        after = collector.saved
        assert ({key: after[key] for key in before}, duo.requests) == (before, [])


def test_a_certificate_for_another_host_is_refused(tmp_path):
    with tls_tenant(tmp_path, certified="api-12345678.duosecurity.com") as (duo, collector):
        result = collector.run("--check", *ONLY)  # which does not try for half a minute
        (line,) = result.stdout.splitlines()
        assert (result.status, duo.requests) == (75, [])
        assert "127.0.0.1" in line and "certificate" in line


@contextlib.contextmanager
def proxy(folder):
    """A real HTTP proxy: its URL, and the file in which it notes what passed."""
    port_file, log_file = folder / "proxy.port", folder / "proxy.log"
    command = [
        sys.executable,
        "-m",
        "proxy",
        "--hostname",
        "127.0.0.1",
        "--port",
        "0",
        "--num-workers",
        "1",
    ]
    command += [
        "--num-acceptors",
        "1",
        "--port-file",
        port_file,
        "--log-file",
        log_file,
        "--data-dir",
        folder,
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = wait_for(
            lambda: port_file.exists() and port_file.read_text().strip(), "proxy", timeout_s=60
        )
        yield f"http://127.0.0.1:{port}", log_file
    finally:
        process.terminate()
        process.wait(60)


def test_a_proxy_is_used(tmp_path):
    with tls_tenant(tmp_path) as (duo, collector), proxy(tmp_path) as (url, log_file):
        result = collector.once(environ={"HTTPS_PROXY": url})
        assert (result.status, len(result.events)) == (0, 3 * EVENTS), result.stderr
        assert duo.connections == len(DEFAULT)
        wait_for(
            lambda: f"CONNECT 127.0.0.1:{duo.port}" in log_file.read_text(),
            "CONNECT in the log of the proxy",
        )


def test_a_proxy_that_is_away_is_not_gone_around_but_for_no_proxy(tmp_path):
    with tls_tenant(tmp_path) as (duo, collector):
        away = {"HTTPS_PROXY": "http://127.0.0.1:1"}
        result = collector.run("--check", environ=away)
        first, *others = result.stdout.splitlines()
        assert (result.status, first.startswith("authentication: "), "refused" in first) == (
            75,
            True,
            True,
        ), first
        assert others == ["administrator: the same", "telephony: the same"]
        assert duo.connections == 0
        result = collector.once(environ={**away, "NO_PROXY": "127.0.0.1"})
        assert (result.status, len(result.events)) == (0, 3 * EVENTS), result.stderr


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_ipv6_is_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(tenant._Server, "address_family", socket.AF_INET6)
    with Simulator(host="::1") as duo:
        collector = Collector(tmp_path, duo)
        fill_and_seed(duo, collector, EVENTS, *DEFAULT)
        result = collector.once(*ONLY, environ={"DUO_API_HOST": f"http://[::1]:{duo.port}"})
        assert (result.status, len(result.events)) == (0, EVENTS), result.stderr
        assert {event["host"] for event in result.events} == {"::1"}
