"""Sources to tokens, chats, preference pairs and benchmarks, every one of them a DVC-tracked output."""

from __future__ import annotations

from prefect import flow

from components.schema import jobs
from components.schema.data import DataConfig
from components.schema.jobs import Run
from components.schema.records import Dataset
from flows.budget import stops_by_budget
from flows.reports import data_card
from flows.tasks import run_stage


@stops_by_budget
@flow(name="prepare-data", flow_run_name="data {config.name}")
def prepare_data(config: DataConfig, run: Run = Run()) -> Dataset:
    """DVC reruns what is not current; what comes back names each part by DVC's md5."""
    record = run_stage(jobs.data(config, run))
    data_card(record)
    return Dataset.model_validate({**record.config, **{name: {**record.config[name], "counts": counts} for name, counts in record.figures.items()}})
