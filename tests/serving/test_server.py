"""`modelyard serve` as a process, with MLflow's registry: the alias moves under load and nothing is dropped; SIGTERM lets what is under way end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from components.registry import models
from components.registry.store import client, experiment_id
from tests.services.stack import free_port
from tests.serving.conftest import events, until

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


@pytest.fixture
def released(two_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two versions in a registry of their own, the first of them champion."""
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    run = client().create_run(experiment_id())
    for number, folder in enumerate(two_models, 1):
        assert models.register("yard", folder, run.info.run_id, {"modelyard.identity": f"identity-{number}"}) == str(number)
    models.set_alias("yard", "champion", "1")
    return "models:/yard@champion"


@contextlib.contextmanager
def process(model: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "serve", model, "--port", str(port), *options]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True) as one:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                yield one, http
        finally:
            if one.poll() is None:
                one.kill()


def ready(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return http.get("/ready").status_code == 200
    return False


def test_the_alias_moves_and_no_request_is_dropped_and_the_end_is_graceful(released: str) -> None:
    with process(released) as (server, http):
        until(lambda: ready(http) or server.poll() is not None, PATIENCE_S)
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "ignore_eos": True, "stream": True}
        statuses, versions, stop = [], [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                reply = http.post("/v1/chat/completions", json=body)
                statuses.append(reply.status_code)
                versions.append(events(reply.text)[-1]["system_fingerprint"])

        clients = [threading.Thread(target=ask) for _ in range(6)]
        for one in clients:
            one.start()
        until(lambda: len(versions) > 6, PATIENCE_S)
        models.set_alias("yard", "champion", "2")
        until(lambda: "yard-2" in versions, PATIENCE_S)
        stop.set()
        for one in clients:
            one.join(60)
        assert set(statuses) == {200} and set(versions) == {"yard-1", "yard-2"}

        text: list[str] = []
        begun = threading.Event()

        def last() -> None:
            with http.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 240}) as reply:
                for part in reply.iter_text():
                    text.append(part)
                    begun.set()

        one = threading.Thread(target=last)
        one.start()
        begun.wait(60)
        server.send_signal(signal.SIGTERM)
        one.join(60)
        assert events("".join(text))[-1]["choices"][0]["finish_reason"] == "length"
        assert server.wait(60) in (0, -signal.SIGTERM)
        told = server.stderr.read()
        assert "main: yard version 2 is in service, in place of 1" in told and "ending: " in told and "Traceback" not in told


def test_a_model_that_does_not_exist_is_one_sentence(released: str) -> None:
    with process("models:/yard@nobody") as (server, _):
        assert server.wait(PATIENCE_S) == 2
        assert "error: registry: models:/yard@nobody does not exist" in server.stderr.read()


def test_keys_are_made_told_once_listed_and_taken_away(released: str) -> None:
    def keys(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "flows.cli", "keys", *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=PATIENCE_S)

    key = keys("add", "ann", "--requests-per-minute", "2").stdout.strip()
    with process(released) as (server, http):
        until(lambda: ready(http) or server.poll() is not None, PATIENCE_S)
        asked = {"json": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}, "headers": {"authorization": f"Bearer {key}"}}
        assert [http.post("/v1/chat/completions", **asked).status_code for _ in range(3)] == [200, 200, 429]
        assert http.get("/v1/models").status_code == 401
        assert "ann" in (listed := keys("list").stdout) and "2 requests a minute" in listed and key not in listed
        keys("remove", "ann")
        until(lambda: http.get("/v1/models", headers=asked["headers"]).status_code == 401, 10)


def test_the_platform_s_child_waits_for_its_first_champion(released: str, tmp_path: Path) -> None:
    from flows.platform.children import children
    from flows.platform.settings import Settings

    (tmp_path / "dvc.yaml").touch()
    asked = Settings.read({"MODELYARD_SERVE": "models:/yard@later", "MODELYARD_SERVE_PORT": str(free_port())}, project=tmp_path)
    (child,) = (one for one in children(asked, {}) if one.name == "serving")
    with subprocess.Popen(child.command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as one, httpx.Client(base_url=child.address, trust_env=False) as http:
        try:
            until(lambda: _answers(http, "/health") == 200, PATIENCE_S)
            assert _answers(http, "/ready") == 503
            models.set_alias("yard", "later", "2")
            until(lambda: ready(http), PATIENCE_S)
            assert json.loads(http.get("/ready").text)["arms"] == {"main": "yard-2"}
        finally:
            one.terminate()
            one.wait(60)


def _answers(http: httpx.Client, path: str) -> int | None:
    with contextlib.suppress(httpx.HTTPError):
        return http.get(path).status_code
    return None


def test_an_engine_that_names_no_models_answers_behind_the_door(two_models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    (tmp_path / "hub").mkdir()
    port, folder = free_port(), two_models[0]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as behind:
        try:
            until(lambda: healthy(behind), PATIENCE_S)
            with process("mine", "--engine", f"http://127.0.0.1:{port}#{folder}") as (server, http):
                until(lambda: ready(http) or server.poll() is not None, PATIENCE_S)
                asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}
                whole = http.post("/v1/chat/completions", json=asked).json()
                streamed = events(http.post("/v1/chat/completions", json={**asked, "stream": True}).text)
                assert whole["model"] == "mine" and whole["usage"]["completion_tokens"] == 12 and whole["choices"][0]["message"]["content"]
                assert {part["model"] for part in streamed} == {"mine"} and streamed[-1]["choices"][0]["finish_reason"] == "length"  # and [DONE], which that server leaves out
                assert 'arm="main",model="mine",route="chat",status="200",version="external"} 2.0' in http.get("/metrics").text
        finally:
            engine.kill()


def healthy(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return http.get("/health").status_code == 200
    return False
