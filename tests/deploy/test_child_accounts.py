"""deploy/child-accounts.md: twenty child accounts by timer, then one less and one more; and the same jobs for cron."""

import json
import re

import pytest
from duo import Rules, Simulator

from deploy.common import blocks
from deploy.machine import TEXTFILES, publish, settle, wait_for_all

SECTION = "Child accounts"
# Often enough for a test; the spread over a while stays.
FAST = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/15\nRandomizedDelaySec=5\n"


@pytest.mark.slow
def test_twenty_child_accounts_by_timer(machine):
    machine.drop_in("duo-collector-once@.timer", FAST)
    machine.run("install", "-d", "-g", "duo-collector", "-m", "1775", TEXTFILES)
    edit, typed, set_up, give_up = blocks("child-accounts.md", SECTION)
    with Simulator(Rules(application="accounts", api_hostname="url")) as parent:
        parent.stop()  # children begin to listen with it
        for number in range(21):
            name = 'Customer "%d" \\ & Söhne\nDUO_LOG_TYPES=activity' % number
            publish(parent.add_child(name), number, 50)
        *first, last = parent.children
        parent.children = first
        with parent:
            key = settle(machine, "msp", parent, DUO_METRICS_FILE=f"{TEXTFILES}/duo-msp.prom")
            machine.bash(edit)
            listed = machine.bash(typed, stdin=key).stdout
            names = [child.account["account_id"] for child in first]
            assert [json.loads(line)["account_id"] for line in listed.splitlines()] == names
            said = machine.bash(set_up).stdout
            assert re.findall(r"^(\w+) is new: ", said, re.MULTILINE) == names
            for child in first:
                check_child(machine, child)
            starts = sorted(child.requests[0].wall for child in first)
            assert starts[-1] - starts[0] > 1
            assert {path.name[:20] for path in machine.path("/var/log/duo").iterdir()} == set(names)
            for kind in ("once", "lag", "missing"):
                unit = f"duo-collector-{kind}@{names[0]}.timer"
                assert machine.show(unit)["UnitFileState"] == "enabled"
        parent.children = [*first[1:], last]
        gone, added = names[0], last.account["account_id"]
        with parent:
            # What was changed by hand for one account stays.
            mended = machine.path(f"/etc/duo-collector/{names[1]}.env")
            mended.write_text(mended.read_text() + "DUO_LOOKBACK=60\n")
            before = mended.read_text()
            said = machine.bash(set_up).stdout
            assert re.findall(r"^(\w+) is (.*?)(?::|$)", said, re.MULTILINE) == [
                (added, "new"),
                (gone, "not listed any more"),
            ]
            assert mended.read_text() == before
            check_child(machine, last)
            machine.bash(give_up.replace("DA" + "X" * 18, gone))
            assert not list(machine.path("/etc/duo-collector").glob(f"{gone}*"))
            timer = machine.show(f"duo-collector-once@{gone}.timer")
            assert timer["ActiveState"] == "inactive"
            assert machine.bash(set_up).stdout == ""
            machine.run("systemctl", "stop", "duo-collector-*.timer")
            # With cron, each has its jobs.
            machine.bash(set_up.replace("systemd", "cron"))
            jobs = machine.path(f"/etc/cron.d/duo-collector-{added}").read_text()
            assert jobs.count(f"--append {added} ") == 2
            assert "acme" not in jobs


def check_child(machine, child):
    """A child's events, its settings and its metrics are its own."""
    name = child.account["account_id"]
    wait_for_all(machine, name, child)
    assert {json.loads(line)["child_account_id"] for line in machine.lines(name)} == {name}
    settings = machine.path(f"/etc/duo-collector/{name}.env")
    assert settings.read_text().startswith(f"# {json.dumps(child.account['name'])}\n")
    assert settings.stat().st_mode & 0o777 == 0o600
    assert machine.path(f"{TEXTFILES}/duo-{name}.prom").exists()
