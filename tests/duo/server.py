"""The simulated tenant as a server on the loopback interface, and the faults of its answers."""

import collections
import contextlib
import gzip
import http
import http.server
import ipaddress
import json
import math
import os
import random
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from .endpoints import Endpoints, _signed_date
from .events import with_shared_ids
from .rules import FAULT_KINDS, LOG_TYPES, PATHS, SPOILT_MEMBERS, Answer, Refusal, Request, Rules
from .store import Row, Stall, _compact


class Simulator(Endpoints):
    """Duo on a loopback port, from `with` or start() to stop()."""

    def __init__(
        self,
        rules: Optional[Rules] = None,
        ikey: str = "DIXXXXXXXXXXXXXXXXXX",
        skey: str = "deadbeef" * 5,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Optional[ssl.SSLContext] = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(rules or Rules(), ikey, skey, wall, monotonic)
        self.host, self.port, self.tls = host, port, tls
        self.requests: List[Request] = []
        self.connections = 0  # TCP connections accepted so far
        self.stopping = threading.Event()
        self._injected: Dict[Optional[str], collections.deque] = collections.defaultdict(
            collections.deque
        )
        self._fault_random = random.Random(self.rules.seed)
        self._server: Optional[_Server] = None

    def add_child(
        self, name: str, rules: Optional[Rules] = None, host: Optional[str] = None
    ) -> "Simulator":
        """Another account, on a host of its own, that these keys may read if they are an Accounts application's.

        It starts and stops with its parent, and has the parent's port. Its events are its own.
        """
        number = len(self.children) + 1
        host = host or str(ipaddress.ip_address(self.host) + number)
        child = Simulator(
            rules, self.ikey, self.skey, host, self.port, self.tls, self.wall, self.monotonic
        )
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
        return {
            "DUO_API_HOST": self.url,
            "DUO_INTEGRATION_KEY": self.ikey,
            "DUO_SECRET_KEY": self.skey,
            **account,
        }

    def add(
        self,
        log_type: str,
        events: Iterable[Any],
        published_ms: Optional[int] = None,
        at_ms: Optional[int] = None,
    ) -> None:
        """Put events, as dicts or as JSON text, into a log, at any time and in any order.

        published_ms: when Duo starts to show them, for events that surface late.
        at_ms: their time, where the events themselves have none that can be read.
        """
        if isinstance(events, (dict, str, bytes)):
            events = [events]
        if self.rules.shared_ids and LOG_TYPES[log_type].v2:
            events = with_shared_ids(events)
        if self.rules.text == "ascii":
            events = (
                json.dumps(event, separators=(",", ":")) if isinstance(event, dict) else event
                for event in events
            )
        self._stores[log_type].add(events, published_ms, at_ms)

    def add_encoded(
        self,
        log_type: str,
        events: Iterable[Tuple[int, str, bytes]],
        published_ms: Optional[int] = None,
    ) -> None:
        """The same with time (µs), id and JSON text of each event, which saves parsing hundreds of thousands."""
        store = self._stores[log_type]
        store.add_rows(
            [
                Row(time_us, next(store.numbers), event_id, body)
                for time_us, event_id, body in events
            ],
            published_ms,
        )

    def events(self, log_type: str) -> List[Dict[str, Any]]:
        """All events of a log in the order of time, shown by now or not."""
        return [json.loads(row.body) for row in self._stores[log_type].all_rows()]

    def stall(
        self,
        start_ms: int,
        end_ms: int,
        share: float = 1.0,
        log_types: Iterable[str] = tuple(LOG_TYPES),
    ) -> None:
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

    def respond(
        self, method: str, target: str, headers: Any, connection: int, body: bytes = b""
    ) -> Answer:
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
        self.requests.append(
            Request(
                *arrived,
                log_type,
                parts.path,
                shown,
                answer.status,
                answer.events,
                connection,
                _signed_date(headers),
                fault,
            )
        )
        latency_s = self.rules.latency_s
        if isinstance(latency_s, dict):
            latency_s = latency_s.get(log_type, 0.0)
        return answer._replace(delay_s=answer.delay_s + latency_s)

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
            return answer._replace(events=0, body=answer.body[: len(answer.body) // 2])
        if fault in ("no_metadata", "no_cursor"):
            return answer._replace(body=_without(fault, answer.body))
        if fault in ("no_list", "other_list"):
            return _without_list(fault, answer)
        if fault in SPOILT_MEMBERS:
            return answer._replace(
                body=answer.body.replace(b"[{", b"[{" + SPOILT_MEMBERS[fault], 1)
            )
        return self._replacement(fault)

    def _replacement(self, fault: str) -> Answer:
        """Another answer in place of Duo's: a refusal, or what something on the way says."""
        if fault.startswith("html_"):
            return _html(int(fault[len("html_") :]))
        refusals = {
            "error_500": Refusal(50001),
            "error_429": Refusal(42901, wait_s=1.0),
            "error_404": Refusal(40401),
            "clock_401": self._date_refusal(),
        }
        if fault in refusals:
            return refusals[fault].answer(self.rules, self.now_ms())
        status, kind, body = {
            "not_json": (200, "application/json", b'{"stat":"OK","response":[}'),
            "empty_200": (200, "application/json", b""),
            "no_time": (200, "application/json", b'{"stat":"OK","response":{}}'),
            "stat_fail": (200, "application/json", Refusal(50001).body(self.rules)),
            "empty_401": (401, "text/plain", b""),
            "fail_1000": (200, "application/json", FAIL_1000),
            "error_503": (503, "text/plain", b"Service Unavailable\n"),
        }[fault]
        return Answer(status, {"Content-Type": kind}, body)


FAIL_1000 = b'{"stat":"FAIL","code":1000,"message":"Unknown error"}'


def _html(status: int) -> Answer:
    """A page of a proxy or a filter, or of a wrong host."""
    title = f"{status} {http.HTTPStatus(status).phrase}"
    headers = {"Content-Type": "text/html"}
    if status == 407:
        headers["Proxy-Authenticate"] = 'Basic realm="proxy"'
    return Answer(status, headers, f"<html><body><h1>{title}</h1></body></html>\n".encode())


def _without_list(fault: str, answer: Answer) -> Answer:
    """A good answer whose list of events is not there, or has another name."""
    if answer.status != 200:
        return answer
    content = json.loads(answer.body)
    response = content["response"]
    if isinstance(response, list):  # v1
        response = {"logs": response}
    name = next((name for name, value in response.items() if isinstance(value, list)), "")
    events = response.pop(name, [])
    if fault == "other_list":
        response["entries"] = events
    content["response"] = response
    return answer._replace(events=0, body=_compact(content).encode())


def _without(fault: str, body: bytes) -> bytes:
    """A page of events without its metadata, or without the cursor in it."""
    events, found, metadata = body.rpartition(b',"metadata":')
    if not found or body.endswith(b"]}"):  # a v1 page: that is in an event
        return body
    kept = {
        name: value for name, value in json.loads(metadata[:-2]).items() if name != "next_offset"
    }
    return events + (found + _compact(kept).encode() if fault == "no_cursor" else b"") + b"}}"


def _chunked(body: bytes, size: int = 16_384) -> bytes:
    pieces = [body[first : first + size] for first in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


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
                self.socket, server_side=True, do_handshake_on_connect=False
            )

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
                with contextlib.suppress(OSError):  # the peer was quicker
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
        fields = {"Date": simulator.date(), "Content-Length": str(len(body)), **headers}
        steps = 1
        speed = simulator.rules.bytes_per_s
        piece = max(1, int(speed / 10)) if speed else 0
        if speed:
            steps = math.ceil(len(body) / piece) or 1
        if self.is_compressed(headers):
            del fields["Content-Length"]
            fields.update({"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
            body = _chunked(gzip.compress(body, 1))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        opening = f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1")
        end = len(body)
        if half:
            end //= 2
            self.close_connection = True
        if not speed:
            self.wfile.write(opening + body[:end])
            return
        self.wfile.write(opening)
        size = math.ceil(len(body) / steps) or 1  # as slow as the body that is not compressed
        for first in range(0, end, size):
            self.wfile.write(body[first : min(first + size, end)])
            if simulator.stopping.wait(piece / speed):
                self.close_connection = True
                return

    def is_compressed(self, headers: Dict[str, str]) -> bool:
        """Duo's good answers are, where the client accepts it."""
        accepts = "gzip" in self.headers.get("Accept-Encoding", "")
        return accepts and "ETag" in headers and self.server.simulator.rules.encoding == "gzip"

    def reset(self) -> None:
        """Close so that the peer sees a reset and not the end of a stream."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *_: Any) -> None:
        """Requests are in Simulator.requests; the terminal belongs to the test."""
