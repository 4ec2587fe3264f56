"""Progress: in place on a terminal, now and then in a log."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections import Counter

import pytest
from conftest import MINUTE, ONLY, fill, in_ms, log_requests, now_ms, stamp

import duo_collector

PROGRESS = re.compile(
    r"(\w+): (?:(\d+)%, (.+) left|just started); (\S+) events so far, ([\d,]+) a minute, up to (\S+)"
)


class Screen:
    """As much of a terminal as is written to here: whatever else is sent to it is an error."""

    def __init__(self, columns=10_000):
        self.columns, self.rows, self.at, self.column = columns, [""], 0, 0

    def feed(self, text):
        for code, count, letter, plain in re.findall(
            r"(\x1b\[(\d*)([FJ])|[\r\n])|(.)", text, re.DOTALL
        ):
            if letter == "F":
                self.at, self.column = max(0, self.at - int(count or 1)), 0
            elif letter == "J":
                self.rows[self.at :] = [self.rows[self.at][: self.column]]
            elif code == "\r":
                self.column = 0
            elif code == "\n" or self.column == self.columns:
                self.at += 1
                self.rows += [""] * (self.at == len(self.rows))
                self.column = self.column if code else 0
            if plain:
                assert plain.isprintable(), repr(text)
                row = self.rows[self.at].ljust(self.column)
                self.rows[self.at] = row[: self.column] + plain + row[self.column + 1 :]
                self.column += 1

    @property
    def progress(self):
        return [row for row in self.rows if re.match(r"\w+: (-?\d+%|just started)", row)]


def on_terminal(collector, *options, columns=160, stdout_too=False, at=None, **environ):
    """Run it with a terminal for stderr: its status, and what was sent there, until `at` says to
    close that."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {"TERM": "xterm", **environ}
    stdout = its if stdout_too else subprocess.DEVNULL
    process = collector.start(*options, environ=environ, stdout=stdout, stderr=its)
    os.close(its)
    sent = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            sent += os.read(ours, 65_536)
        except OSError:  # which is how a terminal ends
            break
        if at and at(process, sent):
            break
    os.close(ours)
    return process.wait(10), sent.decode()


def screens(sent, columns=160):
    """The screen after every line."""
    screen = Screen(columns)
    for line in sent.splitlines(keepends=True):
        screen.feed(line)
        yield screen


def test_a_terminal_shows_how_far_it_is_in_place(backlog, collector):
    backlog.inject("telephony", None, None, "error_500")  # a line of the log in between
    status, sent = on_terminal(collector, "--once")
    seen = set()
    for screen in screens(sent):
        assert len(screen.progress) <= 2, screen.rows
        seen.update(screen.progress)
    assert status == 0, sent
    shown = [PROGRESS.fullmatch(line) for line in seen]
    assert all(shown), seen
    assert Counter(log_type for log_type, _ in {(match[1], match[6]) for match in shown}) == {
        "telephony": 6,
        "administrator": 11,
    }
    logged = [row[21:] for row in screen.rows if row]
    assert re.fullmatch("INFO telephony: Duo fails .*; trying again in [01] s", logged[0]), (
        screen.rows
    )
    assert [line.split(", ")[0] for line in sorted(logged[1:])] == [
        "INFO administrator: 1,050 events in 12 requests",
        "INFO telephony: 5,500 events in 8 requests",
    ]


@pytest.mark.parametrize("columns, width", [(60, 60), (200, 200), (1, 1), (0, 80)])
def test_progress_keeps_to_the_width_of_the_terminal(backlog, collector, columns, width):
    status, sent = on_terminal(collector, "--once", *ONLY, columns=columns)
    drawn = [
        line.split("\x1b[J")[-1].rstrip() for line in sent.splitlines() if " INFO " not in line
    ]
    *_, screen = screens(sent, width)
    assert (status, screen.progress) == (0, [])
    assert len(drawn) > 4 and max(map(len, drawn)) <= width
    assert width < 200 or "up to 20" in drawn[0]
    assert "".join(screen.rows).count("telephony: 5,500 events in 7 requests") == 1


@pytest.mark.parametrize(
    "options, environ, terminal",
    [(["-q"], {}, {}), ([], {"TERM": "dumb"}, {}), ([], {}, {"stdout_too": True})],
    ids=["-q", "dumb", "stdout too"],
)
def test_a_terminal_where_nothing_is_redrawn(backlog, collector, options, environ, terminal):
    status, sent = on_terminal(collector, "--once", *options, **environ, **terminal)
    assert (status, "\x1b" in sent) == (0, False)
    assert ("so far" in sent) == ("-q" not in options)


def test_a_signal_leaves_no_progress_behind(backlog, collector):
    def stop(process, sent):
        if sent.count(b"so far") >= 3 and not asked:
            asked.append(process.terminate())

    asked = []
    status, sent = on_terminal(collector, "--once", at=stop)
    *_, screen = screens(sent)
    assert (status, screen.progress) == (75, []), sent
    assert "stopped by a signal" in screen.rows[-2]


def test_a_log_says_now_and_then_how_far_it_is(backlog, collector):
    began = now_ms()
    result = collector.once()
    took_s = (now_ms() - began) / 1000
    assert (result.status, len(result.events)) == (0, 6_550), result.stderr
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = [PROGRESS.fullmatch(line) for line in lines]
    assert all(shown), lines
    for log_type in ("telephony", "administrator"):
        times = sorted(in_ms(log_type, event) for event in result.of(log_type))
        of_type = [match.groups() for match in shown if match[1] == log_type]
        assert 1 <= len(of_type) <= took_s / 0.4
        for _, share, left, events, rate, reached in of_type:
            written = int(events.replace(",", ""))
            first, last = times[0], times[written - 1]
            assert reached == stamp(last)
            of_all = (last - first) / (began - 2 * MINUTE - first)
            if log_type == "telephony":  # Duo counts its events
                of_all = written / 5_500
            elapsed_s = written / int(rate.replace(",", "")) * 60
            assert int(share) == pytest.approx(100 * of_all, abs=1) and 0.3 < elapsed_s < took_s
            assert -1.2 < int(left.split(" s")[0]) - elapsed_s * (1 / of_all - 1) < 0.2
    assert duo_collector.Reports.EVERY_S == 30
    (line,) = collector.once("-q", *ONLY, "--since", "7h").stderr.splitlines()
    assert " WARNING telephony: --since repeats the events from 20" in line


@pytest.mark.parametrize("total", ["absent", "remaining", "changing", "page"])
def test_progress_without_a_count_and_with_a_wrong_one(backlog, collector, total):
    backlog.rules.total = total
    result = collector.once(*ONLY, "--since", "7h")
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = [PROGRESS.fullmatch(line) for line in lines]
    assert (
        result.status == 0 and lines and all(match and int(match[2] or 0) <= 100 for match in shown)
    ), result.stderr


def test_progress_of_a_log_without_order_has_no_share(backlog, collector):
    """How far it has got is known at its end."""
    fill(backlog, "trust_monitor", 1_600)
    result = collector.once("--log-types", "trust_monitor", "--since", "7h")
    lines = [line.split(" INFO ")[1] for line in result.stderr.splitlines() if "so far" in line]
    shown = r"trust_monitor: just started; [\d,]+ events so far, [\d,]+ a minute, up to 20"
    assert lines and all(re.match(shown, line) for line in lines), lines


def test_a_terminal_that_is_closed_stops_nothing(backlog, collector):
    assert on_terminal(collector, "--once", at=lambda *_: True)[0] == 0
    assert Counter(request.log_type for request in log_requests(backlog)) == {
        "telephony": 7,
        "administrator": 12,
    }
