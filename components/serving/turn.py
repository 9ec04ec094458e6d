"""One request on its way through the endpoint: who asks, who answers, and what is counted about it when it is over."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request

from components.serving.keys import Key
from components.serving.metrics import Metrics

GONE = "499"
"""The status that is counted where the client went away before its answer (nginx's)."""


class Turn:
    """Made at the door (door.py), found again by `of(request)`."""

    def __init__(self, metrics: Metrics, client: str) -> None:
        self.metrics, self.client = metrics, client
        self.key: Key | None = None
        self.named = False
        """Whether `client` is a key's name, and not an address."""
        self.route, self.arm, self.model, self.version = "other", "", "", ""
        self.status: str | None = None
        self.began = time.perf_counter()
        self._first = False

    def answered_by(self, arm: str, model: str, version: str) -> None:
        self.arm, self.model, self.version = arm, model, version

    def first_token(self) -> None:
        """May be called again."""
        if not self._first:
            self._first = True
            self.metrics.first.labels(self.model, self.arm).observe(time.perf_counter() - self.began)

    def tokens(self, prompt: int, completion: int) -> None:
        self.metrics.tokens.labels(self.model, self.arm, "prompt").inc(prompt)
        self.metrics.tokens.labels(self.model, self.arm, "completion").inc(completion)

    def refused(self, reason: str) -> None:
        self.metrics.refused.labels(reason).inc()

    def over(self) -> None:
        self.metrics.requests.labels(self.model, self.version, self.arm, self.route, self.status or GONE).inc()
        self.metrics.seconds.labels(self.model, self.arm, self.route).observe(time.perf_counter() - self.began)

    @property
    def own_limits(self) -> tuple[int | None, int | None]:
        return (self.key.requests_per_minute, self.key.tokens_per_minute) if self.key else (None, None)


def of(request: Request | Any) -> Turn:
    """The turn of a request."""
    return request.scope["modelyard.turn"]
