"""--missing-from with >>, beside a service whose stdout was opened with > and so without O_APPEND."""

import pytest
from conftest import MINUTE, ONLY, events_in, fill, mend, now_ms, running, wait_for
from duo import make_events


def publish(duo, count, minutes, seed):
    """Publish events of a minute that ended so many minutes ago."""
    end_ms = now_ms() - int(minutes * MINUTE)
    duo.add("telephony", make_events("telephony", count, end_ms - MINUTE, end_ms, seed=seed))


@pytest.mark.parametrize("mode", ["wb", "r+b"], ids=["opened with >", "opened at its beginning"])
def test_reconciling_a_file_that_the_service_goes_on_writing(duo, collector, tmp_path, mode):
    path = tmp_path / "duo.jsonl"
    path.touch()
    fill(duo, "telephony", 40)
    publish(duo, 1, 3, seed=1)  # a young event, so that the next pass starts at the lookback
    with open(path, mode) as file, running(collector, *ONLY, "--interval", "0.3", stdout=file):
        wait_for(lambda: path.read_bytes().count(b"\n") == 41, "the first pass")
        publish(duo, 12, 60, seed=2)  # too late for the service
        assert mend(collector, path, *ONLY).status == 0
        wait_for(lambda: path.read_bytes().count(b"\n") == 53, "what was missing")
        publish(duo, 30, 2.1, seed=3)
        wait_for(lambda: path.read_bytes().count(b"\n") >= 83, "a later pass")
    found = [event["telephony_id"] for event in events_in(path)]
    assert sorted(found) == sorted(event["telephony_id"] for event in duo.events("telephony"))
