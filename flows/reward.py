"""Chat model to reward model."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.jobs import Run
from components.schema.records import Artifact, Dataset, Record
from components.schema.training import RewardConfig
from flows.reports import training_card
from flows.tasks import run_stage


@flow(name="fit-reward-model", flow_run_name="fit-reward-model {run.recipe_name}")
def fit_reward_model(config: RewardConfig, chat: Artifact, data: Dataset, run: Run = Run()) -> Record:
    """A scalar head on the chat model learns the dataset's preferences."""
    return training_card(run_stage(jobs.reward(config, chat, data, run)))
