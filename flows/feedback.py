"""A chat model's answers, criticised, revised and compared by a critic: a dataset of preferences, kept by DVC."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from prefect import flow

from components.registry.weights import locate
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
        "policy": _model(config.policy, "policy"),
        "constitution": _file(config.constitution, "constitution"),
        "prompts": _file(config.prompts, "prompts"),
    }
    if config.critic.url is None:
        inputs["critic"] = _model(config.critic.model, "critic.model")
    return Job(stage="feedback", config={"feedback": defining, "seed": config.seed}, inputs=inputs, run=run.model_copy(update={"options": surrounding}))


def keep(record: Record, name: str) -> Path:
    """A finished dataset laid out under data/feedback, whole or as it was before. Gives its folder, which is for DVC to keep."""
    folder = KEPT / name
    fresh, old = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    for file in record.files:
        (fresh / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.folder / file, fresh / file)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def put_under_dvc(record: Record, name: str) -> Path:
    """`keep`, then `dvc add`. Errors: BadInput where DVC refuses; the data stands all the same."""
    folder = keep(record, name)
    done = subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(
            f"feedback: dvc add {folder} ended with code {done.returncode}: {done.stderr.strip()[-400:]}. "
            "The data stands there all the same; once DVC works, run the same command again"
        )
    return folder


def _model(name: str, field: str) -> Artifact:
    try:
        return locate(name)
    except BadInput as error:
        raise BadInput(str(error).replace("model.init_from", f"feedback: {field}", 1)) from None


def _file(name: str, field: str) -> Artifact:
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"feedback: {field} names {name}, which is no file here, so nothing could be asked. The path is relative to {Path.cwd()}; correct it")
    return Artifact(path=str(path.absolute()), identity=file_md5(path))
