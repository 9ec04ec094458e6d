"""The MLflow run under which the stages of one pipeline run stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.registry import tracking
from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record, digest, home
from flows.budget import cost_card
from flows.doors.asked import announce

HEADLINES = ("parameters", "tokens_seen", "heldout_loss_after", "bits_per_byte_after", "accuracy_after", "reward_after", "reward_gain", "kl")


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
        figures = {**headlines(released), **{name: value for name, value in released.figures.items() if name != "limits"}, "cost": rows["total"]}
        tracking.close_stage(run.parent_run_id, "FINISHED", figures, None, None)
    return released


def headlines(last: Record) -> dict[str, Any]:
    """The few figures by which whole runs are compared, under their stage's name; whoever made the stages, this run or an earlier one."""
    found: dict[str, Any] = {}
    for record in _behind(last):
        found[record.stage] = {name: record.figures[name] for name in HEADLINES if name in record.figures}
        if record.stage == "evaluate":
            found["score"] = {role: {suite: score["score"] for suite, score in by_suite.items()} for role, by_suite in record.figures["scores"].items()}
    return {stage: figures for stage, figures in found.items() if figures}


def _behind(last: Record) -> Iterator[Record]:
    """A record and those of the stages that it was made of, each once."""
    seen, waiting = {last.identity}, [last]
    while waiting:
        record = waiting.pop()
        yield record
        for identity in record.inputs.values():
            folder = next((home() / "stages").glob(f"*-{identity[:16]}/record.json"), None)
            if folder is not None and identity not in seen:
                seen.add(identity)
                waiting.append(Record.read(folder.parent))
