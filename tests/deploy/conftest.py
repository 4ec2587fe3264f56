"""Fixtures of the tests of deploy/."""

import json
import os
import pathlib
import re
import shutil

import pytest
import trustme
from duo import make_events

from deploy.common import PATH, ROOT, missing
from deploy.containers import (
    KUBERNETES,
    Image,
    build_context,
    instructions,
    kubectl,
    kustomize,
    module,
    run,
    tool,
)
from deploy.machine import booted
from deploy.shipper import HOUR_MS, LOG_TYPES, Shipper


@pytest.fixture
def bare_machine(tmp_path):
    """A machine with nothing of the collector's."""
    with booted(tmp_path / "machine") as machine:
        yield machine


@pytest.fixture
def machine(bare_machine):
    """A machine on which deploy/install has run."""
    bare_machine.install()
    return bare_machine


@pytest.fixture
def shipper(request, tmp_path):
    """A daemon, by its name, that is not started yet."""
    made = Shipper(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tenant(duo, collector):
    """The simulated tenant with a backlog of every log type: names of the world, and an event of 200 KB."""
    now_ms = duo.now_ms()
    for log_type in LOG_TYPES:
        duo.add(log_type, make_events(log_type, 400, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
    long = make_events("authentication", 1, now_ms - 3 * HOUR_MS, now_ms - 2 * HOUR_MS, seed=1)[0]
    names = {
        "name": "Zoë 張偉 \U0001f600",
        "key": "DUXXXXXXXXXXXXXXXXXX",
        "groups": ['<13>"a\\b"\t%m'] * 10_000,
    }
    duo.add("authentication", json.dumps({**long, "user": names}, ensure_ascii=False))
    collector.seed(**dict.fromkeys(LOG_TYPES, now_ms - 7 * HOUR_MS))
    return duo


@pytest.fixture
def rendered(tmp_path):
    """Render a tenant's overlay; its key and a private CA are put where deploy/kubernetes.md says."""
    module("yaml", "PyPI: PyYAML")  # now, before a test has done half of its work
    kubectl()

    def render(tenant, key="a key of " + "x" * 32):
        shutil.copytree(KUBERNETES, tmp_path / "kubernetes", dirs_exist_ok=True)
        overlay = tmp_path / "kubernetes/overlays" / tenant
        (overlay / "duo.key").write_text(key + "\n")
        trustme.CA().cert_pem.write_to_path(overlay / "ca.pem")
        return kustomize(overlay)

    return render


@pytest.fixture
def image(tmp_path):
    """The image: the Dockerfile carried out in a clean root of the Debian release that FROM names."""
    tool("mmdebstrap", "Debian: mmdebstrap")
    tool("unshare", "Debian: util-linux")
    if os.geteuid() != 0:
        missing("root, to mount and to change the root")
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
        for name in build_context():
            (context / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, context / name)
            os.chmod(context / name, 0o600)  # as in a checkout under umask 077
        for line in lines:
            image.instruct(*line, context)
        yield image
    finally:
        mounted = pathlib.Path("/proc/self/mountinfo").read_text()
        assert f" {tmp_path}" not in mounted, mounted  # before anything is removed through a mount
        shutil.rmtree(root, ignore_errors=True)
