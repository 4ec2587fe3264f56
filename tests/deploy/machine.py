"""A machine of its own, for systemd and cron: namespaces and a writable layer over this machine's root folder.

systemd is process 1. The network is shared, so that the simulated tenants are on its loopback, too.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import socketserver
import subprocess
import sys
import sysconfig
import threading
import time

import pytest
from conftest import wait_for
from duo import Rules, Simulator, make_events

from deploy.common import PATH, ROOT, blocks, missing

DAY_S = 86_400
TEXTFILES = "/var/lib/prometheus/node-exporter"  # where node_exporter looks, as Debian builds it
LOG_TYPES = ("authentication", "telephony")
# $1 a folder, $2 the name of a cgroup, $3 this Python's prefix, $4 its packages, $5 what .venv/bin/python is to be
BOOT = r"""
set -eu
if [ -d "$1/root" ]; then   # the second time, in the new cgroup namespace
    cd "$1/root"
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    pivot_root . mnt
    cd /
    umount -l /mnt
    mount --make-rshared /
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
for folder in dev run var/log var/spool/cron etc/systemd/system etc/cron.d; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mount -t tmpfs -o mode=1777 tmpfs tmp
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mkdir dev/shm dev/pts dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mkdir var/spool/cron/crontabs
: >etc/crontab
mkdir -p opt/python opt/packages opt/duo-collector/.venv/bin
mount --bind "$3" opt/python
mount --bind "$4" opt/packages
printf '%s\n' "$5" >opt/duo-collector/.venv/bin/python
chmod 755 opt/duo-collector/.venv/bin/python
ln -s /dev/null etc/systemd/system/systemd-modules-load.service     # the kernel is this machine's
printf '[Unit]\nRequires=basic.target systemd-journald.service\n' >etc/systemd/system/test.target
exec unshare --cgroup sh -c "$BOOT" boot "$@"
"""
# Not a real .venv: this Python may live in a home, and those are out of the units' sight. pip would want a network;
# the image of deploy/container installs by it, in another test.
PYTHON = """\
#!/bin/sh
[ "$1 $2" != "-m pip" ] || exit 0
PYTHONPATH=/opt/packages LD_LIBRARY_PATH=/opt/python/lib exec {} "$@"
"""

EDITOR = """#!/bin/sh
# A user who writes down what the test prepared.
cat "/root/$(basename "$1")" >>"$1"
"""


def need(*programs):
    """Skip where such a machine is not to be had."""
    lacking = [name for name in programs if not shutil.which(name, path=PATH)]
    if os.geteuid() != 0:
        lacking.append("root")
    if lacking:
        missing(", ".join(lacking))


class Machine:
    """A booted systemd, with a clone of the repository in /root/clone."""

    def __init__(self, folder):
        self.cgroup = f"duo-test-{os.getpid()}-{time.monotonic_ns()}"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        python = PYTHON.format(f"/opt/python/bin/{version}")
        packages = sysconfig.get_path("purelib")
        arguments = (folder, self.cgroup, sys.base_prefix, packages, python)
        self.log = open(folder.parent / f"{self.cgroup}.log", "w+")
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
        self.process = subprocess.Popen(
            [*isolated, "sh", "-c", BOOT, "boot", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "BOOT": BOOT},
        )

    def wait(self):
        task = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        end = time.monotonic() + 60
        while True:
            if time.monotonic() > end or self.process.poll() is not None:
                self.log.seek(0)
                missing(f"a systemd that boots here: {self.log.read()[-500:]}")
            self.pid = pathlib.Path(task).read_text().strip()
            if self.pid and self.is_active("test.target"):
                break
            time.sleep(0.2)
        shutil.copytree(ROOT / "deploy", self.path("/root/clone/deploy"))
        for name in ("duo_collector.py", "README.md"):
            shutil.copy(ROOT / name, self.path("/root/clone"))

    def path(self, name):
        """A file of the machine, seen from here."""
        return pathlib.Path(f"/proc/{self.pid}/root{name}")

    def write(self, name, text, mode=0o644):
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def run(self, *command, check=True, stdin="", timeout_s=120):
        enter = f"nsenter --target {self.pid} --all --wd env -i HOME=/root PATH={PATH}"
        command = (*enter.split(), *command)
        result = subprocess.run(
            command, capture_output=True, text=True, input=stdin, timeout=timeout_s
        )
        if check and result.returncode:
            journal = self.run("journalctl", "--lines=30", "--output=cat", check=False).stdout
            pytest.fail(f"{command}: {result.stdout}{result.stderr}\n{journal}")
        return result

    def bash(self, commands, **more):
        """Commands of a page, as root in the clone."""
        return self.run("bash", "-euc", f"cd /root/clone\n{commands}", **more)

    def collector(self, *arguments, **more):
        return self.run("duo-collector", *arguments, **more)

    def install(self):
        self.bash("deploy/install")

    def is_active(self, unit):
        return self.run("systemctl", "is-active", unit, check=False).stdout == "active\n"

    def show(self, unit):
        """A unit's properties."""
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def drop_in(self, unit, text):
        # A name that no other drop-in hides.
        self.write(f"/etc/systemd/system/{unit}.d/{unit}.conf", text)
        self.run("systemctl", "daemon-reload")

    def tenant(self, name, duo, secret=None, **settings):
        """Write a tenant's two files, as the pages say."""
        values = {
            **duo.settings,
            "DUO_SECRET_KEY_FILE": f"/etc/duo-collector/{name}.key",
            "DUO_CHECKPOINT_FILE": f"/var/lib/duo-collector/{name}.json",
            "DUO_REQUESTS_PER_MINUTE": "60000",
            **settings,
        }
        key = values.pop("DUO_SECRET_KEY")
        lines = "".join(f"{name}={value}\n" for name, value in values.items())
        for ending, text in ((".env", lines), (".key", f"{secret or key}\n")):
            self.write(f"/etc/duo-collector/{name}{ending}", text, 0o600)
            self.run("chown", "duo-collector", f"/etc/duo-collector/{name}{ending}")

    def checkpoint(self, name):
        return self.path(f"/var/lib/duo-collector/{name}.json")

    def outputs(self, name):
        return sorted(self.path("/var/log/duo").glob(f"{name}-20*.jsonl"))

    def lines(self, name):
        return [line for path in self.outputs(name) for line in path.read_text().splitlines()]

    def journal(self, unit, *options):
        self.run("journalctl", "--sync")  # or the last messages may still be on their way
        return self.run("journalctl", "--output=cat", f"--unit={unit}", *options).stdout

    def today(self, day):
        """Have the machine's `date` say another day."""
        self.write("/usr/local/bin/date", f"#!/bin/sh\necho {day}\n", 0o755)

    def stop(self):
        self.process.kill()  # --kill-child ends process 1 with it, and that all others
        self.process.wait()
        self.log.close()
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
        folder = pathlib.Path(found[1] if found else "/nonexistent", self.cgroup)
        for _ in range(50):
            for path in sorted(folder.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            if not folder.exists():
                break
            time.sleep(0.1)


@contextlib.contextmanager
def booted(folder):
    """A machine, until the block ends."""
    need("unshare", "nsenter", "systemctl", "systemd-analyze", "cron")
    folder.mkdir()
    machine = Machine(folder)
    try:
        machine.wait()
        yield machine
        # Shown where a test fails.
        folders = ("/var/log/duo", "/var/lib/duo-collector", "/etc/duo-collector")
        print(machine.run("ls", "-lR", *folders, check=False).stdout)
        print(machine.run("journalctl", "--boot", "--lines=100", "--output=cat").stdout)
    finally:
        machine.stop()


def settle(machine, name, duo, **more):
    """Have the user's editor add a tenant's settings, of which the last of two counts; returns the key to type."""
    settings = {**duo.settings, "DUO_REQUESTS_PER_MINUTE": "60000", **more}
    key = settings.pop("DUO_SECRET_KEY")
    settings["DUO_LOG_TYPES"] = "authentication,administrator,telephony"
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    machine.write(f"/root/{name}.env", lines)
    machine.write("/usr/bin/editor", EDITOR, 0o755)
    return f"{key}\n"


def set_up_from_page(machine, page, duos):
    """A page's commands up to its second tenant, as a new user types them; what acme's and globex's --check say."""
    machine.bash(*blocks(page, "Install"))
    edit, typed, start, second = blocks(page, "Set up a tenant")
    key = settle(machine, "acme", duos["acme"])
    machine.bash(edit)
    machine.bash(typed, stdin=key)
    said = machine.bash(start).stdout
    return said + machine.bash(second, stdin=settle(machine, "globex", duos["globex"])).stdout


@contextlib.contextmanager
def simulated(names, events=50, **rules):
    """Simulated tenants by name, each with events that no other has."""
    with contextlib.ExitStack() as stack:
        duos = {}
        for number, name in enumerate(names):
            duos[name] = stack.enter_context(Simulator(Rules(**rules)))
            publish(duos[name], number, events)
        yield duos


@contextlib.contextmanager
def tenants(machine, names, events=50, **rules):
    """Simulated tenants that are set up in a machine."""
    with simulated(names, events, **rules) as duos:
        for name, duo in duos.items():
            machine.tenant(name, duo)
        yield duos


def publish(duo, seed, count, first_s=DAY_S, last_s=600):
    """Have a tenant serve events, all so old."""
    now_ms = int(time.time() * 1000)
    for log_type in LOG_TYPES:
        first_ms, last_ms = now_ms - first_s * 1000, now_ms - last_s * 1000
        duo.add(log_type, make_events(log_type, count, first_ms, last_ms, seed=seed))


def publish_late(duo, seed, count=5):
    """Have a tenant publish events of some hours ago, for which it is too late for the lookback."""
    publish(duo, seed, count, first_s=30 * 3600, last_s=20 * 3600)


def wait_for_all(machine, name, duo, timeout_s=60):
    """Wait until all of a tenant's events are written; then they are its own, whole, and once each."""
    served = [event["txid"] for event in duo.events("authentication")]
    served += [event["telephony_id"] for event in duo.events("telephony")]
    what = f"end of the events of {name}"
    wait_for(lambda: len(machine.lines(name)) >= len(served), what, timeout_s)
    events = [json.loads(line) for line in machine.lines(name)]
    key = {"authentication": "txid", "telephony": "telephony_id"}
    assert sorted(event[key[event["eventtype"]]] for event in events) == sorted(served)


def ended(machine, name):
    """Whether no run holds the tenant's checkpoint file."""
    with open(machine.checkpoint(name).with_name(f".{name}.json.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def held(machine, name):
    """The checkpoint file of a tenant is held, as by another run."""
    with open(machine.checkpoint(name).with_name(f".{name}.json.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def job(machine, name, what):
    """The command of one of a tenant's jobs, run as cron would; what it prints would be mailed."""
    table = machine.path(f"/etc/cron.d/duo-collector-{name}").read_text()
    (command,) = re.findall(
        rf"^[^#\n]* duo-collector  (.*{re.escape(what)}.*)$", table, re.MULTILINE
    )
    (path,) = re.findall("^PATH=(.*)$", table, re.MULTILINE)
    user = ["--reuid=duo-collector", "--regid=duo-collector", "--init-groups"]
    done = machine.run("setpriv", *user, "env", f"PATH={path}", "sh", "-c", command, check=False)
    return done.stdout + done.stderr


class MailServer(socketserver.ThreadingTCPServer):
    """An SMTP server on loopback that keeps the mails it is given."""

    daemon_threads = True

    def __init__(self):
        self.mails = []
        super().__init__(("127.0.0.1", 0), MailSession)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class MailSession(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 test\r\n")
        for line in self.rfile:
            command = line[:4].upper().strip()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                mail = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.mails.append(mail.decode())
            self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
