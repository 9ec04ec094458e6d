"""The page where people rank, and the JSON behind it.

    modelyard feedback serve                                    # http://127.0.0.1:8700
    python -m components.feedback.people.server --port 8700     # the same, as `modelyard up` starts it

What the page never gets: whose answer is whose, and which questions have a known order. Whatever is sent is kept before it is answered; a
submission that the page sends again is kept once. Where other machines reach the server, or accounts are set (PREFECT_API_AUTH_STRING), people need codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.feedback.people import routes, signing
from components.feedback.people.opinions import Refused
from components.feedback.people.store import Store
from components.schema.addresses import is_loopback
from components.schema.config import BadInput, Unavailable

PORT, LARGEST_BODY = 8700, 512 * 1024  # bytes
FILES = {"": ("index.html", "text/html"), "page.css": ("page.css", "text/css"), **{f"{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "cards", "drafts", "ranking", "outbox", "views")}}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def app(store: Store, needs_codes: bool = False) -> FastAPI:
    """The server. `needs_codes`: nobody comes in by name alone."""
    made = FastAPI(title="Modelyard feedback", docs_url=None, redoc_url=None, openapi_url=None)
    made.state.store, made.state.needs_codes, made.state.key = store, needs_codes, store.write(signing.cookie_key)
    made.include_router(routes.router)
    for path, (name, kind) in FILES.items():
        _serve_file(made, path, name, kind)
    for error, status in ((Refused, 422), (Unavailable, 503), (BadInput, 400)):
        made.add_exception_handler(error, _told(status))
    made.add_exception_handler(RequestValidationError, _not_understood)
    made.add_middleware(Guarded)
    return made


class Guarded:
    """A body that is too long is refused before it is read, and every answer carries HEADERS."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise HTTPException(413, f"the request is longer than {LARGEST_BODY:,} bytes")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.lower().encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > LARGEST_BODY:
            return await JSONResponse({"detail": f"the request is longer than {LARGEST_BODY:,} bytes"}, 413)(scope, receive, with_headers)
        await self.inner(scope, counted, with_headers)


def _serve_file(made: FastAPI, path: str, name: str, kind: str) -> None:
    content = files("components.feedback.people").joinpath("page", name).read_bytes()
    made.get(f"/{path}")(lambda: Response(content, media_type=kind))


def _told(status: int) -> Any:
    return lambda request, error: JSONResponse({"detail": str(error)}, status)


def _not_understood(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, and nothing of what was sent: that may be what no answer can hold."""
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": said.encode("ascii", "backslashreplace").decode()}, 422)


def needs_codes(host: str) -> bool:
    """Whether a name alone is too little: others reach the server, or the platform has accounts."""
    return not is_loopback(host) or bool(os.environ.get("PREFECT_API_AUTH_STRING"))


def serve(host: str, port: int) -> None:
    """Until SIGTERM. Errors: BadInput, Unavailable."""
    uvicorn.run(app(Store.open(), needs_codes(host)), host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.feedback.people.server", description="The page where people rank")
    parser.add_argument("--host", default=os.environ.get("MODELYARD_HOST") or "127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on")
    given = parser.parse_args()
    try:
        serve(given.host, given.port)
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
