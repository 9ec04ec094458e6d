"""The MLflow run under which the stages of one pipeline run stand."""

from __future__ import annotations

from pathlib import Path

from components.registry import tracking
from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record, digest
from flows.doors.asked import announce
from flows.reports import cost_card


def open_run(recipe: Recipe, resources: Resources) -> Run:
    """Open the parent run of this recipe, or take up the one that an earlier, unfinished start left."""
    announce(recipe, resources)
    resolved = recipe.model_dump(mode="json")
    recipe_hash = digest(resolved)
    lineage = {**tracking.lineage(Path.cwd()), "seed": recipe.seed, "resources": resources.model_dump(mode="json")}
    parent = tracking.open_pipeline(recipe.name, recipe_hash, recipe.model_dump_json(indent=2), lineage, resolved)
    return Run(recipe_name=recipe.name, recipe_hash=recipe_hash, seed=recipe.seed, resources=resources, parent_run_id=parent)


def finish_run(run: Run, released: Record) -> Record:
    """Mark the parent run finished, with the release's figures and what all its stages cost."""
    rows = cost_card(run)
    if run.parent_run_id:
        tracking.close_stage(run.parent_run_id, "FINISHED", {**released.figures, "cost": rows["total"]}, None, None)
    return released
