"""Models to a report of scores with their uncertainty."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prefect import flow

from components.registry.weights import locate
from components.schema import catalogue, jobs
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.jobs import Job, Run
from components.schema.records import Artifact, Dataset, Record, digest, file_md5
from flows.budget import stops_by_budget
from flows.reports import scores_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="evaluate", flow_run_name="evaluate {run.recipe_name}")
def evaluate(config: EvalConfig, models: dict[str, Artifact], data: Dataset, run: Run = Run()) -> Record:
    """lm-eval's own tasks on every model of the line (base, chat, policy), and held-out perplexity."""
    return scores_card(run_stage(jobs.evaluate(config, models, data, run)))


@stops_by_budget
@flow(name="evaluate-model", flow_run_name="evaluate {model}")
def evaluate_model(config: EvalConfig, model: str, run: Run = Run()) -> Record:
    """One model of any origin on suites by name, read from the mirror."""
    return scores_card(run_stage(alone(config, model, run)))


def alone(config: EvalConfig, model: str, run: Run) -> Job:
    """The stage as data: a model without its line, so without held-out text. Errors: BadInput where model, suites or mirror are not there."""
    try:
        found = locate(model)
    except BadInput as error:
        raise BadInput(str(error).replace("model.init_from", "evaluate", 1)) from None
    assert found
    role = "policy" if has_template(Path(found.path)) else "base"
    own = {"definitions": jobs.folder_artifact(Path(config.definitions))} if config.definitions else {}
    return Job(
        stage="evaluate",
        config={"evals": config.model_dump(mode="json"), "seed": run.seed},
        inputs={role: found, "benchmarks": _mirror(config), **own},
        run=run,
    )


def _mirror(config: EvalConfig) -> Artifact:
    """The mirror as the benchmarks folder, known by the files of the datasets that the suites read."""
    name = os.environ.get("MODELYARD_HUB_MIRROR")
    if not name or not Path(name).is_dir():
        raise BadInput(
            f"evaluate: suites are read from a mirror of the hub, and MODELYARD_HUB_MIRROR "
            f"{'names no folder (' + name + ')' if name else 'is not set'}, so nothing could be measured. "
            "Point it at a folder with ORG/NAME in it, or measure in a recipe's line, which fetches its benchmarks: modelyard run RECIPE"
        )
    own = Path(config.definitions) if config.definitions else None
    if problems := catalogue.check(config.suites, own):
        raise BadInput("evaluate: " + "; ".join(problems))
    ids = sorted({leaf.dataset for suite in config.suites for leaf in catalogue.leaves(suite, own) if leaf.dataset})
    files = {str(file.relative_to(name)): file_md5(file) for id in ids for file in sorted((Path(name) / id).rglob("*")) if file.is_file()}
    return Artifact(path=str(Path(name).absolute()), identity=digest(files))


def has_template(folder: Path) -> bool:
    """Whether a model's tokenizer brings a chat template."""
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8")))
