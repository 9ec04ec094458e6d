"""What MLflow knows of runs: found by their tags, their curves, the files kept with them.

    mlflow.runs("tags.`modelyard.kind` = 'stage'", limit=20)
    mlflow.curves(("7392c1…",), "loss")      # by run, at most 320 points each, thinned out by the server
    mlflow.record("7392c1…")                 # what the stage was given and made

MLflow's search gets slow with what it returns, not with what it holds: pages ask for the runs that they show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import streamlit as st

from components.schema.records import Record
from dashboards.services import web

EXPERIMENT = "modelyard"
POINTS = 320
FOREVER_S = 3600  # what ended does not change


class Run(dict[str, Any]):
    """One run, flat: id, name, status, start and end (seconds since the epoch, or None), tags, params, metrics, inputs (identity by role)."""


def url() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000").rstrip("/")


def page(path: str = "") -> str:
    """MLflow's pages, by the name by which whoever reads this reached us."""
    return web.seen_from(url(), st.context.headers.get("Host")) + path


def run_page(run_id: str) -> str:
    return page(f"/#/experiments/{experiment() or 0}/runs/{run_id}")


def list_page() -> str:
    """MLflow's list of our runs. Only its whole address opens it for training runs: from any other page MLflow shows its mode for chat applications."""
    try:
        found = experiment()
    except OSError:
        found = None
    return page(f"/#/experiments/{found}/runs?workflowType=machine_learning" if found else "/#/experiments")


@st.cache_data(ttl=30, show_spinner=False)
def experiment() -> str | None:
    """The id of the experiment that holds our runs; None before the first one. Errors: Away."""
    try:
        return ask("GET", "experiments/get-by-name", experiment_name=EXPERIMENT)["experiment"]["experiment_id"]
    except web.Absent:
        return None


@st.cache_data(ttl=4, show_spinner=False)
def runs(wanted: str, limit: int = 20, order: str = "attributes.start_time DESC") -> list[Run]:
    """Runs by MLflow's filter, the last begun first. Errors: Away."""
    if (where := experiment()) is None:
        return []
    found = ask("POST", "runs/search", experiment_ids=[where], filter=wanted, max_results=limit, order_by=[order])
    return [_run(row) for row in found.get("runs", [])]


@st.cache_data(ttl=FOREVER_S, show_spinner=False)
def stage_run(identity: str) -> Run | None:
    """The finished run of a stage with this identity. Errors: Away."""
    return next(iter(runs(f"tags.`modelyard.stage_identity` = '{identity}' and tags.`modelyard.kind` = 'stage'", 1)), None)


@st.cache_data(ttl=30, show_spinner=False)
def run(run_id: str) -> Run:
    """Errors: Absent, Away."""
    return _run(ask("GET", "runs/get", run_id=run_id)["run"])


@st.cache_data(ttl=4, show_spinner=False)
def curves(run_ids: tuple[str, ...], metric: str) -> dict[str, list[tuple[int, float]]]:
    """By run: (step, value), thinned out where there are many; a run without the metric is left out. Errors: Away."""
    if not run_ids:
        return {}
    asked = [("run_ids", one) for one in run_ids]
    found = _send("GET", "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", params=[*asked, ("metric_key", metric), ("max_results", POINTS)])
    by_run: dict[str, list[tuple[int, float]]] = {}
    for point in found.json().get("metrics", []):
        by_run.setdefault(point["run_id"], []).append((int(point.get("step", 0)), float(point["value"])))
    return by_run


@st.cache_data(ttl=FOREVER_S, show_spinner=False, max_entries=200)
def artifact(run_id: str, path: str) -> bytes:
    """A file kept with a run. Errors: Absent, Away."""
    return _send("GET", "/get-artifact", params={"run_uuid": run_id, "path": path}).content


def artifacts(run_id: str, folder: str) -> list[str]:
    """Paths of what lies in a folder of a run. Errors: Away."""
    return [entry["path"] for entry in ask("GET", "artifacts/list", run_id=run_id, path=folder).get("files", [])]


def record(run_id: str) -> Record | None:
    """What a stage's run was given and made; None where it has no record, as one that did not finish. Errors: Away."""
    try:
        return Record.model_validate_json(artifact(run_id, "record.json"))
    except (web.Absent, ValueError):
        return None


def ask(method: str, path: str, **question: Any) -> dict[str, Any]:
    """One call of MLflow's REST interface. Errors: Absent, Away."""
    return _send(method, f"/api/2.0/mlflow/{path}", **{"params" if method == "GET" else "json": question}).json()


def _send(method: str, path: str, **options: Any) -> Any:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return web.ask("MLflow", method, url() + path, f"{user}:{password}" if user and password else None, **options)


def _run(row: Mapping[str, Any]) -> Run:
    info, data = row["info"], row.get("data", {})
    used = row.get("inputs", {}).get("dataset_inputs", [])
    return Run(
        id=info["run_id"],
        name=info.get("run_name", ""),
        status=info["status"],
        start=_seconds(info.get("start_time")),
        end=_seconds(info.get("end_time")),
        tags={tag["key"].removeprefix("modelyard."): tag["value"] for tag in data.get("tags", [])},
        params={param["key"]: param["value"] for param in data.get("params", [])},
        metrics={metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])},
        inputs={one["dataset"]["name"]: one["dataset"]["digest"] for one in used},
    )


def _seconds(milliseconds: int | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
