"""A chat model's answers, criticised, revised and compared by a critic: a dataset of preferences, kept by DVC."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from prefect import flow

from components.registry.weights import located
from components.schema.config import BadInput
from components.schema.feedback import FeedbackConfig
from components.schema.jobs import Job, Run
from components.schema.records import Artifact, Record, file_md5
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage

KEPT = Path("data/feedback")


@stops_by_budget
@flow(name="gather-feedback", flow_run_name="feedback {config.name}")
def gather_feedback(config: FeedbackConfig, run: Run = Run()) -> Record:
    """Each prompt is answered, and the answer criticised, revised and compared with its revision; what stands already is reused."""
    return training_card(run_stage(job(config, run)))


def job(config: FeedbackConfig, run: Run) -> Job:
    """The stage as data. Errors: BadInput where a model or a file is not there."""
    defining, surrounding = config.parted()
    inputs = {
        "policy": located(config.policy, "feedback: policy"),
        "constitution": _file(config.constitution, "constitution"),
        "prompts": _file(config.prompts, "prompts"),
    }
    if config.critic.url is None:
        inputs["critic"] = located(config.critic.model, "feedback: critic.model")
    return Job(stage="feedback", config={"feedback": defining, "seed": config.seed}, inputs=inputs, run=run.model_copy(update={"options": surrounding}))


def put_under_dvc(record: Record, name: str) -> Path:
    """A finished dataset under data/feedback/NAME, and kept by DVC. Errors: BadInput where DVC refuses; the data stands all the same."""
    return add_to_dvc(lay_out({file: record.folder / file for file in record.files}, name))


def lay_out(files: dict[str, Path], name: str) -> Path:
    """Files by their names under data/feedback/NAME, all of them or as it was before. Gives the folder."""
    folder = KEPT / name
    fresh, old = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    for file, made in files.items():
        (fresh / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, fresh / file)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def add_to_dvc(folder: Path) -> Path:
    """`dvc add`. Errors: BadInput where DVC refuses; the data stands all the same."""
    done = subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(
            f"feedback: dvc add {folder} ended with code {done.returncode}: {done.stderr.strip()[-400:]}. "
            "The data stands there all the same; once DVC works, run the same command again"
        )
    return folder


def _file(name: str, field: str) -> Artifact:
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"feedback: {field} names {name}, which is no file here, so nothing could be asked. The path is relative to {Path.cwd()}; correct it")
    return Artifact(path=str(path.absolute()), identity=file_md5(path))
