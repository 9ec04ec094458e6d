"""Models to a report of scores with their uncertainty."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.evaluation import EvalConfig
from components.schema.jobs import Run
from components.schema.records import Artifact, Dataset, Record
from flows.reports import scores_card
from flows.tasks import run_stage


@flow(name="evaluate", flow_run_name="evaluate {run.recipe_name}")
def evaluate(config: EvalConfig, models: dict[str, Artifact], data: Dataset, run: Run = Run()) -> Record:
    """lm-eval's own tasks on every model of the line (base, chat, policy), and held-out perplexity."""
    return scores_card(run_stage(jobs.evaluate(config, models, data, run)))
