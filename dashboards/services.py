"""What pages ask of Prefect and MLflow, over HTTP alone: where they run, and as whom to ask, stands in the environment.

    services.open_runs()        # flow runs that wait or run, the newest first
    services.releases()         # registered models and what their aliases point to
"""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any

OPEN = ("RUNNING", "PENDING", "SCHEDULED", "PAUSED", "CANCELLING")
TIMEOUT_S = 10


def prefect_url() -> str:
    """Prefect's API, with /api."""
    return os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api").rstrip("/")


def mlflow_url() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000").rstrip("/")


def seen_from(address: str, host: str | None) -> str:
    """A server of this very machine as its reader must write it: by the name in `host` (NAME:PORT), by which the reader came here."""
    parts = urllib.parse.urlsplit(address)
    name = urllib.parse.urlsplit(f"//{host}").hostname if host else None
    if name is None or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return address
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{parts.port}"


def open_runs(limit: int = 20) -> list[dict[str, Any]]:
    """Top-level flow runs that run or wait to; not those planned for later than an hour. Errors: OSError."""
    wanted = {"state": {"type": {"any_": list(OPEN)}}, "parent_task_run_id": {"is_null_": True}}
    rows = _prefect("/flow_runs/filter", {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_DESC", "limit": 200})
    return [row for row in rows if row["state_type"] != "SCHEDULED" or seconds_until(row["next_scheduled_start_time"]) < 3600][:limit]


def ended_runs(limit: int = 12) -> list[dict[str, Any]]:
    """Top-level flow runs that ended, the last first. Errors: OSError."""
    wanted = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}, "parent_task_run_id": {"is_null_": True}}
    return _prefect("/flow_runs/filter", {"flow_runs": wanted, "sort": "END_TIME_DESC", "limit": limit})


def flow_names(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Names by flow id. Errors: OSError."""
    ids = sorted({row["flow_id"] for row in rows})
    return {flow["id"]: flow["name"] for flow in _prefect("/flows/filter", {"flows": {"id": {"any_": ids}}, "limit": 200})} if ids else {}


def progress(run_ids: list[str]) -> dict[str, dict[str, Any]]:
    """By flow run: its last progress artifact, with those of the flows within it. Errors: OSError."""
    found: dict[str, dict[str, Any]] = {}
    for run_id in run_ids:
        within = _prefect("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "limit": 50})
        wanted = {"flow_run_id": {"any_": [run_id, *(row["id"] for row in within)]}, "type": {"any_": ["progress"]}}
        if rows := _prefect("/artifacts/filter", {"artifacts": wanted, "sort": "UPDATED_DESC", "limit": 1}):
            found[run_id] = rows[0]
    return found


def deployments() -> list[dict[str, Any]]:
    """Everything that has a form. Errors: OSError."""
    return _prefect("/deployments/filter", {"limit": 200, "sort": "NAME_ASC"})


def releases() -> list[dict[str, Any]]:
    """A row for each version that has an alias, champions first. Errors: OSError."""
    rows = []
    for model in _mlflow("registered-models/search", max_results=100).get("registered_models", []):
        by_version: dict[str, list[str]] = {}
        for alias in model.get("aliases", []):
            by_version.setdefault(str(alias["version"]), []).append(alias["alias"])
        for version, aliases in by_version.items():
            told = _mlflow("model-versions/get", name=model["name"], version=version)["model_version"]
            tags = {tag["key"].removeprefix("modelyard."): tag["value"] for tag in told.get("tags", [])}
            rows.append({"model": model["name"], "version": int(version), "aliases": sorted(aliases), "created": int(told["creation_timestamp"]) / 1000, "tags": tags, "run_id": told.get("run_id")})
    return sorted(rows, key=lambda row: ("champion" not in row["aliases"], -row["created"]))


def training_runs() -> str:
    """The path of MLflow's page with our runs. Only its whole address opens it for training runs: from any other page MLflow shows its mode for chat applications."""
    try:
        found = _mlflow("experiments/get-by-name", experiment_name="modelyard")["experiment"]["experiment_id"]
    except (OSError, ValueError, KeyError):  # no run yet, or no server
        return "/#/experiments"
    return f"/#/experiments/{found}/runs?workflowType=machine_learning"


def answers(url: str) -> bool:
    """Whether a health address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def seconds_until(moment: str | None) -> float:
    """From now; negative = past. Without a moment: now."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds() if moment else 0.0


def _prefect(path: str, question: dict[str, Any]) -> Any:
    return _ask(urllib.request.Request(prefect_url() + path, json.dumps(question).encode(), {"Content-Type": "application/json"}), os.environ.get("PREFECT_API_AUTH_STRING"))


def _mlflow(path: str, **question: Any) -> Any:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return _ask(urllib.request.Request(f"{mlflow_url()}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(question)}"), f"{user}:{password}" if user and password else None)


def _ask(asking: urllib.request.Request, account: str | None) -> Any:
    if account:
        asking.add_header("Authorization", f"Basic {base64.b64encode(account.encode()).decode()}")
    with urllib.request.urlopen(asking, timeout=TIMEOUT_S) as answer:
        return json.load(answer)
