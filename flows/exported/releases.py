"""Releases and cost, as MLflow's REST interface knows them: no client is imported, since that alone is 150 MB of memory.

Cost is summed over every stage's run that ever finished; runs are asked for once, page by page, and from then on only those that ended since.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

EXPERIMENT = "modelyard"
TIMEOUT_S = 20
SUMMED = {
    "cost/hours": ("modelyard_stage_hours", "Hours of finished stages."),
    "cost/cpu_hours": ("modelyard_stage_cpu_hours", "Hours that cores were busy for finished stages."),
    "cost/gpu_hours": ("modelyard_stage_gpu_hours", "Hours that GPUs were held by finished stages."),
    "cost/kwh": ("modelyard_stage_kwh", "Energy of finished stages, in kWh."),
    "cost/amount": ("modelyard_stage_cost", "Cost of finished stages, in the price table's currency."),
}


class Releases:
    """What an MLflow server knows; `collect` looks once. Without a server (a file of this machine) there is nothing to ask."""

    def __init__(self, address: str | None = None) -> None:
        address = address if address is not None else os.environ.get("MLFLOW_TRACKING_URI", "")
        self.address = address.rstrip("/") if address.startswith(("http://", "https://")) else None
        self.spent: dict[str, tuple[str, dict[str, float]]] = {}
        """By run: its stage, and what that used. A run that goes on after a kill ends twice, and counts with its last figures."""
        self.newest = 0

    def collect(self) -> list[Metric]:
        """Errors: OSError where the server does not answer, ValueError where it answers something else."""
        return [*self._releases(), *self._cost()]

    def _releases(self) -> Iterator[Metric]:
        released = GaugeMetricFamily("modelyard_last_release_timestamp_seconds", "When the model that is champion now was released.", labels=("model", "version"))
        asking = GaugeMetricFamily("modelyard_releases_waiting", "Versions that wait for somebody's approval.", labels=("model",))
        for model in self._pages("GET", "registered-models/search", "registered_models", {}):
            version = next((row["version"] for row in model.get("aliases", ()) if row["alias"] == "champion"), None)
            if version:
                found = self._ask("GET", "model-versions/get", {"name": model["name"], "version": version})["model_version"]
                released.add_metric((model["name"], str(version)), int(found["creation_timestamp"]) / 1000)
            wanted = f"name = '{model['name']}'"
            versions = self._pages("GET", "model-versions/search", "model_versions", {"filter": wanted})
            asking.add_metric((model["name"],), sum(_tags(row).get("modelyard.action") == "ask" for row in versions))
        yield released
        yield asking

    def _cost(self) -> Iterator[Metric]:
        if experiment := self._experiment():
            asked = {
                "experiment_ids": [experiment],
                "filter": f"tags.`modelyard.kind` = 'stage' and attributes.status = 'FINISHED' and attributes.end_time >= {self.newest}",
                "order_by": ["attributes.end_time ASC"],
            }
            for run in self._pages("POST", "runs/search", "runs", asked):
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
        self.spent[info["run_id"]] = (_tags(data).get("modelyard.stage", "unknown"), figures)

    def _experiment(self) -> str | None:
        try:
            return self._ask("GET", "experiments/get-by-name", {"experiment_name": EXPERIMENT})["experiment"]["experiment_id"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _pages(self, method: str, path: str, rows: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        token = None
        while True:
            answer = self._ask(method, path, {**asked, "max_results": 200, **({"page_token": token} if token else {})})
            yield from answer.get(rows, ())
            if not (token := answer.get("next_page_token")):
                return

    def _ask(self, method: str, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.address}/api/2.0/mlflow/{path}"
        if method == "GET":
            url += "?" + urllib.parse.urlencode(asked)
        request = urllib.request.Request(url, method=method, data=json.dumps(asked).encode() if method == "POST" else None, headers={"Content-Type": "application/json", **_account()})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)


def _account() -> dict[str, str]:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if not (user and password):
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _tags(row: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in row.get("tags", ())}
