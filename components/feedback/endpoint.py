"""A client of OpenAI-compatible chat endpoints, in the standard library: vLLM, llama.cpp, our own server, or OpenAI's.

    Endpoint(url="http://127.0.0.1:8000/v1", model="judge", key=None).chat(messages, max_tokens=8)     # the first choice, as the endpoint gives it

Servers differ in what they understand. A request that is refused because of an option of no importance (`seed`, `logprobs`, ...) is
sent again without it, and so are all later ones. Redirects are not followed: the key would go along.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from components.schema.config import BadInput

LARGEST_REPLY_BYTES = 16 * 2**20
PASSING = (408, 409, 425, 429)  # errors that may be gone a moment later; all of 5xx too
OPTIONAL = ("seed", "temperature", "top_logprobs", "logprobs")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


class Refused(Exception):
    """A request that the endpoint will not answer, however often it is sent: too long, or filtered."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """One model behind one URL. Threads may share it."""

    def __init__(
        self, url: str, model: str, key: str | None = None, timeout_s: float = 120.0, retries: int = 5, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.url, self.model, self.timeout_s, self.retries, self.pause = url.rstrip("/") + "/chat/completions", model, timeout_s, retries, pause
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._unknown: set[str] = set()  # options that this endpoint does not understand

    def chat(self, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
        """The first choice. Raises Refused. Errors: BadInput where the endpoint cannot be used at all."""
        for attempt in range(self.retries + 1):
            sent = self._known(options)
            status, text, wait_s = self._ask({"model": self.model, "messages": messages, **sent})
            while status in (400, 422) and self._learnt(text, sent):
                sent = self._known(options)
                status, text, wait_s = self._ask({"model": self.model, "messages": messages, **sent})
            if status == 200 and (choice := _choice(text)):
                return choice
            if status in (400, 413, 422):
                raise Refused(_excerpt(text))
            if status not in (0, 200, *PASSING) and status < 500:
                raise BadInput(self._hopeless(status, text))
            if attempt < self.retries:
                self.pause(min(LONGEST_PAUSE_S, wait_s if wait_s is not None else FIRST_PAUSE_S * 2**attempt))
        what = f"answers {status}" if status else "cannot be reached"
        raise BadInput(
            f"critic: {self.url} {what} ({_excerpt(text)}) after {self.retries + 1} attempts, so nothing more can be judged. What was done is kept: "
            "see to the endpoint and run the same command again"
        )

    def _ask(self, body: dict[str, Any]) -> tuple[int, str, float | None]:
        """Status (0: no connection), text, and the seconds that the endpoint asks to wait."""
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as reply:
                return reply.status, reply.read(LARGEST_REPLY_BYTES).decode("utf-8", "replace"), None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(LARGEST_REPLY_BYTES).decode("utf-8", "replace"), _seconds(error.headers.get("Retry-After"))
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
            return 0, str(getattr(error, "reason", error)) or type(error).__name__, None

    def _known(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options as this endpoint understands them."""
        kept = {name: value for name, value in options.items() if name not in self._unknown}
        if "max_tokens" in self._unknown and "max_tokens" in options:
            kept["max_completion_tokens"] = options["max_tokens"]
        return kept

    def _learnt(self, text: str, sent: dict[str, Any]) -> bool:
        """Whether a refusal names an option of what was sent that the request can do without, or says how it is called here."""
        named = {name for name in OPTIONAL if name in text}
        if named & {"logprobs", "top_logprobs"}:
            named |= {"logprobs", "top_logprobs"}
        if "max_completion_tokens" in text:
            named.add("max_tokens")
        self._unknown |= named
        return bool(named & set(sent))

    def _hopeless(self, status: int, text: str) -> str:
        why = {
            401: "it wants a key, or another one. Put it into the environment variable that critic.key_variable names",
            403: "the key may not use this model. Put another into the environment variable that critic.key_variable names",
            404: "there is no such address, or no such model. Correct critic.url (it ends before /chat/completions) or critic.model",
        }.get(status, "it is no OpenAI-compatible endpoint, or it has moved. Correct critic.url")
        return f"critic: {self.url} answers {status} for model {self.model!r} ({_excerpt(text)}), so nothing can be judged: {why}"


def _choice(text: str) -> dict[str, Any] | None:
    try:
        choice = json.loads(text)["choices"][0]
        return choice if isinstance(choice["message"], dict) else None
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds; a date is not read."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None


def _excerpt(text: str) -> str:
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:200] or "no text"
