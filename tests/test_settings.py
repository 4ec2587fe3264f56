"""Settings, the command line, the checkpoint file, and what makes no pass: --check, --status, --help."""

import base64
import json
import logging
import os
import re
import signal
import socket
import time
from datetime import datetime, timezone
from unittest import mock

import pytest
import requests
from conftest import CHECKPOINT_KEYS, Collector, wait_for
from duo import Simulator, make_events

import duo_collector

SECRET = "q7Rw2ZtB9xKpLmV4sHd8JfNcGy6TaEu3XoQiWv5b"  # its pieces are not to be found in any other text
KEYS = {
    "DUO_API_HOST": "https://api-12345678.duosecurity.com",
    "DUO_INTEGRATION_KEY": "DIXXXXXXXXXXXXXXXXXX",
    "DUO_SECRET_KEY": SECRET,
}
NO_KEYS = dict.fromkeys(KEYS)
UTC = timezone.utc
NOW_MS = int(datetime(2027, 1, 15, 8, tzinfo=UTC).timestamp() * 1000)
AT_MS = 1661022959934
NOBODY = "http://127.0.0.1:1"  # connections are refused; no other test is given this port


def settings_of(*options, **environ):
    """What a command line and an environment come to."""
    return duo_collector.load_settings(duo_collector.parse_options(list(options)), {**KEYS, **environ})


def assert_hidden(*texts):
    """No piece of the secret key, as it is or in base64 at any offset, in any of these."""
    forms = [SECRET, *(base64.b64encode(b"\0" * shift + SECRET.encode()).decode()[4:-4] for shift in range(3))]
    for text in texts:
        assert not [form[at : at + 12] for form in forms for at in range(len(form) - 11) if form[at : at + 12] in text]


def assert_refused(result, status, named):
    """It ended with this status and a single line, which names what is wrong."""
    assert (result.status, result.stdout) == (status, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert " ERROR " in line and named in line


# Wrong values

NOT_A_NUMBER = ("abc", "-1", "nan", "inf", "-inf", "1e3", "0x10", "1_000", "5 s", "\u0663", "99999999999")
NOT_A_KEY = (
    *("", f" {SECRET}", f"{SECRET} ", f"{SECRET}\n", f"\t{SECRET}", f'"{SECRET}"', f"'{SECRET}'", f"`{SECRET}"),
    *(f"{SECRET[:20]} {SECRET[20:]}", f"{SECRET}\n{SECRET}", f"{SECRET}\u00e4", f"{SECRET}\u200b", f"\ufeff{SECRET}"),
)
WRONG = {
    "DUO_API_HOST": (
        *("", " ", " api-1.duosecurity.com", "api-1.duosecurity.com ", "api-1.duosecurity.com\n", "api 1.com"),
        *("https://api-1.duosecurity.com//", "https://api-1.duosecurity.com/admin/v1", "api-1.duosecurity.com:443"),
        *("https://api-XXXXXXXX.duosecurity.com", "api-xxxxxxxx.duosecurity.com/", "/", "https:///"),
        *("https://api-1.duosecurity.com?a=b", "api-1.duosecurity.com#a", "https://user@api-1.duosecurity.com"),
        *("http://api-1.duosecurity.com", "http://localhost.duosecurity.com", "http://127.0.0.1.duosecurity.com"),
        *("ftp://api-1.duosecurity.com", "https://", "https://https://api-1.duosecurity.com", "\u00e4pi-1.com"),
        *("https://api..duosecurity.com", "a" * 64 + ".duosecurity.com", "http://127.0.0.1:99999"),
    ),
    "DUO_INTEGRATION_KEY": NOT_A_KEY,
    "DUO_SECRET_KEY": NOT_A_KEY,
    "DUO_INTERVAL": ("0", "0m", "10 m", "10M", "1.5h", "2d", "-10m", "10min", *NOT_A_NUMBER),
    "DUO_REQUESTS_PER_MINUTE": ("0", *NOT_A_NUMBER),
    "DUO_LOOKBACK": ("0.5", "300.0", "300.25", "5m", *NOT_A_NUMBER),
    "DUO_LOG_TYPES": (",", "syslog", "authentication,syslog", "authentication telephony", "authentication;telephony"),
    "AUTH_SINCE_TIME": ("1661022959", "166102295993", "16610229599345", "-1661022959934", "166102295993x", "now"),
    "ADMIN_SINCE_TIME": ("1661022959934", "166102295", "16610229599", "-1661022959", "1661022959.0", "2022-08-20"),
    "TELEPHONY_SINCE_TIME": ("1661022959",),
    "ACTIVITY_SINCE_TIME": ("1661022959",),
    "OFFLINE_ENROLLMENT_SINCE_TIME": ("1661022959934",),
    "TRUST_MONITOR_SINCE_TIME": ("1661022959",),
    "--interval": ("", "0", "0s", "m", "1441m", "86401", *NOT_A_NUMBER),
    "--log-types": ("", ",", "syslog"),
    "--since": (
        *("", "nonsense", "7x", "-1h", "1d2h", "2026-13-01", "2026-11-01T25:00", "2999-01-01"),
    ),
    "--checkpoint-file": ("",),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name, value):
    by_option = name.startswith("--")
    with pytest.raises(duo_collector.CollectorError) as caught:
        settings_of(f"{name}={value}") if by_option else settings_of(**{name: value})
    assert caught.value.status == (2 if by_option else 78)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()  # so it is one line
    shown = " is empty" if not value else ": there is " if value in NOT_A_KEY else f" {duo_collector.one_line(repr(value))}: "
    assert str(caught.value).startswith(name + shown)
    assert_hidden(str(caught.value))


# Status, what the message names, options, environment, settings file. {} stands for the test's folder.
REFUSED_RUNS = [
    (2, "--interval", ["--interval", "0"], {}, ""),
    (2, "--log-types", ["--log-types", ","], {}, ""),
    (2, "--since", ["--since", "2999-01-01"], {}, ""),
    (2, "--checkpoint-file", ["--checkpoint-file", ""], {}, ""),
    (2, "--inter", ["--inter", "5"], {}, ""),  # an abbreviation would change its meaning with the next option
    (2, "--follow", ["--follow"], {}, ""),
    (2, "stray", ["stray"], {}, ""),
    (2, "-q", ["-v", "-q"], {}, ""),
    (2, "--status", ["--check", "--status"], {}, ""),
    (2, "--check", ["--once", "--check"], {}, ""),  # --once would have no meaning
    (2, "--status", ["--once", "--status"], {}, ""),
    (2, "--accounts", ["--once", "--accounts"], {}, ""),
    (78, "DUO_API_HOST", [], {"DUO_API_HOST": None}, ""),
    (78, "DUO_API_HOST", [], {"DUO_API_HOST": "http://api-1.duosecurity.com"}, ""),
    (78, "DUO_INTEGRATION_KEY", [], {"DUO_INTEGRATION_KEY": None}, ""),
    (78, "DUO_INTEGRATION_KEY", [], {"DUO_INTEGRATION_KEY": "DIXXX\nXXXXX"}, ""),
    (78, "DUO_SECRET_KEY", ["-v"], {"DUO_SECRET_KEY": None}, ""),
    (78, "DUO_SECRET_KEY", ["--check"], {"DUO_SECRET_KEY": '"deadbeef"'}, ""),
    (78, "DUO_SECRET_KEY", [], {"DUO_SECRET_KEY": "deadbeef\udcff"}, ""),  # a byte that is not UTF-8
    (78, "DUO_INTERVAL", ["-q"], {"DUO_INTERVAL": "nan"}, ""),
    (78, "DUO_LOOKBACK", ["--status"], {"DUO_LOOKBACK": "-1"}, ""),
    (78, "TELEPHONY_SINCE_TIME", [], {"TELEPHONY_SINCE_TIME": "1661022959"}, ""),
    (78, "ADMIN_SINCE_TIME", [], {}, "ADMIN_SINCE_TIME=1661022959934\n"),
    (78, "DUO_LOG_TYPES", [], {}, "DUO_LOG_TYPES='authentication telephony'\n"),
    (78, "DUO_INTEGRATION_KEY", [], {"DUO_INTEGRATION_KEY": None}, 'DUO_INTEGRATION_KEY=" DIXXXXXXXX"\n'),
    (78, "{}/absent", ["--env-file", "{}/absent"], {}, ""),
    (78, "{}/folder", ["--env-file", "{}/folder"], {}, ""),
    (78, "{}/binary", ["--env-file", "{}/binary"], {}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/absent'", [], {"DUO_SECRET_KEY_FILE": "{}/absent"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/folder'", [], {"DUO_SECRET_KEY_FILE": "{}/folder"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/empty'", [], {"DUO_SECRET_KEY_FILE": "{}/empty"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/binary'", [], {"DUO_SECRET_KEY_FILE": "{}/binary"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/two_lines'", [], {"DUO_SECRET_KEY_FILE": "{}/two_lines"}, ""),
    (78, "DUO_SECRET_KEY_FILE", [], {"DUO_SECRET_KEY_FILE": SECRET}, ""),  # the key itself in the place of its file
    (78, "{}/env", [], {}, "'A=B'=c\n"),
    (78, "REQUESTS_CA_BUNDLE", [], {"DUO_API_HOST": "https://127.0.0.1:1", "REQUESTS_CA_BUNDLE": "{}/absent"}, ""),
    (78, "absent", ["--checkpoint-file", "{}/absent\n/checkpoints.json"], {}, ""),
    (2, "stray", ["stray\nline"], {}, ""),
    (78, "{}/absent/checkpoints.json", ["--checkpoint-file", "{}/absent/checkpoints.json"], {}, ""),
    (78, "{}/empty/checkpoints.json", [], {"DUO_CHECKPOINT_FILE": "{}/empty/checkpoints.json"}, ""),
]


def contents(folder):
    return {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("status, named, options, environ, dotenv", REFUSED_RUNS)
def test_a_refused_run_says_one_line_and_touches_nothing(
    collector, duo, tmp_path, status, named, options, environ, dotenv
):
    collector.seed(authentication=AT_MS)
    (tmp_path / "folder").mkdir()
    files = {"empty": b"", "binary": b"\xff\0\xfe", "two_lines": b"dead\nbeef\n", "env": dotenv.encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    before = contents(tmp_path)
    options = [option.replace("{}", str(tmp_path)) for option in options]
    environ = {name: value and value.replace("{}", str(tmp_path)) for name, value in environ.items()}
    mode = () if {"--check", "--status", "--accounts", "--once"} & set(options) else ("--once",)
    result = collector.run(*mode, "--env-file", tmp_path / "env", *options, environ=environ)
    assert_refused(result, status, named.replace("{}", str(tmp_path)))
    assert contents(tmp_path) == before
    assert_hidden(result.stderr)
    assert duo.requests == []


# Checkpoint files

WRONG_SINCE = {
    "AUTH_SINCE_TIME": (
        *("null", "true", "0", "1661022959", "166102295993", "16610229599345", "-1661022959934", "1661022959934.0"),
        *("1.661022959934e12", "NaN", "Infinity", '"1661022959934"', "[1661022959934]", "{}", '""', "9" * 30),
    ),
    "ADMIN_SINCE_TIME": ("1661022959934", "166102295", "-1661022959", "1661022959.934"),
    "TELEPHONY_SINCE_TIME": ("1661022959",),
    "OFFLINE_ENROLLMENT_SINCE_TIME": ("1661022959934",),
    "TRUST_MONITOR_SINCE_TIME": ("1661022959",),
}
KEPT = '{"authentication": {"since": %d, %%s}}' % AT_MS
DAMAGED = (
    *("null", "[]", "5", '"x"', '{"authentication": []}', '{"authentication": "x"}', '{"authentication": {}}'),
    *(KEPT % '"from": 1', KEPT % '"events": {}', KEPT % '"from": "x", "events": {}', KEPT % '"from": 1, "events": []'),
    *(KEPT % '"from": 1, "events": {"a": null}', KEPT % '"from": 1, "events": {"a": NaN}'),
    *(KEPT % '"from": Infinity, "events": {}', KEPT % '"from": 1, "events": {"a": 1e999}'),
)
DAMAGED_STATE = tuple(
    kept.replace('"events"', '"written"').replace('"from"', '"start_ms"').replace('"since"', '"since_ms"')
    for kept in DAMAGED
)
WRONG_FILES = {
    "empty": b"",
    "blank": b"\n",
    "truncated": b'{"AUTH_SINCE_TIME": 16610229',
    "two documents": b"{} {}",
    "a list": b"[]",
    "a string": b'"1661022959934"',
    "a number": b"1661022959934",
    "null": b"null",
    "nothing but damage": b'{"written": null}',
    "nothing but a list": b'{"written": []}',
    "nothing but damaged state": b'{"state": null}',
    "nothing but a list for a state": b'{"state": []}',
    "not UTF-8": b'{"AUTH_SINCE_TIME": 1661022959934, "x": "\xff"}',
    "UTF-16": '{"AUTH_SINCE_TIME": 1661022959934}'.encode("utf-16"),
    "nested": b"[" * 100_000,
    "nested value": b'{"AUTH_SINCE_TIME": ' + b"[" * 100_000,
    **{f"{key} {value[:20]}": f'{{"{key}": {value}}}'.encode() for key, row in WRONG_SINCE.items() for value in row},
    **{f"written {kept}": f'{{"AUTH_SINCE_TIME": {AT_MS}, "written": {kept}}}'.encode() for kept in DAMAGED},
    **{f"state {kept}": f'{{"AUTH_SINCE_TIME": {AT_MS}, "state": {kept}}}'.encode() for kept in DAMAGED_STATE},
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_wrong_checkpoint_file_is_refused_and_left_alone(what, tmp_path, caplog, capfd):
    path = tmp_path / "checkpoints.json"
    path.write_bytes(WRONG_FILES[what])
    handler = signal.getsignal(signal.SIGINT)
    with mock.patch.dict(os.environ, clear=True):
        status = duo_collector.main(["--status", "--env-file", "/dev/null", "--checkpoint-file", str(path)])
    signal.signal(signal.SIGINT, handler)
    (record,) = caplog.records
    assert (status, record.levelno, capfd.readouterr().out) == (78, logging.ERROR, "")
    assert record.getMessage().isprintable() and str(path) in record.getMessage()
    key = what.split()[0]
    assert key in record.getMessage() or not key.endswith("_SINCE_TIME")
    assert path.read_bytes() == WRONG_FILES[what]


@pytest.mark.parametrize(
    "what",
    [
        *("empty", "truncated", "a list", "not UTF-8", "nested", "AUTH_SINCE_TIME 1661022959"),
        *(f"written {DAMAGED[4]}", f"state {DAMAGED_STATE[4]}"),
    ],
)
def test_a_run_from_a_wrong_checkpoint_file_requests_nothing(what, collector, duo):
    collector.checkpoint_file.write_bytes(WRONG_FILES[what])
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    assert collector.checkpoint_file.read_bytes() == WRONG_FILES[what]
    assert duo.requests == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_checkpoint_file_that_is_none_is_refused_without_waiting(make, collector, duo):
    make(collector.checkpoint_file)
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    for mode in "--status", "--check":
        assert_refused(collector.run(mode), 78, str(collector.checkpoint_file))
    assert duo.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_file_that_may_not_be_read_is_refused(collector, duo):
    collector.seed(authentication=AT_MS)
    collector.checkpoint_file.chmod(0)
    assert_refused(collector.once(), 78, str(collector.checkpoint_file))
    assert duo.requests == []


# Right values


@pytest.mark.parametrize(
    "given, url, host",
    [
        ("api-12345678.duosecurity.com", "https://api-12345678.duosecurity.com", "api-12345678.duosecurity.com"),
        ("https://api-12345678.duofederal.com", "https://api-12345678.duofederal.com", "api-12345678.duofederal.com"),
        ("https://API-1.DuoSecurity.com", "https://api-1.duosecurity.com", "api-1.duosecurity.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1"),
        ("http://localhost", "http://localhost", "localhost"),
        ("https://[::1]:8443", "https://[::1]:8443", "::1"),
        ("https://api-1.duosecurity.com/", "https://api-1.duosecurity.com", "api-1.duosecurity.com"),
        ("api-1.duosecurity.com/", "https://api-1.duosecurity.com", "api-1.duosecurity.com"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "127.0.0.1"),
    ],
)
def test_the_host_may_come_with_or_without_https(given, url, host):
    settings = settings_of(DUO_API_HOST=given)
    assert (settings.base_url, settings.host) == (url, host)


def test_an_option_wins_over_the_environment_and_an_empty_variable_is_none():
    wanted = settings_of("--interval", "5", "--log-types", "telephony", DUO_INTERVAL="7", DUO_LOG_TYPES="administrator")
    assert (wanted.interval_s, [row.name for row in wanted.log_types]) == (5, ["telephony"])
    defaults = settings_of(DUO_INTERVAL="", DUO_LOG_TYPES="", DUO_LOOKBACK="", AUTH_SINCE_TIME="")
    assert (defaults.interval_s, defaults.lookback_s, defaults.requests_per_minute) == (300, 300, 50)
    assert [row.name for row in defaults.log_types] == ["authentication", "administrator", "telephony"]
    assert {row.name: at_ms // row.unit_ms for row, at_ms in defaults.seeds.items()} == {
        name: 1661022959934 // unit_ms for name, (_, unit_ms) in CHECKPOINT_KEYS.items()
    }


@pytest.mark.parametrize("text, seconds", [("0.01", 0.01), ("7", 7), ("90s", 90), ("10m", 600), ("24h", 86_400)])
def test_an_interval_may_be_an_age(text, seconds):
    assert settings_of("--interval", text).interval_s == settings_of(DUO_INTERVAL=text).interval_s == seconds


def test_log_types_may_have_spaces_and_repeats():
    settings = settings_of(DUO_LOG_TYPES=" telephony ,authentication, telephony")
    assert [row.name for row in settings.log_types] == ["telephony", "authentication"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_key_file_may_end_in_a_newline(end, tmp_path):
    (tmp_path / "key").write_bytes((SECRET + end).encode())
    assert settings_of(DUO_SECRET_KEY_FILE=str(tmp_path / "key"), DUO_SECRET_KEY="").secret_key == SECRET


def utc_ms(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def new_york(monkeypatch):
    """A local time that is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "text, at_ms",
    [
        ("now", NOW_MS),
        ("90m", utc_ms(2027, 1, 15, 6, 30)),
        ("24h", utc_ms(2027, 1, 14, 8)),
        ("7d", utc_ms(2027, 1, 8, 8)),
        ("2026-11-01", utc_ms(2026, 11, 1)),
        ("2026-11-01T08:00", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01 08:00", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01T08:00Z", utc_ms(2026, 11, 1, 8)),
        ("2026-11-01T08:00:30.250Z", utc_ms(2026, 11, 1, 8, 0, 30) + 250),
        ("2026-11-01T08:00:00+02:00", utc_ms(2026, 11, 1, 6)),
        ("2027-01-15T08:00:00Z", NOW_MS),
        ("1970-01-01", 10**12),  # before Duo was, so as early as the checkpoint file can say
        ("1969-12-31", 10**12),
    ],
)
def test_since_takes_a_time_or_an_age(text, at_ms, new_york):
    assert settings_of("--since", text).since(NOW_MS) == at_ms


@pytest.mark.parametrize("text", ["2027-01-15T08:01Z", "2027-01-15T09:00:00.001+01:00", "2099-12-31"])
def test_a_time_ahead_of_now_is_refused_once_now_is_known(text):
    since = settings_of("--since", text).since  # of which it is not yet known whether Duo's clock is past it
    with pytest.raises(duo_collector.CollectorError, match=f"^--since: {re.escape(text)} is .* ahead of now$") as caught:
        since(NOW_MS)
    assert caught.value.status == 2
    assert since(3 * NOW_MS) == duo_collector.parse_iso(text)


@pytest.mark.parametrize("offset_s", [-3600, 0, 3600])
@pytest.mark.parametrize("ahead_s", [-60, 60])
def test_since_is_judged_by_duos_clock(duo, collector, offset_s, ahead_s):
    duo.rules.clock_offset = offset_s
    at = datetime.fromtimestamp(duo.now_ms() // 1000 + ahead_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = collector.once("--log-types", "telephony", "--since", at)
    assert [request.path for request in duo.requests] == ["/auth/v2/ping"]  # there is no window to ask for
    if ahead_s < 0:
        assert result.stderr.count(" WARNING local clock is ") == bool(offset_s)
        assert (result.status, collector.since("telephony")) == (0, duo_collector.parse_iso(at)), result.stderr
    else:
        assert (result.status, collector.checkpoint_file.exists()) == (2, False)
        assert re.search(f"ERROR --since: {at} is (1 min|5[0-9] s) ahead of now$", result.stderr, re.MULTILINE)


# The settings file


def lead_here(simulator, **more):
    """The lines of a settings file, in all the ways that people write them, begun with a byte order mark."""
    settings = {**simulator.settings, **more}
    lines = [
        f'export DUO_API_HOST="{settings.pop("DUO_API_HOST")}"',
        "",
        "# the Admin API application",
        "DUO_INTEGRATION_KEY=DIYYYYYYYYYYYYYYYYYY",  # the last value of a name counts
        f"DUO_INTEGRATION_KEY='{settings.pop('DUO_INTEGRATION_KEY')}'",
        f"DUO_SECRET_KEY =   {settings.pop('DUO_SECRET_KEY')}  ",
        *(f"{name}={value}" for name, value in settings.items()),
    ]
    return b"\xef\xbb\xbf" + "\r\n".join(lines).encode()


def test_a_settings_file_may_be_written_in_many_ways(collector, duo, tmp_path):
    now_ms = duo.now_ms()
    collector.seed(administrator=now_ms - 900_000, telephony=now_ms - 900_000)
    for name in "administrator", "telephony":
        duo.add(name, make_events(name, 3, now_ms - 600_000, now_ms - 300_000))
    path = tmp_path / "settings"
    path.write_bytes(lead_here(duo, DUO_LOG_TYPES=" telephony , telephony "))
    path.chmod(0o600)
    result = collector.once("--env-file", path, environ=NO_KEYS)
    assert (result.status, len(result.events)) == (0, 3), result.stderr
    assert result.of("telephony") == duo.events("telephony")
    assert "chmod" not in result.stderr

    path.chmod(0o640)
    result = collector.once("--env-file", path, environ={**NO_KEYS, "DUO_LOG_TYPES": "administrator"})
    assert (result.status, len(result.of("administrator"))) == (0, 3), "the environment wins over the file"
    (warning,) = [line for line in result.stderr.splitlines() if " WARNING " in line]
    assert "chmod 600" in warning and str(path) in warning


def test_a_proxy_from_the_settings_file_is_used(collector, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(30)
        path = tmp_path / "settings"
        path.write_text(f"HTTPS_PROXY=http://127.0.0.1:{proxy.getsockname()[1]}\n")
        environ = {"DUO_API_HOST": "api-12345678.duosecurity.com", "DUO_LOG_TYPES": "telephony"}
        process = collector.start("--check", "--env-file", path, environ=environ)
        connection, _ = proxy.accept()
        with connection:
            assert connection.recv(1000).startswith(b"CONNECT api-12345678.duosecurity.com:443 ")
        process.communicate(timeout=60)
    assert process.returncode == 75


# --help, --version, --status


def test_help_and_version_need_no_settings(collector):
    shown = collector.run("--help", environ=NO_KEYS)
    words = set(re.findall(r"[\w-]+", shown.stdout))
    assert words >= {"--once", "--interval", "--log-types", "--since", "--env-file", "--checkpoint-file"}
    assert words >= {"--check", "--status", "-v", "-q", "--version", "-h"}
    version = collector.run("--version", environ=NO_KEYS)
    assert version.stdout == f"duo_collector.py {duo_collector.__version__}\n"
    assert (shown.status, shown.stderr, version.status, version.stderr) == (0, "", 0, "")


def test_status_says_where_each_log_type_is(collector, duo):
    now_ms = duo.now_ms()
    collector.seed(authentication=now_ms - 600_000, telephony=now_ms + 7_300_000)
    before = collector.checkpoint_file.read_bytes()
    environ = {**NO_KEYS, "ADMIN_SINCE_TIME": "1700000000", "TZ": "America/New_York"}
    result = collector.run("--status", environ=environ)
    authentication, administrator, telephony = result.stdout.splitlines()
    at = datetime.fromtimestamp((now_ms - 600_000) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for line, *words in (
        (authentication, "authentication", at, "10 min", "behind"),
        (administrator, "administrator", "2023-11-14T22:13:20Z", " d ", "behind"),  # from its seed
        (telephony, "telephony", "2 h", "ahead"),
    ):
        assert [word for word in words if word not in line] == []
    assert (result.status, result.stderr) == (0, "")
    assert (collector.checkpoint_file.read_bytes(), duo.requests) == (before, [])


def test_status_without_a_file_shows_the_seeds_and_makes_none(collector, duo):
    result = collector.run("--status", "--log-types", ",".join(CHECKPOINT_KEYS), environ=NO_KEYS)
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        [name, "2022-08-20T19:15:59Z"] for name in CHECKPOINT_KEYS
    ]
    assert (result.status, collector.checkpoint_file.exists(), duo.requests) == (0, False, [])


def test_status_works_beside_a_running_collector(collector, duo):
    collector.seed(**dict.fromkeys(("authentication", "administrator", "telephony"), duo.now_ms() - 600_000))
    running = collector.start()
    try:
        wait_for(lambda: "state" in json.loads(collector.checkpoint_file.read_bytes()), "checkpoint")
        assert_refused(collector.once(), 75, str(collector.checkpoint_file))  # it holds the lock
        result = collector.run("--status")
        assert (result.status, len(result.stdout.splitlines())) == (0, 3)
    finally:
        running.terminate()
        running.communicate(timeout=30)


# --check


def test_check_asks_once_for_each_log_type_and_moves_nothing(collector, duo):
    now_ms = duo.now_ms()
    for name in CHECKPOINT_KEYS:
        duo.add(name, make_events(name, 3, now_ms - 600_000, now_ms - 121_000))
    collector.seed(authentication=now_ms - 900_000)
    before = collector.checkpoint_file.read_bytes()
    result = collector.run("--check", "--log-types", ",".join(CHECKPOINT_KEYS))
    assert (result.status, result.stdout) == (0, "".join(f"{name}: ok\n" for name in CHECKPOINT_KEYS))
    assert [request.log_type for request in duo.requests] == list(CHECKPOINT_KEYS)
    limits = {request.log_type: request.params.get("limit") for request in duo.requests}
    assert {name for name, limit in limits.items() if limit is None} == {"administrator", "offline_enrollment"}
    assert set(limits.values()) == {"1", None}
    assert collector.checkpoint_file.read_bytes() == before


@pytest.mark.parametrize(
    "status, words, spoil, environ",
    [
        (77, "401 40103 DUO_INTEGRATION_KEY DUO_SECRET_KEY", lambda duo: None, {"DUO_SECRET_KEY": SECRET}),
        (77, '403 40301 "Grant read log"', lambda duo: setattr(duo.rules, "no_permission", True), {}),
        (77, "404 40401 DUO_LOG_TYPES", lambda duo: duo.rules.missing.update(telephony=404), {}),
        (75, "429 42901 rate-limited", lambda duo: duo.inject(None, "error_429"), {}),
        (75, "500 50001", lambda duo: duo.inject(None, "error_500"), {}),
        (75, "127.0.0.1 refused", lambda duo: None, {"DUO_API_HOST": NOBODY}),
    ],
)
def test_check_says_what_to_fix(status, words, spoil, environ, collector, duo):
    spoil(duo)
    result = collector.run("--check", "-v", "--log-types", "telephony", environ=environ)
    (line,) = result.stdout.splitlines()
    assert result.status == status
    assert [word for word in ["telephony: ", *words.split()] if word not in line] == []
    assert_hidden(result.stdout, result.stderr)
    assert not collector.checkpoint_file.exists()


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_log_that_duo_deprecates_is_told_with_its_successor(collector, duo, status):
    duo.rules.missing.update(administrator=status, trust_monitor=status)
    lines = collector.run("--check", "--log-types", "authentication,administrator,trust_monitor").stdout.splitlines()
    advice = "; Duo is deprecating this log in favour of activity"
    assert [line.partition(": ")[0] for line in lines if line.endswith(advice)] == ["administrator"]


def test_a_refused_log_type_does_not_hide_the_others(collector, duo):
    duo.rules.missing.update(authentication=403, telephony=404)
    duo.inject("trust_monitor", "error_500")
    result = collector.run("--check", "--log-types", ",".join(CHECKPOINT_KEYS))
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert list(said) == list(CHECKPOINT_KEYS)
    assert [name for name, words in said.items() if words == "ok"] == [
        "administrator",
        "activity",
        "offline_enrollment",
    ]
    assert result.status == 77  # the worst, not the last


# The secret key


def test_the_secret_key_shows_in_no_repr():
    settings = settings_of()
    duo = duo_collector.Duo(settings, duo_collector.Edges(time.time, time.monotonic, time.sleep, requests.Session))
    request = duo.session.prepare_request(requests.Request("GET", f"{settings.base_url}/?a=b"))
    assert request.headers["Authorization"]
    assert_hidden(repr(settings), str(settings), repr(duo), f"{duo}", repr(duo.session.auth), str(vars(request)))


def test_the_secret_key_shows_in_no_output(tmp_path):
    with Simulator(skey=SECRET) as duo:
        collector = Collector(tmp_path, duo)
        now_ms = duo.now_ms()
        collector.seed(**dict.fromkeys(("authentication", "administrator", "telephony"), now_ms - 900_000))
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


@pytest.mark.parametrize("length_ms, text", [
    (0, "0 s"), (999, "0 s"), (59_999, "59 s"), (60_000, "1 min"), (310_000, "5 min 10 s"), (3_600_000, "1 h"),
    (3_601_000, "1 h 1 s"), (86_399_000, "23 h 59 min"), (273_845_000, "3 d 4 h"), (86_400_000_000, "1,000 d"),
])  # fmt: skip
def test_a_duration_is_shown_in_its_two_largest_units(length_ms, text):
    assert duo_collector.duration(length_ms) == text
