#!/usr/bin/env python3
"""Collect Cisco Duo's audit logs as JSON lines.

The collector signs requests to Duo's Admin API, reads the authentication, administrator and
telephony logs (activity, offline_enrollment and trust_monitor too, by name), each from its own
checkpoint, and writes every event as a line of JSON to stdout, for a log shipper to pick up:

    duo_collector.py --check      do the host, the keys and the permission work?
    duo_collector.py --once       one pass until caught up, then exit: for cron or a timer
    duo_collector.py              a pass, a pause, a pass, until SIGTERM or SIGINT
    duo_collector.py --status     where has each log type got to?

The promise: every event that Duo publishes is written at least once, and twice only where the
process ended, however it did, between writing a page and saving its checkpoint. So a page is written and
flushed first, then the checkpoint is saved; and as Duo publishes some events late, each pass reads
a little of the past again, and drops what was written before.

The file reads in the order in which data flows: log types, settings, signing, requests, pages,
windows, checkpoints, output, pace, the pass, the command line. Inside, a time is in milliseconds
since 1970, a duration says its unit in its name; units are converted where data comes in or goes out.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import contextlib
import email.utils
import fcntl
import functools
import hashlib
import hmac
import importlib.util
import io
import json
import logging
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
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import accumulate, islice
from operator import itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar
from urllib.parse import quote, urlsplit

if sys.version_info < (3, 9):  # noqa: UP036
    sys.exit(f"duo_collector.py needs Python 3.9 or newer; this is {sys.version.split()[0]}")
if TYPE_CHECKING:  # at run time it is imported where it is needed: it takes longer than all of --status
    import requests

__version__ = "1.0.0"
T = TypeVar("T")
log = logging.getLogger("duo_collector")


class CollectorError(Exception):
    """Ends the process: the line for the user, and the exit status."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class GaveUp(Exception):
    """Ends one log type's pass; the next pass tries again."""

    status, outcome = 75, "failed"


class Refused(GaveUp):
    """Duo refuses the credentials, the permission or the log type."""

    status, outcome = 77, "refused"


class BadRequest(GaveUp):
    """Duo answers 400: to the parameters, or to a cursor that it has forgotten."""


class Failed(Exception):
    """A request failed in passing: no connection, no answer in time, a 5xx, nonsense."""

    status, outcome = 75, "failed"
    patience_s = 30  # after so long with nothing else the log type is given up for this pass

    def __init__(self, reason: str, retry_after_s: float = 0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Limited(Failed):
    """Duo answers 429: too many requests."""

    outcome = "limited"
    patience_s = 300


# Log types


@dataclass(frozen=True)
class LogType:
    """One of Duo's logs: all in which it differs from the others. Source: duo.com/docs/adminapi#logs."""

    name: str
    path: str
    since_key: str  # in the environment and in the checkpoint file
    unit_ms: int  # of Duo's bounds and of the checkpoint: 1 (13 digits) or 1000 (10 digits)
    list_key: str  # the member of the answer that holds the events
    time_field: str  # ISO 8601, or a number in the unit
    id_field: str | None = None  # None: an event is known by its content
    page_size: int = 1000
    cursor: str | None = None  # the parameter that asks for the next page; None: a later mintime does
    sort: str | None = None  # where a log can be sorted, newest first is the default
    kept_days: int | None = None  # an earlier mintime is answered with 400; None: any is taken
    delay_ms: int = 120_000  # Duo shows nothing younger; who asks for it loses what is published in between

    @property
    def ordered(self) -> bool:
        """Whether no page holds events older than those of the page before it."""
        return self.sort is not None or self.cursor is None

    def parse_since(self, text: str) -> int:
        """Read a since time in this log type's unit, as ms. Raises ValueError."""
        digits = 10 if self.unit_ms == 1000 else 13
        if not re.fullmatch(f"[1-9][0-9]{{{digits - 1}}}", text):
            unit = "seconds" if digits == 10 else "milliseconds"
            raise ValueError(f"write {unit} since 1970, {digits} digits such as {SEED_MS // self.unit_ms}")
        return int(text) * self.unit_ms


MS, SECONDS = 1, 1000
SEED_MS = 1661022959934  # 2022-08-20: where collection starts unless told otherwise

LOG_TYPES = {
    log_type.name: log_type
    for log_type in (
        LogType("authentication", "/admin/v2/logs/authentication", "AUTH_SINCE_TIME", MS, "authlogs",
                "isotimestamp", "txid", cursor="next_offset", sort="ts:asc", kept_days=180),
        LogType("administrator", "/admin/v1/logs/administrator", "ADMIN_SINCE_TIME", SECONDS, "response",
                "timestamp"),
        LogType("telephony", "/admin/v2/logs/telephony", "TELEPHONY_SINCE_TIME", MS, "items",
                "ts", "telephony_id", cursor="next_offset", sort="ts:asc", kept_days=180),
        LogType("activity", "/admin/v2/logs/activity", "ACTIVITY_SINCE_TIME", MS, "items",
                "ts", "activity_id", cursor="next_offset", sort="ts:asc", kept_days=180),
        LogType("offline_enrollment", "/admin/v1/logs/offline_enrollment", "OFFLINE_ENROLLMENT_SINCE_TIME",
                SECONDS, "response", "timestamp"),
        LogType("trust_monitor", "/admin/v1/trust_monitor/events", "TRUST_MONITOR_SINCE_TIME", MS, "events",
                "surfaced_timestamp", "sekey", page_size=200, cursor="offset", kept_days=180),
    )
}  # fmt: skip
DEFAULT_LOG_TYPES = "authentication,administrator,telephony"


# Settings


@dataclass(frozen=True)
class Settings:
    """Everything that a run is told, checked."""

    base_url: str
    host: str  # lower case, no port: what is signed, and what every event carries
    integration_key: str
    secret_key: str = field(repr=False)
    log_types: tuple[LogType, ...]
    checkpoint_file: str
    seeds: Mapping[LogType, int]  # ms
    since: str | None  # as given: an age counts from now by Duo's clock
    interval_s: float
    requests_per_minute: float
    lookback_ms: int
    until: str | None = None  # as given; with it the range is printed, and no checkpoint read or moved
    max_lag_ms: int | None = None
    metrics_file: str | None = None


def load_env_file(path: str, required: bool) -> None:
    """Put the settings of a .env file into the environment; what is there already wins. Raises CollectorError."""
    from dotenv import dotenv_values

    try:
        with open(path, encoding="utf-8-sig") as file:
            values = dotenv_values(stream=io.StringIO(file.read()), interpolate=False)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        if required:
            raise CollectorError(f"--env-file {path}: there is no such file", 78) from None
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CollectorError(f"settings file {path} cannot be read: {reason}", 78) from None
    if stat.S_ISREG(mode) and mode & 0o077:
        log.warning("%s can be read by other users, and may hold the secret key: chmod 600 it", path)
    for name, value in values.items():
        try:
            os.environ.setdefault(name, value or "")
        except ValueError:
            raise CollectorError(f"settings file {path}: {name!r} cannot be a variable", 78) from None


def load_settings(options: argparse.Namespace, environ: Mapping[str, str], now_ms: int) -> Settings:
    """Check all that a run needs: an option before its variable before the default. Raises CollectorError."""

    def setting(variable: str, default: str, parse: Callable[[str], T], option: str = "") -> T:
        given = getattr(options, option[2:].replace("-", "_")) if option else None
        text = given if given is not None else environ.get(variable) or default
        try:
            return parse(text)
        except (ValueError, OSError) as wrong:
            label, status = (variable, 78) if given is None else (option, 2)
            found = f"is {one_line(repr(text))}" if text else "is not set" if given is None else "is empty"
            raise CollectorError(f"{label} {found}: {wrong}", status) from None

    def asked(option: str, parse: Callable[[str], T]) -> T | None:
        """What an option says that has neither a variable nor a default."""
        return setting("", "", parse, option) if getattr(options, option[2:].replace("-", "_")) is not None else None

    def when(text: str) -> str:
        parse_when(text, now_ms)
        return text

    setting("REQUESTS_CA_BUNDLE", "", parse_bundle)
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints.json")
    online = not options.status  # --status makes no request, so it needs no host and no keys
    base_url, host = setting("DUO_API_HOST", "", parse_host) if online else ("", "")
    settings = Settings(
        base_url=base_url,
        host=host,
        integration_key=parse_key("DUO_INTEGRATION_KEY", environ.get("DUO_INTEGRATION_KEY", "")) if online else "",
        secret_key=load_secret_key(environ) if online else "",
        log_types=setting("DUO_LOG_TYPES", DEFAULT_LOG_TYPES, parse_log_types, "--log-types"),
        checkpoint_file=setting("DUO_CHECKPOINT_FILE", beside, parse_path, "--checkpoint-file"),
        seeds={row: setting(row.since_key, str(SEED_MS // row.unit_ms), row.parse_since) for row in LOG_TYPES.values()},
        since=asked("--since", when),
        until=asked("--until", when),
        max_lag_ms=asked("--max-lag", parse_age),
        interval_s=setting("DUO_INTERVAL", "300", number("seconds", 0.01, 86_400), "--interval"),
        requests_per_minute=setting("DUO_REQUESTS_PER_MINUTE", "50", number("requests", 1, 1_000_000)),
        lookback_ms=int(setting("DUO_LOOKBACK", "300", number("seconds", 0, 86_400)) * 1000),
        metrics_file=setting("DUO_METRICS_FILE", "", parse_metrics_file) if online and options.until is None else None,
    )
    if settings.metrics_file == settings.checkpoint_file:
        raise CollectorError("DUO_METRICS_FILE names the checkpoint file: write another path", 78)
    return settings


def parse_host(text: str) -> tuple[str, str]:
    """Read DUO_API_HOST as (base URL, host name). Raises ValueError."""
    scheme, _, rest = text.rpartition("://")
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    match = re.fullmatch(rf"(?P<name>{label}(\.{label})*|\[::1\])(?P<port>:[0-9]{{1,5}})?", rest)
    if scheme not in ("https", "http", "") or not match or int((match["port"] or ":0")[1:]) > 65535:
        raise ValueError("write https://api-XXXXXXXX.duosecurity.com, the API hostname with nothing after it")
    name, port = match["name"].lower(), match["port"] or ""
    loopback = re.fullmatch(r"localhost|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\]", name)
    if not loopback and "." not in name:
        raise ValueError("write the whole API hostname, as api-XXXXXXXX.duosecurity.com")
    if scheme == "http" and not loopback:
        raise ValueError("write https://; plain http:// is for a loopback address only")
    if port and not loopback:
        raise ValueError(f"write it without {port}; Duo answers on the standard port")
    return f"{scheme or 'https'}://{name}{port}", name.strip("[]")


def parse_key(label: str, text: str) -> str:
    """Check a key for what copying most often adds to it, without showing it. Raises CollectorError."""
    if not text:
        raise CollectorError(f"{label} is not set, in the environment or the settings file", 78)
    for found, pattern in (
        ("a space or line break at its start or end", r"\s.*|.*\s"),
        ("quotes in it", r".*[\"'`].*"),
        ("a space or line break in it", r".*\s.*"),
        ("characters in it that no Duo key has", r".*[^!-~].*"),
    ):
        if re.fullmatch(pattern, text, re.DOTALL):
            raise CollectorError(f"{label} has {found}: write the bare key, as the Duo Admin Panel shows it", 78)
    return text


def load_secret_key(environ: Mapping[str, str]) -> str:
    """The key in the file that DUO_SECRET_KEY_FILE names, or else DUO_SECRET_KEY. Raises CollectorError."""
    path = environ.get("DUO_SECRET_KEY_FILE")
    if not path:
        return parse_key("DUO_SECRET_KEY", environ.get("DUO_SECRET_KEY", ""))
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(10_000)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CollectorError(f"DUO_SECRET_KEY_FILE {path!r} cannot be read: {reason}", 78) from None
    if not text.strip():
        raise CollectorError(f"DUO_SECRET_KEY_FILE {path!r} is empty: write the secret key to it", 78)
    return parse_key(f"the key in DUO_SECRET_KEY_FILE {path!r}", text[:-1] if text.endswith("\n") else text)


def parse_log_types(text: str) -> tuple[LogType, ...]:
    """Read a comma-separated list of log types. Raises ValueError."""
    names = [name.strip() for name in text.split(",")]
    if not all(name in LOG_TYPES for name in names):
        raise ValueError("write one or more of " + ",".join(LOG_TYPES))
    return tuple(LOG_TYPES[name] for name in dict.fromkeys(names))


def parse_path(text: str) -> str:
    """Read a path, links followed: what a link names is to be replaced, not the link. Raises ValueError."""
    if not text or "\0" in text:
        raise ValueError("write the path of a file")
    return os.path.realpath(text)


def parse_metrics_file(text: str) -> str | None:
    """Read the path of a file to write, and see that it can be written. Raises ValueError."""
    if not text:
        return None
    path = os.path.realpath(text)
    folder = os.path.dirname(path)
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError("write the path of a file, in a folder that may be written to")
    if importlib.util.find_spec("prometheus_client") is None:
        raise ValueError("that needs one package more: .venv/bin/pip install prometheus_client")
    return path


def parse_bundle(text: str) -> str:
    """Check REQUESTS_CA_BUNDLE, which requests reads by itself. Raises ValueError."""
    if text and not os.path.exists(text):
        raise ValueError("write the path of a file or folder of certificates; there is none")
    return text


def number(unit: str, least: float, most: float) -> Callable[[str], float]:
    """A parser of plain decimal numbers from `least` to `most`, which raises ValueError."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
            raise ValueError(f"write a number of {unit} from {least:g} to {most:,.0f}")
        return float(text)

    return parse


DAY_MS = 86_400_000
AGES_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
EPOCH, MILLISECOND = datetime(1970, 1, 1, tzinfo=timezone.utc), timedelta(milliseconds=1)


def parse_age(text: str) -> int:
    """Read a length of time such as 90m, as ms. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,7})([smhdw])", text)
    if not match:
        raise ValueError("write a length of time as 90s, 15m, 24h or 7d")
    return int(match[1]) * AGES_MS[match[2]]


def parse_when(text: str, now_ms: int) -> int:
    """Read --since or --until (ISO 8601, UTC unless it says otherwise; an age; now) as ms. Raises ValueError."""
    try:
        when_ms = now_ms if text == "now" else parse_iso(text)
        when_ms = now_ms - parse_age(text) if when_ms is None else when_ms
    except ValueError:
        example = "write a time as 2026-11-01 or 2026-11-01T08:00Z, an age as 90m, 24h or 7d, or now"
        raise ValueError(example) from None
    if when_ms > now_ms:
        raise ValueError(f"that is {duration(when_ms - now_ms)} ahead of now")
    return max(int(when_ms), 10**12)  # 2001, before Duo was; an earlier time has too few digits for the file


def parse_iso(text: str) -> float | None:
    """Read an ISO 8601 time as ms, UTC unless it says otherwise; None when it is none."""
    try:
        parsed = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)  # 3.10 knows no Z
        return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)) - EPOCH) / MILLISECOND
    except (ValueError, OverflowError):
        return None


def iso(time_ms: float) -> str:
    """A time for people: UTC, whole seconds."""
    return (EPOCH + timedelta(seconds=time_ms // 1000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(length_ms: float) -> str:
    """A duration for people, in its two largest units: 3 d 4 h, 5 min 10 s."""
    seconds, parts = int(length_ms // 1000), []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts += [f"{count:,} {unit}"] if count else []
    return " ".join(parts[:2]) or "0 s"


def counted(count: int, noun: str) -> str:
    """1 event, 1,203 events."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# Signing


def canonical_query(parameters: Mapping[str, str]) -> str:
    """The query string that Duo signs: percent-encoded as in RFC 3986, sorted by encoded name.

    It is sent as it is signed, so that nothing between the two can differ.
    """
    encoded = ((quote(name, "~"), quote(text, "~")) for name, text in parameters.items())
    return "&".join(f"{name}={text}" for name, text in sorted(encoded))


SHA512_OF_NOTHING = hashlib.sha512(b"").hexdigest()


@dataclass(frozen=True)
class DuoSignature:
    """Signs a prepared GET as Duo's own client does: HMAC-SHA512, signature version 5.

    requests calls it, as its auth object, last before sending; having one, it does not look into
    .netrc. Source: duo.com/docs/adminapi#authentication, and client.py of duo_client.
    """

    integration_key: str
    secret_key: str = field(repr=False)
    host: str
    date: str  # RFC 2822; Duo refuses one more than five minutes off, so each request has its own

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        url = urlsplit(request.url or "")
        body = headers = SHA512_OF_NOTHING  # a GET has no body, and we send no X-Duo-* header
        lines = (self.date, request.method or "", self.host.lower(), url.path, url.query, body, headers)
        digest = hmac.new(self.secret_key.encode(), "\n".join(lines).encode(), hashlib.sha512).hexdigest()
        credentials = base64.b64encode(f"{self.integration_key}:{digest}".encode()).decode()
        request.headers.update({"Date": self.date, "Authorization": f"Basic {credentials}"})
        return request


# Requests

CONNECT_S, SILENCE_S, ANSWER_S = 10, 20, 30  # what a connection, the next byte, a whole answer may take
ANSWER_BYTES = 64_000_000  # a page of 1,000 events has some 1.5 million
CLOCK_S, JITTER_S = 30, 5  # by how much a local clock may be off Duo's without a warning, and without notice
CLOCK_ERROR_MS = 1_800_000  # a checkpoint that is less ahead of now may well be right, and the local clock wrong


class Answer(NamedTuple):
    """What came back over HTTP, whatever it is; times by the local clock."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_ms: float
    received_ms: float  # when its first byte came

    @property
    def date_ms(self) -> float | None:
        """The server's clock, in whole seconds."""
        return parse_http_date(self.headers.get("Date", ""))

    @property
    def retry_after_s(self) -> float:
        """How long the server asks to wait, at most an hour: seconds, or a date on its clock; 0 where it does not."""
        text = self.headers.get("Retry-After", "")
        if re.fullmatch("[0-9]{1,9}", text):
            return min(3600, float(text))
        return min(3600, max(0, (parse_http_date(text) or 0) - (self.date_ms or self.received_ms)) / 1000)


def parse_http_date(text: str) -> float | None:
    """A date from a header as ms, UTC unless it says otherwise; None where it is none."""
    try:
        date = email.utils.parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() * 1000
    except (IndexError, TypeError, ValueError, OverflowError):
        return None


class Duo:
    """Duo's Admin API over one kept-alive connection, and what is known of Duo's clock."""

    def __init__(self, settings: Settings, clock_offset_s: float = 0) -> None:
        import requests

        self.settings = settings
        self.clock_offset_s = clock_offset_s  # to be added to the local clock
        self.clock_warned = False
        self.session = requests.Session()
        self.session.headers["User-Agent"] = f"duo_collector/{__version__}"
        # A redirect is nothing that Duo does. requests would read it even if told not to follow it.
        self.session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]

    def now_ms(self) -> int:
        """Duo's clock, as far as it is known."""
        return int((time.time() + self.clock_offset_s) * 1000)

    def get(self, path: str, parameters: Mapping[str, str]) -> Answer:
        """One signed request, one answer of any kind. Raises Failed where none came."""
        sent_ms, settings, chunks = time.time() * 1000, self.settings, list[bytes]()
        date = email.utils.formatdate(sent_ms / 1000 + self.clock_offset_s)
        signature = DuoSignature(settings.integration_key, settings.secret_key, settings.host, date)
        try:
            url = f"{settings.base_url}{path}?{canonical_query(parameters)}"
            with deadline(ANSWER_S):
                response = self.session.get(url, auth=signature, timeout=(CONNECT_S, SILENCE_S), stream=True)
                received_ms = time.time() * 1000
                for chunk in response.iter_content(ANSWER_BYTES + 1):
                    chunks.append(chunk)
                    if sum(map(len, chunks)) > ANSWER_BYTES:
                        raise Failed(f"an answer of more than {ANSWER_BYTES:,} bytes")
        except Failed:
            self.session.close()  # so that the rest of that answer is not taken for the next one
            raise
        except Exception as error:  # whatever requests and urllib3 make of a proxy, a header or a certificate
            raise Failed(f"no answer from {settings.host}: {why_none(error)}") from None
        body = b"".join(chunks)
        log.debug("GET %s: %d, %s", url, response.status_code, counted(len(body), "byte"))
        return Answer(response.status_code, response.headers, body, sent_ms, received_ms)

    def ask_clock(self) -> None:
        """Learn Duo's clock where no log can be asked for; without an answer the local one has to do."""
        with contextlib.suppress(Failed, ValueError, RecursionError):
            answer = self.get("/auth/v2/ping", {})
            if isinstance(json.loads(answer.body), dict):  # or it is the page of a proxy
                self.learn_clock(answer)

    def learn_clock(self, answer: Answer) -> float | None:
        """Compare the local clock with the Date of an answer, which is returned if it can be believed (ms).

        Warns, once, where they are far apart.
        """
        # An accepted request had a date that was about right, so an answer an hour from it is not dated rightly.
        signed_ms = answer.sent_ms + self.clock_offset_s * 1000
        if answer.date_ms is None or (answer.status == 200 and abs(answer.date_ms - signed_ms) > 3_600_000):
            return None
        # Duo stamped it, in whole seconds, between our sending and receiving. Clocks that may be equal are
        # taken as equal; for others the lower bound is taken, so that no window reaches beyond what Duo shows.
        equal = answer.sent_ms - 1000 < answer.date_ms <= answer.received_ms
        self.clock_offset_s = 0 if equal else (answer.date_ms - answer.received_ms) / 1000
        if abs(self.clock_offset_s) > CLOCK_S and not self.clock_warned:
            self.clock_warned = True
            off_s, side = abs(self.clock_offset_s), "behind" if self.clock_offset_s > 0 else "ahead of"
            log.warning("local clock is %.0f s %s Duo's; collecting by Duo's, but set it right", off_s, side)
        return answer.date_ms


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise Failed in a block that takes longer; a timeout of requests is for one read only."""

    def expire(*_: Any) -> NoReturn:
        raise Failed(f"no complete answer within {seconds:g} s")

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


NO_CONNECTION = "no connection ({said}): a firewall or a missing HTTPS_PROXY, or Duo is down"
UNREACHABLE = {  # by the class of an exception of requests, urllib3 or Python: what it means, and what to do
    "InvalidURL": "an address that cannot be read: look at HTTPS_PROXY",  # its text may hold a password
    "ProxyError": "the proxy refuses, or is not there ({said}): look at HTTPS_PROXY and NO_PROXY",
    "gaierror": "the name does not resolve ({said}): look at DUO_API_HOST, DNS, and for a missing HTTPS_PROXY",
    "SSLCertVerificationError": "its certificate is not trusted ({said}): look at DUO_API_HOST; where a proxy inspects"
    " TLS, name its CA file in REQUESTS_CA_BUNDLE",
    "SSLError": "no TLS ({said}): look at DUO_API_HOST, HTTPS_PROXY and REQUESTS_CA_BUNDLE",
    "ReadTimeoutError": "nothing in time ({said}): a firewall or proxy that swallows requests, or Duo is slow",
    "ConnectionResetError": "the connection was cut ({said}): a firewall or proxy, or Duo is down",
    "ConnectTimeoutError": NO_CONNECTION,
    "ConnectionRefusedError": NO_CONNECTION,
}


def why_none(error: BaseException) -> str:
    """Why there was no answer: the reason that requests and urllib3 have wrapped up, and what to do about it."""
    chain = [error]
    for outer in chain:
        inner = (getattr(outer, "reason", None), *outer.args, outer.__cause__)
        chain += [e for e in inner if isinstance(e, BaseException)][:1]
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    meaning = next((text for name, text in UNREACHABLE.items() if name in names), "{said}")
    said = next((e for e in chain[::-1] if str(e) not in ("", "timed out")), error)  # the one around that says what did
    return meaning.format(said=one_line(str(said) or type(chain[-1]).__name__))


def one_line(text: str) -> str:
    """Text from outside, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in discreet(text)[:300]).strip()


def discreet(text: str) -> str:
    """Text without what may be a secret key in a wrong place, or the password of a proxy."""
    return re.sub(r"//[^/\s]*@", "//***@", re.sub("[A-Za-z0-9]{32,}", "***", text))


# Pages


class Event(NamedTuple):
    """One event: as Duo wrote it, and the two things that are read of it."""

    text: str  # the beginning of a line of JSON in ASCII: more fields may follow
    identity: str  # its id or, where it has none, `#` and a hash of its content
    time_ms: float | None  # None: missing or odd


class Page(NamedTuple):
    """What one request brought."""

    events: list[Event]
    cursor: str | None
    total: int | None  # events in the window, says Duo: a hint
    date_ms: float | None  # Duo's clock when it answered, if that is known


def request_page(duo: Duo, log_type: LogType, parameters: Mapping[str, str]) -> Page:
    """One page from one request; from two where a wrong local clock had signed the first.

    Raises Refused, BadRequest, Limited or Failed.
    """
    for signed_again in (False, True):
        offset_s = duo.clock_offset_s
        answer = duo.get(log_type.path, parameters)
        envelope, events = split_answer(answer.body, log_type)
        # What is not Duo's own JSON may be the page of a proxy, with a clock of its own.
        date_ms = duo.learn_clock(answer) if envelope.get("stat") in ("OK", "FAIL") else None
        if answer.status != 401 or abs(duo.clock_offset_s - offset_s) <= JITTER_S or signed_again:
            break
    response = envelope.get("response")
    holder = response if isinstance(response, dict) else envelope
    if answer.status != 200 or envelope.get("stat") != "OK" or holder.get(log_type.list_key) != [] or events is None:
        raise refusal(duo, answer, envelope)
    metadata = holder.get("metadata") or envelope.get("metadata") or {}  # duo_client looks in both places
    try:
        cursor, total = read_cursor(metadata.get("next_offset")), read_total(metadata.get("total_objects"))
        return Page(events, cursor, total, date_ms)
    except (AttributeError, ValueError):
        raise Failed(f"an answer with metadata that make no sense: {one_line(str(metadata))}") from None


read_value = json.JSONDecoder(parse_constant=int).raw_decode  # int fails on NaN and Infinity, as JSON does
NOT_ASCII = re.compile(rb"[\x80-\xff]+")
BETWEEN = re.compile(r"\s*(?:,\s*(?=[^\s\]])|(?=\]))")


def split_answer(body: bytes, log_type: LogType) -> tuple[dict[str, Any], list[Event] | None]:
    """Split an answer into its JSON with the list of events emptied, and the events.

    An event's text goes out as it came in: decoded and encoded again, its numbers would change.
    What is not a JSON object comes back as an empty one; where there is no list, its place holds None.
    """
    events: list[Event] | None = None
    try:
        text = body.decode("ascii", "json").replace("\n", " ").replace("\r", " ")  # which only stand between tokens
        opening = re.search(rf'"{log_type.list_key}"\s*:\s*\[\s*', text)
        if opening:
            events, at = [], opening.end()
            while text[at] != "]":
                value, end = read_value(text, at)
                events.append(read_event(log_type, text[at:end], value))
                between = BETWEEN.match(text, end)
                at = between.end() if between else len(text)
            text = text[: opening.end()] + text[at:]
        envelope = json.loads(text, parse_constant=int)
    except (IndexError, RecursionError, ValueError):
        return {}, None
    return (envelope, events) if isinstance(envelope, dict) else ({}, None)


@functools.lru_cache(maxsize=10_000)  # names and places come again and again
def escaped(text: bytes) -> str:
    """UTF-8 as JSON escapes it inside a string; a wrong byte should not keep an event back."""
    return json.dumps(text.decode(errors="replace"))[1:-1]


def escape(error: UnicodeError) -> tuple[str, int]:
    """Read what is not ASCII; in JSON it is inside strings only."""
    assert isinstance(error, UnicodeDecodeError)
    run = NOT_ASCII.match(error.object, error.start)
    assert run
    return escaped(run[0]), run.end()


codecs.register_error("json", escape)


def read_event(log_type: LogType, text: str, value: Any) -> Event:
    """An event from its text and its value. Only the text is kept: a page of values takes ten times as much."""
    if not isinstance(value, dict):
        value, text = {"event": value}, '{"event":' + text + "}"
    if "eventtype" in value or "host" in value:  # which are ours
        value = {name: item for name, item in value.items() if name not in ("eventtype", "host")}
        text = json.dumps(value)
    identity = value.get(log_type.id_field)
    if not isinstance(identity, str) or not identity:
        content = json.dumps(value, sort_keys=True)
        identity = "#" + hashlib.sha256(content.encode()).hexdigest()[:32]
    return Event(text[:-1] + "," if value else "{", identity, event_time(log_type, value.get(log_type.time_field)))


def event_time(log_type: LogType, value: Any) -> float | None:
    """An event's time in ms, fraction included; None where it is odd."""
    if isinstance(value, str):
        time_ms = parse_iso(value)
    elif isinstance(value, (int, float)):
        time_ms = value * log_type.unit_ms
    else:
        return None
    return time_ms if time_ms is not None and 0 <= time_ms < 10**14 else None


def read_cursor(value: Any) -> str | None:
    """The cursor of the next page: a string, an int, or for authentication a list. Raises ValueError."""
    if value in (None, "", []):
        return None
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, (str, int)) for part in parts):
        raise ValueError("a cursor of another kind")
    return ",".join(map(str, parts))


def read_total(value: Any) -> int | None:
    """total_objects: an int, or an object that has one as its value and says that it is not just a lower bound."""
    if isinstance(value, dict):
        value = value.get("value") if value.get("relation", "eq") == "eq" else None
    return value if isinstance(value, int) else None


HEADER_LOST = "Duo misses a header ({said}): a proxy in between takes it away"
MEANINGS: Mapping[str, tuple[type[GaveUp], str]] = {  # by Duo's code, or else by status: shared by several codes
    "400": (BadRequest, "Duo does not accept the request ({said}): look at the since time, and report it"),
    "40101": (Refused, HEADER_LOST),
    "40104": (Refused, HEADER_LOST),
    "40105": (Refused, "Duo refuses the date of the request ({said}): {clock}"),
    "40112": (Refused, "Duo refuses the kind of signature ({said}): are the keys those of an Admin API application?"),
    "401": (Refused, "Duo refuses the credentials ({said}): {suspect}"),
    "403": (Refused, 'Duo refuses the permission ({said}): tick "Grant read log" in the Duo Admin Panel, Applications,'
            " your Admin API application, Permissions; and see its Networks for API access"),
    "404": (Refused, "Duo does not have this log for the account ({said}): take it out of DUO_LOG_TYPES"),
    "405": (BadRequest, "Duo got another method than GET ({said}): a proxy in between changes requests"),
}  # fmt: skip


def refusal(duo: Duo, answer: Answer, envelope: Mapping[str, Any]) -> Exception:
    """What an answer without a page means, in Duo's words and ours."""
    code, status = str(envelope.get("code", "")), answer.status
    if status == 200 and re.fullmatch("[45][0-9]{4}", code):  # a failure, for all that it says 200
        status = int(code[:3])
    words = [str(status), code, *(str(envelope[key]) for key in ("message", "message_detail") if envelope.get(key))]
    said = one_line(" ".join(word for word in words if word).replace(duo.settings.secret_key, "***"))
    kind, meaning = MEANINGS.get(code if code[:3] == str(status) else "") or MEANINGS.get(str(status)) or (None, "")
    if kind and (envelope or status in (401, 403)):  # a 404 without JSON is somebody else's
        return kind(meaning.format(said=said, clock=clock_words(duo), suspect=suspect(duo, code)))
    if status == 429:
        return Limited(f"Duo limits requests ({said}): raise DUO_INTERVAL if that stays so", answer.retry_after_s)
    if status >= 500 and envelope:
        return Failed(f"Duo fails ({said}): if it stays so, see status.duo.com", answer.retry_after_s)
    return Failed(f"an answer that is not Duo's, or makes no sense ({said}): a proxy's?", answer.retry_after_s)


def clock_words(duo: Duo) -> str:
    """What is to be done about a refused date."""
    off_s = abs(duo.clock_offset_s)
    if off_s > CLOCK_S:
        return f"the local clock is {off_s:,.0f} s off Duo's, set it right"
    return f"the local clock is within {max(1, off_s):.0f} s of Duo's, so it is Duo's trouble, and will pass"


def suspect(duo: Duo, code: str) -> str:
    """Which setting it most likely is when Duo refuses the credentials, from what can be seen of it.

    Duo's integration keys have 20 characters and begin with DI, its secret keys have 40. Source: duo.com/docs/adminapi.
    """
    settings, length = duo.settings, len(duo.settings.secret_key)
    if re.fullmatch("DI.{18}", settings.secret_key):
        return "the secret key looks like an integration key; are the two swapped?"
    if not re.fullmatch("DI.{18}", settings.integration_key):
        return f"DUO_INTEGRATION_KEY has {len(settings.integration_key)} characters; Duo's have 20 and begin with DI"
    if length != 40:
        return f"the secret key has {length} characters, Duo's have 40; copy it anew, with no space before or after it"
    if abs(duo.clock_offset_s) > CLOCK_S:
        return clock_words(duo)
    if code == "40102":
        return "DUO_INTEGRATION_KEY is not known at DUO_API_HOST; take both from one Admin API application"
    wrong = "DUO_SECRET_KEY does not fit DUO_INTEGRATION_KEY, or DUO_API_HOST is another account's"
    return f"{wrong}; copy all three anew, without stray spaces"


# Windows, and the requests that read them


class Window(NamedTuple):
    """A span of time to read, both bounds included, in ms."""

    start_ms: int
    until_ms: int


def reached(log_type: LogType, page: Page, window: Window) -> int:
    """The time in ms up to which this page shows all that is left of the window, but for that very instant.

    A time outside the window is odd, and says nothing.
    """
    times = (event.time_ms for event in reversed(page.events) if event.time_ms is not None)
    within = (time_ms for time_ms in times if window.start_ms <= time_ms <= window.until_ms)
    if not log_type.ordered:
        return window.start_ms
    time_ms = next(within, window.start_ms) if log_type.sort else max(within, default=window.start_ms)
    return int(time_ms) // log_type.unit_ms * log_type.unit_ms


# It yields the parameters of a request, and is sent the page they brought; it ends when the window is drained.
Requests = Generator[dict[str, str], Optional[Page], None]


def read(log_type: LogType, window: Window, hole: Callable[[str], None]) -> Requests:
    """The requests that read a window of this log type; `hole` is called with words about one that Duo leaves."""
    return by_cursor(log_type, window) if log_type.cursor else by_mintime(log_type, window, hole)


def following(requests: Requests, page: Page | None) -> dict[str, str] | None:
    """The parameters of the request after this page; None where the window is drained."""
    try:
        return requests.send(page)
    except StopIteration:
        return None


def by_cursor(log_type: LogType, window: Window) -> Requests:
    """Read a window by cursor.

    A cursor that Duo refuses (it is sent None then), or that comes again, or brings the same page
    again, is a fault. Where events come in order it is not the end of the window: the walk goes on
    from the last one's own time. Raises GaveUp.
    """
    fixed = {"limit": str(log_type.page_size), "maxtime": str(window.until_ms)}
    fixed.update({"sort": log_type.sort} if log_type.sort else {})
    start_ms = reached_ms = window.start_ms
    cursor, seen, before = "", {""}, list[Event]()
    while start_ms < window.until_ms:
        page = yield {**fixed, "mintime": str(start_ms), **({str(log_type.cursor): cursor} if cursor else {})}
        if page is not None:
            if not page.events or page.cursor is None:
                return
            reached_ms = max(reached_ms, reached(log_type, page, window))
            cursor = page.cursor if page.events != before else ""
            before = page.events
        if page is not None and cursor not in seen:
            seen.add(cursor)
        elif page is None and not log_type.ordered:
            raise GaveUp("Duo refuses the cursor that it gave")
        elif reached_ms < start_ms or not log_type.ordered:
            return
        else:  # a millisecond that was asked for before has shown what it has
            start_ms, cursor = reached_ms + (reached_ms == start_ms), ""


def by_mintime(log_type: LogType, window: Window, hole: Callable[[str], None]) -> Requests:
    """Read a window by asking again from the last event's own second, until that shows nothing more.

    Duo is not clear about whether a mintime includes its own second. So it is asked for a second
    earlier, until an answer shows that it does.
    """
    second, shown, early, full, cut = window.start_ms // 1000, 0, 1, 5, ""
    while True:
        page = yield {"mintime": str(second - early)}
        events = page.events if page is not None else []
        times = (event.time_ms for event in events if event.time_ms is not None)
        seconds = Counter(int(time_ms // 1000) for time_ms in times if time_ms <= window.until_ms)
        last, included = max(seconds, default=0), early == 1 and second - 1 in seconds
        later = len(events) - sum(seconds.values())  # than the window, so what is before is all there
        early = 0 if included else early
        if last < second and not included:
            return
        if (last, seconds[last]) > (second, shown):
            if cut:  # there is more after the second that filled a page
                hole(cut)
            second, shown, cut = last, seconds[last], ""
        elif last == second and seconds[last] == shown and (len(events) < full or later > len(events) // 2):
            return
        elif not included:  # a page full of one second: Duo has no way to ask for the rest of that, if there is any
            cut = f"of {iso(second * 1000)} Duo shows only {counted(len(events), 'event')}; going on after it"
            if len(events) >= log_type.page_size:
                hole(cut)
                cut = ""
            second, shown = second + 1, 0
        full = max(full, len(events))


# Checkpoints


@dataclass(frozen=True)
class Position:
    """Where collection of one log type has got to, in ms."""

    since_ms: int  # everything up to here has been written
    start_ms: int  # the next window starts here; `written` knows all that was written from here on
    written: Mapping[str, int]  # identity of an event: its time

    @classmethod
    def fresh(cls, since_ms: int) -> Position:
        """A start: nothing has been written, nothing older is wanted."""
        return cls(since_ms, since_ms, {})

    def moved(self, since_ms: int, again_ms: int, identities: Mapping[str, int], lookback_ms: int) -> Position:
        """The position after these were written and all was read up to `since_ms`, if only `again_ms` on good evidence.

        From there, or from the lookback if that is earlier, the next window reads again.
        """
        since_ms = max(self.since_ms, since_ms)
        start_ms = max(self.start_ms, min(again_ms, since_ms - lookback_ms))
        events = (*self.written.items(), *identities.items())
        return Position(since_ms, start_ms, {identity: at for identity, at in events if at >= start_ms})


@dataclass
class Health:
    """What is remembered of a log type for people and machines; collection needs none of it."""

    events: int = 0  # this and what follows: since the checkpoint file was begun
    ok: int = 0  # requests, by what came of them
    limited: int = 0
    refused: int = 0
    failed: int = 0
    holes: int = 0
    pass_ms: int = 0  # what the last pass took
    last_success_ms: int = 0  # when a pass last ended caught up; 0: never
    last_error_ms: int = 0  # when a pass last did not; 0: never
    last_error: str = ""

    @classmethod
    def read(cls, document: Mapping[str, Any], log_type: LogType) -> Health:
        """From the checkpoint file; what is odd there starts anew."""
        health, kept = cls(), document.get("health")
        kept = kept.get(log_type.name) if isinstance(kept, dict) else None
        for name, default in asdict(health).items():
            value: Any = kept.get(name) if isinstance(kept, dict) else None
            if type(value) is type(default) and (name == "last_error" or 0 <= value < 10**14):
                setattr(health, name, value)
        return health

    def count(self, outcome: str) -> None:
        """Count a request."""
        setattr(self, outcome, getattr(self, outcome) + 1)


class Checkpoints:
    """Position and health of all log types, and the file that keeps them."""

    def __init__(self, path: str | None, seeds: Mapping[LogType, int]) -> None:
        """Read and check the file; without one all start from the seeds (ms). Raises CollectorError."""
        self.path = path
        self.document = read_json_object(path) if path else {}
        self.positions = {log_type: self._read(log_type, seed_ms) for log_type, seed_ms in seeds.items()}
        self.health = {log_type: Health.read(self.document, log_type) for log_type in seeds}
        unknown = {key for key in self.document if key.endswith("_SINCE_TIME")} - {row.since_key for row in seeds}
        if unknown:
            log.warning("%s: nothing is called %s", path, one_line(", ".join(unknown)))

    def _read(self, log_type: LogType, seed_ms: int) -> Position:
        key = log_type.since_key
        value = self.document.get(key, seed_ms // log_type.unit_ms)
        try:
            since_ms = log_type.parse_since(json.dumps(value))
        except ValueError as wrong:
            found = one_line(json.dumps(value)[:60])
            raise CollectorError(f"checkpoint file {self.path}: {key} is {found}: {wrong}", 78) from None
        try:
            kept = self.document.get("written", {}).get(log_type.name)
            if kept is None or kept["since"] != value:  # a since time set by hand is a fresh start
                return Position.fresh(since_ms)
            written = {identity: int(at) for identity, at in kept["events"].items()}
            return Position(since_ms, min(int(kept["from"]), since_ms), written)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            remedy = "restore the file, or take that key out of it; then some events are written twice"
            raise CollectorError(f'checkpoint file {self.path}: "written" is damaged: {remedy}', 78) from None

    @property
    def clock_offset_s(self) -> float:
        """How far Duo's clock was ahead of the local one, where that was far."""
        offset_s = self.document.get("clock_offset_s")
        return offset_s if isinstance(offset_s, int) and abs(offset_s) < 10**9 else 0

    @contextlib.contextmanager
    def moving(self, log_type: LogType, position: Position) -> Iterator[None]:
        """Keep a log type's new position, once what is in the block has been done. Raises CollectorError.

        All that can go wrong with the new file, a full disk above all, goes wrong before the block.
        """
        since = position.since_ms // log_type.unit_ms
        kept = {"since": since, "from": position.start_ms, "events": position.written}
        written = {**self.document.get("written", {}), log_type.name: kept}
        with self.saving({**self.document, log_type.since_key: since, "written": written}):
            yield
        self.positions[log_type] = position

    def save(self) -> None:
        """Keep what has changed of the health, if that can be done: it is no reason to stop."""
        if any(health != Health.read(self.document, log_type) for log_type, health in self.health.items()):
            with contextlib.suppress(CollectorError), self.saving(self.document):
                pass

    @contextlib.contextmanager
    def saving(self, document: dict[str, Any]) -> Iterator[None]:
        """Replace the file after the block. Raises CollectorError."""
        health = {row.name: asdict(health) for row, health in self.health.items() if health != Health()}
        ours = {"health": health, "written": document.get("written", {})}  # behind what people read
        document = {**{key: value for key, value in document.items() if key not in ours}, **ours}
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
        try:
            with replacing(self.path, "{\n" + ",\n".join(lines) + "\n}\n") if self.path else contextlib.nullcontext():
                yield
        except OSError as error:
            raise CollectorError(f"checkpoint file {self.path} cannot be saved: {error.strerror}", 74) from None
        self.document = document

    def keep_clock(self, offset_s: float) -> None:
        """Take note, for the next save, of how far Duo's clock is ahead of the local one, where that is far."""
        self.document.pop("clock_offset_s", None)
        if abs(offset_s) > JITTER_S:
            self.document["clock_offset_s"] = int(offset_s)


def read_json_object(path: str) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one where there is no file. Raises CollectorError."""
    try:
        with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            document = json.load(file)
        if isinstance(document, dict):
            return document
        reason = "it is not a JSON object"
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, RecursionError) as error:
        reason = f"it is not JSON: {one_line(str(error))}"
    remedy = "it is left as it was; restore it, or move it away to start from the seeds"
    raise CollectorError(f"checkpoint file {path} cannot be read: {reason} ({remedy})", 78)


@contextlib.contextmanager
def replacing(path: str, text: str) -> Iterator[None]:
    """After the block replace a file, in one step and durably, its mode and owner kept. Raises OSError."""
    new = f"{path}.new"
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
    yield
    os.replace(new, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)  # or a power failure undoes the replacement
    os.close(folder)


def lock(path: str) -> None:
    """Keep other runs from the checkpoint file until this process ends, however it ends. Raises CollectorError.

    The lock is on a file beside it, since a save replaces the checkpoint file itself.
    """
    folder, name = os.path.split(path)
    try:
        if not os.access(folder, os.W_OK):
            raise OSError(0, "no permission to write" if os.path.isdir(folder) else "there is no such folder")
        beside = os.path.join(folder, f".{name}.lock")
        try:
            fd = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks only what can be written
        except PermissionError:
            fd = os.open(beside, os.O_RDONLY)  # another user ran it before
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CollectorError(f"another run holds checkpoint file {path}: wait for it, or stop it", 75) from None
    except OSError as error:
        raise CollectorError(f"checkpoint file {path} cannot be locked there: {error.strerror}", 78) from None


# Output


class Output:
    """Lines on stdout."""

    def __init__(self) -> None:
        """Raises CollectorError where stdout is closed."""
        if sys.stdout is None:  # its number would go to the next file opened, and the events with it
            raise CollectorError("stdout is closed: there is nowhere to write to", 74)
        self.fd = sys.stdout.fileno()
        self.regular = stat.S_ISREG(os.fstat(self.fd).st_mode)
        self.torn = self.regular and not ends_in_newline(self.fd)
        self.unsaved = False  # something was written that no checkpoint knows of yet

    def write(self, lines: list[str]) -> None:
        """Write JSON lines as ASCII, all of them, and in a regular file durably. Raises CollectorError."""
        if not lines:
            return
        self.unsaved = True
        try:
            if self.torn:
                os.write(self.fd, b"\n")
                self.torn = False
            for first in range(0, len(lines), 64):  # in one piece a page takes twice the system's time for its memory
                rest = memoryview("".join(lines[first : first + 64]).encode("ascii", "backslashreplace"))
                while rest:
                    try:
                        rest = rest[os.write(self.fd, rest) :]
                    except BlockingIOError:  # somebody who shares this pipe wants it so
                        select.select([], [self.fd], [])
            if self.regular:
                os.fsync(self.fd)
        except OSError as error:
            line = f"stdout cannot be written: {error.strerror}; the checkpoint stays where it was"
            raise CollectorError(line, 74) from None


def ends_in_newline(fd: int) -> bool:
    """Whether a regular file that is open for writing holds whole lines only."""
    size, path = os.fstat(fd).st_size, f"/dev/fd/{fd}"
    try:
        if sys.platform == "darwin":  # /dev/fd opens with the mode of the descriptor there
            path = fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()
        with open(path, "rb") as file:
            return size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"
    except OSError:
        return size == 0  # unknown: an empty line does less harm than two events on one


# Pace


SOON = 2  # tries after a 429 before a minute is waited for


class Pace:
    """When the next request of a log type is due; times and spans in s, by a monotonic clock.

    What was let through before a 429 is the limit: `limit` pages in any `span`. Two tries come soon. If one
    brings a page, the span is the time since a limit was met before, a minute at most. If not, Duo counts by
    the minute, as it says: the span is that, and the next try comes when the first of its pages is out of it;
    once this has helped, the next 429 is met so at once. A limit holds for four spans and, when it is found
    again, for twice as long, up to 40 pages. Then only the ceiling holds, as at the start, so that a change is
    found. Other waits double. A minute is 61 s here, as requests do not all travel equally long.
    """

    def __init__(self, requests_per_minute: float) -> None:
        self.shortest = 61 / requests_per_minute
        self.latest: deque[float] = deque(maxlen=int(requests_per_minute) + 2)  # when pages were asked for
        self.limit, self.span = 0, 61.0
        self.trust = self.left = 0  # for how many pages the limit holds, and for how many still
        self.per_minute = False  # a minute's wait has helped
        self.tries = 0  # 429s in a row, the first of them at `met`
        self.began = self.met = self.due = self.backoff = 0.0  # `began`: the first page after a 429

    def page(self, sent: float) -> None:
        """The request of `sent` brought a page."""
        self.latest.append(sent)
        if 0 < self.tries <= SOON and not self.per_minute:
            pages = [page for page in self.latest if page >= max(self.began, sent - 61)]
            self.limit, self.span = max(1, len(pages) - 1), sent - pages[0]
            self.trust = self.left = 40
        elif self.tries:
            self.per_minute = self.tries == (1 if self.per_minute else SOON + 1)
        if self.tries:
            self.began = sent
        self.tries, self.backoff, self.due, self.left = 0, 0, sent + self.shortest, self.left - 1
        if self.left > 0:
            self.due = max(self.due, self.latest[-self.limit] + self.span)

    def limited(self, sent: float) -> None:
        """The request of `sent` was answered with 429: doubling with jitter, up to a minute."""
        self.tries += 1
        self.met = sent if self.tries == 1 else self.met
        wait = max(2, 2 * self.shortest) * 2 ** min(self.tries - 1, 5)
        self.due = sent + min(60, wait) * random.uniform(1, 1.2)
        minute = [page for page in self.latest if page > self.met - 60]
        if self.tries == (1 if self.per_minute else SOON + 1) and minute:
            again = self.span == 61 and self.limit / 2 <= len(minute) <= 2 * self.limit
            self.trust = min(40, 2 * self.trust if again else 4 * len(minute))
            self.limit, self.span, self.left = len(minute), 61.0, self.trust
            self.due = max(self.due, minute[0] + 61)

    def failed(self, now: float) -> None:
        """A request has failed, which says nothing about the limit: doubling with jitter, up to a minute."""
        self.backoff = min(60, max(1, 2 * self.backoff))
        self.due = max(self.due, now + self.backoff * random.uniform(0.75, 1.25))


# The pass


@dataclass
class Tally:
    """What one pass over a log type has done so far."""

    began: float = 0.0  # s, by the monotonic clock
    requests: int = 0
    written: int = 0  # events
    received: int = 0  # events, those of before included, each once
    latest: Mapping[str, int] = field(default_factory=dict)  # events of the latest page: identity, time in ms
    seen: Counter[str] = field(default_factory=Counter)  # events without an id
    window: Window | None = None
    total: int | None = None  # events in the window, says Duo
    first_ms: float = 0.0  # the time of the first of them
    reached_ms: int | None = None  # how far the pages were read; None before the first, and when there are no more
    told: float = 0.0  # s, when the log last said how far it is, or the pass began


@dataclass
class Run:
    """What a pass needs."""

    settings: Settings
    duo: Duo
    checkpoints: Checkpoints
    output: Output
    paces: Mapping[LogType, Pace]
    stop: threading.Event
    stderr: StderrHandler
    until_ms: float = float("inf")  # where a replay ends
    clock: Callable[[], float] = time.monotonic  # s
    tallies: dict[LogType, Tally] = field(default_factory=dict)  # of the passes under way
    metrics_due: float = 0.0

    @property
    def is_replay(self) -> bool:
        """Whether a range is printed, and no checkpoint read or moved."""
        return self.checkpoints.path is None


# Work on one log type, turn by turn: yields the time of its next request (s, monotonic clock), returns T.
Turns = Generator[float, None, T]


def run_passes(run: Run, once: bool) -> int:
    """Collect every enabled log type, pause, collect it again; or `once`, until each is caught up or given up.

    They take turns, a request each, and each has its own pause, so that the backlog of one does not
    hold up the others. Returns the exit status, which after SIGTERM or SIGINT is 0 in a loop.
    """
    turns = {log_type: collect(run, log_type) for log_type in run.settings.log_types}
    due, statuses, busy = dict.fromkeys(turns, 0.0), dict.fromkeys(turns, 0), set(turns)
    while busy or not once:
        log_type = min(due, key=due.__getitem__)
        wait_s = max(0, due[log_type] - run.clock())
        if run.stop.wait(min(wait_s, REPORT_S) if busy else wait_s):
            run.stderr.show([])
            log.info("stopped by a signal%s", "" if run.is_replay else "; all that was written is checkpointed")
            return max(GaveUp.status, *statuses.values()) if once else 0
        if run.clock() >= due[log_type]:
            try:
                due[log_type] = next(turns[log_type])
                busy.add(log_type)
            except StopIteration as end:
                statuses[log_type], turns[log_type] = end.value, collect(run, log_type)
                due[log_type] = run.clock() + run.settings.interval_s
                busy.discard(log_type)
                run.metrics_due = 0
                if not busy:
                    run.duo.session.close()  # Duo would have closed the connection by the next pass
        report(run)
    return max(statuses.values())


def collect(run: Run, log_type: LogType) -> Turns[int]:
    """One pass over one log type, and the line about it; returns the exit status."""
    tally = run.tallies[log_type] = Tally(run.clock(), told=run.clock())
    try:
        yield from read_window(run, log_type, tally)
        status, level, why = 0, logging.INFO, ""
    except GaveUp as error:
        status, level, why = error.status, logging.ERROR, f"; {error}"
        health, now_ms = run.checkpoints.health[log_type], run.duo.now_ms()
        health.last_error, health.last_error_ms, health.pass_ms = discreet(str(error)), now_ms, elapsed_ms(run, tally)
        run.checkpoints.keep_clock(run.duo.clock_offset_s)
        run.checkpoints.save()
    del run.tallies[log_type]
    events, requests = counted(tally.written, "event"), counted(tally.requests, "request")
    until = iso(run.checkpoints.positions[log_type].since_ms)
    log.log(level, "%s: %s in %s, up to %s%s", log_type.name, events, requests, until, why)
    return status


def elapsed_ms(run: Run, tally: Tally) -> int:
    """How long a pass has taken so far."""
    return int((run.clock() - tally.began) * 1000)


def read_window(run: Run, log_type: LogType, tally: Tally) -> Turns[None]:
    """Read from the checkpoint to now less Duo's delay: write page after page, checkpoint after each.

    Raises GaveUp, which ends this log type's pass, and CollectorError.
    """
    opened = yield from open_window(run, log_type, tally)
    if opened is None:
        position = run.checkpoints.positions[log_type]
        if run.checkpoints.document.get(log_type.since_key) != position.since_ms // log_type.unit_ms:
            with run.checkpoints.moving(log_type, position):  # where --since said to start
                pass
        return
    window, requests, first = opened
    page: Page | None = first
    tally.window, tally.total = window, first.total
    tally.first_ms = min((e.time_ms for e in first.events if e.time_ms is not None), default=window.start_ms)
    while True:
        reached_ms = reached(log_type, page, window) if page is not None else 0
        # Duo's count and a page that is not full agree that this is all. Both are hints, so the next window starts
        # where this page ended; where nothing would come of that, or there is no next window, they are not relied upon.
        whole = page is first and first.total == len(first.events) < log_type.page_size
        whole = whole and reached_ms > window.start_ms and not run.is_replay
        parameters = None if whole else following(requests, page)
        if page is not None:
            since_ms = window.until_ms if parameters is None else reached_ms
            tally.reached_ms = None if parameters is None else reached_ms
            write_page(run, log_type, tally, page, since_ms, reached_ms if whole else since_ms)
        if parameters is None:
            return
        try:
            page = yield from ask(run, log_type, parameters, tally)
        except BadRequest:
            if log_type.cursor not in parameters:
                raise
            page = None


def open_window(run: Run, log_type: LogType, tally: Tally) -> Turns[tuple[Window, Requests, Page] | None]:
    """The window to read, the requests that read it, and its first page; None where there is nothing to read."""
    for attempt in range(3):
        start, window = choose_window(run, log_type)
        ahead_ms = start.since_ms - run.duo.now_ms()
        if window is None and (run.duo.clock_offset_s or 0 < ahead_ms < CLOCK_ERROR_MS):
            run.duo.ask_clock()
            start, window = choose_window(run, log_type)
        if window is None:
            warn_if_ahead(run, log_type)
            warn_if_passed_over(run, log_type, start)
            return None
        requests = read(log_type, window, lambda words: found_hole(run, log_type, f"a hole, maybe: {words}"))
        offset_s = run.duo.clock_offset_s
        page = yield from ask(run, log_type, next(requests), tally)
        # The first answer tells Duo's clock. A window that reached into what Duo does not show yet may have
        # come back empty for that alone, and one that ended far too early leaves events for later: once more.
        too_far = page.date_ms is not None and window.until_ms > page.date_ms - log_type.delay_ms
        if not too_far and (attempt or abs(run.duo.clock_offset_s - offset_s) <= JITTER_S):
            warn_if_passed_over(run, log_type, start)
            run.checkpoints.positions[log_type] = start
            return window, requests, page
    raise GaveUp("Duo's Date jumps to and fro")


def found_hole(run: Run, log_type: LogType, words: str) -> None:
    """Say that events are missing, and count it."""
    run.checkpoints.health[log_type].holes += 1
    log.warning("%s: %s", log_type.name, words)


def choose_window(run: Run, log_type: LogType) -> tuple[Position, Window | None]:
    """From the checkpoint less the lookback to now less Duo's delay: where to start, and None where that is empty."""
    position, now_ms = run.checkpoints.positions[log_type], run.duo.now_ms()
    until_ms = int(min((now_ms - log_type.delay_ms) // 1000 * 1000, run.until_ms))
    edge_ms = now_ms - log_type.kept_days * DAY_MS + DAY_MS // 48 if log_type.kept_days else 0
    if position.since_ms < edge_ms:
        position = Position.fresh(edge_ms + DAY_MS // 48)  # exactly 180 days are refused by the time they arrive
    start_ms = max(position.start_ms, edge_ms)
    return position, Window(start_ms, until_ms) if start_ms < until_ms and position.since_ms <= now_ms else None


def warn_if_ahead(run: Run, log_type: LogType) -> None:
    """Say that a checkpoint is in the future, and how far."""
    ahead_ms = run.checkpoints.positions[log_type].since_ms - run.duo.now_ms()
    if ahead_ms > 0:
        where, ahead = f"{log_type.since_key} in {run.checkpoints.path}", duration(ahead_ms)
        log.warning("%s: %s is %s ahead of now: set it back, or nothing is collected", log_type.name, where, ahead)


def warn_if_passed_over(run: Run, log_type: LogType, start: Position) -> None:
    """Say that Duo has no longer what lies between the checkpoint and this start."""
    since_ms = run.checkpoints.positions[log_type].since_ms
    if start.since_ms > since_ms:
        name, days, until_ms = log_type.name, log_type.kept_days, min(start.since_ms, run.until_ms)
        gap = f"{iso(since_ms)} to {iso(until_ms)}"
        log.warning("%s: Duo serves the last %d days only; passed over: %s", name, days, gap)


def ask(run: Run, log_type: LogType, parameters: Mapping[str, str], tally: Tally) -> Turns[Page]:
    """One page, tried until Duo gives it. Raises Refused, BadRequest, or GaveUp at the end of patience."""
    pace, health, last_try, why = run.paces[log_type], run.checkpoints.health[log_type], float("inf"), ""
    failing: dict[type[Failed], float] = {}  # since when there has been nothing but that
    if pace.due > run.clock() + Limited.patience_s:
        raise GaveUp(f"the next request is not due for another {duration((pace.due - run.clock()) * 1000)}")
    while True:
        yield pace.due
        sent = run.clock()
        if sent > last_try + 1:  # the turns of others have taken so long
            raise GaveUp(why)
        tally.requests, pace.due = tally.requests + 1, sent + pace.shortest
        try:
            page = request_page(run.duo, log_type, parameters)
        except GaveUp as problem:
            health.count(problem.outcome)
            raise
        except Failed as problem:
            health.count(problem.outcome)
            now, first, why = run.clock(), not failing, f"{problem}; given up for this pass"
            if isinstance(problem, Limited):
                failing.pop(Failed, None)  # Duo is there
                pace.limited(sent)
            else:
                pace.failed(now)
            last_try = failing.setdefault(type(problem), sent) + max(problem.patience_s, pace.shortest)
            pace.due = max(pace.due, now + problem.retry_after_s)
            if now >= last_try or now + problem.retry_after_s > last_try:
                raise GaveUp(why) from None
            pace.due = max(min(pace.due, last_try), sent + pace.shortest)
            level = logging.INFO if first or pace.due > now + 10 else logging.DEBUG
            log.log(level, "%s: %s; again in %.0f s", log_type.name, problem, pace.due - now)
        else:
            pace.page(sent)
            health.count("ok")
            return page


def write_page(run: Run, log_type: LogType, tally: Tally, page: Page, since_ms: int, again_ms: int) -> None:
    """Write what is new on a page, then move the checkpoint to `since_ms`. Raises CollectorError."""
    assert tally.window
    position, health = run.checkpoints.positions[log_type], run.checkpoints.health[log_type]
    lines = sift(run, log_type, tally, page.events)
    health.events += len(lines)
    if tally.reached_ms is None:  # the last page
        if tally.total is not None and tally.received < tally.total:
            counts = f"Duo counts {counted(tally.total, 'event')}, its pages held {tally.received:,}"
            span = f"from {iso(tally.window.start_ms)} to {iso(tally.window.until_ms)}"
            found_hole(run, log_type, f"a hole: {span} {counts}")
        health.last_success_ms, health.pass_ms = run.duo.now_ms(), elapsed_ms(run, tally)
    moved = position.moved(since_ms, again_ms, tally.latest, run.settings.lookback_ms)
    if lines or moved != position:
        run.checkpoints.keep_clock(run.duo.clock_offset_s)
        with run.checkpoints.moving(log_type, moved):
            run.output.write(lines)
    run.output.unsaved = False


def sift(run: Run, log_type: LogType, tally: Tally, events: list[Event]) -> list[str]:
    """The lines of a page's events that were not written before."""
    assert tally.window
    window, written, latest = tally.window, run.checkpoints.positions[log_type].written, tally.latest
    until_ms = run.until_ms // log_type.unit_ms * log_type.unit_ms if run.is_replay else float("inf")
    added = {"eventtype": log_type.name, "host": run.settings.host}  # as Duo's own client does
    tail = json.dumps(added, separators=(",", ":"))[1:] + "\n"
    if log_type.cursor is None:
        tally.seen.clear()  # such a page starts with a whole second, and with it the count of equal events
    lines: list[str] = []
    identities: dict[str, int] = {}
    for text, identity, time_ms in in_order(events):
        early_ms = 0 if time_ms is None else window.start_ms - time_ms
        if log_type.cursor is None and 0 < early_ms <= log_type.unit_ms:
            continue  # of the second that by_mintime asks for in addition
        if identity[0] == "#":
            tally.seen[identity] += 1
            identity = f"{identity[1:]}#{tally.seen[identity]}"
        known = identity in written or identity in latest or identity in identities
        if not known and (time_ms is None or time_ms < until_ms):
            lines.append(text + tail)
        # An odd time says nothing about where in the window Duo has the event.
        identities[identity] = window.until_ms if time_ms is None or early_ms > 0 else int(time_ms)
    tally.written += len(lines)
    tally.received += len(identities.keys() - latest.keys())
    tally.latest = identities
    return lines


def in_order(events: list[Event]) -> list[Event]:
    """Events sorted by their times; one without a time stays behind the one before it."""
    given = (event.time_ms for event in events)
    times = accumulate(given, lambda before, time_ms: before if time_ms is None else time_ms, initial=0.0)
    return [event for _, event in sorted(zip(islice(times, 1, None), events), key=itemgetter(0))]


# What people and machines are told

REPORT_S = 30  # how often, at least, a long pass tells how far it is and renews the metrics


def report(run: Run) -> None:
    """Tell how far the passes under way are, and write the metrics file, where either is due."""
    now = run.clock()
    under_way = [(row, tally) for row, tally in run.tallies.items() if tally.reached_ms is not None]
    if run.stderr.terminal:
        run.stderr.show([progress(row, tally, now) for row, tally in under_way])
    else:
        for row, tally in under_way:
            if now >= tally.told + REPORT_S:
                tally.told = now
                log.info("%s", progress(row, tally, now))
    if run.settings.metrics_file and now >= run.metrics_due:
        run.metrics_due = now + REPORT_S
        run.checkpoints.save()  # what is shown is kept, or after a kill the counters would go back
        write_metrics(run)


def progress(log_type: LogType, tally: Tally, now: float) -> str:
    """How far a pass is: the share of the window, the time left, events so far, the rate, the time reached."""
    assert tally.window and tally.reached_ms is not None
    elapsed_s = max(0.001, now - tally.began)
    read_ms, span_ms = tally.reached_ms - tally.first_ms, tally.window.until_ms - tally.first_ms
    share = min(1.0, tally.received / tally.total if tally.total else read_ms / max(1, span_ms))
    events = f"{counted(tally.written, 'event')} so far, {tally.received / elapsed_s * 60:,.0f} a minute"
    if not log_type.ordered:
        return f"{log_type.name}: {events}"
    left = f"{duration(elapsed_s * (1 / share - 1) * 1000)} left" if share > 0 else "just begun"
    return f"{log_type.name}: {share:.0%}, {left}; {events}, up to {iso(tally.reached_ms)}"


METRICS: tuple[tuple[str, str, str, Callable[[Position, Health], float]], ...] = (
    ("events_total", "counter", "Events written.", lambda _, health: health.events),
    ("holes_total", "counter", "Windows of which Duo did not show all events.", lambda _, health: health.holes),
    ("checkpoint_timestamp_seconds", "gauge", "Everything up to here has been written.",
     lambda position, _: position.since_ms / 1000),
    ("last_success_timestamp_seconds", "gauge", "When a pass last ended caught up; 0: never.",
     lambda _, health: health.last_success_ms / 1000),
    ("pass_duration_seconds", "gauge", "What the last pass took.", lambda _, health: health.pass_ms / 1000),
)  # fmt: skip


def write_metrics(run: Run) -> None:
    """Write the file for node_exporter's textfile collector. Failure is no reason to stop collecting."""
    from prometheus_client import exposition, metrics_core

    checkpoints, host, families = run.checkpoints, run.settings.host, []
    kinds = {"counter": metrics_core.CounterMetricFamily, "gauge": metrics_core.GaugeMetricFamily}
    for name, kind, text, value in METRICS:
        family = kinds[kind](f"duo_collector_{name}", text, labels=["host", "log_type"])
        for row in run.settings.log_types:
            family.add_metric([host, row.name], value(checkpoints.positions[row], checkpoints.health[row]))
        families.append(family)
    labels = ["host", "log_type", "outcome"]
    requests = kinds["counter"]("duo_collector_requests_total", "Requests, by what came of them.", labels=labels)
    for row in run.settings.log_types:
        for outcome in ("ok", "limited", "refused", "failed"):
            requests.add_metric([host, row.name, outcome], getattr(checkpoints.health[row], outcome))
    clock = kinds["gauge"]("duo_collector_clock_difference_seconds", "Duo's clock less the local one.", labels=["host"])
    clock.add_metric([host], run.duo.clock_offset_s)
    path = str(run.settings.metrics_file)
    try:
        text = exposition.generate_latest(SimpleNamespace(collect=lambda: [*families, requests, clock])).decode()
        with replacing(path, text):
            pass
        os.chmod(path, 0o644)  # whatever the umask: node_exporter is another user
    except OSError as error:
        log.warning("DUO_METRICS_FILE %s cannot be written: %s", path, error.strerror)


def show_status(settings: Settings, as_json: bool) -> int:
    """Say where each log type has got to, and how its passes end; return the exit status."""
    output, checkpoints = Output(), Checkpoints(settings.checkpoint_file, settings.seeds)
    if not checkpoints.document:
        log.info("checkpoint file %s does not exist yet: these are the seeds", checkpoints.path)
    now_ms = (time.time() + checkpoints.clock_offset_s) * 1000
    late, document = [], {}
    for log_type in settings.log_types:
        since_ms, health = checkpoints.positions[log_type].since_ms, checkpoints.health[log_type]
        lag_ms = now_ms - since_ms
        if settings.max_lag_ms is not None and abs(lag_ms) > settings.max_lag_ms:
            late.append(log_type.name)
        document[log_type.name] = {
            "checkpoint": iso(since_ms),
            "lag_seconds": int(lag_ms / 1000),
            "last_success": iso(health.last_success_ms) if health.last_success_ms else None,
            "last_error": health.last_error or None,
            "last_error_time": iso(health.last_error_ms) if health.last_error_ms else None,
        }
        if not as_json:
            side = "behind" if lag_ms >= 0 else "ahead of"
            line = f"{log_type.name:20}{iso(since_ms)}  {duration(abs(lag_ms))} {side} now"
            line += f", last success {ago(now_ms, health.last_success_ms)}"
            if health.last_error_ms:
                mended = ", mended since" if health.last_success_ms > health.last_error_ms else ""
                line += f", last error {ago(now_ms, health.last_error_ms)}{mended}: {health.last_error}"
            output.write([line + "\n"])
    if as_json:
        output.write([json.dumps(document) + "\n"])
    if late:
        log.error("more than %s from now: %s", duration(settings.max_lag_ms or 0), ", ".join(late))
    return GaveUp.status if late else 0


def ago(now_ms: float, then_ms: int) -> str:
    """3 min 10 s ago, or never."""
    return f"{duration(max(0, now_ms - then_ms))} ago" if then_ms else "never"


# The command line

GRACE_S = 3  # what is left, after SIGTERM, for a page that is being written


def check(settings: Settings) -> int:
    """Ask for a little of each log type, and say what comes of it; return the worst exit status."""
    output, worst = Output(), 0
    duo = Duo(settings, Checkpoints(settings.checkpoint_file, settings.seeds).clock_offset_s)
    for log_type in settings.log_types:
        until_ms = duo.now_ms() - log_type.delay_ms
        parameters = next(read(log_type, Window(until_ms - 60_000, until_ms), log.debug))
        try:
            request_page(duo, log_type, {**parameters, "limit": "1"} if log_type.cursor else parameters)
            output.write([f"{log_type.name}: ok\n"])
        except (GaveUp, Failed) as problem:
            worst = max(worst, problem.status)
            output.write([discreet(f"{log_type.name}: {problem}\n")])
    return worst


def run_collector(settings: Settings, once: bool, stderr: StderrHandler) -> int:
    """Collect, in one pass or in passes without end; return the exit status."""
    output = Output()
    path = None if settings.until else settings.checkpoint_file  # a replay leaves it to a service that may be running
    if path:
        lock(path)
    checkpoints = Checkpoints(path, settings.seeds)
    paces = {log_type: Pace(settings.requests_per_minute) for log_type in settings.log_types}
    stop = stop_on_signals(output, GaveUp.status if once else 0)
    run = Run(settings, Duo(settings, checkpoints.clock_offset_s), checkpoints, output, paces, stop, stderr)
    if settings.since is not None:
        start_at(run, settings.since, settings.until)
    return run_passes(run, once)


def start_at(run: Run, since: str, until: str | None) -> None:
    """Put every log type where --since says, and say what that passes over. Raises CollectorError."""
    run.duo.ask_clock()
    now_ms, option, text = run.duo.now_ms(), "--since", since
    try:
        since_ms = parse_when(since, now_ms)
        if until is not None:
            option, text = "--until", until
            run.until_ms = parse_when(until, now_ms)
            if run.until_ms <= since_ms:
                raise ValueError("write a time later than that of --since")
            if run.until_ms > now_ms - LOG_TYPES["authentication"].delay_ms:
                log.warning("Duo shows nothing of the last two minutes yet, so it is not in this")
    except ValueError as wrong:
        raise CollectorError(f"{option} is {text!r}: {wrong}", 2) from None
    for row in run.settings.log_types:
        start = Position.fresh(since_ms // row.unit_ms * row.unit_ms)
        passed_ms = run.checkpoints.positions[row].since_ms
        if row.name in run.checkpoints.document.get("written", {}) and passed_ms < start.since_ms:
            span, key = f"{iso(passed_ms)} to {iso(start.since_ms)}", f"{row.since_key} in {run.checkpoints.path}"
            log.warning("%s: --since passes over %s; to collect that set %s back", row.name, span, key)
        run.checkpoints.positions[row] = start
        if not run.is_replay and row.since_key not in run.checkpoints.document:
            with run.checkpoints.moving(row, start):  # or a first pass that fails leaves the next one to the seeds
                pass


def stop_on_signals(output: Output, status: int) -> threading.Event:
    """An event that SIGTERM and SIGINT set; GRACE_S later the process ends, whatever it is waiting for.

    A thread sees to that: in a look-up of a name or in a blocked write the main thread runs no
    handler. It ends the process hard, which is no worse than the kill that the checkpoints are for.
    """
    stop = threading.Event()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))  # whoever started it may block them

    def watch() -> None:
        while not {signal.SIGTERM, signal.SIGINT} & set(os.read(read_end, 64)):
            pass
        stop.set()
        time.sleep(GRACE_S)
        with contextlib.suppress(OSError):
            if select.select([], [2], [], 0)[1]:  # not where the main thread is stuck in its log
                if output.unsaved:
                    log.error("stdout is not being read; the checkpoint stays before the page that was being written")
                else:
                    log.info("stopped by a signal in the middle of a request; nothing of it was written")
        os._exit(74 if output.unsaved else status)

    threading.Thread(target=watch, daemon=True).start()
    return stop


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything here."""

    def error(self, message: str) -> NoReturn:
        raise CollectorError(f"{message} (--help shows what can be given)", 2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line. Raises CollectorError."""
    parser = ArgumentParser(
        prog="duo_collector.py",
        allow_abbrev=False,
        description="Collect Cisco Duo's audit logs as JSON lines on stdout.",
        epilog="Settings: an option, before a variable in the environment, before the settings file, before the"
        " default; .env.example lists them. Exit status: 0 caught up, or stopped; 2 wrong command line; 74 output"
        " failed; 75 passing trouble, run again; 77 refused by Duo; 78 wrong setting or checkpoint file.",
    )
    say = parser.add_argument
    say("--once", action="store_true", help="one pass until caught up, then exit (for cron, a timer, a shell)")
    say("--interval", metavar="SECONDS", help="pause between two passes (DUO_INTERVAL, or 300)")
    say("--log-types", metavar="LIST", help=f"of {', '.join(LOG_TYPES)} (DUO_LOG_TYPES, or the first three)")
    say("--since", metavar="WHEN", help="start here, not at the checkpoint (UTC): 2026-11-01, 2026-11-01T08:00Z, 24h")
    say("--until", metavar="WHEN", help="with --since: print what lies between, and leave the checkpoint alone")
    say("--env-file", metavar="PATH", help="settings file (.env beside the script)")
    say("--checkpoint-file", metavar="PATH", help="its state (DUO_CHECKPOINT_FILE, or checkpoints.json beside it)")
    say = parser.add_mutually_exclusive_group().add_argument
    say("--check", action="store_true", help="ask Duo once for each log type, and say ok or what to fix")
    say("--status", action="store_true", help="say where each log type has got to, without a request")
    parser.add_argument("--max-lag", metavar="AGE", help="with --status: exit with 75 if any is further behind, as 15m")
    parser.add_argument("--json", action="store_true", help="with --status: one JSON object")
    say = parser.add_mutually_exclusive_group().add_argument
    say("-v", "--verbose", action="store_true", help="on stderr, every request too")
    say("-q", "--quiet", action="store_true", help="on stderr, only warnings and errors")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    for name, needed in (("until", "since"), ("max_lag", "status"), ("json", "status")):
        if getattr(options, name) and not getattr(options, needed):
            parser.error(f"--{name.replace('_', '-')} goes with --{needed}")
    return options


class StderrHandler(logging.Handler):
    """Writes each message as one line, whatever it quotes; a stderr that fails is no reason to stop.

    Below them, on a terminal that shows nothing else, stands how far the work is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terminal, self.shown, self.journal = False, 0, False
        with contextlib.suppress(OSError):
            self.terminal = os.isatty(2) and not os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"
            stream = os.fstat(2)  # a child of a service has the variable too, but maybe another stderr
            self.journal = os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"

    def emit(self, record: logging.LogRecord) -> None:
        line = "".join(c if c.isprintable() else " " for c in discreet(self.format(record)))
        level = f"<{SYSLOG_PRIORITIES[record.levelno]}>" if self.journal else ""
        self.write(f"{level}{line}\n")

    def show(self, lines: list[str]) -> None:
        """Put these lines in the place of those shown before."""
        if log.isEnabledFor(logging.INFO) and (lines or self.shown):
            width = 80
            with contextlib.suppress(OSError):  # a terminal that has gone away
                width = os.get_terminal_size(2).columns or width
            self.write("".join(f"{line[:width]}\n" for line in lines))
            self.shown = len(lines)

    def write(self, text: str) -> None:
        erase = f"\x1b[{self.shown}F\x1b[J" if self.shown else ""
        self.shown = 0
        with contextlib.suppress(OSError):
            os.write(2, (erase + text).encode(errors="backslashreplace"))


SYSLOG_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def set_up_log() -> StderrHandler:
    """Log to stderr with UTC times; in systemd's journal without, as it has its own, and with priorities."""
    handler = StderrHandler()
    when = "" if handler.journal else "%(asctime)s "
    formatter = logging.Formatter(when + "%(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler if sys.stderr is not None else logging.NullHandler()])
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it warns of is in our own messages
    log.setLevel(logging.INFO)
    return handler


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until there is something to save; PID 1 has no default
        signal.signal(number, lambda number, _: os._exit(128 + number))
    stderr = set_up_log()
    try:
        options = parse_options(arguments)
        log.setLevel(logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO)
        beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".env")
        load_env_file(beside if options.env_file is None else options.env_file, required=options.env_file is not None)
        settings = load_settings(options, os.environ, int(time.time() * 1000))
        if options.status:
            return show_status(settings, options.json)
        once = options.once or options.until is not None
        return check(settings) if options.check else run_collector(settings, once, stderr)
    except CollectorError as error:
        log.error("%s", error)
        return error.status
    except ModuleNotFoundError as error:
        log.error("%s is missing: use the Python of .venv, or pip install -r requirements.txt", error.name)
        return 78


if __name__ == "__main__":
    sys.exit(main())
