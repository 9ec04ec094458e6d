"""A model in a form that other programs read, with a card made of its records; what fewer bits cost is measured by the evaluation stage on both.

    export_model(ExportConfig(to="int8"), "models:/modelyard@champion", out="exported")
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from components.evaluation.comparison.compare import Comparison
from components.export.card import text as card_text
from components.export.story import Story, data_here, story
from components.registry.weights import locate
from components.schema.config import BadInput
from components.schema.export import MEASURED, ExportConfig
from components.schema.jobs import Job, Run
from components.schema.recipe import evals_from
from components.schema.records import Artifact, Record, file_md5, home
from flows import evaluate
from flows.budget import stops_by_budget
from flows.tasks import run_stage

CARD, LIST = "README.md", "export.json"


class Exported(NamedTuple):
    """What an export left."""

    folder: Path
    record: Record | None
    """Of the export stage; None where only the card was asked for."""
    comparison: Comparison | None
    """The original and the export on the same suites; None where nothing was measured."""
    unmeasured: str
    """Why nothing was measured; empty where it was, or where nothing had to be."""


@stops_by_budget
@flow(name="export-model", flow_run_name="export {model} to {config.to}", persist_result=False)
def export_model(config: ExportConfig, model: str, suites: tuple[str, ...] = (), out: str | None = None, licence: str | None = None, run: Run = Run()) -> Exported:
    """Write, check and describe one form of one model."""
    told = _story(config, model)
    uri = told.model["uri"] if told else model
    folder = Path(out) if out else home() / "exports" / _name(uri, config)
    _refuse_others(folder)
    if suites and config.to not in MEASURED:
        raise BadInput(f"export: --suites measures what fewer bits cost, and {config.to} is not read by the evaluation. Leave it out, or export to {' or '.join(MEASURED)}")
    record = None if config.to == "card" else run_stage(_job(config, uri, run))
    comparison, why = _measured(config, uri, record, told, suites, run)
    text = card_text(told, uri, config, record, comparison, why, licence)
    _keep(folder, record, text, uri)
    create_markdown_artifact(markdown=text.partition("\n---\n")[2], key="model-card", description=f"{uri} as {config.to}")
    return Exported(folder, record, comparison, why)


def _story(config: ExportConfig, model: str) -> Story | None:
    """Only a released model has one. Errors: BadInput where a card alone is asked for and there is nothing to say."""
    if model.startswith("models:/"):
        return story(model)
    if config.to == "card":
        raise BadInput(f"export: a card is made of the records of a release, and {model} is a folder, of which nothing is recorded. Name a released version: models:/NAME@ALIAS")
    return None


def _job(config: ExportConfig, model: str, run: Run) -> Job:
    """The stage as data. Errors: BadInput where the model is not there."""
    try:
        found = locate(model)
    except BadInput as error:
        raise BadInput(str(error).replace("model.init_from", "export", 1)) from None
    assert found
    return Job(stage="export", config={"export": config.defining()}, inputs={"model": found}, run=run)


# ---------------------------------------------------------------- what it costs in score


def _measured(config: ExportConfig, model: str, record: Record | None, told: Story | None, suites: tuple[str, ...], run: Run) -> tuple[Comparison | None, str]:
    """Both models by the same stage with the same settings; or why that was not done."""
    if record is None or config.to not in MEASURED:
        return None, ""
    if suites:
        evals = evals_from(suites)
        jobs = [evaluate.alone(evals, name, run) for name in (model, str(record.folder))]
    else:
        shared = _as_released(told)
        if isinstance(shared, str):
            return None, shared
        original = locate(model)
        assert original and told
        jobs = [shared.model_copy(update={"inputs": {told.role: one, **shared.inputs}, "run": run}) for one in (original, record.artifact())]
    from components.evaluation.comparison.compare import compare
    from components.evaluation.comparison.reports import Report

    done = [run_stage(job) for job in jobs]
    return compare([Report.read(one.folder, label=label) for one, label in zip(done, ("original", config.to), strict=True)]), ""


def _as_released(told: Story | None) -> Job | str:
    """The evaluation that the model was released with, without a model; or a sentence, where it cannot be repeated here."""
    if told is None or told.evaluation is None:
        return "it was released with no evaluation. Name suites: --suites NAME"
    names = ("benchmarks", "overlap", "tokens")
    here = {name: data_here(identity) for name in names if (identity := told.evaluation.inputs.get(name))}
    if absent := [name for name, folder in here.items() if folder is None]:
        return f"the {', '.join(absent)} that it was released with are not in this project's data (dvc.lock names another version). Check that version out and run dvc pull, or name suites: --suites NAME"
    asked = {**told.evaluation.config, "evals": {**told.evaluation.config["evals"], "probes": None}}
    return Job(stage="evaluate", config=asked, inputs={name: Artifact(path=str(folder), identity=told.evaluation.inputs[name]) for name, folder in here.items()})


# ---------------------------------------------------------------- the folder


def _name(uri: str, config: ExportConfig) -> str:
    """modelyard-3-int8"""
    return f"{uri.removeprefix('models:/').strip('/').replace('/', '-')}-{config.to}"


def _refuse_others(folder: Path) -> None:
    """Only an earlier export is replaced. Errors: BadInput."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / LIST).is_file():
        raise BadInput(f"export: {folder} exists and is no earlier export (it has no {LIST}), so writing there would mix or destroy somebody's files. Give an empty or a new folder: --out")


def _keep(folder: Path, record: Record | None, text: str, uri: str) -> None:
    """The files, the card and the list of both, whole or not at all."""
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in record.files if record else ():
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.folder / name, fresh / name)
    (fresh / CARD).write_text(text, encoding="utf-8", newline="\n")
    files = {str(path.relative_to(fresh)): {"md5": file_md5(path), "size": path.stat().st_size} for path in sorted(fresh.rglob("*")) if path.is_file()}
    if record and (changed := [name for name, file in record.files.items() if files[name]["md5"] != file.md5]):
        raise BadInput(f"export: {changed[0]} was not copied as it is, so the disk is to be doubted. Nothing was put into {folder}; run the same command again")
    told = {"model": uri, "identity": record.identity if record else None, "figures": record.figures if record else {}, "files": files}
    (fresh / LIST).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
