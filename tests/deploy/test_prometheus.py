"""deploy/prometheus: the real promtool, node_exporter and Prometheus, on what the real collector writes.

The daemons listen on loopback and keep their data in the test's folder. Where they are not installed these tests are
skipped, but not in CI.
"""

import contextlib
import http.client
import json
import pathlib
import re
import shutil
import socket
import subprocess
import time
import urllib.parse

import pytest
from conftest import Collector, wait_for
from duo import Rules, Simulator, make_events

from deploy.common import DEPLOY, blocks, changed, program
from deploy.machine import TEXTFILES, job, publish

RULES = DEPLOY / "prometheus/duo_collector.rules.yml"
RULES_TEST = DEPLOY / "prometheus/duo_collector.rules.test.yml"
DASHBOARD = json.loads((DEPLOY / "prometheus/dashboard.json").read_text())
LOG_TYPES = ("authentication", "administrator", "telephony")
OUTCOMES = ("ok", "limited", "refused", "failed")
GAUGES_AND_COUNTERS = (
    "events_total",
    "holes_total",
    "checkpoint_timestamp_seconds",
    "last_success_timestamp_seconds",
    "pass_duration_seconds",
    "clock_difference_seconds",
)
HOUR_S = 3600


def promtool(*arguments, **more):
    command = [program("promtool", "prometheus"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **more)


# The rules


def test_the_rules_pass_their_own_test():
    for verdict in (promtool("check", "rules", RULES), promtool("test", "rules", RULES_TEST)):
        assert verdict.returncode == 0, verdict.stdout + verdict.stderr
        assert "SUCCESS" in verdict.stdout


@pytest.mark.parametrize(
    "group, old, new",
    [
        (
            "the normal cycle",
            "checkpoint_timestamp_seconds > 900",
            "checkpoint_timestamp_seconds > 450",
        ),
        ("the normal cycle", "success_timestamp_seconds > 3600", "success_timestamp_seconds > 300"),
        ("the normal cycle", 'outcome="refused"', 'outcome="limited"'),
        (
            "behind, of one",
            "checkpoint_timestamp_seconds > 900",
            "checkpoint_timestamp_seconds > 1000",
        ),
        ("behind, of one", "> 900\n        for: 10m", "> 900\n        for: 20m"),
        ("behind, of one", "> 900", "> bool 900"),
        ("a machine was off", "> 900\n        for: 10m", "> 900\n        for: 5m"),
        ("a machine was off", "> 3600\n        for: 10m", "> 3600\n        for: 5m"),
        ("a machine was off", "[1d] offset 1h", "[1h] offset 1h"),
        ("no success", "> 3600", "> 4000"),
        ("a first run with", "> 3600\n        for: 10m", "> 3600\n        for: 5m"),
        (
            "a hole, told",
            "increase(duo_collector_holes_total[1h]) > 0",
            "duo_collector_holes_total > 0",
        ),
        (
            "a hole, told",
            "increase(duo_collector_holes_total[1h])",
            "increase(duo_collector_holes_total[10m])",
        ),
        (
            "a hole in a counter",
            "or (duo_collector_holes_total > 0 unless",
            "or (duo_collector_holes_total < 0 unless",
        ),
        (
            "late events, found",
            "increase(duo_collector_late_events_total[1h]) > 0",
            "duo_collector_late_events_total > 0",
        ),
        (
            "late events, found",
            "increase(duo_collector_late_events_total[1h])",
            "increase(duo_collector_late_events_total[5m])",
        ),
        ("late events, found", "severity: info", "severity: warning"),
        (
            "late events in",
            "or (duo_collector_late_events_total > 0 unless",
            "or (duo_collector_late_events_total < 0 unless",
        ),
        (
            "late events in",
            "unless max_over_time(duo_collector_late_events_total[1d] offset 1h)",
            "",
        ),
        (
            "counters that begin",
            "increase(duo_collector_holes_total[1h]) >",
            "delta(duo_collector_holes_total[1h]) !=",
        ),
        (
            "counters that begin",
            "increase(duo_collector_requests_total",
            "-delta(duo_collector_requests_total",
        ),
        ("refused once", "[10m]) > 0", "[15m]) > 0"),
        ("refused once", "[10m]) > 0\n        for: 10m", "[10m]) > 0\n        for: 5m"),
        ("refused in every", "[10m]) > 0", "[5m]) > 0"),
        ("refused in every", '{outcome="refused"}', '{outcome=~"refused|limited"}'),
        ("the metrics of one", "count by (host) (", "count by (host, instance) ("),
        ("the metrics of one", "unless count by (host)", "and count by (host)"),
        ("the only tenant's", "or absent(", "and absent("),
        ("there never were", "or absent(", "and absent("),
        ("node_exporter is away", "for: 10m", "for: 5m"),
    ],
)
def test_a_wrong_rule_fails_its_test(tmp_path, group, old, new):
    (tmp_path / RULES.name).write_text(changed(RULES.read_text(), {old: new}))
    head, *tests = RULES_TEST.read_text().split("\n  - name: ")
    (test,) = [test for test in tests if test.startswith(group)]
    (tmp_path / RULES_TEST.name).write_text(f"{head}\n  - name: {test}")
    assert (
        promtool("check", "rules", tmp_path / RULES.name).returncode == 0
    )  # wrong, but not nonsense
    verdict = promtool("test", "rules", tmp_path / RULES_TEST.name)
    assert verdict.returncode == 1 and "got:" in verdict.stderr, verdict.stdout + verdict.stderr


# The daemons


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def get(port, path):
    """The answer to an HTTP request; None where nobody answers yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@contextlib.contextmanager
def daemon(folder, port, *command):
    """A daemon that listens on a port, from its first answer to the end of the block; yields its log file."""
    log = folder / f"{pathlib.Path(command[0]).name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        wait_for(
            lambda: process.poll() is not None or get(port, "/metrics"), f"answer of {command[0]}"
        )
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log.read_text()[-3000:])  # shown where the test fails


@contextlib.contextmanager
def node_exporter(tmp_path):
    """The real one on a folder of text files; yields that folder, the port and the log file."""
    port, folder = free_port(), tmp_path / "textfiles"
    folder.mkdir()
    path = program("prometheus-node-exporter", "prometheus-node-exporter")
    only = (
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={folder}",
    )
    with daemon(tmp_path, port, path, *only, f"--web.listen-address=127.0.0.1:{port}") as log:
        yield folder, port, log


@contextlib.contextmanager
def tenant(tmp_path, name, address, textfiles, since_s, **rules):
    """A simulated tenant with an address of its own, as the host label is, and its collector."""
    folder, now_ms = tmp_path / name, int(time.time() * 1000)
    folder.mkdir()
    with Simulator(Rules(**rules), host=address) as duo:
        for log_type in LOG_TYPES:
            duo.add(log_type, make_events(log_type, 40, now_ms - 1_500_000, now_ms - 600_000))
        collector = Collector(folder, duo)
        collector.environ["DUO_METRICS_FILE"] = str(textfiles / f"duo-{name}.prom")
        collector.seed(**dict.fromkeys(LOG_TYPES, now_ms - since_s * 1000))
        yield duo, collector


def series(text):
    """Text of /metrics as {(name, label, label...): value}, the labels as `name=value`."""
    found = {}
    for line in text.splitlines():
        if line.startswith(("duo_", "node_textfile")):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?", line).groups()
            found[(name, *sorted(re.sub('"', "", labels or "").split(",")))] = float(value)
    return found


def expected_names(host):
    """All series of one tenant."""
    names = set()
    for log_type in LOG_TYPES:
        labels = (f"host={host}", f"log_type={log_type}")
        names |= {(f"duo_collector_{name}", *labels) for name in GAUGES_AND_COUNTERS}
        requests = ("duo_collector_requests_total", *labels)
        names |= {(*requests, f"outcome={outcome}") for outcome in OUTCOMES}
    return names


def test_the_metrics_file_is_sound(tmp_path):
    with tenant(tmp_path, "acme", "127.0.0.1", tmp_path, HOUR_S) as (_, collector):
        assert collector.once().status == 0
    path = tmp_path / "duo-acme.prom"
    with open(path) as file:
        verdict = promtool("check", "metrics", stdin=file)
    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")
    assert set(series(path.read_text())) == expected_names("127.0.0.1")
    left = [found for found in tmp_path.iterdir() if found.name.startswith("duo-")]
    assert left == [path]  # nothing is left over


def test_counters_of_a_pass_every_time(tmp_path):
    """As Prometheus sees a timer's runs: counters go on from run to run, and all are there from the first."""
    path = tmp_path / "duo-acme.prom"
    with tenant(tmp_path, "acme", "127.0.0.1", tmp_path, HOUR_S) as (duo, collector):
        collector.once()
        first = series(path.read_text())
        time.sleep(1.1)  # Duo's time comes in whole seconds
        now_ms = int(time.time() * 1000)
        duo.add(
            "telephony", make_events("telephony", 7, now_ms - 240_000, now_ms - 180_000, seed=1)
        )
        collector.once()
        second = series(path.read_text())
        duo.rules.no_permission = True
        assert collector.once().status == 77
        third = series(path.read_text())
    label = "host=127.0.0.1"
    for log_type in LOG_TYPES:
        of = (label, f"log_type={log_type}")
        events = ("duo_collector_events_total", *of)
        assert (first[events], second[events]) == (40, 47 if log_type == "telephony" else 40)
        assert second[events] == third[events]
        refused = ("duo_collector_requests_total", *of, "outcome=refused")
        assert (first[refused], second[refused], third[refused]) == (0, 0, 1)
        success = ("duo_collector_last_success_timestamp_seconds", *of)
        assert 0 < first[success] < second[success] == third[success] <= time.time()
        assert third[("duo_collector_checkpoint_timestamp_seconds", *of)] == pytest.approx(
            time.time() - 120, abs=30
        )
    counters = [name for name in first if name[0].endswith("_total")]
    assert all(first[name] <= second[name] <= third[name] for name in counters)


def test_node_exporter_reads_the_files_of_two_tenants(tmp_path):
    """And those of a child account, and of searches for late events."""
    with contextlib.ExitStack() as stack:
        folder, port, log = stack.enter_context(node_exporter(tmp_path))
        for name, address in (("acme", "127.0.0.1"), ("globex", "127.0.0.2")):
            _, collector = stack.enter_context(tenant(tmp_path, name, address, folder, HOUR_S))
            assert collector.once().status == 0
            search_for_late_events(tmp_path / name, collector, folder / f"duo-{name}-missing.prom")
        parent = Simulator(Rules(application="accounts"), host="127.0.0.3")
        child = parent.add_child("Initech")
        stack.enter_context(parent)
        (tmp_path / "child").mkdir()
        collector = Collector(tmp_path / "child", child)
        collector.environ["DUO_METRICS_FILE"] = str(folder / "duo-child.prom")
        assert collector.once("--since", "1h").status == 0
        search_for_late_events(tmp_path / "child", collector, folder / "duo-child-missing.prom")
        status, text = get(port, "/metrics")
        found = series(text)
        assert status == 200 and found[("node_textfile_scrape_error", "")] == 0
        hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.4/DACHILD0000000000001")
        expected = {name for host in hosts for name in expected_names(host)}
        late = "duo_collector_late_events_total"
        expected |= {
            (late, f"host={host}", f"log_type={log_type}")
            for host in hosts
            for log_type in LOG_TYPES
        }
        assert {name for name in found if name[0].startswith("duo_")} == expected
        # What the host label is for: of equal series in two files one is dropped, and only the log says so.
        assert "level=error" not in log.read_text()
        shutil.copy(folder / "duo-acme.prom", folder / "duo-again.prom")
        get(port, "/metrics")
        assert "was collected before with the same name and label values" in log.read_text()


def search_for_late_events(folder, collector, metrics):
    (folder / "written.jsonl").write_text("")
    options = ("--since", "1h", "--missing-from", folder / "written.jsonl")
    assert collector.run(*options, environ={"DUO_METRICS_FILE": str(metrics)}).status == 0


def api(port, path, **parameters):
    """What Prometheus answers."""
    status, text = get(port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    assert status == 200, text
    return json.loads(text)["data"]


def events_written(port):
    """The events written, by host, as Prometheus knows them."""
    result = api(port, "query", query="sum by (host) (duo_collector_events_total)")["result"]
    return {sample["metric"].get("host"): float(sample["value"][1]) for sample in result}


class Prometheus:
    """The real one, once a second, with the rules as shipped but for their patience."""

    def __init__(self, folder, exporter_port):
        self.port, self.folder = free_port(), folder / "prometheus"
        self.folder.mkdir()
        (self.folder / RULES.name).write_text(changed(RULES.read_text(), {"for: 10m": "for: 3s"}))
        config = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": [RULES.name],
            "scrape_configs": [
                {
                    "job_name": "node",
                    "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}],
                }
            ],
        }
        (self.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        assert promtool("check", "config", self.folder / "prometheus.yml").returncode == 0
        self.command = [
            program("prometheus", "prometheus"), f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def alerts(self, state):
        return [alert for alert in api(self.port, "alerts")["alerts"] if alert["state"] == state]


@pytest.mark.slow
def test_prometheus_tells_the_tenant_that_is_refused(tmp_path):
    with contextlib.ExitStack() as stack:
        folder, port, _ = stack.enter_context(node_exporter(tmp_path))
        prometheus = Prometheus(tmp_path, port)
        stack.enter_context(daemon(tmp_path, prometheus.port, *prometheus.command))
        _, acme = stack.enter_context(tenant(tmp_path, "acme", "127.0.0.1", folder, HOUR_S))
        _, globex = stack.enter_context(
            tenant(tmp_path, "globex", "127.0.0.2", folder, HOUR_S, no_permission=True)
        )
        assert acme.once().status == 0
        assert globex.once().status == 77
        both = {"127.0.0.1": 120, "127.0.0.2": 0}
        wait_for(lambda: events_written(prometheus.port) == both, "series of both tenants")
        assert globex.once().status == 77  # increase() needs to have seen the counter lower
        wanted = {
            (alert, "127.0.0.2", log_type)
            for alert in ("DuoCollectorBehind", "DuoCollectorNoSuccess", "DuoCollectorRefused")
            for log_type in LOG_TYPES
        }
        wait_for(lambda: fired(prometheus) == wanted, "alerts for globex, and for nobody else")
        for alert in prometheus.alerts("firing"):
            words = " ".join(alert["annotations"].values())
            assert "127.0.0.2" in words and f"127.0.0.1:{port}" in words and "--check" in words
            assert not re.search(r"<no value>|<error|\{\{", words)


def fired(prometheus):
    labels = [alert["labels"] for alert in prometheus.alerts("firing")]
    return {(one["alertname"], one.get("host"), one.get("log_type")) for one in labels}


# The dashboard


def queries():
    """The dashboard's queries, for all tenants."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [query.replace("$host", ".*") for query in found]


def check_dashboard(port):
    """Each query has a result for what is collected, and each series is drawn with labels that it has."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$host", ".*")
            # increase() needs two scrapes.
            result = wait_for(lambda query=query: api(port, "query", query=query)["result"], query)
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert all(labels <= set(sample["metric"]) for sample in result), target


def test_the_dashboard_shows_what_the_collector_writes(tmp_path):
    """It names no other metric, and leaves none out."""
    with tenant(tmp_path, "acme", "127.0.0.1", tmp_path, HOUR_S) as (_, collector):
        assert collector.once().status == 0
        search_for_late_events(tmp_path / "acme", collector, tmp_path / "duo-acme.prom")
    text = "".join(path.read_text() for path in tmp_path.glob("duo-*.prom"))
    written = {name for name, *_ in series(text)}
    assert "duo_collector_late_events_total" in written
    assert {
        name for query in queries() for name in re.findall(r"duo_collector_\w+", query)
    } == written
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    (host,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "host"]
    assert (
        host["query"]["query"] == "label_values(duo_collector_checkpoint_timestamp_seconds, host)"
    )
    assert host["allValue"] == ".*"


# Installed as the page says


@pytest.mark.slow
def test_debian_with_systemd_and_cron(machine):
    """The units and cron's jobs write files that reach Prometheus, each daemon under its own unit."""
    exporter_port, port = debian_daemons(machine)
    on_the_collector = blocks("prometheus.md", "On the collecting machine")[0].splitlines()
    assert on_the_collector.pop(0).startswith("apt install")
    look = on_the_collector.pop().replace("9100", str(exporter_port))
    names = ("acme", "globex", "initech")
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names, start=1):
            duo = stack.enter_context(Simulator(host=f"127.0.0.{number}"))
            publish(duo, number, 20)
            machine.tenant(name, duo)
            machine.bash("\n".join(on_the_collector).replace("acme", name))
            jobs = "sed s/acme/NAME/g deploy/cron/duo-collector >/etc/cron.d/duo-collector-NAME"
            machine.bash(jobs.replace("NAME", name))
        machine.run("systemctl", "start", "duo-collector-once@acme", "duo-collector-once@globex")
        machine.run("systemctl", "start", "duo-collector-missing@acme")
        assert job(machine, "initech", "--once") == ""
        assert job(machine, "initech", "--missing-from") == ""
        wanted = {f"127.0.0.{number}": 40 for number in (1, 2, 3)}
        wait_for(lambda: events_written(port) == wanted, "series of all tenants")
        assert "\nnode_textfile_scrape_error 0\n" in get(exporter_port, "/metrics")[1]
        assert machine.bash(look).stdout.count("duo_collector_checkpoint_timestamp_seconds{") == 9
        (on_prometheus,) = blocks("prometheus.md", "On the Prometheus machine")
        machine.bash(on_prometheus)
        rules = RULES.read_text().count("- alert: ")
        wait_for(lambda: get(port, "/api/v1/rules")[1].count('"type":"alerting"') == rules, "rules")
        check_dashboard(port)
    # node_exporter has no way to the events, nor the collector to what others put beside its files.
    (events,) = machine.outputs("acme")
    events = f"/var/log/duo/{events.name}"
    assert "denied" in as_user(machine, "prometheus", "cat", events).stderr
    other = f"{TEXTFILES}/other.prom"
    machine.write(other, "")
    assert "not permitted" in as_user(machine, "duo-collector", "rm", "-f", other).stderr
    _, uninstall = blocks("prometheus.md", "Uninstall")
    machine.bash(uninstall)
    wait_for(lambda: get(port, "/api/v1/rules")[1].count('"type":"alerting"') == 0, "no rules")


def debian_daemons(machine):
    """Both under the packages' own units and configuration, but for ports and patience; their ports."""
    daemons = ("prometheus-node-exporter", "prometheus")
    ports = []
    for name in daemons:
        program(name, name)
        ports.append(free_port())
        machine.write(f"/etc/default/{name}", f"ARGS=--web.listen-address=127.0.0.1:{ports[-1]}\n")
    config = "/etc/prometheus/prometheus.yml"
    exporter = {"localhost:9100": f"127.0.0.1:{ports[0]}"}
    text = changed(machine.path(config).read_text(), exporter)
    patience = r"(scrape_interval|scrape_timeout|evaluation_interval): *\d+s"
    machine.write(config, re.sub(patience, r"\1: 1s", text))
    machine.run("systemctl", "start", *daemons)
    wait_for(lambda: get(ports[1], "/-/ready"), "answer of Prometheus")
    return ports


def as_user(machine, user, *command):
    identity = (f"--reuid={user}", f"--regid={user}", "--init-groups")
    return machine.run("setpriv", *identity, *command, check=False)
