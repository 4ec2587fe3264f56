"""stdout that is a regular file is written at its end, however it was opened.

With `>` and a loop, systemd's StandardOutput=file: or a supervisor, it has no O_APPEND.
"""

import json

from conftest import ONLY, events_in, fill, now_ms, wait_for
from duo import make_events

LOOP = ("--interval", "0.3", *ONLY)


def publish(duo, count, seed):
    """Publish events of the last minutes, which the next pass writes."""
    end_ms = now_ms() - 130_000
    duo.add("telephony", make_events("telephony", count, end_ms - 60_000, end_ms, seed=seed))


def ids(path):
    return [event["telephony_id"] for event in events_in(path)]


def test_a_second_writer_overwrites_nothing(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    fill(duo, "telephony", 40)
    with open(path, "wb") as file:
        process = collector.start(*LOOP, stdout=file)
    try:
        wait_for(lambda: path.read_bytes().count(b"\n") == 40, "events")
        with open(path, "ab") as other:
            other.write(b'{"written":"by another"}\n')
        publish(duo, 30, seed=7)
        wait_for(lambda: path.read_bytes().count(b"\n") == 71, "later events")
    finally:
        process.terminate()
        process.communicate(timeout=10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"written": "by another"} in lines
    found = [line["telephony_id"] for line in lines if "telephony_id" in line]
    assert sorted(found) == sorted(event["telephony_id"] for event in duo.events("telephony"))


def test_a_file_that_is_truncated_has_no_hole_in_it(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    fill(duo, "telephony", 40)
    with open(path, "wb") as file:
        process = collector.start(*LOOP, stdout=file)
    try:
        wait_for(lambda: path.read_bytes().count(b"\n") == 40, "events")
        with open(path, "r+b") as file:  # as logrotate's copytruncate does
            file.truncate()
        publish(duo, 30, seed=7)
        wait_for(lambda: path.read_bytes().count(b"\n") == 30, "later events")
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert b"\0" not in path.read_bytes()


def test_a_restart_overwrites_nothing(duo, collector, tmp_path):
    path = tmp_path / "duo.jsonl"
    path.touch()
    fill(duo, "telephony", 40)
    for count in (40, 70):
        with open(path, "r+b") as file:  # at its beginning, as with StandardOutput=file:
            assert collector.once(*ONLY, stdout=file).status == 0
        assert len(set(ids(path))) == len(ids(path)) == count
        publish(duo, 30, seed=7)
