"""Asking over HTTP: connections that are kept, several questions at once, and one kind of error for a server that does not answer.

    ask("Prefect", "POST", "http://127.0.0.1:4200/api/flows/filter", json={})
    at_once(lambda: first(), lambda: second())      # [first's answer, second's]
"""

from __future__ import annotations

import contextvars
import logging
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx
from streamlit.runtime.scriptrunner import add_script_run_ctx, get_script_run_ctx

TIMEOUT_S = 10.0
AT_ONCE = 8

logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each question


class Away(OSError):
    """A server that does not answer, or answers that it cannot; the message is for people."""


class Refused(Away):
    """The server asks for an account or a key that it was not given."""


class Absent(Away):
    """The server answers, and has no such thing."""


@cache
def client() -> httpx.Client:
    """One for all visitors. Proxies of the environment are left alone: these are servers of our own."""
    return httpx.Client(timeout=TIMEOUT_S, trust_env=False, limits=httpx.Limits(max_connections=32, max_keepalive_connections=16))


def ask(name: str, method: str, url: str, account: str | None = None, **options: Any) -> httpx.Response:
    """One answer. `account`: user:password. Errors: Absent for 404, Refused for 401 and 403, else Away, in a sentence that names the server."""
    auth = httpx.BasicAuth(*account.split(":", 1)) if account else None
    try:
        answer = client().request(method, url, auth=auth, **options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Away(f"{name} does not answer at {_origin(url)} ({type(error).__name__}). Look at it with `modelyard status`.") from error
    if answer.status_code == 404:
        raise Absent(f"{name} has nothing at {urllib.parse.urlsplit(url).path}.")
    if answer.status_code in (401, 403):
        raise Refused(f"{name} at {_origin(url)} asks for an account, and this dashboard has none or another one. Set its variables (docs/OPERATIONS.md) and restart the dashboard.")
    if answer.is_error:
        raise Away(f"{name} answered {answer.status_code} to {urllib.parse.urlsplit(url).path}: {answer.text[:200]}")
    return answer


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a health address says 200."""
    try:
        return client().get(url, timeout=timeout_s).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def at_once(*questions: Callable[[], Any]) -> list[Any]:
    """Every answer, in order; the first error is raised. Threads are its own, so a question may ask several at once itself."""
    context = get_script_run_ctx(suppress_warning=True)

    def asked(question: Callable[[], Any]) -> Any:
        if context is not None:
            add_script_run_ctx(ctx=context)  # caches look at it
        return question()

    with ThreadPoolExecutor(max(1, min(AT_ONCE, len(questions))), thread_name_prefix="ask") as threads:
        waiting = [threads.submit(contextvars.copy_context().run, asked, question) for question in questions]
        return [one.result() for one in waiting]


def seen_from(address: str, host: str | None) -> str:
    """A server of this very machine as its reader must write it: by the name in `host` (NAME:PORT), by which the reader came here."""
    parts = urllib.parse.urlsplit(address)
    name = urllib.parse.urlsplit(f"//{host}").hostname if host else None
    if name is None or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return address
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{parts.port}"


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
