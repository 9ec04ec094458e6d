"""What a recipe's line would do: its jobs, what DVC would run, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from components.schema import storage
from components.schema.jobs import Job, Run, line, stages
from components.schema.jobs import data as data_job
from components.schema.recipe import Recipe, Resources
from components.schema.records import Dataset
from flows.terminal import recipe_hash

Listener = Callable[[dict[str, Any]], None]


def data_plan(recipe: Recipe, resources: Resources) -> tuple[dict[str, str], Dataset | None]:
    """What DVC would run and why; the dataset where everything is current."""
    from components.launch import call

    answer = call("plan-data", data_job(recipe.data, Run(resources=resources)).model_dump(mode="json"))
    return answer["stale"], answer["dataset"] and Dataset.model_validate(answer["dataset"])


def fetched_data(recipe: Recipe, listen: Listener) -> Dataset | None:
    """The dataset brought here from MODELYARD_STORE, where another machine made it; None where there is no store, or it lacks a part."""
    if storage.address() is None:
        return None
    from components.launch import call

    answer = call("fetch-data", data_job(recipe.data, Run()).model_dump(mode="json"), listen)
    return answer["dataset"] and Dataset.model_validate(answer["dataset"])


def line_of(recipe: Recipe, dataset: Dataset, run: Run) -> dict[str, Job]:
    """Every job after the data."""
    from components.registry.weights import locate

    return line(recipe, dataset, run, locate(recipe.model.init_from))


def plan_of(recipe: Recipe, resources: Resources) -> dict[str, dict[str, str]]:
    """What each stage would do, and why."""
    return planned(recipe, resources)[0]


def planned(recipe: Recipe, resources: Resources) -> tuple[dict[str, dict[str, str]], dict[str, Job]]:
    """The same, with the jobs after the data; where that will be made first, jobs of a dataset that is not there."""
    from components.launch import verdict
    from flows.forecast import placeholder

    run = Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, resources=resources)
    stale, dataset = data_plan(recipe, resources)
    if dataset is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in stale.items())
        rows = {"data": {"action": "run", "reason": why}}
        later = {name: {"action": "run", "reason": "its data will be made first; whether it changes is known then"} for name in stages(recipe)[1:]}
        return rows | later, line_of(recipe, placeholder(), run)
    rows = {"data": {"action": "reuse", "reason": "DVC: every data stage is current"}}
    jobs = line_of(recipe, dataset, run)
    for name, job in jobs.items():
        action, reason = verdict(job)
        rows[name] = {"action": action, "reason": reason, "folder": str(job.folder)}
    return rows, jobs


def print_plan(recipe: Recipe, resources: Resources, as_json: bool) -> None:
    """The plan and what it would cost."""
    from components.cost import prices
    from flows import forecast

    table = prices.load(resources)
    rows, jobs = planned(recipe, resources)
    found = forecast.forecast(recipe, resources, rows, jobs)
    for name, row in rows.items():
        print(f"{name:<9} {row['action']:<7} {row['reason']}")
    print("\n".join(["", *forecast.lines(recipe, resources, found)]))
    if as_json:
        print(json.dumps({"recipe": recipe.name, "recipe_hash": recipe_hash(recipe), "stages": rows, "estimate": forecast.as_json(found, table)}))
