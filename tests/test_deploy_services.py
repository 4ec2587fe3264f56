"""The files in deploy/systemd and deploy/cron under the real systemd, cron and logrotate.

They run in a machine of their own: namespaces and a writable layer over this machine's root folder,
with systemd as process 1. It shares the network, so that the simulated tenants are on its loopback too.
"""

import contextlib
import fcntl
import gzip
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import termios
import time

import pytest
from conftest import SCRIPT, wait_for
from duo import Rules, Simulator, make_events

DEPLOY = SCRIPT.parent / "deploy"
COLLECTOR = "/opt/duo_collector/.venv/bin/python /opt/duo_collector/duo_collector.py"
README = (DEPLOY / "README.md").read_text()
UNITS = ("duo-collector", "duo-collector-once", "duo-collector-lag", "duo-collector-missing")
TEXTFILES = "/var/lib/prometheus/node-exporter"  # where node_exporter looks, as Debian builds it
DAY_S = 86_400
# $1 a folder, $2 the name of a cgroup, $3 this Python's prefix, $4 its packages, $5 what .venv/bin/python is to be
BOOT = r"""
set -eu
if [ -d "$1/root" ]; then   # the second time, in the new cgroup namespace
    cd "$1/root"
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    pivot_root . mnt
    cd /
    umount -l /mnt
    mount --make-rshared /      # systemd hands credentials on that way
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
        --unit=test.target --show-status=false
fi
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root cgroup
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
mount -t cgroup2 cgroup2 cgroup
mkdir "cgroup/$2"
echo $$ >"cgroup/$2/cgroup.procs"
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys   # systemd-sysctl would set this machine's
mount -t sysfs -o ro sysfs sys
for folder in dev run var/log var/spool/cron etc/systemd/system etc/cron.d; do mount -t tmpfs -o mode=755 tmpfs $folder; done
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mount -t tmpfs -o mode=1777 tmpfs tmp
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mkdir dev/shm dev/pts dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mkdir var/spool/cron/crontabs
: >etc/crontab
mkdir -p opt/python opt/packages opt/duo_collector/.venv/bin
mount --bind "$3" opt/python
mount --bind "$4" opt/packages
printf '%s\n' "$5" >opt/duo_collector/.venv/bin/python
chmod 755 opt/duo_collector/.venv/bin/python
chroot . useradd --system duo-collector
ln -s /dev/null etc/systemd/system/systemd-modules-load.service     # the kernel is this machine's
printf '[Unit]\nRequires=basic.target systemd-journald.service\n' >etc/systemd/system/test.target
exec unshare --cgroup sh -c "$BOOT" boot "$@"
"""


def need(*programs):
    """Skip where the test cannot run; in CI it has to."""
    lacking = [f"no {name}" for name in programs if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if os.geteuid() != 0:
        lacking.append("not root")
    if lacking:
        give_up(", ".join(lacking))


def give_up(reason):
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Machine:
    """A booted systemd, with the collector and deploy/ where the README puts them."""

    def __init__(self, folder):
        self.cgroup = f"duo-test-{os.getpid()}-{time.monotonic_ns()}"
        python = f"/opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        # Not a real .venv: this Python may live in a home, and those are out of the unit's sight.
        wrapper = f'#!/bin/sh\nPYTHONPATH=/opt/packages LD_LIBRARY_PATH=/opt/python/lib exec {python} "$@"'
        arguments = (folder, self.cgroup, sys.base_prefix, sysconfig.get_path("purelib"), wrapper)
        self.log = open(folder.parent / f"{self.cgroup}.log", "w+")
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc",
             "sh", "-c", BOOT, "boot", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env={**os.environ, "BOOT": BOOT},
        )  # fmt: skip

    def wait(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            self.pid = children.read_text().strip() if self.process.poll() is None else ""
            if self.pid and self.run("systemctl", "is-active", "test.target", check=False).stdout == "active\n":
                break
            time.sleep(0.2)
        else:
            self.log.seek(0)
            give_up(f"systemd does not boot here: {self.log.read()[-500:]}")
        shutil.copy(SCRIPT, self.path("/opt/duo_collector/duo_collector.py"))
        for unit in (DEPLOY / "systemd").iterdir():
            shutil.copy(unit, self.path("/etc/systemd/system"))
        self.run("install", "-d", "-g", "duo-collector", "-m", "750", "/etc/duo-collector", "/var/log/duo")
        self.write("/etc/logrotate.d/duo-collector", (DEPLOY / "cron/logrotate").read_text())
        self.write("/usr/sbin/sendmail", '#!/bin/sh\ncat >"$(mktemp /tmp/mail.XXXXXX)"\n', 0o755)

    def path(self, name):
        """A file of the machine, seen from here."""
        return pathlib.Path(f"/proc/{self.pid}/root{name}")

    def write(self, name, text, mode=0o644):
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *command, check=True):
        enter = f"nsenter --target {self.pid} --all --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        command = (*enter.split(), *command)
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        if check and result.returncode:
            journal = self.run("journalctl", "--lines=30", "--output=cat", check=False).stdout
            pytest.fail(f"{command}: {result.stdout}{result.stderr}\n{journal}")
        return result

    def show(self, unit):
        """A unit's properties."""
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def drop_in(self, unit, text):
        self.write(f"/etc/systemd/system/{unit}.d/{unit}.conf", text)  # a name that no other drop-in hides
        self.run("systemctl", "daemon-reload")

    def tenant(self, name, duo, secret=None, **settings):
        """Write a tenant's two files. They are the collector's own, which cron needs and systemd does not."""
        values = {**duo.settings, "DUO_REQUESTS_PER_MINUTE": "60000", "DUO_INTERVAL": "0.2", **settings}
        key = secret or values.pop("DUO_SECRET_KEY")
        values.pop("DUO_SECRET_KEY", None)
        self.write(f"/etc/duo-collector/{name}.env", "".join(f"{k}={v}\n" for k, v in values.items()), 0o600)
        self.write(f"/etc/duo-collector/{name}.key", f"{key}\n", 0o600)
        self.run("chown", "duo-collector", f"/etc/duo-collector/{name}.env", f"/etc/duo-collector/{name}.key")

    def lines(self, name):
        """All lines of a tenant's output, rotated and compressed files included."""
        opened = [(gzip.open if path.suffix == ".gz" else open)(path, "rt") for path in self.outputs(name)]
        return [line for file in opened for line in file.read().splitlines()]

    def outputs(self, name):
        return list(self.path("/var/log/duo").glob(f"{name}.jsonl*"))

    def mails(self):
        return "".join(path.read_text() for path in self.path("/tmp").glob("mail.*"))

    def journal(self, unit, *options):
        self.run("journalctl", "--sync")  # or the last messages may still be on their way
        return self.run("journalctl", "--output=cat", f"--unit={unit}", *options).stdout

    def rotate(self):
        self.run("logrotate", "--force", "/etc/logrotate.d/duo-collector")

    def stop(self):
        self.process.kill()  # --kill-child ends process 1 with it, and that all others
        self.process.wait()
        self.log.close()
        mount = pathlib.Path("/proc/self/mountinfo").read_text()
        found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", mount, re.MULTILINE)
        folder = pathlib.Path(found[1] if found else "/nonexistent", self.cgroup)
        for _ in range(50):
            for path in sorted(folder.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            if not folder.exists():
                break
            time.sleep(0.1)


@pytest.fixture
def machine(tmp_path):
    need("unshare", "nsenter", "systemctl", "systemd-analyze", "logrotate", "cron")
    folder = tmp_path / "machine"
    folder.mkdir()
    machine = Machine(folder)
    try:
        machine.wait()
        yield machine
        # Shown where a test fails.
        print(machine.run("ls", "-lR", "/var/log/duo", "/var/lib/duo-collector", check=False).stdout)
        print(machine.run("journalctl", "--boot", "--lines=100", "--output=cat", check=False).stdout)
    finally:
        machine.stop()


@contextlib.contextmanager
def tenants(machine, names, events=50, **rules):
    """Simulated tenants by name, each with events that no other has."""
    with contextlib.ExitStack() as stack:
        duos = {}
        for number, name in enumerate(names):
            duos[name] = stack.enter_context(Simulator(Rules(**rules)))
            publish(duos[name], number, events)
            machine.tenant(name, duos[name])
        yield duos


def publish(duo, seed, count, first_s=DAY_S, last_s=600):
    """Have a tenant serve events, all so old."""
    now_ms = int(time.time() * 1000)
    for log_type in ("authentication", "telephony"):
        duo.add(log_type, make_events(log_type, count, now_ms - first_s * 1000, now_ms - last_s * 1000, seed=seed))


def wait_for_all(machine, name, duo, timeout_s=60):
    """Wait until all of a tenant's events are written; then they are its own, whole, and once each."""
    served = [event["txid"] for event in duo.events("authentication")]
    served += [event["telephony_id"] for event in duo.events("telephony")]
    wait_for(lambda: len(machine.lines(name)) >= len(served), f"end of the events of {name}", timeout_s)
    events = [json.loads(line) for line in machine.lines(name)]
    key = {"authentication": "txid", "telephony": "telephony_id"}
    assert sorted(event[key[event["eventtype"]]] for event in events) == sorted(served)


def ended(machine, name):
    """Whether no run holds the tenant's checkpoint file."""
    with open(machine.path(f"/var/lib/duo-collector/{name}/.checkpoints.json.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def size(machine, name):
    path = machine.path(f"/var/log/duo/{name}.jsonl")
    return path.stat().st_size if path.exists() else 0


def commands(beginning):
    """The block of deploy/README.md that begins with these words."""
    (found,) = re.findall(rf"^```sh\n({re.escape(beginning)}.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return found


def test_the_units_are_sound_and_closed(machine):
    units = [f"/etc/systemd/system/{path.name}" for path in (DEPLOY / "systemd").iterdir()]
    verdict = machine.run("systemd-analyze", "verify", *units)
    assert "duo-collector" not in verdict.stdout + verdict.stderr
    for unit in UNITS:
        report = machine.run("systemd-analyze", "security", "--no-pager", f"{unit}@acme.service").stdout
        assert float(re.search(r"exposure level for \S+: ([0-9.]+)", report)[1]) <= 1.1
    # What they name as their documentation is there once the README's commands were run. Those that need a network,
    # or were run when this machine was made, are left out.
    for name in ("duo_collector.py", "requirements.txt", "README.md", "deploy/README.md"):
        machine.write(f"/root/clone/{name}", (SCRIPT.parent / name).read_text())
    lines = [line for line in commands("useradd ").splitlines() if line.startswith("install -D")]
    machine.run("sh", "-euc", "cd /root/clone\n" + "\n".join(lines))
    for unit in UNITS:
        documents = machine.show(f"{unit}@acme")["Documentation"].split()
        assert documents and all(machine.path(name[len("file:") :]).is_file() for name in documents)


def test_a_typed_secret_key_is_not_shown(tmp_path):
    """The README's command at a terminal."""
    found = re.findall(r"^(\(read .* /dev/stdin )(\S+)( <<<.*)$", README, re.MULTILINE)
    assert [path.split("/")[-1] for _, path, _ in found] == ["acme.key", "accounts.key", "secret-key"]
    ((before, after),) = {(before, after) for before, _, after in found}
    command = f"{before}{tmp_path}/key{after}"
    terminal, inside = pty.openpty()
    options = {"stdin": inside, "stdout": inside, "stderr": inside, "start_new_session": True}
    with subprocess.Popen(["bash", "-c", f"{command}; echo end"], **options) as process:
        wait_for(lambda: not termios.tcgetattr(inside)[3] & termios.ECHO, "prompt")
        os.write(terminal, b"not to be shown\n")
        assert process.wait(10) == 0
    os.close(inside)
    shown = os.read(terminal, 1000)
    os.close(terminal)
    assert shown == b"end\r\n"
    assert (tmp_path / "key").read_text() == "not to be shown\n"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_two_tenants_run_on_while_their_files_are_rotated(machine):
    with tenants(machine, ("acme", "globex"), 10_000, short_pages=True, latency_s=0.05) as duos:
        machine.run("systemctl", "start", *(f"duo-collector@{name}" for name in duos))
        for _ in range(4):
            wait_for(lambda: size(machine, "acme") and size(machine, "globex"), "output since the rotation")
            machine.rotate()
        for name, duo in duos.items():
            wait_for_all(machine, name, duo)
            assert sum(path.stat().st_size > 0 for path in machine.outputs(name)) == 5
            assert machine.show(f"duo-collector@{name}")["ActiveState"] == "active"
        machine.run("systemctl", "stop", "duo-collector@*")
        assert machine.show("duo-collector@acme")["Result"] == "success"


def test_a_tenant_is_shut_in(machine):
    with tenants(machine, ("acme", "globex")) as duos:
        machine.run("systemctl", "start", *(f"duo-collector@{name}" for name in duos))
        wait_for_all(machine, "acme", duos["acme"])
        pid = machine.show("duo-collector@acme")["MainPID"]
        status = machine.path(f"/proc/{pid}/status").read_text()
        for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
            assert line in status
        assert int(re.search(r"Uid:\t(\d+)", status)[1]) > 0
        environ = machine.path(f"/proc/{pid}/environ").read_text()
        assert "DUO_API_HOST" in environ and "DUO_SECRET_KEY=" not in environ
        assert duos["acme"].settings["DUO_SECRET_KEY"] not in environ
        inside = ("nsenter", "--target", pid, "--mount")
        assert machine.run(*inside, "ls", "/run/credentials").stdout == "duo-collector@acme.service\n"
        for folder in ("/opt/duo_collector", "/var/log/duo", "/var/lib/duo-collector/globex", "/etc"):
            assert "Read-only" in machine.run(*inside, "touch", f"{folder}/x", check=False).stderr
        machine.run(*inside, "touch", "/var/lib/duo-collector/acme/x")
        # Log shippers enter by group, nobody else does; and the collector can read how its output ends.
        assert machine.path("/var/log/duo/acme.jsonl").stat().st_mode & 0o777 == 0o644
        assert machine.path("/var/log/duo").stat().st_mode & 0o777 == 0o750
        assert machine.path("/var/lib/duo-collector/acme").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_twenty_child_accounts_by_timer(machine):
    """Set up by the README's commands, then one account less and one more."""
    need("jq")
    # Often enough for a test; the spread over a while stays.
    fast = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/15\nRandomizedDelaySec=5\n"
    machine.drop_in("duo-collector-once@.timer", fast)
    machine.run("install", "-d", "-g", "duo-collector", "-m", "1775", TEXTFILES)
    with Simulator(Rules(application="accounts", api_hostname="url")) as parent:
        parent.stop()  # children begin to listen with it
        for number in range(21):
            child = parent.add_child('Customer "%d" \\ & Söhne\nDUO_LOG_TYPES=activity' % number)
            publish(child, number, 50)
        *first, last = parent.children
        parent.children = first
        with parent:
            settings = {
                **parent.settings,
                "DUO_METRICS_FILE": f"{TEXTFILES}/duo-NAME.prom",
                "DUO_REQUESTS_PER_MINUTE": "60000",
            }
            machine.write("/etc/duo-collector/accounts.key", settings.pop("DUO_SECRET_KEY") + "\n", 0o600)
            lines = "".join(f"{name}={value}\n" for name, value in settings.items())
            machine.write("/etc/duo-collector/accounts.conf", lines, 0o600)
            set_up = commands("(cd /etc/duo-collector\n")
            assert machine.run("bash", "-c", set_up).stdout == ""
            for child in first:
                wait_for_all(machine, child.account["account_id"], child)
            starts = sorted(child.requests[0].wall for child in first)
            assert starts[-1] - starts[0] > 1
            names = {child.account["account_id"] for child in first}
            assert {path.name for path in machine.path("/var/log/duo").iterdir()} == {f"{name}.jsonl" for name in names}
            for child in first:
                name, lines = child.account["account_id"], machine.lines(child.account["account_id"])
                assert {json.loads(line)["child_account_id"] for line in lines} == {name}
                text = machine.path(f"/etc/duo-collector/{name}.env").read_text()
                assert (
                    machine.path(f"{TEXTFILES}/duo-{name}.prom").exists()
                    and json.dumps(child.account["name"], ensure_ascii=False) in text
                )
            for kind in ("once", "lag", "missing"):
                assert machine.show(f"duo-collector-{kind}@{names.copy().pop()}.timer")["UnitFileState"] == "enabled"
        parent.children = [*first[1:], last]
        gone = first[0].account["account_id"]
        with parent:
            # What was changed by hand for one account stays.
            mended = f"/etc/duo-collector/{first[1].account['account_id']}.env"
            machine.write(mended, machine.path(mended).read_text() + "DUO_LOOKBACK=60\n", 0o600)
            before = machine.path(mended).read_text()
            assert machine.run("bash", "-c", set_up).stdout == f"{gone} is not listed any more\n"
            assert machine.path(mended).read_text() == before
            wait_for_all(machine, last.account["account_id"], last)
            give_up_one = commands("systemctl disable --now duo-collector-{").replace("DA" + "X" * 18, gone)
            machine.run("bash", "-euc", give_up_one)
            assert not list(machine.path("/etc/duo-collector").glob(f"{gone}*"))
            assert machine.show(f"duo-collector-once@{gone}.timer")["ActiveState"] == "inactive"
            assert machine.run("bash", "-c", set_up).stdout == ""
            machine.run("systemctl", "stop", "duo-collector-*.timer")


def test_a_pass_that_is_rotated_writes_on_into_the_renamed_file(machine):
    with tenants(machine, ("acme",), 3000, short_pages=True, latency_s=0.1) as duos:
        machine.run("systemctl", "start", "--no-block", "duo-collector-once@acme")
        wait_for(lambda: size(machine, "acme"), "output")
        machine.rotate()
        wait_for_all(machine, "acme", duos["acme"])
        wait_for(lambda: ended(machine, "acme"), "end of the run")
        assert size(machine, "acme") == 0
        publish(duos["acme"], 1, 10, 250, 200)  # within the lookback
        duos["acme"].rules.latency_s = 0
        # while the unit of the first run is still stopping, nothing is started
        wait_for(lambda: machine.run("systemctl", "start", "duo-collector-once@acme") and size(machine, "acme"), "output")
        wait_for_all(machine, "acme", duos["acme"])
        assert machine.path("/var/log/duo/acme.jsonl").stat().st_mode & 0o777 == 0o640


def test_exit_statuses_of_a_pass(machine):
    with tenants(machine, ("acme", "refused", "wrong")) as duos, held(machine, "acme"):
        machine.tenant("refused", duos["refused"], secret="x" * 40)
        machine.tenant("wrong", duos["wrong"], DUO_LOOKBACK="much")
        machine.run("systemctl", "start", "duo-collector-once@acme")
        assert re.search(r"another run \(.*\) holds", machine.journal("duo-collector-once@acme"))
        assert machine.show("duo-collector-once@acme")["ActiveState"] == "inactive"
        for name, status in (("refused", "77"), ("wrong", "78")):
            machine.run("systemctl", "start", f"duo-collector-once@{name}", check=False)
            found = machine.show(f"duo-collector-once@{name}")
            assert (found["ExecMainStatus"], found["ActiveState"]) == (status, "failed")
        # A failure does not end the timer.
        machine.drop_in("duo-collector-once@.timer", "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/1\nRandomizedDelaySec=0\n")
        machine.run("systemctl", "start", "duo-collector-once@refused.timer")
        machine.tenant("refused", duos["refused"])
        wait_for_all(machine, "refused", duos["refused"])
        unit = "duo-collector-once@refused"
        wait_for(lambda: "INFO telephony" in machine.journal(unit), "message of a good pass")
        severe = machine.journal(unit, "--priority=warning")
        assert "ERROR telephony: 0 events" in severe and "INFO" not in severe


@contextlib.contextmanager
def held(machine, name):
    """The checkpoint file of a tenant is held, as by another run."""
    folder = machine.path(f"/var/lib/duo-collector/{name}")
    folder.mkdir(parents=True)
    with open(folder / ".checkpoints.json.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@pytest.mark.slow
def test_what_starts_the_long_running_service_again(machine):
    machine.drop_in("duo-collector@.service", "[Service]\nRestartSec=0.3\n")
    machine.drop_in("duo-collector@usage.service", f"[Service]\nExecStart=\nExecStart={COLLECTOR} --wrong\n")
    machine.drop_in("duo-collector@full.service", "[Service]\nStandardOutput=append:/dev/full\n")
    with tenants(machine, ("acme", "wrong", "usage", "full")) as duos, held(machine, "acme") as lock:
        machine.tenant("wrong", duos["wrong"], DUO_LOOKBACK="much")
        machine.run("systemctl", "start", *(f"duo-collector@{name}" for name in duos))
        for name, status in (("acme", "75"), ("full", "74")):
            wait_for(lambda name=name: int(machine.show(f"duo-collector@{name}")["NRestarts"]) > 1, f"start of {name}")
            assert f"status={status}/" in machine.run("journalctl", f"--unit=duo-collector@{name}").stdout
        for name, status in (("wrong", "78"), ("usage", "2")):
            unit = f"duo-collector@{name}"
            wait_for(lambda unit=unit: machine.show(unit)["ActiveState"] == "failed", f"end of {name}")
            found = machine.show(unit)
            assert (found["ExecMainStatus"], found["NRestarts"]) == (status, "0")
        fcntl.flock(lock, fcntl.LOCK_UN)
        wait_for_all(machine, "acme", duos["acme"])


@pytest.mark.slow
def test_the_alarm(machine):
    """A tenant three days behind, one log type stuck beside two healthy ones, keys that are refused, an outage."""
    names = ("acme", "behind", "stuck", "refused", "outage")
    with tenants(machine, names) as duos:
        machine.tenant("refused", duos["refused"], secret="x" * 40)
        machine.tenant("acme", duos["acme"], DUO_LOG_TYPES="authentication")  # no others are behind, then
        duos["stuck"].rules.missing = {"telephony": 404}
        machine.run(
            "systemctl", "start", *(f"duo-collector-once@{name}" for name in ("acme", "stuck", "behind")), check=False
        )
        duos["outage"].stop()
        for name in ("refused", "outage"):
            machine.run("systemctl", "start", "--no-block", f"duo-collector-once@{name}")
        # Three days ago the passes of this tenant stopped.
        file = machine.path("/var/lib/duo-collector/behind/checkpoints.json")
        document = json.loads(file.read_text())
        for key in [key for key in document if key.endswith("_SINCE_TIME")]:
            document[key] -= 3 * DAY_S * (1 if key.startswith("ADMIN") else 1000)
        file.write_text(json.dumps(document))
        for name in ("refused", "outage"):
            wait_for(
                lambda name=name: "telephony: 0 events" in machine.journal(f"duo-collector-once@{name}"), "pass", 60
            )
        for name in names:
            machine.run("systemctl", "start", f"duo-collector-lag@{name}", check=False)
        assert machine.show("duo-collector-lag@acme")["Result"] == "success"
        for name in names[1:]:
            found = machine.show(f"duo-collector-lag@{name}")
            assert (found["ExecMainStatus"], found["ActiveState"]) == ("75", "failed")
            late = "telephony" if name == "stuck" else "authentication, administrator, telephony"
            path = f"/var/lib/duo-collector/{name}/checkpoints.json"
            said = machine.journal(f"duo-collector-lag@{name}", "--priority=err")
            assert f"{path}: behind or ahead by more than 1 h: {late}\n" in said
        wait_for(lambda: machine.mails().count("To: root") == 4, "mail about each")
        mails = machine.mails()
        assert all(f"duo-collector-lag@{name}.service failed\n" in mails for name in names[1:]) and "acme" not in mails
        # cron's line, for every tenant that has settings
        table = (DEPLOY / "cron/duo-collector").read_text()
        said = by_cron(machine, "LAG", re.search(r"^30 .* duo-collector  (.*LAG.*)$", table, re.MULTILINE)[1]).stdout
        assert re.findall(r"^duo-collector (\w+): ", said, re.MULTILINE) == sorted(names[1:])
        assert "behind/checkpoints.json: behind or ahead by more than 1 h" in said and "ago: Duo refuses" in said


def by_cron(machine, variable, command, check=True):
    """What a command of the cron table does, with the variables that it uses."""
    table = (DEPLOY / "cron/duo-collector").read_text()
    environ = [re.search(f"^{name}=.*$", table, re.MULTILINE)[0] for name in ("COLLECTOR", variable)]
    as_collector = ("setpriv", "--reuid=duo-collector", "--regid=duo-collector", "--init-groups")
    return machine.run(*as_collector, "env", *environ, "sh", "-c", command, check=check)


def late(duo, seed, count=5, **when):
    """Have a tenant publish events of some hours ago; how many."""
    publish(duo, seed, count, **(when or {"first_s": 30 * 3600, "last_s": 20 * 3600}))
    return 2 * count


def test_late_events_are_found_across_rotations(machine):
    """The unit and cron's line, beside the long-running service; what they say, and that they say nothing the next time."""
    machine.run("install", "-d", "-g", "duo-collector", "-m", "1775", TEXTFILES)
    metrics = f"{TEXTFILES}/duo-acme.prom"
    with tenants(machine, ("acme",)) as duos:
        duo = duos["acme"]
        machine.tenant("acme", duo, DUO_METRICS_FILE=metrics)
        machine.run("systemctl", "start", "duo-collector@acme")
        wait_for_all(machine, "acme", duo)
        for number in range(3):  # .1, .2.gz and .3.gz, each with events of the last two days
            machine.rotate()
            publish(duo, 10 + number, 5, 290, 200)  # within the lookback
            wait_for_all(machine, "acme", duo)
        assert sum(path.suffix == ".gz" for path in machine.outputs("acme")) == 2
        found, unit = late(duo, 20), "duo-collector-missing@acme"
        time.sleep(1)  # passes of the service, which does not see them
        machine.run("systemctl", "start", unit)
        wait_for_all(machine, "acme", duo)
        warnings = machine.journal(unit, "--priority=warning")
        assert warnings.count(f"{found // 2} missing from /var/lib/duo-collector/acme/written.jsonl") == 2
        assert re.search("INFO administrator: of 0 events up to 20.*, 0 missing", machine.journal(unit)) and "administrator" not in warnings
        own = machine.path(metrics.replace(".prom", "-missing.prom"))
        assert 'late_events_total{host="127.0.0.1",log_type="telephony"} %d\n' % (found // 2) in own.read_text()
        assert "late_events" not in machine.path(metrics).read_text()
        assert {path.name for path in machine.path("/var/lib/duo-collector/acme").iterdir()} == \
            {"checkpoints.json", ".checkpoints.json.lock"}  # fmt: skip
        machine.run("systemctl", "start", unit)
        wait_for_all(machine, "acme", duo)
        assert machine.journal(unit, "--priority=warning") == warnings
        # The same by cron, which mails what the command prints
        late(duo, 21)
        table = (DEPLOY / "cron/duo-collector").read_text()
        line = re.search(r"^15 .* duo-collector  (.*MISSING.*)$", table, re.MULTILINE)[1]
        machine.run("sh", "-c", "cd /var/log/duo && touch acme.log && chown duo-collector acme.*")
        said = by_cron(machine, "MISSING", line).stdout
        wait_for_all(machine, "acme", duo)
        assert said.count("5 missing from /var/lib/duo-collector/acme/written.jsonl\n") == 2 and said.count("\n") == 2
        assert machine.path("/var/log/duo/acme.log").read_text() == said
        assert "} %d\n" % found in own.read_text()
        assert by_cron(machine, "MISSING", line).stdout == ""
        wait_for_all(machine, "acme", duo)


def test_a_search_for_late_events_never_repeats_any(machine):
    """A rotated file that cannot be read; a service that goes on while the files are read; a service that never ran."""
    with tenants(machine, ("acme", "new")) as duos:
        duo, unit = duos["acme"], "duo-collector-missing@acme"
        machine.tenant("acme", duo, DUO_LOOKBACK="0")
        machine.run("systemctl", "start", "duo-collector-once@acme")
        wait_for_all(machine, "acme", duo)
        # Between the reading of the files and the start of the search the collector writes more: its events are its own.
        python = machine.path("/opt/duo_collector/.venv/bin/python")
        whole = python.read_text()
        python.write_text(
            whole.replace("\n", '\ncase "$*" in *missing*) while [ ! -e /run/go ]; do sleep 0.1; done; esac\n', 1)
        )
        machine.run("systemctl", "start", "--no-block", unit)
        written = machine.path("/var/lib/duo-collector/acme/written.jsonl")
        wait_for(lambda: written.exists() and len(written.read_text().splitlines()) == 100, "copy of what was written")
        publish(duo, 1, 5, 590, 200)
        machine.run("systemctl", "start", "duo-collector-once@acme")
        wait_for_all(machine, "acme", duo)
        machine.write("/run/go", "")
        wait_for(lambda: machine.show(unit)["ActiveState"] == "inactive", "end of the search")
        assert machine.show(unit)["Result"] == "success"
        wait_for_all(machine, "acme", duo)
        # Half a file: no request, nothing written.
        machine.rotate()
        machine.path("/var/log/duo/acme.jsonl.2.gz").write_bytes(gzip.compress(b"{}\n")[:12])
        before = len(duo.requests)
        for name in duos:
            machine.run("systemctl", "start", f"duo-collector-missing@{name}", check=False)
            assert machine.show(f"duo-collector-missing@{name}")["ActiveState"] == "failed"
        wait_for(lambda: machine.mails().count("To: root") == 2, "mail about each")
        assert "acme.jsonl.2.gz: unexpected end of file" in machine.mails()
        said = by_cron(machine, "MISSING", 'sh -c "$MISSING" acme', check=False)
        assert said.returncode and "acme.jsonl.2.gz: unexpected end of file" in said.stderr
        assert len(duo.requests) == before and not duos["new"].requests and not size(machine, "new")


def test_from_the_cron_job_in_readme_and_uninstall(machine):
    """deploy/README.md's commands: the tenant continues the job's checkpoint and file, and nothing of it stays."""
    with tenants(machine, ("duo",), 50) as duos:
        machine.run("bash", "-c", "rm -f /var/log/duo/* && mkdir -p ~/.local/state/duo")
        job = f"{COLLECTOR} --once -q --env-file /etc/duo-collector/duo.env --checkpoint-file ~/.local/state/duo/checkpoints.json"
        machine.run("bash", "-c", f"DUO_SECRET_KEY_FILE=/etc/duo-collector/duo.key {job} >>/var/log/duo/duo.jsonl")
        wait_for_all(machine, "duo", duos["duo"])
        machine.run("bash", "-euc", commands("install -d -o duo-collector -g duo-collector"))
        publish(duos["duo"], 1, 10, 250, 200)
        machine.run("systemctl", "start", "duo-collector@duo")
        wait_for_all(machine, "duo", duos["duo"])
        machine.run("bash", "-euc", commands("chown duo-collector /etc/duo-collector/acme.*").replace("acme", "duo"))
        assert by_cron(machine, "MISSING", 'sh -c "$MISSING" duo').stdout == ""
    machine.write("/etc/cron.d/duo-collector", (DEPLOY / "cron/duo-collector").read_text())
    machine.run("systemctl", "enable", "--now", "duo-collector@duo", "duo-collector-lag@duo.timer")
    machine.run("bash", "-euc", commands("systemctl stop 'duo-collector*'"))
    left = (
        "find /etc /opt/duo_collector /var/lib -name '*duo[-_]collector*'; getent passwd duo-collector; "
        "systemctl list-units --no-legend 'duo-collector*'"
    )
    assert machine.run("bash", "-c", left, check=False).stdout == ""


@pytest.mark.slow
def test_cron(machine):
    """The real daemon, for two minutes: a bare environment, a run beside a run, a rotation under a run, then the alarm and
    the search for late events."""
    table = (DEPLOY / "cron/duo-collector").read_text()
    assert re.findall(r'^[^#\n]*sh -c "\$COLLECT" (\w+)$', table, re.MULTILINE) == ["acme"]
    table = table.replace("\n#1-59/5 ", "\n1-59/5 ")  # the second tenant, as its comment says
    table, changed = re.subn(r"^(\*/5|1-59/5) ", "* ", table, flags=re.MULTILINE)
    again = '* * * * * duo-collector sh -c "$COLLECT" {}\n'
    table += again.format("acme") + again.format("refused")
    first, later = re.subn(r"^(30 \*|15 3) .*$", "", table, flags=re.MULTILINE)
    assert (changed, later) == (2, 2)
    with tenants(machine, ("acme", "globex", "refused", "behind"), 500, short_pages=True) as duos:
        duos["acme"].rules.latency_s = 0.3
        machine.tenant("refused", duos["refused"], secret="x" * 40)
        set_up = commands("chown duo-collector /etc/duo-collector/acme.*")
        machine.run("bash", "-euc", "\n".join(f"({set_up.replace('acme', name)})" for name in duos))
        since_s = int(time.time()) - 3 * DAY_S
        behind = {
            "AUTH_SINCE_TIME": since_s * 1000,
            "ADMIN_SINCE_TIME": since_s,
            "TELEPHONY_SINCE_TIME": since_s * 1000,
        }
        machine.write("/var/lib/duo-collector/behind/checkpoints.json", json.dumps(behind))
        machine.write("/etc/cron.d/duo-collector", first)
        machine.run("systemctl", "start", "cron")
        wait_for(lambda: size(machine, "acme"), "run", 75)
        machine.rotate()
        wait_for_all(machine, "globex", duos["globex"])
        wait_for_all(machine, "acme", duos["acme"])
        wait_for(lambda: ended(machine, "acme"), "end of the run")
        publish(duos["acme"], 3, 10, 250, 200)
        late(duos["globex"], 4)
        machine.write("/etc/cron.d/duo-collector", re.sub(r"^(30 \*|15 3) ", "* * ", table, flags=re.MULTILINE))
        wait_for(lambda: size(machine, "acme"), "run after the rotation", 75)
        wait_for_all(machine, "acme", duos["acme"])
        wait_for_all(machine, "globex", duos["globex"])
        assert re.search(
            r"another run \(.*\) holds checkpoint file", machine.path("/var/log/duo/acme.log.1").read_text()
        )
        wait_for(
            lambda: re.search(r"telephony: of \d+ events up to .*, 5 missing from", machine.mails()), "mail about late events"
        )
        mails = machine.mails()
        assert "duo-collector refused: exit status 77" in mails and "Duo refuses the credentials" in mails
        assert re.search(r"^duo-collector behind: authentication .* 3 d .* behind now", mails, re.MULTILINE)
        said = re.sub(r"^(Subject|X-Cron-Env|From|To|\w.*):.*$", "", mails, flags=re.MULTILINE)
        assert "acme" not in said and "globex" not in said.replace("missing from /var/lib/duo-collector/globex/", "")
