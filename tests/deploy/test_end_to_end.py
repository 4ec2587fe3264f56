"""From Duo to a TLS receiver: two tenants, set up from the page alone, over midnight and a restart of the receiver."""

import re
import time

import pytest
from conftest import wait_for

from deploy.machine import publish, set_up_from_page, simulated, wait_for_all
from deploy.shipper import Receiver

EVERY_SECOND = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/1\nRandomizedDelaySec=0\n"


@pytest.mark.slow
@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
@pytest.mark.parametrize("page", ["systemd.md", "cron.md"])
def test_two_tenants_ship_to_a_tls_receiver(page, shipper, bare_machine):
    machine = bare_machine
    machine.run("install", "-d", "/var/log/duo")
    shipper.follow(machine.path("/var/log/duo"))
    shipper.start()
    machine.today("2026-12-01")
    with simulated(("acme", "globex"), 200) as duos:
        machine.drop_in("duo-collector-once@.timer", EVERY_SECOND)
        set_up_from_page(machine, page, duos)
        if page == "cron.md":
            every_minute(machine)
        for name, duo in duos.items():
            wait_for_all(machine, name, duo, timeout_s=90)
        wait_for_lines(machine, shipper.receiver, [])
        arrived = shipper.receiver.lines()
        time.sleep(1)
        shipper.receiver.close()
        machine.today("2026-12-02")
        time.sleep(3)  # the passes of the first day end
        for number, duo in enumerate(duos.values()):
            publish(duo, 10 + number, 20, 280, 200)  # within the lookback
        for name, duo in duos.items():
            wait_for_all(machine, name, duo, timeout_s=90)
            assert len(machine.outputs(name)) == 2
        shipper.receiver = Receiver(shipper.receiver.port, shipper.receiver.context)
        wait_for_lines(machine, shipper.receiver, arrived)


def every_minute(machine):
    for name in ("acme", "globex"):
        table = machine.path(f"/etc/cron.d/duo-collector-{name}")
        table.write_text(re.sub(r"^\*/5 ", "* ", table.read_text(), flags=re.MULTILINE))
    machine.run("systemctl", "start", "cron")


def wait_for_lines(machine, receiver, arrived):
    """Every line of both tenants arrives, once."""
    written = sorted(line.encode() for name in ("acme", "globex") for line in machine.lines(name))
    wait_for(lambda: len(receiver.lines()) + len(arrived) >= len(written), "last line", 60)
    assert sorted(arrived + receiver.lines()) == written
