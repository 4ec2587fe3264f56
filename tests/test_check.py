"""--check: one small request a log type, and what to fix."""

import pytest
from conftest import (
    ALL,
    CHECKPOINT_KEYS,
    NOBODY,
    ONLY,
    SECRET,
    assert_hidden,
    log_requests,
    running,
)
from duo import make_events


def test_check_asks_once_for_each_log_type_and_moves_nothing(collector, duo):
    now_ms = duo.now_ms()
    for name in CHECKPOINT_KEYS:
        duo.add(name, make_events(name, 3, now_ms - 600_000, now_ms - 121_000))
    collector.seed(authentication=now_ms - 900_000)
    before = collector.checkpoint_file.read_bytes()
    result = collector.run("--check", "--log-types", ALL)
    assert (result.status, result.stdout) == (
        0,
        "".join(f"{name}: ok\n" for name in CHECKPOINT_KEYS),
    )
    asked = [request.log_type for request in log_requests(duo)]
    assert sorted(asked) == sorted(CHECKPOINT_KEYS)
    limits = {request.log_type: request.params.get("limit") for request in log_requests(duo)}
    assert {name for name, limit in limits.items() if limit is None} == {
        "administrator",
        "offline_enrollment",
    }
    assert set(limits.values()) == {"1", None}
    assert collector.checkpoint_file.read_bytes() == before


@pytest.mark.parametrize(
    "status, words, spoil, environ",
    [
        (
            77,
            "401 40103 DUO_INTEGRATION_KEY DUO_SECRET_KEY",
            lambda duo: None,
            {"DUO_SECRET_KEY": SECRET},
        ),
        (
            77,
            '403 40301 "Grant read log"',
            lambda duo: setattr(duo.rules, "no_permission", True),
            {},
        ),
        (77, "404 40401 DUO_LOG_TYPES", lambda duo: duo.rules.missing.update(telephony=404), {}),
        (75, "429 42901 rate-limited", lambda duo: duo.inject(None, "error_429"), {}),
        (75, "500 50001", lambda duo: duo.inject(None, "error_500"), {}),
        (75, "127.0.0.1 refused", lambda duo: None, {"DUO_API_HOST": NOBODY}),
    ],
)
def test_check_says_what_to_fix(status, words, spoil, environ, collector, duo):
    spoil(duo)
    result = collector.run("--check", "-v", *ONLY, environ=environ)
    (line,) = result.stdout.splitlines()
    assert result.status == status
    assert [word for word in ["telephony: ", *words.split()] if word not in line] == []
    assert_hidden(result.stdout, result.stderr)
    assert not collector.checkpoint_file.exists()


def test_a_refused_log_type_does_not_hide_the_others(collector, duo):
    duo.rules.missing.update(authentication=403, telephony=404)
    duo.inject("trust_monitor", "error_500")
    result = collector.run("--check", "--log-types", ALL)
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert list(said) == list(CHECKPOINT_KEYS)
    assert [name for name, words in said.items() if words == "ok"] == [
        "administrator",
        "activity",
        "offline_enrollment",
    ]
    assert result.status == 77  # the worst, not the last


def test_check_says_the_same_error_once(duo, collector):
    result = collector.run("--check", environ={"DUO_SECRET_KEY": "0" * 40})
    lines = result.stdout.splitlines()
    assert (result.status, lines[1:]) == (77, ["administrator: the same", "telephony: the same"])
    assert lines[0].startswith("authentication: Duo refuses the credentials")


def test_check_says_which_log_is_not_among_the_log_types(duo, collector):
    told = " INFO activity is not among the log types"
    assert told in collector.run("--check").stderr
    assert told not in collector.run("--check", "--log-types", ALL).stderr


def test_check_tries_the_lock(duo, collector):
    """A lock that another run holds is no fault; one that can never be had is."""
    with running(collector, "--interval", "60") as process:
        process.stderr.readline()
        assert collector.run("--check").status == 0
    path = collector.checkpoint_file.parent / ".checkpoints.json.lock"
    path.unlink(missing_ok=True)
    path.mkdir()
    result = collector.run("--check", *ONLY)
    assert (result.status, result.stdout.splitlines()[0]) == (78, "telephony: ok")
    assert str(collector.checkpoint_file) in result.stdout.splitlines()[1]
