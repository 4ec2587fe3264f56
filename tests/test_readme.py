"""README, deploy/reference.md, .env.example, the lock files and the release tool.

They say what the collector does, and README's commands work as printed.
"""

import ast
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from conftest import SCRIPT
from duo import Rules, Simulator, iter_events

import duo_collector

ROOT = SCRIPT.parent
PAGES = [
    page
    for pattern in ("*.md", ".github/*.md", "deploy/**/*.md", "tests/*.md")
    for page in sorted(ROOT.glob(pattern))
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "deploy" / "reference.md").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="ascii")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [text.strip() for language, text in BLOCKS if language == "sh"]
OUTPUTS = dict(re.findall(r"^```sh\n(.+)\n```\n\n```\n((?:(?!```).*\n)+)```$", README, re.M))
VARIABLES = set(duo_collector.VARIABLES)
SETTINGS = {*VARIABLES, *(row.since_key for row in duo_collector.LOG_TYPES.values())}
HTTP_CLIENT = {"HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}
SECOPS_LOG_TYPES = {
    f"DUO_{name}" for name in ("ACTIVITY", "ADMIN", "AUTH", "TELEPHONY", "TRUST_MONITOR")
}
LOG_TYPES = duo_collector.DEFAULT_LOG_TYPES.split(",")
HOUR_MS = 3_600_000


def requirements():
    return (ROOT / "requirements.txt").read_text().split()


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(page, title):
    """The cells of a section's tables, without head and rule."""
    found = [line for line in section(page, title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]
    return [row for row in cells if not set("".join(row)) <= {"-"}][1:]


def names_in(cells):
    return {name for cell in cells for name in re.findall("`([^`]+)`", cell)}


def column(page, title, number):
    """What is in backticks in one column of a section's tables."""
    return names_in(row[number] for row in rows(page, title))


# The files agree


def test_readme_is_short():
    """Two pages: at most 1,200 words beside code and tables."""
    prose = re.sub(r"^```.*?^```$|^(    |\|)[^\n]*$", "", README, flags=re.S | re.M)
    assert len(prose.split()) <= 1200


def test_the_script_declares_what_requirements_txt_installs():
    """For `uv run` and `pipx run`; the expression is that of PEP 723."""
    block = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    match = re.search(block, SCRIPT.read_text())
    assert match["type"] == "script"
    fields = dict(line[2:].split(" = ", 1) for line in match["content"].splitlines())
    assert ast.literal_eval(fields["dependencies"]) == requirements()
    oldest = re.search(r'target-version = "py(\d)(\d+)"', (ROOT / ".ruff.toml").read_text())
    assert ast.literal_eval(fields["requires-python"]) == f">={oldest[1]}.{oldest[2]}"


@pytest.mark.parametrize("path", ["deploy/requirements.lock", ".github/sbom.lock"])
def test_a_lock_has_a_hash_for_each_package_and_no_registry(path):
    text = (ROOT / path).read_text()
    assert "://" not in text
    packages = re.findall(r"^(\S+)==(.*(?:\n    .*)+)", text, re.M)
    assert all("--hash=sha256:" in rest for _, rest in packages)
    assert len(packages) == len(re.findall("^[^ #\n]", text, re.M))
    wanted = requirements() if path.startswith("deploy") else ["cyclonedx-bom"]
    assert {re.split("[<>=]", line)[0] for line in wanted} <= {name for name, _ in packages}


def test_every_setting_is_in_the_reference_and_in_env_example():
    assert set(re.findall("DUO_[A-Z_]*[A-Z]", SCRIPT.read_text())) == VARIABLES
    assert column(REFERENCE, "Settings", 0) == SETTINGS
    assert names_in([section(REFERENCE, "Settings")]) >= HTTP_CLIENT
    assert set(re.findall("^#?([A-Z_]+)=", ENV_EXAMPLE, re.M)) == SETTINGS | HTTP_CLIENT
    for page in PAGES:
        named = set(re.findall(r"\bDUO_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
        assert named <= VARIABLES | SECOPS_LOG_TYPES, page


def test_every_option_is_in_the_reference(collector):
    listed = collector.run("--help").stdout.partition("\nOptions override")[0]
    options = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", listed))
    assert len(options) > 15
    assert column(REFERENCE, "Settings", 1) == options


def test_every_exit_status_is_in_readme_and_in_the_reference(collector):
    described = collector.run("--help").stdout.partition("Exit status:")[2]
    statuses = set(re.findall(r"\d+", described))
    assert statuses == {"0", "2", "74", "75", "77", "78"}
    assert {row[0] for row in rows(REFERENCE, "Exit status")} == statuses
    in_readme = {number for row in rows(README, "Run") for number in row[0].split(", ")}
    assert in_readme == statuses


def test_defaults_are_those_that_the_reference_tells():
    seeds = {
        row.since_key: str(duo_collector.SEED_MS // row.unit_ms)
        for row in duo_collector.LOG_TYPES.values()
    }
    defaults = {row[0]: str(row[3]) for row in duo_collector.ROWS.values()}
    told = 0
    for variables, _, default, _ in rows(REFERENCE, "Settings"):
        default = default.strip("`")
        if re.fullmatch(r"[0-9]+|[a-z]+,.*", default):
            for name in names_in([variables]):
                assert {**defaults, **seeds}[name] == default, name
                told += 1
    assert told == 4 + len(seeds)


def test_the_log_types_table_is_that_of_the_module():
    table = rows(REFERENCE, "Log types")
    assert [row[0].strip("`") for row in table] == list(duo_collector.LOG_TYPES)
    for (_, page, time_field, id_field, identity), row in zip(
        table, duo_collector.LOG_TYPES.values()
    ):
        assert "https://duo.com/docs/adminapi#" in page
        assert time_field.startswith(f"`{row.time_field}`")
        assert id_field == (f"`{row.id_field}`" if row.id_field else "none")
        if row.id_field:
            assert names_in([identity]) == {row.id_field, row.time_field}
        unit = {
            "isotimestamp": "ISO 8601",
            "ts": "ISO 8601",
            "timestamp": ", s",
            "surfaced_timestamp": ", ms",
        }
        assert unit[row.time_field] in time_field


def test_the_metrics_are_those_of_the_module():
    metrics = {name for name, *_ in duo_collector.METRICS + duo_collector.LATE_METRICS}
    assert column(REFERENCE, "Metrics", 0) == {f"duo_collector_{name}" for name in metrics}
    for name, kind, _ in rows(REFERENCE, "Metrics"):
        assert kind == ("counter" if name.endswith("_total`") else "gauge")
    outcomes = {re.search('"(.*)"', labels)[1] for _, labels, *_ in duo_collector.METRICS if labels}
    assert outcomes <= names_in([section(REFERENCE, "Metrics")])


def test_the_checkpoint_file_is_as_the_reference_says(collector, duo):
    now = duo.now_ms()
    duo.add("authentication", iter_events("authentication", 20, now - HOUR_MS, now - 180_000))
    collector.seed(**dict.fromkeys(LOG_TYPES, now - 2 * HOUR_MS))
    assert collector.once().status == 0
    document = json.loads(collector.checkpoint_file.read_text())
    described = column(REFERENCE, "Checkpoint file", 0)
    assert set(document) - described == set()
    assert set(document["state"]["authentication"]) - described == set()
    assert set(described) - set(document) - set(document["state"]["authentication"]) == {
        row.since_key for row in duo_collector.LOG_TYPES.values() if row.name not in LOG_TYPES
    }
    shown = re.search(r"```json\n(.*?)```", section(REFERENCE, "Checkpoint file"), re.S)
    shown = json.loads(shown[1])
    assert set(shown) <= set(document)
    assert list(shown["state"]["telephony"]) == list(document["state"]["telephony"])
    assert list(shown["state"]["telephony"]["health"]) == list(duo_collector.HEALTH)


def test_the_events_shown_are_those_of_the_simulated_tenant(collector, duo):
    """With the fields, and the kinds of values, that the collector writes."""
    now = duo.now_ms()
    for log_type in duo_collector.LOG_TYPES:
        duo.add(log_type, iter_events(log_type, 500, now - HOUR_MS, now - HOUR_MS // 2))
    collector.seed(**dict.fromkeys(duo_collector.LOG_TYPES, now - 2 * HOUR_MS))
    written = collector.once("--log-types", ",".join(duo_collector.LOG_TYPES)).events
    texts = re.findall(r"(?:^    .*\n)+", section(REFERENCE, "Events"), re.M)
    shown = [json.loads(text) for text in texts]
    assert [event["eventtype"] for event in shown] == list(duo_collector.LOG_TYPES)
    (line,) = re.findall(r"^    (\{.*\})$", section(README, "Events"), re.M)
    for event in [*shown, json.loads(line)]:
        same = [other for other in written if other["eventtype"] == event["eventtype"]]
        assert list(event) in [list(other) for other in same]
        for name, value in event.items():
            values = [other.get(name) for other in same]
            assert any(type(other) is type(value) for other in values), name
            if isinstance(value, dict):
                members = [list(other) for other in values if isinstance(other, dict)]
                assert list(value) in members, name


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return [re.sub("[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if not path.startswith("https:"):
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_nothing_has_to_be_guessed():
    """No address or name of an owner that a reader would have to replace first."""
    for page in PAGES:
        assert not re.search("OWNER/|github.com/(USER|YOU)", page.read_text(encoding="utf-8"))


def test_actions_are_pinned_by_commit():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    uses = [line for path in workflows for line in re.findall("uses: (.*)", path.read_text())]
    assert len(uses) >= 4
    for action in uses:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action)


# The commands, in a folder like a fresh clone


def test_the_first_commands_are_the_demo_and_the_tests():
    """However simply the page is read: they are the first two blocks between fences."""
    fenced = re.findall("^```(?:sh)?\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert fenced[:2] == ["tests/demo\n", "tests/run\n"]
    assert all(os.access(ROOT / command, os.X_OK) for command in COMMANDS[:2])


def shape(text):
    """Text without what differs from run to run: numbers, times, and durations."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", text)
    text = re.sub(r"(\d+ (d|h|min|s) )*\d+ (d|h|min|s)\b", "DURATION", text)
    return sorted(re.sub(r"[\d,]*\d", "N", text).splitlines())


def with_settings(text, settings):
    """A settings file with these values, each in the line that the file has for it."""
    for name, value in settings.items():
        text, count = re.subn(f"^#?{name}=.*$", f"{name}={value}", text, flags=re.M)
        assert count == 1, name
    return text


def every_command():
    """README's commands that run the collector, in its order, the line for cron among them."""
    found = []
    for language, text in BLOCKS:
        if text.startswith("*/5 "):
            found.append(text.replace("*/5 * * * * ", "").strip())
        elif language == "sh" and "duo_collector.py --" in text:
            found.append(text.strip())
    assert sum("--once -q >>" in command for command in found) == 1
    return found


@pytest.fixture
def clone(tmp_path):
    """A folder with what a clone and README's first commands make: a function that runs a command
    there, the folder, the home folder, and the folder for events."""
    home = tmp_path / "home"
    logs = tmp_path / "log"
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
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        stderr = done.stderr.replace(str(logs / "duo"), "/var/log/duo")
        return done.returncode, done.stdout, stderr

    (install,) = [text for text in COMMANDS if "-m venv" in text]
    assert "--require-hashes -r deploy/requirements.lock" in install
    later = [
        line for line in install.splitlines() if not re.match("cd |python3 -m venv|.*pip", line)
    ]
    assert len(later) == 2
    for line in later:
        assert run(line) == (0, "", "")
    return run, folder, home, logs / "duo"


def written_to(folder):
    """The lines of all files of events, rotated ones among them."""
    lines = (folder / "duo.jsonl").read_text().splitlines()
    for path in folder.glob("*.gz"):
        lines += gzip.decompress(path.read_bytes()).decode().splitlines()
    return lines


def rotate(folder):
    content = (folder / "duo.jsonl").read_bytes()
    (folder / "duo.jsonl.1.gz").write_bytes(gzip.compress(content))
    (folder / "duo.jsonl").unlink()


def test_commands_work_as_printed(clone):
    """In README's order, on a tenant that publishes a part of its events late; each prints what
    README shows."""
    run, folder, home, logs = clone
    shown = dict(OUTPUTS)
    assert len(shown) == 4
    (make_folder,) = [text for text in COMMANDS if text.endswith("/var/log/duo")]
    assert run(make_folder) == (0, "", "")
    assert logs.stat().st_mode & 0o777 == 0o750
    checkpoints = home / ".local/state/duo/checkpoints.json"
    published = Counter()
    late = {}
    with Simulator() as duo:
        now = duo.now_ms()
        for log_type in [*LOG_TYPES, "activity"]:
            events = list(iter_events(log_type, 1200, now - 12 * HOUR_MS, now - HOUR_MS // 6))
            numbers = range(100, 1100, 50) if log_type in LOG_TYPES else ()
            late[log_type] = [events[number] for number in numbers]
            duo.add(log_type, [e for number, e in enumerate(events) if number not in numbers])
            added = {"eventtype": log_type, "host": "127.0.0.1"}
            published.update(json.dumps({**event, **added}, sort_keys=True) for event in events)
        told = re.search("`DUO_CHECKPOINT_FILE=([^`]+)`", section(README, "Install"))[1]
        settings = {**duo.settings, "DUO_CHECKPOINT_FILE": told}
        (folder / ".env").write_text(with_settings((folder / ".env").read_text(), settings))
        for command in every_command():
            if "--once --since" in command and not checkpoints.exists():
                # The preview came first, and has moved nothing.
                preview = folder / "preview.jsonl"
                assert preview.stat().st_mode & 0o777 == 0o600
                assert len(preview.read_text().splitlines()) == 3 * 1180
            if "--missing-from" in command and late:
                rotate(logs)
                for log_type, events in late.items():
                    duo.add(log_type, events)
                late = {}
            before = json.loads(checkpoints.read_text()) if checkpoints.exists() else {}
            status, stdout, stderr = run(command)
            assert status == 0, (command, stderr)
            if command in shown:
                assert shape(stdout + stderr) == shape(shown.pop(command)), command
            if "--log-types activity" in command:
                after = json.loads(checkpoints.read_text())
                others = ("AUTH_SINCE_TIME", "ADMIN_SINCE_TIME", "TELEPHONY_SINCE_TIME")
                assert all(after[key] == before[key] for key in others)
            if command.endswith(">/dev/null"):
                assert len(re.findall(r", 0 missing from /var/log/duo/duo", stderr)) == 3
        assert not shown
    lines = written_to(logs)
    assert Counter(json.dumps(json.loads(line), sort_keys=True) for line in lines) == published
    assert 50 < len((folder / "again.jsonl").read_text().splitlines()) < 500


TROUBLE = {  # row of Troubleshooting: environment, rules of the tenant, exit status, message
    "403": ({}, {"no_permission": True}, 77, 'tick "Grant read log"'),
    "401": ({"DUO_SECRET_KEY": 40 * "x"}, {}, 77, "without stray spaces"),
    "wrong timestamp unit": (
        {"ADMIN_SINCE_TIME": "1661022959934"},
        {},
        78,
        "ADMIN_SINCE_TIME '1661022959934'",
    ),
}


@pytest.mark.parametrize("symptom", TROUBLE)
def test_troubleshooting_tells_what_check_says(collector, symptom):
    environ, rules, status, message = TROUBLE[symptom]
    assert symptom in [
        row[0].strip("* ").partition("*")[0] for row in rows(README, "Troubleshooting")
    ]
    with Simulator(Rules(**rules)) as duo:
        collector.environ.update(duo.settings)
        result = collector.run("--check", environ=environ)
    assert result.status == status
    assert message in result.stdout + result.stderr


def test_recent_logs_are_missing_where_readme_says(collector, duo):
    """maxtime in -v is two minutes before now; --status shows a checkpoint ahead of now."""
    now = duo.now_ms()
    collector.seed(**dict.fromkeys(LOG_TYPES, now - HOUR_MS))
    shown = re.findall(r"maxtime=(\d+)", collector.once("-v").stderr)
    assert shown
    assert all(110_000 < now - int(maxtime) <= 122_000 for maxtime in shown)
    collector.seed(**dict.fromkeys(LOG_TYPES, now + HOUR_MS))
    assert "set it back" in collector.once("--log-types", "telephony").stderr
    assert "ahead of now" in collector.run("--status").stdout


def test_429_is_told_as_readme_says(collector):
    with Simulator(Rules(rate_limit=1, rate_window_s=3.0)) as duo:
        now = duo.now_ms()
        duo.add("telephony", iter_events("telephony", 2500, now - HOUR_MS, now - 180_000))
        collector.environ.update(duo.settings)
        collector.seed(telephony=now - 2 * HOUR_MS)
        result = collector.once("--log-types", "telephony")
    assert "raise DUO_INTERVAL" in result.stderr
    assert (result.status, len(result.events)) == (0, 2500)


def test_env_example_is_accepted(collector, duo, tmp_path):
    """As it is, and with every setting that names nothing of this machine taken in."""
    own = {"DUO_SECRET_KEY_FILE", "DUO_ACCOUNT_ID", "DUO_METRICS_FILE", *HTTP_CLIENT}
    taken_in = re.sub(
        "^#([A-Z_]+)(?==)", lambda m: m[0] if m[1] in own else m[1], ENV_EXAMPLE, flags=re.M
    )
    path = tmp_path / "env"
    (tmp_path / ".local/state/duo").mkdir(parents=True)
    for text, count in ((ENV_EXAMPLE, 3), (taken_in, 4)):
        path.write_text(with_settings(text, duo.settings))
        path.chmod(0o600)
        command = [sys.executable, str(SCRIPT), "--env-file", str(path), "--check"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert "WARNING" not in done.stderr
        assert done.stdout.count(": ok\n") == count


# The security page


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, to see system calls")
def test_it_touches_only_what_the_security_page_says(collector, duo, tmp_path):
    """It connects to DUO_API_HOST alone, starts no program, and writes no other file."""
    now = duo.now_ms()
    duo.add("telephony", iter_events("telephony", 20, now - HOUR_MS, now - 180_000))
    collector.seed(**dict.fromkeys(LOG_TYPES, now - 2 * HOUR_MS))
    collector.environ["DUO_METRICS_FILE"] = str(tmp_path / "duo.prom")
    collector.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    trace = tmp_path / "trace"
    calls = "trace=connect,listen,execve,open,openat,rename"
    command = collector.command
    strace = ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(trace)]
    collector.command = lambda *options: [*strace, *command(*options)]
    assert len(collector.once().events) == 20
    called = trace.read_text()
    ports = set(re.findall(r"connect\(.*?htons\((\d+)\)", called))
    assert ports == {duo.settings["DUO_API_HOST"].rpartition(":")[2]}
    assert len(re.findall(r"\bexecve\(", called)) == 1
    assert "listen(" not in called
    written = set(re.findall(r'open(?:at)?\(.*?"([^"]+)", O_(?:WRONLY|RDWR)', called))
    folder = str(collector.checkpoint_file.parent)
    assert written == {
        f"{folder}/{name}"
        for name in (".checkpoints.json.lock", "checkpoints.json.new", "duo.prom.new")
    }
    assert set(re.findall(r'rename\("([^"]+)\.new", "\1"\)', called)) == {
        f"{folder}/{name}" for name in ("checkpoints.json", "duo.prom")
    }


# Releases


@pytest.mark.skipif("CI" not in os.environ, reason="downloads the SBOM tool: set CI to run it")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the SBOM tool is locked for Python 3.11")
def test_a_release_is_the_same_twice(tmp_path):
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("this is no clone: a release is made from a commit")
    environ = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": str(ROOT),
        "PYTHON": sys.executable,
    }
    made = []
    for name, zone in (("one", "UTC"), ("two", "Asia/Tokyo")):
        command = [str(ROOT / ".github" / "release.sh"), "HEAD", str(tmp_path / name)]
        subprocess.run(command, env={**environ, "TZ": zone}, check=True, timeout=300)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        made.append(files)
    assert made[0] == made[1]
    files = made[0]
    sums = files.pop("SHA256SUMS").decode()
    assert sums == "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(files.items())
    )
    bom = json.loads(files["duo_collector.cdx.json"])
    assert bom["metadata"]["component"]["version"] == duo_collector.__version__
    listed = {component["name"] for component in bom["components"]}
    assert listed == set(re.findall("^([^ #=\n]+)==", files["requirements.lock"].decode(), re.M))
