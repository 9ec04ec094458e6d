"""train_and_release: raw text in, released model out. This screen is the whole system."""

from __future__ import annotations

from prefect import flow

from components.schema.jobs import SCORERS, Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record
from flows import approval
from flows.align import align
from flows.budget import stops_by_budget
from flows.data import prepare_data
from flows.evaluate import evaluate
from flows.pretrain import pretrain
from flows.release import release
from flows.reward import fit_reward_model
from flows.sft import finetune
from flows.tracking import finish_run, open_run


@stops_by_budget
@flow(name="train-and-release", flow_run_name="{recipe.name}")
def train_and_release(recipe: Recipe, resources: Resources = Resources()) -> Record:
    """Each line is a stage; a run that died in alignment starts again at alignment."""
    if answered := approval.resumed():  # the run had suspended, and a person has said what becomes of its release
        return answered
    run: Run = open_run(recipe, resources)
    data = prepare_data(recipe.data, run)
    last = pretrain(recipe.model, recipe.pretrain, data, run)
    models = {"base": last.artifact()}
    if recipe.sft:
        last = finetune(recipe.sft, models["base"], data, run)
        models["chat"] = last.artifact()
    scorers = {role: fit_reward_model(config, models["chat"], data, run, role).artifact() for role in SCORERS if (config := getattr(recipe, role))}
    if recipe.align:
        last = align(recipe.align, models["chat"], scorers, data, run)
        models["policy"] = last.artifact()
    if recipe.evals:
        report = evaluate(recipe.evals, models, data, run).artifact()
        last = release(recipe.gate, models, report, run)
    return approval.settled(finish_run(run, last))
