#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.28,<3", "python-dotenv>=0.20,<2"]
# ///
"""Collect Cisco Duo's audit logs as JSON lines.

Reads the logs that Duo's Admin API serves, each from its own checkpoint, and writes every event to stdout as a line:

    duo_collector.py --check      test the host, the keys and the permission
    duo_collector.py --once       one pass until caught up, then exit: for cron or a timer
    duo_collector.py              pass after pass, with a pause in between, until SIGTERM or SIGINT
    duo_collector.py --status     show how far each log type has got
    duo_collector.py --since 48h --missing-from FILE      print the events that Duo has and FILE lacks

The guarantee: every event that Duo publishes is written at least once, and twice only if the process ends between
writing a page and saving its checkpoint, in this order. For events that are published late, each pass rereads the five
minutes before the checkpoint (DUO_LOOKBACK) and drops what was written before; it starts no later than the newest event
known, in case Duo published nothing for hours. Individual events that are published more than seven minutes late are
found by --missing-from.

The file follows the data. Names ending in _ms are in milliseconds (times: since 1970), those in _s in seconds.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import contextlib
import difflib
import email.utils
import errno
import fcntl
import hashlib
import hmac
import json
import logging
import math
import os
import random
import re
import select
import signal
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:  # imported only where needed: the import takes longer than a whole --status run
    import requests

__version__ = "2.0.0"
FOLDER = os.path.dirname(os.path.abspath(__file__))
When = Callable[[int], int]  # takes the current time, returns another; both in ms, by Duo's clock
log = logging.getLogger("duo_collector")


class CollectorError(Exception):
    """Ends the process, with this message and this exit status."""

    status = 75

    def __init__(self, message: str, status: int = 0, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.status, self.answer = status or self.status, answer


class PassFailed(CollectorError):
    """Ends the pass of one log type; the next pass tries again. Usually a request that returned no page."""

    outcome = "failed"


class Refused(PassFailed):
    """Duo refuses the credentials, the permission or the log type."""

    status, outcome = 77, "refused"


class BadRequest(PassFailed):
    """Duo answers 400: it rejects the parameters, or no longer accepts the cursor."""


class Failed(PassFailed):
    """Worth a retry within the pass: no connection, no answer in time, a 5xx, an answer that cannot be read."""

    patience_s = 30  # a log type gives up its pass after this long with no other result


class RateLimited(Failed):
    """Duo answers 429: too many requests."""

    outcome, patience_s = "limited", 300


@dataclass(frozen=True)
class Edges:
    """External dependencies: clocks, waiting, HTTP. Tests inject their own and run everything in virtual time."""

    now: Callable[[], float]  # s since 1970, by the local clock
    monotonic: Callable[[], float]  # s
    wait: Callable[[float], bool]  # for this many s; returns True at once on SIGTERM or SIGINT
    session: Callable[[], requests.Session]
    on_signals: Callable[..., None] = lambda *_: None  # see stop_on_signals()


# Log types


@dataclass(frozen=True)
class LogType:
    """One of Duo's logs: everything that distinguishes it from the others. Source: duo.com/docs/adminapi#logs."""

    name: str
    path: str  # below /admin/
    since_key: str  # environment variable for its seed, and key of its checkpoint in the file
    list_key: str  # the member of the answer that holds the events
    time_field: str  # its value is ISO 8601, or a number in units of unit_ms
    id_field: str = ""  # empty: an event is identified by its content
    unit_ms: int = 1  # unit of mintime, maxtime and checkpoint, in ms: 1 (13 digits) or 1000 (10 digits)
    page_size: int = 1000
    cursor: str = ""  # query parameter for the next page; empty: page by raising mintime
    sort: str = ""  # Duo's default is newest first
    ordered: bool = True  # False: a page may hold events older than those of the page before it
    kept_days: int = 0  # retention: Duo answers 400 to an earlier mintime; 0: any mintime is accepted
    delay_ms: int = 120_000  # Duo serves nothing newer; asking for it would skip events not yet published
    successor: str = ""  # the log that replaces this one, which Duo is deprecating

    def floor(self, time_ms: float) -> int:
        """Round a time in ms down to this log type's unit."""
        return int(time_ms) // self.unit_ms * self.unit_ms

    def parse_since(self, text: str) -> int:
        """Parse a since time in this log type's unit; return ms. Raises ValueError."""
        unit, digits = ("seconds", 10) if self.unit_ms == 1000 else ("milliseconds", 13)
        if not re.fullmatch(f"[1-9][0-9]{{{digits - 1}}}", text):
            raise ValueError(f"write {unit} since 1970, {digits} digits such as {SEED_MS // self.unit_ms}")
        return int(text) * self.unit_ms


SEED_MS = 1661022959934  # 2022-08-20: where collection starts by default

V1: dict[str, Any] = {"list_key": "response", "time_field": "timestamp", "unit_ms": 1000, "successor": "activity"}
V2: dict[str, Any] = {"cursor": "next_offset", "sort": "ts:asc", "kept_days": 180}
LOG_TYPES = {row.name: row for row in (
    LogType("authentication", "v2/logs/authentication", "AUTH_SINCE_TIME", "authlogs", "isotimestamp", "txid", **V2),
    LogType("administrator", "v1/logs/administrator", "ADMIN_SINCE_TIME", **V1),
    LogType("telephony", "v2/logs/telephony", "TELEPHONY_SINCE_TIME", "items", "ts", "telephony_id", **V2),
    LogType("activity", "v2/logs/activity", "ACTIVITY_SINCE_TIME", "items", "ts", "activity_id", **V2),
    LogType("offline_enrollment", "v1/logs/offline_enrollment", "OFFLINE_ENROLLMENT_SINCE_TIME", **V1),
    LogType("trust_monitor", "v1/trust_monitor/events", "TRUST_MONITOR_SINCE_TIME", "events", "surfaced_timestamp",
            "sekey", page_size=200, cursor="offset", ordered=False, kept_days=180),
)}  # fmt: skip
DEFAULT_LOG_TYPES = "authentication,administrator,telephony"


# Settings: each parser raises ValueError with a message that says what to write instead.


def parse_host(text: str) -> str:
    label, number = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
    loopback = rf"(localhost|127(\.{number}){{3}}|\[::1\])(:(?P<port>[0-9]{{1,5}}))?"
    match = re.fullmatch(rf"((?P<scheme>https?)://)?(?P<at>{loopback}|(?P<name>{label}(\.{label})+))/?", text.lower())
    if not match or int(match["port"] or 0) > 65535 or (match["name"] and match["scheme"] == "http"):
        raise ValueError("write https://api-XXXXXXXX.duosecurity.com, the API hostname with nothing after it")
    if "api-xxxxxxxx." in match["at"]:
        raise ValueError("that is the placeholder; write the API hostname that the Duo Admin Panel shows")
    if match["name"] and not match["name"].endswith((".duosecurity.com", ".duofederal.com")):
        log.warning("DUO_API_HOST is %s, which is not a Duo host: signed requests are sent there", match["name"])
    return f"{match['scheme'] or 'https'}://{match['at']}"


def parse_key(text: str) -> str:
    if not re.fullmatch("[!-~]+", text) or re.search("[\"'`]", text):  # messages must not show the key
        raise ValueError("there is a space, quote, line break or nothing at all: write just the key from Duo")
    return text


def parse_key_file(path: str) -> str:
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        return parse_key(file.read(10_000).removesuffix("\n"))


def parse_account_id(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9]{20}", text):
        raise ValueError("write the account_id of a child account, 20 letters and digits; --accounts lists them")
    return text


def parse_log_types(text: str) -> tuple[LogType, ...]:
    names = [name.strip() for name in text.split(",")]
    if not all(name in LOG_TYPES for name in names):
        raise ValueError("write one or more of " + ",".join(LOG_TYPES))
    return tuple(LOG_TYPES[name] for name in dict.fromkeys(names))


def parse_path(text: str) -> str:
    """Parse a path and resolve symlinks, so that saving replaces the target, not the link. Raises ValueError."""
    if not text or "\0" in text:
        raise ValueError("write the path of a file")
    return os.path.realpath(os.path.expanduser(text))


def parse_number(unit: str, least: float, most: float, text: str, pattern: str = r"[0-9]{1,9}(\.[0-9]{1,9})?") -> float:
    if not re.fullmatch(pattern, text) or not least <= float(text) <= most:
        raise ValueError(f"write a number of {unit} from {least:g} to {most:,.0f}")
    return float(text)


parse_lookback = partial(parse_number, "whole seconds", 0, 86_400, pattern="[0-9]{1,9}")
AGES_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
AGE, DAY_MS = "([0-9]{1,7})([smhdw])", AGES_MS["d"]
EPOCH, MILLISECOND = datetime(1970, 1, 1, tzinfo=timezone.utc), timedelta(milliseconds=1)


def parse_age(text: str) -> int:
    """Parse a duration such as 90m; return ms."""
    if not re.fullmatch(AGE, text):
        raise ValueError("write a duration such as 90s, 15m, 24h or 7d")
    return int(text[:-1]) * AGES_MS[text[-1]]


def parse_interval(text: str) -> float:
    """Parse seconds, or a duration such as 10m; return seconds."""
    seconds = str(parse_age(text) / 1000) if re.fullmatch(AGE, text) else text
    return parse_number("seconds, or a duration such as 10m,", 0.01, 86_400, seconds)


def parse_when(option: str, text: str) -> When:
    """Parse --since or --until: ISO 8601 (UTC unless it has an offset), an age, or now."""
    iso_ms, is_age = parse_iso(text) if text[4:5] == "-" else None, re.fullmatch(AGE, text)  # not 1712123151234
    if (iso_ms is None and not is_age and text != "now") or (iso_ms or 0) > 4_102_444_800_000:  # the year 2100
        raise ValueError("write a time such as 2026-11-01 or 2026-11-01T08:00Z, an age such as 90m or 7d, or now")

    def when(now_ms: int) -> int:
        when_ms = now_ms - (parse_age(text) if is_age else 0) if iso_ms is None else int(iso_ms)
        if when_ms > now_ms:
            raise CollectorError(f"{option}: {text} is {duration(when_ms - now_ms)} ahead of now", 2)
        return max(when_ms, 10**12)  # 2001, before Duo existed; earlier times have too few digits for the file

    return when


def parse_iso(text: str) -> float | None:
    """Parse an ISO 8601 time, UTC unless it has an offset; return ms, or None if it is invalid."""
    try:
        parsed = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)  # Python 3.10 rejects Z
        return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)) - EPOCH) / MILLISECOND
    except (ValueError, OverflowError):
        return None


def iso(time_ms: float) -> str:
    """Format a time for display: UTC, whole seconds."""
    return (EPOCH + timedelta(seconds=time_ms // 1000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(length_ms: float) -> str:
    """Format a duration for display, in its two largest units: 3 d 4 h, 5 min 10 s."""
    seconds = max(0, int(length_ms // 1000))
    counts = ((seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    return " ".join([f"{count:,} {unit}" for count, unit in counts if count][:2]) or "0 s"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(value: object) -> str:
    """Text from outside, or the text of a system error, safe to quote in a log line."""
    return redact(getattr(value, "strerror", None) or str(value))[:300].strip()


def redact(text: str) -> str:
    """Text without line breaks, escape sequences, possible secret keys and the password of a proxy."""
    text = re.sub(r"//[^/\s]*@", "//***@", re.sub("[A-Za-z0-9]{32,}", "***", text))
    return "".join(c if c.isprintable() else " " for c in text)


@contextlib.contextmanager
def fatal_errors(status: int, what: str, consequence: str = "") -> Iterator[None]:
    """Raise CollectorError, with this status and what cannot be done, for a system or parse error in the block."""
    try:
        yield
    except (OSError, RecursionError, ValueError) as error:
        raise CollectorError(f"{what}: {one_line(error)}{consequence}", status) from None


def setting(variable: str, option: str, parse: Callable[[str], Any], default: str = "", unset: Any = "") -> Any:
    """A field of Settings: `parse` of the option, else variable, else default; or `unset`. repr() shows no key."""
    return field(default=unset, metadata={"row": (variable, option, parse, default, unset)}, repr=parse != parse_key)


@dataclass(frozen=True)
class Settings:
    base_url: str = setting("DUO_API_HOST", "", parse_host)
    integration_key: str = setting("DUO_INTEGRATION_KEY", "", parse_key)
    secret_key: str = setting("DUO_SECRET_KEY", "", parse_key)
    account_id: str = setting("DUO_ACCOUNT_ID", "", parse_account_id)  # a child, read with its parent's keys
    log_types: tuple[LogType, ...] = setting("DUO_LOG_TYPES", "--log-types", parse_log_types, DEFAULT_LOG_TYPES)
    checkpoint_file: str = setting("DUO_CHECKPOINT_FILE", "--checkpoint-file", parse_path, f"{FOLDER}/checkpoints.json")
    metrics_file: str = setting("DUO_METRICS_FILE", "", parse_path)
    interval_s: float = setting("DUO_INTERVAL", "--interval", parse_interval, "300")
    requests_per_minute: float = setting("DUO_REQUESTS_PER_MINUTE", "", partial(parse_number, "requests", 1, 1e6), "50")
    lookback_s: float = setting("DUO_LOOKBACK", "", parse_lookback, "300")
    since: When | None = setting("", "--since", partial(parse_when, "--since"), unset=None)
    until: When | None = setting("", "--until", partial(parse_when, "--until"), unset=None)  # moves no checkpoint
    missing_from: str | None = setting("", "--missing-from", str, unset=None)  # file with lines written earlier
    max_lag_ms: float = setting("", "--max-lag", parse_age, unset=math.inf)
    seeds: Mapping[LogType, int] = field(default_factory=dict)  # ms

    @property
    def host(self) -> str:
        """The hostname to sign and to add to every event: lower case, no port."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def account(self) -> str:
        """The account that the events belong to, as named in the checkpoint file."""
        return self.host + (f"/{self.account_id}" if self.account_id else "")


ROWS = {item.name: item.metadata["row"] for item in fields(Settings) if item.metadata}
KEY_FILE = ("DUO_SECRET_KEY_FILE", "", parse_key_file, "", "")  # replaces the row of DUO_SECRET_KEY
VARIABLES = [row[0] for row in (*ROWS.values(), KEY_FILE) if row[0]]


def load_env_file(given: str | None) -> str:
    """Set missing environment variables from a settings file; return where it looked. Raises CollectorError."""
    from dotenv.parser import parse_stream

    path = given or f"{FOLDER}/.env"
    looked_for = f" in the environment or in {path}"
    if given is None and not os.path.exists(path):
        return f"{looked_for}, which does not exist: copy .env.example"
    with fatal_errors(78, f"settings file {path} cannot be read"), open(path, encoding="utf-8-sig") as file:
        if stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode) and mode & 0o077:
            log.warning("%s can be read by other users, and may hold the secret key: chmod 600 it", path)
        folder = os.path.dirname(os.path.abspath(path))
        for line in reversed([*parse_stream(file)]):  # the last value of a repeated name wins
            name, value = line.key, line.value or ""
            if line.error:
                log.warning("settings file %s, line %d: this is not NAME=VALUE", path, line.original.line)
            elif name:  # a relative path starts at this file's folder: cron's is another
                is_path = value and name in VARIABLES and name.endswith("_FILE")
                os.environ.setdefault(name, os.path.join(folder, os.path.expanduser(value)) if is_path else value)
    return looked_for


def load_settings(options: argparse.Namespace, environ: Mapping[str, str], looked_for: str = "") -> Settings:
    """Read and check all settings. Raises CollectorError."""

    def read(variable: str, option: str, parse: Callable[[str], Any], default: str, unset: Any) -> Any:
        given = getattr(options, option[2:].replace("-", "_"), None)
        text = given if given is not None else environ.get(variable) or default
        try:
            return parse(text) if text or given is not None else unset
        except (ValueError, OSError) as wrong:
            label, status = (variable, 78) if given is None else (option, 2)
            found = "" if parse is parse_key else f" {one_line(repr(text))}" if text else " is empty"
            raise CollectorError(f"{label}{found}: {one_line(wrong)}", status) from None

    rows = {**ROWS, "secret_key": KEY_FILE} if environ.get(KEY_FILE[0]) else ROWS
    if options.status:  # sends no request, so it needs no host or keys
        rows = {name: row for name, row in rows.items() if row[2] not in (parse_host, parse_key, parse_key_file)}
    else:
        for name in sorted({name for name in environ if name.startswith("DUO_")}.difference(VARIABLES)):
            nearest = difflib.get_close_matches(name, VARIABLES, 1, 0)[0]
            log.warning("%s is not a setting and is ignored; did you mean %s?", one_line(name), nearest)
        lacking = [row[0] for row in rows.values() if row[2] in (parse_host, parse_key) and not environ.get(row[0])]
        if lacking:
            message = ", ".join(f"{name} is {'empty' if name in environ else 'not set'}" for name in lacking)
            raise CollectorError(message + looked_for, 78)
    if not os.path.exists(bundle := environ.get("REQUESTS_CA_BUNDLE") or "/"):  # requests reads this variable itself
        raise CollectorError(f"REQUESTS_CA_BUNDLE {one_line(repr(bundle))}: write the path of a CA bundle", 78)
    seeds = {it: read(it.since_key, "", it.parse_since, str(SEED_MS // it.unit_ms), 0) for it in LOG_TYPES.values()}
    settings = Settings(seeds=seeds, **{name: read(*row) for name, row in rows.items()})
    path = settings.metrics_file
    is_other = os.path.exists(path) and not os.path.isfile(path)  # such as /dev/null, which a file would replace
    if path and (path == settings.checkpoint_file or is_other or not os.path.isdir(os.path.dirname(path))):
        raise CollectorError(f"DUO_METRICS_FILE {path}: write another path, of a file in a folder that exists", 78)
    return settings


# Signing


def canonical_query(parameters: Mapping[str, str]) -> str:
    """The query string to sign and to send unchanged: percent-encoded as in RFC 3986, sorted by encoded name."""
    return urlencode(sorted(parameters.items(), key=lambda item: quote(item[0], "")), quote_via=quote)


def sign(request: requests.PreparedRequest, settings: Settings, date: str) -> requests.PreparedRequest:
    """Sign a prepared request with an RFC 2822 date: HMAC-SHA512, version 5 of duo.com/docs/adminapi#authentication."""
    url, body = urlsplit(request.url or ""), request.body if isinstance(request.body, bytes) else b""
    hashes = [hashlib.sha512(part).hexdigest() for part in (body, b"")]  # the second stands for no X-Duo-* headers
    lines = (date, request.method or "", settings.host, url.path, url.query, *hashes)
    digest = hmac.new(settings.secret_key.encode(), "\n".join(lines).encode(), hashlib.sha512).hexdigest()
    credentials = base64.b64encode(f"{settings.integration_key}:{digest}".encode()).decode()
    request.headers.update({"Date": date, "Authorization": f"Basic {credentials}"})
    return request


# Requests

CONNECT_S, SILENCE_S, ANSWER_S = 10, 20, 300  # timeouts in s: connection, next byte, whole answer
ANSWER_BYTES = 64_000_000  # a page of 1,000 events has about 1.5 million bytes
JITTER_S, CLOCK_S, SKEW_S = 5, 30, 300  # clock skew: ignored up to; warning above; refused by Duo above


def open_session() -> requests.Session:
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = f"duo_collector/{__version__}"
    session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]  # Duo sends no redirects
    return session


class Answer(NamedTuple):
    """Any HTTP response; times by the local clock."""

    status: int
    headers: Mapping[str, str]
    fields: Mapping[str, Any]  # its JSON, with the list of events emptied; empty if it cannot be parsed
    events: list[Event]  # that list
    unreadable: str  # why it cannot be parsed, if it looks like Duo's
    sent_ms: float
    received_ms: float  # when its first byte came

    def date_ms(self, name: str = "Date") -> float | None:
        """A date from a header as ms, UTC unless it says otherwise; None if it is not one."""
        with contextlib.suppress(IndexError, OverflowError, TypeError, ValueError):
            return parse_iso(email.utils.parsedate_to_datetime(self.headers.get(name, "")).isoformat())
        return None

    @property
    def retry_after_s(self) -> float:
        """How long the server asks to wait, at most an hour: seconds, or a date on its clock; 0 if it does not."""
        if re.fullmatch("[0-9]{1,9}", self.headers.get("Retry-After", "")):
            return min(3600, float(self.headers["Retry-After"]))
        return min(3600, max(0, (self.date_ms("Retry-After") or 0) - (self.date_ms() or self.received_ms)) / 1000)


class Duo:
    """Duo's APIs over one persistent connection, and the known offset of Duo's clock."""

    def __init__(self, settings: Settings, edges: Edges) -> None:
        self.settings, self.edges, self.session = settings, edges, edges.session()
        # requests calls this last, so what is signed is what is sent; it also keeps requests from using .netrc.
        self.session.auth = lambda request: sign(request, settings, email.utils.formatdate(self.now_ms() / 1000))
        self.clock_offset_s = self.accepted_s = 0.0  # Duo's clock minus the local clock; its value at the last page
        self.permitted = dict[LogType, bool]()  # whether these keys could read it last time

    def now_ms(self) -> int:
        """The time by Duo's clock, as far as known."""
        return int((self.edges.now() + self.clock_offset_s) * 1000)

    def send(self, url: str, log_type: LogType | None, post: object) -> Answer:
        """A signed GET, or a POST of this as JSON, and its answer, whatever it is. Raises Failed if none came."""
        method, sent_ms = "GET" if post is None else "POST", self.edges.now() * 1000
        try:
            signal.signal(signal.SIGALRM, raise_too_late)  # the timeout of requests covers single reads only
            signal.setitimer(signal.ITIMER_REAL, ANSWER_S)
            response = self.session.request(method, url, json=post, timeout=(CONNECT_S, SILENCE_S), stream=True)
            received_ms = self.edges.now() * 1000
            content = response.raw.read(ANSWER_BYTES + 1, decode_content=True)
            if len(content) > ANSWER_BYTES:
                raise Failed(f"an answer of more than {ANSWER_BYTES:,} bytes is not read")
            response.close()  # the connection is reused, since the whole answer was read
        except Exception as error:  # requests and urllib3 raise many types for a proxy, header or certificate
            self.session.close()  # the rest of this answer must not be read as the next one
            raise Failed(f"no answer from {self.settings.host}: {explain_no_answer(error)}") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        log.debug("%s %s: %d, %s", method, url, response.status_code, counted(len(content), "byte"))
        return Answer(response.status_code, response.headers, *split_answer(content, log_type), sent_ms, received_ms)

    def ask(self, path: str, query: Mapping[str, str], log_type: LogType | None = None, post: object = None) -> Answer:
        """One request and its answer; a second one if a wrong local clock dated the first. Raises Failed."""
        url = self.settings.base_url + path + (f"?{canonical_query(query)}" if query else "")
        known_s, answer = self.clock_offset_s, self.send(url, log_type, post)
        self.learn_clock(answer)
        if answer.status == 401 and abs(self.clock_offset_s - known_s) > JITTER_S:
            answer = self.send(url, log_type, post)
        if answer.status == 401:  # what was learned did not help: distrust those Dates
            self.clock_offset_s = self.accepted_s
        return answer

    def fetch_page(self, log_type: LogType, parameters: Mapping[str, str]) -> Page:
        """One page of events. Raises Refused, BadRequest, RateLimited or Failed."""
        child = {"account_id": self.settings.account_id} if self.settings.account_id else {}
        answer = self.ask(f"/admin/{log_type.path}", {**parameters, **child}, log_type)
        response = answer.fields.get("response")
        holder = response if isinstance(response, dict) else answer.fields
        is_ok = answer.fields.get("stat") == "OK"
        self.permitted |= {log_type: is_ok} if is_ok or answer.status in (401, 403) else {}
        if (answer.status, answer.fields.get("stat"), holder.get(log_type.list_key)) != (200, "OK", []):
            raise refusal(self, answer, log_type)
        self.accepted_s = self.clock_offset_s
        paging = holder.get("metadata") or answer.fields.get("metadata") or {}  # duo_client looks in both places
        try:
            return Page(answer.events, read_cursor(paging.get("next_offset")), read_total(paging.get("total_objects")))
        except (AttributeError, TypeError, ValueError):
            raise Failed(f"an answer with invalid metadata: {one_line(str(paging))}") from None

    def ask_clock(self, log_type: LogType) -> None:
        """Learn Duo's time from /auth/v2/ping (source: duo_unix #311), else from a page's Date. Raises PassFailed."""
        try:
            answer = self.ask("/auth/v2/ping", {})
            self.learn_clock(answer, 1000 * int(answer.fields["response"]["time"]))
        except (Failed, KeyError, TypeError, ValueError):
            until_ms = self.now_ms() - log_type.delay_ms
            self.fetch_page(log_type, Walk(log_type, until_ms - 60_000, until_ms, print).parameters)

    def learn_clock(self, answer: Answer, now_ms: float = 0) -> None:
        """Learn Duo's clock from an answer: from `now_ms` if given, else from its Date unless a proxy has set that."""
        date_ms, signed_ms = now_ms or answer.date_ms(), answer.sent_ms + self.clock_offset_s * 1000
        if answer.fields.get("stat") not in ("OK", "FAIL") or date_ms is None:  # not from Duo
            return
        if abs(date_ms - signed_ms) > SKEW_S * 1000 and not now_ms and answer.status != 401:
            return  # Duo accepted our date, so a Date this far off is not Duo's
        # Duo set it, in whole seconds, between our sending and receiving. Keep an offset that is consistent with this;
        # otherwise take the lower bound, so that a window never ends later than what Duo serves.
        if not signed_ms - 1000 < date_ms <= signed_ms + answer.received_ms - answer.sent_ms:
            self.clock_offset_s = (date_ms - answer.received_ms) / 1000


def raise_too_late(*_: Any) -> NoReturn:
    raise Failed(f"no complete answer within {ANSWER_S} s")


UNREACHABLE = {  # exception class in requests, urllib3 or Python: its meaning and what to do
    "InvalidURL": "an invalid address: check HTTPS_PROXY",  # no {reason}: it may hold a password
    "ProxyError": "the proxy refuses or cannot be reached ({reason}): check HTTPS_PROXY and NO_PROXY",
    "gaierror": "the name does not resolve ({reason}): check DUO_API_HOST, DNS, and whether HTTPS_PROXY is needed",
    "SSLCertVerificationError": "its certificate is not trusted ({reason}): set REQUESTS_CA_BUNDLE to a TLS proxy's CA",
    "SSLError": "no TLS ({reason}): check DUO_API_HOST, HTTPS_PROXY and REQUESTS_CA_BUNDLE",
    "ReadTimeoutError": "timed out ({reason}): a firewall or proxy drops requests, or Duo is slow",
    "RequestException": "no connection ({reason}): a firewall blocks it, HTTPS_PROXY is missing, or Duo is down",
}  # fmt: skip


def explain_no_answer(error: BaseException) -> str:
    """Why there was no answer, from the exceptions that requests and urllib3 wrap, and what to do about it."""
    chain = [error]
    for outer in chain:
        inner = (getattr(outer, "reason", None), *outer.args, outer.__cause__)
        chain += [e for e in inner if isinstance(e, BaseException)][:1]
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    meaning = next((text for name, text in UNREACHABLE.items() if name in names), "{reason}")
    reason = next((str(e) for e in chain[::-1] if str(e) not in ("", "timed out")), type(chain[-1]).__name__)
    return meaning.format(reason=one_line(reason))


# Pages


class Event(NamedTuple):
    """One event: Duo's own text, its identity and its time."""

    text: str  # start of a JSON line in ASCII: more fields may follow
    identity: str  # its id or, if it has none, `#` and a hash of its content
    time_ms: float
    untimed: bool  # its time is missing or invalid; time_ms is that of the event before it on the page, or 0


class Page(NamedTuple):
    events: list[Event]
    cursor: str = ""  # for the next page; empty if there is none
    total: int | None = None  # Duo's count of events in the window: a hint only


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not JSON")  # though Python's parser would accept it


read_value = json.JSONDecoder(parse_constant=refuse_constant).raw_decode
NOT_ASCII = re.compile(rb"[\x80-\xff]+")
BETWEEN = re.compile(r"\s*(?:,\s*(?=[^\s\]])|(?=\]))|.*")  # comma or bracket; without one, all that follows


def escape_json(error: UnicodeDecodeError) -> tuple[str, int]:
    """Escape non-ASCII bytes in bytes.decode(): JSON has them only in strings. An invalid byte becomes U+FFFD."""
    end = NOT_ASCII.match(error.object, error.start).end()  # type: ignore[union-attr]
    return json.dumps(error.object[error.start : end].decode(errors="replace"))[1:-1], end


codecs.register_error("escape_json", escape_json)  # type: ignore[arg-type]  # escaping decoded text takes longer


def split_answer(body: bytes, log_type: LogType | None) -> tuple[Mapping[str, Any], list[Event], str]:
    """Split an answer into its JSON without events, the events as sent and, on failure, the reason."""
    events = list[Event]()
    try:
        text = body.decode("ascii", "escape_json").replace("\n", " ").replace("\r", " ")  # only found between tokens
        if log_type and (opening := re.search(rf'"{log_type.list_key}"\s*:\s*\[\s*', text)):
            at = opening.end()
            while text[at] != "]":
                value, end = read_value(text, at)
                events.append(read_event(log_type, text[at:end], value, events[-1].time_ms if events else 0.0))
                at = BETWEEN.match(text, end).end()  # type: ignore[union-attr]
            text = text[: opening.end()] + text[at:]
        fields = json.loads(text, parse_constant=refuse_constant)
        return fields if isinstance(fields, dict) else {}, events, ""
    except (IndexError, RecursionError, ValueError) as error:
        return {}, [], one_line(error) if b'"stat"' in body else ""


ADDED = frozenset(("eventtype", "host", "child_account_id"))


def read_event(log_type: LogType, text: str, value: Any, before_ms: float = 0) -> Event:
    """Build an event from its text and value. The text is kept, as re-encoding could change numbers."""
    if not isinstance(value, dict):
        value, text = {"event": value}, '{"event":' + text + "}"
    if not ADDED.isdisjoint(value):
        text = json.dumps(value := without_added(value))
    time_ms = event_time(log_type, value.get(log_type.time_field))
    text, at_ms = text[:-1] + "," if value else "{", before_ms if time_ms is None else time_ms
    return Event(text, identity_of(log_type, value), at_ms, untimed=time_ms is None)


def without_added(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in ADDED}


def identity_of(log_type: LogType, value: Mapping[str, Any]) -> str:
    """An event's identity: its id or, if it has none, `#` and a hash of its content."""
    identity = value.get(log_type.id_field)
    if isinstance(identity, str) and identity:
        return identity
    return "#" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def event_time(log_type: LogType, value: Any) -> float | None:
    """An event's time in ms, including a fraction; None if missing or invalid."""
    time_ms = value * log_type.unit_ms if isinstance(value, (int, float)) else parse_iso(str(value))
    return time_ms if time_ms is not None and 0 <= time_ms < 10**14 else None


def read_cursor(value: Any) -> str:
    """The cursor of the next page: a string, an int, or for authentication a list. Raises TypeError or ValueError."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    return ",".join(part if isinstance(part, str) else f"{part:d}" for part in parts)


def read_total(value: Any) -> int | None:
    """Read total_objects: an int, or an object with an int value; None if that is only a lower bound."""
    value = value.get("value") if isinstance(value, dict) and value.get("relation", "eq") == "eq" else value
    return value if isinstance(value, int) else None


NOT_IN_PLAN = "the account's plan does not include this log, or it is switched off: remove it from DUO_LOG_TYPES"
MEANINGS: Mapping[str, tuple[type[PassFailed], str]] = {  # by Duo's code, HTTP status, or a case of refusal()
    "400": (BadRequest, "Duo rejects the request ({reason}): check the since time, and report it"),
    **dict.fromkeys(("40101", "40104"), (Refused, "a header did not reach Duo ({reason}): a proxy strips it")),
    "40105": (Refused, "Duo refuses the request's date ({reason}): {clock}"),
    "40112": (Refused, "Duo refuses the type of signature ({reason}): are the keys those of an Admin API application?"),
    "401": (Refused, "Duo refuses the credentials ({reason}): {keys}"),
    "403": (Refused, 'Duo refuses the permission ({reason}): tick "Grant read log" in the Duo Admin Panel,'
            " Applications, your Admin API application, Permissions; and check its Networks for API access"),
    "403 of one": (Refused, "Duo refuses this log ({reason}), but serves others with these keys: " + NOT_IN_PLAN),
    "404": (Refused, "Duo does not have this log for the account ({reason}): " + NOT_IN_PLAN),
    "405": (BadRequest, "Duo received a different HTTP method ({reason}): a proxy changes requests"),
    "429": (RateLimited, "rate-limited by Duo ({reason}): raise DUO_INTERVAL if this persists"),
    "5xx": (Failed, "Duo fails ({reason}): if this persists, see status.duo.com"),
    "accounts": (Refused, "Duo lists no accounts ({reason}): use the host and keys of an Accounts API application"),
    "child": (Refused, "refused ({reason}): it is in another deployment and needs an Admin API application of its own"),
}  # fmt: skip


def refusal(duo: Duo, answer: Answer, log_type: LogType | None) -> Exception:
    """The exception for an answer without a page: its meaning, and Duo's own words."""
    given, settings = answer.fields, duo.settings
    code, message = str(given.get("code", "")), f"{given.get('message') or ''} {given.get('message_detail') or ''}"
    status = int(code[:3]) if answer.status == 200 and re.fullmatch("[45][0-9]{4}", code) else answer.status
    reason = " ".join(one_line(f"{status} {code} {message}".replace(settings.secret_key, "***")).split())
    special = {  # the first that holds counts more than the code
        "child": "cross-deployment" in message.lower(),
        "accounts": log_type is None and status in (401, 403),
        "40105": status == 401 and "bad request timestamp" in message.lower(),
        "403 of one": status == 403 and any(duo.permitted.values()),
    }
    general = code if code in MEANINGS and code[:3] == str(status) else str(status) if status < 500 else "5xx"
    key = next((key for key, holds in special.items() if holds), general)
    if key in MEANINGS and (given or status in (401, 403, 429)):  # a 404 without JSON is not from Duo
        kind, meaning = MEANINGS[key]
        text = meaning.format(reason=reason, clock=explain_clock(answer), keys=explain_credentials(settings, answer))
        if settings.account_id and key in ("400", "401", "403", "403 of one", "404"):
            text += "; or DUO_ACCOUNT_ID is not a child of that account, or not at this host: see --accounts"
        if log_type and log_type.successor and status in (403, 404):
            text += f"; Duo is deprecating this log in favour of {log_type.successor}"
        return kind(text, answer=answer)
    broken = f"Duo's answer cannot be read ({reason}): {answer.unreadable}; if this persists, report it to Duo"
    return Failed(broken if answer.unreadable else f"not an answer from Duo ({reason}); from a proxy?", answer=answer)


def explain_clock(answer: Answer) -> str:
    """What to do about a refused date."""
    off_s = abs((answer.date_ms() or answer.received_ms) - answer.received_ms) / 1000
    if off_s > CLOCK_S:
        return f"the local clock is {off_s:,.0f} s off Duo's: set it right"
    return f"the local clock is within {max(1, off_s):.0f} s of Duo's, so the fault is Duo's; the next pass retries"


def explain_credentials(settings: Settings, answer: Answer) -> str:
    """The setting that is most likely wrong when Duo refuses the credentials. Source: duo.com/docs/adminapi."""
    integration, secret, clock = settings.integration_key, settings.secret_key, explain_clock(answer)
    if re.fullmatch("DI.{18}", secret):
        return "the secret key looks like an integration key; are the two swapped?"
    if not re.fullmatch("DI.{18}", integration) or len(secret) != 40:
        lengths = f"the integration key has {len(integration)} characters, the secret key {len(secret)}"
        return f"{lengths}; Duo's have 20, beginning with DI, and 40: copy them again, without stray spaces"
    known = "does not match DUO_SECRET_KEY" if str(answer.fields.get("code")) != "40102" else "is not known"
    again = "copy all three again from one Admin API application, without stray spaces"
    return clock if "set it right" in clock else f"DUO_INTEGRATION_KEY {known} at DUO_API_HOST; {again}"


# Walks

SLICE_PAGES = 20  # of an unordered log: the most that an interrupted pass has to reread


class Walk:
    """A walk through a window of time (ms, both bounds included), page by page, oldest first.

    Request `parameters`, pass the page to `step`, take the new events from `fresh`, until `step` returns False. It
    follows Duo's cursor or, without one, the time up to which pages are complete. Unordered logs are read in slices."""

    def __init__(self, log_type: LogType, start_ms: int, until_ms: int, on_hole: Callable[[int, int, str], None],
                 known: Mapping[str, int] | None = None) -> None:  # fmt: skip
        """`on_hole`: reports first, last (ms), what is shown. `known`: events written; None: ignore Duo's count."""
        self.log_type, self.start_ms, self.until_ms = log_type, start_ms, until_ms
        self.on_hole, self.known = on_hole, known
        self.at_ms = self.reached_ms = self.newest_ms = start_ms  # mintime; all before it was returned; newest event
        self.end_ms, self.slice_pages, self.cursor, self.cursors = until_ms, 0, "", {""}  # of the slice being read
        self.overlap_s = 0 if log_type.cursor else 1  # v1: ask a second earlier, as mintime may exclude its own second
        self.page = self.fresh = dict[str, Event]()  # events of the latest page; those not on the page before
        self.occurrences = Counter[str]()  # of events without an id
        self.full_page = log_type.page_size if log_type.cursor else 10  # a page as large as any so far may be truncated
        self.pending_hole = ""  # what is shown of an instant that the end of a page may have cut short
        self.pages = self.received = 0
        self.total: int | None = None  # Duo's count of events in the window

    @property
    def parameters(self) -> dict[str, str]:
        row = self.log_type
        if not row.cursor:
            return {"mintime": str((self.at_ms - self.overlap_s * 1000) // row.unit_ms)}
        bounds = {"mintime": str(self.at_ms), "maxtime": str(self.end_ms), "limit": str(row.page_size)}
        return {**bounds, **{name: text for name, text in (("sort", row.sort), (row.cursor, self.cursor)) if text}}

    def identify(self, events: list[Event]) -> dict[str, Event]:
        """A page's events by identity, in time order. Equal events without an id are counted as separate events."""
        found, early_ms = dict[str, Event](), self.start_ms - self.overlap_s * 1000
        if not self.cursor:  # such a page starts at a whole second or ms, so the count restarts
            self.occurrences.clear()
        for event in sorted(events, key=lambda event: event.time_ms):
            identity = event.identity
            if early_ms <= event.time_ms < self.start_ms and not event.untimed:
                continue  # from the extra second requested before the window
            if identity[0] == "#":
                self.occurrences[identity] += 1
                identity = f"{identity[1:]}#{self.occurrences[identity]}"
            found.setdefault(identity, event)
        return found

    def step(self, page: Page | None) -> bool:
        """Process the requested page (None: Duo refused the cursor); return whether to request another."""
        row, before, events = self.log_type, self.page, page.events if page else list(self.page.values())
        self.page = self.identify(events) if page else before
        self.fresh = {identity: event for identity, event in self.page.items() if identity not in before}
        self.pages, self.slice_pages = self.pages + 1, self.slice_pages + 1
        self.received += len(self.fresh)
        times = [event.time_ms for event in events if not event.untimed]
        within = [time_ms for time_ms in times if self.start_ms <= time_ms <= self.end_ms]  # rest: invalid or later
        self.newest_ms = max(self.newest_ms, row.floor(max(within, default=0)))
        if row.ordered and within:
            self.reached_ms = max(self.reached_ms, row.floor(within[-1] if row.sort else max(within)))
        if page and row.cursor:
            self.total = page.total if self.pages == 1 else self.total
            if self.is_whole(len(events)) or not events or (not page.cursor and len(events) < row.page_size):
                return self.next_slice(drained=True)
            if page.cursor not in self.cursors and self.fresh and (row.ordered or self.slice_pages < SLICE_PAGES):
                self.cursor = page.cursor
                self.cursors.add(page.cursor)
                return True
        self.cursor = ""
        return self.step_by_time(page, len(events), times) if row.ordered else self.next_slice(drained=False)

    def is_whole(self, count: int) -> bool:
        """Whether the first page is the whole window by Duo's count. The count may be wrong, so trust it only if the
        next pass starts later or nothing is new: otherwise the next pass would get this page again."""
        if self.known is None or self.pages > 1 or not self.total == count < self.log_type.page_size:
            return False
        return self.reached_ms > self.start_ms or self.page.keys() <= self.known.keys()

    def step_by_time(self, page: Page | None, count: int, times: list[float]) -> bool:
        """Continue without a cursor, from the last instant of a page (a second on v1, a ms on v2). A page with
        nothing later ends the walk unless it is full; it may then be truncated, so skip to the next instant."""
        at_ms, unit_ms = self.at_ms, self.log_type.unit_ms
        latest_ms = max(times, default=0) if page else at_ms
        not_full = page and not page.cursor and count < self.full_page
        elsewhere = not at_ms - self.overlap_s * 1000 <= latest_ms < at_ms + unit_ms and (self.log_type.cursor or times)
        if self.pending_hole and self.newest_ms >= at_ms:  # more events follow that instant, so it did fill a page
            self.on_hole(at_ms - unit_ms, at_ms - unit_ms, self.pending_hole)
        self.pending_hole = ""
        if self.reached_ms > at_ms:
            self.at_ms = self.reached_ms
        elif elsewhere or not_full:  # elsewhere: beyond the window or, if mintime is ignored, before it
            return False
        elif self.overlap_s and any(at_ms - unit_ms <= time_ms < at_ms for time_ms in times):
            self.overlap_s = 0  # mintime includes its own second, so the second before only wastes page space
        else:
            if count >= self.full_page:
                self.pending_hole = f"{count:,} events of one {'millisecond' if unit_ms == 1 else 'second'}"
            if count >= self.log_type.page_size:  # at once; a hole that is met again is not repeated
                self.on_hole(at_ms, at_ms, self.pending_hole)
            self.at_ms = self.reached_ms = at_ms + unit_ms
        self.full_page = max(self.full_page, count)
        return self.at_ms < self.end_ms or not self.log_type.cursor

    def next_slice(self, drained: bool) -> bool:
        """Continue after a finished slice or, if it takes too many pages or has lost its cursor, with half of it.
        Returns whether anything is left. For an ordered log, the whole window is one slice."""
        length_ms = self.end_ms - self.at_ms
        if not drained and length_ms < 1000:
            self.on_hole(self.at_ms, self.end_ms, "part of one second")
            drained = True
        if drained:
            self.at_ms = self.reached_ms = self.end_ms
        factor = 0.5 if not drained else 2 if self.slice_pages == 1 else 1
        self.end_ms = min(self.until_ms, self.at_ms + max(500, int(length_ms * factor)))
        self.slice_pages, self.cursor, self.cursors = 0, "", {""}
        return self.at_ms < self.end_ms


# Checkpoints


HEALTH: Mapping[str, Any] = {  # what is reported about a log type; collection does not need it
    "events": 0, "holes": 0, "pass_ms": 0,  # since the checkpoint file was created; duration of the last pass
    "ok": 0, "limited": 0, "refused": 0, "failed": 0,  # requests by outcome
    "last_success_ms": 0, "last_error_ms": 0, "last_error": "",  # when a pass last caught up, and when one last failed
}  # fmt: skip


@dataclass
class State:
    """A log type's state between passes, saved under these names in the checkpoint file; times in ms."""

    since_ms: int  # the checkpoint: everything up to here has been written
    start_ms: int  # the next pass reads from here; `written` holds all written events dated from here on
    written: dict[str, int]  # event identity: time in ms; dropped once before start_ms
    hole_ms: int = 0  # end of the last hole reported
    health: dict[str, Any] = field(default_factory=lambda: dict(HEALTH))

    def advance(self, since_ms: int, newest_ms: int, lookback_ms: int, written: Mapping[str, int]) -> None:
        """Record that all up to `since_ms` is written. The next pass starts at the lookback or, if earlier, the newest
        known event: what Duo publishes after a stall of its log pipeline is newer than that event."""
        self.since_ms = max(self.since_ms, since_ms)
        self.start_ms = max(self.start_ms, min(self.since_ms - lookback_ms, newest_ms))
        self.written = {key: at_ms for key, at_ms in {**self.written, **written}.items() if at_ms >= self.start_ms}


class Checkpoints:
    """The state of all log types, and the file that stores it."""

    def __init__(self, path: str, settings: Settings) -> None:
        """Read and check the file; without one (an empty path) all start from the seeds. Raises CollectorError."""
        self.path, self.writing, self.document = path, threading.Lock(), dict[str, Any]()
        remedy = " (it should be JSON, and is unchanged; restore it, or move it away to start from the seeds)"
        with fatal_errors(78, f"checkpoint file {path} cannot be read", remedy), contextlib.suppress(FileNotFoundError):
            with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                self.document = json.load(file)
            if not isinstance(self.document, dict):
                raise ValueError("it is not a JSON object")
        self.states = {row: self.read(row, seed_ms) for row, seed_ms in settings.seeds.items()}
        owner = self.document.get("account", settings.account)
        if settings.base_url and owner != settings.account:
            message = f"belongs to {one_line(str(owner))}, these settings to {settings.account}: use one file for each"
            raise CollectorError(f'checkpoint file {path} {message}; if they are one account, remove "account"', 78)

    def read(self, row: LogType, seed_ms: int) -> State:
        """A log type's state from the file, as this or an earlier version wrote it. Raises CollectorError."""
        value = json.dumps(self.document.get(row.since_key, seed_ms // row.unit_ms))
        with fatal_errors(78, f"checkpoint file {self.path}: {row.since_key} is {one_line(value)}"):
            since_ms = row.parse_since(value)
        state, key = State(since_ms, since_ms, {}), "state" if "state" in self.document else "written"
        try:
            kept = self.document.get(key, {}).get(row.name)
            health = kept.get("health", {}) if kept else {}
            for name, item in health.items():  # invalid values are dropped
                if name in HEALTH and type(item) is type(HEALTH[name]) and (item == str(item) or 0 <= item < 10**14):
                    state.health[name] = item
            if kept and key == "written":  # as version 1 wrote it
                kept = {"since_ms": kept["since"] * row.unit_ms, "start_ms": kept["from"], "written": kept["events"]}
            if kept is not None and kept["since_ms"] == since_ms:  # otherwise it was set by hand: a fresh start
                state.start_ms = min(-(-int(kept["start_ms"]) // row.unit_ms) * row.unit_ms, since_ms)
                state.written = {identity: int(at_ms) for identity, at_ms in kept["written"].items()}
                state.hole_ms = int(kept.get("hole_ms", 0))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            message = f'"{key}" is damaged: restore the file, or remove that key; events are then repeated'
            raise CollectorError(f"checkpoint file {self.path}: {message}", 78) from None
        return state

    @contextlib.contextmanager
    def saving(self, *rows: LogType) -> Iterator[None]:
        """Save all states, and these log types' checkpoints, after the block. The new file is complete on the disk
        before it, so that a full disk fails first. Raises CollectorError."""
        document = {key: value for key, value in self.document.items() if key not in OURS}
        document.update({row.since_key: self.states[row].since_ms // row.unit_ms for row in rows})
        document["state"] = {row.name: vars(state) for row, state in self.states.items()}
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
        new = replacing(self.path, "{\n" + ",\n".join(lines) + "\n}\n") if self.path else contextlib.nullcontext()
        with self.writing, fatal_errors(74, f"checkpoint file {self.path} cannot be saved"), new:
            yield
        self.document = document


OURS = ("state", "written", "health", "clock_offset_s")  # the last three are from version 1


@contextlib.contextmanager
def replacing(path: str, text: str) -> Iterator[str]:
    """Yield the path of a new file that then replaces this one, with its mode and owner, durably. Raises OSError."""
    new, folder = f"{path}.new", os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # left by a run that was killed
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w", encoding="ascii") as file:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                old = os.stat(path)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield new
        os.replace(new, path)
        try:
            os.fsync(folder)  # otherwise a power failure could undo the replacement
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems answer that
                raise
    finally:
        os.close(folder)


def folder_trouble(path: str) -> str:
    """What is wrong with the folder of a checkpoint file, and what to do about it; empty if nothing is."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"there is no such folder: mkdir -p {folder}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:  # ismount() is wrong on overlayfs
        if any(line.split()[4] == os.fsencode(path) for line in file):
            return "it is a mount point, which cannot be replaced: mount its folder instead"
    return "" if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else f"no permission to read and write folder {folder}"


def lock(path: str) -> IO[bytes]:
    """Lock a file beside the checkpoint file, which saving replaces, until it is closed. Raises CollectorError."""
    beside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    with fatal_errors(78, f"checkpoint file {path} cannot be locked"):
        if trouble := folder_trouble(path):
            raise OSError(0, trouble)
        try:
            file: IO[bytes] = open(beside, "ab+", buffering=0)  # NFS locks only files open for writing
        except PermissionError:
            file = open(beside, "rb")  # created by another user's run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another run (process {one_line(os.pread(file.fileno(), 20, 0).decode(errors='replace'))}) holds"
            raise CollectorError(f"{message} checkpoint file {path}: wait for it, or stop it", 75) from None
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


# Output


class Output:
    def __init__(self, interrupted: bool = True) -> None:
        """Write to stdout. `interrupted`: the last run may have left half a line. Raises CollectorError if closed."""
        if sys.stdout is None:  # the next file opened would get its number, and the events
            raise CollectorError("stdout is closed: there is nowhere to write to", 74)
        self.fd = sys.stdout.fileno()
        os.set_blocking(self.fd, True)  # a process sharing the pipe may have made it non-blocking
        self.regular, self.torn = stat.S_ISREG(os.fstat(self.fd).st_mode), interrupted

    @fatal_errors(74, "stdout cannot be written", "; the checkpoint is unchanged")
    def write(self, lines: list[str]) -> None:
        """Write all of these JSON lines as ASCII; sync a regular file to disk. Raises CollectorError."""
        size = os.fstat(self.fd).st_size if self.regular and lines else 0
        if size:  # for each page: --missing-from may append to this file, and be killed; on macOS it cannot be read
            with contextlib.suppress(OSError), open(f"/dev/fd/{self.fd}", "rb") as file:
                self.torn = os.pread(file.fileno(), 1, size - 1) != b"\n"
        lines = ["\n", *lines] if size and self.torn else lines
        self.torn = self.torn and not lines
        for first in range(0, len(lines), 64):  # a page in one piece takes twice the system time, for memory
            rest = "".join(lines[first : first + 64]).encode("ascii", "backslashreplace")
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        if self.regular and lines:
            os.fsync(self.fd)


def read_written(settings: Settings) -> set[bytes]:
    """Digests of this account's events in the file given to --missing-from. Raises CollectorError."""
    found, occurrences, path = set[bytes](), Counter[bytes](), settings.missing_from or ""
    rows = {(row.name, settings.host, settings.account_id): row for row in settings.log_types}
    with fatal_errors(78, f"--missing-from {path} cannot be read"), open(0 if path == "-" else path, "rb") as file:
        for line in file:
            with contextlib.suppress(KeyError, RecursionError, TypeError, ValueError):  # partial, or not ours
                value = json.loads(line)
                row = rows[value["eventtype"], value["host"], value.get("child_account_id", "")]
                identity = identity_of(row, without_added(value))
                if identity[0] == "#":  # count each copy of an event without an id
                    key = digest(row, identity)
                    occurrences[key] += 1
                    identity = f"{identity[1:]}#{occurrences[key]}"
                found.add(digest(row, identity))
    if not found:
        log.warning("--missing-from %s holds no event of this account, so that all are missing from it", path)
    return found


def digest(log_type: LogType, identity: str) -> bytes:
    """A 16-byte digest of an event's identity: a million of them should fit in memory."""
    return hashlib.blake2b(f"{log_type.name} {identity}".encode(errors="replace"), digest_size=16).digest()


# Pace


class Pace:
    """When the next request of a log type is due; times and durations in s, by a monotonic clock.

    A 429 does not say whether requests come too fast or a quota is used up. The first retry comes soon. If it brings a
    page, the interval was too short: it grows by half, and shrinks by 3 % with each page. If not, or if as many pages
    came as at the last limit, assume a quota per minute: the last minute's page count is the limit for four minutes,
    or longer if it recurs, and the next retry comes when the first of them is a minute (here 61 s) old."""

    def __init__(self, requests_per_minute: float) -> None:
        self.shortest = self.interval = 61 / requests_per_minute
        self.pages: deque[float] = deque(maxlen=int(requests_per_minute) + 2)  # when they were requested
        self.limit = self.known = self.tries = 0  # pages a minute: in force, last found; 429s in a row
        self.hold, self.limit_until = 240.0, 0.0  # how long a limit applies; until when
        self.first_429 = self.due = self.backoff = 0.0

    def page(self, sent: float) -> None:
        """The request sent at `sent` returned a page."""
        self.interval = max(self.shortest, min(61, self.interval * (1.5 if self.tries == 1 else 0.97)))
        self.limit = self.limit if sent < self.limit_until else 0
        self.tries, self.backoff = 0, 0.0
        self.pages.append(sent)
        self.due = sent + self.interval
        if 0 < self.limit <= len(self.pages):
            self.due = max(self.due, self.pages[-self.limit] + 61)

    def limited(self, sent: float) -> None:
        """The request sent at `sent` was answered with 429."""
        self.tries += 1
        self.first_429 = sent if self.tries == 1 else self.first_429
        minute = [page for page in self.pages if page > self.first_429 - 61]
        if self.tries == 1 and not 0 < self.known <= len(minute):
            self.due = sent + max(5, 4 * self.interval)
        elif self.tries <= 2 and minute:
            again = self.known / 1.5 <= len(minute) <= 1.5 * self.known
            self.hold = min(960, 1.5 * self.hold) if again else 240
            self.limit = self.known = len(minute)
            self.limit_until, self.due = sent + self.hold, max(sent + self.interval, minute[0] + 61)
        else:
            self.due = sent + max(self.shortest, min(60, 2**self.tries) * random.uniform(1, 1.2))

    def failed(self, now: float) -> None:
        """A request failed, which says nothing about the limit: back off exponentially, up to a minute, with jitter."""
        self.backoff = min(60, max(1, 2 * self.backoff))
        self.due = max(self.due, now + self.backoff * random.uniform(0.75, 1.25))


# Passes


@dataclass
class Run:
    settings: Settings
    edges: Edges
    duo: Duo
    checkpoints: Checkpoints  # without a path: a range is printed, and nothing saved
    output: Output
    stderr: StderrHandler
    once: bool = False
    in_file: set[bytes] | None = None  # with --missing-from: digests of the events in FILE
    report_due: float = 0.0  # s, by the monotonic clock
    pass_due: float = 0.0  # the same: when all log types last began, or will next begin, together


class Collector:
    """Collects one log type, pass after pass: its state, its pace, and the walk in progress."""

    def __init__(self, run: Run, log_type: LogType) -> None:
        self.run, self.log_type, self.state = run, log_type, run.checkpoints.states[log_type]
        self.health, self.pace = self.state.health, Pace(run.settings.requests_per_minute)
        self.range_end_ms = math.inf  # in ms; the exclusive end of a range
        child = {"child_account_id": run.settings.account_id} if run.settings.account_id else {}  # as Duo Log Sync does
        added = {"eventtype": log_type.name, "host": run.settings.host, **child}  # as Duo's own client adds them
        self.added_fields = json.dumps(added, separators=(",", ":"))[1:] + "\n"
        self.status = self.requests = self.written = self.read = 0  # of a pass; read includes events that FILE has
        self.due = self.began = self.sent = 0.0  # s, monotonic: next turn, start of pass, last request
        self.busy = True  # whether a pass is under way or about to begin
        self.failing: dict[type[Failed], float] = {}  # time of the first in a row of each kind
        self.walk: Walk | None = None  # set once its first page has arrived
        self.turns = self.passes()
        if (key := log_type.since_key) in run.checkpoints.document and os.environ.get(key):
            log.info("%s is not used: the checkpoint file says %s", key, iso(self.state.since_ms))

    def passes(self) -> Iterator[float]:
        """Run pass after pass, one request at a time. Yields the time the next one is due (s, monotonic clock)."""
        while True:
            self.busy, self.began, self.failing = True, self.run.edges.monotonic(), {}
            self.requests = self.written = self.read = 0
            try:
                yield from self.read_window()
                self.end_pass(0, "")
            except PassFailed as error:
                self.end_pass(error.status, str(error))
            yield math.inf if self.run.once else self.run.edges.monotonic() + self.run.settings.interval_s

    def read_window(self) -> Iterator[float]:
        """Read up to now minus Duo's delay, page by page. Yields as passes() does. Raises CollectorError."""
        duo, walk, opened, more = self.run.duo, self.open_walk(), 1, True
        while more:
            yield self.pace.due
            walk = walk if walk.pages else self.open_walk()  # the wait may have been long, or Duo's clock become known
            is_known = self.run.checkpoints.path or (self.requests and not self.failing)  # by an answer of Duo's
            if walk.start_ms >= walk.until_ms and self.state.since_ms <= duo.now_ms() and is_known:
                break
            known_s = duo.clock_offset_s
            try:
                page = self.fetch(walk)
            except Failed as problem:
                self.postpone(problem)
                continue
            except Refused as problem:
                yield self.run.edges.monotonic()  # let other log types go first: their answers help to explain this
                raise refusal(duo, problem.answer, self.log_type) if problem.answer else problem from None
            except BadRequest:  # perhaps of a window by a wrong clock, which this answer corrected
                if walk.pages or opened == 3 or abs(duo.clock_offset_s - known_s) <= JITTER_S:
                    raise
            # The first answer tells Duo's time. If that makes the window wrong, drop this page and open a new window.
            if not walk.pages and opened < 3 and not 0 <= duo.clock_offset_s - known_s <= JITTER_S:
                opened += 1
                continue
            self.skip_expired(walk)
            self.walk, more = walk, walk.step(page)
            self.write(walk, more)
        self.skip_expired(walk)

    def open_walk(self) -> Walk:
        """A walk through the window to read now, by Duo's clock as far as known. It may be empty."""
        row, state, now_ms, start_ms = self.log_type, self.state, self.run.duo.now_ms(), self.state.start_ms
        until_ms = int(min((now_ms - row.delay_ms) // 1000 * 1000, self.range_end_ms))
        if row.kept_days:  # half an hour inside Duo's retention, as time passes before the request
            edge_ms = now_ms - row.kept_days * DAY_MS + DAY_MS // 48
            start_ms = edge_ms + DAY_MS // 48 if state.since_ms < edge_ms else max(start_ms, edge_ms)
        return Walk(row, start_ms, until_ms, self.report_hole, state.written if self.run.checkpoints.path else None)

    def skip_expired(self, walk: Walk) -> None:
        """If Duo no longer serves what is before this walk, move the checkpoint to its start and log a warning."""
        row, since_ms = self.log_type, self.state.since_ms
        if walk.start_ms > since_ms:
            gap = f"{iso(since_ms)} to {iso(min(walk.start_ms, self.range_end_ms))}"
            log.warning("%s: Duo serves only the last %d days; passed over: %s", row.name, row.kept_days, gap)
            self.state.since_ms = self.state.start_ms = walk.start_ms

    def fetch(self, walk: Walk) -> Page | None:
        """Fetch the page that the walk asks for; None if Duo refuses its cursor. Raises PassFailed."""
        self.sent, duo, row = self.run.edges.monotonic(), self.run.duo, self.log_type
        self.requests, self.pace.due = self.requests + 1, self.sent + self.pace.shortest
        try:
            if walk.start_ms < walk.until_ms:
                page = duo.fetch_page(row, walk.parameters)
            else:  # the checkpoint is ahead of the local clock, or a range seems empty: check by Duo's clock
                duo.ask_clock(row)
                page, ahead_ms = Page([]), self.state.since_ms - duo.now_ms()
                if ahead_ms > 0:
                    where = f"{row.since_key} in {self.run.checkpoints.path}"
                    raise PassFailed(f"{where} is {duration(ahead_ms)} ahead of now: set it back to collect again")
        except PassFailed as problem:
            self.health[problem.outcome] += 1
            if isinstance(problem, BadRequest) and walk.cursor:
                return None
            raise
        self.health["ok"], self.failing = self.health["ok"] + 1, {}
        self.pace.page(self.sent)
        return page

    def postpone(self, problem: Failed) -> None:
        """Schedule a retry. Raises PassFailed once failures have lasted for patience_s."""
        now, first, pace, sent = self.run.edges.monotonic(), not self.failing, self.pace, self.sent
        asked_s = problem.answer.retry_after_s if problem.answer else 0
        if isinstance(problem, RateLimited):
            self.failing.pop(Failed, None)  # Duo can be reached
            pace.limited(sent)
        else:
            pace.failed(now)
        last_try = self.failing.setdefault(type(problem), sent) + max(problem.patience_s, pace.shortest)
        pace.due = max(pace.due, now + asked_s)
        if now + asked_s >= last_try:
            raise PassFailed(f"{problem}; given up for this pass")
        pace.due = max(min(pace.due, last_try), sent + pace.shortest)
        level = logging.INFO if first or pace.due > now + 10 else logging.DEBUG
        log.log(level, "%s: %s; again in %.0f s", self.log_type.name, problem, pace.due - now)

    def write(self, walk: Walk, more: bool) -> None:
        """Write what is new (of a range, all events without a time, too) and save. Raises CollectorError."""
        run, row, state, lines, times = self.run, self.log_type, self.state, list[str](), dict[str, int]()
        for identity, event in walk.fresh.items():
            in_range = event.time_ms < self.range_end_ms or (event.untimed and run.in_file is None)
            if in_range and identity not in state.written:
                self.read += 1
                if run.in_file is None or digest(row, identity) not in run.in_file:
                    lines.append(event.text + self.added_fields)
            odd = event.untimed or not walk.start_ms <= event.time_ms <= walk.until_ms + 2 * row.delay_ms
            times[identity] = walk.until_ms if odd else int(event.time_ms)
        if not more and walk.total is not None and walk.received < walk.total:
            self.report_hole(walk.start_ms, walk.until_ms, f"{walk.received:,} of {counted(walk.total, 'event')}")
        self.written += len(lines)
        self.health["events"] += len(lines)
        self.health["last_success_ms"] = self.health["last_success_ms"] if more else run.duo.now_ms()
        since_ms = walk.reached_ms if more else walk.until_ms
        # Later pages of an unordered log may bring older events than this one, hence min().
        state.advance(since_ms, min(walk.newest_ms, since_ms), int(1000 * run.settings.lookback_s), times)
        run.checkpoints.document["account"] = run.settings.account
        with run.checkpoints.saving(row):
            run.output.write(lines)

    def report_hole(self, first_ms: int, last_ms: int, shown: str) -> None:
        """Report and count a hole (events that Duo has but does not return) once, even if later passes find it too."""
        if first_ms > self.state.hole_ms:
            self.state.hole_ms = last_ms
            self.health["holes"] += 1
            where = f"from {iso(first_ms)} to {iso(last_ms)}"
            log.warning("%s: perhaps a hole: %s Duo shows only %s", self.log_type.name, where, shown)

    def end_pass(self, status: int, why: str) -> None:
        run, level = self.run, logging.ERROR if why else logging.INFO
        self.health["pass_ms"] = int((run.edges.monotonic() - self.began) * 1000)
        if why:
            self.health.update(last_error_ms=run.duo.now_ms(), last_error=redact(why))
        self.status, self.busy, self.walk = status, False, None
        up_to = iso(min(self.state.since_ms, self.range_end_ms))
        message = f"{counted(self.written, 'event')} in {counted(self.requests, 'request')}, up to {up_to}"
        if run.in_file is not None and not why:
            level, file = logging.WARNING if self.written else logging.INFO, run.settings.missing_from
            message = f"of {counted(self.read, 'event')} up to {up_to}, {self.written:,} missing from {file}"
        log.log(level, "%s: %s", self.log_type.name, message + (f"; {why}" if why else ""))


def run_passes(run: Run, collectors: list[Collector]) -> int:
    """Collect all log types in turn, a request each, so that no backlog holds up the others; return the exit status."""
    edges = run.edges
    while (collector := min(collectors, key=lambda collector: collector.due)).due < math.inf:
        wait_s = max(0.0, collector.due - edges.monotonic())
        if edges.wait(min(wait_s, REPORT_S) if any(other.busy for other in collectors) else wait_s):
            log.info("stopped by a signal%s", "; everything written is checkpointed" if run.checkpoints.path else "")
            return max(PassFailed.status, *(collector.status for collector in collectors)) if run.once else 0
        if edges.monotonic() >= collector.due:
            collector.due = next(collector.turns)
        report(run, collectors)
    return max(collector.status for collector in collectors)


# Reports

REPORT_S = 30  # seconds between reports of a long pass


def report(run: Run, collectors: list[Collector]) -> None:
    """Save the health, log the progress and write the metrics: at the end of a pass, and every REPORT_S during it."""
    now = run.edges.monotonic()
    at_end = not any(collector.busy or collector.due <= run.pass_due for collector in collectors)
    run.stderr.show([progress(collector, collector.walk, now) for collector in collectors if collector.walk])
    if at_end or now >= run.report_due:
        run.report_due = now + REPORT_S
        if any(collector.status if at_end else collector.busy and collector.requests for collector in collectors):
            with contextlib.suppress(CollectorError), run.checkpoints.saving():  # only the health: carry on if it fails
                pass
        for collector in [] if run.stderr.terminal else collectors:
            if collector.walk and now >= collector.began + REPORT_S:
                log.info("%s", progress(collector, collector.walk, now))
        if run.settings.metrics_file and (run.checkpoints.path or (at_end and run.in_file is not None)):
            write_metrics(run, collectors)
    if at_end:
        run.pass_due = max(collector.due for collector in collectors)
        for collector in collectors:  # so that the next passes end together, too
            collector.due = run.pass_due
        if abs(off_s := run.duo.clock_offset_s) > CLOCK_S:
            off = f"{abs(off_s):.0f} s {'behind' if off_s > 0 else 'ahead of'}"
            log.warning("local clock is %s Duo's; collection goes by Duo's clock, but set it right", off)
        run.duo.session.close()  # Duo would have closed the connection by the next pass


def progress(collector: Collector, walk: Walk, now: float) -> str:
    """How far a pass has got: the share of the window, the time left, events so far, the rate, the time reached."""
    elapsed_s = max(0.001, now - collector.began)
    events = f"{counted(collector.written, 'event')} so far, {walk.received / elapsed_s * 60:,.0f} a minute"
    share = (walk.reached_ms - walk.start_ms) / max(1, walk.until_ms - walk.start_ms)
    share = min(1.0, walk.received / walk.total if walk.total and collector.log_type.ordered else share)
    left = f"{duration(elapsed_s * (1 / share - 1) * 1000)} left" if share > 1e-9 else "just started"
    return f"{collector.log_type.name}: {share:.0%}, {left}; {events}, up to {iso(walk.reached_ms)}"


METRICS = {  # metric name and label: source of the value
    "events_total": "events", "holes_total": "holes", "pass_duration_seconds": "pass_ms",
    "checkpoint_timestamp_seconds": "since_ms", "last_success_timestamp_seconds": "last_success_ms",
    **{f'requests_total,outcome="{outcome}"': outcome for outcome in ("ok", "limited", "refused", "failed")},
}  # fmt: skip


def write_metrics(run: Run, collectors: list[Collector]) -> None:
    """Write the file for node_exporter's textfile collector. A failure does not stop collection."""
    path, account, lines, before = run.settings.metrics_file, run.settings.account, list[str](), dict[str, str]()
    try:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            before.update(re.findall("(.*late_events_total.*}) ([0-9]+)", file.read()))  # continue from the last run
        for key, shown in (METRICS if run.in_file is None else {"late_events_total": "late"}).items():
            name, comma, label = key.partition(",")
            kind = f"# TYPE duo_collector_{name} {'counter' if name.endswith('_total') else 'gauge'}\n"
            lines += [kind] if kind not in lines else []
            for collector in collectors:
                value = {**collector.health, "since_ms": collector.state.since_ms, "late": collector.written}[shown]
                sample = f'duo_collector_{name}{{host="{account}",log_type="{collector.log_type.name}"{comma}{label}}}'
                value = value / 1000 if shown.endswith("_ms") else value + int(before.get(sample, 0))
                lines.append(f"{sample} {value}\n")
        if run.in_file is None:
            clock = "duo_collector_clock_difference_seconds"
            lines += [f"# TYPE {clock} gauge\n", f'{clock}{{host="{account}"}} {run.duo.clock_offset_s}\n']
        with replacing(path, "".join(lines)) as new:
            os.chmod(new, 0o644)  # despite the umask: node_exporter runs as another user
    except OSError as error:
        log.warning("DUO_METRICS_FILE %s cannot be written: %s", path, one_line(error))


def show_status(settings: Settings, edges: Edges, as_json: bool) -> int:
    """Show how far each log type has got, and how its passes ended; return the exit status."""
    output, checkpoints, now_ms = Output(), Checkpoints(settings.checkpoint_file, settings), edges.now() * 1000
    if not checkpoints.document:
        log.info("checkpoint file %s is empty or does not exist yet: showing the seeds", checkpoints.path)
    document, late, limit_ms = dict[str, Any](), list[str](), settings.max_lag_ms
    for row in settings.log_types:
        since_ms, health = checkpoints.states[row].since_ms, checkpoints.states[row].health
        lag_ms, ok_ms, error_ms = now_ms - since_ms, health["last_success_ms"], health["last_error_ms"]
        late += [row.name] if abs(lag_ms) > limit_ms else []
        document[row.name] = {
            "checkpoint": iso(since_ms), "lag_seconds": int(lag_ms / 1000), "last_error": health["last_error"] or None,
            "last_error_time": iso(error_ms) if error_ms else None, "last_success": iso(ok_ms) if ok_ms else None,
        }  # fmt: skip
        line = f"{row.name:20}{iso(since_ms)}  {duration(abs(lag_ms))} {'behind' if lag_ms >= 0 else 'ahead of'} now"
        line += f", last success {f'{duration(now_ms - ok_ms)} ago' if ok_ms else 'never'}"
        line += f", last error {duration(now_ms - error_ms)} ago: {health['last_error']}" if error_ms else ""
        output.write([] if as_json else [line + "\n"])
    output.write([json.dumps(document) + "\n"] if as_json else [])
    if late:
        log.error("%s: behind or ahead by more than %s: %s", checkpoints.path, duration(limit_ms), ", ".join(late))
    return PassFailed.status if late else 0


# The command line


def check(settings: Settings, edges: Edges) -> int:
    """Make a small request for each log type, and print the result; return the worst exit status."""
    output, duo, problems, result = Output(), Duo(settings, edges), dict[LogType, Any](), ""
    Checkpoints(settings.checkpoint_file, settings)
    for row in settings.log_types:
        until_ms = duo.now_ms() - row.delay_ms
        try:
            duo.fetch_page(row, Walk(replace(row, page_size=1), until_ms - 60_000, until_ms, print).parameters)
        except PassFailed as problem:
            problems[row] = problem
    for row in settings.log_types:
        if isinstance(problems.get(row), Refused):  # the reason is clearer once the other log types are answered
            problems[row] = refusal(duo, problems[row].answer, row)
        before, result = result, redact(str(problems.get(row, "ok")))
        output.write([f"{row.name}: {'the same' if before == result != 'ok' else result}\n"])
    trouble = folder_trouble(settings.checkpoint_file)
    output.write([f"checkpoint file {settings.checkpoint_file}: {trouble}\n"] if trouble else [])
    return max([78 if trouble else 0, *(int(problem.status) for problem in problems.values())])


def list_accounts(settings: Settings, edges: Edges) -> int:
    """Print the child accounts of an Accounts API application. Source: duo.com/docs/accountsapi, duo_client."""
    output, duo = Output(), Duo(settings, edges)
    answer = duo.ask("/accounts/v1/account/list", {}, post={})
    accounts = answer.fields.get("response")
    if answer.status != 200 or not isinstance(accounts, list):
        raise refusal(duo, answer, None)
    output.write([json.dumps(account) + "\n" for account in accounts])
    return 0


def collect(settings: Settings, edges: Edges, once: bool, stderr: StderrHandler) -> int:
    """Collect, in one pass or in passes until stopped; return the exit status. Raises CollectorError."""
    is_range, path = bool(settings.until or settings.missing_from is not None), settings.checkpoint_file
    output = Output(interrupted=is_range or os.path.exists(f"{path}.new"))
    with contextlib.nullcontext() if is_range else lock(path):  # a range does not touch the file
        checkpoints = Checkpoints("" if is_range else path, settings)
        edges.on_signals(checkpoints.writing, PassFailed.status if once or is_range else 0)
        run = Run(settings, edges, Duo(settings, edges), checkpoints, output, stderr, once or is_range)
        collectors = [Collector(run, row) for row in settings.log_types]
        if settings.missing_from is not None:
            service = Checkpoints(path, settings)  # read before FILE, so that FILE holds all that is older
            for collector in collectors if service.document else ():
                collector.range_end_ms = service.states[collector.log_type].start_ms  # where its next pass starts
            run.in_file = read_written(settings)
        if settings.since:
            start_at(run, collectors, settings.since, settings.until)
        known_s, status = run.duo.clock_offset_s, run_passes(run, collectors)
        if is_range and not status and abs(run.duo.clock_offset_s - known_s) > CLOCK_S:
            raise CollectorError("the local clock was wrong, and so was the range: set it right and run again", 75)
        return status


def start_at(run: Run, collectors: list[Collector], since: When, until: When | None) -> None:
    """Move every log type to --since, and warn of what that passes over or repeats. Raises CollectorError."""
    with contextlib.suppress(PassFailed):  # then the local clock is used
        run.duo.ask_clock(collectors[0].log_type)
    now_ms = run.duo.now_ms()
    since_ms, until_ms = since(now_ms), until(now_ms) if until else math.inf
    if until_ms <= since_ms:
        raise CollectorError("--until: write a time later than --since", 2)
    for collector in collectors:
        row, state, start_ms = collector.log_type, collector.state, collector.log_type.floor(since_ms)
        if (collector.health["events"] or collector.health["last_success_ms"]) and state.since_ms != start_ms:
            first_ms, last_ms = sorted((start_ms, state.since_ms))
            does = "repeats the events" if start_ms == first_ms else "passes over the events"
            log.warning("%s: --since %s from %s to %s", row.name, does, iso(first_ms), iso(last_ms))
        state.since_ms, state.start_ms, state.hole_ms, state.written = start_ms, start_ms, 0, {}
        collector.range_end_ms = min(collector.range_end_ms, row.floor(until_ms) if until else math.inf)
    with run.checkpoints.saving(*run.settings.log_types):  # at once: if a first pass fails, the next starts here too
        pass


def stop_on_signals(stop: threading.Event, writing: threading.Lock, status: int, grace_s: float = 3) -> None:
    """On SIGTERM or SIGINT set `stop`, and force an exit grace_s later, in case a request hangs or a page cannot be
    written. This takes a thread: a blocked main thread runs no signal handler. `writing` is held during a page."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    def watch() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # SIGALRM is for the main thread
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        stop.set()
        time.sleep(grace_s)
        in_page = not writing.acquire(blocking=False)
        doing = "writing a page: stdout's reader or the disk is slow" if in_page else "waiting"
        with contextlib.suppress(OSError):
            if select.select([], [2], [], 0)[1]:  # not if the main thread is blocked writing to it
                log.log(logging.ERROR if in_page else logging.INFO, "stopped by a signal while %s; nothing lost", doing)
        os._exit(74 if in_page else status)

    threading.Thread(target=watch, daemon=True).start()


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CollectorError(f"{message} (see --help)", 2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line. Raises CollectorError."""
    parser = ArgumentParser(
        prog="duo_collector.py", allow_abbrev=False, description="Collect Cisco Duo's audit logs as JSON lines.",
        epilog="Options override environment variables, which override the settings file (.env.example). Exit status:"
        " 0 caught up or stopped; 2 command line; 74 output; 75 temporary, run again; 77 refused; 78 setting or file.",
    )  # fmt: skip
    add, mode, level = parser.add_argument, parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="run one pass until caught up, then exit (cron or a timer)")
    add("--interval", metavar="SECONDS", help="pause between passes, in s or as 10m (default: DUO_INTERVAL, or 300)")
    add("--log-types", metavar="LIST", help=f"any of {','.join(LOG_TYPES)} (default: DUO_LOG_TYPES, or the first 3)")
    add("--since", metavar="WHEN", help="start here (UTC), not at the checkpoint: 2026-11-01, 2026-11-01T08:00Z, 24h")
    add("--until", metavar="WHEN", help="with --since: print that range, and do not move the checkpoint")
    add("--missing-from", metavar="FILE", help="with --since: print events that Duo has and FILE (- for stdin) lacks")
    add("--env-file", metavar="PATH", help="settings file (default: .env beside the script)")
    add("--checkpoint-file", metavar="PATH", help="where it keeps its state (DUO_CHECKPOINT_FILE, or checkpoints.json)")
    mode.add_argument("--check", action="store_true", help="send a small request per log type; print ok or what to fix")
    mode.add_argument("--status", action="store_true", help="show how far each log type has got, without a request")
    mode.add_argument("--accounts", action="store_true", help="list the child accounts of an Accounts API application")
    add("--max-lag", metavar="AGE", help="with --status: exit 75 if any is further behind or ahead, such as 15m")
    add("--json", action="store_true", help="with --status: one JSON object")
    level.add_argument("-v", "--verbose", action="store_true", help="log every request")
    level.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    for name, needed in (("until", "since"), ("missing_from", "since"), ("max_lag", "status"), ("json", "status")):
        if getattr(options, name) not in (None, False) and not getattr(options, needed):
            parser.error(f"--{name.replace('_', '-')} needs --{needed}")
    if options.since and (options.check or options.status or options.accounts):
        parser.error("--since cannot be used with --check, --status or --accounts: they collect nothing")
    return options


class StderrHandler(logging.Handler):
    """Writes each message as a line, on a terminal with the progress of the passes below. Its failures are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal, self.shown, self.journal = False, 0, False
        with contextlib.suppress(OSError):
            self.terminal = os.isatty(2) and not os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
            stream = os.fstat(2)  # a service's child inherits the variable, but may have another stderr
            self.journal = os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
        layout = "%(levelname)s %(message)s" if self.journal else "%(asctime)s %(levelname)s %(message)s"
        self.setFormatter(logging.Formatter(layout, "%Y-%m-%dT%H:%M:%SZ"))

    def emit(self, record: logging.LogRecord) -> None:
        priority = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>", logging.DEBUG: "<7>"}
        level = priority[record.levelno] if self.journal else ""
        self.write(f"{level}{redact(self.format(record))}\n")

    def show(self, lines: list[str]) -> None:
        if self.terminal and log.isEnabledFor(logging.INFO) and (lines or self.shown):
            with contextlib.suppress(OSError):  # the terminal has been closed
                width = os.get_terminal_size(2).columns or 80
                self.write("".join(f"{line[:width]}\n" for line in lines))
                self.shown = len(lines)

    def write(self, text: str) -> None:
        erase = f"\x1b[{self.shown}F\x1b[J" if self.shown else ""
        self.shown = 0
        with contextlib.suppress(OSError):
            os.write(2, (erase + text).encode(errors="backslashreplace"))


def main(arguments: list[str] | None = None, edges: Edges | None = None) -> int:
    """Run the command line; return the exit status. `edges` defaults to the real ones."""
    if not edges:
        stop = threading.Event()
        edges = Edges(time.time, time.monotonic, stop.wait, open_session, partial(stop_on_signals, stop))
        for number in (signal.SIGTERM, signal.SIGINT):  # until there is something to save; PID 1 has no default action
            signal.signal(number, lambda number, _: os._exit(128 + number))
    stderr, logging.Formatter.converter = StderrHandler(), time.gmtime
    log.handlers = [stderr if sys.stderr is not None else logging.NullHandler()]
    try:
        options = parse_options(arguments)
        log.setLevel(logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO)
        settings = load_settings(options, os.environ, load_env_file(options.env_file))
        if options.status:
            return show_status(settings, edges, options.json)
        if options.check or options.accounts:
            edges.on_signals(threading.Lock(), PassFailed.status, 0)
            return (check if options.check else list_accounts)(settings, edges)
        return collect(settings, edges, options.once, stderr)
    except CollectorError as error:
        log.error("%s", error)
        return error.status
    except ModuleNotFoundError as error:
        log.error("%s is missing: use the Python in .venv, or run pip install -r requirements.txt", error.name)
        return 78


if __name__ == "__main__":
    sys.exit(main())
