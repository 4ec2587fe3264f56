"""A wrong setting: the message says which part of it is wrong, and never shows a key."""

import codecs
import pathlib

import pytest
from conftest import HOUR, ONLY, SCRIPT, SECRET, assert_refused, now_ms

HOST = "http://api-12345678.duosecurity.com"


def test_http_is_the_fault_of_an_address(duo, collector):
    result = collector.once(environ={"DUO_API_HOST": HOST})
    assert_refused(result, 78, f"DUO_API_HOST '{HOST}': http is not encrypted: write https://")


@pytest.mark.parametrize("name", ["DUO_INTEGRATION_KEY", "DUO_SECRET_KEY"])
@pytest.mark.parametrize(
    "character, kind",
    [
        (" ", "space"),
        ("\t", "control character 9"),
        ("\u200b", "zero width space"),
        ("\u00a0", "no-break space"),
        ("\u201c", "left double quotation mark"),
        ('"', "quotation mark"),
    ],
    ids=["space", "tab", "zero width", "no-break", "typographic", "quote"],
)
def test_a_character_of_a_key_is_told_by_kind_and_place(collector, name, character, kind):
    value = SECRET[:20] + character + SECRET[20:]
    result = collector.once(environ={name: value})
    assert_refused(result, 78, f"{name}: character 21 of 41 is a {kind}: write just Duo's key")
    assert SECRET[:8] not in result.stderr and SECRET[-8:] not in result.stderr


def test_a_key_file_with_a_space_is_told_alike(collector, tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{SECRET} \n")
    path.chmod(0o600)
    result = collector.once(environ={"DUO_SECRET_KEY_FILE": str(path)})
    assert_refused(result, 78, "character 41 of 41 is a space: write just Duo's key")
    assert SECRET[:8] not in result.stderr


@pytest.mark.parametrize("order_mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b""])
def test_a_settings_file_of_notepad_is_to_be_saved_as_utf_8(collector, tmp_path, order_mark):
    path = tmp_path / ".env"
    kind = "utf-16-be" if order_mark == codecs.BOM_UTF16_BE else "utf-16-le"
    path.write_bytes(order_mark + "DUO_INTERVAL=600\n".encode(kind))
    result = collector.once("--env-file", path)
    assert_refused(result, 78, f"settings file {path} cannot be read: it is not UTF-8 but perhaps")
    assert "UTF-16: save it as UTF-8" in result.stderr


@pytest.mark.parametrize(
    "when, words",
    [
        ("2026-13-01", "month must be in 1..12"),
        ("2026-02-30", "day is out of range for month"),
        ("2026-11-01T25:00", "hour must be in 0..23"),
    ],
)
def test_a_date_that_does_not_exist_is_told_by_its_part(collector, when, words):
    result = collector.once("--since", when)
    assert_refused(result, 2, f"--since '{when}': {words}")


@pytest.mark.parametrize("where", ["~/corp.pem", "corp.pem"])
def test_a_bundle_of_the_settings_file_is_found(duo, collector, tmp_path, where):
    collector.seed(telephony=now_ms() - HOUR)
    (tmp_path / "corp.pem").touch()
    path = tmp_path / ".env"
    path.write_text(f"REQUESTS_CA_BUNDLE={where}\n")
    path.chmod(0o600)
    elsewhere = pathlib.Path("/")
    environ = {"HOME": str(tmp_path)}
    result = collector.once(*ONLY, "--env-file", path, environ=environ, cwd=elsewhere)
    assert (result.status, "REQUESTS_CA_BUNDLE" in result.stderr) == (0, False), result.stderr


def test_the_example_warns_of_comments_after_a_value():
    lines = SCRIPT.with_name(".env.example").read_text().splitlines()
    assert [line for line in lines if "EnvironmentFile=" in line and "comment" in line]
    for line in lines:
        name, equals, value = line.lstrip("#").partition("=")
        assert not (equals and name.isupper() and " #" in value), line
