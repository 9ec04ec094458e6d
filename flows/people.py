"""What people said, as a dataset that DVC keeps, and the watch that starts a retraining when enough of it is new.

    export("people", min_gold=0.7)      # data/feedback/people, and data/feedback/people.dvc beside it

A recipe that reads data/feedback/NAME is retrained when `retrain_after` new rankings are in: the watch exports them, and the event
`modelyard.feedback.ready` starts the recipe's deployments.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.variables import Variable

from components.feedback.people import exporting
from components.feedback.people.asking import summary
from components.feedback.people.opinions import said
from components.feedback.people.store import Store
from components.schema.config import BadInput
from components.schema.people import AskConfig
from components.schema.recipe import Recipe
from flows import triggers
from flows.announce import FEEDBACK_READY, announce, of_recipe
from flows.feedback import KEPT, add_to_dvc, lay_out

SEEN = "modelyard_feedback_"  # the Prefect variable of a recipe and a dataset: how many rankings there were when its retraining was started last

logger = logging.getLogger("modelyard.people")


def export(dataset: str, min_gold: float = 0.0, store: Store | None = None) -> tuple[Path, dict[str, Any]]:
    """Write a dataset of rankings and put it under DVC; gives its folder and its figures. Errors: BadInput where there is nothing, or DVC refuses."""
    rankings = (store or Store.open()).read(lambda session: said(session, dataset))
    if not rankings:
        raise BadInput(f"feedback: nobody has ranked anything in {dataset!r}, so there is nothing to export. Let people rank first: modelyard feedback serve")
    folder = KEPT / dataset
    if folder.exists() and not (folder / exporting.REPORT).exists():
        raise BadInput(f"feedback: {folder} was made by something else (a critic), and would be replaced. Ask people under another name, or move it away")
    with TemporaryDirectory() as made:
        figures = exporting.export(rankings, Path(made), min_gold)
        lay_out({str(path.relative_to(made)): path for path in Path(made).rglob("*") if path.is_file()}, dataset)
    return add_to_dvc(folder), figures


def watch() -> None:
    """A duty of the watch: see whether enough rankings came in for the recipes of retrain deployments. Errors: BadInput."""
    if not Store.exists():
        return
    store, problems = Store.open(), []
    asked = [AskConfig.model_validate(one) for one in store.read(summary)]
    for path, deployments in triggers.by_recipe().items():
        try:
            recipe = Recipe.load(Path(path))
            for dataset in asked:
                if dataset.retrain_after and _reads(recipe, dataset.name):
                    _look(path, recipe, deployments, dataset, store)
        except BadInput as error:
            problems.append(str(error))  # the others' rankings count all the same
    if problems:
        raise BadInput("\n".join(problems))


def _reads(recipe: Recipe, dataset: str) -> bool:
    """Whether a recipe's data has a source in a dataset's folder."""
    folder = (KEPT / dataset).absolute()
    return any(source.path and Path(source.path).absolute().is_relative_to(folder) for source in triggers.sources_of(recipe))


def _look(path: str, recipe: Recipe, deployments: list[dict[str, Any]], dataset: AskConfig, store: Store) -> None:
    """Export and announce where enough is new. The count is kept last: killed before, all of it is done again, and the server keeps one event."""
    variable = f"{SEEN}{recipe.name}_{dataset.name}".replace("-", "_")
    now, before = len(store.read(lambda session: said(session, dataset.name))), (Variable.get(variable) or {}).get("rankings", 0)
    if now - before < dataset.retrain_after:
        return
    export(dataset.name, store=store)
    triggers.noted(recipe)  # else the watch over files would start a second retraining for what this one is for
    reason = f"{now - before} new rankings by people are in data/feedback/{dataset.name}"
    logger.info("%s; telling %s", reason, ", ".join(deployment["name"] for deployment in deployments))
    for deployment in deployments:
        about = {"reason": reason, "recipe": path, "dataset": dataset.name, "rankings": now}
        announce(FEEDBACK_READY, of_recipe(recipe.name, path), about, once=f"{deployment['id']} {dataset.name} {now}", related=[triggers.related(deployment)])
    Variable.set(variable, {"rankings": now}, overwrite=True)
