"""Report to release: the gate decides, the registry keeps it."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.gate import GateConfig
from components.schema.jobs import Run
from components.schema.records import Artifact, Record
from flows.reports import release_card
from flows.tasks import run_stage


@flow(name="release", flow_run_name="release {run.recipe_name}")
def release(config: GateConfig, models: dict[str, Artifact], report: Artifact, run: Run = Run()) -> Record:
    """Register the last of the models as challenger; it becomes champion where the gate's policy says so, or waits for a person."""
    return release_card(run_stage(jobs.release(config, models, report, run)))
