"""train_and_release: raw text in, released model out. This screen is the whole system."""

from __future__ import annotations

from prefect import flow

from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record
from flows.align import align
from flows.data import prepare_data
from flows.evaluate import evaluate
from flows.pretrain import pretrain
from flows.release import release
from flows.reward import fit_reward_model
from flows.sft import finetune
from flows.tracking import finish_run, open_run


@flow(name="train-and-release", flow_run_name="{recipe.name}")
def train_and_release(recipe: Recipe, resources: Resources = Resources()) -> Record:
    """Each line is a stage; a run that died in alignment starts again at alignment."""
    run: Run = open_run(recipe, resources)
    data = prepare_data(recipe.data, run)
    base = pretrain(recipe.model, recipe.pretrain, data, run).artifact()
    chat = finetune(recipe.sft, base, data, run).artifact()
    scorer = fit_reward_model(recipe.reward, chat, data, run).artifact()
    policy = align(recipe.align, chat, scorer, data, run).artifact()
    report = evaluate(recipe.evals, {"base": base, "chat": chat, "policy": policy}, data, run).artifact()
    return finish_run(run, release(recipe.gate, policy, report, run))
