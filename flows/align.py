"""Chat model to aligned policy, by PPO against the reward model."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.jobs import Run
from components.schema.records import Artifact, Dataset, Record
from components.schema.training import PPOConfig
from flows.reports import training_card
from flows.tasks import run_stage


@flow(name="align-ppo", flow_run_name="align-ppo {run.recipe_name}")
def align(config: PPOConfig, chat: Artifact, scorer: Artifact, data: Dataset, run: Run = Run()) -> Record:
    """PPO on the dataset's prompts, held near the chat model by a KL price."""
    return training_card(run_stage(jobs.ppo(config, chat, scorer, data, run)))
