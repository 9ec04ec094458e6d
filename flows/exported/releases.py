"""Releases and cost, as MLflow knows them.

Cost is summed over every stage's run that ever finished; runs are asked for once, page by page, and from then on only those that ended since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from flows.exported.tracker import Tracker, tags

SUMMED = {
    "cost/hours": ("modelyard_stage_hours", "Hours of finished stages."),
    "cost/cpu_hours": ("modelyard_stage_cpu_hours", "Hours that cores were busy for finished stages."),
    "cost/gpu_hours": ("modelyard_stage_gpu_hours", "Hours that GPUs were held by finished stages."),
    "cost/kwh": ("modelyard_stage_kwh", "Energy of finished stages, in kWh."),
    "cost/amount": ("modelyard_stage_cost", "Cost of finished stages, in the price table's currency."),
}


class Releases:
    """What an MLflow server knows of versions and cost; `collect` looks once."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.spent: dict[str, tuple[str, dict[str, float]]] = {}
        """By run: its stage, and what that used. A run that goes on after a kill ends twice, and counts with its last figures."""
        self.newest = 0

    def collect(self) -> list[Metric]:
        """Errors: OSError where the server does not answer, ValueError where it answers something else."""
        return [*self._releases(), *self._cost()]

    def _releases(self) -> Iterator[Metric]:
        released = GaugeMetricFamily("modelyard_last_release_timestamp_seconds", "When the model that is champion now was released.", labels=("model", "version"))
        asking = GaugeMetricFamily("modelyard_releases_waiting", "Versions that wait for somebody's approval.", labels=("model",))
        for model in self.tracker.pages("GET", "registered-models/search", "registered_models", {}):
            version = next((row["version"] for row in model.get("aliases", ()) if row["alias"] == "champion"), None)
            if version:
                found = self.tracker.ask("GET", "model-versions/get", {"name": model["name"], "version": version})["model_version"]
                released.add_metric((model["name"], str(version)), int(found["creation_timestamp"]) / 1000)
            wanted = f"name = '{model['name']}'"
            versions = self.tracker.pages("GET", "model-versions/search", "model_versions", {"filter": wanted})
            asking.add_metric((model["name"],), sum(tags(row).get("modelyard.action") == "ask" for row in versions))
        yield released
        yield asking

    def _cost(self) -> Iterator[Metric]:
        for run in self.tracker.stages(f"attributes.status = 'FINISHED' and attributes.end_time >= {self.newest}", ["attributes.end_time ASC"]):
            self._add(run)
        sums: Counter[tuple[str, str]] = Counter()
        for stage, figures in self.spent.values():
            sums.update({(stage, metric): value for metric, value in figures.items()})
        for metric, (name, what) in SUMMED.items():
            family = CounterMetricFamily(name, what, labels=("stage",))
            for stage in sorted({stage for stage, _ in self.spent.values()}):
                family.add_metric((stage,), sums[stage, metric])
            yield family

    def _add(self, run: dict[str, Any]) -> None:
        info, data = run["info"], run.get("data", {})
        self.newest = max(self.newest, int(info.get("end_time") or 0))
        figures = {row["key"]: max(0.0, float(row["value"])) for row in data.get("metrics", ()) if row["key"] in SUMMED}
        self.spent[info["run_id"]] = (tags(data).get("modelyard.stage", "unknown"), figures)
