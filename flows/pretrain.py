"""Token shards to a base model."""

from __future__ import annotations

from prefect import flow

from components.registry.weights import locate
from components.schema import jobs
from components.schema.jobs import Run
from components.schema.records import Dataset, Record
from components.schema.training import ModelConfig, PretrainConfig
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="pretrain", flow_run_name="pretrain {run.recipe_name}")
def pretrain(model: ModelConfig, config: PretrainConfig, data: Dataset, run: Run = Run()) -> Record:
    """Train a language model on the dataset's tokens, from scratch or from the weights that `model.init_from` names."""
    return training_card(run_stage(jobs.pretrain(model, config, data, run, locate(model.init_from))))
