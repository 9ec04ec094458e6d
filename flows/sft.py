"""Base model to chat model."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.jobs import Run
from components.schema.posttraining import SFTConfig
from components.schema.records import Artifact, Dataset, Record
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="finetune", flow_run_name="finetune {run.recipe_name}")
def finetune(config: SFTConfig, base: Artifact, data: Dataset, run: Run = Run()) -> Record:
    """Supervised fine-tuning on the dataset's chats, with the loss on the assistant's tokens."""
    return training_card(run_stage(jobs.sft(config, base, data, run)))
