"""An environment that an upgrade of the system left behind, and warnings of the packages."""

import subprocess
import sys

from conftest import ONLY, SCRIPT, before


def test_an_environment_without_the_packages_is_to_be_recreated(tmp_path):
    """As after an upgrade of the system's Python: the one in use is that of .venv already."""
    venv = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = str(venv / "bin" / "python")
    run = subprocess.run([python, SCRIPT, "--once"], capture_output=True, text=True, env={})
    (line,) = run.stderr.splitlines()
    assert (run.returncode, run.stdout) == (78, "")
    assert f"dotenv is not installed for {python}: recreate the environment with " in line
    commands = line.split(" with ")[1]
    assert "python3 -m venv --clear .venv" in commands
    assert ".venv/bin/python -m pip install -r requirements.txt" in commands


def test_a_warning_of_urllib3_about_libressl_is_not_shown(duo, collector):
    """As urllib3 2 gives it on macOS, where Python is built with LibreSSL."""
    before(collector, "import ssl; ssl.OPENSSL_VERSION = 'LibreSSL 2.8.3'")
    result = collector.once("-q", *ONLY)
    assert (result.status, result.stderr) == (0, "")
