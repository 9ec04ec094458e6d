"""One model, again and again: the noise floor of its scores."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect import flow

from components.registry.weights import locate
from components.schema import jobs
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.gate import NoiseConfig
from components.schema.jobs import Run
from components.schema.recipe import Recipe
from components.schema.records import Artifact, Dataset, Record
from flows.budget import stops_by_budget
from flows.planning import data_plan, line_of
from flows.tasks import run_stage


@stops_by_budget
@flow(name="measure-noise", flow_run_name="noise {run.recipe_name}")
def measure_noise(config: NoiseConfig, evals: EvalConfig, model: Artifact, role: str, data: Dataset, run: Run = Run(), retrained: tuple[Artifact, ...] = ()) -> Record:
    """One model evaluated under other seeds, batch sizes and orders: how far its scores move by themselves."""
    return run_stage(jobs.noise(config, evals, model, role, data, run, retrained))


def arguments(config: NoiseConfig, recipe: Recipe, retrained: tuple[str, ...], run: Run) -> tuple[object, ...]:
    """What `measure_noise` is given for the model that a recipe releases. Errors: BadInput where it, or its data, is not there."""
    if not recipe.evals:
        raise BadInput(f"noise: {recipe.name} has no section `evals`, so there is nothing to measure. Add it")
    stale, dataset = data_plan(recipe, run.resources)
    if dataset is None:
        raise BadInput(f"noise: its data is not current ({', '.join(stale)}), so it has nothing to read. Run first: modelyard stage data RECIPE")
    released = line_of(recipe, dataset, run)["release"]
    model, role = released.inputs["model"], released.config["role"]
    if not (Path(model.path) / "record.json").exists():
        raise BadInput(f"noise: the recipe's last model ({model.path}) is not there yet, so nothing can be measured. Run first: modelyard run RECIPE")
    return config, recipe.evals, model, role, dataset, run, tuple(part for name in retrained if (part := locate(name)))


def keep(record: Record, recipe: Recipe, out: Path | None = None) -> Path:
    """The floor where a recipe can name it: recipes/noise/NAME.json unless told."""
    out = out or Path(f"recipes/noise/{recipe.name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(record.folder / "noise.json", out)
    return out
