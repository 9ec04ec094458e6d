"""A version that another OpenAI-compatible server answers with: vLLM, llama.cpp, or whatever runs at a URL. Requests and streams are passed through.

    Upstream("http://127.0.0.1:8080/v1", name="modelyard", version="3", rows=64)       # its first model; `...#NAME` is another, or one that it does not list
    Vllm(folder, name, version, context, ...)         # `vllm serve` as a child process, where it is installed

What the server is told of a client is the request alone: no key of ours, no address. Its own key is MODELYARD_UPSTREAM_KEY.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from components.schema.config import BadInput, Unavailable
from components.serving.lines import Lines
from components.serving.protocol import ChatRequest, CompletionRequest, Generation, Refusal, TokenizeRequest
from components.serving.replies import DONE, event
from components.serving.turn import Turn

PATHS = {ChatRequest: "/chat/completions", CompletionRequest: "/completions"}
CHARACTERS_A_TOKEN = 4
"""Guessed for allowances, until the server has counted."""
READY_S = 600.0


class Upstream:
    """One server's model."""

    context: int | None = None

    def __init__(self, url: str, name: str, rows: int, version: str = "external", transport: httpx.AsyncBaseTransport | None = None) -> None:
        address, _, model = url.partition("#")
        self.url = address.rstrip("/").removesuffix("/v1") + "/v1"
        self.model: str | None = model or None
        self.name, self.version, self.rows, self.busy_rows = name, version, rows, 0
        key = os.environ.get("MODELYARD_UPSTREAM_KEY")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(30.0, read=300.0), headers={"Authorization": f"Bearer {key}"} if key else {}, transport=transport, follow_redirects=False, trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=rows),
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.version}"

    def warm(self) -> None:
        """Errors: Unavailable where the server does not answer; BadInput where it is none of OpenAI's kind."""
        key = self._client.headers.get("Authorization")
        try:
            reply = httpx.get(f"{self.url}/models", timeout=10.0, headers={"Authorization": key} if key else {}, trust_env=False)
            rows = {row["id"]: row for row in reply.json()["data"]}
            self.model = self.model or next(iter(rows))
            self.context = rows.get(self.model, {}).get("max_model_len")
        except (httpx.HTTPError, OSError) as error:
            raise Unavailable(f"serve: {self.url} does not answer ({error}), so nothing could be passed on. Start it, or correct the URL") from None
        except (ValueError, KeyError, StopIteration, TypeError, AttributeError):
            raise BadInput(
                f"serve: {self.url}/models answers {reply.status_code} and names no model, so nobody knows what to ask for. Correct the URL, write URL#MODEL where the server lists none, "
                "or set MODELYARD_UPSTREAM_KEY where it wants a key"
            ) from None

    def close(self) -> None:
        """Requests under way end by themselves."""

    async def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """Where the server has it (vLLM): at its root, not under /v1."""
        body = {**asked.model_dump(exclude_none=True), "model": self.model}
        reply = await self._asked(self._client.build_request("POST", self.url.removesuffix("/v1") + "/tokenize", json=body), stream=False)
        if reply.status_code != 200:
            raise Refusal(404, f"the server behind {self.name} has no /tokenize", code="unsupported")
        return reply.json()

    async def answer(
        self, request: Request, asked: Generation, turn: Turn, reserve: Callable[[Turn, int], None], settle: Callable[[Turn, int], None], seen: Callable[..., None]
    ) -> Response:
        """The server's answer, status and all. Raises Refusal(502) where it is away."""
        body = asked.model_dump(exclude_unset=True, exclude={"metadata", "user"})
        guess = len(json.dumps(body)) // CHARACTERS_A_TOKEN + (asked.longest or 0) * asked.choices
        if self.busy_rows >= self.rows:
            raise Refusal(429, "too many answers are being written. Ask again in a moment", code="queue_full", retry_after_s=1)
        reserve(turn, guess)
        passing = _Passing(self, turn, asked, lambda used: settle(turn, guess - used))
        try:
            return await passing.response({**body, "model": self.model})
        except BaseException:
            passing.over()
            raise

    async def _asked(self, request: httpx.Request, stream: bool) -> httpx.Response:
        try:
            return await self._client.send(request, stream=stream)
        except httpx.HTTPError as error:
            raise Refusal(502, f"the server behind {self.name} does not answer ({type(error).__name__})", code="upstream_unavailable", reason="upstream") from None


class _Passing:
    """One request on its way through; counted once it is over."""

    def __init__(self, upstream: Upstream, turn: Turn, asked: Generation, used: Callable[[int], None]) -> None:
        self.upstream, self.turn, self.asked, self.used = upstream, turn, asked, used
        self.prompt = self.completion = 0
        self._over = False
        upstream.busy_rows += 1

    async def response(self, body: dict[str, Any]) -> Response:
        if self.asked.stream:
            body["stream_options"] = {"include_usage": True}
        reply = await self.upstream._asked(self.upstream._client.build_request("POST", self.upstream.url + PATHS[type(self.asked)], json=body), stream=True)
        headers = {"x-modelyard-model": f"{self.upstream.name}/{self.upstream.version}", "x-modelyard-arm": self.turn.arm}
        if self.asked.stream and reply.status_code == 200:
            return StreamingResponse(self._events(reply), media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        try:
            content = await reply.aread()
        except httpx.HTTPError:
            raise Refusal(502, f"the server behind {self.upstream.name} broke off", code="upstream_unavailable", reason="upstream") from None
        if reply.status_code == 200:
            content = self._read_whole(content)
        else:
            self.turn.refused("upstream")
        self.over()
        wait = reply.headers.get("retry-after")
        return Response(content, reply.status_code, {**headers, **({"retry-after": wait} if wait else {})}, media_type="application/json")

    async def _events(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        try:
            lines = Lines()
            async for data in reply.aiter_bytes():
                for line in lines.add(data):
                    if line.startswith("data:") and (out := self._passed(line[5:].strip())):
                        yield out
            yield DONE  # ours: not every server says it
        except httpx.HTTPError:
            self.turn.status = "502"
            yield event(Refusal(502, f"the server behind {self.upstream.name} broke off", code="upstream_unavailable").body())
        finally:
            self.over()
            await reply.aclose()

    def _passed(self, data: str) -> bytes | None:
        try:
            chunk = json.loads(data)
        except ValueError:  # [DONE]
            return None
        self._count(chunk)
        if not chunk.get("choices") and chunk.get("usage") and not self.asked.wants_usage:
            return None  # we asked for it, the client did not
        self.turn.first_token()
        return event(self._named(chunk))

    def _read_whole(self, content: bytes) -> bytes:
        try:
            body = json.loads(content)
        except ValueError:
            raise Refusal(502, f"the server behind {self.upstream.name} answered no JSON", code="upstream_unavailable", reason="upstream") from None
        self.turn.first_token()
        self._count(body)
        return json.dumps(self._named(body)).encode()

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        """With our name of the model and our version."""
        return {**body, "model": self.upstream.name, "system_fingerprint": self.upstream.fingerprint} if "choices" in body else body

    def _count(self, body: dict[str, Any]) -> None:
        if usage := body.get("usage"):
            self.prompt, self.completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)

    def over(self) -> None:
        """Once."""
        if not self._over:
            self._over = True
            self.upstream.busy_rows -= 1
            self.turn.tokens(self.prompt, self.completion)
            self.used(self.prompt + self.completion)


class Vllm(Upstream):
    """`vllm serve` as a child process of ours, on a port of its own (Kwon et al. 2023, arXiv:2309.06180)."""

    def __init__(self, folder: Path, name: str, version: str, context: int | None, rows: int) -> None:
        program = shutil.which("vllm")
        if program is None:
            raise BadInput("serve: engine=vllm, and no program `vllm` is installed here, so nothing would answer. It needs an image of its own with a GPU; use --engine own, or --engine URL of a server that runs")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}", name, rows, version)
        options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, "--max-num-seqs", str(rows), *(["--max-model-len", str(context)] if context else [])]
        self._process = subprocess.Popen([program, "serve", str(folder), *options], stdin=subprocess.DEVNULL, start_new_session=True)

    def warm(self) -> None:
        """Until it answers. Errors: BadInput where it ends before."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                return super().warm()
            except Unavailable:
                if (code := self._process.poll()) is not None or time.monotonic() > deadline:
                    self.close()
                    raise BadInput(f"serve: `vllm serve` {'ended with code ' + str(code) if code is not None else f'was not ready within {READY_S:.0f} s'}, so nothing would answer. Its log is above") from None
                time.sleep(1.0)

    def close(self) -> None:
        """Ends it when its last answer is out."""
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        while self.busy_rows and self._process.poll() is None:
            time.sleep(0.2)
        try:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(30)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            self._process.kill()
