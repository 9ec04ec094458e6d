"""How a platform is: its children, its addresses, what waits and runs, and who holds which slot. Asked over HTTP; nothing heavy is imported."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flows.platform import ending
from flows.platform.state import ChildState, State
from flows.platform.supervisor import answers
from flows.server import request

WAITING = ("Late", "Scheduled", "AwaitingRetry", "Pending", "Running", "Cancelling", "Paused", "Suspended")
LATE_S = 60


def status() -> dict[str, Any]:
    """Everything, as JSON. `healthy` is False where something that should run does not."""
    found = State.read()
    if found is None:
        return {"state": "down", "healthy": False, "problems": ["No platform is running here. Start it: modelyard up"]}
    if not found.supervisor.alive:
        left = len(ending.marked())
        return {"state": "lost", "healthy": False, "problems": [f"The supervisor was killed, and {left} of its processes are left. Start it again (modelyard up), or end them (modelyard down)"]}
    with ThreadPoolExecutor(8) as pool:
        children = dict(zip(found.children, pool.map(_child, found.children.values()), strict=True))
    api = _Prefect(found.prefect_url)
    problems = [f"{name}: {child['how']}. Read the end of {found.children[name].log}" for name, child in children.items() if not child["well"]]
    try:
        asked = {"queue": api.queue(), "slots": api.slots(), "workers": api.workers()}
    except (OSError, ValueError) as error:
        asked = {}
        problems.append(f"Prefect at {found.prefect_url} does not answer as it should ({error})")
    addresses = {"prefect": found.prefect_url.removesuffix("/api"), "mlflow": found.mlflow_url, "dashboard": found.dashboard_url, "feedback": found.feedback_url, "metrics": found.metrics_url, "serving": found.serving_url}
    if found.mlflow_url and "mlflow" not in children and not answers(f"{found.mlflow_url}/health"):
        problems.append(f"MLflow at {found.mlflow_url} does not answer")
    return {
        "state": "up", "healthy": not problems, "problems": problems, "since": found.began, "supervisor": found.supervisor.pid, "project": found.project, "children": children,
        "addresses": {name: address for name, address in addresses.items() if address}, **asked,
    }  # fmt: skip


def _child(child: ChildState) -> dict[str, Any]:
    """Looked at now, not as the supervisor last wrote it."""
    row = {"pid": child.process and child.process.pid, "starts": child.starts, "up_s": round(time.time() - child.began) if child.process and child.began else None, "last_end": child.ended}
    if child.process is None or not child.process.alive:
        return {**row, "well": False, "how": f"is not running ({child.ended or 'waits for the servers'})"}
    if child.health and not answers(child.health, timeout_s=8.0):
        return {**row, "well": False, "how": f"does not answer at {child.health}"}
    return {**row, "well": True, "how": "well"}


class _Prefect:
    """The few questions that a look at the queue needs."""

    def __init__(self, url: str) -> None:
        self.url = url
        if account := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            os.environ.setdefault("PREFECT_API_AUTH_STRING", account)

    def ask(self, path: str, question: dict[str, Any]) -> Any:
        """POST, as Prefect's lists want it. Errors: OSError."""
        asking = request(f"{self.url}{path}")
        asking.data, asking.method = json.dumps(question).encode(), "POST"
        asking.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(asking, timeout=20) as answer:
            return json.load(answer)

    def queue(self) -> dict[str, int]:
        """Open top-level runs by the name of their state."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LATE_S))
        counts = {}
        for name in WAITING:
            wanted: dict[str, Any] = {"state": {"name": {"any_": [name]}}, "parent_task_run_id": {"is_null_": True}}
            if name == "Scheduled":  # not those of next week
                wanted["next_scheduled_start_time"] = {"before_": now}
            counts[name] = self.ask("/flow_runs/count", {"flow_runs": wanted})
        return counts

    def slots(self) -> dict[str, dict[str, int]]:
        """Limits that are switched on, by name: taken and limit."""
        rows = self.ask("/v2/concurrency_limits/filter", {"limit": 200})
        return {row["name"]: {"taken": row["active_slots"], "limit": row["limit"]} for row in rows if row["active"] and " slots of " in row["name"]}

    def workers(self) -> dict[str, str]:
        """Workers of the pool on all machines, by name: ONLINE or OFFLINE."""
        from flows.platform.worker import POOL

        try:
            rows = self.ask(f"/work_pools/{POOL}/workers/filter", {"limit": 200})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            raise
        return {row["name"]: row["status"] for row in rows}


def lines(told: dict[str, Any]) -> list[str]:
    """For a person."""
    if told["state"] != "up":
        return told["problems"]
    out = [f"up since {time.strftime('%Y-%m-%d %H:%M', time.localtime(told['since']))}, supervisor {told['supervisor']}, project {told['project']}", ""]
    for name, child in told["children"].items():
        again = f", started {child['starts']} times; last: {child['last_end']}" if child["starts"] > 1 else ""
        out.append(f"{'ok ' if child['well'] else 'BAD'} {name:<11} pid {child['pid'] or '-':<8} {child['how'] if not child['well'] else 'up ' + _time(child['up_s'])}{again}")
    out += ["", *(f"{name:<11} {address}" for name, address in told["addresses"].items())]
    if "queue" in told:
        waiting = ", ".join(f"{count} {name}" for name, count in told["queue"].items() if count)
        out += ["", f"runs        {waiting or 'none waits, none runs'}", *(f"{name:<11} {slot['taken']} of {slot['limit']} taken" for name, slot in told["slots"].items())]
        online = [name for name, state in told["workers"].items() if state == "ONLINE"]
        out.append(f"workers     {', '.join(online) or 'none'} online")
    return [*out, *([""] if told["problems"] else []), *(f"BAD {problem}" for problem in told["problems"])]


def _time(seconds: int | None) -> str:
    """1 d 3 h, 5 min, 12 s."""
    s = seconds or 0
    return f"{s // 86400} d {s % 86400 // 3600} h" if s >= 86400 else f"{s // 3600} h {s % 3600 // 60} min" if s >= 3600 else f"{s // 60} min" if s >= 60 else f"{s} s"


