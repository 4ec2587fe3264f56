#!/usr/bin/env python3
"""A stand-in for Duo's Admin API, serving six log endpoints on the loopback interface.

The collector is tested against it, over real sockets, because a test cannot reach Duo. Where Duo's
documentation, or an answer that somebody observed, says how Duo behaves, the simulator behaves so.
Where nobody says, it has a switch, and the collector has to come through both ways: see `Rules`.
Signatures are checked with the functions of Duo's own client.

In a test:

    with Simulator(Rules(short_pages=True)) as duo:
        duo.add("telephony", make_events("telephony", 5000, start_ms, end_ms))
        subprocess.run([...], env={**os.environ, **duo.settings})
        assert [request.status for request in duo.requests] == [...]

By hand: `python tests/duo --help`.
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import email.utils
import hashlib
import hmac
import http
import http.server
import ipaddress
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from bisect import bisect_left, insort
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

import duo_client.client

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
KEPT_MS = 180 * 24 * 3600 * 1000
AUTHENTICATION_FILTERS = (
    "applications users groups event_types factors results reasons phone_numbers registration_id "
    "token_id webauthnkey tokens assessment detections formatter")


@dataclasses.dataclass(frozen=True)
class LogType:
    """What sets one log endpoint apart from the others."""

    path: str
    time_fields: Tuple[str, ...]        # where an event's time is read, the finest first
    unit_ms: int                        # mintime, maxtime and numeric event times, in ms
    list_key: str = ""                  # empty: `response` itself is the list, without metadata
    id_field: Optional[str] = None
    default_limit: int = 0
    max_limit: int = 0
    cursor: Optional[str] = None        # the parameter that brings back a cursor
    v2: bool = False                    # can be sorted, and counts its window in total_objects
    parameters: FrozenSet[str] = frozenset()


def _known(names: str) -> FrozenSet[str]:
    return frozenset(("account_id " + names).split())


_V2_PARAMETERS = "mintime maxtime limit sort next_offset "
LOG_TYPES = {
    "authentication": LogType(
        "/admin/v2/logs/authentication", ("isotimestamp", "timestamp"), 1, "authlogs", "txid",
        100, 1000, "next_offset", True, _known(_V2_PARAMETERS + AUTHENTICATION_FILTERS)),
    "activity": LogType(
        "/admin/v2/logs/activity", ("ts",), 1, "items", "activity_id",
        100, 1000, "next_offset", True, _known(_V2_PARAMETERS)),
    "telephony": LogType(
        "/admin/v2/logs/telephony", ("ts",), 1, "items", "telephony_id",
        100, 1000, "next_offset", True, _known(_V2_PARAMETERS)),
    "administrator": LogType(
        "/admin/v1/logs/administrator", ("timestamp",), 1000, parameters=_known("mintime")),
    "offline_enrollment": LogType(
        "/admin/v1/logs/offline_enrollment", ("timestamp",), 1000, parameters=_known("mintime")),
    "trust_monitor": LogType(
        "/admin/v1/trust_monitor/events", ("surfaced_timestamp",), 1, "events", "sekey",
        50, 200, "offset", False, _known("mintime maxtime limit offset type")),
}
PATHS = {log.path: name for name, log in LOG_TYPES.items()}

ERRORS = {
    40001: "Missing required request parameters",
    40002: "Invalid request parameters",
    40101: "Missing request credentials",
    40102: "Invalid integration key in request credentials",
    40103: "Invalid signature in request credentials",
    40104: "Missing request timestamp",     # the text was observed, the number is a guess
    40105: "Bad request timestamp",
    40112: "Signature type is not supported",
    40301: "Access forbidden",
    40401: "Resource not found",
    40501: "Method not allowed",
    42901: "Too Many Requests",
    50001: "unknown internal error",
}
SIGNATURES = {      # name: signature version and digest, as duo_client numbers them
    "v5": (5, hashlib.sha512),
    "v4": (4, hashlib.sha512),
    "v2-sha512": (2, hashlib.sha512),
    "v2-sha1": (2, hashlib.sha1),
}
CHECKS = ("signature", "date", "permission", "rate", "parameters")
COMMON_FAULTS = ("reset", "cut", "truncated", "not_json", "html_502", "empty_200", "error_500",
                 "error_503", "stat_fail", "error_429", "stall")
# Those that are in the mix only when asked for. clock_401 was an outage that Duo once had; no_metadata and
# no_cursor leave that out of a good answer; nan and deep put into the first event what is no JSON, or more
# levels than a parser takes; no_time leaves that out of what /auth/v2/ping answers.
FAULT_KINDS = COMMON_FAULTS + ("clock_401", "error_404", "no_metadata", "no_cursor", "nan", "deep", "no_time")
SPOILT_MEMBERS = {"nan": b'"score":NaN,', "deep": b'"deep":%s%s,' % (b"[" * 100_000, b"]" * 100_000)}
ACCOUNT_LIST = "/accounts/v1/account/list"
CROSS_DEPLOYMENT = "Cross-deployment Admin API usage through Accounts API is currently not available"


def _one_of(*choices: Optional[str]) -> Any:
    """A field that takes one of these values and starts with the first."""
    return dataclasses.field(default=choices[0], metadata={"choices": choices})


def _some_of(members: Iterable[str], default: Callable = tuple) -> Any:
    """A field that takes some of these names and starts with default(members)."""
    return dataclasses.field(default_factory=lambda: default(members),
                             metadata={"members": tuple(members)})


@dataclasses.dataclass
class Rules:
    """How this Duo behaves. May be changed while the server runs; wrong names and values raise."""

    # The clock, and what it hides
    clock_offset: float = 0.0           # s by which Duo's clock is ahead of this machine's
    hold_back_s: float = 120.0          # s for which a new event is not shown: v2, trust monitor
    v1_hold_back_s: float = 120.0       # the same for the v1 logs
    young: str = _one_of("cut", "empty")    # maxtime within hold_back_s: cut there, or no event
    old: str = _one_of("400", "accept")     # mintime 180 days old or older on the v2 logs
    revise_after_s: Optional[float] = None  # s after which a trust monitor event's state changes

    # Pages
    cursor: str = _one_of("last", "next")   # names the last event given, or the first to come
    last_cursor: str = _one_of("present", "null", "missing")    # on a v2 log's last page of events
    cursor_lifetime: Optional[float] = None     # s after which a cursor is refused; None: never
    cursor_pages: Optional[int] = None  # pages of a walk after which its cursor is refused; None: never
    cursor_window: str = _one_of("free", "same")    # may mintime and maxtime change beside a cursor
    auth_cursor: str = _one_of("list", "string")    # the form in which authentication gives it
    trust_cursor: str = _one_of("string", "int")    # the form in which trust monitor gives it
    trust_order: str = _one_of("ascending", "descending")   # trust monitor events by time
    short_pages: bool = False           # pages shorter than asked for before the last one; v1 too
    # total_objects: of the window, of what remains, at random, of this page only, or not there
    total: str = _one_of("int", "object", "remaining", "changing", "page", "absent")
    ties: str = _one_of("stable", "shuffled")   # order within a ms (v1: a second) between calls
    v1_order: str = _one_of("ascending", "shuffled")    # order within a page of v1 events
    v1_limit: int = 1000                # the number of earliest events that v1 gives
    v1_mintime: str = _one_of("inclusive", "exclusive")     # does v1 give events of that second
    text: str = _one_of("utf-8", "ascii")   # is what is not ASCII escaped; for events added later
    limit: str = _one_of("error", "clamp")  # a limit below 1 or above the maximum
    unknown_parameters: str = _one_of("ignore", "400")

    # Refusals
    check_order: Tuple[str, ...] = _some_of(CHECKS)     # which refusal wins of several
    signatures: Tuple[str, ...] = _some_of(SIGNATURES)  # the accepted ones
    skew_s: float = 300.0               # s that a request's date may be off
    no_permission: bool = False         # 403 for every log
    missing: Dict[str, int] = _some_of(LOG_TYPES, lambda _: {})     # log type: 403, 404 or 400
    code_as_string: bool = False        # `code` of an error as a JSON string
    date_code: int = _one_of(40105, 40104)      # of the answer to a date that is off, or missing
    date_message: str = "Bad request timestamp"     # its text
    rate_limit: Optional[int] = None    # let through per window, 1 or more; None: all
    rate_window_s: float = 60.0
    rate_shape: str = _one_of("sliding", "fixed", "bucket")
    rate_scope: str = _one_of("endpoint", "account")
    count_refused: bool = False         # does a 429 count as a request
    retry_after: Optional[str] = _one_of(None, "seconds", "date")   # form of Retry-After on a 429

    # Trouble
    date_offset: float = 0.0            # s by which a proxy's Date is off Duo's; Duo goes by its own
    latency_s: float = 0.0              # s before every answer
    bytes_per_s: Optional[float] = None     # of the body, on a slow link; None: at once
    fault_rate: float = 0.0             # share of requests, 0 to 1, that meet one of fault_kinds
    fault_kinds: Tuple[str, ...] = _some_of(FAULT_KINDS, lambda _: COMMON_FAULTS)
    ping_faults: Tuple[str, ...] = _some_of(FAULT_KINDS, lambda _: ())  # /auth/v2/ping always meets one of these
    stall_s: float = 5.0                # s of silence before the answer when the fault is "stall"

    # The Accounts API, through which a parent reads its children's logs
    application: str = _one_of("admin", "accounts")     # what the keys are for
    accounts_code: int = _one_of(40301, 40102)  # a list of accounts, asked for with an "admin" key
    parent_log_code: int = _one_of(40301, 40102)    # a log of the parent's own, with an "accounts" key
    no_account_code: int = _one_of(40102, 40301)    # a child's log, asked for without account_id
    account_code: int = _one_of(40301, 40102, 40401, 40002)     # with one that is not the child's
    deployment: str = _one_of("same", "other")      # of a child, as its parent's or not
    deployment_code: int = 40002        # of the refusal where it is another
    api_hostname: str = _one_of("host", "url")  # in the list: host and port, or with http:// before it
    seed: int = 0                       # of all that is random; read when the simulator is made

    def __setattr__(self, name: str, value: Any) -> None:
        """A test with a misspelt rule would test nothing, so that is an error."""
        if name not in self.__dataclass_fields__:
            raise AttributeError(f"no such rule: {name}")
        metadata = self.__dataclass_fields__[name].metadata
        allowed = metadata.get("choices") or metadata.get("members")
        for one in value if "members" in metadata else [value]:
            if allowed and one not in allowed:
                raise ValueError(f"{name}: {one!r} is none of {', '.join(map(str, allowed))}")
        super().__setattr__(name, value)


class Answer(NamedTuple):
    """A response, and how it is delivered: "whole", "half" (then closed), "reset" or a callable."""

    status: int
    headers: Dict[str, str]
    body: bytes
    events: int = 0
    delivery: Any = "whole"
    delay_s: float = 0.0


class Request(NamedTuple):
    """What the simulator noted of one request, before it sent the answer."""

    monotonic: float            # s, time.monotonic() on arrival
    wall: float                 # s since 1970 on this machine's clock
    log_type: Optional[str]     # None: not a log endpoint
    path: str
    params: Dict[str, Any]      # name: text, or a list of texts where the parameter was repeated
    status: int                 # 0 when no whole response head was meant to go out
    events: int                 # in a whole and valid answer
    connection: int             # 1, 2, 3... in the order in which connections were opened
    date: Optional[str]         # as signed
    fault: Any                  # what was injected or drawn, or None


class Refusal(Exception):
    """Duo says no, with a code whose first three digits are the HTTP status."""

    def __init__(self, code: int, detail: Optional[str] = None, wait_s: Optional[float] = None,
                 message: Optional[str] = None):
        super().__init__(code, detail)
        self.code, self.detail, self.wait_s = code, detail, wait_s
        self.message = message or ERRORS[code]

    def body(self, rules: Rules) -> bytes:
        code = str(self.code) if rules.code_as_string else self.code
        content = {"code": code, "message": self.message, "stat": "FAIL"}
        if self.detail is not None:
            content["message_detail"] = self.detail
        return json.dumps(content).encode()

    def answer(self, rules: Rules, now_ms: int) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self.wait_s is not None and rules.retry_after == "seconds":
            headers["Retry-After"] = str(math.ceil(self.wait_s))
        elif self.wait_s is not None and rules.retry_after == "date":
            headers["Retry-After"] = _http_date(now_ms + math.ceil(self.wait_s) * 1000)
        return Answer(self.code // 100, headers, self.body(rules))


class Row(NamedTuple):
    """A stored event. Rows sort by time, then by the order in which they were added."""

    time_us: int
    number: int
    id: str
    body: bytes         # the JSON text, made once: a page is joined, not encoded


class Stall(NamedTuple):
    """Duo's log pipeline stands still while the API answers: a share of the events of this time is shown at its end."""

    start_ms: int
    end_ms: int
    share: float
    random: random.Random

    def holds(self, row: Row) -> bool:
        return self.start_ms <= row.time_us // 1000 < self.end_ms and self.random.random() < self.share


class EventStore:
    """The events of one log type in the order of time, sliced by bisection."""

    def __init__(self, log: LogType) -> None:
        self.log = log
        self.lock = threading.Lock()
        self.rows: List[Row] = []
        self.unpublished: List[Tuple[int, Row]] = []    # in the order of the ms of publication
        self.stalls: List[Stall] = []
        self.numbers = itertools.count()

    def add(self, events: Iterable[Any], published_ms: Optional[int],
            at_ms: Optional[int]) -> None:
        self.add_rows([self._row(event, at_ms) for event in events], published_ms)

    def add_rows(self, rows: List[Row], published_ms: Optional[int]) -> None:
        with self.lock:
            if published_ms is not None:
                for row in rows:
                    insort(self.unpublished, (published_ms, row))
                return
            if self.stalls:
                rows = self._hold(rows)
                self.unpublished.sort()
            self._insert(rows)

    def stall(self, stall: "Stall") -> None:
        """Hold back what is there of this time, and what is added later."""
        with self.lock:
            self.stalls.append(stall)
            self.rows = self._hold(self.rows)
            self.unpublished.sort()

    def _hold(self, rows: List[Row]) -> List[Row]:
        """Those of the rows that no stall holds back; the others are shown when the last of theirs ends."""
        shown = []
        for row in rows:
            ends = [stall.end_ms for stall in self.stalls if stall.holds(row)]
            if ends:
                self.unpublished.append((max(ends), row))
            else:
                shown.append(row)
        return shown

    def publish(self, now_ms: int) -> None:
        """Show the late events whose moment has come. The caller holds the lock."""
        due = bisect_left(self.unpublished, (now_ms + 1,))
        self._insert([row for _, row in self.unpublished[:due]])
        del self.unpublished[:due]

    def all_rows(self) -> List[Row]:
        with self.lock:
            return sorted(self.rows + [row for _, row in self.unpublished])

    def revise(self, event_id: str, fields: Dict[str, Any]) -> None:
        with self.lock:
            index = next(i for i, row in enumerate(self.rows) if row.id == event_id)
            event = {**json.loads(self.rows[index].body), **fields}
            del self.rows[index]
            self._insert([self._row(event, None)])

    def span(self, first_ms: int, last_ms: int) -> Tuple[int, int]:
        """Indices of the rows from first_ms to last_ms inclusive, as a half-open range."""
        # A one-element tuple sorts before every row of that time.
        first = bisect_left(self.rows, (first_ms * 1000,))
        return first, max(first, bisect_left(self.rows, ((last_ms + 1) * 1000,)))

    def cut(self, first: int, end: int, shuffle: Optional[random.Random]) -> List[Row]:
        """rows[first:end]; with a generator, events of the same instant trade places."""
        if shuffle is None or first == end:
            return self.rows[first:end]
        instant_us = self.log.unit_ms * 1000
        low = bisect_left(self.rows, (self.rows[first].time_us // instant_us * instant_us,))
        after_us = (self.rows[end - 1].time_us // instant_us + 1) * instant_us
        rows = sorted(self.rows[low:bisect_left(self.rows, (after_us,))],
                      key=lambda row: (row.time_us // instant_us, shuffle.random()))
        return rows[first - low:end - low]

    def position(self, time_ms: int, event_id: str) -> Tuple[int, bool]:
        """Index of an event and True, or of the start of its ms and False."""
        first, end = self.span(time_ms, time_ms)
        for index in range(first, end):
            if self.rows[index].id == event_id:
                return index, True
        return first, False

    def _insert(self, rows: List[Row]) -> None:
        if len(rows) < 10:
            for row in rows:
                insort(self.rows, row)
            return
        rows.sort()
        first = bisect_left(self.rows, rows[0])
        self.rows[first:] = sorted(self.rows[first:] + rows)    # quick: it merges two sorted runs

    def _row(self, event: Any, at_ms: Optional[int]) -> Row:
        body = event.encode() if isinstance(event, str) else event
        if isinstance(body, dict):
            body = _encode(body)
        else:
            event = json.loads(body)
        time_us = _event_time_us(self.log, event) if at_ms is None else at_ms * 1000
        event_id = event.get(self.log.id_field)
        return Row(time_us, next(self.numbers), "" if event_id is None else str(event_id), body)


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _encode(event: Dict[str, Any]) -> bytes:
    text = _compact(event)
    try:
        return text.encode()
    except UnicodeEncodeError:      # a lone surrogate exists in JSON only as an escape
        return json.dumps(event, separators=(",", ":")).encode()


def _event_time_us(log: LogType, event: Dict[str, Any]) -> int:
    field = next(name for name in log.time_fields if event.get(name) is not None)
    if isinstance(event[field], str):
        moment = datetime.fromisoformat(event[field].replace("Z", "+00:00"))
        return (moment - EPOCH) // timedelta(microseconds=1)
    # `timestamp` is in s even in authentication, whose mintime is in ms.
    return int(event[field] * (1_000_000 if field == "timestamp" else 1000))


def _http_date(at_ms: int) -> str:
    return email.utils.formatdate(at_ms // 1000, usegmt=True)


class RateLimiter:
    """Counts requests per key, in the shape that the rules ask for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken: Dict[str, collections.deque] = collections.defaultdict(collections.deque)
        self.full_at: Dict[str, float] = collections.defaultdict(float)

    def wait_s(self, key: str, now_s: float, rules: Rules) -> float:
        """0 when the request is let through, else s until one would be."""
        if rules.rate_limit is None:
            return 0.0
        with self.lock:
            if rules.rate_shape == "bucket":
                return self._bucket_wait_s(key, now_s, rules, rules.rate_limit)
            return self._window_wait_s(key, now_s, rules, rules.rate_limit)

    def _window_wait_s(self, key: str, now_s: float, rules: Rules, limit: int) -> float:
        window_s, taken = rules.rate_window_s, self.taken[key]
        start_s = now_s - (now_s % window_s if rules.rate_shape == "fixed" else window_s)
        while taken and taken[0] <= start_s:
            taken.popleft()
        wait_s = 0.0
        if len(taken) >= limit:
            leaves_s = start_s if rules.rate_shape == "fixed" else taken[-limit]
            wait_s = leaves_s + window_s - now_s
        if not wait_s or rules.count_refused:
            taken.append(now_s)
        return wait_s

    def _bucket_wait_s(self, key: str, now_s: float, rules: Rules, limit: int) -> float:
        """The bucket holds `limit` requests and refills evenly over the window."""
        refill_s = rules.rate_window_s / limit
        full_at = max(self.full_at[key], now_s) + refill_s
        wait_s = full_at - now_s - rules.rate_window_s
        wait_s = wait_s if wait_s > 1e-6 else 0.0       # a sum of floats, not a wait
        if not wait_s or rules.count_refused:
            self.full_at[key] = full_at
        return wait_s


@dataclasses.dataclass
class Call:
    """A request to a log endpoint while it is checked and answered."""

    name: str                       # of the log type; empty for another endpoint
    method: str
    path: str
    params: Dict[str, List[str]]
    headers: Any
    body: str
    date: Optional[str]             # as signed
    now_ms: int                     # on Duo's clock
    mintime: int = 0                # in the endpoint's unit, as is maxtime
    maxtime: int = 0
    limit: int = 0
    descending: bool = False
    cursor: Optional[str] = None    # "ms,id", or a number for trust_cursor "int"
    pages: int = 0                  # of this walk that were given before

    @property
    def log(self) -> LogType:
        return LOG_TYPES[self.name]

    def first(self, name: str) -> Any:
        """A parameter's text, or None; where it was repeated, the first."""
        return self.params.get(name, [None])[0]


def _signed_date(headers: Any) -> Optional[str]:
    # X-Duo-Date wins when both are there: it exists because libraries and proxies own Date.
    return headers.get("X-Duo-Date") or headers.get("Date")


def _ok(response: bytes, events: int = 0) -> Answer:
    # Duo's Ruby client accepts exactly this Content-Type, with nothing after it.
    return Answer(200, {"Content-Type": "application/json"},
                  b'{"stat":"OK","response":%s}' % response, events)


def _integer(call: Call, name: str, default: int) -> int:
    text = call.first(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise Refusal(40002, name)
    return int(text)


def _refuse_old(call: Call) -> None:
    # Exactly 180 days fails: time passes between the reckoning and the answer.
    if call.mintime <= call.now_ms - KEPT_MS:
        raise Refusal(40002, "mintime must be within the past 180 days")


class Endpoints:
    """What Duo answers, without the sockets and the faults of Simulator."""

    def __init__(self, rules: Rules, ikey: str, skey: str, wall: Callable[[], float] = time.time,
                 monotonic: Callable[[], float] = time.monotonic) -> None:
        self.rules, self.ikey, self.skey = rules, ikey, skey
        self.wall, self.monotonic = wall, monotonic     # s; others than the real ones for virtual time
        self.parent: Optional[Endpoints] = None         # of a child account
        self.account = {"account_id": "", "api_hostname": "", "name": ""}   # a child's, as it is listed
        self.children: List[Endpoints] = []
        self._stores = {name: EventStore(log) for name, log in LOG_TYPES.items()}
        self._limiter = RateLimiter()
        # (log type, cursor): when it was given (s, monotonic), after how many pages, and the window
        # that it belongs to
        self._issued: Dict[Tuple[str, str], Tuple[float, int, int, int]] = {}
        self._random = random.Random(rules.seed)

    def now_ms(self) -> int:
        """Duo's clock, in ms since 1970."""
        return int((self.wall() + self.rules.clock_offset) * 1000)

    def date(self) -> str:
        """The Date header of an answer."""
        return _http_date(self.now_ms() + int(self.rules.date_offset * 1000))

    def _answer(self, method: str, path: str, params: Dict[str, List[str]], headers: Any,
                body: bytes = b"") -> Answer:
        now_ms = self.now_ms()
        try:
            if path == "/auth/v2/ping" and method == "GET":     # not signed: to learn Duo's time
                return _ok(b'{"time":%d}' % (now_ms // 1000))
            if path not in (*PATHS, "/auth/v2/ping", ACCOUNT_LIST):
                raise Refusal(40401)
            if method != ("POST" if path == ACCOUNT_LIST else "GET"):
                raise Refusal(40501)
            call = Call(PATHS.get(path, ""), method, path, params, headers, body.decode(errors="replace"),
                        _signed_date(headers), now_ms)
            if path == ACCOUNT_LIST:
                return self._account_list(call)
            for check in self.rules.check_order:
                getattr(self, "_check_" + check)(call)
            return self._v1_page(call) if call.log.cursor is None else self._page(call)
        except Refusal as refusal:
            return refusal.answer(self.rules, now_ms)

    def _account_list(self, call: Call) -> Answer:
        self._check_signature(call)
        self._check_date(call)
        if self.rules.application != "accounts":
            raise Refusal(self.rules.accounts_code)
        return _ok(_compact([child.account for child in self.children]).encode())

    def _check_account(self, call: Call) -> None:
        """May these keys read this account's logs? A parent's may, if they name the child."""
        if self.rules.application == "accounts":
            raise Refusal(self.rules.parent_log_code)
        if self.parent is None:
            return
        account_id = call.first("account_id")
        if account_id != self.account["account_id"]:
            raise Refusal(self.rules.no_account_code if account_id is None else self.rules.account_code)
        if self.rules.deployment == "other":
            raise Refusal(self.rules.deployment_code, message=CROSS_DEPLOYMENT)

    def _check_signature(self, call: Call) -> None:
        scheme, _, encoded = call.headers.get("Authorization", "").partition(" ")
        try:
            ikey, colon, given = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            raise Refusal(40101) from None
        if scheme.lower() != "basic" or not colon:
            raise Refusal(40101)
        if ikey != self.ikey:
            raise Refusal(40102)
        if not call.date:
            raise Refusal(40104)
        form = call.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        if form:    # parameters as the two older signature versions send them
            call.params.update(urllib.parse.parse_qs(call.body, keep_blank_values=True))
            call.body = ""
        for name, (version, digest) in SIGNATURES.items():
            if hmac.compare_digest(self._signature(call, version, digest), given.encode()):
                if name not in self.rules.signatures:
                    raise Refusal(40112)
                return
        raise Refusal(40103)

    def _signature(self, call: Call, version: int, digest: Callable) -> bytes:
        # Duo signs what it parsed, encoded anew, so the order on the wire is free. The signed host
        # is in lower case and has no port, although the Host header has one.
        host = urllib.parse.urlsplit("//" + call.headers.get("Host", "")).hostname or ""
        extra = {name: value for name, value in call.headers.items()
                 if name.lower().startswith("x-duo-")}
        signed = duo_client.client.sign(
            self.ikey, self.skey, call.method, host, call.path, call.date, version, call.params,
            body=call.body, digestmod=digest, additional_headers=extra)
        return base64.b64decode(signed.split(" ")[1]).partition(b":")[2]

    def _check_date(self, call: Call) -> None:
        try:
            moment = email.utils.parsedate_to_datetime(call.date or "")
        except (TypeError, ValueError, IndexError, OverflowError):
            raise self._date_refusal() if call.date else Refusal(40104) from None
        if moment.tzinfo is None:           # "-0000", which Duo's client sends, is UTC
            moment = moment.replace(tzinfo=timezone.utc)
        if abs(moment.timestamp() - call.now_ms / 1000) > self.rules.skew_s:
            raise self._date_refusal()

    def _date_refusal(self) -> Refusal:
        return Refusal(self.rules.date_code, message=self.rules.date_message)

    def _check_permission(self, call: Call) -> None:
        self._check_account(call)
        if self.rules.no_permission:
            raise Refusal(40301)
        status = self.rules.missing.get(call.name)
        if status is not None:
            raise Refusal({403: 40301, 404: 40401, 400: 40002}[status])

    def _check_rate(self, call: Call) -> None:
        key = call.name if self.rules.rate_scope == "endpoint" else "account"
        wait_s = self._limiter.wait_s(key, self.monotonic(), self.rules)
        if wait_s:
            raise Refusal(42901, wait_s=wait_s)

    def _check_parameters(self, call: Call) -> None:
        """Reads the parameters into the call, too."""
        unknown = sorted(set(call.params) - call.log.parameters)
        if unknown and self.rules.unknown_parameters == "400":
            raise Refusal(40002, ", ".join(unknown))
        if call.log.cursor is None:
            call.mintime = _integer(call, "mintime", 0)
            return
        if call.first("mintime") is None or call.first("maxtime") is None:
            raise Refusal(40001)
        if call.log.v2:
            self._read_v2_window(call)
        else:
            self._read_trust_window(call)
        call.limit = self._read_limit(call)
        call.cursor = self._read_cursor(call)

    def _read_v2_window(self, call: Call) -> None:
        for name in ("mintime", "maxtime"):     # seconds and µs were observed to be refused so
            if not re.fullmatch(r"[0-9]{13}", call.first(name)):
                raise Refusal(40002, f"'{name}' must be a timestamp in milliseconds")
        call.mintime, call.maxtime = int(call.first("mintime")), int(call.first("maxtime"))
        if call.mintime >= call.maxtime:
            raise Refusal(40002, "'maxtime' must be strictly greater than 'mintime'")
        if self.rules.old == "400":
            _refuse_old(call)
        if call.first("sort") not in (None, "ts:asc", "ts:desc"):
            raise Refusal(40002, "sort")
        call.descending = call.first("sort") != "ts:asc"    # the default is the newest first

    def _read_trust_window(self, call: Call) -> None:
        call.mintime, call.maxtime = _integer(call, "mintime", 0), _integer(call, "maxtime", 0)
        # A mintime in seconds was observed to be refused here as too old.
        _refuse_old(call)
        if call.mintime >= call.maxtime:
            raise Refusal(40002, "maxtime")
        call.descending = self.rules.trust_order == "descending"

    def _read_limit(self, call: Call) -> int:
        limit = _integer(call, "limit", call.log.default_limit)
        if not 1 <= limit <= call.log.max_limit and self.rules.limit == "error":
            raise Refusal(40002, "limit")
        return min(max(limit, 1), call.log.max_limit)

    def _read_cursor(self, call: Call) -> Optional[str]:
        """The cursor in its one-string form; authentication's may come as a repeated parameter."""
        values = call.params.get(call.log.cursor or "")
        if values is None:
            return None
        cursor = ",".join(values)
        number = not call.log.v2 and self.rules.trust_cursor == "int"
        if not re.fullmatch(r"[0-9]{1,9}" if number else r"(?s)[0-9]{13},.*", cursor):
            raise Refusal(40002, call.log.cursor)
        never = (-math.inf, 0, call.mintime, call.maxtime)
        issued, pages, *window = self._issued.get((call.name, cursor), never)
        lifetime, most = self.rules.cursor_lifetime, self.rules.cursor_pages
        if lifetime is not None and self.monotonic() - issued > lifetime:
            raise Refusal(40002, call.log.cursor)
        if most is not None and pages >= most:
            raise Refusal(40002, call.log.cursor)
        call.pages = pages
        if self.rules.cursor_window == "same" and window != [call.mintime, call.maxtime]:
            raise Refusal(40002, call.log.cursor)
        return cursor

    def _page(self, call: Call) -> Answer:
        """A page of a v2 log or of trust monitor."""
        store = self._stores[call.name]
        with store.lock:
            store.publish(call.now_ms)
            first, end = self._window(call, store)
            done = self._position(call, store, first, end)
            left = end - first - done
            count = self._shortened(min(call.limit, left), self._least(call, store, first + done))
            begin = end - done - count if call.descending else first + done
            rows = store.cut(begin, begin + count, self._shuffle())
            after = None
            if count < left:
                after = store.rows[begin - 1 if call.descending else begin + count]
        if call.descending:
            rows.reverse()
        metadata = self._metadata(call, rows, after, done + count)
        if call.log.v2 and self.rules.total != "absent":
            metadata["total_objects"] = self._total(end - first, left, count)
        return _ok(b'{"%s":[%s],"metadata":%s}' % (
            call.log.list_key.encode(), b",".join(self._bodies(call, rows)),
            _compact(metadata).encode()), len(rows))

    def _window(self, call: Call, store: EventStore) -> Tuple[int, int]:
        """Both bounds are inclusive, and in ms where events have µs."""
        newest_ms = call.now_ms - int(self.rules.hold_back_s * 1000)
        if self.rules.young == "empty" and call.maxtime > newest_ms:
            return 0, 0
        # What is older than 180 days is gone, if a request for it is not refused outright.
        return store.span(max(call.mintime, call.now_ms - KEPT_MS), min(call.maxtime, newest_ms))

    def _position(self, call: Call, store: EventStore, first: int, end: int) -> int:
        """How many events of the window the cursor has left behind."""
        if call.cursor is None:
            return 0
        time_ms, comma, event_id = call.cursor.partition(",")
        if not comma:
            return min(int(time_ms), end - first)
        index, found = store.position(int(time_ms), event_id)
        step = 1 if found and self.rules.cursor == "last" else 0
        if call.descending:
            # An event that is no longer there: go on with all of its ms, which is never too late.
            last = index if found else store.span(int(time_ms), int(time_ms))[1] - 1
            return min(max(end - 1 - last + step, 0), end - first)
        return min(max(index - first + step, 0), end - first)

    def _metadata(self, call: Call, rows: List[Row], after: Optional[Row],
                  done: int) -> Dict[str, Any]:
        """`next_offset`, unless the rules leave it out, and a note of when it was given.

        after: the event that follows the page; done: events of the window given so far.
        """
        last_page = bool(rows) and after is None
        named = after if self.rules.cursor == "next" else rows[-1] if rows else None
        if last_page and (self.rules.last_cursor != "present" or not call.log.v2):
            # Trust monitor was observed to end with null or nothing.
            named = None
        if named is None:
            missing = last_page and self.rules.last_cursor == "missing"
            return {} if missing else {"next_offset": None}
        pair = [str(named.time_us // 1000), named.id]
        cursor: Any = ",".join(pair)
        if not call.log.v2 and self.rules.trust_cursor == "int":
            cursor = done
        self._issued[call.name, str(cursor)] = (self.monotonic(), call.pages + 1, call.mintime, call.maxtime)
        as_list = call.name == "authentication" and self.rules.auth_cursor == "list"
        return {"next_offset": pair if as_list else cursor}

    def _total(self, window: int, left: int, count: int) -> Any:
        if self.rules.total == "object":
            return {"relation": "eq", "value": window}
        if self.rules.total == "remaining":
            return left
        if self.rules.total == "page":
            return count
        if self.rules.total == "changing":
            return self._random.randint(window // 2, window * 2)
        return window

    def _v1_page(self, call: Call) -> Answer:
        """The earliest events from mintime on, as a bare list."""
        store, rules = self._stores[call.name], self.rules
        from_ms = (call.mintime + (rules.v1_mintime == "exclusive")) * 1000
        with store.lock:
            store.publish(call.now_ms)
            first, end = store.span(from_ms, call.now_ms - int(rules.v1_hold_back_s * 1000))
            count = min(rules.v1_limit, end - first)
            if count:
                # Nobody could page on from a short page that brings nothing after the second asked
                # for, or after the next: a careful client asks from the second before its last.
                this_ms = store.rows[first].time_us // 1000
                count = self._shortened(count, store.span(this_ms, this_ms + 1000)[1] - first + 1)
            rows = store.cut(first, first + count, self._shuffle())
        if rules.v1_order == "shuffled":
            self._random.shuffle(rows)
        return _ok(b"[%s]" % b",".join(self._bodies(call, rows)), len(rows))

    def _least(self, call: Call, store: EventStore, begin: int) -> int:
        """Of a short page from `begin` on. Where cursors fail, nobody could page on from one that ends in its first ms,
        nor from any that comes in no order."""
        if self.rules.cursor_pages is None and self.rules.cursor_lifetime is None:
            return 1
        if not call.log.v2 or call.descending:
            return call.limit
        this_ms = store.rows[begin].time_us // 1000 if begin < len(store.rows) else 0
        return store.span(this_ms, this_ms)[1] - begin + 1

    def _shortened(self, count: int, least: int) -> int:
        return self._random.randint(least, count) if self.rules.short_pages and least < count \
            else count

    def _shuffle(self) -> Optional[random.Random]:
        return self._random if self.rules.ties == "shuffled" else None

    def _bodies(self, call: Call, rows: List[Row]) -> Iterable[bytes]:
        if self.rules.revise_after_s is None or call.name != "trust_monitor":
            return [row.body for row in rows]
        before_us = (call.now_ms - self.rules.revise_after_s * 1000) * 1000
        return [row.body.replace(b'"state":"new"', b'"state":"processed"')
                if row.time_us <= before_us else row.body for row in rows]


class Simulator(Endpoints):
    """Duo on a loopback port, from `with` or start() to stop()."""

    def __init__(self, rules: Optional[Rules] = None, ikey: str = "DIXXXXXXXXXXXXXXXXXX",
                 skey: str = "deadbeef" * 5, host: str = "127.0.0.1", port: int = 0,
                 tls: Optional[ssl.SSLContext] = None, wall: Callable[[], float] = time.time,
                 monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(rules or Rules(), ikey, skey, wall, monotonic)
        self.host, self.port, self.tls = host, port, tls
        self.requests: List[Request] = []
        self.connections = 0                # TCP connections accepted so far
        self.stopping = threading.Event()
        self._injected: Dict[Optional[str], collections.deque] = \
            collections.defaultdict(collections.deque)
        self._fault_random = random.Random(self.rules.seed)
        self._server: Optional[_Server] = None

    def add_child(self, name: str, rules: Optional[Rules] = None, host: Optional[str] = None) -> "Simulator":
        """Another account, on a host of its own, that these keys may read if they are an Accounts application's.

        It starts and stops with its parent, and has the parent's port. Its events are its own.
        """
        number = len(self.children) + 1
        host = host or str(ipaddress.ip_address(self.host) + number)
        child = Simulator(rules, self.ikey, self.skey, host, self.port, self.tls, self.wall, self.monotonic)
        child.parent = self
        child.account.update(account_id=f"DACHILD{number:013d}", name=name)
        self.children.append(child)
        return child

    def start(self) -> "Simulator":
        """Listen. After a stop() it is the same port again, with the same events."""
        self.stopping.clear()
        self._server = _Server((self.host, self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        for child in self.children:
            child.port = self.port
            child.start()
            is_url = self.rules.api_hostname == "url"
            child.account["api_hostname"] = child.url if is_url else f"{child.host}:{child.port}"
        return self

    def stop(self) -> None:
        """Stop listening and break the open connections, as a host that goes down would."""
        for child in self.children:
            child.stop()
        self.stopping.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.break_connections()
            self._server = None

    def __enter__(self) -> "Simulator":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def settings(self) -> Dict[str, str]:
        """The environment that leads the collector here."""
        account = {"DUO_ACCOUNT_ID": self.account["account_id"]} if self.parent else {}
        return {"DUO_API_HOST": self.url, "DUO_INTEGRATION_KEY": self.ikey,
                "DUO_SECRET_KEY": self.skey, **account}

    def add(self, log_type: str, events: Iterable[Any], published_ms: Optional[int] = None,
            at_ms: Optional[int] = None) -> None:
        """Put events, as dicts or as JSON text, into a log, at any time and in any order.

        published_ms: when Duo starts to show them, for events that surface late.
        at_ms: their time, where the events themselves have none that can be read.
        """
        if isinstance(events, (dict, str, bytes)):
            events = [events]
        if self.rules.text == "ascii":
            events = (json.dumps(event, separators=(",", ":")) if isinstance(event, dict) else event
                      for event in events)
        self._stores[log_type].add(events, published_ms, at_ms)

    def add_encoded(self, log_type: str, events: Iterable[Tuple[int, str, bytes]],
                    published_ms: Optional[int] = None) -> None:
        """The same with time (µs), id and JSON text of each event, which saves parsing hundreds of thousands."""
        store = self._stores[log_type]
        store.add_rows([Row(time_us, next(store.numbers), event_id, body)
                        for time_us, event_id, body in events], published_ms)

    def events(self, log_type: str) -> List[Dict[str, Any]]:
        """All events of a log in the order of time, shown by now or not."""
        return [json.loads(row.body) for row in self._stores[log_type].all_rows()]

    def stall(self, start_ms: int, end_ms: int, share: float = 1.0,
              log_types: Iterable[str] = tuple(LOG_TYPES)) -> None:
        """Show a share of the events from start_ms to before end_ms no earlier than at end_ms.

        So it is when Duo's log pipeline stands still, whole or in part, while its API answers.
        """
        for name in log_types:
            draw = random.Random(f"{self.rules.seed} {name} {start_ms}")
            self._stores[name].stall(Stall(start_ms, end_ms, share, draw))

    def revise(self, log_type: str, event_id: str, **fields: Any) -> None:
        """Change an event that is shown already, as Duo does with trust monitor's states."""
        self._stores[log_type].revise(event_id, fields)

    def inject(self, log_type: Optional[str], *faults: Any) -> None:
        """Queue faults for the next requests to a log (None: to any; "ping": for Duo's time), one for each request.

        A fault is a name from FAULT_KINDS, a tuple (status, headers, body bytes), a callable that
        is given the request handler in place of an answer, or None for no fault at all.
        """
        for fault in faults:
            if isinstance(fault, str) and fault not in FAULT_KINDS:
                raise ValueError(f"no such fault: {fault}")
        self._injected[log_type].extend(faults)

    def respond(self, method: str, target: str, headers: Any, connection: int,
                body: bytes = b"") -> Answer:
        """Answer one request, and note it."""
        arrived = self.monotonic(), self.wall()
        parts = urllib.parse.urlsplit(target)
        params: Dict[str, List[str]] = {}
        for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
            params.setdefault(name, []).append(value)
        log_type = PATHS.get(parts.path)
        answer, fault = self._answer(method, parts.path, params, headers, body), None
        if log_type is not None:
            fault = self._next_fault(log_type)
            answer = self._spoil(answer, fault)
        elif parts.path == "/auth/v2/ping":
            fault = self._next_ping_fault()
            answer = self._spoil(answer, fault)
        shown = {name: values[0] if len(values) == 1 else values for name, values in params.items()}
        self.requests.append(Request(*arrived, log_type, parts.path, shown, answer.status,
                                     answer.events, connection, _signed_date(headers), fault))
        return answer._replace(delay_s=answer.delay_s + self.rules.latency_s)

    def _next_fault(self, log_type: str) -> Any:
        for key in (log_type, None):
            if self._injected[key]:
                return self._injected[key].popleft()
        if self._fault_random.random() < self.rules.fault_rate:
            return self._fault_random.choice(self.rules.fault_kinds)
        return None

    def _next_ping_fault(self) -> Any:
        if self._injected["ping"]:
            return self._injected["ping"].popleft()
        return self._fault_random.choice(self.rules.ping_faults) if self.rules.ping_faults else None

    def _spoil(self, answer: Answer, fault: Any) -> Answer:
        """The answer as the fault leaves it."""
        if fault is None:
            return answer
        if callable(fault):
            return answer._replace(status=0, events=0, delivery=fault)
        if isinstance(fault, tuple):
            return Answer(*fault)
        if fault == "stall":
            return answer._replace(delay_s=self.rules.stall_s)
        if fault == "reset":
            return answer._replace(status=0, events=0, delivery="reset")
        if fault == "cut":
            return answer._replace(events=0, delivery="half")
        if fault == "truncated":
            return answer._replace(events=0, body=answer.body[:len(answer.body) // 2])
        if fault in ("no_metadata", "no_cursor"):
            return answer._replace(body=_without(fault, answer.body))
        if fault in SPOILT_MEMBERS:
            return answer._replace(body=answer.body.replace(b"[{", b"[{" + SPOILT_MEMBERS[fault], 1))
        return self._replacement(fault)

    def _replacement(self, fault: str) -> Answer:
        refusals = {"error_500": Refusal(50001), "error_429": Refusal(42901, wait_s=1.0),
                    "error_404": Refusal(40401), "clock_401": self._date_refusal()}
        if fault in refusals:
            return refusals[fault].answer(self.rules, self.now_ms())
        status, kind, body = {
            "not_json": (200, "application/json", b'{"stat":"OK","response":[}'),
            "empty_200": (200, "application/json", b""),
            "no_time": (200, "application/json", b'{"stat":"OK","response":{}}'),
            "stat_fail": (200, "application/json", Refusal(50001).body(self.rules)),
            "html_502": (502, "text/html", b"<html><body><h1>502 Bad Gateway</h1></body></html>\n"),
            "error_503": (503, "text/plain", b"Service Unavailable\n"),
        }[fault]
        return Answer(status, {"Content-Type": kind}, body)


def _without(fault: str, body: bytes) -> bytes:
    """A page of events without its metadata, or without the cursor in it."""
    events, found, metadata = body.rpartition(b',"metadata":')
    if not found or body.endswith(b"]}"):  # a v1 page: that is in an event
        return body
    kept = {name: value for name, value in json.loads(metadata[:-2]).items() if name != "next_offset"}
    return events + (found + _compact(kept).encode() if fault == "no_cursor" else b"") + b"}}"


class _Server(http.server.ThreadingHTTPServer):
    """A thread for each connection; knows the open ones, so that stopping ends them."""

    request_queue_size = 128

    def __init__(self, address: Tuple[str, int], simulator: Simulator) -> None:
        self.simulator = simulator
        self.lock = threading.Lock()
        self.open: Dict[int, socket.socket] = {}
        super().__init__(address, _Handler)
        if simulator.tls:
            # The handshake waits for the connection's own thread, or one client could block all.
            self.socket = simulator.tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host name up, which takes seconds where there is no DNS.
        socketserver.TCPServer.server_bind(self)

    def opened(self, connection: socket.socket) -> int:
        with self.lock:
            self.simulator.connections += 1
            self.open[self.simulator.connections] = connection
            return self.simulator.connections

    def closed(self, number: int) -> None:
        with self.lock:
            self.open.pop(number, None)

    def break_connections(self) -> None:
        with self.lock:
            for connection in self.open.values():
                with contextlib.suppress(OSError):      # the peer was quicker
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; an error in the simulator is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.number)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        simulator = self.server.simulator
        answer = simulator.respond(self.command, self.path, self.headers, self.number, body)
        if answer.delay_s and simulator.stopping.wait(answer.delay_s):
            self.close_connection = True
        elif answer.delivery == "reset":
            self.reset()
        elif callable(answer.delivery):
            answer.delivery(self)
        else:
            self.send(answer.status, answer.headers, answer.body, answer.delivery == "half")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def send(self, status: int, headers: Dict[str, str], body: bytes, half: bool = False) -> None:
        """Send a response in one write, on a slow link in many; half: announce it all, send half, close."""
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        simulator = self.server.simulator
        fields = {"Date": simulator.date(),
                  "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        if half:
            body = body[:len(body) // 2]
            self.close_connection = True
        opening, speed = f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1"), simulator.rules.bytes_per_s
        if speed is None:
            self.wfile.write(opening + body)
            return
        self.wfile.write(opening)
        piece = max(1, int(speed / 10))
        for first in range(0, len(body), piece):
            self.wfile.write(body[first:first + piece])
            if simulator.stopping.wait(piece / speed):
                self.close_connection = True
                return

    def reset(self) -> None:
        """Close so that the peer sees a reset and not the end of a stream."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *_: Any) -> None:
        """Requests are in Simulator.requests; the terminal belongs to the test."""


# What made-up events are made of: texts that occur in Duo's documentation and in captured events,
# with the nulls, the "unknown" strings and the non-ASCII names that have broken other collectors.
NAMES = ("amelia.brown", "björn.andersson", "chloé.lefèvre", "grace.o'neill", "jürgen.müller",
         "мария.иванова", "noor şahin", "山田太郎", "svc_backup", "CORP\\dmitri")
PLACES: Tuple[Any, ...] = (
    {"city": "Ann Arbor", "country": "United States", "state": "Michigan"},
    {"city": "São Paulo", "country": "Brazil", "state": "São Paulo"},
    {"city": None, "country": "Japan", "state": None},
    {"city": None, "country": None, "state": None}, {})
APPLICATIONS = ("Acme VPN", "Microsoft 365", "Café Intranet – Mail", "Jenkins \"build\" farm")
FACTORS = ("duo_push", "duo_push", "duo_push", "phone_call", "duo_mobile_passcode",
           "hardware_token", "WebAuthn Chrome Touch ID", "remembered_device", "not_available", None)
REASONS = {"success": ("user_approved", "valid_passcode", "remembered_device", "bypass_user", None),
           "denied": ("no_response", "user_mistake", "invalid_passcode", "location_restricted"),
           "fraud": ("user_marked_fraud",)}
BROWSERS = (("Chrome", "130.0.6723.92"), ("Edge Chromium", "130.0.2849.68"), (None, None))
SYSTEMS = (("Windows", "10"), ("Mac OS X", "14.7.1"), ("Linux", None), ("iOS", "18.1"))
AGENTS: Tuple[Any, ...] = (
    None, "unknown", [], [{"security_agent": "Cisco Secure Endpoint", "version": "8.2.1"}])
ADMIN_ACTIONS = (       # action, object, and a description if Duo sends one
    ("admin_login", None, '{"ip_address": "198.51.100.7", "device": "+1 734-555-0100", "factor": '
     '"push", "saml_idp": null, "primary_auth_method": "Password"}'),
    ("admin_login_error", None, '{"ip_address": "203.0.113.4", "error": "SAML login is disabled '
     'for the administrator or the account", "email": "nobody@example.com"}'),
    ("user_update", "björn.müller", '{"notes": "", "uname": "björn.müller", "realname": "Björn '
     'Müller", "status": "Active", "lastdirectorysync": "2026-03-02"}'),
    ("user_create", "山田", '{"uname": "山田", "status": "Active", "phones": {}, "groups": []}'),
    ("integration_update", "Acme VPN", '{"sso": {"groups": ["büro"]}, "notes": "one\\ntwo"}'),
    ("customer_update", "Acme Corp", "Changed the account's lockout threshold to 10."),
    ("group_create", "eng", None), ("phone_delete", None, None), ("activation_begin", "new admin"))
EXPLANATIONS = [
    {"type": "NEW_COUNTRY_CODE", "summary": "Authentication from a country new to this user."},
    {"type": "NEW_NETBLOCK", "summary": "Authentication from a netblock new to this user."},
    {"type": "NEW_IKEY", "summary": "Access to an application new to this user."}]
DETAILS = json.dumps({"created": "2024-03-01T09:00:00", "email": "admin@example.com",
                      "role": "Owner", "status": "Active", "last_login": "an hour ago"})


class Draw(random.Random):
    """Chance, and the small parts that events have in common."""

    def key(self, prefix: str) -> str:
        return f"{prefix}{self.randrange(128):03d}Q7WZKX2M4VNB8RTY"[:20]

    def address(self) -> str:
        return f"198.51.100.{self.randrange(256)}"

    def uuid(self) -> str:
        digits = f"{self.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def party(self, prefix: str, **more: Any) -> Dict[str, Any]:
        return {"key": self.key(prefix), "name": self.choice(NAMES), **more}

    def access_device(self) -> Dict[str, Any]:
        browser, system = self.choice(BROWSERS), self.choice(SYSTEMS)
        secured = self.choice((True, True, False, "unknown"))
        return {"browser": browser[0], "browser_version": browser[1], "epkey": self.key("EP"),
                "flash_version": "uninstalled", "hostname": self.choice((None, "null", "LT-0042")),
                "ip": self.choice((self.address(), "2001:db8::7", "203.0.113.9:51432", None)),
                "is_encryption_enabled": secured, "is_firewall_enabled": secured,
                "is_password_set": secured, "java_version": self.choice((None, "uninstalled")),
                "location": self.choice(PLACES), "os": system[0], "os_version": system[1],
                "security_agents": self.choice(AGENTS)}


def _iso(time_us: int) -> str:
    return (EPOCH + timedelta(microseconds=time_us)).isoformat()


def _authentication(draw: Draw, time_us: int) -> Dict[str, Any]:
    result = draw.choice(("success",) * 7 + ("denied", "denied", "fraud"))
    device = {"ip": draw.address(), "key": draw.key("DP"), "location": draw.choice(PLACES),
              "name": "+1 734-555-0142"}
    event = {"access_device": draw.access_device(), "alias": draw.choice(("", "unknown")),
             "application": {"key": draw.key("DI"), "name": draw.choice(APPLICATIONS)},
             "auth_device": device, "email": draw.choice(("", None, "someone@example.com")),
             "event_type": draw.choice(("authentication", "authentication", "enrollment", None)),
             "factor": draw.choice(FACTORS), "isotimestamp": _iso(time_us),
             "ood_software": draw.choice((None, "")), "reason": draw.choice(REASONS[result]),
             "result": result, "timestamp": time_us // 1_000_000,
             "trusted_endpoint_status": draw.choice(("not trusted", "unknown", None)),
             "txid": draw.uuid(), "user": draw.party("DU", groups=["All (AD \"corp\")", "VPN"])}
    if draw.random() < 0.05:        # somebody whom Duo does not know
        event.update(result="denied", reason="deny_unenrolled_user",
                     auth_device=dict.fromkeys(device),
                     user={"groups": [], "key": None, "name": draw.choice(NAMES)})
    return event


def _activity(draw: Draw, time_us: int) -> Dict[str, Any]:
    event = {"access_device": {**draw.access_device(), "ip": {"address": draw.address()}},
             "action": {"details": draw.choice((None, DETAILS)), "name": draw.choice(
                 ("admin_update", "phone_create", "webauthncredential_create"))},
             "activity_id": draw.uuid(), "actor": draw.party("DE", details=DETAILS, type="admin"),
             "akey": "DAXXXXXXXXXXXXXXXXXX", "application": draw.choice((None, {
                 "key": draw.key("DI"), "name": "Admin Panel", "type": "adminapi"})),
             "old_target": None, "outcome": {"result": draw.choice(("SUCCESS", "FAILURE"))},
             "target": draw.party("DU", details=DETAILS, type="user_phone"), "ts": _iso(time_us)}
    if draw.random() < 0.2:
        del event["access_device"], event["old_target"]     # often absent rather than null
    return event


def _telephony(draw: Draw, time_us: int) -> Dict[str, Any]:
    context = draw.choice(("authentication", "enrollment", "administrator login", "verify"))
    return {"context": context, "credits": draw.randrange(6),
            "phone": f"+1734555{draw.randrange(10000):04d}", "telephony_id": draw.uuid(),
            "ts": _iso(time_us), "txid": draw.choice((None, draw.uuid())),
            "type": draw.choice(("sms", "phone"))}


def _v1_event(time_us: int, name: str, action: str, subject: Optional[str],
              *description: Optional[str]) -> Dict[str, Any]:
    at_s = time_us // 1_000_000
    event = {"action": action, "isotimestamp": _iso(at_s * 1_000_000), "object": subject,
             "timestamp": at_s, "username": name}
    return {**event, "description": description[0]} if description else event


def _administrator(draw: Draw, time_us: int) -> Dict[str, Any]:
    name = draw.choice(("", "API", "Zoë Owner", "AD Sync", "[Björn's key]"))
    return _v1_event(time_us, name, *draw.choice(ADMIN_ACTIONS))


def _offline_enrollment(draw: Draw, time_us: int) -> Dict[str, Any]:
    description = {"user_agent": "DuoCredProv/4.3.0.1000 (Windows NT 10.0.19045; x64; Server)",
                   "hostname": f"LT-{draw.randrange(100):04d}",
                   "factor": draw.choice(("duo_otp", "security_key"))}
    action = draw.choice(("provisioned", "deprovisioned", "reenrolled"))
    return _v1_event(time_us, draw.choice(NAMES), "o2fa_user_" + action, "Microsoft RDP – laptops",
                     json.dumps(description))


def _trust_monitor(draw: Draw, time_us: int) -> Dict[str, Any]:
    at_ms, kind, sekey = time_us // 1000, draw.randrange(4), f"SE{draw.uuid().upper()[:18]}"
    event = {"priority_event": draw.random() < 0.1, "priority_reasons": [], "sekey": sekey,
             "state": "new", "state_updated_timestamp": None, "surfaced_timestamp": at_ms,
             "triage_event_uri": f"https://admin-xxxxxxxx.duosecurity.com/trust-monitor?{sekey}",
             "triaged_as_interesting": False}
    if kind == 0:
        return {**event, "type": "bypass_status_enabled", "bypass_status_enabled": at_ms - 60_000,
                "enabled_by": draw.party("DE"), "enabled_for": draw.party("DU")}
    if kind == 1:
        outdated = {"type": "REGISTER_OS_OUTDATED", "summary": "An outdated system registered."}
        return {**event, "type": "device_registration", "explanations": [outdated]}
    surfaced = {**_authentication(draw, at_ms * 1000), "event_type": None}
    return {**event, "type": "auth", "surfaced_auth": surfaced, "explanations": EXPLANATIONS,
            "from_common_netblock": True, "from_new_user": False, "low_risk_ip": False}


MAKERS = {"authentication": _authentication, "activity": _activity, "telephony": _telephony,
          "administrator": _administrator, "offline_enrollment": _offline_enrollment,
          "trust_monitor": _trust_monitor}


def _times_us(draw: Draw, count: int, start_ms: int, end_ms: int) -> List[int]:
    """Ascending times from start_ms to before end_ms, with ties as real logs have them."""
    span_us = (end_ms - start_ms) * 1000
    times = sorted(start_ms * 1000 + int(draw.random() * span_us) for _ in range(count))
    for index in range(1, count):
        if index % 20 == 0:             # the same µs
            times[index] = times[index - 1]
        elif index % 20 == 10:          # the same ms, another µs
            times[index] = times[index - 1] // 1000 * 1000 + draw.randrange(1000)
        elif 240 < index % 500 < 260:  # a burst within a second, as by a directory sync
            times[index] = times[index - 1] // 1_000_000 * 1_000_000 + times[index] % 1_000_000
    return sorted(min(max(time_us, start_ms * 1000), end_ms * 1000 - 1) for time_us in times)


def iter_events(log_type: str, count: int, start_ms: int, end_ms: int,
                seed: int = 0) -> Iterable[Dict[str, Any]]:
    """make_events, one at a time: a million events as dicts would fill the memory."""
    draw, make = Draw(f"{log_type} {seed}"), MAKERS[log_type]
    for time_us in _times_us(draw, count, start_ms, end_ms):
        yield make(draw, time_us)


def make_events(log_type: str, count: int, start_ms: int, end_ms: int,
                seed: int = 0) -> List[Dict[str, Any]]:
    """Realistic events from start_ms to end_ms, ascending, and always the same for a seed.

    They share some of their nested values: change one only at its top level. Administrator and
    offline enrolment events have whole seconds, so the first may seem to precede start_ms.
    """
    return list(iter_events(log_type, count, start_ms, end_ms, seed))


def _setting(text: str) -> Tuple[str, Any]:
    """A Rules field and its value from NAME=VALUE."""
    name, _, value = text.partition("=")
    fields = Rules.__dataclass_fields__
    if name not in fields:
        raise argparse.ArgumentTypeError(f"no such rule: {name}")
    try:
        typed = _typed(fields[name], getattr(Rules(), name), value)
        setattr(Rules(), name, typed)
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{name}={value}: {error}") from None
    return name, typed


def _typed(field: dataclasses.Field, default: Any, value: str) -> Any:
    if default is None and value.lower() == "none":
        return None
    if isinstance(default, str) or "choices" in field.metadata:
        return int(value) if isinstance(default, int) else value
    if field.name == "missing":
        return {log_type: int(status) for log_type, status in
                (pair.split(":") for pair in value.split(",") if pair)}
    if isinstance(default, tuple):
        return tuple(part for part in value.split(",") if part)
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    whole = ("rate_limit", "v1_limit", "seed", "cursor_pages", "deployment_code")
    return int(value) if field.name in whole else float(value)


def _stall(text: str) -> Tuple[float, float, float, Tuple[str, ...]]:
    """Hours, hours, share and log types from FROM:TO[:SHARE[:LOG_TYPE,...]]."""
    start, end, share, names = (*text.split(":"), *("", "1", "")[text.count(":"):])
    chosen = tuple(names.split(",") if names else LOG_TYPES)
    if set(chosen) - set(LOG_TYPES):
        raise argparse.ArgumentTypeError(f"no such log type in {names}")
    return float(start), float(end), float(share), chosen


def _parser() -> argparse.ArgumentParser:
    rules = "\n".join(
        f"  {name}={'|'.join(map(str, field.metadata.get('choices', [getattr(Rules(), name)])))}"
        for name, field in Rules.__dataclass_fields__.items())
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [-- COMMAND [ARGUMENT ...]]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve Duo's six log endpoints on 127.0.0.1 with made-up events.\n"
        "Without COMMAND, print the settings that lead a collector here, in the form of a .env\n"
        "file, and serve until interrupted. With COMMAND, run it with these settings in its\n"
        "environment, and a temporary checkpoint file unless one is named, and end as it ends.",
        epilog="rules, with their choices (the first is the default) or default; lists take a\n"
        "comma, and missing takes log_type:status pairs; see the class Rules for what they mean:\n"
        + rules)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--events", type=int, default=2500, metavar="N",
                        help="events of each log type (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24.0, metavar="H",
                        help="spread over the last H hours (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the events and of all chance")
    parser.add_argument("--stall", type=_stall, action="append", default=[], metavar="FROM:TO[:SHARE[:LOG,LOG]]",
                        help="show events of the time from FROM to TO hours ago (a negative TO is to come) at its "
                        "end only: all, or a share of them (0 to 1), of all log types or these")
    parser.add_argument("--children", type=int, default=0, metavar="N",
                        help="be the parent of N child accounts on 127.0.0.2, 127.0.0.3, ..., with as many events "
                        "each; the settings are those of its Accounts API application")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE",
                        help="change a rule; may be given several times")
    return parser


def _run(command: List[str], settings: Dict[str, str]) -> int:
    """Run a command to its end, passing signals on; returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="duo_simulator.") as folder:
        # Nothing of the caller's own may lead elsewhere: a proxy, or the file of another secret key.
        environment = {**os.environ, **settings, "NO_PROXY": "127.0.0.0/8", "DUO_SECRET_KEY_FILE": ""}
        if not any(word.startswith("--checkpoint-file") for word in command):
            environment.setdefault("DUO_CHECKPOINT_FILE", os.path.join(folder, "checkpoints.json"))
        try:
            # In a session of its own, or Ctrl-C on a terminal would reach it twice.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
        except OSError as error:
            print(f"duo_simulator: {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: process.send_signal(number))
        status = process.wait()
        return status if status >= 0 else 128 - status


def _simulator(options: argparse.Namespace) -> Simulator:
    """What the command line asks for, with its events: one account, or a parent and its children."""
    rules = Rules(**{"seed": options.seed, **dict(options.set)})
    if not options.children:
        tenants = [simulator := Simulator(rules, port=options.port)]
    else:
        simulator = Simulator(dataclasses.replace(rules, application="accounts"), port=options.port)
        tenants = [simulator.add_child(f"Customer {number}", dataclasses.replace(rules))
                   for number in range(1, options.children + 1)]
    end_ms, hour_ms = simulator.now_ms(), 3_600_000
    for number, tenant in enumerate(tenants):
        for start, end, share, names in options.stall:
            tenant.stall(end_ms - int(start * hour_ms), end_ms - int(end * hour_ms), share, names)
        for name in LOG_TYPES:
            tenant.add(name, iter_events(name, options.events, end_ms - int(options.hours * hour_ms), end_ms,
                                         options.seed + number))
    return simulator


def main(argv: List[str]) -> int:
    own, _, command = argv, None, []
    if "--" in argv:
        split = argv.index("--")
        own, command = argv[:split], argv[split + 1:]
    options = _parser().parse_args(own)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    simulator = _simulator(options)
    try:
        simulator.start()
    except OSError as error:
        print(f"duo_simulator: port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        print(f"duo_simulator: {options.events} events each of {', '.join(LOG_TYPES)}, the last "
              f"{options.hours:g} hours", file=sys.stderr)
        if command:
            return _run(command, simulator.settings)
        for name, value in simulator.settings.items():
            print(f"{name}={value}", flush=True)
        threading.Event().wait()    # until a signal raises SystemExit
        return 0
    finally:
        simulator.stop()
