"""The network: a session that asks the simulated Duo without a socket, in virtual time."""

from __future__ import annotations

import json as json_module
import math
import traceback
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from .basics import HOST, Failure

if TYPE_CHECKING:
    from .world import World


class Prepared:
    """A request as the collector's signing sees it."""

    def __init__(self, method: str, url: str, body: bytes | None) -> None:
        self.method, self.url, self.body = method, url, body
        self.headers = {"Host": HOST}


class Body:
    """What comes of an answer, as fast as the link brings it."""

    def __init__(self, world: World, data: bytes, is_cut: bool) -> None:
        self.world, self.data, self.is_cut = world, data, is_cut
        self.at = 0

    def read(self, amount: int | None = None, decode_content: bool | None = None) -> bytes:
        end = len(self.data) if amount is None else min(self.at + amount, len(self.data))
        piece = self.data[self.at : end]
        self.at = end
        if self.world.link_bytes_per_s and piece:
            self.world.process.sleep(len(piece) / self.world.link_bytes_per_s)
        if self.is_cut and not piece:
            raise urllib3.exceptions.ProtocolError("Connection broken: IncompleteRead")
        return piece


class Response:
    def __init__(self, status: int, headers: dict[str, str], raw: Body) -> None:
        self.status_code, self.headers, self.raw = status, headers, raw

    @property
    def content(self) -> bytes:
        try:
            data = self.raw.read()
            self.raw.read()  # an end that comes too early is seen here
        except urllib3.exceptions.ProtocolError as error:
            raise requests.exceptions.ChunkedEncodingError(error) from None
        return data

    def close(self) -> None:
        pass


class Session:
    """In place of requests.Session."""

    auth: Any = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.headers: dict[str, str] = {}

    def request(self, method: str, url: str, **more: Any) -> Response:
        try:
            return self.answer(method, url, **more)
        except requests.RequestException:
            raise
        except Exception:  # which the collector would take for one of the network's
            raise Failure("the simulation crashed: " + traceback.format_exc()) from None

    def answer(
        self, method: str, url: str, json: Any = None, timeout: Any = None, **more: Any
    ) -> Response:
        world, process = self.world, self.world.process
        connect_s, read_s = timeout
        suspended = world.suspended
        prepared = Prepared(method, url, None if json is None else json_module.dumps(json).encode())
        prepared.headers.update(more.get("headers") or {})
        is_signed = bool(more.get("auth") or self.auth)
        if is_signed:
            (more.get("auth") or self.auth)(prepared)
        is_ping = url.endswith("/ping")
        if is_ping:
            process.untold_at = world.time
        if world.network:
            process.met.add("no answer")
            silent_s = {"refused": 0.01, "unreachable": connect_s, "silent": read_s}
            process.sleep(silent_s[world.network])
            if world.network == "silent":
                raise requests.ReadTimeout("silent")
            raise requests.ConnectionError(world.network or "it was gone a moment ago")
        process.sleep(world.latency.uniform(0.02, 0.2))
        answer, noted, date = self.ask(prepared)
        process.sleep(min(answer.delay_s, read_s) + world.latency.uniform(0.02, 0.2))
        if answer.delay_s > read_s:
            process.met.add("no answer")
            raise requests.ReadTimeout("Read timed out.")
        if answer.delivery == "reset" or world.suspended > suspended:
            process.met.add("reset")
            raise requests.ConnectionError("Connection reset by peer")
        is_cut = answer.delivery == "half"
        body = answer.body[: len(answer.body) // 2] if is_cut else answer.body
        if is_ping and answer.status == 200 and not noted.fault:
            process.untold_at = -math.inf
        return Response(answer.status, {"Date": date, **answer.headers}, Body(world, body, is_cut))

    def ask(self, prepared: Prepared) -> Any:
        """Duo's answer, what it noted of the request, and the Date of the answer."""
        world, process = self.world, self.world.process
        target = prepared.url.partition(HOST)[2]
        answer = world.duo.respond(
            prepared.method, target, prepared.headers, 1, prepared.body or b""
        )
        noted = world.duo.requests.pop()
        world.requests += 1
        world.step_in_midst_of_a_pass(noted)
        if world.is_verbose:
            parameters = ", ".join(f"{name} {value}" for name, value in noted.params.items())
            what = f"{noted.log_type or noted.path}, {parameters}"
            world.tell(f"    {what}: {answer.status}, {noted.events} events, {noted.fault}")
        if noted.fault or answer.status != 200:
            process.met |= {noted.fault, answer.status} - {None, 200}
        return answer, noted, world.duo.date()

    def close(self) -> None:
        pass
