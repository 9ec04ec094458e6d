"""Two small chat models with random weights, and endpoints around them: real sockets, a thread of this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from components.models.build import build, load, load_tokenizer, save
from components.schema.serving import ServeConfig
from components.schema.training import ModelConfig
from components.serving.endpoint import Endpoint
from components.serving.server import Server, configured
from tests.feedback.conftest import make_tokenizer

SMALL = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, context_tokens=256)
START_S = 20.0


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for name in ("MODELYARD_SERVE_KEYS", "MODELYARD_HOST", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models that never learnt anything, with weights large enough to have opinions."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = make_tokenizer(folder / "tokenizer")
    for seed, name in enumerate(("one", "two")):
        model = build(SMALL, load_tokenizer(tokenizer), seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8) if parameter.ndim == 2 else None
            model.model.embed_tokens.weight[:5] = 0  # special tokens are not what it likes to say
        save(model, tokenizer, folder / name)
    return [folder / "one", folder / "two"]


@pytest.fixture(scope="session")
def small(two_models: list[Path]) -> Path:
    return two_models[0]


@pytest.fixture(scope="session")
def network(small: Path) -> tuple[Any, Any]:
    """The model itself and its tokenizer, to compare with."""
    return load(small).eval(), load_tokenizer(small)


class Served:
    """An endpoint that listens."""

    def __init__(self, endpoint: Endpoint, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoint, self.server, self.loop = endpoint, server, loop
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)

    def ask(self, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """A short greedy chat, unless told otherwise."""
        usual = {"messages": [{"role": "user", "content": "Hi"}]} if path.endswith("chat/completions") and "messages" not in body else {}
        return self.http.post(path, json={"max_tokens": 8, "temperature": 0, **usual, **body}, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        return self.endpoint.metrics.registry.get_sample_value(f"modelyard_serving_{name}", labels) or 0.0

    def raw(self, data: bytes = b"") -> socket.socket:
        """A connection that sends these bytes as they are."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection


@contextmanager
def serving(config: ServeConfig, ready: bool = True) -> Iterator[Served]:
    """An endpoint in a thread."""
    endpoint = Endpoint(config)
    found: dict[str, Any] = {}

    async def live() -> None:
        found["loop"], found["server"] = asyncio.get_running_loop(), configured(endpoint)
        await found["server"].serve()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    until(lambda: found.get("server") and found["server"].started)
    served = Served(endpoint, found["server"], found["loop"])
    try:
        if ready:
            until(lambda: served.http.get("/ready").status_code == 200)
        yield served
    finally:
        served.http.close()
        found["server"].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def served(small: Path) -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:
        yield lambda ready=True, **options: stack.enter_context(serving(ServeConfig(**{"model": str(small), "port": 0, "poll_s": 0.1, **options}), ready))


@pytest.fixture(scope="module")
def usual(two_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One endpoint for all tests of a file that change nothing about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
        with serving(ServeConfig(model=str(two_models[0]), port=0, name="small", body_kib=64, read_s=0.4)) as found:
            yield found


def until(what: Callable[[], Any], patience_s: float = START_S) -> Any:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {patience_s:.0f} s in vain")


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]
