"""Flow runs, queue, slots and workers, as Prefect's API knows them now.

Counters and durations grow from what ended since this process began: each look asks for the runs that ended since the one before, with some overlap, and
counts an ending once (a run that crashed and was resumed ends more than once, which are two endings).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.orchestration import get_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

SECONDS = (5, 15, 60, 300, 900, 3600, 3 * 3600, 12 * 3600, 24 * 3600, 7 * 24 * 3600)  # bounds of the durations' buckets
ACTIVE = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ENDINGS = ("Completed", "Failed", "Crashed", "Cancelled", "BudgetSpent", "Skipped", "Changed")  # named from the start, so that a first one is an increase
SHOWN = ("Scheduled", "Late", "AwaitingRetry", "Pending", "Running", "Paused", "Suspended", "Cancelling")
OVERLAP = timedelta(minutes=2)
PAGE = 200  # Prefect's most
NONE = "none"  # the deployment of a run that was started from a terminal


class Runs:
    """What Prefect knows; `collect` looks once."""

    def __init__(self, pool: str = "modelyard") -> None:
        self.pool, self.since = pool, datetime.now(UTC)
        self.endings: Counter[tuple[str, str]] = Counter()
        self.sums: dict[str, tuple[list[int], float]] = {}
        """Of a deployment's durations: how many in each bucket, and all seconds together."""
        self.last: dict[str, tuple[datetime, str]] = {}
        """When a deployment's run ended last, and how."""
        self.completed: dict[str, datetime] = {}
        self._seen: dict[tuple[str, str], datetime] = {}

    def collect(self) -> list[Metric]:
        """Errors: whatever the client raises where the server does not answer."""
        now = datetime.now(UTC)
        with get_client(sync_client=True, httpx_settings={"timeout": 20}) as client:
            names = {row["id"]: f"{row['name']}" for row in _pages(client, "/deployments/filter", {})}
            flows = {row["id"]: row["name"] for row in _pages(client, "/flows/filter", {})}
            active = list(_pages(client, "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": list(ACTIVE)}}}}))
            window = {"type": {"any_": list(ENDED)}}
            ended = list(_pages(client, "/flow_runs/filter", {"flow_runs": {"state": window, "end_time": {"after_": (self.since - OVERLAP).isoformat()}}}))
            limits = list(_pages(client, "/v2/concurrency_limits/filter", {}))
            workers = client.request("POST", "/work_pools/{name}/workers/filter", path_params={"name": self.pool}, json={}).json() if _has_pool(client, self.pool) else []
        own = {row["id"] for row in active + ended if not row.get("parent_task_run_id")}  # a stage inside a line is part of that line
        active, ended = [row for row in active if row["id"] in own], [row for row in ended if row["id"] in own]
        self._count(ended, names, flows)
        self.since = now
        return [
            *self._now(active, names, flows, now),
            *self._so_far(sorted(set(names.values()))),
            *_slots(limits),
            *_workers(workers, now),
        ]

    def _count(self, ended: list[dict[str, Any]], names: dict[str, str], flows: dict[str, str]) -> None:
        for row in ended:
            at, name = _time(row["end_time"]), _name(row, names, flows)
            mark = (row["id"], row["end_time"])
            if mark in self._seen or at is None:
                continue
            self._seen[mark] = at
            self.endings[name, row["state_name"]] += 1
            self._observe(name, float(row["total_run_time"]))
            if name not in self.last or at >= self.last[name][0]:
                self.last[name] = (at, row["state_name"])
            if row["state_type"] == "COMPLETED":
                self.completed[name] = max(at, self.completed.get(name, at))
        oldest = datetime.now(UTC) - 10 * OVERLAP
        self._seen = {mark: at for mark, at in self._seen.items() if at > oldest}

    def _observe(self, name: str, seconds: float) -> None:
        counts, total = self.sums.get(name, ([0] * (len(SECONDS) + 1), 0.0))
        place = next((number for number, bound in enumerate(SECONDS) if seconds <= bound), len(SECONDS))
        counts[place] += 1
        self.sums[name] = (counts, total + seconds)

    def _now(self, active: list[dict[str, Any]], names: dict[str, str], flows: dict[str, str], now: datetime) -> Iterator[Metric]:
        states: Counter[tuple[str, str]] = Counter((name, state) for name in names.values() for state in SHOWN)
        waiting: Counter[str] = Counter(dict.fromkeys(names.values(), 0))
        late: dict[str, float] = dict.fromkeys(names.values(), 0.0)
        oldest: dict[str, float] = {}
        for row in active:
            name, due = _name(row, names, flows), _time(row["expected_start_time"])
            if row["state_type"] == "SCHEDULED" and due and due > now:
                continue  # the clock's future runs are no load
            states[name, row["state_name"]] += 1
            if row["state_type"] in ("SCHEDULED", "PENDING"):
                waiting[name] += 1
                late[name] = max(late.get(name, 0.0), (now - due).total_seconds() if due else 0.0)
            if row["state_type"] == "RUNNING" and (began := _time(row["start_time"])):
                oldest[name] = max(oldest.get(name, 0.0), (now - began).total_seconds())
        yield _gauge("modelyard_flow_runs", "Flow runs that are due and have not ended, by state.", ("deployment", "state"), states)
        yield _gauge("modelyard_flow_runs_waiting", "Flow runs that are due and have not begun.", ("deployment",), waiting)
        yield _gauge("modelyard_flow_run_lateness_seconds", "How long the run that has waited longest is overdue.", ("deployment",), late)
        yield _gauge("modelyard_flow_run_oldest_seconds", "How long ago the oldest running run began.", ("deployment",), oldest)

    def _so_far(self, names: list[str]) -> Iterator[Metric]:
        endings = CounterMetricFamily("modelyard_flow_runs_ended", "Endings of flow runs since the exporter began.", labels=("deployment", "state"))
        for key in sorted({*((name, state) for name in names for state in ENDINGS), *self.endings}):
            endings.add_metric(key, self.endings[key])
        yield endings
        durations = HistogramMetricFamily("modelyard_flow_run_seconds", "Time that ended runs were running.", labels=("deployment",))
        nothing = ([0] * (len(SECONDS) + 1), 0.0)  # so that a first ending is an increase
        for name, (counts, total) in sorted((dict.fromkeys(names, nothing) | self.sums).items()):
            cumulated = [(str(float(bound)), sum(counts[: number + 1])) for number, bound in enumerate(SECONDS)]
            durations.add_metric((name,), [*cumulated, ("+Inf", sum(counts))], total)
        yield durations
        completed = {name: at.timestamp() for name, at in self.completed.items()}
        yield _gauge("modelyard_last_completed_timestamp_seconds", "When a run of it completed last, since the exporter began.", ("deployment",), completed)
        well = {name: float(state in ("Completed", "Skipped")) for name, (_, state) in self.last.items()}
        yield _gauge("modelyard_last_run_ok", "1 where its last run completed, 0 where it did not.", ("deployment",), well)


def _slots(limits: list[dict[str, Any]]) -> Iterator[Metric]:
    mine = [row for row in limits if row.get("active", True)]
    yield _gauge("modelyard_slots", "Slots of a concurrency limit.", ("limit",), {row["name"]: row["limit"] for row in mine})
    yield _gauge("modelyard_slots_taken", "Slots that are taken.", ("limit",), {row["name"]: row["active_slots"] for row in mine})


def _workers(workers: list[dict[str, Any]], now: datetime) -> Iterator[Metric]:
    ages = {row["name"]: (now - at).total_seconds() for row in workers if (at := _time(row.get("last_heartbeat_time"))) and now - at < timedelta(days=1)}
    yield _gauge("modelyard_worker_heartbeat_age_seconds", "How long ago a worker said that it lives.", ("worker",), ages)
    online = sum(row.get("status") == "ONLINE" for row in workers)
    yield _gauge("modelyard_workers_online", "Workers that take runs.", (), {(): online})


def _has_pool(client: Any, pool: str) -> bool:
    return any(row["name"] == pool for row in _pages(client, "/work_pools/filter", {}))


def _pages(client: Any, path: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every row of a filter, page by page."""
    offset = 0
    while True:
        rows = client.request("POST", path, json={**asked, "limit": PAGE, "offset": offset}).json()
        yield from rows
        if len(rows) < PAGE:
            return
        offset += PAGE


def _name(row: dict[str, Any], names: dict[str, str], flows: dict[str, str]) -> str:
    return names.get(row.get("deployment_id") or "") or f"{flows.get(row['flow_id'], 'unknown')} ({NONE})"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def _gauge(name: str, what: str, labels: tuple[str, ...], values: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric((key,) if isinstance(key, str) else key, float(value))
    return family
