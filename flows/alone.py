"""One stage of a recipe as a flow of its own, on the results of earlier stages that stand on disk."""

from __future__ import annotations

from components.schema.config import BadInput
from components.schema.jobs import SCORERS, Run
from components.schema.recipe import Recipe, Resources
from flows.planning import data_plan, line_of
from flows.terminal import flows_watched, make_console, recipe_hash


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
    from components.launch import verdict

    stale, dataset = data_plan(recipe, given.resources)
    if dataset is None:
        raise BadInput(f"{name}: its data is not current ({', '.join(stale)}), so it has nothing to read. Run first: modelyard stage data RECIPE")
    jobs = line_of(recipe, dataset, given)
    job = jobs[name]
    for earlier in jobs.values():
        if earlier.output in job.inputs.values() and verdict(earlier).action != "reuse":
            raise BadInput(f"{name}: it needs the result of {earlier.stage}, and {verdict(earlier).reason}. Run first: modelyard stage {earlier.stage} RECIPE")
    inputs = job.inputs
    match name:
        case "pretrain":
            from flows.pretrain import pretrain

            pretrain(recipe.model, recipe.pretrain, dataset, given)
        case "sft":
            from flows.sft import finetune

            finetune(recipe.sft, inputs["base"], dataset, given)
        case "reward" | "cost" | "judge":
            from flows.reward import fit_reward_model

            fit_reward_model(getattr(recipe, name), inputs["chat"], dataset, given, name)
        case "ppo" | "grpo" | "dpo" | "best_of_n":
            from flows.align import align

            align(recipe.align, inputs["chat"], {role: inputs[role] for role in SCORERS if role in inputs}, dataset, given)
        case "evaluate":
            from flows.evaluate import evaluate

            evaluate(recipe.evals, {role: inputs[role] for role in ("base", "chat", "policy") if role in inputs}, dataset, given)
        case "release":
            from flows.release import release

            release(recipe.gate, {job.config["role"]: inputs["model"]}, inputs["report"], given)
