"""README.md, .env.example and deploy/requirements.lock say what the collector does, and README's commands work as printed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from conftest import SCRIPT
from duo import Simulator, iter_events

import duo_collector

ROOT = SCRIPT.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="ascii")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [text.strip() for language, text in BLOCKS if language == "sh"]
OUTPUTS = dict(re.findall(r"^```sh\n(.+)\n```\n\n```\n((?:(?!```).*\n)+)```$", README, re.M))
VARIABLES = set(duo_collector.VARIABLES)
SETTINGS = {*VARIABLES, *(row.since_key for row in duo_collector.LOG_TYPES.values())}
LOG_TYPES = duo_collector.DEFAULT_LOG_TYPES.split(",")
HOUR_MS = 3_600_000


def requirements():
    return (ROOT / "requirements.txt").read_text().split()


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def column(title, number):
    """What is in backticks in one column of a section's tables."""
    rows = [line.split("|") for line in section(title).splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall("`([^`]+)`", row[number])}


def test_the_script_declares_what_requirements_txt_installs():
    """For `uv run` and `pipx run`; the expression is that of PEP 723."""
    block = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    match = re.search(block, SCRIPT.read_text())
    assert match["type"] == "script"
    fields = dict(line[2:].split(" = ", 1) for line in match["content"].splitlines())
    assert ast.literal_eval(fields["dependencies"]) == requirements()
    oldest = re.search(r'target-version = "py(\d)(\d+)"', (ROOT / ".ruff.toml").read_text())
    assert ast.literal_eval(fields["requires-python"]) == f">={oldest[1]}.{oldest[2]}"


def test_the_lock_has_a_hash_for_each_package_and_no_registry():
    text = (ROOT / "deploy" / "requirements.lock").read_text()
    assert "://" not in text
    packages = re.findall(r"^(\S+)==(.*(?:\n    .*)+)", text, re.M)
    assert all("--hash=sha256:" in rest for _, rest in packages)
    assert len(packages) == len(re.findall("^[^ #\n]", text, re.M))
    assert {re.split("[<>=]", line)[0] for line in requirements()} <= {name for name, _ in packages}


def test_every_setting_is_in_readme_and_env_example():
    assert set(re.findall("DUO_[A-Z_]*[A-Z]", SCRIPT.read_text())) == VARIABLES
    assert column("Settings", 1) == SETTINGS
    others = {"HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}
    assert all(f"`{name}`" in section("Settings") for name in others)
    assert set(re.findall("^#?([A-Z_]+)=", ENV_EXAMPLE, re.M)) == SETTINGS | others
    assert set(re.findall("DUO_[A-Z_]*[A-Z]", README + ENV_EXAMPLE)) == VARIABLES


def test_every_option_is_in_readme(collector):
    shown = collector.run("--help").stdout
    options = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", shown.partition("options:")[2].partition("Settings:")[0]))
    assert len(options) > 15
    assert column("Settings", 2) == options
    assert column("Settings", 1) > set(re.findall("DUO_[A-Z_]+", shown))


def test_every_exit_status_is_in_readme():
    statuses = {int(number) for number in re.findall(r"^\| (\d+) \|", section("Settings"), re.M)}
    assert statuses == {0, 2, 74, 75, 77, 78}
    tree = ast.walk(ast.parse(SCRIPT.read_text()))
    calls = [node for node in tree if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CollectorError"]
    raised = {node.args[1].value for node in calls if isinstance(node.args[1], ast.Constant)}
    assert {2, 74, 75, 78} == raised


def test_defaults_are_those_that_readme_tells():
    seeds = {row.since_key: str(duo_collector.SEED_MS // row.unit_ms) for row in duo_collector.LOG_TYPES.values()}
    for line in section("Settings").splitlines():
        cells = [cell.strip(" `") for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and re.fullmatch(r"[0-9]+|[a-z]+,.*", cells[2]):
            names = re.findall("[A-Z_]+[A-Z]", cells[0])
            assert names
            for name in names:
                found = re.search(f'"{name}", .*"{re.escape(cells[2])}"', SCRIPT.read_text())
                default = duo_collector.DEFAULT_LOG_TYPES if name == "DUO_LOG_TYPES" else seeds.get(name)
                assert found or default == cells[2], (name, cells[2])


def test_the_two_commands_come_first():
    """However simply the page is read: the first thing between fences is the demo, the next the tests."""
    assert re.findall("^```(?:sh)?\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[:2] == ["tests/demo\n", "tests/run\n"]


def test_the_events_shown_are_of_each_default_log_type(collector, duo):
    """With the fields, and the kinds of values, that the collector writes."""
    now = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, iter_events(log_type, 500, now - HOUR_MS, now - HOUR_MS // 2))
    collector.seed(**dict.fromkeys(LOG_TYPES, now - 2 * HOUR_MS))
    written = collector.once().events
    text = "".join(line for line in section("Events").splitlines(keepends=True) if line.startswith("    "))
    shown = json.loads("[" + text.replace("}\n    {", "},{") + "]")
    assert [event["eventtype"] for event in shown] == LOG_TYPES
    for event in shown:
        same = [other for other in written if other["eventtype"] == event["eventtype"]]
        assert list(event) in [list(other) for other in same]
        for name, value in event.items():
            assert any(type(other.get(name)) is type(value) for other in same), name
            if isinstance(value, dict):
                assert any(isinstance(other.get(name), dict) and list(other[name]) == list(value) for other in same), name


def test_the_log_types_table_is_that_of_the_module():
    rows = [line.split(" | ") for line in section("Events").splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(duo_collector.LOG_TYPES)
    for (_, page, time_field, id_field, _), row in zip(rows, duo_collector.LOG_TYPES.values()):
        assert "https://duo.com/docs/adminapi#" in page
        assert time_field.startswith(f"`{row.time_field}`")
        assert id_field == (f"`{row.id_field}`" if row.id_field else "none")
        unit = {"isotimestamp": "ISO 8601", "ts": "ISO 8601", "timestamp": ", s", "surfaced_timestamp": ", ms"}
        assert unit[row.time_field] in time_field


def test_every_link_leads_somewhere():
    for page in ("README.md", "deploy/README.md", "tests/README.md", ".github/CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if not path.startswith("https:"):
                file = (ROOT / page).parent / path if path else ROOT / page
                assert file.exists(), (page, target)
                if anchor:
                    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
                    assert anchor in [re.sub("[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_first_commands_are_the_demo_and_the_tests():
    assert COMMANDS[:2] == ["tests/demo", "tests/run"]
    assert all(os.access(ROOT / command, os.X_OK) for command in COMMANDS[:2])


# The commands, in a folder like a fresh clone


def shape(text):
    """Text without what differs from run to run: numbers, times, and durations."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", text)
    text = re.sub(r"(\d+ (d|h|min|s) )*\d+ (d|h|min|s)\b", "DURATION", text)
    return sorted(re.sub(r"[\d,]*\d", "N", text).splitlines())


def fill(text, settings):
    """A settings file with these values, each in the line that the file has for it."""
    for name, value in settings.items():
        text, count = re.subn(f"^#?{name}=.*$", f"{name}={value}", text, flags=re.M)
        assert count == 1, name
    return text


def every_command():
    """README's commands in its order, the line for cron among them."""
    commands = [text.strip() if language else text.replace("*/5 * * * * ", "").strip() for language, text in BLOCKS
                if language == "sh" or text.startswith("*/5 ")]  # fmt: skip
    assert sum("--once -q >>" in command for command in commands) == 1
    return commands


@pytest.fixture
def clone(tmp_path):
    """A folder with what `git clone` and README's first commands make, and settings for a simulated tenant."""
    home, logs = tmp_path / "home", tmp_path / "log"
    folder = home / "duo_collector"
    folder.mkdir(parents=True)
    logs.mkdir()
    for name in ("duo_collector.py", "requirements.txt", ".env.example"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}

    def run(command):
        """In its output too, the folder for events is the one that README has root create."""
        command = command.replace("/var/log/duo", str(logs / "duo"))
        done = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr.replace(str(logs / "duo"), "/var/log/duo")

    (install,) = [text for text in COMMANDS if "git clone" in text]
    later = [line for line in install.splitlines() if not re.match("git clone|cd |python3 -m venv|.*pip install", line)]
    assert len(later) == 2
    for line in later:
        assert run(line) == (0, "", "")
    return run, folder, home, logs / "duo"


def test_commands_work_as_printed(clone):
    """In README's order, on a tenant that publishes a part of its events late; each prints what README shows."""
    run, folder, home, logs = clone
    shown, published, late = dict(OUTPUTS), Counter(), {}
    assert len(shown) == 4
    (make_folder,) = [text for text in COMMANDS if text.endswith("/var/log/duo")]
    assert run(make_folder) == (0, "", "")
    assert logs.stat().st_mode & 0o777 == 0o750
    with Simulator() as duo:
        now = duo.now_ms()
        for log_type in LOG_TYPES:
            events = list(iter_events(log_type, 1200, now - 12 * HOUR_MS, now - HOUR_MS // 6))
            late[log_type] = events[100:1100:50]
            duo.add(log_type, [event for number, event in enumerate(events) if number not in range(100, 1100, 50)])
            added = {"eventtype": log_type, "host": "127.0.0.1"}
            published.update(json.dumps({**event, **added}, sort_keys=True) for event in events)
        told = re.search("`DUO_CHECKPOINT_FILE=([^`]+)`", section("Install"))[1]
        settings = fill((folder / ".env").read_text(), {**duo.settings, "DUO_CHECKPOINT_FILE": told})
        (folder / ".env").write_text(settings)
        checkpoints = home / ".local/state/duo/checkpoints.json"
        for command in [text for text in every_command() if "duo_collector.py --" in text and not text.startswith("zcat")]:
            if "--once" in command and not checkpoints.exists():
                # The preview came first, and has moved nothing.
                assert (folder / "preview.jsonl").stat().st_mode & 0o777 == 0o600
                assert len((folder / "preview.jsonl").read_text().splitlines()) == sum(published.values()) - 60
            if "--missing-from" in command:
                for log_type, events in late.items():
                    duo.add(log_type, events)
            status, stdout, stderr = run(command)
            assert status == 0, (command, stderr)
            if command in shown:
                assert shape(stdout + stderr) == shape(shown.pop(command)), command
        assert not shown
        (audit,) = [text for text in COMMANDS if text.startswith("zcat")]
        status, stdout, stderr = run(audit)
        assert (status, stdout) == (0, "")
        assert len(re.findall(", 0 missing from -$", stderr, re.M)) == 3
        lines = (logs / "duo.jsonl").read_text().splitlines()
        assert Counter(json.dumps(json.loads(line), sort_keys=True) for line in lines) == published
        assert json.loads(checkpoints.read_text())["AUTH_SINCE_TIME"]
        assert 50 < len((folder / "again.jsonl").read_text().splitlines()) < 500


def test_env_example_is_accepted(collector, duo, tmp_path):
    """As it is, and with every setting that names nothing of this machine taken in."""
    own = {"DUO_SECRET_KEY_FILE", "DUO_ACCOUNT_ID", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "DUO_METRICS_FILE"}
    path = tmp_path / "env"
    for text in (ENV_EXAMPLE, re.sub("^#([A-Z_]+)(?==)", lambda m: m[0] if m[1] in own else m[1], ENV_EXAMPLE, flags=re.M)):
        path.write_text(fill(text, duo.settings))
        path.chmod(0o600)
        (tmp_path / ".local/state/duo").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(SCRIPT), "--env-file", str(path), "--check"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count(": ok\n") == (3 if text is ENV_EXAMPLE else 4)
