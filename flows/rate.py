"""Models rated by whose answers are found better."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from components.registry.weights import locate
from components.schema.config import BadInput
from components.schema.jobs import Job, Run
from components.schema.rating import RatingConfig
from components.schema.records import Artifact, Record, file_md5
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="rate-models", flow_run_name="rate {config.name}")
def rate_models(config: RatingConfig, run: Run = Run()) -> Record:
    """Every model answers every prompt, and each two answers are compared; what stands already is reused."""
    return training_card(run_stage(job(config, run)))


def job(config: RatingConfig, run: Run) -> Job:
    """The stage as data. Errors: BadInput where a model or a file is not there."""
    defining, around = config.parted()
    inputs = {f"model_{name}": _model(place, f"models.{name}") for name, place in config.models.items()}
    inputs["prompts"] = _file(config.prompts, "prompts")
    judge = config.judge
    if judge.reward:
        inputs["reward"] = _model(judge.reward, "judge.reward")
    if judge.critic and judge.critic.url is None:
        inputs["critic"] = _model(judge.critic.model, "judge.critic.model")
    if judge.people and judge.people.rankings:
        inputs["rankings"] = _file(judge.people.rankings, "judge.people.rankings")
    return Job(stage="rate", config={"rating": defining, "seed": config.seed}, inputs=inputs, run=run.model_copy(update={"options": around}))


def _model(name: str, field: str) -> Artifact:
    try:
        return locate(name)
    except BadInput as error:
        raise BadInput(str(error).replace("model.init_from", f"rating: {field}", 1)) from None


def _file(name: str, field: str) -> Artifact:
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"rating: {field} names {name}, which is no file here, so nothing could be compared. The path is relative to {Path.cwd()}; correct it")
    return Artifact(path=str(path.absolute()), identity=file_md5(path))
