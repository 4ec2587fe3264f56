"""What the simulated tenant knows of Duo: its logs, its errors, and the rules that nobody documents."""

import dataclasses
import email.utils
import hashlib
import json
import math
from datetime import datetime, timezone
from typing import Any, Callable, Dict, FrozenSet, Iterable, NamedTuple, Optional, Tuple

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
KEPT_MS = 180 * 24 * 3600 * 1000
AUTHENTICATION_FILTERS = (
    "applications users groups event_types factors results reasons phone_numbers registration_id "
    "token_id webauthnkey tokens assessment detections formatter"
)


@dataclasses.dataclass(frozen=True)
class LogType:
    """What sets one log endpoint apart from the others."""

    path: str
    time_fields: Tuple[str, ...]  # where an event's time is read, the finest first
    unit_ms: int  # mintime, maxtime and numeric event times, in ms
    list_key: str = ""  # empty: `response` itself is the list, without metadata
    id_field: Optional[str] = None
    default_limit: int = 0
    max_limit: int = 0
    cursor: Optional[str] = None  # the parameter that brings back a cursor
    v2: bool = False  # can be sorted, and counts its window in total_objects
    parameters: FrozenSet[str] = frozenset()


def _known(names: str) -> FrozenSet[str]:
    return frozenset(("account_id " + names).split())


_V2_PARAMETERS = "mintime maxtime limit sort next_offset "
LOG_TYPES = {
    "authentication": LogType(
        "/admin/v2/logs/authentication",
        ("isotimestamp", "timestamp"),
        1,
        "authlogs",
        "txid",
        100,
        1000,
        "next_offset",
        True,
        _known(_V2_PARAMETERS + AUTHENTICATION_FILTERS),
    ),
    "activity": LogType(
        "/admin/v2/logs/activity",
        ("ts",),
        1,
        "items",
        "activity_id",
        100,
        1000,
        "next_offset",
        True,
        _known(_V2_PARAMETERS),
    ),
    "telephony": LogType(
        "/admin/v2/logs/telephony",
        ("ts",),
        1,
        "items",
        "telephony_id",
        100,
        1000,
        "next_offset",
        True,
        _known(_V2_PARAMETERS),
    ),
    "administrator": LogType(
        "/admin/v1/logs/administrator", ("timestamp",), 1000, parameters=_known("mintime")
    ),
    "offline_enrollment": LogType(
        "/admin/v1/logs/offline_enrollment", ("timestamp",), 1000, parameters=_known("mintime")
    ),
    "trust_monitor": LogType(
        "/admin/v1/trust_monitor/events",
        ("surfaced_timestamp",),
        1,
        "events",
        "sekey",
        50,
        200,
        "offset",
        False,
        _known("mintime maxtime limit offset type"),
    ),
}
PATHS = {log.path: name for name, log in LOG_TYPES.items()}

ERRORS = {
    40001: "Missing required request parameters",
    40002: "Invalid request parameters",
    40101: "Missing request credentials",
    40102: "Invalid integration key in request credentials",
    40103: "Invalid signature in request credentials",
    40104: "Missing request timestamp",  # the text was observed, the number is a guess
    40105: "Bad request timestamp",
    40112: "Signature type is not supported",
    40301: "Access forbidden",
    40401: "Resource not found",
    40501: "Method not allowed",
    42901: "Too Many Requests",
    50001: "unknown internal error",
}
SIGNATURES = {  # name: signature version and digest, as duo_client numbers them
    "v5": (5, hashlib.sha512),
    "v4": (4, hashlib.sha512),
    "v2-sha512": (2, hashlib.sha512),
    "v2-sha1": (2, hashlib.sha1),
}
CHECKS = ("signature", "date", "permission", "rate", "parameters")
COMMON_FAULTS = (
    "reset",
    "cut",
    "truncated",
    "not_json",
    "html_502",
    "empty_200",
    "error_500",
    "error_503",
    "stat_fail",
    "error_429",
    "stall",
)
# Those that are in the mix only when asked for. clock_401 was an outage that Duo once had; no_metadata and
# no_cursor leave that out of a good answer; nan and deep put into the first event what is no JSON, or more
# levels than a parser takes; no_time leaves that out of what /auth/v2/ping answers. html_* are a filter's
# or a proxy's pages, as users of collectors have met them with every status; empty_401 is a refusal without
# a body; no_list and other_list are good answers without their list, or with it under another name;
# fail_1000 is {"stat":"FAIL","code":1000} with 200, from reports of users, too.
FAULT_KINDS = COMMON_FAULTS + (
    "clock_401",
    "error_404",
    "no_metadata",
    "no_cursor",
    "nan",
    "deep",
    "no_time",
    "html_200",
    "html_401",
    "html_403",
    "html_404",
    "html_407",
    "empty_401",
    "no_list",
    "other_list",
    "fail_1000",
)
SPOILT_MEMBERS = {
    "nan": b'"score":NaN,',
    "deep": b'"deep":%s%s,' % (b"[" * 100_000, b"]" * 100_000),
}
DUO_HEADERS = {"Server": "Duo/1.0"}  # as recorded by Duo's Python client in 2022
ACCOUNT_LIST = "/accounts/v1/account/list"
CROSS_DEPLOYMENT = (
    "Cross-deployment Admin API usage through Accounts API is currently not available"
)


def _one_of(*choices: Optional[str]) -> Any:
    """A field that takes one of these values and starts with the first."""
    return dataclasses.field(default=choices[0], metadata={"choices": choices})


def _some_of(members: Iterable[str], default: Callable = tuple) -> Any:
    """A field that takes some of these names and starts with default(members)."""
    return dataclasses.field(
        default_factory=lambda: default(members), metadata={"members": tuple(members)}
    )


@dataclasses.dataclass
class Rules:
    """How this Duo behaves. May be changed while the server runs; wrong names and values raise."""

    # The clock, and what it hides
    clock_offset: float = 0.0  # s by which Duo's clock is ahead of this machine's
    hold_back_s: float = 120.0  # s for which a new event is not shown: v2, trust monitor
    v1_hold_back_s: float = 120.0  # the same for the v1 logs
    young: str = _one_of("cut", "empty")  # maxtime within hold_back_s: cut there, or no event
    old: str = _one_of("400", "accept")  # mintime 180 days old or older on the v2 logs
    revise_after_s: Optional[float] = None  # s after which a trust monitor event's state changes

    # Pages
    cursor: str = _one_of("last", "next")  # names the last event given, or the first to come
    last_cursor: str = _one_of("present", "null", "missing")  # on a v2 log's last page of events
    cursor_lifetime: Optional[float] = None  # s after which a cursor is refused; None: never
    cursor_pages: Optional[int] = (
        None  # pages of a walk after which its cursor is refused; None: never
    )
    cursor_window: str = _one_of("free", "same")  # may mintime and maxtime change beside a cursor
    auth_cursor: str = _one_of("list", "string")  # the form in which authentication gives it
    trust_cursor: str = _one_of("string", "int")  # the form in which trust monitor gives it
    trust_order: str = _one_of("ascending", "descending")  # trust monitor events by time
    short_pages: bool = False  # pages shorter than asked for before the last one; v1 too
    # total_objects: of the window, of what remains, at random, of this page only, or not there
    total: str = _one_of("int", "object", "remaining", "changing", "page", "absent")
    ties: str = _one_of("stable", "shuffled")  # order within a ms (v1: a second) between calls
    v1_order: str = _one_of("ascending", "shuffled")  # order within a page of v1 events
    v1_limit: int = 1000  # the number of earliest events that v1 gives
    v1_mintime: str = _one_of("inclusive", "exclusive")  # does v1 give events of that second
    # Does a v2 page without events have a cursor and total_objects 0 (in a plug-in's fixtures)
    empty_page: str = _one_of("plain", "cursor")
    # Every tenth v2 event added has a second one a minute later with the same id and another result
    # (in fixtures of three other collectors, all of which look edited)
    shared_ids: bool = False
    text: str = _one_of("utf-8", "ascii")  # is what is not ASCII escaped; for events added later
    limit: str = _one_of("error", "clamp")  # a limit below 1 or above the maximum
    unknown_parameters: str = _one_of("ignore", "400")

    # Refusals
    check_order: Tuple[str, ...] = _some_of(CHECKS)  # which refusal wins of several
    signatures: Tuple[str, ...] = _some_of(SIGNATURES)  # the accepted ones
    skew_s: float = 300.0  # s that a request's date may be off
    no_permission: bool = False  # 403 for every log
    missing: Dict[str, int] = _some_of(LOG_TYPES, lambda _: {})  # log type: 403, 404 or 400
    code_as_string: bool = False  # `code` of an error as a JSON string
    date_code: int = _one_of(40105, 40104)  # of the answer to a date that is off, or missing
    date_message: str = "Bad request timestamp"  # its text
    rate_limit: Optional[int] = None  # let through per window, 1 or more; None: all
    rate_window_s: float = 60.0
    rate_shape: str = _one_of("sliding", "fixed", "bucket")
    rate_scope: str = _one_of("endpoint", "account")
    count_refused: bool = False  # does a 429 count as a request
    # s for which all is refused once the limit is hit: other clients wait 120 or 600; 0: as the shape says
    limit_lasts_s: float = 0.0
    # Requests a minute of other clients, which share the quota (IBM, AppFabric: one client an account)
    other_clients: float = 0.0
    # Form of Retry-After on a 429; "x_seconds": X-Retry-After, which Duo's own unix client honours
    retry_after: Optional[str] = _one_of(None, "seconds", "date", "x_seconds")

    # Trouble
    date_offset: float = 0.0  # s by which a proxy's Date is off Duo's; Duo goes by its own
    # s before an answer begins, or such by log type: other clients wait 60 or 120 s for one
    latency_s: Any = 0.0
    encoding: str = _one_of("gzip", "identity")  # gzip and chunked, where the client accepts it
    bytes_per_s: Optional[float] = None  # of the body, on a slow link; None: at once
    fault_rate: float = 0.0  # share of requests, 0 to 1, that meet one of fault_kinds
    fault_kinds: Tuple[str, ...] = _some_of(FAULT_KINDS, lambda _: COMMON_FAULTS)
    ping_faults: Tuple[str, ...] = _some_of(
        FAULT_KINDS, lambda _: ()
    )  # /auth/v2/ping always meets one of these
    stall_s: float = 5.0  # s of silence before the answer when the fault is "stall"

    # The Accounts API, through which a parent reads its children's logs
    application: str = _one_of("admin", "accounts")  # what the keys are for
    accounts_code: int = _one_of(40301, 40102)  # a list of accounts, asked for with an "admin" key
    parent_log_code: int = _one_of(
        40301, 40102
    )  # a log of the parent's own, with an "accounts" key
    no_account_code: int = _one_of(40102, 40301)  # a child's log, asked for without account_id
    account_code: int = _one_of(40301, 40102, 40401, 40002)  # with one that is not the child's
    deployment: str = _one_of("same", "other")  # of a child, as its parent's or not
    deployment_code: int = 40002  # of the refusal where it is another
    api_hostname: str = _one_of(
        "host", "url"
    )  # in the list: host and port, or with http:// before it
    seed: int = 0  # of all that is random; read when the simulator is made

    def __setattr__(self, name: str, value: Any) -> None:
        """A test with a misspelt rule would test nothing, so that is an error."""
        if name not in self.__dataclass_fields__:
            raise AttributeError(f"no such rule: {name}")
        metadata = self.__dataclass_fields__[name].metadata
        allowed = metadata.get("choices") or metadata.get("members")
        for one in value if "members" in metadata else [value]:
            if allowed and one not in allowed:
                raise ValueError(f"{name}: {one!r} is none of {', '.join(map(str, allowed))}")
        if name == "latency_s" and isinstance(value, dict) and set(value) - set(LOG_TYPES):
            raise ValueError(f"latency_s: {value!r} has a log type that Duo has not")
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

    monotonic: float  # s, time.monotonic() on arrival
    wall: float  # s since 1970 on this machine's clock
    log_type: Optional[str]  # None: not a log endpoint
    path: str
    params: Dict[str, Any]  # name: text, or a list of texts where the parameter was repeated
    status: int  # 0 when no whole response head was meant to go out
    events: int  # in a whole and valid answer
    connection: int  # 1, 2, 3... in the order in which connections were opened
    date: Optional[str]  # as signed
    fault: Any  # what was injected or drawn, or None


class Refusal(Exception):
    """Duo says no, with a code whose first three digits are the HTTP status."""

    def __init__(
        self,
        code: int,
        detail: Optional[str] = None,
        wait_s: Optional[float] = None,
        message: Optional[str] = None,
    ):
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
        # Recordings of a 401 have these and Date and Content-Length, none of a good answer's.
        headers = {**DUO_HEADERS, "Content-Type": "application/json", "Connection": "keep-alive"}
        if self.wait_s is not None and rules.retry_after == "seconds":
            headers["Retry-After"] = str(math.ceil(self.wait_s))
        elif self.wait_s is not None and rules.retry_after == "date":
            headers["Retry-After"] = _http_date(now_ms + math.ceil(self.wait_s) * 1000)
        elif self.wait_s is not None and rules.retry_after == "x_seconds":
            headers["X-Retry-After"] = str(math.ceil(self.wait_s))
        return Answer(self.code // 100, headers, self.body(rules))


def _http_date(at_ms: int) -> str:
    return email.utils.formatdate(at_ms // 1000, usegmt=True)
