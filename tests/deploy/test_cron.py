"""deploy/cron.md and its jobs, under the real cron."""

import json
import re

import pytest
from conftest import wait_for

from deploy.common import DEPLOY, blocks
from deploy.machine import (
    DAY_S,
    ended,
    job,
    publish,
    publish_late,
    set_up_from_page,
    settle,
    simulated,
    tenants,
    wait_for_all,
)

SENDMAIL = '#!/bin/sh\ncat >"$(mktemp /tmp/mail.XXXXXX)"\n'


def mails(machine):
    return "".join(path.read_text() for path in machine.path("/tmp").glob("mail.*"))


@pytest.mark.slow
def test_the_page_from_top_to_bottom(bare_machine):
    """Two tenants, as a new user would, with the real cron; then a new key, an upgrade, and nothing of it is left."""
    machine = bare_machine
    with simulated(("acme", "globex")) as duos:
        said = set_up_from_page(machine, "cron.md", duos)
        assert said.count("authentication: ok") == 2
        for name in duos:
            table = machine.path(f"/etc/cron.d/duo-collector-{name}")
            table.write_text(table.read_text().replace("*/5 * * * * ", "* * * * * "))
        machine.run("systemctl", "start", "cron")
        for name, duo in duos.items():
            wait_for_all(machine, name, duo, timeout_s=80)
            wait_for(lambda name=name: ended(machine, name), f"end of the pass of {name}")
        assert machine.collector().stdout == "acme\nglobex\n"
        said = machine.run("journalctl", "-t", "duo-collector-acme", "--output=cat").stdout
        assert "INFO authentication: 50 events" in said
        again, late = blocks("cron.md", "Look after it")
        machine.bash(again)
        publish_late(duos["acme"], 20)
        assert "5 missing" in machine.bash(late).stderr
        wait_for_all(machine, "acme", duos["acme"])
        machine.write("/etc/duo-collector/acme.key", "wrong\n")
        machine.bash(
            *blocks("cron.md", "Rotate a key"), stdin=settle(machine, "acme", duos["acme"])
        )
        machine.bash(*blocks("cron.md", "Upgrade"))
        (uninstall,) = blocks("cron.md", "Uninstall")
        machine.bash(
            uninstall.replace("pkill -u duo-collector\n", "pkill -u duo-collector || true\n")
        )
    left = (
        "find /etc /opt /var/lib /usr/local -name '*duo[-_]collector*'; getent passwd duo-collector"
    )
    found = machine.run("bash", "-c", left, check=False).stdout.split()
    assert [path for path in found if not path.startswith("/etc/systemd/system/")] == []


@pytest.mark.slow
def test_what_cron_mails(machine):
    """Of a tenant that is refused, one that is behind, and late events; nothing of one that is well."""
    machine.write("/usr/sbin/sendmail", SENDMAIL, 0o755)
    with tenants(machine, ("acme", "behind", "refused"), 20) as duos:
        machine.tenant("refused", duos["refused"], secret="x" * 40)
        machine.collector("--append", "acme", "--once", "-q")
        since_s = 1_700_000_000
        document = {"AUTH_SINCE_TIME": since_s * 1000, "ADMIN_SINCE_TIME": since_s}
        document["TELEPHONY_SINCE_TIME"] = since_s * 1000
        machine.write("/var/lib/duo-collector/behind.json", json.dumps(document), 0o644)
        publish_late(duos["acme"], 4)
        jobs = (DEPLOY / "cron/duo-collector").read_text()
        jobs, changed = re.subn(r"^(\*/5 \*|30 \*|15 3) ", "* * ", jobs, flags=re.MULTILINE)
        assert changed == 3
        for name in duos:
            text = jobs.replace("acme", name)
            if name == "behind":  # its passes do not run
                text = re.sub(r"^.*--once.*$", "", text, flags=re.MULTILINE)
            machine.write(f"/etc/cron.d/duo-collector-{name}", text)
        machine.run("systemctl", "start", "cron")
        for what in ("behind.json: behind", "refused.json: behind", "authentication: .*5 missing"):
            wait_for(
                lambda what=what: re.search(what, mails(machine)), f"mail: {what}", timeout_s=90
            )
        wait_for_all(machine, "acme", duos["acme"])
        said = re.sub(r"^(Subject|X-Cron-Env|From|To|\w.*):.*$", "", mails(machine), flags=re.M)
        assert "acme.json" not in said


def test_a_job_by_hand(machine):
    """Each says nothing while all is well; the alert and the daily job say what is wrong."""
    with tenants(machine, ("acme",), 20) as duos:
        machine.bash("install -m 644 -T deploy/cron/duo-collector /etc/cron.d/duo-collector-acme")
        assert job(machine, "acme", "--once") == ""
        wait_for_all(machine, "acme", duos["acme"])
        assert job(machine, "acme", "--max-lag") == ""
        publish(duos["acme"], 3, 10, 250, 200)
        assert job(machine, "acme", "--once") == ""
        publish_late(duos["acme"], 4)
        said = job(machine, "acme", "--missing-from")
        assert said.count("5 missing from ") == 2
        assert said.count("\n") == 2
        assert job(machine, "acme", "--missing-from") == ""
        wait_for_all(machine, "acme", duos["acme"])
        file = machine.checkpoint("acme")
        document = json.loads(file.read_text())
        document["TELEPHONY_SINCE_TIME"] -= 3 * DAY_S * 1000
        file.write_text(json.dumps(document))
        assert "acme.json: behind" in job(machine, "acme", "--max-lag")
