"""What Prefect knows: runs and how far they are, slots, workers, schedules.

    prefect.open_runs()        # flow runs that wait or run, the newest first
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from dashboards.services import web

OPEN = ("RUNNING", "PENDING", "SCHEDULED", "PAUSED", "CANCELLING")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SOON_S = 3600  # a run planned for later than this belongs to the schedules
SLOTS = " slots of "  # in the names of the limits that are a host's queue


def url() -> str:
    """Prefect's API, with /api."""
    return os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api").rstrip("/")


def page() -> str:
    """Prefect's pages, by the name by which whoever reads this reached us."""
    return web.seen_from(url().removesuffix("/api"), st.context.headers.get("Host"))


def open_runs(limit: int = 20) -> list[dict[str, Any]]:
    """Top-level flow runs that run or wait to; not those planned for later. Errors: Away."""
    wanted = {"state": {"type": {"any_": list(OPEN)}}, "parent_task_run_id": {"is_null_": True}}
    rows = _ask("/flow_runs/filter", {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_DESC", "limit": 200})
    near = [row for row in rows if row["state_type"] != "SCHEDULED" or seconds_until(row["next_scheduled_start_time"]) < SOON_S]
    return sorted(near, key=lambda row: OPEN.index(row["state_type"]))[:limit]


def ended_runs(limit: int = 10) -> list[dict[str, Any]]:
    """Top-level flow runs that ended, the last first. Errors: Away."""
    wanted = {"state": {"type": {"any_": list(ENDED)}}, "parent_task_run_id": {"is_null_": True}}
    return _ask("/flow_runs/filter", {"flow_runs": wanted, "sort": "END_TIME_DESC", "limit": limit})


def planned_runs(limit: int = 8) -> list[dict[str, Any]]:
    """What schedules have planned, the next first. Errors: Away."""
    wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}, "parent_task_run_id": {"is_null_": True}, "expected_start_time": {"after_": datetime.now(UTC).isoformat()}}
    return _ask("/flow_runs/filter", {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC", "limit": limit})


@st.cache_data(ttl=300, show_spinner=False)
def flow_names() -> dict[str, str]:
    """Names by flow id. Errors: Away."""
    return {flow["id"]: flow["name"] for flow in _ask("/flows/filter", {"limit": 200})}


@st.cache_data(ttl=60, show_spinner=False)
def deployment_names() -> dict[str, str]:
    """Names by deployment id. Errors: Away."""
    return {one["id"]: one["name"] for one in _ask("/deployments/filter", {"limit": 200, "sort": "NAME_ASC"})}


def progress(run_ids: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By flow run: its last progress artifact, with those of the flows within it. Errors: Away."""
    found = web.at_once(*(lambda one=one: _progress(one) for one in run_ids))
    return {run_id: rows[0] for run_id, rows in zip(run_ids, found, strict=True) if rows}


def _progress(run_id: str) -> list[dict[str, Any]]:
    within = _ask("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "limit": 50})
    wanted = {"flow_run_id": {"any_": [run_id, *(row["id"] for row in within)]}, "type": {"any_": ["progress"]}}
    return _ask("/artifacts/filter", {"artifacts": wanted, "sort": "UPDATED_DESC", "limit": 1})


def slots() -> list[dict[str, Any]]:
    """Each host's queue: name, kind, host, limit, taken. Errors: Away."""
    rows = [row for row in _ask("/v2/concurrency_limits/filter", {"limit": 200}) if SLOTS in row["name"]]
    return [{"kind": row["name"].partition(SLOTS)[0], "host": row["name"].partition(SLOTS)[2], "limit": row["limit"], "taken": row["active_slots"]} for row in rows]


def workers() -> list[dict[str, Any]]:
    """Workers of the pool, those that answer first; none where there is no pool. Errors: Away."""
    try:
        rows = _ask("/work_pools/modelyard/workers/filter", {"limit": 100})
    except web.Absent:
        return []
    return sorted(rows, key=lambda row: (row["status"] != "ONLINE", row["name"]))


def seconds_until(moment: str | None) -> float:
    """From now; negative = past. Without a moment: now."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds() if moment else 0.0


def _ask(path: str, question: dict[str, Any]) -> Any:
    return web.ask("Prefect", "POST", url() + path, os.environ.get("PREFECT_API_AUTH_STRING"), json=question).json()
