"""rsyslog and syslog-ng bring every event as it was written: stops, kills, receivers that are away or cannot prove themselves."""

import shlex
import signal
import sys
import time
from datetime import datetime, timedelta, timezone

import pytest
import trustme
from conftest import SCRIPT

from deploy.shipper import (
    BOTH,
    RSYSLOG_TLS,
    Receiver,
    certificate,
    numbered,
    wait_for,
)


@BOTH
def test_every_event_arrives_as_written(shipper, tenant, collector):
    """The collector writes while the shipper is stopped and started: each line once, whole, in order."""
    tenant.rules.short_pages, tenant.rules.latency_s = True, 0.05
    with open(shipper.events, "ab") as events:
        collecting = collector.start("--once", "-q", stdout=events)
    receiver = shipper.receiver
    for connections in range(1, 4):
        shipper.start()
        size = shipper.events.stat().st_size
        wait_for(
            lambda size=size: shipper.events.stat().st_size > size or collecting.poll() is not None,
            "page",
        )
        # A stop before that could lose the one event that a comment in rsyslog.conf speaks of.
        wait_for(
            lambda at_least=connections: (
                len(receiver.received) >= at_least or receiver.lines() == shipper.written()
            ),
            "connection",
        )
        shipper.stop()
    assert (collecting.wait(30), collecting.stderr.read()) == (0, b"")
    shipper.start()
    written = shipper.written()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert len(written) == 1201
    assert max(map(len, written)) > 200_000
    assert any(b"\\u5f35" in line for line in written)
    assert shipper.receiver.lines() == written


@BOTH
def test_half_a_line_waits_for_the_rest(shipper):
    """A page is one write for the collector, but not for who reads meanwhile."""
    first, second, third = numbered(0, 3, 5000)
    shipper.append(first, second[:2500])
    shipper.events.write_bytes(shipper.events.read_bytes()[:-1])
    shipper.start()
    shipper.receiver.wait_for(first)
    shipper.stop()
    with open(shipper.events, "ab") as file:
        file.write(second[2500:] + b"\n")
    shipper.append(third)
    shipper.start()
    shipper.receiver.wait_for(third)
    shipper.stop()
    assert shipper.receiver.lines() == [first, second, third]


@BOTH
def test_a_kill_loses_nothing(shipper):
    """Killed in the middle: nothing is missing, and what comes twice are some last lines before the kill."""
    written = numbered(0, 12_000)
    shipper.append(*written)
    shipper.start()
    wait_for(
        lambda: shipper.receiver.received and len(shipper.receiver.received[0]) > 1_000_000,
        "first megabyte",
    )
    shipper.receiver.reading.clear()  # so that it is held up, and the kill comes before the end
    shipper.stop(signal.SIGKILL)
    positions = [path.stat().st_size for path in shipper.folder.glob("imfile-state*")]
    shipper.receiver.reading.set()
    shipper.start()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    before, after = (bytes(received).split(b"\n")[:-1] for received in shipper.receiver.received)
    assert 0 < len(before) < len(written)
    assert before == written[: len(before)]
    twice = len(before) + len(after) - len(written)
    if shipper.name == "syslog-ng":  # what the disk buffer held may come from the file once more
        after = list(dict.fromkeys(after))
    assert after == written[-len(after) :]
    assert len(before) + len(after) >= len(written)
    # The comment on persistStateInterval says when rsyslog begins anew.
    assert twice <= (1001 if shipper.name == "rsyslog" else 200) or 0 in positions


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("number", [None, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("transport", ["TLS", "plain"])
def test_a_receiver_that_is_away_is_waited_for(shipper, number, transport):
    """Also when the shipper is killed or stopped meanwhile."""
    if transport == "plain":
        shipper.choose_plain()
    before, during = numbered(0, 50), numbered(50, 300)
    shipper.append(*before)
    shipper.start()
    shipper.receiver.wait_for(before[-1])
    shipper.receiver.close()
    shipper.append(*during)
    wait_for(lambda: "refused" in (shipper.folder / "stderr").read_text(), "try to connect")
    if not number:
        time.sleep(
            5
        )  # rsyslog would give events up after its third try, were it not for resumeRetryCount
    else:
        shipper.stop(number)
        shipper.start()
    back = Receiver(shipper.receiver.port, shipper.receiver.context)
    try:
        back.wait_for(during[-1])
        lines = back.lines()
    finally:
        back.close()
    if number == signal.SIGKILL:  # rsyslog begins anew then, as it had not kept its position yet
        lines = [line for line in lines if line not in before]
    if (shipper.name, number, transport) == ("syslog-ng", signal.SIGKILL, "TLS"):
        # From the disk buffer, and again from the file: as many lines as syslog-ng reads before it notes its position.
        twice = len(lines) - len(dict.fromkeys(lines))
        assert twice <= 100
        lines = lines[twice:]
    missing_lines = [line for line in during if line not in lines]
    # The one event that comments in both files speak of.
    told = (shipper.name, number) == ("rsyslog", signal.SIGTERM) or (shipper.name, transport) == (
        "syslog-ng",
        "TLS",
    )
    assert len(missing_lines) <= (1 if told else 0)
    assert lines == [line for line in during if line not in missing_lines]


WRONG = {
    "name": lambda shipper: certificate(shipper.authority, "other.example.com"),
    "authority": lambda shipper: certificate(trustme.CA(), "localhost"),
    "expired": lambda shipper: certificate(
        shipper.authority, "localhost", not_after=datetime.now(timezone.utc) - timedelta(hours=1)
    ),
    "no TLS": lambda shipper: None,
}


@BOTH
@pytest.mark.parametrize("wrong", WRONG)
def test_a_receiver_that_cannot_prove_itself_gets_nothing(shipper, wrong):
    """And every event arrives once the right certificate is there."""
    port, right = shipper.receiver.port, shipper.receiver.context
    shipper.receiver.close()
    written = numbered(0, 200)
    shipper.append(*written)
    false = Receiver(port, WRONG[wrong](shipper))
    shipper.start()
    if wrong == "no TLS":
        wait_for(lambda: any(false.received), "try to connect")  # a greeting that nobody answers
    else:
        wait_for(lambda: false.attempts >= 2 or any(false.received), "second try to connect")
    false.close()
    assert not any(
        b"padding" in received if wrong == "no TLS" else received for received in false.received
    )
    shipper.receiver = Receiver(port, right)
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    lines = shipper.receiver.lines()
    missing_lines = [line for line in written if line not in lines]
    # The event that a failed try may lose, as a comment in syslog-ng.conf says.
    assert len(missing_lines) <= (false.attempts if shipper.name == "syslog-ng" else 0)
    assert lines == [line for line in written if line not in missing_lines]


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_stopped_while_it_refuses_the_receiver_loses_one_event(shipper):
    """The one that a comment in rsyslog.conf speaks of, and no more: what was read before is not lost or sent again."""
    port, right = shipper.receiver.port, shipper.receiver.context
    before, during = numbered(0, 50), numbered(50, 200)
    shipper.append(*before)
    shipper.start()
    shipper.receiver.wait_for(before[-1])
    shipper.stop()
    assert shipper.receiver.lines() == before
    shipper.receiver.close()
    false = Receiver(port, WRONG["authority"](shipper))
    shipper.start()
    time.sleep(1)  # the events are to be appended while it runs
    shipper.append(*during)
    wait_for(lambda: false.attempts >= 2, "second try to connect")
    shipper.stop()
    false.close()
    shipper.receiver = Receiver(port, right)
    shipper.start()
    shipper.receiver.wait_for(during[-1])
    shipper.stop()
    assert shipper.receiver.lines() in (during, during[1:])


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_reads_a_corrected_ca_file_without_a_restart(shipper):
    """And loses nothing, as deploy/README.md says."""
    ca = shipper.folder / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    written = numbered(0, 50)
    shipper.append(*written[:25])
    shipper.start()
    wait_for(
        lambda: "signer not found" in (shipper.folder / "stderr").read_text(),
        "message about the CA",
    )
    shipper.append(*written[25:])
    assert not any(shipper.receiver.received)
    shipper.authority.cert_pem.write_to_path(ca)
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert shipper.receiver.lines() == written


@BOTH
def test_plain_tcp_is_there_for_the_asking(shipper):
    shipper.choose_plain()
    written = numbered(0, 100)
    shipper.append(*written)
    shipper.start()
    shipper.receiver.wait_for(written[-1])
    shipper.stop()
    assert shipper.receiver.lines() == written


def long_and_short(shipper, setting):
    """What arrives of an event of 200 KB when a setting is left at its default, and the event."""
    long, short = numbered(0, 1, 200_000)[0], numbered(1, 2)[0]
    shipper.change({setting: ""})
    shipper.append(long, short)
    shipper.start()
    shipper.receiver.wait_for(short)
    return shipper.receiver.lines()[:-1], long


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_by_default_drops_the_end_of_a_long_event(shipper):
    """The comment says so, and the setting is what keeps the event whole."""
    pieces, long = long_and_short(shipper, 'global(maxMessageSize="1m")')
    assert pieces == [long[:8096]]


@pytest.mark.parametrize("shipper", ["syslog-ng"], indirect=True)
def test_syslog_ng_by_default_splits_a_long_event(shipper):
    pieces, long = long_and_short(shipper, "log-msg-size(1048576)\n        ")
    assert pieces == [long[at : at + 65536] for at in range(0, len(long), 65536)]


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_reads_the_files_of_all_tenants(shipper):
    shipper.start()
    second = shipper.events.with_name("second.jsonl")
    shipper.append(*numbered(0, 50))
    second.write_bytes(b"".join(line + b"\n" for line in numbered(50, 100)))
    wait_for(lambda: len(shipper.receiver.lines()) >= 100, "both files")
    shipper.stop()
    assert sorted(shipper.receiver.lines()) == sorted(numbered(0, 100))


@pytest.mark.parametrize("shipper", ["rsyslog"], indirect=True)
def test_rsyslog_hands_events_to_a_program(shipper):
    """omprog: the program ends without an answer in the middle, and is given that event again."""
    sink, out = shipper.folder / "sink", shipper.folder / "out"
    sink.write_text(f"""#!{sys.executable}
import pathlib, sys
out, once = open({str(out)!r}, "ab"), pathlib.Path({str(out)!r} + ".once")
print("OK", flush=True)
for line in sys.stdin.buffer:
    if line.startswith(b'{{"n":20,') and not once.exists():
        once.touch()
        sys.exit(1)
    out.write(line)
    out.flush()
    print("OK", flush=True)
""")
    sink.chmod(0o755)
    shipper.choose("omprog", RSYSLOG_TLS)
    shipper.change({"/usr/local/bin/duo_sink": str(sink)})
    written = [*numbered(0, 50), *numbered(50, 51, 200_000), *numbered(51, 60)]
    shipper.append(*written)
    shipper.start()
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 60, "last event")
    shipper.stop()
    assert out.read_bytes().splitlines() == written


@pytest.mark.parametrize("shipper", ["syslog-ng"], indirect=True)
def test_syslog_ng_runs_the_collector(shipper, tenant, collector):
    """program(): whole lines without a file."""
    settings = shipper.folder / "env"
    settings.write_text(
        "".join(f"{name}={value}\n" for name, value in collector.environ.items() if name != "PATH")
    )
    settings.chmod(0o600)
    shipper.choose("program", r"^source s_duo \{.*?^\};\n")
    command = "/usr/local/bin/duo-collector acme"
    shipper.change(
        {command: shlex.join([sys.executable, str(SCRIPT), "--env-file", str(settings)])}
    )
    shipper.start()
    wait_for(lambda: len(shipper.receiver.lines()) >= 1201, "last event")
    shipper.stop()
    # With a checkpoint file of its own: the first collector may still be ending.
    own = ("--checkpoint-file", shipper.folder / "expected.json")
    expected = collector.once("--since", "7h", "-q", *own).stdout.encode().splitlines()
    assert sorted(shipper.receiver.lines()) == sorted(expected)
