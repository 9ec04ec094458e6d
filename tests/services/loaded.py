"""A whole platform on PostgreSQL with lines under way on it, to be hurt and then compared with a run that nobody disturbed.

    with Loaded.opened(folder) as yard:
        before = yard.undisturbed()              # each recipe once: its record hashes and its curves
        lines = yard.begin(); yard.wait_for_step(lines[0], 40)
        os.kill(yard.stage_pid(lines[0]), 9)
        yard.ended(lines[0]); yard.problems(lines[0], before)   # [] = the same bytes, one MLflow run a stage, the same curve

The same recipes run again and again: `set_aside` moves what a run left out of sight, folders as well as MLflow's runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from components.schema.recipe import Recipe
from components.schema.records import Record
from tests.flows.project import MICRO, Project
from tests.services.machines import Api, Machine, wait_for
from tests.services.stack import ObjectStore, Postgres, free_port

STEPS = 200
SEEDS = (1, 2)
# Pretraining of half a minute on one thread of a quiet machine; the line ends there.
SETS = (
    *MICRO, "data.mix.max_epochs=100", "sft=null", "reward=null", "align=null", "evals=null",
    "model={architecture: llama, hidden_size: 128, layers: 2, heads: 4, intermediate_size: 384, context_tokens: 160}",
)  # fmt: skip
PRETRAIN = "pretrain={{steps: {steps}, batch_size: 8, learning_rate: 1e-3, warmup_steps: 2, heldout_sequences: 4, checkpoint_every_steps: 1000}}"
CHECKPOINT_EVERY_S = 3.0
STAGES = ("pretrain",)
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
TIMED = ("tokens_per_s", "share_of_peak", "time/", "system/", "cost/")  # metrics that are never the same twice


class Line(NamedTuple):
    """A run of the line."""

    run_id: str
    seed: int


class Kept(NamedTuple):
    """What a stage of one seed left."""

    folder: Path
    identity: str
    hash: str
    curves: dict[str, list[tuple[int, float]]]


@dataclass
class Loaded:
    """PostgreSQL, `modelyard up` on it, and how both are reached."""

    postgres: Postgres
    machine: Machine
    prefect: Api
    mlflow: Api
    steps: int = STEPS
    store: ObjectStore | None = None
    aside: int = 0
    known: dict[tuple[int, str], Kept] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, steps: int = STEPS, store: ObjectStore | None = None, slots: int = 2) -> Iterator[Self]:
        """Up with two workers and so many slots of the processor, in a copy of the project; at the end nothing of it runs. `store`: results and checkpoints are copied there."""
        ports = {name: free_port() for name in ("PREFECT", "MLFLOW")}
        with Postgres(folder / "postgres") as postgres:
            told = {
                **{f"MODELYARD_{name}_PORT": str(port) for name, port in ports.items()},
                "MODELYARD_DASHBOARD_PORT": "0", "MODELYARD_FEEDBACK_PORT": "0", "MODELYARD_METRICS_PORT": "0", "MODELYARD_WORKERS": "2", "MODELYARD_CPU_SLOTS": str(slots), "MODELYARD_GPUS": "0", "OMP_NUM_THREADS": "1",
                "MODELYARD_HOME": str(folder / "yard"), "MODELYARD_SLOT_LOCKS": str(folder / "locks"),
                "PREFECT_API_DATABASE_CONNECTION_URL": postgres.url("prefect", "postgresql+asyncpg"),
                "MLFLOW_BACKEND_STORE_URI": postgres.url("mlflow", "postgresql+psycopg2"),
                **({**store.environment, "MODELYARD_STORE": f"s3://{store.bucket()}/team", "MODELYARD_STORE_EVERY_S": "1"} if store else {}),
            }  # fmt: skip
            project = Project.copy_to(folder / "project")
            project.environment = told
            machine = Machine(project, told)
            try:
                machine.up()
                yield cls(postgres, machine, Api(f"http://127.0.0.1:{ports['PREFECT']}/api"), Api(f"http://127.0.0.1:{ports['MLFLOW']}"), steps, store)
            finally:
                machine.lose()

    # ------------------------------------------------------------ lines

    def begin(self, *seeds: int) -> list[Line]:
        """Submit a line for each seed, as the form's button does it."""
        deployment = self.prefect.ask("GET", "/deployments/name/train-and-release/train-and-release")["id"]
        lines = []
        for seed in seeds or SEEDS:
            recipe = Recipe.load(self.machine.project.folder / "recipes" / "tiny.yaml", [*SETS, PRETRAIN.format(steps=self.steps), f"seed={seed}"], lambda line: None)
            asked = {"recipe": recipe.model_dump(mode="json"), "resources": {"threads": 1, "checkpoint_every_seconds": CHECKPOINT_EVERY_S}}
            made = self.prefect.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": asked, "state": {"type": "SCHEDULED"}})
            lines.append(Line(made["id"], seed))
        return lines

    def undisturbed(self) -> dict[tuple[int, str], Kept]:
        """Every seed's line once, in peace: what the others are compared with."""
        for line in self.begin():
            run = self.ended(line)
            assert run["state_type"] == "COMPLETED", run["state"]
        self.known = {(record.config["seed"], record.stage): self._kept(folder, record) for folder, record in self._records() if record.stage in STAGES}
        assert set(self.known) == {(seed, stage) for seed in SEEDS for stage in STAGES}, set(self.known)
        self.set_aside()
        return self.known

    def ended(self, line: Line, patience_s: float = 900.0) -> dict[str, Any]:
        """The run, once it is over."""
        return wait_for(f"line {line.seed} to end", lambda: (run := self.run(line))["state_type"] in ENDED and run, patience_s)

    def run(self, line: Line) -> dict[str, Any]:
        return self.prefect.ask("GET", f"/flow_runs/{line.run_id}")

    def states(self, line: Line) -> list[str]:
        return [state["name"] for state in self.prefect.ask("GET", f"/flow_run_states/?flow_run_id={line.run_id}")]

    def problems(self, line: Line) -> list[str]:
        """What differs from the undisturbed run: files, MLflow's runs and curves; nothing = the same."""
        found = []
        for stage in STAGES:
            kept = self.known[line.seed, stage]
            if not (kept.folder / "record.json").exists():
                found.append(f"{stage}: no result")
                continue
            now = self._kept(kept.folder, Record.read(kept.folder))
            if now.hash != kept.hash:
                found.append(f"{stage}: other bytes")
            if (count := len(self._mlflow_runs("modelyard.stage_identity", kept.identity))) != 1:
                found.append(f"{stage}: {count} MLflow runs")
            found += [f"{stage}: the curve of {name} differs" for name in kept.curves if now.curves.get(name) != kept.curves[name]]
        return found

    def left_open(self, line: Line) -> list[str]:
        """Names of flow and task runs within a run that is over, which Prefect's pages would show as running for ever."""
        below = self.prefect.ask("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [line.run_id]}}})
        ids = [line.run_id, *(run["id"] for run in below)]
        tasks = self.prefect.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": ids}}, "limit": 200})
        return [f"{run['name']} is left {run['state_name']}" for run in (*below, *tasks) if run["state_type"] in ("RUNNING", "PENDING", "CANCELLING")]

    def set_aside(self) -> None:
        """What the lines left, folders and MLflow runs, is out of sight: the same recipes are new again."""
        self.aside += 1
        place = self.machine.home / "aside" / str(self.aside)
        place.mkdir(parents=True)
        for folder in (self.machine.home / "stages").iterdir():
            if not folder.name.startswith("data-"):
                folder.rename(place / folder.name)
        if self.store:
            bucket = self.machine.environment["MODELYARD_STORE"].split("/")[2]
            for key in self.store.keys(bucket):
                if any(f"/{stage}-" in key for stage in STAGES):
                    self.store.client().delete_object(Bucket=bucket, Key=key)
        for kept in self.known.values():
            for run in self._mlflow_runs("modelyard.stage_identity", kept.identity):
                body = {"run_id": run["info"]["run_id"], "key": "modelyard.stage_identity", "value": f"{kept.identity} aside {self.aside}"}
                self.mlflow.ask("POST", "/api/2.0/mlflow/runs/set-tag", body)

    # ------------------------------------------------------------ what is under way

    def checkpoint(self, line: Line) -> tuple[int, float]:
        """Steps done at the newest checkpoint of the line's pretraining, and when it was written (seconds since 1970)."""
        kept, found = self.known[line.seed, "pretrain"], [(0, 0.0)]
        for path in kept.folder.with_name(kept.folder.name + ".partial").glob("work/step-*.ckpt"):
            with contextlib.suppress(OSError):
                found.append((int(path.name.split("-")[1]), path.stat().st_mtime))
        if (kept.folder / "record.json").exists():
            found.append((self.steps, (kept.folder / "record.json").stat().st_mtime))
        return max(found)

    def wait_for_step(self, line: Line, step: int) -> int:
        """Until its pretraining has come so far; gives how far it is."""
        return wait_for(f"step {step} of line {line.seed}", lambda: (there := self.checkpoint(line)[0]) >= step and there, 400)

    def processes(self, line: Line) -> list[psutil.Process]:
        """The line's flow process and everything below it, by its mark in the environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == line.run_id.replace("-", "") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stage_pid(self, line: Line, stage: str = "pretrain") -> int | None:
        return next((process.pid for process in self.processes(line) if _words(process)[1:4] == ["-m", "components", stage]), None)

    def flow_pid(self, line: Line) -> int | None:
        return next((process.pid for process in self.processes(line) if "prefect.engine" in _words(process) or "prefect.flow_engine" in _words(process)), None)

    def works_since(self, line: Line, moment: float, old: int | None = None) -> bool:
        """Whether, after a moment, a living stage has written a checkpoint, or pretraining is done. `old`: a stage that does not count."""
        step, written = self.checkpoint(line)
        if step >= self.steps:
            return True
        pid = self.stage_pid(line)
        with contextlib.suppress(psutil.Error):
            return pid not in (None, old) and written > max(moment, psutil.Process(pid).create_time())
        return False

    # ------------------------------------------------------------ the platform's parts

    def part(self, name: str) -> psutil.Process:
        """prefect, mlflow, worker-1, worker-2, watching or supervisor."""
        told = self.platform()
        return psutil.Process((told["supervisor"] if name == "supervisor" else told["children"][name]["process"])["pid"])

    def platform(self) -> dict[str, Any]:
        return json.loads((self.machine.home / "platform" / "state.json").read_text())

    def worker_of(self, line: Line) -> psutil.Process:
        """The worker that started the line's flow."""
        pid = self.flow_pid(line)
        assert pid is not None
        workers = {self.part(name).pid for name in self.platform()["children"] if name.startswith("worker")}
        return next(parent for parent in psutil.Process(pid).parents() if parent.pid in workers)

    def signal_server(self, name: str, number: int) -> None:
        """To a server with everything it runs."""
        server = self.part(name)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, number)

    def answers(self, name: str) -> bool:
        """Whether prefect, mlflow or postgres answers a question that needs its data."""
        with contextlib.suppress(Exception):
            if name == "postgres":
                return bool(self.postgres.query("prefect", "SELECT 1"))
            if name == "prefect":
                return self.prefect.ask("POST", "/flow_runs/count", {}) is not None
            return bool(self.mlflow.ask("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))
        return False

    def lose_everything(self) -> None:
        """A power cut: all at once, the database too; the folder of locks lies in memory and is empty afterwards."""
        self.postgres.kill()
        self.machine.lose()
        shutil.rmtree(self.machine.environment["MODELYARD_SLOT_LOCKS"])

    def begin_anew(self) -> None:
        """After something that did not end well: every process new, every run over, every result aside."""
        self.machine.lose()
        if not self.answers("postgres"):
            self.postgres.kill()
            self.postgres.start()
        self.machine.up()
        for run in self.prefect.ask("POST", "/flow_runs/filter", {"flow_runs": {"state": {"type": {"not_any_": ["COMPLETED", "FAILED", "CANCELLED"]}}}}):
            self.prefect.ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True})
        self.set_aside()

    def restore(self) -> None:
        self.postgres.start()
        self.machine.up()

    # ------------------------------------------------------------ what was left

    def _records(self) -> list[tuple[Path, Record]]:
        return [(path.parent, Record.read(path.parent)) for path in (self.machine.home / "stages").glob("*/record.json") if not path.parent.name.startswith("data-")]

    def _kept(self, folder: Path, record: Record) -> Kept:
        run_id = record.execution["mlflow_run_id"]
        keys = [metric["key"] for metric in self.mlflow.ask("GET", f"/api/2.0/mlflow/runs/get?run_id={run_id}")["run"]["data"].get("metrics", ())]
        curves = {key: self._history(run_id, key) for key in keys if not key.startswith(TIMED)}
        speeds = {key: [(step, 0.0) for step, _ in self._history(run_id, key)] for key in keys if key == "tokens_per_s"}  # as many points, at the same steps
        return Kept(folder, record.identity, record.hash, {key: curve for key, curve in (curves | speeds).items() if len(curve) > 1})

    def _history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        answer = self.mlflow.ask("GET", f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}&max_results=5000")
        return sorted((int(metric.get("step", 0)), float(metric["value"])) for metric in answer.get("metrics", ()) if math.isfinite(float(metric["value"])))

    def _mlflow_runs(self, tag: str, value: str) -> list[dict[str, Any]]:
        experiments = [found["experiment_id"] for found in self.mlflow.ask("GET", "/api/2.0/mlflow/experiments/search?max_results=100")["experiments"]]
        body = {"experiment_ids": experiments, "filter": f"tags.`{tag}` = '{value}'", "max_results": 50}
        return self.mlflow.ask("POST", "/api/2.0/mlflow/runs/search", body).get("runs", [])


def kill(process: psutil.Process | int | None) -> None:
    """SIGKILL to one process, as the kernel does it when memory runs out."""
    assert process is not None, "there was nobody to kill"
    os.kill(process if isinstance(process, int) else process.pid, signal.SIGKILL)


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
