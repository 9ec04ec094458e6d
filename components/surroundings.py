"""What surrounds a stage's work: what is checked before it, who may work at the same time, and its MLflow run."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from components.cost import budget
from components.schema.config import BadInput, Unavailable
from components.schema.events import say
from components.schema.jobs import Job
from components.schema.records import Record, home

UNSENT = "unsent.jsonl"  # in a stage's work folder: metrics that MLflow has not taken yet
SPARE_BYTES = 300 * 2**20  # what a stage may leave besides weights: databases, logs, items


def launched() -> float:
    """When the launcher started this process (seconds since the epoch); now, where a person did."""
    return float(os.environ.get("MODELYARD_LAUNCHED", time.time()))


def check_inputs(job: Job) -> None:
    """A corrupted checkpoint must not train on: every input made by a stage is hashed against its record. `weights`, and models for feedback, rating and export, come from anywhere; their identity is their hash."""
    for name, part in job.inputs.items():
        folder = Path(part.path)
        if not folder.exists():
            raise BadInput(f"{job.stage}: its input `{name}` ({folder}) does not exist, so there is nothing to start from. Run the earlier stages: modelyard run RECIPE")
        is_ours = name != "weights" and job.stage not in ("feedback", "rate", "export") and (folder / "record.json").exists()
        if is_ours and (record := Record.read(folder)).folder == folder.absolute() and (damage := record.damage()):  # a copy elsewhere is known by its files' hash
            raise BadInput(
                f"{job.stage}: its input `{name}` is damaged: in {folder}, {damage}. Training on it would give another model than the record says. "
                "Run the recipe again with `modelyard run`: the damaged stage is redone"
            )


def check_disk(job: Job) -> None:
    """Weights, optimizer and two checkpoints must fit before an hour is spent on them."""
    weights = sum(p.stat().st_size for part in job.inputs.values() for p in Path(part.path).glob("*.safetensors"))
    if (model := job.config.get("model")) and (width := model["hidden_size"]):
        weights = 4 * (2 * 65_536 * width + model["layers"] * (4 * width**2 + 3 * width * (model["intermediate_size"] or 4 * width)))
    sections = [section for section in job.config.values() if isinstance(section, dict)]
    kept = max([section.get("keep_checkpoints", 2) for section in sections], default=2) + 2  # the best one too, and one that is being written
    need = (3 * kept + 1) * weights + SPARE_BYTES  # weights and two moments in each, and the result
    home().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home()).free
    if free < need:
        raise BadInput(
            f"disk: {home()} has {free / 2**30:.2f} GiB free and {job.stage} may write {need / 2**30:.2f} GiB: it would die while saving. "
            "Free some space, or set MODELYARD_HOME to a folder on a larger disk"
        )


def data_alone() -> AbstractContextManager[None]:
    """One process at a time makes data in a project: DVC refuses a second one, and params.yaml is one file."""
    if not Path(".dvc").is_dir():
        return nullcontext()  # which is said when DVC looks
    Path(".dvc/tmp").mkdir(exist_ok=True)
    return alone(Path(".dvc/tmp/modelyard-data"), "another run is making data in this project; waiting for it")


@contextmanager
def alone(folder: Path, waiting: str = "another run is making this very result; waiting for it") -> Iterator[None]:
    """Two runs of the same stage wait for each other; the lock goes with the process that held it."""
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say({"event": "note", "text": waiting})
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Tracked:
    """A stage's MLflow run: one per identity, continued after a kill."""

    def __init__(self, job: Job) -> None:
        from components.registry import tracking

        self.job, self.tracking = job, tracking
        self.run_id = tracking.open_stage(
            parent_id=job.run.parent_run_id,
            stage=job.stage,
            identity=job.identity,
            params=job.config,
            lineage={
                **tracking.lineage(Path.cwd()),
                "recipe": job.run.recipe_name,
                "recipe_hash": job.run.recipe_hash,
                "threads": job.run.resources.threads or os.cpu_count(),
                "seed": job.run.seed,
                "resources": job.run.resources.model_dump(mode="json"),
            },
        )
        if job.inputs:
            tracking.log_inputs(self.run_id, {name: (part.path, part.identity) for name, part in job.inputs.items()})
        self.load = tracking.SystemLoad(self.run_id).start()

    def finish(self, record: Record, folder: Path, dataset: Any = None) -> None:
        """Figures, samples and the record go to the run, which is then finished."""
        from components.registry import data_report

        self.load.stop()
        self.tracking.send_unsent(self.run_id, folder / "work" / UNSENT)
        if dataset is not None:
            parts = {name: getattr(dataset, name) for name in ("tokens", "mix", "chats", "preferences", "benchmarks")}
            self.tracking.log_inputs(self.run_id, {name: (part.path, part.identity) for name, part in parts.items()}, record.figures)
            self.tracking.log_folder(self.run_id, Path(dataset.card.path), "data_card")
            data_report.log(self.run_id, Path(dataset.card.path).parent)
            self.tracking.log_pins(self.run_id, record.identity, (folder / "record.json", Path("params.yaml"), Path("dvc.lock")))
        self.tracking.close_stage(self.run_id, "FINISHED", {**record.figures, "cost": budget.figures(record)}, folder / "record.json", record)


@contextmanager
def mlflow_run(job: Job) -> Iterator[Tracked]:
    """An MLflow run around a stage; a stage that fails leaves its run FAILED, and a rerun continues it."""
    tracked = Tracked(job)
    try:
        yield tracked
    except BaseException:
        tracked.load.stop()
        with suppress(Unavailable):  # why the stage failed matters more than that this could not be recorded
            tracked.tracking.close_stage(tracked.run_id, "FAILED", {}, None, None)
        raise
