"""The settings file: how it may be written, and where its paths start."""

import re
import shutil
import socket
import sys

import pytest
from conftest import HOUR, KEYS, NO_KEYS, ONLY, SCRIPT, assert_refused, now_ms
from duo import make_events


def lead_here(simulator, **more):
    """The lines of a settings file, in all the ways that people write them, begun with a byte
    order mark."""
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
    result = collector.once(
        "--env-file", path, environ={**NO_KEYS, "DUO_LOG_TYPES": "administrator"}
    )
    assert (result.status, len(result.of("administrator"))) == (0, 3), (
        "the environment wins over the file"
    )
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


@pytest.fixture
def installed(tmp_path, collector):
    """The script in a folder of its own, started elsewhere and without an option for its settings
    file."""
    folder = tmp_path / "opt"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (tmp_path / "cwd").mkdir()
    collector.command = lambda *options: [
        sys.executable,
        str(folder / "duo_collector.py"),
        *map(str, options),
    ]
    start = collector.start
    collector.start = lambda *options, **more: start(*options, **{"cwd": tmp_path / "cwd", **more})
    return folder


def test_without_a_settings_file_all_that_is_missing_is_told_at_once(duo, collector, installed):
    result = collector.once(environ={**dict.fromkeys(KEYS), "DUO_SECRET_KEY": ""})
    (line,) = result.stderr.splitlines()
    assert result.status == 78
    assert (
        "DUO_API_HOST is not set, DUO_INTEGRATION_KEY is not set, DUO_SECRET_KEY is empty" in line
    )
    assert f"{installed / '.env'}, which does not exist" in line and ".env.example" in line


def settings_file(collector, installed, **more):
    """Move the settings from the environment to .env."""
    names = [name for name in collector.environ if name.startswith("DUO_")]
    settings = {**{name: collector.environ.pop(name) for name in names}, **more}
    path = installed / ".env"
    path.write_text(
        "".join(f"{name}={value}\n" for name, value in settings.items() if value is not None)
    )
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "written", ["kept.json", "./kept.json", "~/kept.json", "../home/kept.json"]
)
def test_a_path_in_the_settings_file_does_not_depend_on_where_it_is_started(
    duo, collector, installed, tmp_path, written
):
    home = tmp_path / "home"
    home.mkdir()
    collector.environ["HOME"] = str(home)
    settings_file(collector, installed, DUO_CHECKPOINT_FILE=written)
    result = collector.once(*ONLY)
    assert result.status == 0, result.stderr
    assert (
        (home if "home" in written or "~" in written else installed).joinpath("kept.json").exists()
    )
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_line_of_the_settings_file_that_is_none_is_told_with_the_file(duo, collector, installed):
    collector.seed(telephony=now_ms() - HOUR)
    path = settings_file(collector, installed)
    path.write_text(path.read_text() + "this is no setting\n")
    result = collector.once(*ONLY)
    assert result.status == 0
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert f"settings file {path}" in line and re.search(r"line \d", line)


def test_a_working_directory_that_is_gone(duo, collector, tmp_path):
    (tmp_path / "gone").mkdir()
    command = collector.command
    remove = 'rmdir "$PWD" && exec "$@"'
    collector.command = lambda *options: [
        "sh",
        "-c",
        remove,
        "sh",
        *command(*options),
        "--env-file",
        "duo.env",
    ]
    result = collector.once(cwd=tmp_path / "gone")
    assert (result.status, len(result.stderr.splitlines())) == (78, 1), result.stderr
    assert "settings file duo.env cannot be read: No such file" in result.stderr


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
