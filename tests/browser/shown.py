"""What the dashboard shows, made without training: an MLflow server filled over its REST interface as recipes fill it, and the dashboard on top.

    with Shown(folder) as shown:
        shown.fill(lines=3)
        shown.dashboard()      # http://127.0.0.1:PORT

A line is what one `modelyard run` leaves: the run of the recipe, its seven stages with curves, figures, inputs and records, and a released version.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pandas as pd

from components.schema.records import Record, Sample, digest
from flows.platform.children import MLFLOW_SERVER, SHARED
from tests.services.stack import free_port

ROOT = Path(__file__).parents[2]
READY_S = 200.0
STEPS, EVERY = 600, 10
CURVES = ("loss", "lr", "grad_norm", "tokens_per_s", "tokens")
SUITES = {"mini_gsm8k": 280, "mini_humaneval": 46, "mini_mmlu": 280}
READS = {
    "data": {},
    "pretrain": {"tokens": "data/tokens.dir", "mix": "data/mix.dir", "tokenizer": "data/tokenizer.dir"},
    "sft": {"base": "pretrain", "chats": "data/chats.dir"},
    "reward": {"chat": "sft", "preferences": "data/preferences.dir"},
    "ppo": {"chat": "sft", "reward": "reward", "preferences": "data/preferences.dir"},
    "evaluate": {"base": "pretrain", "chat": "sft", "policy": "ppo", "benchmarks": "data/benchmarks.dir"},
    "release": {"model": "ppo", "report": "evaluate"},
}
RUNNING = 999  # the line whose stages are under way
# What is there when a page stands.
TABLE, CHART, GRAPH = "[data-testid=stDataFrame] canvas", "[data-testid=stVegaLiteChart] :is(canvas, svg)", "[data-testid=stGraphVizChart] g.node"
STANDS = {
    "": (CHART, "[data-testid=stMetric]"),
    "releases": (TABLE, GRAPH),
    "leaderboard": (TABLE, CHART),
    "compare": (TABLE, CHART, "[data-testid=stCode]"),
    "data": (TABLE, CHART),
    "cost": (TABLE, CHART),
    "chat": ("[data-testid=stChatInput], [data-testid=stAlert]",),
}
HOSTILE = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> **bold** [link](http://example.org)"


@dataclass
class Shown:
    """Servers in a folder of their own; whoever starts it stops it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mlflow: str = ""
    experiment: str = ""

    def __enter__(self) -> Self:
        port, home = free_port(), self.folder / "mlflow"
        home.mkdir(parents=True, exist_ok=True)
        store = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home}/mlflow.db", "MLFLOW_ARTIFACTS_DESTINATION": str(home / "artifacts"), **MLFLOW_SERVER}
        self.start("mlflow", ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], f"http://127.0.0.1:{port}/health", store)
        self.mlflow = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(timeout=60, trust_env=False)
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, name: str, words: list[str], health: str, told: Mapping[str, str] | None = None) -> None:
        """A Python module as a server, waited for."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "MODELYARD_"))}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env={**kept, **SHARED, **self.environment, **(told or {})}, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True))
        deadline = time.monotonic() + READY_S
        while not answers(health):
            assert time.monotonic() < deadline and self.processes[-1].poll() is None, f"{name} did not come up\n{(self.folder / f'{name}.log').read_text()[-3000:]}"
            time.sleep(0.3)

    def prefect(self) -> None:
        """A Prefect server with nothing in it; the dashboard that is started afterwards asks it."""
        self.environment |= {"PREFECT_API_URL": f"http://127.0.0.1:{(port := free_port())}/api", "PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_SERVER_UI_API_URL": "/api"}
        self.start("prefect", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], f"http://127.0.0.1:{port}/api/health")

    def dashboard(self, app: str = "dashboards/app.py", **told: str) -> str:
        """Its address."""
        port = free_port()
        words = ["streamlit", "run", app, "--server.address=127.0.0.1", f"--server.port={port}"]
        self.start("dashboard", words, f"http://127.0.0.1:{port}/_stcore/health", {"MLFLOW_TRACKING_URI": self.mlflow, **told})
        return f"http://127.0.0.1:{port}"

    # ---------------------------------------------------------------- filling

    def call(self, path: str, method: str = "POST", **body: Any) -> dict[str, Any]:
        answer = self.client.request(method, f"{self.mlflow}/api/2.0/mlflow/{path}", json=body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def keep(self, run_id: str, path: str, content: bytes) -> None:
        """An artifact."""
        answer = self.client.put(f"{self.mlflow}/api/2.0/mlflow-artifacts/artifacts/{self.experiment}/{run_id}/artifacts/{path}", content=content)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:500]}"

    def fill(self, lines: int, models: int | None = None, at_once: int = 4) -> None:
        """So many lines, released as versions of so many models (one each, unless said), the first as the newest."""
        self.experiment = self.call("experiments/create", name="modelyard")["experiment_id"]
        for model in range(models or lines):
            self.call("registered-models/create", name=f"model-{model:03}")
        with ThreadPoolExecutor(at_once) as pool:
            released = dict(zip(range(lines), pool.map(self.line, range(lines)), strict=True))
        for number, tags in released.items():  # one after the other: versions are counted
            self.release(f"model-{number % (models or lines):03}", number, *tags)

    def line(self, number: int) -> tuple[str, dict[str, str]]:
        """One recipe's runs; gives the release's run and the tags of its version."""
        luck, recipe = random.Random(number), f"recipe-{number:03}"
        began = 1_700_000_000_000 + (1000 - number) * 3_600_000  # milliseconds: the first is the newest
        parent = self.run(recipe, "pipeline", began, {"modelyard.recipe": recipe, "modelyard.recipe_hash": digest(recipe)}, {f"section.key_{i}": "a value" for i in range(90)}, {"cost/amount": 1.0})
        runs: dict[str, str] = {}
        for place, stage in enumerate(READS):
            runs[stage] = self.stage(number, stage, parent, began + place * 60_000, luck)
        scores = {suite: {"metric": "exact_match", "score": round(luck.uniform(0.3, 0.95), 4), "stderr": 0.02, "items": items} for suite, items in SUITES.items()}
        self.gate(runs["release"], scores, luck)
        told = {"reason": "better than the champion on mini_gsm8k, not worse on the others", "recipe": recipe, "identity": identity(number, "ppo"), "action": "ask" if number == 2 else "promote", "scores": json.dumps(scores)}
        return runs["release"], {f"modelyard.{name}": value for name, value in told.items()}

    def run(self, name: str, kind: str, began: int, tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float], status: str = "FINISHED") -> str:
        labels = [{"key": key, "value": value} for key, value in {"modelyard.kind": kind, **tags}.items()]
        run_id = self.call("runs/create", experiment_id=self.experiment, run_name=name, start_time=began, tags=labels)["run"]["info"]["run_id"]
        curves = [{"key": key, "value": value, "timestamp": began, "step": 0} for key, value in metrics.items()]
        self.call("runs/log-batch", run_id=run_id, metrics=curves, params=[{"key": key, "value": value} for key, value in params.items()])
        if status != "RUNNING":
            self.call("runs/update", run_id=run_id, status=status, end_time=began + 50_000)
        return run_id

    def running(self) -> None:
        """Two stages that train now."""
        for stage in ("pretrain", "ppo"):
            self.stage(RUNNING, stage, "none", int(time.time() * 1000) - 60_000, random.Random(0), "RUNNING")

    def stage(self, number: int, stage: str, parent: str, began: int, luck: random.Random, status: str = "FINISHED") -> str:
        """A stage's run: figures, curves where it trains, what it read, its record."""
        recipe, mine = f"recipe-{number:03}", identity(number, stage)
        tags = {"modelyard.stage": stage, "modelyard.stage_identity": mine, "modelyard.recipe": recipe, "mlflow.parentRunId": parent}
        figures = {**{f"figure_{i}": luck.random() for i in range(40)}, "heldout_loss_after": luck.uniform(1, 3), "cost/hours": luck.uniform(0.1, 2), "cost/amount": luck.uniform(0.1, 3), "cost/kwh": 0.2, "cost/kwh_estimated": 0.1, "cost/cpu_hours": 1.0, "cost/gpu_hours": 0.0}
        if stage == "data":
            figures |= {"tokens/dropped_exact_duplicate": 12.0, "chats/kind_talk": 30.0, "chats/kind_code": 12.0, "preferences/kind_wrong": 9.0}
        run_id = self.run(f"{recipe} {stage} {mine[:8]}", "stage", began, tags, {f"{stage}.steps": str(STEPS), **{f"{stage}.key_{i}": "1" for i in range(30)}}, figures, status)
        if stage in ("pretrain", "sft", "reward", "ppo"):
            names = ("reward", *CURVES) if stage == "ppo" else CURVES
            points = [{"key": name, "value": 3 / (1 + step / 80) + luck.random() / 5, "timestamp": began + step, "step": step} for name in names for step in range(EVERY, STEPS, EVERY)]
            self.call("runs/log-batch", run_id=run_id, metrics=points)
        reads = {role: identity(number, source) for role, source in READS[stage].items()}
        if reads:
            self.call("runs/log-inputs", run_id=run_id, datasets=[{"tags": [{"key": "mlflow.data.context", "value": role}], "dataset": {"name": role, "digest": of, "source_type": "stage", "source": "{}"}} for role, of in reads.items()])
        samples = tuple(Sample(prompt=f"[policy] {asked}", output=f"{said} says {recipe}") for asked, said in (("How many eggs are there?", "four"), (HOSTILE, HOSTILE))) if stage == "evaluate" else ()
        record = Record(stage=stage, identity=mine, revision=1, config={"role": "policy"}, inputs=reads, files={}, figures={}, samples=samples)
        self.keep(run_id, "record.json", record.model_dump_json().encode())
        if stage == "data":
            self.data_report(run_id)
        return run_id

    def gate(self, run_id: str, scores: Mapping[str, Any], luck: random.Random) -> None:
        """What goes with a release: every item's score, and what was compared."""
        rows = [{"suite": suite, "key": f"{suite}/{item}/0", "score": float(luck.random() < scores[suite]["score"]), "overlap": 0.0} for suite, items in SUITES.items() for item in range(items)]
        self.keep(run_id, "gate/items.parquet", parquet(rows))
        compared = [{"suite": suite, "verdict": "better", "challenger": scores[suite]["score"], "champion": 0.3, "difference": 0.1, "low": 0.05, "high": 0.15} for suite in SUITES]
        self.keep(run_id, "gate/decision.json", json.dumps({"action": "promote", "comparisons": compared}).encode())

    def data_report(self, run_id: str) -> None:
        """A card, what was dropped, and clusters of copies."""
        dropped = {"exact_duplicate": {"count": 12, "bytes": 900, "examples": [HOSTILE, "the tide comes in"]}, "near_duplicate": {"count": 3, "bytes": 200, "examples": []}}
        self.keep(run_id, "data_report/counts.json", json.dumps({"dedup": {"dropped": dropped}}).encode())
        rows = [
            {"cluster": cluster, "size": 40 - cluster, "id": f"{cluster}-{place}", "kept": place == 0, "kind": None if place == 0 else ("exact", "near")[cluster % 2], "similarity": 1.0, "source": "files", "domain": ("web", "notes")[cluster % 2], "url": None, "excerpt": f"{HOSTILE if cluster == 0 else 'the tide'} {cluster}"}
            for cluster in range(30) for place in range(3)
        ]  # fmt: skip
        self.keep(run_id, "data_report/clusters.parquet", parquet(rows))
        counts = {"documents": 9000, "train_tokens": 936608, "chats": 42, "pairs": 9, "contaminated_documents": 0, "kept_share_of_documents": 0.92}
        self.keep(run_id, "data_card/counts.json", json.dumps(counts).encode())
        self.keep(run_id, "data_card/index.html", b"<!doctype html><html><head><title>card</title></head><body><h1>Data card: made for a test</h1><script>document.body.textContent='ran'</script></body></html>")

    def release(self, model: str, number: int, run_id: str, tags: Mapping[str, str]) -> None:
        """A version with its aliases, and the move of the champion."""
        source = f"mlflow-artifacts:/{self.experiment}/{run_id}/artifacts"
        version = self.call("model-versions/create", name=model, source=source, run_id=run_id, tags=[{"key": key, "value": value} for key, value in tags.items()])["model_version"]["version"]
        for alias in ("challenger", "champion"):
            self.call("registered-models/alias", name=model, alias=alias, version=version)
        move = {"version": version, "how": "gate", "who": "the gate", "why": "better"}
        self.call("registered-models/set-tag", name=model, key=f"modelyard.champion.2026-11-21T20-{number % 60:02}-52.718407Z", value=json.dumps(move))


def stands(tab: Any, address: str, page: str, patience_s: float = 60.0) -> None:
    """Open a page and wait until it is drawn and its script has ended."""
    tab.goto(f"{address}/{page}", wait_until="commit")
    for selector in (*STANDS[page.partition("?")[0]], "[data-test-script-state=notRunning]"):
        tab.locator(selector).first.wait_for(timeout=patience_s * 1000)
    tab.locator("[data-testid=stSkeleton], [data-stale=true]").first.wait_for(state="detached", timeout=patience_s * 1000)


def identity(number: int, source: str) -> str:
    """Of a line's stage, or of a part of its data (data/PART.dir)."""
    return digest([number, source]) + (".dir" if source.endswith(".dir") else "")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


def answers(address: str) -> bool:
    with suppress(OSError):
        return urllib.request.urlopen(address, timeout=5).status == 200
    return False
