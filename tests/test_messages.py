"""What the log says: what keeps Duo out of reach, durations, priorities for the journal."""

import contextlib
import os
import re
import socket
import subprocess
import threading

import pytest
from conftest import ONLY, tls_tenant

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
