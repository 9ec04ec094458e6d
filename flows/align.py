"""Chat model to aligned policy: by PPO, GRPO or RLOO, DPO and its family, or best-of-N, as the config says."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.jobs import Run
from components.schema.posttraining import AlignConfig
from components.schema.records import Artifact, Dataset, Record
from flows.budget import stops_by_budget
from flows.reports import training_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="align", flow_run_name="align {run.recipe_name}")
def align(config: AlignConfig, chat: Artifact, scorers: dict[str, Artifact], data: Dataset, run: Run = Run()) -> Record:
    """The chat model learns what is worth more, on the dataset's prompts or pairs, held near what it was. `scorers` by role: reward, cost, judge."""
    return training_card(run_stage(jobs.align(config, chat, scorers, data, run)))
