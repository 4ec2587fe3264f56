"""deploy/systemd.md and its units, under the real systemd."""

import json
import os
import pty
import re
import subprocess
import termios
import time

import pytest
from conftest import wait_for

from deploy.common import DEPLOY, blocks, program
from deploy.machine import (
    DAY_S,
    TEXTFILES,
    MailServer,
    ended,
    held,
    publish,
    publish_late,
    set_up_from_page,
    settle,
    simulated,
    tenants,
    wait_for_all,
)

UNITS = ("once", "lag", "missing", "mail")
TYPED_KEY = re.compile(r"^(\(read .* /dev/stdin )(\S+)( <<<.*)$", re.MULTILINE)


def test_the_page_from_top_to_bottom(bare_machine):
    """Two tenants, as a new user would; then an upgrade, a new key, and nothing of it is left."""
    machine = bare_machine
    with simulated(("acme", "globex")) as duos:
        machine.drop_in("duo-collector-once@.timer", every_second())
        said = set_up_from_page(machine, "systemd.md", duos)
        assert said.count("authentication: ok") == 2
        for name, duo in duos.items():
            wait_for_all(machine, name, duo)
            assert {timer_state(machine, unit, name) for unit in ("once", "lag", "missing")} == {
                "enabled"
            }
        assert machine.collector().stdout == "acme\nglobex\n"
        again, now = blocks("systemd.md", "Look after it")
        machine.bash(again)
        machine.bash(now)
        machine.bash(*blocks("systemd.md", "Upgrade"))
        machine.write("/etc/duo-collector/acme.key", "wrong\n")
        rotate = blocks("systemd.md", "Rotate a key")
        machine.bash(*rotate, stdin=settle(machine, "acme", duos["acme"]))
        publish(duos["acme"], 7, 5, 250, 200)
        wait_for_all(machine, "acme", duos["acme"])
        (uninstall,) = blocks("systemd.md", "Uninstall")
        machine.bash(uninstall)
    left = (
        "find /etc /opt /var/lib /usr/local -name '*duo[-_]collector*'; getent passwd duo-collector; "
        "systemctl list-units --all --no-legend 'duo-collector*'"
    )
    assert machine.run("bash", "-c", left, check=False).stdout == ""


def every_second():
    return "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/1\nRandomizedDelaySec=0\n"


def timer_state(machine, unit, name):
    return machine.show(f"duo-collector-{unit}@{name}.timer")["UnitFileState"]


def test_from_2_0_0(bare_machine):
    """Its units and files; the tenant continues its checkpoint and its files."""
    machine = bare_machine
    timers = [f"duo-collector-{kind}@" for kind in ("once", "lag", "missing")]
    for unit in (*timers, "duo-collector@"):
        service = "[Service]\nExecStart=sleep 100\n[Install]\nWantedBy=test.target\n"
        machine.write(f"/etc/systemd/system/{unit}.service", service)
    for unit in timers:
        timer = "[Timer]\nOnCalendar=hourly\n[Install]\nWantedBy=test.target\n"
        machine.write(f"/etc/systemd/system/{unit}.timer", timer)
    machine.run("systemctl", "enable", "--now", "duo-collector@acme", f"{timers[1]}acme.timer")
    old = "useradd --system duo-collector; install -d -g duo-collector -m 750 /etc/duo-collector /var/log/duo"
    machine.run(
        "sh", "-euc", f"{old}; install -d -o duo-collector -m 700 /var/lib/duo-collector/acme"
    )
    with tenants(machine, ("acme",)) as duos:
        pass_ = "--env-file /etc/duo-collector/acme.env --checkpoint-file /var/lib/duo-collector/acme/checkpoints.json"
        python = "/opt/duo-collector/.venv/bin/python duo_collector.py --once"
        machine.bash(f"{python} {pass_} >/var/log/duo/acme.jsonl")
        machine.bash("chown duo-collector /var/lib/duo-collector/acme/*")
        settings = machine.path("/etc/duo-collector/acme.env")
        kept = [line for line in settings.read_text().splitlines() if "_FILE=" not in line]
        settings.write_text("".join(f"{line}\n" for line in kept))
        (commands,) = blocks("systemd.md", "From 2.0.0")
        machine.bash(commands)
        publish(duos["acme"], 1, 10, 250, 200)
        machine.run("systemctl", "start", "duo-collector-once@acme")
        machine.run("systemctl", "start", "duo-collector-missing@acme")  # it knows the old file
        assert len(machine.lines("acme")) == 20
        assert machine.path("/var/log/duo/acme.jsonl").read_text().count("\n") == 100


def test_from_the_cron_job_in_readme(machine):
    """The tenant continues the job's checkpoint, and the daily job knows its file."""
    with tenants(machine, ("duo",)) as duos:
        machine.run("install", "-d", "/root/.local/state/duo")
        job = "/opt/duo-collector/.venv/bin/python duo_collector.py --once -q --env-file /etc/duo-collector/duo.env"
        own = "--checkpoint-file ~/.local/state/duo/checkpoints.json"
        machine.bash(f"{job} {own} >/var/log/duo/duo.jsonl")
        machine.bash(*blocks("systemd.md", "From the cron job in README"))
        publish(duos["duo"], 1, 10, 250, 200)
        machine.run("systemctl", "start", "duo-collector-once@duo")
        machine.run("systemctl", "start", "duo-collector-missing@duo")
        assert len(machine.lines("duo")) == 20


def test_the_units_are_sound_and_closed(machine):
    files = sorted((DEPLOY / "systemd").glob("duo-collector-*@*"))
    units = [f"/etc/systemd/system/{path.name}" for path in files]
    verdict = machine.run("systemd-analyze", "verify", *units)
    assert "duo-collector" not in verdict.stdout + verdict.stderr
    for unit in UNITS:
        name = f"duo-collector-{unit}@acme.service"
        report = machine.run("systemd-analyze", "security", "--no-pager", name).stdout
        exposure = float(re.search(r"exposure level for \S+: ([0-9.]+)", report)[1])
        print(name, exposure)
        assert exposure <= 1.1
        for document in machine.show(name).get("Documentation", "").split():
            assert machine.path(document[len("file:") :]).is_file()


@pytest.mark.parametrize("page", ["systemd.md", "cron.md", "child-accounts.md", "kubernetes.md"])
def test_a_typed_secret_key_is_not_shown(page, tmp_path):
    """A page's command at a terminal; it says what it waits for."""
    found = TYPED_KEY.findall((DEPLOY / page).read_text())
    assert found
    for before, _, after in found:
        key = tmp_path / "key"
        command = f"{before}{key}{after}".replace("-o duo-collector ", "")
        terminal, inside = pty.openpty()
        options = {"stdin": inside, "stdout": inside, "stderr": inside, "start_new_session": True}
        with subprocess.Popen(["bash", "-c", f"{command}; echo end"], **options) as process:
            wait_for(
                lambda inside=inside: not termios.tcgetattr(inside)[3] & termios.ECHO, "prompt"
            )
            os.write(terminal, b"not to be shown\n")
            assert process.wait(10) == 0
        os.close(inside)
        shown = os.read(terminal, 1000)
        os.close(terminal)
        assert shown == b"Secret key (not displayed): end\r\n"
        assert key.read_text() == "not to be shown\n"
        assert key.stat().st_mode & 0o007 == 0


def test_a_pass_goes_on_after_midnight(machine):
    """It writes into the file of its first day, the next pass into a new one; no file is ever renamed."""
    machine.today("2026-12-01")
    with tenants(machine, ("acme",), 1500, short_pages=True, latency_s=0.1) as duos:
        machine.run("systemctl", "start", "--no-block", "duo-collector-once@acme")
        wait_for(lambda: machine.lines("acme"), "output")
        (first,) = machine.outputs("acme")
        inode = first.stat().st_ino
        machine.today("2026-12-02")
        wait_for_all(machine, "acme", duos["acme"])
        wait_for(lambda: ended(machine, "acme"), "end of the run")
        assert machine.outputs("acme") == [first]
        publish(duos["acme"], 1, 10, 250, 200)  # within the lookback
        duos["acme"].rules.latency_s = 0
        second = "/var/log/duo/acme-2026-12-02.jsonl"
        machine.run("systemctl", "start", "duo-collector-once@acme")
        wait_for_all(machine, "acme", duos["acme"])
        assert machine.path(second).read_text().count("\n") == 20
        assert first.stat().st_ino == inode
        for path in machine.outputs("acme"):
            assert path.stat().st_mode & 0o777 == 0o640


def test_old_files_are_deleted(machine):
    """Those of the tenant, by their last change."""
    with tenants(machine, ("acme",), 5):
        old = ["acme-2026-01-01.jsonl", "acme-eu-2026-01-01.jsonl", "acme-again.jsonl"]
        new = ["acme-2026-01-02.jsonl"]
        for name in [*old, *new]:
            machine.write(f"/var/log/duo/{name}", "{}\n")
        machine.run("sh", "-c", "chown duo-collector /var/log/duo/*")
        for name in old:
            os.utime(machine.path(f"/var/log/duo/{name}"), (0, time.time() - 16 * DAY_S))
        machine.run("systemctl", "start", "duo-collector-once@acme")
        left = {path.name for path in machine.path("/var/log/duo").iterdir()}
        assert set(old) - left == {"acme-2026-01-01.jsonl"}
        assert set(new) <= left


def test_a_tenant_is_shut_in(machine):
    with tenants(machine, ("acme",), 1500, short_pages=True, latency_s=0.1) as duos:
        machine.run("systemctl", "start", "--no-block", "duo-collector-once@acme")
        wait_for(lambda: machine.lines("acme"), "output")
        pid = machine.show("duo-collector-once@acme")["MainPID"]
        process = machine.path(f"/proc/{pid}")
        status = (process / "status").read_text()
        for line in (
            "CapEff:\t" + "0" * 16,
            "CapBnd:\t" + "0" * 16,
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ):
            assert line in status
        assert int(re.search(r"Uid:\t(\d+)", status)[1]) > 0
        environ = (process / "environ").read_text() + (process / "cmdline").read_text()
        assert duos["acme"].settings["DUO_SECRET_KEY"] not in environ
        inside = ("nsenter", "--target", pid, "--mount")
        for folder in ("/opt/duo-collector", "/etc/duo-collector", "/etc", "/usr/local/bin"):
            refused = machine.run(*inside, "touch", f"{folder}/x", check=False)
            assert "Read-only" in refused.stderr
        # Log shippers enter by group, nobody else does.
        for folder in ("/var/log/duo", "/var/lib/duo-collector", "/etc/duo-collector"):
            assert machine.path(folder).stat().st_mode & 0o777 == 0o750
        machine.run("systemctl", "stop", "duo-collector-once@acme")


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
        machine.drop_in("duo-collector-once@.timer", every_second())
        machine.run("systemctl", "start", "duo-collector-once@refused.timer")
        machine.tenant("refused", duos["refused"])
        wait_for_all(machine, "refused", duos["refused"])
        unit = "duo-collector-once@refused"
        wait_for(lambda: "INFO telephony" in machine.journal(unit), "message of a good pass")
        severe = machine.journal(unit, "--priority=warning")
        assert "ERROR telephony: 0 events" in severe
        assert "INFO" not in severe


def test_a_full_disk_is_74(machine):
    with tenants(machine, ("acme",)):
        machine.run("mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "tmpfs", "/var/log/duo")
        machine.run("dd", "if=/dev/zero", "of=/var/log/duo/full", check=False)
        machine.run("systemctl", "start", "duo-collector-once@acme", check=False)
        assert machine.show("duo-collector-once@acme")["ExecMainStatus"] == "74"
        machine.run("mount", "-o", "remount,ro", "/var/log/duo")
        done = machine.collector("--append", "acme", "--once", check=False)
        assert done.returncode == 74
        assert "acme-20" in done.stderr


@pytest.mark.slow
def test_the_alert(machine):
    """A tenant three days behind, one log type stuck, keys that are refused, an outage: each mailed, and nobody else."""
    names = ("acme", "behind", "stuck", "refused", "outage")
    server = MailServer()
    machine.drop_in(
        "duo-collector-mail@.service", f"[Service]\nEnvironment=SMTP=localhost:{server.port}\n"
    )
    with tenants(machine, names) as duos:
        machine.tenant("refused", duos["refused"], secret="x" * 40)
        machine.tenant(
            "acme", duos["acme"], DUO_LOG_TYPES="authentication"
        )  # no others are behind, then
        duos["stuck"].rules.missing = {"telephony": 404}
        for name in ("acme", "stuck", "behind", "refused"):
            machine.run("systemctl", "start", f"duo-collector-once@{name}", check=False)
        # Three days ago the passes of this tenant stopped.
        file = machine.checkpoint("behind")
        document = json.loads(file.read_text())
        for key in [key for key in document if key.endswith("_SINCE_TIME")]:
            unit_ms = 1 if key.startswith("ADMIN") else 1000
            document[key] -= 3 * DAY_S * unit_ms
        file.write_text(json.dumps(document))
        duos["outage"].stop()
        machine.run("systemctl", "start", "duo-collector-once@outage", check=False)
        for name in names:
            machine.run("systemctl", "start", f"duo-collector-lag@{name}", check=False)
    assert machine.show("duo-collector-lag@acme")["Result"] == "success"
    for name in names[1:]:
        found = machine.show(f"duo-collector-lag@{name}")
        assert (found["ExecMainStatus"], found["ActiveState"]) == ("75", "failed")
        late = "telephony" if name == "stuck" else "authentication, administrator, telephony"
        said = machine.journal(f"duo-collector-lag@{name}", "--priority=err")
        assert re.search(rf"{name}\.json: behind .*more than 1 h.*: {late}\n", said)
    wait_for(lambda: len(server.mails) == 4, "mail about each")
    for name in names[1:]:
        (mail,) = [
            mail for mail in server.mails if f"duo-collector-lag@{name}.service failed" in mail
        ]
        assert "To: root" in mail
        assert f"{name}.json: behind" in mail
    assert not any("acme" in mail for mail in server.mails)


def test_late_events_are_found_across_days(machine):
    """What the daily job says, and that it says and writes nothing the next time."""
    machine.run("install", "-d", "-g", "duo-collector", "-m", "1775", TEXTFILES)
    metrics = f"{TEXTFILES}/duo-acme.prom"
    unit = "duo-collector-missing@acme"
    with tenants(machine, ("acme",)) as duos:
        duo = duos["acme"]
        machine.tenant("acme", duo, DUO_METRICS_FILE=metrics)
        for day in ("2026-11-29", "2026-11-30", "2026-12-01"):
            machine.today(day)
            machine.run("systemctl", "start", "duo-collector-once@acme")
            wait_for_all(machine, "acme", duo)
            publish(duo, int(day[-2:]), 5, 290, 200)  # within the lookback
        machine.run("systemctl", "start", "duo-collector-once@acme")
        publish_late(duo, 20)
        machine.run("systemctl", "start", "duo-collector-once@acme")  # it does not see them
        machine.run("systemctl", "start", unit)
        wait_for_all(machine, "acme", duo)
        warnings = machine.journal(unit, "--priority=warning")
        assert warnings.count("5 missing from ") == 2
        assert "administrator" not in warnings
        assert re.search("INFO administrator: .*0 missing", machine.journal(unit))
        own = machine.path(metrics.replace(".prom", "-missing.prom")).read_text()
        assert 'late_events_total{host="127.0.0.1",log_type="telephony"} 5\n' in own
        assert "late_events" not in machine.path(metrics).read_text()
        machine.run("systemctl", "start", unit)
        wait_for_all(machine, "acme", duo)
        assert machine.journal(unit, "--priority=warning") == warnings


def test_a_search_for_late_events_never_repeats_any(machine):
    """A file that cannot be read: nothing is asked, nothing written, root is told."""
    server = MailServer()
    machine.drop_in(
        "duo-collector-mail@.service", f"[Service]\nEnvironment=SMTP=localhost:{server.port}\n"
    )
    with tenants(machine, ("acme",)) as duos:
        machine.run("systemctl", "start", "duo-collector-once@acme")
        wait_for_all(machine, "acme", duos["acme"])
        machine.write("/var/log/duo/acme-2026-01-01.jsonl", "{}\n", 0)
        before = len(duos["acme"].requests)
        machine.run("systemctl", "start", "duo-collector-missing@acme", check=False)
        found = machine.show("duo-collector-missing@acme")
        assert (found["ExecMainStatus"], found["ActiveState"]) == ("78", "failed")
        wait_for(lambda: server.mails, "mail")
        assert "acme-2026-01-01.jsonl cannot be read" in server.mails[0]
        assert len(duos["acme"].requests) == before


def test_shell_scripts_are_clean():
    scripts = [DEPLOY / "duo-collector", DEPLOY / "install"]
    command = [program("shellcheck", "shellcheck"), *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command(machine):
    """Options without a tenant, a tenant that there is not, and the user that it runs as."""
    assert machine.collector("--version").stdout.startswith("duo_collector.py ")
    assert machine.collector().stdout == ""
    unknown = machine.collector("nobody", "--status", check=False)
    assert unknown.returncode == 78
    assert "/etc/duo-collector/nobody.env" in unknown.stderr
    with tenants(machine, ("acme",), 5) as duos:
        done = machine.collector("acme", "--once")
        assert done.stdout.count("\n") == 10
        assert machine.outputs("acme") == []
        user = machine.path("/var/log/duo").stat().st_uid
        assert user > 0
        assert machine.checkpoint("acme").stat().st_uid == user
        publish(duos["acme"], 1, 5, 250, 200)
        machine.collector("--append", "acme", "--once")
        (file,) = machine.outputs("acme")
        assert file.read_text().count("\n") == 10
        assert file.stat().st_uid == user
