"""One model, again and again: the noise floor of its scores."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.evaluation import EvalConfig
from components.schema.gate import NoiseConfig
from components.schema.jobs import Run
from components.schema.records import Artifact, Dataset, Record
from flows.tasks import run_stage


@flow(name="measure-noise", flow_run_name="noise {run.recipe_name}")
def measure_noise(config: NoiseConfig, evals: EvalConfig, model: Artifact, role: str, data: Dataset, run: Run = Run(), retrained: tuple[Artifact, ...] = ()) -> Record:
    """One model evaluated under other seeds, batch sizes and orders: how far its scores move by themselves."""
    return run_stage(jobs.noise(config, evals, model, role, data, run, retrained))
