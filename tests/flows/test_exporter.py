"""What the exporter says without any server: sources that fail, and what a machine knows by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from flows.exported.runs import Runs
from flows.exporter import Exporter, of_this_machine


def text(collector: Any) -> dict[str, float]:
    """Samples as Prometheus would read them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_a_source_that_fails_is_down_and_its_old_numbers_are_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    answers = iter([of_this_machine()])
    exporter = Exporter({"machine": lambda: next(answers)})
    exporter.look("machine")
    first = text(exporter)
    assert first['modelyard_up{source="machine"}'] == 1 and "modelyard_home_free_bytes" in first
    exporter.look("machine")  # StopIteration: as good an error as any
    second = text(exporter)
    assert second['modelyard_up{source="machine"}'] == 0 and "modelyard_home_free_bytes" not in second


def test_a_machine_tells_its_last_canary_and_what_is_not_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    (tmp_path / "storage" / "waiting").mkdir(parents=True)
    (tmp_path / "storage" / "waiting" / "sft-0.json").write_text("{}")
    (tmp_path / "canary").mkdir()
    entry = {"at": "2026-11-01T00:00:00+00:00", "recipe": "recipes/tiny.yaml", "seconds_in_all": 61.5, "changes": ["a", "b"]}
    (tmp_path / "canary" / "history.jsonl").write_text(json.dumps({**entry, "changes": []}) + "\n" + json.dumps(entry) + "\n" + '{"cut off by a ki')
    exporter = Exporter({"machine": of_this_machine})
    exporter.look("machine")
    found = text(exporter)
    assert found["modelyard_results_not_copied"] == 1
    assert found['modelyard_canary_changes{recipe="recipes/tiny.yaml"}'] == 2
    assert found['modelyard_canary_timestamp_seconds{recipe="recipes/tiny.yaml"}'] == datetime(2026, 11, 1, tzinfo=UTC).timestamp()


def row(identity: str, state: str, kind: str, minutes_ago: float, seconds: float) -> dict[str, Any]:
    """A flow run as Prefect's API gives it."""
    at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return {"id": identity, "deployment_id": "d", "flow_id": "f", "state_name": state, "state_type": kind, "end_time": at.isoformat(), "total_run_time": seconds,
            "expected_start_time": at.isoformat(), "start_time": at.isoformat()}  # fmt: skip


def test_an_ending_that_is_seen_twice_counts_once_and_a_second_ending_counts_again() -> None:
    runs = Runs()
    crashed = row("r", "Crashed", "CRASHED", 1, 10)
    runs._count([crashed], {"d": "retrain"}, {})
    runs._count([crashed, row("r", "Completed", "COMPLETED", 0.1, 70)], {"d": "retrain"}, {})
    assert runs.endings == {("retrain", "Crashed"): 1, ("retrain", "Completed"): 1}
    found = text(_Only(list(runs._so_far(["retrain", "canary"]))))
    assert found['modelyard_flow_runs_ended_total{deployment="canary",state="Failed"}'] == 0, "a first failure must be an increase"
    assert found['modelyard_flow_run_seconds_count{deployment="canary"}'] == 0, "and so must a first duration"
    assert found['modelyard_flow_run_seconds_bucket{deployment="retrain",le="15.0"}'] == 1
    assert found['modelyard_flow_run_seconds_bucket{deployment="retrain",le="300.0"}'] == 2
    assert found['modelyard_flow_run_seconds_sum{deployment="retrain"}'] == 80
    assert found['modelyard_last_run_ok{deployment="retrain"}'] == 1


def test_a_run_that_is_due_counts_as_waiting_and_one_of_tomorrow_does_not() -> None:
    due, later = row("a", "Late", "SCHEDULED", 10, 0), row("b", "Scheduled", "SCHEDULED", -600, 0)
    now = datetime.now(UTC)
    found = text(_Only(list(Runs()._now([due, later], {"d": "retrain", "c": "canary"}, {}, now))))
    assert found['modelyard_flow_runs_waiting{deployment="retrain"}'] == 1
    assert found['modelyard_flow_runs_waiting{deployment="canary"}'] == 0
    assert 599 < found['modelyard_flow_run_lateness_seconds{deployment="retrain"}'] < 605


class _Only:
    """A collector of given metrics."""

    def __init__(self, metrics: list[Any]) -> None:
        self.metrics = metrics

    def collect(self) -> list[Any]:
        return self.metrics
