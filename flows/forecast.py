"""What a plan would cost: an estimate of each stage from earlier ones, with its source, and what is left of a budget.

Read by `modelyard run --plan`; nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.cost import bill, budget, estimate, prices
from components.cost.accounts import accounts
from components.cost.estimate import Estimate
from components.cost.meter import Machine
from components.schema.cost import Prices, Usage, total
from components.schema.jobs import Job, Run
from components.schema.jobs import data as data_job
from components.schema.recipe import Recipe, Resources
from components.schema.records import Dataset, Part, digest

NOT_YET = Part(path="", identity="not made yet")  # sizes follow from the recipe, not from what the data will be


def forecast(recipe: Recipe, resources: Resources, rows: Mapping[str, Mapping[str, str]], jobs: Mapping[str, Job]) -> dict[str, Estimate]:
    """One estimate for each row of a plan. `jobs`: those after the data; `rows` says which of them would run."""
    device = Machine.here(resources, None).name
    vocabulary = getattr(recipe.data.tokenizer, "vocab_size", None)
    parameters = estimate.parameters_of(jobs, vocabulary)
    found = {}
    for name, row in rows.items():
        job = jobs.get(name) or data_job(recipe.data, Run(resources=resources))
        if row["action"] not in ("run", "resume"):
            found[name] = estimate.nothing("its result stands")
        else:
            found[name] = estimate.estimate(job, parameters, device)
    return found


def placeholder() -> Dataset:
    """A dataset that is not made yet, to build jobs that are only looked at."""
    parts = {name: NOT_YET for name, field in Dataset.model_fields.items() if field.annotation is Part}
    return Dataset(name="not-made-yet", **parts)


def as_json(found: Mapping[str, Estimate], table: Prices | None) -> dict[str, Any]:
    return {name: {"source": one.source, **(bill.line(one.used, table) if one.used else {})} for name, one in found.items()}


def lines(recipe: Recipe, resources: Resources, found: Mapping[str, Estimate]) -> list[str]:
    """The estimate as a table of text, with the budget where there is one."""
    table = prices.load(resources)
    if all(one.used == Usage() for one in found.values()):
        return ["Estimate: nothing is left to run, so nothing is to be paid"]
    known = {name: one.used for name, one in found.items() if one.used is not None}
    rows = bill.of_usages(known, table)
    columns = [name for name in bill.heads(rows) if name != "memory_mb"]
    titles = bill.heads(rows)
    text = [f"{'Estimate':<17} " + " ".join(f"{titles[name]:>9}" for name in columns) + "  from"]
    for name, one in found.items():
        cells = " ".join(f"{bill.figure(rows['stages'][name][column]) if name in known else '?':>9}" for column in columns)
        text.append(f"  {name:<15} {cells}  {one.source}")
    unknown = [name for name in found if name not in known]
    lacking = f"  and {', '.join(unknown)}, of which nothing is known" if unknown else ""
    text.append(f"  {'in all':<15} " + " ".join(f"{bill.figure(rows['total'][column]):>9}" for column in columns) + lacking)
    if table:
        text.append(f"  Prices: {table.source}")
    return text + _budget_lines(recipe, resources, table, total(known))


def _budget_lines(recipe: Recipe, resources: Resources, table: Prices | None, expected: Usage) -> list[str]:
    """Whether a budget bears what is expected, after what the run has cost already."""
    run = budget.payer(Run(recipe_name=recipe.name, recipe_hash=digest(recipe.model_dump(mode="json"))))
    spent = total(accounts().get(run, {})).amount(table) if table else None
    if resources.budget is None or table is None or spent is None:
        return []
    more = expected.amount(table) or 0.0
    verdict = "enough for it" if spent + more <= resources.budget else "not enough for it: the run would stop on the way, with a checkpoint"
    say = budget.money
    return [f"  Budget: {say(resources.budget, table.currency)}, of which {say(spent, table.currency)} is spent and {say(more, table.currency)} is expected: {verdict}"]
