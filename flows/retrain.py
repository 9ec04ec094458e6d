"""A recipe's line again, by the clock or because something happened; skipped where nothing would come out differently.

    prefect deployment run retrain/retrain --param recipe=recipes/tiny.yaml

What a result depends on is in the stages' identities: the recipe, the revisions of the code, and the data, whose sources are looked at
anew first. Where a release of exactly that stands, the run ends as Completed, named "Skipped", and says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import State

from components.registry import models
from components.schema.jobs import Run
from components.schema.jobs import data as data_job
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record
from flows import approval
from flows.pipeline import train_and_release
from flows.planning import data_plan, line_of
from flows.schedules import CatchUp, missed, one_at_a_time, skipped
from flows.terminal import recipe_hash


@flow(name="retrain", flow_run_name="retrain {recipe}")
def retrain(
    recipe: str = "recipes/tiny.yaml",
    unchanged: Literal["skip", "new_seed", "run"] = "skip",
    catch_up: CatchUp = "latest",
    late_minutes: int = 60,
    because: str = "",
    resources: Resources = Resources(),
) -> Record | State[Any]:
    """The recipe's line, with its sources looked at anew; skipped where data and code are what they were at its last release.

    Args:
        recipe: Recipe file, relative to the project.
        unchanged: What is done where data and code are unchanged. skip: nothing. new_seed: the line with another seed. run: the line all the same; what stands is reused.
        catch_up: After a time out of work. latest: of the runs that were missed, the last one runs. none: what is more than late_minutes late is left out.
        late_minutes: How late a scheduled run may start with catch_up none, in minutes.
        because: Why it was started, where something else than a person or the clock did.
        resources: What the machine gives. It never changes what is asked for.
    """
    if answered := approval.resumed():
        return answered
    if because:
        get_run_logger().info("started because: %s", because)
    if reason := missed(catch_up, late_minutes):
        return skipped(reason)
    asked = Recipe.load(Path(recipe))
    with one_at_a_time(f"retrain-{asked.name}"):
        look_anew(asked)
        if unchanged == "skip" and (found := released(asked, resources)):
            return skipped(found)
        if unchanged == "new_seed" and made_already(asked, resources):
            asked = asked.model_copy(update={"seed": another_seed(asked.seed)})
        record = train_and_release(asked, resources)
    return approval.settled(record)


def look_anew(recipe: Recipe) -> None:
    """params.yaml with the sources as they are now, those on the hub and installed ones too. Errors: BadInput."""
    from components.launch import call

    call("pin-data", data_job(recipe.data, Run()).model_dump(mode="json"))


def released(recipe: Recipe, resources: Resources) -> str | None:
    """Why there is nothing to do, where a release of this very recipe, data and code stands and nothing is open about it; else None."""
    stale, dataset = data_plan(recipe, resources)
    if dataset is None:
        get_run_logger().info("the data is not what it was: %s", "; ".join(f"{name}: {why}" for name, why in stale.items()))
        return None
    line = line_of(recipe, dataset, Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, resources=resources))
    if "release" not in line:
        from components.launch import verdict

        last = list(line.values())[-1]
        return f"data and code are unchanged: the result of {last.stage} stands ({last.folder.name})" if verdict(last).action == "reuse" else None
    found = models.released(line["release"].identity)
    if found is None:
        return None
    uri, tags = found
    if tags.get(models.ACTION) != "ask":
        return f"data and code are unchanged since {uri} was released: the gate said {tags.get(models.ACTION)}"
    if waiting := approval.waiting_runs(uri):
        return f"data and code are unchanged since {uri}, about which a person is asked already (run {waiting[0].name}, {waiting[0].id})"
    return None  # killed between the gate and the question: the line is reused up to there, and the question is asked


def made_already(recipe: Recipe, resources: Resources) -> bool:
    """Whether the line would end in a model that stands: registered under the recipe's name, or here. How it is measured and judged does not matter."""
    from components.launch import verdict

    dataset = data_plan(recipe, resources)[1]
    if dataset is None:
        return False
    line = line_of(recipe, dataset, Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, resources=resources))
    model = line["release"].inputs["model"].identity if "release" in line else list(line.values())[-1].identity
    job = next(job for job in line.values() if job.identity == model)
    return verdict(job).action == "reuse" or models.has(recipe.gate.model_name, model)


def another_seed(seed: int) -> int:
    """A seed that no earlier run had and that this one keeps when it is started again: minutes from 1970 to its creation, beside the recipe's own."""
    context = FlowRunContext.get()
    assert context and context.flow_run and context.flow_run.created
    return seed + int(context.flow_run.created.timestamp() // 60)
