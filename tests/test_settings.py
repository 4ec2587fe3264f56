"""Settings from the environment and from options: what is taken, and what is refused by name."""

import re

import pytest
from conftest import (
    CHECKPOINT_KEYS,
    HOUR,
    ONLY,
    SECRET,
    assert_hidden,
    assert_refused,
    now_ms,
    settings_of,
)

import duo_collector

NOT_A_NUMBER = (
    "abc",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e3",
    "0x10",
    "1_000",
    "5 s",
    "\u0663",
    "99999999999",
)


NOT_A_KEY = (
    *(
        "",
        f" {SECRET}",
        f"{SECRET} ",
        f"{SECRET}\n",
        f"\t{SECRET}",
        f'"{SECRET}"',
        f"'{SECRET}'",
        f"`{SECRET}",
    ),
    *(
        f"{SECRET[:20]} {SECRET[20:]}",
        f"{SECRET}\n{SECRET}",
        f"{SECRET}\u00e4",
        f"{SECRET}\u200b",
        f"\ufeff{SECRET}",
    ),
)


WRONG = {
    "DUO_API_HOST": (
        *(
            "",
            " ",
            " api-1.duosecurity.com",
            "api-1.duosecurity.com ",
            "api-1.duosecurity.com\n",
            "api 1.com",
        ),
        *(
            "https://api-1.duosecurity.com//",
            "https://api-1.duosecurity.com/admin/v1",
            "api-1.duosecurity.com:443",
        ),
        *(
            "https://api-XXXXXXXX.duosecurity.com",
            "api-xxxxxxxx.duosecurity.com/",
            "/",
            "https:///",
        ),
        *(
            "https://api-1.duosecurity.com?a=b",
            "api-1.duosecurity.com#a",
            "https://user@api-1.duosecurity.com",
        ),
        *(
            "http://api-1.duosecurity.com",
            "http://localhost.duosecurity.com",
            "http://127.0.0.1.duosecurity.com",
        ),
        *(
            "ftp://api-1.duosecurity.com",
            "https://",
            "https://https://api-1.duosecurity.com",
            "\u00e4pi-1.com",
        ),
        *("https://api..duosecurity.com", "a" * 64 + ".duosecurity.com", "http://127.0.0.1:99999"),
    ),
    "DUO_INTEGRATION_KEY": NOT_A_KEY,
    "DUO_SECRET_KEY": NOT_A_KEY,
    "DUO_INTERVAL": ("0", "0m", "10 m", "10M", "1.5h", "2d", "-10m", "10min", *NOT_A_NUMBER),
    "DUO_REQUESTS_PER_MINUTE": ("0", *NOT_A_NUMBER),
    "DUO_LOOKBACK": ("0.5", "300.0", "300.25", "5m", *NOT_A_NUMBER),
    "DUO_LOG_TYPES": (
        ",",
        "syslog",
        "authentication,syslog",
        "authentication telephony",
        "authentication;telephony",
    ),
    "AUTH_SINCE_TIME": (
        "1661022959",
        "166102295993",
        "16610229599345",
        "-1661022959934",
        "166102295993x",
        "now",
    ),
    "ADMIN_SINCE_TIME": (
        "1661022959934",
        "166102295",
        "16610229599",
        "-1661022959",
        "1661022959.0",
        "2022-08-20",
    ),
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


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_by_name(name, value):
    by_option = name.startswith("--")
    with pytest.raises(duo_collector.CollectorError) as caught:
        settings_of(f"{name}={value}") if by_option else settings_of(**{name: value})
    assert caught.value.status == (2 if by_option else 78)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()  # so it is one line
    shown = (
        " is empty"
        if not value
        else ": character "
        if value in NOT_A_KEY
        else f" {duo_collector.one_line(repr(value))}: "
    )
    assert str(caught.value).startswith(name + shown)
    assert_hidden(str(caught.value))


AT_MS = 1661022959934


# Status, what the message names, options, environment, settings file. {} stands for the test's
# folder.
REFUSED_RUNS = [
    (2, "--interval", ["--interval", "0"], {}, ""),
    (2, "--log-types", ["--log-types", ","], {}, ""),
    (2, "--since", ["--since", "2999-01-01"], {}, ""),
    (2, "--checkpoint-file", ["--checkpoint-file", ""], {}, ""),
    (
        2,
        "--inter",
        ["--inter", "5"],
        {},
        "",
    ),  # an abbreviation would change its meaning with the next option
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
    (
        78,
        "DUO_SECRET_KEY",
        [],
        {"DUO_SECRET_KEY": "deadbeef\udcff"},
        "",
    ),  # a byte that is not UTF-8
    (78, "DUO_INTERVAL", ["-q"], {"DUO_INTERVAL": "nan"}, ""),
    (78, "DUO_LOOKBACK", ["--status"], {"DUO_LOOKBACK": "-1"}, ""),
    (78, "TELEPHONY_SINCE_TIME", [], {"TELEPHONY_SINCE_TIME": "1661022959"}, ""),
    (78, "ADMIN_SINCE_TIME", [], {}, "ADMIN_SINCE_TIME=1661022959934\n"),
    (78, "DUO_LOG_TYPES", [], {}, "DUO_LOG_TYPES='authentication telephony'\n"),
    (
        78,
        "DUO_INTEGRATION_KEY",
        [],
        {"DUO_INTEGRATION_KEY": None},
        'DUO_INTEGRATION_KEY=" DIXXXXXXXX"\n',
    ),
    (78, "{}/absent", ["--env-file", "{}/absent"], {}, ""),
    (78, "{}/folder", ["--env-file", "{}/folder"], {}, ""),
    (78, "{}/binary", ["--env-file", "{}/binary"], {}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/absent'", [], {"DUO_SECRET_KEY_FILE": "{}/absent"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/folder'", [], {"DUO_SECRET_KEY_FILE": "{}/folder"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/empty'", [], {"DUO_SECRET_KEY_FILE": "{}/empty"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/binary'", [], {"DUO_SECRET_KEY_FILE": "{}/binary"}, ""),
    (78, "DUO_SECRET_KEY_FILE '{}/two_lines'", [], {"DUO_SECRET_KEY_FILE": "{}/two_lines"}, ""),
    (
        78,
        "DUO_SECRET_KEY_FILE",
        [],
        {"DUO_SECRET_KEY_FILE": SECRET},
        "",
    ),  # the key itself in the place of its file
    (78, "{}/env", [], {}, "'A=B'=c\n"),
    (
        78,
        "REQUESTS_CA_BUNDLE",
        [],
        {"DUO_API_HOST": "https://127.0.0.1:1", "REQUESTS_CA_BUNDLE": "{}/absent"},
        "",
    ),
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
    files = {
        "empty": b"",
        "binary": b"\xff\0\xfe",
        "two_lines": b"dead\nbeef\n",
        "env": dotenv.encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    before = contents(tmp_path)
    options = [option.replace("{}", str(tmp_path)) for option in options]
    environ = {
        name: value and value.replace("{}", str(tmp_path)) for name, value in environ.items()
    }
    mode = () if {"--check", "--status", "--accounts", "--once"} & set(options) else ("--once",)
    result = collector.run(*mode, "--env-file", tmp_path / "env", *options, environ=environ)
    assert_refused(result, status, named.replace("{}", str(tmp_path)))
    assert contents(tmp_path) == before
    assert_hidden(result.stderr)
    assert duo.requests == []


@pytest.mark.parametrize(
    "given, url, host",
    [
        (
            "api-12345678.duosecurity.com",
            "https://api-12345678.duosecurity.com",
            "api-12345678.duosecurity.com",
        ),
        (
            "https://api-12345678.duofederal.com",
            "https://api-12345678.duofederal.com",
            "api-12345678.duofederal.com",
        ),
        ("https://API-1.DuoSecurity.com", "https://api-1.duosecurity.com", "api-1.duosecurity.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1"),
        ("http://localhost", "http://localhost", "localhost"),
        ("https://[::1]:8443", "https://[::1]:8443", "::1"),
        (
            "https://api-1.duosecurity.com/",
            "https://api-1.duosecurity.com",
            "api-1.duosecurity.com",
        ),
        ("api-1.duosecurity.com/", "https://api-1.duosecurity.com", "api-1.duosecurity.com"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "127.0.0.1"),
    ],
)
def test_the_host_may_come_with_or_without_https(given, url, host):
    settings = settings_of(DUO_API_HOST=given)
    assert (settings.base_url, settings.host) == (url, host)


def test_an_option_wins_over_the_environment_and_an_empty_variable_is_none():
    wanted = settings_of("--interval", "5", *ONLY, DUO_INTERVAL="7", DUO_LOG_TYPES="administrator")
    assert (wanted.interval_s, [row.name for row in wanted.log_types]) == (5, ["telephony"])
    defaults = settings_of(DUO_INTERVAL="", DUO_LOG_TYPES="", DUO_LOOKBACK="", AUTH_SINCE_TIME="")
    assert (defaults.interval_s, defaults.lookback_s, defaults.requests_per_minute) == (
        300,
        300,
        50,
    )
    assert [row.name for row in defaults.log_types] == [
        "authentication",
        "administrator",
        "telephony",
    ]
    assert {row.name: at_ms // row.unit_ms for row, at_ms in defaults.start_times.items()} == {
        name: 1661022959934 // unit_ms for name, (_, unit_ms) in CHECKPOINT_KEYS.items()
    }


@pytest.mark.parametrize(
    "text, seconds", [("0.01", 0.01), ("7", 7), ("90s", 90), ("10m", 600), ("24h", 86_400)]
)
def test_an_interval_may_be_an_age(text, seconds):
    assert (
        settings_of("--interval", text).interval_s
        == settings_of(DUO_INTERVAL=text).interval_s
        == seconds
    )


def test_log_types_may_have_spaces_and_repeats():
    settings = settings_of(DUO_LOG_TYPES=" telephony ,authentication, telephony")
    assert [row.name for row in settings.log_types] == ["telephony", "authentication"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_key_file_may_end_in_a_newline(end, tmp_path):
    (tmp_path / "key").write_bytes((SECRET + end).encode())
    assert (
        settings_of(DUO_SECRET_KEY_FILE=str(tmp_path / "key"), DUO_SECRET_KEY="").secret_key
        == SECRET
    )


@pytest.mark.parametrize("lookback", ["30.5", "0.5", "1e2", "-1", "300s"])
def test_the_lookback_has_whole_seconds(duo, collector, lookback):
    result = collector.once(environ={"DUO_LOOKBACK": lookback})
    assert (result.status, duo.requests) == (78, []), result.stderr
    assert f"DUO_LOOKBACK '{lookback}': write a number of whole seconds" in result.stderr


UNKNOWN = {
    "DUO_LOGTYPES": "DUO_LOG_TYPES",
    "DUO_INTERVALL": "DUO_INTERVAL",
    "DUO_SECRET": "DUO_SECRET_KEY",
    "DUO_HOST": "DUO_API_HOST",
    "DUO_IKEY": "DUO_",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_is_no_setting_is_told_with_the_nearest(duo, collector, name):
    collector.seed(telephony=now_ms() - HOUR)
    result = collector.once(*ONLY, environ={name: "x"})
    assert result.status == 0
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert re.search(f"{name} is not a setting and is ignored; did you mean {UNKNOWN[name]}", line)


@pytest.mark.parametrize(
    "host, words",
    [
        ("https://api-XXXXXXXX.duosecurity.com", "that is the placeholder"),
        ("api-xxxxxxxx.duosecurity.com", "that is the placeholder"),
    ],
)
def test_the_placeholder_for_the_host_is_told_as_that(collector, host, words):
    result = collector.once(environ={"DUO_API_HOST": host, "HTTPS_PROXY": "http://127.0.0.1:1"})
    assert (result.status, words in result.stderr) == (78, True), result.stderr


@pytest.mark.parametrize(
    "host, told",
    [
        ("https://api-12345678.duosecurity.example", True),
        ("https://duosecurity.com.example", True),
        ("https://api-12345678.duosecurity.com", False),
        ("https://api-12345678.duofederal.com", False),
        ("http://127.0.0.1:1", False),
    ],
)
def test_a_host_that_is_not_duos_is_told(collector, host, told):
    """All of them over a proxy that is not there, so that nothing is sent anywhere."""
    environ = {"DUO_API_HOST": host, "HTTPS_PROXY": "http://127.0.0.1:1"}
    result = collector.run("--check", *ONLY, environ=environ)
    assert result.status == 75, result.stderr
    assert ("signed requests are sent there" in result.stderr) == told


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
