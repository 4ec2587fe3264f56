"""Metrics of several collectors of a host, as node_exporter before 1.4 takes them."""

from collections import defaultdict

from conftest import HOUR, fill, now_ms
from duo import Simulator
from prometheus_client.parser import text_string_to_metric_families


def families(*texts):
    """By name, all HELP and TYPE lines of several files."""
    found = defaultdict(set)
    for text in texts:
        for line in text.splitlines():
            if line[0] == "#":
                _, kind, name, explanation = line.split(" ", 3)
                found[name].add((kind, explanation))
    return found


def test_help_and_type_of_a_metric_are_the_same_in_every_file(duo, collector, tmp_path):
    fill(duo, "telephony", 5)
    texts = []
    with Simulator(host="127.0.0.2") as other:
        for number, tenant in enumerate((duo, other)):
            metrics = tmp_path / f"{number}.prom"
            collector.environ.update(
                tenant.settings,
                DUO_METRICS_FILE=str(metrics),
                DUO_CHECKPOINT_FILE=str(tmp_path / f"{number}.json"),
            )
            assert collector.once().status == 0
            texts.append(metrics.read_text())
    for name, lines in families(*texts).items():
        assert sorted(kind for kind, _ in lines) == ["HELP", "TYPE"], name
    named = {line.split("{")[0] for line in "".join(texts).splitlines() if line[0] != "#"}
    assert named == set(families(*texts))
    for text in texts:
        assert list(text_string_to_metric_families(text))


def test_two_collectors_of_a_tenant_have_no_series_in_common(duo, collector, tmp_path):
    """Each with other log types: the difference of the clocks, too, says whose it is."""
    series = []
    for log_type in ("telephony", "authentication"):
        metrics = tmp_path / f"{log_type}.prom"
        collector.seed(**{log_type: now_ms() - HOUR})
        environ = {"DUO_METRICS_FILE": str(metrics), "DUO_LOG_TYPES": log_type}
        assert collector.once(environ=environ).status == 0
        lines = metrics.read_text().splitlines()
        series += [line.rpartition(" ")[0] for line in lines if line[0] != "#"]
    assert any(name.startswith("duo_collector_clock_difference_seconds{") for name in series)
    assert len(series) == len(set(series))
