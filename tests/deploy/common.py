"""What all tests of deploy/ use: where it is, the commands of its pages, and what to do where a program is missing."""

import os
import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(what):
    """Skip the test, but not in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


def program(name, package):
    """The path of a program."""
    return shutil.which(name, path=PATH) or missing(f"{name} (Debian: {package})")


def changed(text, changes):
    """Text with replacements, each of which must find something: a change not made tests nothing."""
    for old, new in changes.items():
        assert old in text, f"not there: {old}"
        text = text.replace(old, new)
    return text


def blocks(page, section):
    """The blocks of shell commands in a section of a page."""
    found, here, commands = [], False, None
    for line in (DEPLOY / page).read_text().splitlines():
        if commands is not None:
            if line == "```":
                found.append("\n".join(commands))
                commands = None
            else:
                commands.append(line)
        elif line.startswith("#"):
            here = line.lstrip("# ") == section
        elif here and line == "```sh":
            commands = []
    assert found, f"{page} has no commands in {section}"
    return found
