"""Which files --missing-from compares, and how far; where the counter of what was missing goes."""

import gzip

import pytest
from conftest import HOUR, ONLY, collect, fill, mend, now_ms, told
from duo import make_events


@pytest.fixture
def collected(duo, collector, file):
    """A file that holds all that the service has collected: 46 events."""
    fill(duo, "telephony", 45, hours=(6, 1))
    collect(duo, collector, file, ["telephony"])
    return file


def reconcile(collector, *files, since="48h"):
    return collector.run("--since", since, *ONLY, "--missing-from", *files)


def test_a_compressed_file_is_known_by_its_first_bytes(collector, collected):
    """Not by its name; a part of it that is lost is told, and nothing is printed."""
    whole = gzip.compress(collected.read_bytes())
    collected.write_bytes(whole)
    result = reconcile(collector, collected)
    assert (result.status, result.stdout) == (0, ""), result.stderr
    assert "holds no event" not in result.stderr and told(result)["telephony"][2] == 0
    collected.write_bytes(whole[: len(whole) // 2])
    result = reconcile(collector, collected)
    assert (result.status, result.stdout) == (78, ""), result.stderr
    assert f"--missing-from {collected} cannot be read" in result.stderr


def test_a_file_that_ends_in_gz_and_is_not_compressed_is_read(collector, collected):
    path = collected.rename(collected.with_suffix(".gz"))
    result = reconcile(collector, path)
    assert (result.status, result.stdout) == (0, ""), result.stderr


def test_a_file_that_rotates_between_shell_and_collector_is_found(collector, collected):
    """The collector expands a pattern itself, after it has read the checkpoint file."""
    collected.rename(collected.with_name("acme.jsonl-20261130"))
    pattern = collected.with_name("acme.jsonl*")
    result = reconcile(collector, pattern)
    assert (result.status, result.stdout) == (0, ""), result.stderr
    missing = collected.with_name("nothing*")
    result = reconcile(collector, missing)
    assert (result.status, str(missing) in result.stderr) == (78, True), result.stderr


def test_seeds_alone_prove_nothing(duo, collector, file):
    fill(duo, "telephony", 5)
    collector.checkpoint_file.write_text(
        '{"AUTH_SINCE_TIME": 1661022959934, "ADMIN_SINCE_TIME": 1661022959,'
        ' "TELEPHONY_SINCE_TIME": 1661022959934}'
    )
    result = mend(collector, file)
    assert (result.status, file.read_bytes()) == (75, b""), result.stderr
    for log_type in ("authentication", "administrator", "telephony"):
        (line,) = [line for line in result.stderr.splitlines() if f"ERROR {log_type}: " in line]
        assert str(collector.checkpoint_file) in line and "2022-08-20T19:15:59Z" in line
        assert "nothing can be compared" in line and "0 missing" not in line


def test_a_quiet_log_is_compared(duo, collector, file):
    """Its newest event is older than --since, and collection has got to now."""
    at_ms = now_ms() - 5 * HOUR
    duo.add("telephony", make_events("telephony", 5, at_ms, at_ms + 1000))
    collector.seed(telephony=now_ms() - 6 * HOUR)
    assert collector.once(*ONLY).status == 0
    result = reconcile(collector, file, since="2h")
    assert (result.status, " ERROR " in result.stderr) == (0, False), result.stderr
    assert told(result)["telephony"] == ("INFO", 0, 0)


def test_the_metrics_of_the_service_stay(duo, collector, collected, tmp_path):
    metrics = tmp_path / "duo.prom"
    collector.environ["DUO_METRICS_FILE"] = str(metrics)
    assert collector.once(*ONLY).status == 0
    before = metrics.read_bytes()
    at_ms = now_ms() - HOUR
    duo.add("telephony", make_events("telephony", 7, at_ms, at_ms + 1000, seed=9))
    result = mend(collector, collected, *ONLY)
    assert (result.status, told(result)["telephony"][2]) == (0, 7), result.stderr
    assert metrics.read_bytes() == before
    sample = 'duo_collector_late_events_total{host="127.0.0.1",log_type="telephony"} 7'
    text = (tmp_path / "duo-missing.prom").read_text()
    assert sample in text.splitlines()
