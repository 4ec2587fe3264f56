"""The Admin API of the simulated tenant: what a request gets, without a socket."""

import base64
import dataclasses
import email.utils
import hmac
import math
import random
import re
import time
import urllib.parse
import zlib
from datetime import timezone
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import duo_client.client

from .limits import RateLimiter
from .rules import (
    ACCOUNT_LIST,
    CROSS_DEPLOYMENT,
    DUO_HEADERS,
    KEPT_MS,
    LOG_TYPES,
    PATHS,
    SIGNATURES,
    Answer,
    LogType,
    Refusal,
    Rules,
    _http_date,
)
from .store import EventStore, Row, _compact


@dataclasses.dataclass
class Call:
    """A request to a log endpoint while it is checked and answered."""

    name: str  # of the log type; empty for another endpoint
    method: str
    path: str
    params: Dict[str, List[str]]
    headers: Any
    body: str
    date: Optional[str]  # as signed
    now_ms: int  # on Duo's clock
    mintime: int = 0  # in the endpoint's unit, as is maxtime
    maxtime: int = 0
    limit: int = 0
    descending: bool = False
    cursor: Optional[str] = None  # "ms,id", or a number for trust_cursor "int"
    pages: int = 0  # of this walk that were given before

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
    body = b'{"stat":"OK","response":%s}' % response
    headers = {
        **DUO_HEADERS,
        # Duo's Ruby client accepts exactly this Content-Type, with nothing after it.
        "Content-Type": "application/json",
        "ETag": f'"{zlib.crc32(body):08x}"',
        "Cache-Control": "no-store",
    }
    return Answer(200, headers, body, events)


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

    def __init__(
        self,
        rules: Rules,
        ikey: str,
        skey: str,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules, self.ikey, self.skey = rules, ikey, skey
        self.wall, self.monotonic = wall, monotonic  # s; others than the real ones for virtual time
        self.parent: Optional[Endpoints] = None  # of a child account
        self.account = {
            "account_id": "",
            "api_hostname": "",
            "name": "",
        }  # a child's, as it is listed
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

    def _answer(
        self, method: str, path: str, params: Dict[str, List[str]], headers: Any, body: bytes = b""
    ) -> Answer:
        now_ms = self.now_ms()
        try:
            if path == "/auth/v2/ping" and method == "GET":  # not signed: to learn Duo's time
                return _ok(b'{"time":%d}' % (now_ms // 1000))
            if path not in (*PATHS, "/auth/v2/ping", ACCOUNT_LIST):
                raise Refusal(40401)
            if method != ("POST" if path == ACCOUNT_LIST else "GET"):
                raise Refusal(40501)
            call = Call(
                PATHS.get(path, ""),
                method,
                path,
                params,
                headers,
                body.decode(errors="replace"),
                _signed_date(headers),
                now_ms,
            )
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
            raise Refusal(
                self.rules.no_account_code if account_id is None else self.rules.account_code
            )
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
        if form:  # parameters as the two older signature versions send them
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
        extra = {
            name: value for name, value in call.headers.items() if name.lower().startswith("x-duo-")
        }
        signed = duo_client.client.sign(
            self.ikey,
            self.skey,
            call.method,
            host,
            call.path,
            call.date,
            version,
            call.params,
            body=call.body,
            digestmod=digest,
            additional_headers=extra,
        )
        return base64.b64decode(signed.split(" ")[1]).partition(b":")[2]

    def _check_date(self, call: Call) -> None:
        try:
            moment = email.utils.parsedate_to_datetime(call.date or "")
        except (TypeError, ValueError, IndexError, OverflowError):
            raise self._date_refusal() if call.date else Refusal(40104) from None
        if moment.tzinfo is None:  # "-0000", which Duo's client sends, is UTC
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
        for name in ("mintime", "maxtime"):  # seconds and µs were observed to be refused so
            if not re.fullmatch(r"[0-9]{13}", call.first(name)):
                raise Refusal(40002, f"'{name}' must be a timestamp in milliseconds")
        call.mintime, call.maxtime = int(call.first("mintime")), int(call.first("maxtime"))
        if call.mintime >= call.maxtime:
            raise Refusal(40002, "'maxtime' must be strictly greater than 'mintime'")
        if self.rules.old == "400":
            _refuse_old(call)
        if call.first("sort") not in (None, "ts:asc", "ts:desc"):
            raise Refusal(40002, "sort")
        call.descending = call.first("sort") != "ts:asc"  # the default is the newest first

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
        if call.log.v2 and not rows and self.rules.empty_page == "cursor":
            metadata = {"next_offset": self._empty_page_cursor(call), "total_objects": 0}
        return _ok(
            b'{"%s":[%s],"metadata":%s}'
            % (
                call.log.list_key.encode(),
                b",".join(self._bodies(call, rows)),
                _compact(metadata).encode(),
            ),
            len(rows),
        )

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

    def _metadata(
        self, call: Call, rows: List[Row], after: Optional[Row], done: int
    ) -> Dict[str, Any]:
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
        self._issued[call.name, str(cursor)] = (
            self.monotonic(),
            call.pages + 1,
            call.mintime,
            call.maxtime,
        )
        as_list = call.name == "authentication" and self.rules.auth_cursor == "list"
        return {"next_offset": pair if as_list else cursor}

    def _empty_page_cursor(self, call: Call) -> Any:
        """The one that led here, or one at the end of the window."""
        pair = (call.cursor or f"{call.maxtime},{'0' * 8}").split(",", 1)
        as_list = call.name == "authentication" and self.rules.auth_cursor == "list"
        return pair if as_list else ",".join(pair)

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
        return (
            self._random.randint(least, count)
            if self.rules.short_pages and least < count
            else count
        )

    def _shuffle(self) -> Optional[random.Random]:
        return self._random if self.rules.ties == "shuffled" else None

    def _bodies(self, call: Call, rows: List[Row]) -> Iterable[bytes]:
        if self.rules.revise_after_s is None or call.name != "trust_monitor":
            return [row.body for row in rows]
        before_us = (call.now_ms - self.rules.revise_after_s * 1000) * 1000
        return [
            row.body.replace(b'"state":"new"', b'"state":"processed"')
            if row.time_us <= before_us
            else row.body
            for row in rows
        ]
