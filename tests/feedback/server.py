"""An OpenAI-compatible server on loopback, in the standard library, around a model of ours or around a rule."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from components.feedback.local import LocalModel

Say = Callable[[list[dict[str, str]], dict[str, Any]], tuple[str, float | None]]  # text, and the probability of A where there is one


class Server(ThreadingHTTPServer):
    """`requests` keeps every (path, headers, body). `before` may answer in place of the model: a status, a text and headers; None lets the request through."""

    daemon_threads = True

    def __init__(self, say: Say) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say, self.requests, self.lock = say, [], threading.Lock()
        self.before: Callable[[dict[str, Any], int], tuple[int, str, dict[str, str]] | None] = lambda body, number: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            number = len(self.server.requests)
        if answer := self.server.before(body, number):
            return self._reply(*answer)
        if self.path != "/v1/chat/completions":
            return self._reply(404, json.dumps({"error": {"message": f"no {self.path}"}}), {})
        with self.server.lock:
            text, first = self.server.say(body["messages"], body)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if first is not None and body.get("logprobs"):
            top = [{"token": label, "logprob": math.log(max(p, 1e-30))} for label, p in (("A", first), ("B", 1 - first))]
            choice["logprobs"] = {"content": [{**max(top, key=lambda one: one["logprob"]), "top_logprobs": top}]}
        self._reply(200, json.dumps({"choices": [choice]}), {})

    def _reply(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


def of_model(model: LocalModel) -> Say:
    """A model of ours behind the server."""

    def say(messages: list[dict[str, str]], body: dict[str, Any]) -> tuple[str, float | None]:
        if body.get("logprobs"):
            first = model.prefer([messages])[0]
            return "A" if first > 0.5 else "B", first
        return model.write([messages], body["seed"])[0], None

    return say


@contextmanager
def serving(say: Say) -> Iterator[Server]:
    with Server(say) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
