"""The routes of an endpoint: OpenAI's, and those that operators ask.

    app = make_app(Endpoint(config))

| route | what |
|---|---|
| POST /v1/chat/completions, /v1/completions | answers, whole or streamed |
| GET /v1/models | what may be asked for |
| POST /tokenize | tokens and the exact prompt, as vLLM |
| GET /health, /ready, /metrics | lives; has a version in service; for Prometheus |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from components.serving.door import Door
from components.serving.endpoint import Endpoint
from components.serving.protocol import ChatRequest, CompletionRequest, R, Refusal, TokenizeRequest, read
from components.serving.turn import of


def make_app(endpoint: Endpoint) -> FastAPI:
    """The application; its life is the endpoint's."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        endpoint.prepare(asyncio.get_running_loop())
        endpoint.start()
        yield
        endpoint.close()

    app = FastAPI(title="Modelyard", lifespan=life, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.endpoint = endpoint
    app.add_middleware(Door, endpoint=endpoint)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    for path, route, kind in (("/v1/chat/completions", "chat", ChatRequest), ("/v1/completions", "completions", CompletionRequest)):
        app.add_route(path, _answering(endpoint, route, kind), methods=["POST"])
    app.add_route("/tokenize", _asking(endpoint, "tokenize", lambda request: _tokenize(endpoint, request)), methods=["POST"])
    app.add_route("/v1/models", _asking(endpoint, "models", lambda request: _models(endpoint)), methods=["GET"])
    app.add_route("/health", _told("health", lambda: JSONResponse({"status": "ok"})), methods=["GET"])
    app.add_route("/ready", _told("ready", lambda: _ready(endpoint)), methods=["GET"])
    app.add_route("/metrics", _told("metrics", lambda: Response(endpoint.scraped(), media_type=CONTENT_TYPE_LATEST)), methods=["GET"])
    return app


Handler = Callable[[Request], Awaitable[Response]]


def _answering(endpoint: Endpoint, route: str, kind: type[R]) -> Handler:
    async def answer(request: Request) -> Response:
        return await endpoint.answer(request, read(kind, await _body(request)), of(request))

    return _asking(endpoint, route, answer)


def _asking(endpoint: Endpoint, route: str, work: Handler) -> Handler:
    """A route for whoever has a key."""

    async def handle(request: Request) -> Response:
        turn = of(request)
        turn.route = route
        endpoint.admit(request, turn)
        return await work(request)

    return handle


def _told(route: str, work: Callable[[], Response]) -> Handler:
    """A route for operators and probes: open, and nothing of what is asked or answered stands there."""

    async def handle(request: Request) -> Response:
        of(request).route = route
        return work()

    return handle


async def _tokenize(endpoint: Endpoint, request: Request) -> Response:
    asked = read(TokenizeRequest, await _body(request))
    _, version = endpoint.arms.choose(asked.model, asked.user)
    return JSONResponse(await version.tokenize(asked))


async def _models(endpoint: Endpoint) -> Response:
    main = endpoint.arms.main.version
    context = main.context if main else None
    return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "modelyard", "max_model_len": context} for name in endpoint.arms.names()]})


def _ready(endpoint: Endpoint) -> Response:
    ready = endpoint.arms.main.version is not None and not endpoint.draining
    arms = {arm.name: arm.version.fingerprint for arm in endpoint.arms.all if arm.version}
    return JSONResponse({"status": "ready" if ready else "not ready", "arms": arms}, 200 if ready else 503)


async def _body(request: Request) -> Any:
    """Raises Refusal(400)."""
    raw = await request.body()
    try:
        body = json.loads(raw, parse_constant=_no_number)
        if b"\\ud" in raw.lower():  # half of a character, which JSON can say and no tokenizer can read
            json.dumps(body, ensure_ascii=False).encode()
        return body
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply", code="invalid_json", reason="bad_request") from None
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {str(error)[:200]}", code="invalid_json", reason="bad_request") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    of(request).refused(refusal.reason)
    return refusal.response()


async def _failed(request: Request, error: Exception) -> Response:
    """A defect of ours; its traceback goes to the log, and nothing of it to the client."""
    return Refusal(500, "the endpoint failed; the reason is in its log", code="internal_error").response()


async def _not_routed(request: Request, error: Exception) -> Response:
    """Unknown routes and methods in the same shape."""
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path[:200]} here", 405: f"{request.url.path[:200]} does not take {request.method}"}.get(error.status_code, str(error.detail))
    refusal = Refusal(error.status_code, text, code={404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code))
    response = await _refused(request, refusal)
    response.headers.update(error.headers or {})
    return response
