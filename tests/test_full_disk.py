"""A full disk: what comes twice when there is room again, and what is promised of it."""

import json
from collections import Counter

from conftest import SCRIPT, differences, fill_and_seed, finish


def test_only_the_page_that_could_not_be_written_whole_comes_again(
    duo, collector, cramped, small_pages
):
    folder, limit, make_room = cramped
    path, size = folder / "events", 200
    small_pages(size)
    fill_and_seed(duo, collector, 2_000, "authentication")
    options = ("--once", "--log-types", "authentication")
    with open(path, "ab") as file:
        result = finish(collector.shell(f'{limit}exec "$@"', *options, stdout=file))
    assert result.status == 74, result.stderr
    assert "stdout cannot be written" in result.stderr
    assert "the checkpoint is unchanged" in result.stderr
    make_room()
    with open(path, "ab") as file:
        assert collector.run(*options, stdout=file).status == 0
    lines = Counter(path.read_bytes().splitlines())
    repeated = [line for line, count in lines.items() if count > 1]
    assert 0 < len(repeated) < size and max(lines.values()) == 2
    whole = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            continue
    assert len(lines) - len(whole) <= 1, "more than one torn line"
    assert differences(duo, whole, ["authentication"]) == {"lost": 0, "doubled": 0}


def test_the_guarantees_say_so():
    """Not "only after a crash": a full disk, too, has a page come again."""
    text = SCRIPT.with_name("README.md").read_text().split("\n## Guarantees")[1]
    promises = text.split("\n## ")[0].splitlines()
    (line,) = [line for line in promises if "duplicate" in line]
    assert "full disk" in line and "crash" in line
