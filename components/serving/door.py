"""What a request passes before anything reads it: its size, how long its header and its body may take, and how long a client may leave an answer untaken.

A body that is too large is refused while it comes; what follows of it is thrown away for a moment, so that the client hears why instead of a reset connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from components.schema.serving import ServeConfig
from components.serving.protocol import Refusal
from components.serving.turn import Turn

if TYPE_CHECKING:
    from components.serving.endpoint import Endpoint

log = logging.getLogger("modelyard.serving")

DISCARDED_BYTES, DISCARDED_S = 32 * 2**20, 5.0


class Door:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint) -> None:
        self.app, self.endpoint = app, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        turn = scope["modelyard.turn"] = Turn(self.endpoint.metrics, (scope.get("client") or ("",))[0])
        passing = _Passing(self.endpoint.config, scope, receive, send, turn)
        self.endpoint.under_way += 1
        try:
            await self.app(scope, passing.receive, passing.send)
        except (ClientDisconnect, ConnectionError):
            log.debug("a client went away")
        except Exception:
            turn.status = "500"
            raise
        finally:
            self.endpoint.under_way -= 1
            turn.over()


class _Passing:
    """One request's body on its way in, and its answer on its way out."""

    def __init__(self, config: ServeConfig, scope: Scope, receive: Receive, send: Send, turn: Turn) -> None:
        self.config, self._receive, self._send, self.turn = config, receive, send, turn
        self.most, self.got, self.whole, self.too_large = config.body_kib * 1024, 0, False, False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self.declared = int(declared) if declared.isdigit() else 0
        self._until: float | None = None

    async def receive(self) -> Message:
        """Raises Refusal(413), Refusal(408)."""
        if self.whole:
            return await self._receive()
        if self.declared > self.most:
            raise self._refused_as_too_large()
        self._until = self._until or asyncio.get_running_loop().time() + self.config.read_s
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self.config.read_s:g} s, so it was given up. Send it faster", code="request_timeout") from None
        self.got += len(message.get("body", b""))
        self.whole = not message.get("more_body")
        if self.got > self.most:
            raise self._refused_as_too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.turn.status = str(message["status"])
            if message["status"] in (408, 413):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif self.too_large and not message.get("more_body"):
            await self._sent({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._sent(message)

    async def _sent(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self.config.write_s):
                await self._send(message)
        except TimeoutError:
            log.warning("a client left its answer untaken for %g s and was given up", self.config.write_s)
            raise ClientDisconnect from None

    async def _discard(self) -> None:
        try:
            async with asyncio.timeout(DISCARDED_S):
                while not self.whole and self.got < DISCARDED_BYTES:
                    message = await self._receive()
                    self.got += len(message.get("body", b""))
                    self.whole = not message.get("more_body")
        except TimeoutError:
            return

    def _refused_as_too_large(self) -> Refusal:
        self.too_large = True
        size = f"{self.declared:,}" if self.declared else f"more than {self.most:,}"
        return Refusal(413, f"the request has {size} bytes and {self.most:,} are read here. Send less", code="request_too_large")


def protocol(read_s: float, refused: Callable[[str], None]) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, which waits for a header that long and no longer."""

    class Impatient(H11Protocol):
        _waiting: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._between_requests():
                self._stop_waiting()
            elif self._waiting is None and not self.transport.is_closing():
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(read_s, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _too_slow(self) -> None:
            self._waiting = None
            if self._between_requests() and not self.transport.is_closing():
                if self.conn.trailing_data[0]:  # a header was begun
                    refused("slow_header")
                    body = b'{"error": {"message": "the header did not arrive in time", "type": "timeout_error", "param": null, "code": "request_timeout"}}'
                    self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                self.transport.close()

    return Impatient
