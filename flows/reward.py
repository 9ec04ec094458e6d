"""Chat model to a scalar model: reward, cost, or a second reward model that only watches."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.jobs import Run
from components.schema.posttraining import RewardConfig
from components.schema.records import Artifact, Dataset, Record
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="fit-reward-model", flow_run_name="fit-{role}-model {run.recipe_name}")
def fit_reward_model(config: RewardConfig, chat: Artifact, data: Dataset, run: Run = Run(), role: str = "reward") -> Record:
    """A scalar head on the chat model learns the dataset's preferences. `role`: reward; cost, what does harm; judge, a second opinion that is never optimised."""
    return training_card(run_stage(jobs.reward(config, chat, data, run, role)))
