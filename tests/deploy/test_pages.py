"""The pages of deploy/: their links lead somewhere, and their commands fit the files that they name."""

import re
import subprocess

import pytest

from deploy.common import DEPLOY, ROOT, blocks
from deploy.containers import kubectl

PAGES = sorted(path.relative_to(DEPLOY) for path in DEPLOY.rglob("*.md"))


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    path = DEPLOY / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_every_page_is_in_the_index():
    index = (DEPLOY / "README.md").read_text()
    assert [str(page) for page in PAGES if f"({page})" not in index] == ["README.md"]


def test_cron_starts_containers_as_root():
    """The sed of containers.md: each job runs as root, and its command stays as it is."""
    (command,) = [
        line
        for block in blocks("containers.md", "Set up a tenant")
        for line in block.splitlines()
        if line.startswith("sed ")
    ]
    shown = subprocess.run(
        command.split(" >")[0], shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    jobs = [
        line for line in (DEPLOY / "cron/duo-collector").read_text().splitlines() if "* *" in line
    ]
    wanted = [re.sub(r"  duo-collector  ", "  root  ", line) for line in jobs]
    assert [line for line in shown.splitlines() if "* *" in line] == wanted
    assert all("  root  duo-collector " in line for line in wanted)


def test_a_new_overlay_is_rendered(tmp_path):
    """kubernetes.md's commands up to `kubectl apply`, which needs a cluster."""
    copy, typed = blocks("kubernetes.md", "Set up a tenant")
    subprocess.run(["cp", "-r", DEPLOY, tmp_path / "deploy"], check=True)
    commands = f"{copy}\n{typed}".replace("NAME", "initech").replace(
        "editor ", "sed -i s/acme/initech/g "
    )
    commands = re.sub(r"^kubectl .*$", "", commands, flags=re.MULTILINE)
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, input="key\n", text=True, check=True)
    overlay = tmp_path / "deploy/kubernetes/overlays/initech"
    done = subprocess.run([kubectl(), "kustomize", overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "name: duo-collector-missing-initech" in done.stdout
    assert "acme" not in done.stdout
