"""Report to release: the gate decides, the registry keeps it."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.gate import GateConfig
from components.schema.jobs import Run
from components.schema.records import Artifact, Record
from flows import approval
from flows.announce import GATE_DECIDED, of_model, try_to_announce
from flows.budget import stops_by_budget
from flows.reports import release_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="release", flow_run_name="release {run.recipe_name}")
def release(config: GateConfig, models: dict[str, Artifact], report: Artifact, run: Run = Run()) -> Record:
    """Register the last of the models as challenger; it becomes champion where the gate's policy says so, or waits for a person."""
    record = release_card(run_stage(jobs.release(config, models, report, run)))
    decided = {"action": record.figures["action"], "reason": record.figures["reason"], "recipe": run.recipe_name}
    try_to_announce(GATE_DECIDED, of_model(record.figures["uri"]), decided, once=record.hash)
    return approval.settled(record)
