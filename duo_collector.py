#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.28,<3", "python-dotenv>=0.20,<2"]
# ///
"""Collect Cisco Duo's audit logs as JSON lines.

Reads the logs that Duo's Admin API serves, each from its own checkpoint, and writes every event to
stdout as a line:

    duo_collector.py --check      test the host, the keys and the permission
    duo_collector.py --once       one pass until caught up, then exit: for cron or a timer
    duo_collector.py              pass after pass, with a pause in between, until SIGTERM or SIGINT
    duo_collector.py --status     show how far each log type has got
    duo_collector.py --since 48h --missing-from FILE ...    print what Duo has and the files lack

The guarantee: every event that Duo publishes within seven minutes of its time is written at least
once. Each page of events is written, then its checkpoint is saved: only a process that ends between
the two repeats events.

A pass reads up to two minutes before now, and the next one from five minutes (DUO_LOOKBACK) before
that point: that makes the seven. A log that was silent for longer is read from its newest known
event, in case Duo published nothing for hours. A single event that is published later than that is
not noticed: run --missing-from daily to find it.

Each log type is collected by its own thread. The main thread waits for them and for signals.

The file follows the data: log types, settings, signing, requests, pages, walks, checkpoints,
output, pace, passes, reports, the command line. Names that end in _ms are in milliseconds (times:
since 1970), those in _s in seconds, as are the times in Pace and Collector.
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
import glob
import gzip
import hashlib
import hmac
import io
import json
import logging
import math
import os
import queue
import random
import re
import select
import signal
import stat
import sys
import threading
import time
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:  # imported only where needed: the import takes longer than a whole --status run
    import requests

__version__ = "3.0.0"
FOLDER = os.path.dirname(os.path.abspath(__file__))
When = Callable[[int], int]  # takes the current time, returns another; both in ms
log = logging.getLogger("duo_collector")


class CollectorError(Exception):
    """Ends the process, with this message and this exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PassFailed(Exception):
    """Ends the pass of one log type; the next pass tries again."""

    status = 75
    outcome = "failed"  # under which the metrics count the request


class Refused(PassFailed):
    """Duo refuses the credentials, the permission or the log type."""

    status = 77
    outcome = "refused"


class Retryable(PassFailed):
    """Worth a retry in the same pass: no answer, a 5xx, an invalid answer."""

    patience_s = 30.0  # a log type gives up its pass after this long, but not before a second try
    retry_after_s = 0.0  # how long the server asks to wait


class GivenUp(PassFailed):
    """Nothing but retryable failures, for as long as the patience lasts."""


class RateLimited(Retryable):
    """Duo answers 429: too many requests. A log type gives up its pass 300 s after it sent the
    first of those since the last page, whatever else failed in between."""

    outcome = "limited"
    patience_s = 300.0


class Stopped(Exception):
    """Ends a thread that was waiting: the process is to end."""


@dataclass(frozen=True)
class Edges:
    """External dependencies. Tests inject their own and run everything in virtual time."""

    now: Callable[[], float]  # s since 1970, by the local clock
    monotonic: Callable[[], float]  # s
    wait: Callable[[float], bool]  # for this many s; True at once if the process is to end
    lock: Callable[[], Any]  # a new lock
    session: Callable[[], requests.Session]
    side_by_side: Callable[[Sequence[Callable[[], object]], Callable[[], object]], bool]


# Log types


@dataclass(frozen=True)
class LogType:
    """One of Duo's logs: everything that distinguishes it. Source: duo.com/docs/adminapi#logs."""

    name: str
    path: str  # below /admin/
    since_key: str  # environment variable of its start time, and its checkpoint in the file
    list_key: str  # the member of the answer that holds the events
    time_field: str  # its value is ISO 8601, or a number in units of unit_ms
    id_field: str = ""  # empty: an event is identified by its content
    unit_ms: int = 1  # of mintime, maxtime and checkpoint: 1 (13 digits) or 1000 (10 digits)
    page_size: int = 1000
    cursor: str = ""  # query parameter for the next page; empty: page by raising mintime
    sort: str = ""  # Duo's default is newest first
    ordered: bool = True  # False: a page may hold events older than those of the page before it
    kept_days: int = 0  # Duo refuses an earlier mintime with 400; 0: it accepts any
    delay_ms: int = 120_000  # v2 logs serve nothing newer; a later window would skip late events
    outlook: str = ""  # what a refusal should add

    @property
    def overlap_ms(self) -> int:
        """How much earlier to ask: for v1 logs, Duo documents mintime as "or later" in one place
        and as "after" in another (source: duo_client's docstrings, duo.com/docs/adminapi)."""
        return 0 if self.cursor else self.unit_ms

    def floor(self, time_ms: float) -> int:
        """Round a time in ms down to this log type's unit."""
        return int(time_ms) // self.unit_ms * self.unit_ms

    def parse_since(self, text: str) -> int:
        """Parse a since time in this log type's unit; return ms. Raises ValueError."""
        unit, digits = ("seconds", 10) if self.unit_ms == 1000 else ("milliseconds", 13)
        if not re.fullmatch(f"[1-9][0-9]{{{digits - 1}}}", text):
            example = SEED_MS // self.unit_ms
            raise ValueError(f"write {unit} since 1970, {digits} digits such as {example}")
        return int(text) * self.unit_ms


SEED_MS = 1661022959934  # 2022-08-20: where collection starts by default

V1: dict[str, Any] = {
    "list_key": "response",
    "time_field": "timestamp",
    "unit_ms": 1000,
    "outlook": "; Duo is deprecating this log in favour of activity",
}
V2: dict[str, Any] = {"cursor": "next_offset", "sort": "ts:asc", "kept_days": 180}
LOG_TYPES = {row.name: row for row in (
    LogType("authentication", "v2/logs/authentication", "AUTH_SINCE_TIME", "authlogs", "isotimestamp", "txid", **V2),
    LogType("administrator", "v1/logs/administrator", "ADMIN_SINCE_TIME", **V1),
    LogType("telephony", "v2/logs/telephony", "TELEPHONY_SINCE_TIME", "items", "ts", "telephony_id", **V2),
    LogType("activity", "v2/logs/activity", "ACTIVITY_SINCE_TIME", "items", "ts", "activity_id", **V2),
    LogType("offline_enrollment", "v1/logs/offline_enrollment", "OFFLINE_ENROLLMENT_SINCE_TIME", **V1),
    LogType("trust_monitor", "v1/trust_monitor/events", "TRUST_MONITOR_SINCE_TIME", "events", "surfaced_timestamp",
            "sekey", page_size=200, cursor="offset", ordered=False, kept_days=180,
            outlook="; Trust Monitor has been closed to new subscriptions since 2025-09-29, and ends on 2027-01-31"),
)}  # fmt: skip
DEFAULT_LOG_TYPES = "authentication,administrator,telephony"


# Settings: each parser raises ValueError with a message that says what to write instead.


def parse_host(text: str) -> str:
    """Parse DUO_API_HOST; return its URL. Plain http is for a loopback address only."""
    label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    number = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
    loopback = rf"(localhost|127(\.{number}){{3}}|\[::1\])(:(?P<port>[0-9]{{1,5}}))?"
    address = rf"(?P<address>{loopback}|(?P<name>{label}(\.{label})+))"
    match = re.fullmatch(rf"((?P<scheme>https?)://)?{address}/?", text.lower())
    if not match or int(match["port"] or 0) > 65535:
        raise ValueError(
            "write https://api-XXXXXXXX.duosecurity.com, the API hostname with nothing after it"
        )
    if match["name"] and match["scheme"] == "http":
        raise ValueError("http is not encrypted: write https:// in its place")
    if "api-xxxxxxxx." in match["address"]:
        raise ValueError("that is the placeholder; write the API hostname from the Duo Admin Panel")
    if match["name"] and not match["name"].endswith((".duosecurity.com", ".duofederal.com")):
        log.warning(
            "DUO_API_HOST is %s, which is not a Duo host: signed requests are sent there",
            match["name"],
        )
    return f"{match['scheme'] or 'https'}://{match['address']}"


def parse_key(text: str) -> str:
    """Check a key for copy-and-paste errors. The messages must not show the key."""
    for place, character in enumerate(text, 1):
        if not "!" <= character <= "~" or character in "\"'`":
            kind = unicodedata.name(character, f"control character {ord(character)}").lower()
            article = "an" if kind[0] in "aeiou" else "a"
            where = f"character {place} of {len(text)} is {article} {kind}"
            raise ValueError(f"{where}: write just Duo's key")
    if not text:
        raise ValueError("there is no key: write just Duo's key")
    return text


def read_key_file(path: str) -> str:
    """The secret key in a file, without the line break at its end. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return parse_key(file.read(10_000).removesuffix("\n"))


def parse_key_file(text: str) -> str:
    """Check who can read a key file; return its path. Symlinks stay: Kubernetes replaces a secret
    by changing one. The file is read by load_settings(), once: it may be a pipe."""
    path = os.path.expanduser(text)
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        log.warning("%s can be read by all users, and holds the secret key: chmod 600 it", path)
    return path


def parse_account_id(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9]{20}", text):
        raise ValueError(
            "write the account_id of a child account, 20 letters and digits; --accounts lists them"
        )
    return text


def parse_log_types(text: str) -> tuple[LogType, ...]:
    names = [name.strip() for name in text.split(",")]
    if not all(name in LOG_TYPES for name in names):
        raise ValueError("write one or more of " + ",".join(LOG_TYPES))
    return tuple(LOG_TYPES[name] for name in dict.fromkeys(names))


def parse_path(text: str) -> str:
    """Parse a path and resolve symlinks, so that saving replaces the target, not the link."""
    if not text or "\0" in text:
        raise ValueError("write the path of a file")
    return os.path.realpath(os.path.expanduser(text))


def parse_number(unit: str, least: float, most: float, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
        raise ValueError(f"write a number of {unit} from {least:g} to {most:,.0f}")
    return float(text)


def parse_lookback(text: str) -> float:
    return parse_number("whole seconds", 0, 86_400, text if "." not in text else "")


AGES_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
AGE = "([0-9]{1,7})([smhdw])"
HOUR_MS = AGES_MS["h"]
DAY_MS = AGES_MS["d"]
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MILLISECOND = timedelta(milliseconds=1)
NEWEST_MS = 4_102_444_800_000  # the year 2100; how far ahead of now it is, only Duo's time can say
OLDEST_MS = 10**12  # 2001; earlier times have too few digits for the checkpoint file


def parse_age(text: str) -> int:
    """Parse a duration such as 90m; return ms."""
    if not re.fullmatch(AGE, text):
        raise ValueError("write a duration such as 90s, 15m, 24h or 7d")
    return int(text[:-1]) * AGES_MS[text[-1]]


def parse_interval(text: str) -> float:
    """Parse seconds, or a duration such as 10m; return seconds."""
    if re.fullmatch(AGE, text):
        text = str(parse_age(text) / 1000)
    return parse_number("seconds, or a duration such as 10m,", 0.01, 86_400, text)


def parse_when(text: str) -> When:
    """Parse --since or --until: ISO 8601 (UTC unless it has an offset), an age, or now."""
    if text == "now":
        text = "0s"
    if re.fullmatch(AGE, text):
        age_ms = parse_age(text)
        return lambda now_ms: max(now_ms - age_ms, OLDEST_MS)
    # Not 1712123151234, a pasted checkpoint: to Python 3.11 that is a time in the year 1712.
    if not re.match("[0-9]{4}-", text):
        raise ValueError("write a time such as 2026-11-01 or 2026-11-01T08:00Z, an age, or now")
    at_ms = int(parse_iso(text))
    if at_ms > NEWEST_MS:
        raise ValueError("that is in the future: write a time in the past, an age, or now")
    return lambda now_ms: max(at_ms, OLDEST_MS)


def parse_iso(text: str) -> float:
    """Parse an ISO 8601 time, UTC unless it has an offset; return ms. Raises ValueError."""
    if text.endswith("Z"):  # which Python 3.10 rejects
        text = text[:-1] + "+00:00"
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=timezone.utc)
    try:
        return (parsed - EPOCH) / MILLISECOND
    except OverflowError as error:
        raise ValueError(error) from None


def iso(time_ms: float) -> str:
    """Format a time for display: UTC, whole seconds."""
    return (EPOCH + timedelta(seconds=time_ms // 1000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(length_ms: float) -> str:
    """Format a duration for display, in its two largest units: 3 d 4 h, 5 min 10 s."""
    seconds = max(0, int(length_ms // 1000))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    counts = ((days, "d"), (hours % 24, "h"), (minutes % 60, "min"), (seconds % 60, "s"))
    return " ".join([f"{count:,} {unit}" for count, unit in counts if count][:2]) or "0 s"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(value: object) -> str:
    """Text from outside, or the text of a system error, safe to quote in a log line."""
    return redact(getattr(value, "strerror", None) or str(value))[:300].strip()


def redact(text: str) -> str:
    """Text without line breaks, escape sequences, possible secret keys and a proxy's password."""
    text = re.sub("[A-Za-z0-9]{32,}", "***", text)
    text = re.sub(r"//[^/\s]*@", "//***@", text)
    return "".join(c if c.isprintable() else " " for c in text)


@contextlib.contextmanager
def fatal_errors(status: int, what: str, consequence: str = "") -> Iterator[None]:
    """Raise CollectorError, with this status and what cannot be done, for an error in the block."""
    try:
        yield
    except (OSError, EOFError, RecursionError, ValueError, zlib.error) as error:
        raise CollectorError(f"{what}: {one_line(error)}{consequence}", status) from None


def setting(
    variable: str, option: str, parse: Callable[[str], Any], default: str = "", unset: Any = ""
) -> Any:
    """A field of Settings: `parse` of the option, else variable, else default; or `unset`."""
    row = (variable, option, parse, default, unset)
    return field(default=unset, metadata={"row": row}, repr=parse is not parse_key)


@dataclass(frozen=True)
class Settings:
    base_url: str = setting("DUO_API_HOST", "", parse_host)
    integration_key: str = setting("DUO_INTEGRATION_KEY", "", parse_key)
    secret_key: str = setting("DUO_SECRET_KEY", "", parse_key)
    secret_key_file: str = setting("DUO_SECRET_KEY_FILE", "", parse_key_file)
    account_id: str = setting("DUO_ACCOUNT_ID", "", parse_account_id)
    log_types: tuple[LogType, ...] = setting(
        "DUO_LOG_TYPES", "--log-types", parse_log_types, DEFAULT_LOG_TYPES
    )
    checkpoint_file: str = setting(
        "DUO_CHECKPOINT_FILE", "--checkpoint-file", parse_path, f"{FOLDER}/checkpoints.json"
    )
    metrics_file: str = setting("DUO_METRICS_FILE", "", parse_path)
    interval_s: float = setting("DUO_INTERVAL", "--interval", parse_interval, "300")
    requests_per_minute: float = setting(  # for each log type
        "DUO_REQUESTS_PER_MINUTE", "", partial(parse_number, "requests", 1, 1e6), "50"
    )
    lookback_s: float = setting("DUO_LOOKBACK", "", parse_lookback, "300")
    since: When | None = setting("", "--since", parse_when, unset=None)
    until: When | None = setting("", "--until", parse_when, unset=None)
    max_lag_ms: float = setting("", "--max-lag", parse_age, unset=math.inf)
    start_times: Mapping[LogType, int] = field(default_factory=dict)  # ms

    @property
    def host(self) -> str:
        """The hostname to sign and to add to every event: lower case, no port."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def account(self) -> str:
        """The account that the events belong to, as named in the checkpoint file."""
        return self.host + (f"/{self.account_id}" if self.account_id else "")


ROWS = {item.name: item.metadata["row"] for item in fields(Settings) if item.metadata}
VARIABLES = [row[0] for row in ROWS.values() if row[0]]
PATHS = [name for name in VARIABLES if name.endswith("_FILE")] + ["REQUESTS_CA_BUNDLE"]


def load_env_file(given: str | None) -> str:
    """Set missing environment variables from a settings file; return where it looked.

    A relative path in it starts at its folder, since cron's is another. Raises CollectorError.
    """
    from dotenv.parser import parse_stream

    path = given or f"{FOLDER}/.env"
    looked_for = f" in the environment or in {path}"
    if given is None and not os.path.exists(path):
        return f"{looked_for}, which does not exist: copy .env.example"
    cannot_be_read = fatal_errors(78, f"settings file {path} cannot be read")
    with cannot_be_read, open(path, "rb") as opened:
        mode = os.fstat(opened.fileno()).st_mode
        content = opened.read()
        if b"\0" in content:
            raise ValueError("it is not UTF-8 but perhaps UTF-16: save it as UTF-8")
        lines = [*parse_stream(io.StringIO(content.decode("utf-8-sig")))]
        is_open = stat.S_ISREG(mode) and mode & 0o077 != 0
        for line in reversed(lines):  # the last of a repeated name wins
            take_setting(path, line, is_open)
    return looked_for


def take_setting(path: str, line: Any, is_open: bool) -> None:
    """Set the environment variable of a line of a settings file, unless it is set. Raises
    ValueError."""
    value = line.value or ""
    if line.error:
        number = line.original.line
        log.warning("settings file %s, line %d: this is not NAME=VALUE", path, number)
    if not line.key:
        return
    if line.key == "DUO_SECRET_KEY" and value and is_open:
        log.warning("%s can be read by other users, and holds the secret key: chmod 600 it", path)
    if value and line.key in PATHS:
        folder = os.path.dirname(os.path.abspath(path))
        value = os.path.join(folder, os.path.expanduser(value))
    os.environ.setdefault(line.key, value)


def load_settings(
    options: argparse.Namespace, environ: Mapping[str, str], looked_for: str = ""
) -> Settings:
    """Read and check all settings. Raises CollectorError."""
    rows = dict(ROWS)
    if environ.get("DUO_SECRET_KEY_FILE"):
        del rows["secret_key"]
    if options.status:  # sends no request, so it needs no host or keys
        for name in ("base_url", "integration_key", "secret_key", "secret_key_file"):
            rows.pop(name, None)
    else:
        warn_of_unknown(environ)
        require(rows, environ, looked_for)
    bundle = environ.get("REQUESTS_CA_BUNDLE") or "/"  # requests reads this variable by itself
    if not os.path.exists(bundle):
        message = f"REQUESTS_CA_BUNDLE {one_line(repr(bundle))}: write the path of a CA bundle"
        raise CollectorError(message, 78)
    values = {name: read_setting(options, environ, *row) for name, row in rows.items()}
    key_file = values.get("secret_key_file")
    if key_file:
        with fatal_errors(78, f"DUO_SECRET_KEY_FILE {one_line(repr(key_file))}"):
            values["secret_key"] = read_key_file(key_file)
    start_times = {}
    for log_type in LOG_TYPES.values():
        default = str(SEED_MS // log_type.unit_ms)
        row = (log_type.since_key, "", log_type.parse_since, default, 0)
        start_times[log_type] = read_setting(options, environ, *row)
    settings = Settings(start_times=start_times, **values)
    check_metrics_file(settings)
    return settings


def read_setting(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    variable: str,
    option: str,
    parse: Callable[[str], Any],
    default: str,
    unset: Any,
) -> Any:
    """The value of one setting. Raises CollectorError: 2 for an option, 78 for a variable."""
    given = getattr(options, option[2:].replace("-", "_"), None)
    text = given if given is not None else environ.get(variable) or default
    if not text and given is None:
        return unset
    try:
        return parse(text)
    except (ValueError, OSError) as wrong:
        label, status = (variable, 78) if given is None else (option, 2)
        found = f" {one_line(repr(text))}" if text else " is empty"
        if parse is parse_key:
            found = ""
        raise CollectorError(f"{label}{found}: {one_line(wrong)}", status) from None


def warn_of_unknown(environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("DUO_") and name not in VARIABLES:
            nearest = difflib.get_close_matches(name, VARIABLES, 1, 0)[0]
            message = "%s is not a setting and is ignored; did you mean %s?"
            log.warning(message, one_line(name), nearest)


def require(rows: Mapping[str, Any], environ: Mapping[str, str], looked_for: str) -> None:
    """Raise CollectorError if the host or a key is not set."""
    needed = [row[0] for row in rows.values() if row[2] in (parse_host, parse_key)]
    lacking = [name for name in needed if not environ.get(name)]
    if lacking:
        what = [f"{name} is {'empty' if name in environ else 'not set'}" for name in lacking]
        raise CollectorError(", ".join(what) + looked_for, 78)


def check_metrics_file(settings: Settings) -> None:
    """Raise CollectorError if DUO_METRICS_FILE can never be written, or would replace another."""
    path = settings.metrics_file
    if not path:
        return
    is_device = os.path.exists(path) and not os.path.isfile(path)  # /dev/null would be replaced
    has_folder = os.path.isdir(os.path.dirname(path))
    if path == settings.checkpoint_file or is_device or not has_folder:
        message = "write another path, of a file in a folder that exists"
        raise CollectorError(f"DUO_METRICS_FILE {path}: {message}", 78)


# Signing


def canonical_query(parameters: Mapping[str, str]) -> str:
    """The query string to sign and to send unchanged: percent-encoded as in RFC 3986, sorted by
    encoded name."""
    by_name = sorted(parameters.items(), key=lambda item: quote(item[0], ""))
    return urlencode(by_name, quote_via=quote)


def sign(
    request: requests.PreparedRequest, settings: Settings, date: str
) -> requests.PreparedRequest:
    """Sign a prepared request with an RFC 2822 date: HMAC-SHA512 over version 5 of the canonical
    string. Sources: duo.com/docs/adminapi#authentication, duo_client."""
    url = urlsplit(request.url or "")
    body = request.body if isinstance(request.body, bytes) else b""
    body_hash = hashlib.sha512(body).hexdigest()
    headers_hash = hashlib.sha512(b"").hexdigest()  # of the X-Duo-* headers: there are none
    method = request.method or ""
    lines = (date, method, settings.host, url.path, url.query, body_hash, headers_hash)
    key = settings.secret_key.encode()
    digest = hmac.new(key, "\n".join(lines).encode(), hashlib.sha512).hexdigest()
    credentials = base64.b64encode(f"{settings.integration_key}:{digest}".encode()).decode()
    request.headers.update({"Date": date, "Authorization": f"Basic {credentials}"})
    return request


# Requests

CONNECT_S = 10.0
SILENCE_S = 120.0  # peers wait 60 s (Sentinel's connectors) to 120 s for an answer of Duo's


def open_session() -> requests.Session:
    """A session of one thread. It follows no redirects: Duo sends none."""
    with warnings.catch_warnings():  # urllib3 warns of macOS's LibreSSL
        warnings.simplefilter("ignore")
        import requests

    session = requests.Session()
    session.headers["User-Agent"] = f"duo_collector/{__version__}"
    session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
    return session


class Answer(NamedTuple):
    """Any HTTP response."""

    status: int
    headers: Mapping[str, str]
    length: int  # of its body
    fields: Mapping[str, Any]  # its JSON, with the list of events emptied; empty if it is not JSON
    events: list[Event]  # that list

    @property
    def is_from_duo(self) -> bool:
        """Whether it has Duo's shape. A proxy or a filter answers with HTML, or JSON of its own;
        Duo may answer 401 with nothing (source: duo_unix's mock of Duo)."""
        if self.status == 401 and self.length == 0:
            return True
        return self.fields.get("stat") in ("OK", "FAIL")

    @property
    def retry_after_s(self) -> float:
        """How long the server asks to wait, in s, at most an hour; 0 if it does not. Duo's unix
        client honours X-Retry-After; whether Duo sends either with logs is not known."""
        for name in ("Retry-After", "X-Retry-After"):
            text = self.headers.get(name, "")
            if re.fullmatch("[0-9]{1,9}", text):
                return min(3600.0, float(text))
        return 0.0


class Duo:
    """Duo's APIs over a connection of one thread."""

    def __init__(self, settings: Settings, edges: Edges, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.has_accepted = False  # these credentials, in this process
        self.session = edges.session()

    def add_signature(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        date = email.utils.formatdate(self.clock.now_ms() / 1000)
        return sign(request, self.settings, date)

    def send(
        self, url: str, auth: Any, log_type: LogType | None = None, post: object = None
    ) -> Answer:
        """A GET, or a POST of this as JSON; its answer, whatever it is. Raises Retryable if none came.

        requests calls `auth` last, so what is signed is what is sent; it also keeps requests from
        using .netrc.
        """
        method = "GET" if post is None else "POST"
        timeout = (CONNECT_S, SILENCE_S)
        try:
            response = self.session.request(
                method, url, json=post, auth=auth, timeout=timeout, stream=True
            )
            text = response.raw.read(decode_content=True).decode(errors="replace")
            response.close()  # the connection is reused, since the whole answer was read
        except Exception as error:  # requests and urllib3 raise many types
            self.session.close()  # the rest of this answer must not be read as the next one
            raise Retryable(f"no answer from {explain_no_answer(error, self.settings)}") from None
        status = response.status_code
        log.debug("%s %s: %d, %s", method, url, status, counted(len(text), "character"))
        return Answer(status, response.headers, len(text), *split_answer(text, log_type))

    def ask(
        self,
        path: str,
        parameters: Mapping[str, str],
        log_type: LogType | None = None,
        post: object = None,
    ) -> Answer:
        """A signed request and its answer. Raises Retryable."""
        url = self.settings.base_url + path
        if parameters:
            url += "?" + canonical_query(parameters)
        answer = self.send(url, self.add_signature, log_type, post)
        if answer.status == 401 and self.key_was_rotated():
            answer = self.send(url, self.add_signature, log_type, post)
        return answer

    def key_was_rotated(self) -> bool:
        """Whether DUO_SECRET_KEY_FILE holds another key than the one in use; it is used then."""
        if not self.settings.secret_key_file:
            return False
        before = self.settings.secret_key
        try:
            key = read_key_file(self.settings.secret_key_file)
        except (OSError, ValueError) as error:
            log.warning("DUO_SECRET_KEY_FILE cannot be read again: %s", one_line(error))
            return False
        self.settings = replace(self.settings, secret_key=key)
        return key != before

    def fetch_page(self, log_type: LogType, parameters: Mapping[str, str]) -> Page:
        """One page of events. Raises Refused, RateLimited, Retryable or PassFailed."""
        if self.settings.account_id:
            parameters = {**parameters, "account_id": self.settings.account_id}
        answer = self.ask(f"/admin/{log_type.path}", parameters, log_type)
        if answer.status != 200 or answer.fields.get("stat") != "OK":
            raise self.refusal(answer, log_type)
        self.has_accepted = True
        response = answer.fields.get("response")
        holder = response if isinstance(response, dict) else answer.fields
        if holder.get(log_type.list_key) != []:
            raise Retryable(f'Duo\'s answer has no list "{log_type.list_key}": report it')
        paging = holder.get("metadata") or answer.fields.get("metadata") or {}  # as in duo_client
        try:
            cursor = read_cursor(paging.get("next_offset"))
            cursor.encode()  # half of a surrogate pair cannot be sent
            return Page(answer.events, cursor, read_total(paging.get("total_objects")))
        except (AttributeError, TypeError, ValueError):
            raise Retryable(f"Duo's answer has invalid metadata: {one_line(str(paging))}") from None

    def ping(self) -> int | None:
        """Duo's time in ms, or None if Duo does not say. Source: duo.com/docs/authapi#/ping, and
        duo_unix #311, which sets its date by it. It is not signed."""
        try:
            answer = self.send(self.settings.base_url + "/auth/v2/ping", lambda request: request)
            told_s = int(answer.fields["response"]["time"])
        except (Retryable, KeyError, OverflowError, TypeError, ValueError):
            return None
        return told_s * 1000 if 10**9 < told_s < 10**10 else None

    def refusal(self, answer: Answer, log_type: LogType | None) -> PassFailed:
        """The exception for an answer without a page: its meaning, and Duo's own words."""
        given = answer.fields
        code = str(given.get("code", ""))
        words = f"{given.get('message') or ''} {given.get('message_detail') or ''}"
        status = answer.status
        if status == 200 and re.fullmatch("[45][0-9]{4}", code):
            status = int(code[:3])
        key = meaning_of(answer, status, code, words, log_type)
        if key == "date" and not self.clock.is_duos:
            key = "local date"
        if key == "not Duo's":
            words = answer.headers.get("Content-Type", "")
        kind, meaning = MEANINGS[key]
        reason = f"{status} {code} {words}".replace(self.settings.secret_key, "***")
        text = meaning.format(
            reason=" ".join(one_line(reason).split()), keys=self.explain_credentials(code)
        )
        if self.settings.account_id and key in ("400", "401", "403", "404"):
            text += "; or DUO_ACCOUNT_ID is no child of that account, or not at this host: "
            text += "see --accounts"
        if log_type and kind is Refused and status in (403, 404):
            text += log_type.outlook
        problem = kind(text)
        if isinstance(problem, Retryable):
            problem.retry_after_s = answer.retry_after_s
        return problem

    def explain_credentials(self, code: str) -> str:
        """The setting that is most likely wrong when Duo refuses the credentials, and what to do."""
        integration_key = self.settings.integration_key
        lengths = (len(integration_key), len(self.settings.secret_key))
        if re.fullmatch("DI.{18}", self.settings.secret_key):
            return "the secret key looks like an integration key; are the two swapped?"
        if self.has_accepted and self.settings.secret_key_file:
            return "they worked before: write the new key to DUO_SECRET_KEY_FILE"
        if self.has_accepted:
            return "they worked before: if the key was changed, restart this process"
        if not re.fullmatch("DI.{18}", integration_key) or lengths[1] != 40:
            return (
                f"the integration key has {lengths[0]} characters, the secret key {lengths[1]}; "
                "Duo's have 20, beginning with DI, and 40: copy them again, without stray spaces"
            )
        known = "is not known" if code == "40102" else "does not match DUO_SECRET_KEY"
        text = (
            f"DUO_INTEGRATION_KEY {known} at DUO_API_HOST; copy all three again from one Admin "
            "API application, without stray spaces"
        )
        if not self.clock.is_duos:
            text += (
                "; or the local clock is wrong: it is used because /auth/v2/ping is not answered"
            )
        return text


class Clock:
    """Duo's time. The threads of a process share it.

    It is what /auth/v2/ping says at the start of a pass, carried on by the monotonic clock, so that
    a local clock that is wrong, or corrected in between, changes nothing. Duo refuses a request
    whose date is five minutes off (source: duo_unix's mock of Duo), and a window that ends too late would
    skip what is published in between.

    Without an answer, the local clock is used, and not an older answer: the monotonic clock stands
    still while a machine is suspended. If the local clock is five minutes off, Duo refuses the requests, and the
    pass ends with 77; if by it there is nothing to read yet, nothing is requested, and the pass
    ends with 75. Nothing is skipped.
    """

    SHARED_S = 60.0  # an answer this young is used again, as the threads begin together
    WARN_S = 30.0

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.asking = edges.lock()
        self.asked_s = -math.inf  # when, by the monotonic clock
        self.told: tuple[int, float] | None = None  # Duo's time in ms, at this monotonic time in s
        self.difference_s = 0.0  # Duo's time minus the local clock
        self.warned_s = 0.0  # the difference last warned about

    @property
    def is_duos(self) -> bool:
        return self.told is not None

    def now_ms(self) -> int:
        """Duo's time, as far as known: never ahead of Duo's clock if the ping was answered."""
        if self.told is None:
            return int(self.edges.now() * 1000)
        told_ms, at_s = self.told
        return told_ms + int((self.edges.monotonic() - at_s) * 1000)

    def update(self, duo: Duo) -> None:
        """Ask Duo for its time, unless another thread has just done so."""
        with self.asking:
            if self.edges.monotonic() - self.asked_s < self.SHARED_S:
                return
            told_ms = duo.ping()
            self.asked_s = self.edges.monotonic()
            self.told = None if told_ms is None else (told_ms, self.asked_s)
            if told_ms is not None:
                self.compare(told_ms)

    def compare(self, told_ms: int) -> None:
        """Warn of a local clock that is wrong, once for each difference."""
        self.difference_s = told_ms / 1000 - self.edges.now()
        if abs(self.difference_s) <= self.WARN_S:
            self.warned_s = 0.0
        elif abs(self.difference_s - self.warned_s) > self.WARN_S:
            self.warned_s = self.difference_s
            where = "behind" if self.difference_s > 0 else "ahead of"
            off = f"{abs(self.difference_s):,.0f} s {where}"
            message = (
                "the local clock is %s Duo's; collection uses Duo's time, but correct the clock"
            )
            log.warning(message, off)


NO_ANSWER = (  # the first pattern found in the names of the exceptions and the reason, and its meaning
    ("SOCKS", "a SOCKS proxy needs the package PySocks: install it, or set HTTPS_PROXY to an HTTP proxy"),
    ("InvalidURL|InvalidProxyURL", "an invalid address: check HTTPS_PROXY"),  # which may hold a password
    ("ProxyError", "the proxy {proxy} refuses or cannot be reached ({reason}): check HTTPS_PROXY and NO_PROXY"),
    ("gaierror", "the name does not resolve ({reason}): check DUO_API_HOST, DNS, and whether HTTPS_PROXY is needed"),
    ("mismatch|doesn't match", "its certificate is for another name ({reason}): check DUO_API_HOST and HTTPS_PROXY"),
    ("Key Identifier|Basic Constraints|key usage|keyCertSign", "Python from 3.13 on refuses the CA of a TLS proxy that"
     " does not keep to RFC 5280 ({reason}): have the CA certificate reissued, or use Python 3.12"),
    ("SSLCertVerificationError", "its certificate is not trusted ({reason}): set REQUESTS_CA_BUNDLE to a TLS proxy's CA"),
    ("SSLError", "TLS failed ({reason}): check DUO_API_HOST, HTTPS_PROXY and REQUESTS_CA_BUNDLE"),
    ("ReadTimeout", "timed out ({reason}): a firewall or proxy drops requests, or Duo is slow"),
    ("ConnectionRefusedError", "the connection is refused: check DUO_API_HOST, and whether HTTPS_PROXY is needed"),
    ("", "no connection ({reason}): check DUO_API_HOST; a firewall blocks it, HTTPS_PROXY is missing, or Duo is down"),
)  # fmt: skip


def explain_no_answer(error: BaseException, settings: Settings) -> str:
    """Which host did not answer, why, and what to do: from the exceptions that requests and
    urllib3 wrap."""
    chain = [error]
    while True:
        inner = (getattr(chain[-1], "reason", None), *chain[-1].args, chain[-1].__cause__)
        wrapped = [e for e in inner if isinstance(e, BaseException)]
        if not wrapped:
            break
        chain.append(wrapped[0])
    names = " ".join(kind.__name__ for e in chain for kind in type(e).__mro__)
    said = [str(e) for e in reversed(chain) if str(e) not in ("", "timed out")]
    reason = said[0] if said else type(chain[-1]).__name__
    meaning = next(text for pattern, text in NO_ANSWER if re.search(pattern, f"{names} {reason}"))
    url = urlsplit(settings.base_url)
    meaning = meaning.format(reason=one_line(reason), proxy=proxy_for(url.scheme))
    return f"{url.netloc}: {meaning}"


def proxy_for(scheme: str) -> str:
    """The address of the proxy that requests uses, without its password."""
    from urllib.request import getproxies

    proxies = getproxies()
    address = proxies.get(scheme) or proxies.get("all", "")
    return redact(re.sub("^([a-z0-9]+://)?.*@", r"\1", address))


NOT_IN_PLAN = "the account's plan does not include this log, or it is switched off: remove it from DUO_LOG_TYPES"
MEANINGS: Mapping[str, tuple[type[PassFailed], str]] = {  # by Duo's code, HTTP status, or a case of meaning_of()
    "400": (PassFailed, "Duo rejects the request ({reason}): check the since time, and report it"),
    "40101": (Refused, "a header did not reach Duo ({reason}): a proxy strips it"),
    "40104": (Refused, "a header did not reach Duo ({reason}): a proxy strips it"),
    "date": (Refused, "Duo refuses the request's date ({reason}), though it is Duo's own: the next pass tries again"),
    "local date": (Refused, "Duo refuses the request's date ({reason}), which is the local clock's, as /auth/v2/ping"
                   " is not answered: set the clock right"),
    "40112": (Refused, "Duo refuses the type of signature ({reason}): are the keys those of an Admin API application?"),
    "401": (Refused, "Duo refuses the credentials ({reason}): {keys}"),
    "403": (Refused, 'Duo refuses the permission ({reason}): tick "Grant read log" in the Duo Admin Panel,'
            " Applications, your Admin API application, Permissions; and check its Networks for API access."
            " If these keys can read other logs, " + NOT_IN_PLAN),
    "404": (Refused, "Duo does not have this log for the account ({reason}): " + NOT_IN_PLAN),
    "405": (PassFailed, "Duo received a different HTTP method ({reason}): a proxy changes requests"),
    "429": (RateLimited, "rate-limited by Duo ({reason}): raise DUO_INTERVAL if this persists"),
    "500": (Retryable, "Duo fails ({reason}): if this persists, see status.duo.com"),
    "accounts": (Refused, "Duo lists no accounts ({reason}): use the host and keys of an Accounts API application"),
    "child": (Refused, "refused ({reason}): it is in another deployment and needs an Admin API application of its own"),
    "unknown": (Retryable, "Duo answers with an error that it does not document ({reason}): report it"),
    "not Duo's": (Retryable, "not an answer of Duo's API ({reason}, not Duo's JSON): a proxy or a filter answers in its"
                  " place, DUO_API_HOST is not your API hostname, or Duo is down"),
}  # fmt: skip


def meaning_of(answer: Answer, status: int, code: str, words: str, log_type: LogType | None) -> str:
    """The key in MEANINGS of an answer without a page."""
    if status == 429:
        return "429"
    if not answer.is_from_duo:
        return "not Duo's"
    if "cross-deployment" in words.lower():
        return "child"
    if code == "40105" or "bad request timestamp" in words.lower():
        return "date"
    if log_type is None and status in (401, 403):
        return "accounts"
    if code in MEANINGS:
        return code
    if status >= 500:
        return "500"
    return str(status) if str(status) in MEANINGS else "unknown"


# Pages


class Event(NamedTuple):
    """One event: Duo's own text, its identity and its time."""

    text: str  # start of a JSON line: more fields may follow
    identity: str  # its id and time or, if it has no id, `#` and a hash of its content
    time_ms: float  # 0 if missing or invalid


class Page(NamedTuple):
    events: list[Event]
    cursor: str = ""  # for the next page; empty if there is none
    total: int | None = None  # Duo's count of events in the window: a hint only


read_value = json.JSONDecoder().raw_decode
BETWEEN = re.compile(r"[\s,]*")


def split_answer(text: str, log_type: LogType | None) -> tuple[Mapping[str, Any], list[Event]]:
    """Split an answer into its JSON without events, and the events as Duo wrote them; both are
    empty if it is not a JSON object. Text is kept, as re-encoding could change numbers."""
    events: list[Event] = []
    try:
        # Line breaks are found only between tokens: within strings, JSON escapes them.
        text = text.replace("\n", " ").replace("\r", " ")
        opening = log_type and re.search(rf'"{log_type.list_key}"\s*:\s*\[\s*', text)
        if log_type and opening:
            at = opening.end()
            while text[at] != "]":
                value, end = read_value(text, at)
                events.append(read_event(log_type, text[at:end], value))
                at = BETWEEN.match(text, end).end()  # type: ignore[union-attr]
            text = text[: opening.end()] + text[at:]
        answer = json.loads(text)
    except (IndexError, RecursionError, ValueError):
        return {}, []
    return (answer, events) if isinstance(answer, dict) else ({}, [])


ADDED = frozenset(("eventtype", "host", "child_account_id"))  # names that Duo's events do not have


def read_event(log_type: LogType, text: str, value: Any) -> Event:
    """Build an event from its text and its value."""
    if not isinstance(value, dict):
        value = {"event": value}
        text = '{"event":' + text + "}"
    if not ADDED.isdisjoint(value):
        value = without_added(value)
        text = json.dumps(value)
    time_ms = event_time(log_type, value)
    start = text[:-1] + "," if value else "{"
    return Event(start, identity_of(log_type, value, time_ms), time_ms)


def without_added(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in ADDED}


def identity_of(log_type: LogType, value: Mapping[str, Any], time_ms: float) -> str:
    """An event's identity: its id and time in ms or, if it has no id, `#` and a hash of it.

    One id may have two events, such as an authentication that is denied and then marked as fraud a
    minute later (source: fixtures of Elastic, Duo Log Sync and Rapid7; Elastic keys on both).
    """
    event_id = value.get(log_type.id_field)
    if isinstance(event_id, str) and event_id:
        return f"{event_id}@{int(time_ms)}"
    content = json.dumps(value, sort_keys=True).encode()
    return "#" + hashlib.sha256(content).hexdigest()[:32]


def event_time(log_type: LogType, value: Mapping[str, Any]) -> float:
    """An event's time in ms, including a fraction; 0 if it is missing or invalid."""
    given = value.get(log_type.time_field)
    if isinstance(given, (int, float)):
        time_ms = given * log_type.unit_ms
    else:
        try:
            time_ms = parse_iso(str(given))
        except ValueError:
            return 0
    return time_ms if 0 <= time_ms < 10**14 else 0


def read_cursor(value: Any) -> str:
    """The cursor of the next page: a string, an int, or for authentication a list. Raises
    TypeError or ValueError."""
    if value is None:
        return ""
    parts = value if isinstance(value, list) else [value]
    return ",".join(part if isinstance(part, str) else f"{part:d}" for part in parts)


def read_total(value: Any) -> int | None:
    """Read total_objects: an int, or an object with an int value; None if that is only a lower
    bound."""
    if isinstance(value, dict):
        value = value.get("value") if value.get("relation", "eq") == "eq" else None
    return value if isinstance(value, int) else None


# Walks


class Walk:
    """A walk through a window of time (ms, both bounds included), page by page, oldest first.

    Request `parameters`, pass the page to `step`, take the new events from `fresh`, until the walk
    is `done`.

    With a cursor (v2 logs, Trust Monitor) it ends at an empty page, or at a page that is not full
    and either has no cursor or holds as many events as Duo counts. By time (v1 logs, which have no
    cursor, and v2 logs whose cursor fails) it goes on from the newest event's own time, and ends at
    a page that has nothing from the requested mintime to the window's end or, for v1 logs, that has
    fewer than 10 events and nothing newer.
    """

    def __init__(
        self,
        log_type: LogType,
        start_ms: int,
        until_ms: int,
        report_hole: Callable[[int, int, str], None],
        may_end_by_count: bool = True,
    ) -> None:
        """`report_hole` receives the first and the last ms of a hole, and what Duo shows of it.
        `may_end_by_count`: a page with as many events as Duo counts is the last. Not for a
        range: no later pass would notice a wrong count."""
        self.log_type = log_type
        self.start_ms = start_ms
        self.until_ms = until_ms
        self.report_hole = report_hole
        self.may_end_by_count = may_end_by_count
        self.mintime_ms = start_ms - log_type.overlap_ms
        self.cursor = ""
        self.cursors: set[str] = set()  # all so far
        self.fresh: dict[str, Event] = {}  # what the page before did not have, by identity
        self.latest: set[str] = set()  # identities of the latest page
        self.occurrences: Counter[str] = Counter()  # of events without an id
        self.pages = 0
        self.received = 0  # events
        self.total: int | None = None  # Duo's count of events in the window
        self.first_ms = 0  # the first event
        self.newest_ms = start_ms  # the newest event
        self.reached_ms = start_ms  # everything before it has been returned
        # A page this large may be full. Duo documents that one of a v1 log may hold more or fewer
        # than 1,000 events: 10 costs a request now and then, and is safe.
        self.full_page = log_type.page_size if log_type.cursor else 10
        self.cut: tuple[int, str] | None = None  # see step_by_time()
        self.done = False
        self.stuck = False  # there is more, and no way to ask for it

    @property
    def parameters(self) -> dict[str, str]:
        row = self.log_type
        query = {"mintime": str(self.mintime_ms // row.unit_ms)}
        if row.cursor:
            query["maxtime"] = str(self.until_ms // row.unit_ms)
            query["limit"] = str(row.page_size)
        if row.sort:
            query["sort"] = row.sort
        if self.cursor:
            query[row.cursor] = self.cursor
        return query

    def step(self, page: Page) -> None:
        """Take in the page that was requested, and decide how to go on."""
        found = self.identify(page.events)
        self.fresh = {key: event for key, event in found.items() if key not in self.latest}
        self.latest = set(found)
        self.pages += 1
        self.received += len(self.fresh)
        times = [self.log_type.floor(event.time_ms) for event in page.events if event.time_ms]
        within = [time_ms for time_ms in times if self.start_ms <= time_ms <= self.until_ms]
        newest_before_ms = self.newest_ms
        self.note_times(within)
        is_full = len(page.events) >= self.full_page
        if self.log_type.cursor:
            self.step_by_cursor(page, times, is_full)
        elif is_full or self.newest_ms > newest_before_ms:
            self.step_by_time(times, is_full)
        else:
            self.done = True
        if self.done and self.total is not None and self.received < self.total:
            shown = f"{self.received:,} of {counted(self.total, 'event')}"
            self.report_hole(self.start_ms, self.until_ms, shown)

    def identify(self, events: list[Event]) -> dict[str, Event]:
        """A page's events by identity, in the order of their time. Equal events without an id are
        separate events, such as the same act of an administrator twice in a second: they are
        counted."""
        found: dict[str, Event] = {}
        if not self.cursor:  # such a page starts at a whole second or ms, so the count restarts
            self.occurrences.clear()
        for event in sorted(events, key=lambda event: event.time_ms):
            if self.start_ms - self.log_type.overlap_ms <= event.time_ms < self.start_ms:
                continue  # from the extra second requested before the window
            identity = event.identity
            if identity[0] == "#":
                self.occurrences[identity] += 1
                identity = f"{identity[1:]}#{self.occurrences[identity]}"
            found.setdefault(identity, event)
        return found

    def note_times(self, within: list[int]) -> None:
        """Note how far a page gets, and whether an earlier one was cut short."""
        if not within:
            return
        if not self.first_ms:
            self.first_ms = min(within)
        self.newest_ms = max(self.newest_ms, *within)
        if self.log_type.ordered:
            self.reached_ms = self.newest_ms
        if self.cut and self.newest_ms > self.cut[0]:
            at_ms, shown = self.cut
            if at_ms not in within:  # else this page shows it whole
                self.report_hole(at_ms, at_ms, shown)
            self.cut = None

    def step_by_cursor(self, page: Page, times: list[int], is_full: bool) -> None:
        """Follow Duo's cursor. Where the last page has one, Duo's count saves a request: Duo
        recommends one a minute at the most."""
        count = len(page.events)
        if self.pages == 1:
            self.total = page.total
        is_whole = self.may_end_by_count and count == page.total
        is_last = is_whole or not page.cursor
        if count == 0 or (is_last and not is_full):
            self.done = True
        elif self.fresh and page.cursor and page.cursor not in self.cursors:
            self.cursor = page.cursor
            self.cursors.add(page.cursor)
        elif self.log_type.ordered:  # a full page without a cursor, or one that leads nowhere
            self.cursor = ""
            self.step_by_time(times, is_full)
        elif page.cursor:
            self.stuck = True
        else:
            self.done = True
            if self.total is None:  # a full page that may or may not be the last
                self.report_hole(self.start_ms, self.until_ms, f"{self.received:,} events")

    def step_by_time(self, times: list[int], is_full: bool) -> None:
        """Go on from the newest event of a page, until nothing newer comes.

        A full page may cut the events of its last instant short (a second for v1 logs, a ms for
        the others), so that is requested again, with room for more. If a full page holds one
        instant only, the rest of it cannot be requested. Once a newer event is seen, that is
        reported as a hole, unless the page that shows the newer event also shows this instant. A
        page of row.page_size or more is reported at once.
        """
        row = self.log_type
        shown = [time_ms for time_ms in times if self.mintime_ms <= time_ms <= self.until_ms]
        if not shown:
            is_beyond = max(times, default=0) > self.until_ms
            is_whole_page = len(self.latest) >= row.page_size
            self.stuck = is_whole_page and not is_beyond  # no time to go on from
            self.done = not self.stuck
            return
        newest_ms = max(shown)
        if is_full and min(times) == max(times):
            instant = "second" if row.unit_ms == 1000 else "millisecond"
            self.cut = (newest_ms, f"{len(times):,} events of one {instant}")
            if len(times) >= row.page_size:
                self.report_hole(newest_ms, *self.cut)
        self.mintime_ms = max(newest_ms - row.overlap_ms, self.mintime_ms + row.unit_ms)
        if row.cursor and self.mintime_ms >= self.until_ms:  # Duo refuses such a window
            self.done = True


# Checkpoints


# What is reported about a log type; collection does not need it. Counts are since the checkpoint
# file was created; ok, limited, refused and failed are requests by outcome.
HEALTH: Mapping[str, Any] = {
    "events": 0,
    "holes": 0,
    "pass_ms": 0,  # duration of the last pass
    "ok": 0,
    "limited": 0,
    "refused": 0,
    "failed": 0,
    "last_success_ms": 0,  # when a pass last caught up
    "last_error_ms": 0,  # when a pass last failed
    "last_error": "",
}

Metrics = tuple[tuple[str, str, str, str], ...]  # rows of name, more labels, source, help
METRICS: Metrics = (
    ("events_total", "", "events", "Events written."),
    ("holes_total", "", "holes", "Ranges of which Duo did not return all events."),
    ("pass_duration_seconds", "", "pass_ms", "Duration of the last pass."),
    ("checkpoint_timestamp_seconds", "", "since_ms", "Everything up to here has been written."),
    ("last_success_timestamp_seconds", "", "last_success_ms", "When a pass last caught up."),
    ("clock_difference_seconds", "", "clock_ms", "Duo's time minus the local clock."),
    ("requests_total", ',outcome="ok"', "ok", "Requests by outcome."),
    ("requests_total", ',outcome="limited"', "limited", "Requests by outcome."),
    ("requests_total", ',outcome="refused"', "refused", "Requests by outcome."),
    ("requests_total", ',outcome="failed"', "failed", "Requests by outcome."),
)
LATE_METRICS: Metrics = (
    ("late_events_total", "", "late", "Events that --missing-from found missing."),
)


@dataclass
class State:
    """A log type's state between passes, saved under these names in the checkpoint file; in ms."""

    since_ms: int  # the checkpoint: everything up to here has been written
    start_ms: (
        int  # the next pass reads from here; `written` holds all that was written from here on
    )
    written: dict[str, int] = field(default_factory=dict)  # event identity: time in ms
    hole_ms: int = 0  # end of the last hole reported
    health: dict[str, Any] = field(default_factory=lambda: dict(HEALTH))

    def advance(self, since_ms: int, newest_ms: int, lookback_ms: int) -> None:
        """Record that all up to `since_ms` is written. The next pass starts at the lookback or, if
        earlier, the newest known event: when Duo's log pipeline stands still for hours (source:
        status.duo.com, 2020-08-07 to 2023-09-11), what it publishes afterwards is newer."""
        self.since_ms = max(self.since_ms, since_ms)
        self.start_ms = max(self.start_ms, min(self.since_ms - lookback_ms, newest_ms))
        kept = {key: at_ms for key, at_ms in self.written.items() if at_ms >= self.start_ms}
        self.written = kept

    def move_to(self, time_ms: int) -> None:
        """Start again from here, whatever was written."""
        self.since_ms = time_ms
        self.start_ms = time_ms
        self.hole_ms = 0
        self.written = {}


class Checkpoints:
    """The state of all log types, and the file that stores it."""

    def __init__(self, settings: Settings) -> None:
        """Read and check the file. Raises CollectorError."""
        self.path = settings.checkpoint_file
        self.document = read_checkpoint_file(self.path)
        self.states = {}
        for row, start_ms in settings.start_times.items():
            self.states[row] = self.read_state(row, start_ms)
        owner = self.document.get("account", settings.account)
        if settings.base_url and owner != settings.account:
            message = (
                f"belongs to {one_line(str(owner))}, these settings to {settings.account}: "
                'use one file for each; if they are one account, remove "account"'
            )
            raise CollectorError(f"checkpoint file {self.path} {message}", 78)

    def read_state(self, row: LogType, start_ms: int) -> State:
        """A log type's state from the file. Raises CollectorError."""
        value = json.dumps(self.document.get(row.since_key, start_ms // row.unit_ms))
        with fatal_errors(78, f"checkpoint file {self.path}: {row.since_key} is {one_line(value)}"):
            since_ms = row.parse_since(value)
        state = State(since_ms, since_ms)
        try:
            saved = self.document.get("state", {}).get(row.name)
            if saved is None:
                return state
            read_health(state.health, saved.get("health", {}))
            if saved["since_ms"] == since_ms:  # otherwise it was edited: start again
                state.start_ms = min(row.floor(int(saved["start_ms"])), since_ms)
                state.hole_ms = int(saved.get("hole_ms", 0))
                state.written = {
                    upgraded(identity, int(at_ms)): int(at_ms)
                    for identity, at_ms in saved["written"].items()
                }
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            message = '"state" is damaged: restore the file, or remove "state"; events then repeat'
            raise CollectorError(f"checkpoint file {self.path}: {message}", 78) from None
        return state

    @contextlib.contextmanager
    def saving(self, *rows: LogType) -> Iterator[None]:
        """Save all states, and these log types' checkpoints, after the block. The new file is
        complete on the disk before it, so that a full disk fails first. Raises CollectorError."""
        document = dict(self.document)
        for row in rows:
            document[row.since_key] = self.states[row].since_ms // row.unit_ms
        document.pop("state", None)  # to stand last
        document["state"] = {row.name: vars(state) for row, state in self.states.items()}
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        cannot_be_saved = fatal_errors(74, f"checkpoint file {self.path} cannot be saved")
        with cannot_be_saved, replacing(self.path, text):
            yield
        self.document = document


def read_checkpoint_file(path: str) -> dict[str, Any]:
    """What the file holds; nothing if there is none. Raises CollectorError."""
    remedy = "; it should be JSON, and is unchanged: restore it, or move it away to start again"
    try:
        # A FIFO must not block.
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            content = file.read()
    except FileNotFoundError:
        return {}
    except IsADirectoryError:
        raise CollectorError(f"checkpoint file {path} is a folder: name a file in it", 78) from None
    except PermissionError:
        who = f"it belongs to user {owner_of(path)}, and this is {user_name(os.geteuid())}"
        message = f"checkpoint file {path} cannot be read: {who}: run as its owner, or chown it"
        raise CollectorError(message, 78) from None
    except OSError as error:
        raise CollectorError(
            f"checkpoint file {path} cannot be read: {one_line(error)}", 78
        ) from None
    with fatal_errors(78, f"checkpoint file {path} cannot be read", remedy):
        document = json.loads(content.decode())
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
    return document


def owner_of(path: str) -> str:
    """The owner of a file, or of the nearest folder above it that can be seen."""
    try:
        return user_name(os.stat(path).st_uid)
    except OSError:
        return owner_of(os.path.dirname(path))


def user_name(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def read_health(health: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Take over what is valid: nothing depends on it, so the rest is dropped."""
    for name, default in HEALTH.items():
        value: Any = saved.get(name)
        if type(value) is not type(default):
            continue
        if isinstance(value, str) or 0 <= value < 10**14:
            health[name] = value


def upgraded(identity: str, at_ms: int) -> str:
    """An identity as this version writes it: that of 2.0.0 was an id without a time."""
    return identity if "@" in identity or "#" in identity else f"{identity}@{at_ms}"


@contextlib.contextmanager
def replacing(path: str, text: str) -> Iterator[str]:
    """Yield the path of a new file that then replaces this one, with its mode and owner, durably.
    Raises OSError."""
    new = f"{path}.new"
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # left by a run that was killed
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(fd, "w", encoding="ascii") as file:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                old = os.stat(path)
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
                os.fchown(fd, old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(fd)
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
    """What is wrong with the folder of a checkpoint file, and what to do; empty if nothing is."""
    folder = os.path.dirname(path)
    try:
        os.stat(folder)
    except PermissionError:
        return f"no permission to enter a folder above {folder}: it belongs to {owner_of(folder)}"
    except OSError:
        return f"there is no such folder: mkdir -p {folder}"
    if not os.path.isdir(folder):
        return f"{folder} is not a folder: name a file in one"
    # ismount() is wrong on overlayfs
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        if any(line.split()[4] == os.fsencode(path) for line in file):
            return "it is a mount point, which cannot be replaced: mount its folder instead"
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        who = f"it belongs to {owner_of(folder)}, and this is {user_name(os.geteuid())}"
        return f"no permission to read and write folder {folder}: {who}"
    return ""


def lock(path: str) -> IO[bytes]:
    """Lock a file beside the checkpoint file, which saving replaces, until it is closed. Raises
    CollectorError: 75 if another run has it."""
    beside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    with fatal_errors(78, f"checkpoint file {path} cannot be locked"):
        trouble = folder_trouble(path)
        if trouble:
            raise OSError(0, trouble)
        if os.path.exists(beside) and not os.access(beside, os.R_OK):
            raise OSError(0, f"{beside} belongs to {owner_of(beside)}: chown it, or remove it")
        try:
            file: IO[bytes] = open(beside, "ab+", buffering=0)  # NFS wants it open for writing
        except PermissionError:
            file = open(beside, "rb")  # created by another user's run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = one_line(os.pread(file.fileno(), 20, 0).decode(errors="replace"))
            message = f"another run (process {holder}) holds checkpoint file {path}"
            raise CollectorError(f"{message}: wait for it, or stop it", 75) from None
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


# Output


def escape_json(error: UnicodeError) -> tuple[str, int]:
    """Escape what is not ASCII, in str.encode(): JSON has it only in strings."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("escape_json", escape_json)


class Output:
    """Stdout: events as JSON lines, or what --status and --check print."""

    def __init__(self) -> None:
        """Raises CollectorError if there is none."""
        if sys.stdout is None:  # the next file opened would get its number, and the events
            raise CollectorError("stdout is closed: there is nowhere to write to", 74)
        self.fd = sys.stdout.fileno()
        self.is_regular = stat.S_ISREG(os.fstat(self.fd).st_mode)
        os.set_blocking(self.fd, True)  # a process sharing the pipe may have made it non-blocking
        if self.is_regular:
            # With `>`, or systemd's StandardOutput=file:, a second writer, copytruncate or a
            # restart would overwrite lines.
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_APPEND)

    @fatal_errors(74, "stdout cannot be written", "; the checkpoint is unchanged")
    def write(self, lines: list[str]) -> None:
        """Write all of these JSON lines as ASCII; sync a regular file to disk. Raises
        CollectorError."""
        if not lines:
            return
        self.end_half_line(False)
        for first in range(0, len(lines), 64):  # a page in one piece takes twice the system time
            rest = "".join(lines[first : first + 64]).encode("ascii", "escape_json")
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        if self.is_regular:
            os.fsync(self.fd)

    def end_half_line(self, was_interrupted: bool) -> None:
        """Complete the half line left by a run that was killed; checked for each page, as
        --missing-from may append to the same file. `was_interrupted` is used where a file cannot be
        read back. Raises OSError."""
        if not self.is_regular:
            return
        size = os.fstat(self.fd).st_size
        is_half = was_interrupted
        # stdout itself may be open for writing only; on macOS this may not reopen it.
        with contextlib.suppress(OSError), open(f"/dev/fd/{self.fd}", "rb") as file:
            is_half = os.pread(file.fileno(), 1, max(0, size - 1)) != b"\n"
        if size and is_half:
            os.write(self.fd, b"\n")


def find_files(patterns: Sequence[str], since_ms: int) -> list[str]:
    """The files of --missing-from, without those last changed two days before `since_ms`: both
    times are the local clock's, which may be wrong by a day."""
    paths = []
    for pattern in patterns:
        paths += sorted(glob.glob(pattern)) or [pattern]
    oldest_ms = since_ms - 2 * DAY_MS
    is_old = [os.path.isfile(path) and os.path.getmtime(path) * 1000 < oldest_ms for path in paths]
    return list(dict.fromkeys(path for path, old in zip(paths, is_old) if not old))


def open_lines(path: str) -> io.BufferedReader | gzip.GzipFile:
    """Open a file, or standard input as `-`. A file is gzip if its first bytes say so."""
    file = open(0 if path == "-" else path, "rb")
    if file.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    return file


def read_written(settings: Settings, paths: Sequence[str]) -> set[bytes]:
    """Digests of this account's events in files that the collector wrote. Raises CollectorError."""
    found: set[bytes] = set()
    occurrences: Counter[bytes] = Counter()
    rows = {(row.name, settings.host, settings.account_id): row for row in settings.log_types}
    for path in paths:
        with fatal_errors(78, f"--missing-from {path} cannot be read"), open_lines(path) as file:
            for line in file:
                try:
                    value = json.loads(line)
                    of_child = value.get("child_account_id", "")
                    row = rows[value["eventtype"], value["host"], of_child]
                except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
                    continue  # half a line, or not ours
                value = without_added(value)
                identity = identity_of(row, value, event_time(row, value))
                if identity[0] == "#":  # count each copy of an event without an id
                    key = digest(row, identity)
                    occurrences[key] += 1
                    identity = f"{identity[1:]}#{occurrences[key]}"
                found.add(digest(row, identity))
    return found


def digest(log_type: LogType, identity: str) -> bytes:
    """A 16-byte digest of an event's identity: a million of them should fit in memory."""
    text = f"{log_type.name} {identity}".encode(errors="replace")
    return hashlib.blake2b(text, digest_size=16).digest()


# Pace


class Pace:
    """When the next request of a log type is due; times in s, by a monotonic clock.

    Multiplicative increase, multiplicative decrease (MIMD), with a bounded exponential wait after
    a 429. Duo documents no figure and sends no quota headers; 2 to 50 requests a minute are
    reported, and not whether they count by the minute or come back evenly. So the interval between
    two requests finds the limit: a 429 makes it 40 % longer, each page 2.5 % shorter, down to the
    ceiling that is set. The tries after a 429 wait 4, 8, 16, 32 and then 60 s. 61 s are the longest
    interval: Duo recommends no more than one request a minute.
    """

    def __init__(self, requests_per_minute: float) -> None:
        self.shortest = 61 / requests_per_minute
        self.interval = self.shortest
        self.after_429 = 4.0
        self.after_failure = 1.0
        self.due = 0.0

    def page(self, sent: float) -> None:
        """The request sent at `sent` returned a page."""
        self.interval = max(self.shortest, 0.975 * self.interval)
        self.after_429 = 4.0
        self.after_failure = 1.0
        self.due = sent + self.interval

    def limited(self, sent: float) -> None:
        """The request sent at `sent` was answered with 429."""
        self.interval = max(self.shortest, min(61, 1.4 * self.interval))
        self.due = sent + max(self.shortest, self.after_429 * random.uniform(1, 1.1))
        self.after_429 = min(60, 2 * self.after_429)

    def failed(self, now: float) -> None:
        """A request failed at `now`, which says nothing about the limit: back off exponentially,
        with jitter."""
        self.due = now + max(self.shortest, self.after_failure * random.uniform(0.75, 1.25))
        self.after_failure = min(60, 2 * self.after_failure)


# Modes: what is wanted of an event, and what is done with a page


class Collection:
    """Ordinary collection: every event is wanted, and each page moves the checkpoint."""

    metrics = METRICS

    def __init__(self, settings: Settings, output: Output, checkpoints: Checkpoints) -> None:
        self.settings = settings
        self.output = output
        self.checkpoints = checkpoints
        self.states = checkpoints.states
        self.metrics_file = settings.metrics_file
        self.has_failed = False

    def start_at(self, since_ms: int, until_ms: float) -> None:
        """Move every log type to --since at once, so that it holds whatever becomes of the first
        pass. Warn of what that passes over or repeats. Raises CollectorError."""
        for row in self.settings.log_types:
            state = self.states[row]
            start_ms = row.floor(since_ms)
            if was_collected(state) and state.since_ms != start_ms:
                does = "repeats" if start_ms < state.since_ms else "passes over"
                first_ms, last_ms = sorted((start_ms, state.since_ms))
                message = "%s: --since %s the events from %s to %s"
                log.warning(message, row.name, does, iso(first_ms), iso(last_ms))
            state.move_to(start_ms)
        with self.checkpoints.saving(*self.settings.log_types):
            pass

    def end_ms(self, row: LogType) -> float:
        """Where a log type's range ends; that ms is not in it. Raises PassFailed."""
        return math.inf

    def wants(self, row: LogType, identity: str) -> bool:
        return True

    def commit(self, lines: list[str], *rows: LogType) -> None:
        """Write lines and save these log types' checkpoints. Raises CollectorError.

        A failure ends the process. Until then no other thread may save: the states in memory say
        that the page is written.
        """
        if self.has_failed:
            raise Stopped
        if rows:
            self.has_failed = True
            self.checkpoints.document["account"] = self.settings.account
        with self.checkpoints.saving(*rows):
            self.output.write(lines)
        self.has_failed = False

    def result(self, collector: Collector) -> tuple[int, str]:
        """The level and the text of the message at the end of a pass."""
        events = counted(collector.new_events, "event")
        requests = counted(collector.requests, "request")
        return logging.INFO, f"{events} in {requests}, up to {collector.up_to}"

    def value(self, collector: Collector, source: str) -> float:
        """The value of a metric."""
        if source == "since_ms":
            return collector.state.since_ms
        if source == "clock_ms":
            return collector.duo.clock.difference_s * 1000
        value: float = collector.health[source]
        return value


class Replay(Collection):
    """A range is printed; no checkpoint is read or moved."""

    def __init__(self, settings: Settings, output: Output) -> None:
        self.settings = settings
        self.output = output
        self.states = {row: State(0, 0) for row in settings.log_types}
        self.until_ms = math.inf
        self.metrics_file = ""

    def start_at(self, since_ms: int, until_ms: float) -> None:
        self.until_ms = until_ms
        for row, state in self.states.items():
            state.move_to(row.floor(since_ms))

    def end_ms(self, row: LogType) -> float:
        return row.floor(self.until_ms) if self.until_ms < math.inf else math.inf

    def commit(self, lines: list[str], *rows: LogType) -> None:
        self.output.write(lines)


class Reconciliation(Replay):
    """--missing-from: what files do not hold is printed, of the range that the service has read."""

    metrics = LATE_METRICS

    def __init__(
        self,
        settings: Settings,
        output: Output,
        service: Checkpoints,
        files: str,
        in_files: set[bytes],  # digests
    ) -> None:
        super().__init__(settings, output)
        self.service = service
        self.files = files  # as they were given
        self.in_files = in_files
        self.compared: Counter[LogType] = Counter()
        if settings.metrics_file:
            root, extension = os.path.splitext(settings.metrics_file)
            self.metrics_file = f"{root}-missing{extension}"  # not the service's
        self.before = read_late(self.metrics_file, settings.account)

    def end_ms(self, row: LogType) -> float:
        """Where the next ordinary pass starts to read, at the latest, so that both may append to
        one file."""
        end_ms = super().end_ms(row)
        if not self.service.document:
            return end_ms
        service = self.service.states[row]
        if service.since_ms <= self.states[row].since_ms:
            raise PassFailed(
                f"by checkpoint file {self.service.path}, collection has got to "
                f"{iso(service.since_ms)}, not beyond --since: nothing can be compared"
            )
        return min(end_ms, service.start_ms)

    def wants(self, row: LogType, identity: str) -> bool:
        self.compared[row] += 1
        return digest(row, identity) not in self.in_files

    def result(self, collector: Collector) -> tuple[int, str]:
        level = logging.WARNING if collector.new_events else logging.INFO
        events = counted(self.compared[collector.log_type], "event")
        missing = f"{collector.new_events:,} missing from {self.files}"
        return level, f"of {events} up to {collector.up_to}, {missing}"

    def value(self, collector: Collector, source: str) -> float:
        return self.before[collector.log_type.name] + collector.new_events


def read_late(path: str, account: str) -> Counter[str]:
    """How many late events a metrics file counts, by log type: the counter goes on from run to
    run."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        sample = (
            rf'late_events_total{{host="{re.escape(account)}",log_type="(\w+)"}} ([0-9]{{1,15}})'
        )
        for name, count in re.findall(sample, file.read()):
            found[name] = int(count)
    return found


# Passes


class Run:
    """What the threads of a run share."""

    def __init__(
        self, settings: Settings, edges: Edges, mode: Collection, once: bool, stderr: StderrHandler
    ) -> None:
        self.settings = settings
        self.edges = edges
        self.mode = mode
        self.once = once
        self.stderr = stderr
        self.clock = Clock(edges)
        self.writing = edges.lock()  # held while a page is written and its checkpoint saved
        self.last_said = ("", 0.0)  # text, and when in s by the monotonic clock

    def is_news(self, text: str) -> bool:
        """Whether this is not what was said last, in the last minute: what all log types meet is
        told once."""
        before, said_at = self.last_said
        now = self.edges.monotonic()
        self.last_said = (text, now)
        return text != before or now - said_at > 60


class Collector:
    """Collects one log type, pass after pass, in its own thread."""

    def __init__(self, run: Run, log_type: LogType) -> None:
        settings = run.settings
        self.run = run
        self.log_type = log_type
        self.state = run.mode.states[log_type]
        self.health = self.state.health
        self.duo = Duo(settings, run.edges, run.clock)
        self.pace = Pace(settings.requests_per_minute)
        added = {"eventtype": log_type.name, "host": settings.host}  # as Duo's own client adds them
        if settings.account_id:
            added["child_account_id"] = settings.account_id  # as Duo Log Sync does
        self.added_fields = json.dumps(added, separators=(",", ":"))[1:] + "\n"
        self.end_ms = math.inf  # of a range; not in it
        self.walk: Walk | None = None  # of the pass under way
        self.so_far = (0, 0, 0)  # of that: new events, events received, ms reached
        self.failing: dict[type[Retryable], float] = {}  # since when, in s by the monotonic clock
        self.status = 0
        self.passes = 0  # ended
        self.began = 0.0  # the pass, in s by the monotonic clock
        self.requests = 0  # in this pass
        self.new_events = 0  # in this pass

    @property
    def up_to(self) -> str:
        """How far collection has got, for display."""
        return iso(min(self.state.since_ms, self.end_ms))

    def collect(self) -> None:
        """The thread's work: pass after pass, or one pass."""
        try:
            while True:
                self.run_pass()
                if self.run.once:
                    return
                self.wait(self.run.settings.interval_s)
        except Stopped:
            if self.requests:
                self.save_health()

    def wait(self, seconds: float) -> None:
        """Raises Stopped if the process is to end."""
        if self.run.edges.wait(max(0.0, seconds)):
            raise Stopped

    def run_pass(self) -> None:
        self.began = self.run.edges.monotonic()
        self.requests = 0
        self.new_events = 0
        self.so_far = (0, 0, 0)
        self.failing = {}
        try:
            self.read_window()
        except PassFailed as problem:
            self.end_pass(problem)
        else:
            self.end_pass(None)

    def read_window(self) -> None:
        """Read up to Duo's now less its delay, page by page. Raises PassFailed."""
        self.run.clock.update(self.duo)
        self.end_ms = self.run.mode.end_ms(self.log_type)
        walk = self.open_walk()
        if walk.start_ms >= walk.until_ms:  # Duo would refuse it
            self.check_clock()
            self.skip_expired(walk)
            return
        while not walk.done:
            if self.is_expiring(walk):
                walk = self.open_walk()
            walk.step(self.fetch(walk))
            self.skip_expired(walk)
            self.write(walk)
            self.walk = walk  # from now on there is something to show
            if walk.stuck:
                raise PassFailed("Duo has more, but gives no way to ask for it: report it")

    def open_walk(self) -> Walk:
        """A walk through the window to read now. It may be empty, or end before it starts."""
        row = self.log_type
        now_ms = self.run.clock.now_ms()
        start_ms = self.state.start_ms
        if row.kept_days:
            # A window of exactly 180 days has expired by the time the request arrives (source: Duo
            # Log Sync #34, elastic/integrations #11621).
            start_ms = max(start_ms, now_ms - row.kept_days * DAY_MS + HOUR_MS)
        served_ms = (now_ms - row.delay_ms) // 1000 * 1000  # whole seconds suit all logs
        until_ms = int(min(served_ms, self.end_ms))
        may_end_by_count = self.end_ms == math.inf
        return Walk(row, start_ms, until_ms, self.report_hole, may_end_by_count)

    def is_expiring(self, walk: Walk) -> bool:
        """Whether Duo is about to refuse the start of a walk, as the pages of a first run can take
        more than an hour."""
        kept_ms = self.log_type.kept_days * DAY_MS
        return kept_ms > 0 and walk.start_ms < self.run.clock.now_ms() - kept_ms + HOUR_MS // 6

    def check_clock(self) -> None:
        """Raise PassFailed if the window is empty for no good reason."""
        if self.end_ms < math.inf:  # the range ends before it begins
            return
        if not self.run.clock.is_duos:
            raise PassFailed(
                "/auth/v2/ping is not answered, and by the local clock there is nothing to read "
                "yet: check the clock"
            )
        ahead_ms = self.state.since_ms - self.run.clock.now_ms()
        if ahead_ms > 0:
            where = f"{self.log_type.since_key} in {self.run.settings.checkpoint_file}"
            ahead = duration(ahead_ms)
            raise PassFailed(f"{where} is {ahead} ahead of now: set it back to collect again")

    def fetch(self, walk: Walk) -> Page:
        """The page that the walk asks for, however often that takes. Raises PassFailed."""
        edges = self.run.edges
        while True:
            self.wait(self.pace.due - edges.monotonic())
            sent = edges.monotonic()
            self.requests += 1
            try:
                page = self.duo.fetch_page(self.log_type, walk.parameters)
            except Retryable as problem:
                self.health[problem.outcome] += 1
                self.postpone(problem, sent)
            except PassFailed as problem:
                self.health[problem.outcome] += 1
                self.pace.due = sent + self.pace.interval
                raise
            else:
                self.health["ok"] += 1
                self.failing = {}
                self.pace.page(sent)
                return page

    def postpone(self, problem: Retryable, sent: float) -> None:
        """Put the next request off, after one that was sent at `sent` (s, monotonic) failed.
        Raises GivenUp when requests have failed for `patience_s`."""
        now = self.run.edges.monotonic()
        if isinstance(problem, RateLimited):
            self.failing.pop(Retryable, None)  # Duo can be reached: patience starts again
            self.pace.limited(sent)
        else:
            self.pace.failed(now)
        kind = type(problem)
        is_first = kind not in self.failing
        give_up = self.failing.setdefault(kind, sent) + problem.patience_s
        self.pace.due = max(self.pace.due, now + problem.retry_after_s)
        if problem.retry_after_s and now + problem.retry_after_s > give_up:
            raise GivenUp(f"{problem}; given up for this pass") from None
        if not is_first and now >= give_up:
            raise GivenUp(f"{problem}; given up for this pass") from None
        is_news = is_first and self.run.is_news(str(problem))
        level = logging.INFO if is_news else logging.DEBUG
        again = duration((self.pace.due - now) * 1000)
        log.log(level, "%s: %s; trying again in %s", self.log_type.name, problem, again)

    def skip_expired(self, walk: Walk) -> None:
        """If Duo no longer serves what is before this walk, move the checkpoint to its start, and
        say so: as a warning, unless that is merely where collection starts by default."""
        row = self.log_type
        since_ms = self.state.since_ms
        if walk.start_ms <= since_ms:
            return
        if since_ms == row.floor(SEED_MS):
            message = f"starts {row.kept_days} days back, as far as Duo serves (to start elsewhere: --since)"
            if self.run.is_news(message):
                log.info("first run: %s", message)
        else:
            message = "%s: Duo serves only the last %d days; passed over: %s to %s"
            end = iso(min(walk.start_ms, self.end_ms))
            log.warning(message, row.name, row.kept_days, iso(since_ms), end)
        with self.run.writing:
            self.state.since_ms = walk.start_ms
            self.state.start_ms = walk.start_ms

    def write(self, walk: Walk) -> None:
        """Write what is new on the walk's page, then save the checkpoint. Raises CollectorError."""
        state = self.state
        lines = []
        times = {}
        latest_ms = walk.until_ms + 2 * self.log_type.delay_ms  # v1 logs show what is younger, too
        for identity, event in walk.fresh.items():
            is_odd = not walk.start_ms <= event.time_ms <= latest_ms
            times[identity] = walk.until_ms if is_odd else int(event.time_ms)
            if identity in state.written or event.time_ms >= self.end_ms:
                continue
            if self.run.mode.wants(self.log_type, identity):
                lines.append(event.text + self.added_fields)
        since_ms = walk.until_ms if walk.done else walk.reached_ms
        lookback_ms = int(self.run.settings.lookback_s * 1000)
        with self.run.writing:
            self.new_events += len(lines)
            self.health["events"] += len(lines)
            if walk.done:
                self.health["last_success_ms"] = self.run.clock.now_ms()
            state.written.update(times)
            state.advance(since_ms, min(walk.newest_ms, since_ms), lookback_ms)
            self.run.mode.commit(lines, self.log_type)
        self.so_far = (self.new_events, walk.received, walk.reached_ms)
        walk.fresh = {}  # memory: the next page may be long in coming
        if walk.done and walk.cut:
            self.tell_full_second(*walk.cut)

    def tell_full_second(self, at_ms: int, shown: str) -> None:
        """Say that the newest second fills a page: there may be more. Of a range, no later pass
        will show it."""
        if self.end_ms < math.inf:
            self.report_hole(at_ms, at_ms, shown)
        elif self.new_events:
            message = "%s: up to %s, Duo shows %s; later passes will show whether there are more"
            log.info(message, self.log_type.name, iso(at_ms), shown)

    def report_hole(self, first_ms: int, last_ms: int, shown: str) -> None:
        """Report and count a hole (events that Duo has but does not return) once, even if later
        passes find it too."""
        if first_ms > self.state.hole_ms:
            self.state.hole_ms = last_ms
            self.health["holes"] += 1
            where = f"from {iso(first_ms)} to {iso(last_ms)}"
            message = "%s: perhaps a hole: %s Duo shows only %s"
            log.warning(message, self.log_type.name, where, shown)

    def end_pass(self, problem: PassFailed | None) -> None:
        """Say how the pass ended, and keep it for --status."""
        run = self.run
        self.walk = None
        self.passes += 1
        self.status = problem.status if problem else 0
        self.duo.session.close()  # Duo would have closed the connection by the next pass
        level, text = run.mode.result(self)
        if problem:
            level = logging.ERROR
            is_known = isinstance(problem, GivenUp) and not run.is_news(f"end: {problem}")
            why = "given up for the same reason" if is_known else str(problem)
            text = f"{text}; {why}" if self.requests else why
        if not run.once:
            text += f"; next pass in {duration(run.settings.interval_s * 1000)}"
        log.log(level, "%s: %s", self.log_type.name, text)
        self.health["pass_ms"] = int((run.edges.monotonic() - self.began) * 1000)
        if problem:
            self.health["last_error_ms"] = run.clock.now_ms()
            self.health["last_error"] = redact(str(problem))
            self.save_health()

    def save_health(self) -> None:
        """Collection does not need it, so a failure stops nothing."""
        with self.run.writing, contextlib.suppress(CollectorError, Stopped):
            self.run.mode.commit([])


# Reports: all by the main thread


class Reports:
    """Shows how far the passes have got, and writes the metrics."""

    EVERY_S = 30.0

    def __init__(self, run: Run, collectors: Sequence[Collector]) -> None:
        self.run = run
        self.collectors = collectors
        self.due = -math.inf  # s, by the monotonic clock
        self.passes = 0

    def update(self) -> None:
        """Called often. On a terminal the progress is shown in place."""
        now = self.run.edges.monotonic()
        walks = [(collector, collector.walk) for collector in self.collectors]
        under_way = [(collector, walk) for collector, walk in walks if walk]
        lines = [progress(collector, walk, now) for collector, walk in under_way]
        self.run.stderr.show(lines)
        passes = sum(collector.passes for collector in self.collectors)
        if now < self.due and passes == self.passes:
            return
        self.passes = passes
        if now >= self.due:
            self.due = now + self.EVERY_S
            for collector, walk in under_way:
                if not self.run.stderr.is_terminal and now >= collector.began + self.EVERY_S:
                    log.info("%s", progress(collector, walk, now))
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write the file for node_exporter's textfile collector. A failure stops nothing."""
        path = self.run.mode.metrics_file
        if not path:
            return
        try:
            with replacing(path, format_metrics(self.run, self.collectors)) as new:
                os.chmod(new, 0o644)  # despite the umask: node_exporter runs as another user
        except OSError as error:
            log.warning("DUO_METRICS_FILE %s cannot be written: %s", path, one_line(error))


def progress(collector: Collector, walk: Walk, now: float) -> str:
    """How far a pass has got: the share of the window, the time left, events so far, the rate, the
    time reached. The share is measured from the first event: there may be none for years before."""
    elapsed_s = max(0.001, now - collector.began)
    events, received, reached_ms = collector.so_far
    rate = received / elapsed_s * 60
    text = f"{counted(events, 'event')} so far, {rate:,.0f} a minute"
    text += f", up to {iso(reached_ms)}"
    done = reached_ms - walk.first_ms
    to_do = walk.until_ms - walk.first_ms
    if walk.total and collector.log_type.ordered:
        done = received
        to_do = walk.total
    if done <= 0 or not walk.first_ms:
        return f"{collector.log_type.name}: just started; {text}"
    share = min(1.0, done / max(1, to_do))
    left = duration(elapsed_s * (1 / share - 1) * 1000)
    return f"{collector.log_type.name}: {share:.0%}, {left} left; {text}"


def format_metrics(run: Run, collectors: Sequence[Collector]) -> str:
    """The metrics of a run, in Prometheus' text format. HELP lines are the same for all tenants:
    without them, node_exporter before 1.4 drops the series of all but one."""
    lines: list[str] = []
    for name, labels, key, explanation in run.mode.metrics:
        kind = "counter" if name.endswith("_total") else "gauge"
        head = f"# HELP duo_collector_{name} {explanation}\n# TYPE duo_collector_{name} {kind}\n"
        if head not in lines:
            lines.append(head)
        for collector in collectors:
            log_type = collector.log_type.name
            labels_of_log = f'host="{run.settings.account}",log_type="{log_type}"{labels}'
            value = run.mode.value(collector, key)
            if key.endswith("_ms"):
                value = value / 1000
            lines.append(f"duo_collector_{name}{{{labels_of_log}}} {value}\n")
    return "".join(lines)


def was_collected(state: State) -> bool:
    """Whether a page of this log type ever came."""
    return bool(state.health["ok"] or state.health["events"] or state.health["last_success_ms"])


def show_status(settings: Settings, edges: Edges, as_json: bool) -> int:
    """Show how far each log type has got, and how its passes ended; return the exit status."""
    output = Output()
    checkpoints = Checkpoints(settings)
    now_ms = int(edges.now() * 1000)
    if not checkpoints.document:
        message = "checkpoint file %s is empty or does not exist yet"
        log.info(message, checkpoints.path)
    shown = {}
    late = []
    for row in settings.log_types:
        status = status_of(row, checkpoints.states[row], now_ms)
        shown[row.name] = status
        lag_s = status["lag_seconds"]
        if lag_s is None or abs(lag_s) * 1000 > settings.max_lag_ms:
            late.append(row.name)
        if not as_json:
            output.write([f"{row.name:20}{describe(status, now_ms)}\n"])
    if as_json:
        output.write([json.dumps(shown) + "\n"])
    if not late or settings.max_lag_ms == math.inf:
        return 0
    limit = duration(settings.max_lag_ms)
    message = "%s: behind or ahead by more than %s, or not started: %s"
    log.error(message, checkpoints.path, limit, ", ".join(late))
    return PassFailed.status


def status_of(row: LogType, state: State, now_ms: int) -> dict[str, Any]:
    """How far a log type has got; times in ISO 8601, None for what has never been."""
    health = state.health
    since_ms = state.since_ms
    is_started = was_collected(state)
    if row.kept_days and not is_started:
        since_ms = max(since_ms, now_ms - row.kept_days * DAY_MS + HOUR_MS)
    times = {key: health[f"{key}_ms"] for key in ("last_success", "last_error")}
    return {
        "checkpoint": iso(since_ms),
        "lag_seconds": (now_ms - since_ms) // 1000 if is_started else None,
        "last_error": health["last_error"] or None,
        "last_error_time": iso(times["last_error"]) if times["last_error"] else None,
        "last_success": iso(times["last_success"]) if times["last_success"] else None,
    }


def describe(status: Mapping[str, Any], now_ms: int) -> str:
    """A line of --status."""

    def ago(time: str) -> str:
        return duration(now_ms - parse_iso(time)) + " ago"

    lag_s = status["lag_seconds"]
    if lag_s is None:
        text = f"not started; will start at {status['checkpoint']}"
    else:
        where = "behind" if lag_s >= 0 else "ahead of"
        text = f"{status['checkpoint']}  {duration(abs(lag_s) * 1000)} {where} now, last success "
        text += ago(status["last_success"]) if status["last_success"] else "never"
    if status["last_error_time"]:
        text += f", last error {ago(status['last_error_time'])}: {status['last_error']}"
    return text


# The command line


def check(settings: Settings, edges: Edges) -> int:
    """Make a small request for each log type, and print the result; return the worst exit
    status."""
    output = Output()
    Checkpoints(settings)
    clock = Clock(edges)
    problems: dict[LogType, PassFailed] = {}

    def ask(row: LogType, duo: Duo) -> None:
        clock.update(duo)
        until_ms = clock.now_ms() - row.delay_ms
        walk = Walk(replace(row, page_size=1), until_ms - 60_000, until_ms, print)
        try:
            duo.fetch_page(row, walk.parameters)
        except PassFailed as problem:
            problems[row] = problem

    requests = [partial(ask, row, Duo(settings, edges, clock)) for row in settings.log_types]
    if edges.side_by_side(requests, lambda: None):
        return PassFailed.status
    before = ""
    for row in settings.log_types:
        result = redact(str(problems.get(row, "ok")))
        is_same = result == before and row in problems
        output.write([f"{row.name}: {'the same' if is_same else result}\n"])
        before = result
    if LOG_TYPES["activity"] not in settings.log_types:
        log.info("activity is not among the log types: see DUO_LOG_TYPES in .env.example")
    trouble = lock_trouble(settings.checkpoint_file)
    if trouble:
        output.write([f"{trouble}\n"])
    return max([78 if trouble else 0, *(problem.status for problem in problems.values())])


def lock_trouble(path: str) -> str:
    """Why the checkpoint file can never be locked; empty if it can be, or another run holds it."""
    try:
        lock(path).close()
    except CollectorError as error:
        if error.status == 78:
            return str(error)
    return ""


def list_accounts(settings: Settings, edges: Edges) -> int:
    """Print the child accounts of an Accounts API application. Sources: duo.com/docs/accountsapi,
    duo_client."""
    output = Output()
    clock = Clock(edges)
    duo = Duo(settings, edges, clock)
    answers = []

    def ask() -> None:
        clock.update(duo)
        answers.append(duo.ask("/accounts/v1/account/list", {}, post={}))

    if edges.side_by_side([ask], lambda: None):
        return PassFailed.status
    accounts = answers[0].fields.get("response")
    if answers[0].status != 200 or not isinstance(accounts, list):
        raise duo.refusal(answers[0], None)
    output.write([json.dumps(account) + "\n" for account in accounts])
    return 0


def collect(
    settings: Settings, edges: Edges, options: argparse.Namespace, stderr: StderrHandler
) -> int:
    """Collect, in one pass or in passes until stopped; return the exit status. Raises
    CollectorError."""
    path = settings.checkpoint_file
    output = Output()
    if options.missing_from is not None:
        service = Checkpoints(settings)  # read before the files, which then hold all that is older
        mode: Collection = reconciliation(settings, options, output, service, edges)
        return run_mode(Run(settings, edges, mode, True, stderr), was_interrupted=True)
    if settings.until:
        mode = Replay(settings, output)
        return run_mode(Run(settings, edges, mode, True, stderr), was_interrupted=True)
    with lock(path):
        checkpoints = Checkpoints(settings)
        for row in settings.log_types:
            if row.since_key in checkpoints.document and os.environ.get(row.since_key):
                since = iso(checkpoints.states[row].since_ms)
                log.info("%s is not used: the checkpoint file says %s", row.since_key, since)
        run = Run(settings, edges, Collection(settings, output, checkpoints), options.once, stderr)
        return run_mode(run, was_interrupted=os.path.exists(f"{path}.new"))


def reconciliation(
    settings: Settings,
    options: argparse.Namespace,
    output: Output,
    service: Checkpoints,
    edges: Edges,
) -> Reconciliation:
    """Read the files of --missing-from. Raises CollectorError."""
    assert settings.since
    paths = find_files(options.missing_from, settings.since(int(edges.now() * 1000)))
    in_files = read_written(settings, paths)
    files = " ".join(options.missing_from)[:300]
    if not in_files:
        message = "--missing-from %s holds no event of this account, so everything will be printed"
        log.warning(message, files)
    return Reconciliation(settings, output, service, files, in_files)


def run_mode(run: Run, was_interrupted: bool) -> int:
    """Run the passes of all log types side by side; return the exit status. Raises
    CollectorError."""
    with fatal_errors(74, "stdout cannot be written"):
        run.mode.output.end_half_line(was_interrupted)
    settings = run.settings
    edges = run.edges
    collectors = [Collector(run, row) for row in settings.log_types]
    if settings.since:
        prepare = partial(apply_since, run, collectors[0].duo)
        if edges.side_by_side([prepare], lambda: None):
            return PassFailed.status if run.once else 0
    reports = Reports(run, collectors)
    reports.update()
    stopped = edges.side_by_side([one.collect for one in collectors], reports.update)
    reports.update()
    if not stopped:
        return max(collector.status for collector in collectors)
    if not run.writing.acquire(blocking=False):  # else nothing is written any more
        message = "stopped by a signal while writing a page: stdout's reader or the disk is slow"
        raise CollectorError(f"{message}; nothing is lost, the page comes again", 74)
    for collector in collectors:
        if collector.walk:
            log.info("%s: %s; stopped", collector.log_type.name, run.mode.result(collector)[1])
    log.info("stopped by a signal; everything written is checkpointed")
    return PassFailed.status if run.once else 0


def apply_since(run: Run, duo: Duo) -> None:
    """Resolve --since and --until by Duo's time, and start there. Raises CollectorError."""
    settings = run.settings
    assert settings.since
    run.clock.update(duo)
    now_ms = run.clock.now_ms()
    since_ms = settings.since(now_ms)
    until_ms = settings.until(now_ms) if settings.until else math.inf
    for option, time_ms in (("--since", since_ms), ("--until", until_ms)):
        if now_ms < time_ms < math.inf:
            ahead = duration(time_ms - now_ms)
            raise CollectorError(f"{option}: {iso(time_ms)} is {ahead} ahead of now", 2)
    if until_ms <= since_ms:
        raise CollectorError("--until: write a time later than --since", 2)
    run.mode.start_at(since_ms, until_ms)


class Threads:
    """Runs functions side by side, and ends them on SIGTERM or SIGINT."""

    GRACE_S = 3.0  # for a page that is being written, or an answer that is on its way
    WAKE_S = 1.0

    def __init__(self) -> None:
        self.stop = threading.Event()
        # What ended: None for a signal, else a thread, with its exception if it raised one. A
        # signal handler may put into this; setting an event there can deadlock.
        self.ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

    def side_by_side(
        self, functions: Sequence[Callable[[], object]], report: Callable[[], object]
    ) -> bool:
        """Run each function in its own thread, and call `report` each second, until all have
        ended. Returns whether a signal stopped them: at the latest GRACE_S after it, even if one
        hangs. What a function raises stops the others in the same way, and is raised here."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ended.put(("signal", None)))
        for function in functions:
            threading.Thread(target=self.run, args=(function,), daemon=True).start()
        running = len(functions)
        deadline = math.inf
        signalled = False
        error: BaseException | None = None
        while running and time.monotonic() < deadline:
            try:
                what, raised = self.ended.get(timeout=self.WAKE_S)
            except queue.Empty:
                report()
                continue
            if what == "signal":
                signalled = True
            else:
                running -= 1
                error = error or raised
            if (signalled or error) and not self.stop.is_set():
                self.stop.set()
                deadline = time.monotonic() + self.GRACE_S
        if error:
            raise error
        return signalled

    def run(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            self.ended.put(("thread", error))
        else:
            self.ended.put(("thread", None))

    def wait(self, seconds: float) -> bool:
        """Wait for so many s; return True at once if the process is to end."""
        return self.stop.wait(seconds)


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CollectorError(f"{message} (see --help)", 2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line. Raises CollectorError."""
    parser = ArgumentParser(
        prog="duo_collector.py",
        allow_abbrev=False,
        description="Collect Cisco Duo's audit logs as JSON lines.",
        epilog="Options override environment variables, which override the settings file "
        "(.env.example). Exit status: 0 caught up or stopped; 2 command line; 74 output; "
        "75 temporary, run again; 77 refused; 78 setting or file.",
    )
    add = parser.add_argument
    mode = parser.add_mutually_exclusive_group()
    level = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--once",
        action="store_true",
        help="run one pass until caught up, then exit (cron or a timer)",
    )
    add(
        "--interval",
        metavar="SECONDS",
        help="pause between passes, in s or as 10m (default: DUO_INTERVAL, or 300)",
    )
    add(
        "--log-types",
        metavar="LIST",
        help=f"any of {','.join(LOG_TYPES)} (default: DUO_LOG_TYPES, or the first 3)",
    )
    add(
        "--since",
        metavar="WHEN",
        help="start here (UTC), not at the checkpoint: 2026-11-01, 2026-11-01T08:00Z, 24h",
    )
    add(
        "--until",
        metavar="WHEN",
        help="with --since: print that range, and do not move the checkpoint",
    )
    add(
        "--missing-from",
        metavar="FILE",
        nargs="+",
        help="with --since: print the events that Duo has and these files"
        " lack: paths, patterns, gzip, - for stdin",
    )
    add("--env-file", metavar="PATH", help="settings file (default: .env beside the script)")
    add(
        "--checkpoint-file",
        metavar="PATH",
        help="the checkpoint file (DUO_CHECKPOINT_FILE, or checkpoints.json)",
    )
    mode.add_argument(
        "--check",
        action="store_true",
        help="send a small request per log type; print ok or what to fix",
    )
    mode.add_argument(
        "--status",
        action="store_true",
        help="show how far each log type has got, without a request",
    )
    mode.add_argument(
        "--accounts",
        action="store_true",
        help="list the child accounts of an Accounts API application",
    )
    add(
        "--max-lag",
        metavar="AGE",
        help="with --status: exit 75 if any is further behind or ahead, such as 15m",
    )
    add("--json", action="store_true", help="with --status: one JSON object")
    level.add_argument("-v", "--verbose", action="store_true", help="log every request")
    level.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    needs = {"until": "since", "missing_from": "since", "max_lag": "status", "json": "status"}
    for name, needed in needs.items():
        if getattr(options, name) not in (None, False) and not getattr(options, needed):
            parser.error(f"--{name.replace('_', '-')} needs --{needed}")
    if options.since and (options.check or options.status or options.accounts):
        parser.error("--since cannot be used with --check, --status or --accounts")
    return options


PRIORITIES = {
    logging.ERROR: "<3>",
    logging.WARNING: "<4>",
    logging.INFO: "<6>",
    logging.DEBUG: "<7>",
}


class StderrHandler(logging.Handler):
    """Writes each message as a line, on a terminal with the progress of the passes below. Its
    failures are ignored: collection does not depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0  # lines of progress
        self.is_blocked = False  # nobody reads it
        self.is_terminal = False
        self.is_journal = False
        with contextlib.suppress(OSError):
            is_alone = os.isatty(2) and not os.isatty(1)
            self.is_terminal = is_alone and os.environ.get("TERM", "dumb") != "dumb"
            stream = os.fstat(2)  # a service's child inherits the variable, but not always stderr
            self.is_journal = os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
        layout = "%(levelname)s %(message)s"
        if not self.is_journal:
            layout = "%(asctime)s " + layout
        formatter = logging.Formatter(layout, "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        priority = PRIORITIES[record.levelno] if self.is_journal else ""
        # Up to 4,096 bytes, select() reports whether a pipe takes them.
        self.write(f"{priority}{redact(self.format(record))[:4000]}\n")

    def show(self, lines: list[str]) -> None:
        """Show the progress in place of what was shown before."""
        if not self.is_terminal or not log.isEnabledFor(logging.INFO):
            return
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            width = os.get_terminal_size(2).columns or 80
            if lines or self.shown:
                self.write("".join(f"{line[:width]}\n" for line in lines))
            self.shown = len(lines)

    def write(self, text: str) -> None:
        """Wait a second at most for a reader of stderr, and no more until there is one: SIGTERM has
        to end the process."""
        erase = f"\x1b[{self.shown}F\x1b[J" if self.shown else ""
        self.shown = 0
        with contextlib.suppress(OSError):
            self.is_blocked = not select.select([], [2], [], 0 if self.is_blocked else 1)[1]
            if not self.is_blocked:
                os.write(2, (erase + text).encode(errors="backslashreplace"))


def main(arguments: list[str] | None = None, edges: Edges | None = None) -> int:
    """Run the command line; return the exit status. `edges` defaults to the real ones."""
    if not edges:
        threads = Threads()
        edges = Edges(
            time.time,
            time.monotonic,
            threads.wait,
            threading.Lock,
            open_session,
            threads.side_by_side,
        )
        for number in (signal.SIGTERM, signal.SIGINT):  # PID 1 has no default action
            signal.signal(number, lambda number, _: os._exit(128 + number))
    stderr = StderrHandler()
    log.handlers = [stderr if sys.stderr is not None else logging.NullHandler()]
    try:
        options = parse_options(arguments)
        if options.verbose:
            log.setLevel(logging.DEBUG)
        else:
            log.setLevel(logging.WARNING if options.quiet else logging.INFO)
        settings = load_settings(options, os.environ, load_env_file(options.env_file))
        if options.status:
            return show_status(settings, edges, options.json)
        if options.check:
            return check(settings, edges)
        if options.accounts:
            return list_accounts(settings, edges)
        return collect(settings, edges, options, stderr)
    except (CollectorError, PassFailed) as error:
        log.error("%s", error)
        return error.status
    except ModuleNotFoundError as error:
        log.error(
            "%s is not installed for %s: recreate the environment with python3 -m venv --clear "
            ".venv and .venv/bin/python -m pip install -r requirements.txt, then use its Python",
            error.name,
            sys.executable,
        )
        return 78


if __name__ == "__main__":
    # Nothing is buffered, and a thread may hang in a request or a write.
    os._exit(main())
