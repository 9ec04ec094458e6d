"""One stage of a recipe as a flow of its own, on the results of earlier stages that stand here, or in the store that machines share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.schema.config import BadInput
from components.schema.jobs import ALIGN, LINE, SCORERS, SECTIONS, Run, stages
from components.schema.recipe import Recipe, Resources
from components.schema.records import Artifact, Dataset, Record
from flows.planning import data_plan, fetched_data, line_of
from flows.terminal import flows_watched, make_console, recipe_hash

if TYPE_CHECKING:
    from prefect import Flow


def run_stage_alone(name: str, recipe: Recipe, resources: Resources) -> None:
    """One stage as its own flow, on what stands."""
    console = make_console()
    given = Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, resources=resources)
    with flows_watched(console) as (_, screen):
        if name == "data":
            from flows.data import prepare_data

            prepare_data(recipe.data, given)
        else:
            one_flow(name, recipe, given)
    event = screen.results[name]
    console.print(f"{name}: {event['verdict'].action}: {event['verdict'].reason}", highlight=False)
    if name == "data":
        console.print(f"Data card: {event['record'].config['card']['path']}/index.html", highlight=False)
    console.print(f"Next: modelyard show {event['record'].folder.name}", highlight=False)


def one_flow(name: str, recipe: Recipe, given: Run) -> None:
    """One stage's flow on the results of earlier stages that stand on disk. Errors: BadInput where one does not."""
    stage_flow, arguments = flow_of(name, recipe, given)
    stage_flow(*arguments)


def known(name: str, recipe: Recipe) -> str:
    """A stage of this recipe as a person names it; `align` is whatever its method is. Errors: BadInput."""
    if name == "align" and recipe.align:
        name = recipe.align.stage
    if name not in (*LINE, *ALIGN):
        raise BadInput(f"stage: {name!r} is not a stage, so nothing was started. Stages in order: {', '.join(LINE)}")
    if name not in stages(recipe):
        raise BadInput(f"stage: {recipe.name} has no section `{SECTIONS.get(name, 'align')}` for it, so there is no {name} to run. Its stages: {', '.join(stages(recipe))}")
    return name


def flow_of(name: str, recipe: Recipe, given: Run) -> tuple[Flow[..., Record], tuple[Any, ...]]:
    """The flow of a stage after the data, and its arguments found on disk. Errors: BadInput where an earlier result is not there."""
    dataset, inputs = _found(name, recipe, given)
    match name:
        case "pretrain":
            from flows.pretrain import pretrain

            return pretrain, (recipe.model, recipe.pretrain, dataset, given)
        case "sft":
            from flows.sft import finetune

            return finetune, (recipe.sft, inputs["base"], dataset, given)
        case "reward" | "cost" | "judge":
            from flows.reward import fit_reward_model

            return fit_reward_model, (getattr(recipe, name), inputs["chat"], dataset, given, name)
        case "evaluate":
            from flows.evaluate import evaluate

            return evaluate, (recipe.evals, {role: inputs[role] for role in ("base", "chat", "policy") if role in inputs}, dataset, given)
        case "release":
            from flows.release import release

            return release, (recipe.gate, {role: part for role, part in inputs.items() if role != "report"}, inputs["report"], given)
        case _:
            from flows.align import align

            return align, (recipe.align, inputs["chat"], {role: inputs[role] for role in SCORERS if role in inputs}, dataset, given)


def _found(name: str, recipe: Recipe, given: Run) -> tuple[Dataset, dict[str, Artifact]]:
    """The data and the inputs of a stage. Errors: BadInput where one is not there."""
    from components.launch import verdict

    stale, dataset = data_plan(recipe, given.resources)
    dataset = dataset or fetched_data(recipe, _tell)
    if dataset is None:
        raise BadInput(f"{name}: its data is not current ({', '.join(stale)}), so it has nothing to read. Run first: modelyard stage data RECIPE")
    line = line_of(recipe, dataset, given)
    for earlier in line.values():
        if earlier.output in line[name].inputs.values() and verdict(earlier).action not in ("reuse", "fetched"):
            raise BadInput(f"{name}: it needs the result of {earlier.stage}, and {verdict(earlier).reason}. Run first: modelyard stage {earlier.stage} RECIPE")
    inputs = line[name].inputs
    return dataset, inputs if name != "release" else {line[name].config["role"]: inputs["model"], "report": inputs["report"]}


def _tell(event: dict[str, Any]) -> None:
    """What goes on before the stage begins: on the screen that watches, else in the run's log."""
    from prefect.logging import get_run_logger

    from flows.tasks import watcher

    if event.get("text"):
        watch = watcher.get()
        watch({"event": "note", "stage": "data", "text": event["text"]}) if watch else get_run_logger().info(event["text"])
