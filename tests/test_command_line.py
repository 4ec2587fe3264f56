"""Options: --help, --version, and what does not go together."""

import os
import re

import pytest
from conftest import NO_KEYS, ONLY, fill, fill_and_seed, finish

import duo_collector


def test_help_and_version_need_no_settings(collector):
    shown = collector.run("--help", environ=NO_KEYS)
    words = set(re.findall(r"[\w-]+", shown.stdout))
    assert words >= {
        "--once",
        "--interval",
        "--log-types",
        "--since",
        "--env-file",
        "--checkpoint-file",
    }
    assert words >= {"--check", "--status", "-v", "-q", "--version", "-h"}
    version = collector.run("--version", environ=NO_KEYS)
    assert version.stdout == f"duo_collector.py {duo_collector.__version__}\n"
    assert (shown.status, shown.stderr, version.status, version.stderr) == (0, "", 0, "")


WRONG_OPTIONS = [
    *(
        ["--status", "--max-lag", text]
        for text in ("", "15", "-15m", "1.5h", "soon", "now", "99999999d")
    ),
    ["--max-lag", "15m"],
    ["--json"],
    ["--check", "--json"],
    ["--until", "now"],
    ["--once", "--until", "2026-11-01"],
    *(["--since", "1h", "--until", text] for text in ("", "1h", "2h", "soon", "2999-01-01")),
    ["--since", "2026-11-01T00:00Z", "--until", "2026-11-01T01:00+01:00"],
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=" ".join)
def test_wrong_options_are_told_in_a_line(duo, collector, options):
    result = collector.run(*options)
    (line,) = result.stderr.splitlines()
    assert (result.status, result.stdout, [r.path for r in duo.requests if r.log_type]) == (
        2,
        "",
        [],
    )
    assert any(option in line for option in options if option.startswith("--")), line
    assert not collector.checkpoint_file.exists()


@pytest.mark.parametrize(
    "mode",
    [
        ["--once", "--status"],
        ["--once", "--check"],
        ["--once", "--accounts"],
        ["--since", "1h", "--status"],
        ["--check", "--since", "1h"],
    ],
    ids=" ".join,
)
def test_options_that_exclude_each_other_are_told(duo, collector, mode):
    result = collector.run(*mode)
    assert (result.status, result.stdout, duo.requests) == (2, "", [])
    assert all(option in result.stderr for option in mode if option.startswith("--")), result.stderr


def test_without_since_it_is_a_wrong_command_line(duo, collector, file):
    for options in (
        ["--missing-from", file],
        ["--once", "--missing-from", file],
        ["--missing-from", ""],
    ):
        result = collector.run(*options)
        assert (result.status, result.stdout, duo.requests) == (2, "", [])
        assert "--missing-from" in result.stderr and "--since" in result.stderr


def test_an_empty_name_is_no_ordinary_run(duo, collector):
    """As where the variable of a script is not set: that would move the checkpoint back, and
    repeat two days."""
    fill(duo, "telephony", 20, hours=(6, 1))
    result = collector.once("--since", "48h", "--missing-from", "")
    assert result.status in (2, 78), f"{len(result.events)} events written, the checkpoint moved"
    assert (result.stdout, duo.requests, collector.checkpoint_file.exists()) == ("", [], False)
    assert "--missing-from" in result.stderr


@pytest.mark.parametrize("folder", ["/", "/proc", "gone"])
def test_it_runs_anywhere_and_with_nothing_in_its_environment(duo, collector, tmp_path, folder):
    """/proc is read-only even for root."""
    if not os.path.isdir(folder) and folder != "gone":
        pytest.skip(f"no {folder} here")
    fill_and_seed(duo, collector, 10, "telephony")
    collector.environ = {
        name: value for name, value in collector.environ.items() if name.startswith("DUO_")
    }
    gone = tmp_path / "gone"
    gone.mkdir()
    change = f"cd '{gone}' && /bin/rmdir '{gone}'" if folder == "gone" else f"cd {folder}"
    result = finish(
        collector.shell(f'{change} && unset PATH PWD OLDPWD && exec "$@"', "--once", *ONLY)
    )
    assert (result.status, len(result.events)) == (0, 10), result.stderr
