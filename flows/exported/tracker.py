"""MLflow's REST interface, page by page: no client is imported, since that alone is 150 MB of memory.

    tracker = Tracker("http://127.0.0.1:5000")
    for run in tracker.stages("attributes.status = 'RUNNING'"): ...
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

EXPERIMENT = "modelyard"
TIMEOUT_S = 20


class Tracker:
    """An MLflow server. Without one (a file of this machine) there is nothing to ask: `address` is None."""

    def __init__(self, address: str | None = None) -> None:
        address = address if address is not None else os.environ.get("MLFLOW_TRACKING_URI", "")
        self.address = address.rstrip("/") if address.startswith(("http://", "https://")) else None

    def stages(self, wanted: str, order_by: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
        """Runs of stages that fit a filter of MLflow's; none where nothing was ever tracked."""
        if experiment := self._experiment():
            asked = {"experiment_ids": [experiment], "filter": f"tags.`modelyard.kind` = 'stage' and {wanted}", "order_by": list(order_by)}
            yield from self.pages("POST", "runs/search", "runs", asked)

    def pages(self, method: str, path: str, rows: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every row of a search. Errors: OSError where the server does not answer, ValueError where it answers something else."""
        token = None
        while True:
            answer = self.ask(method, path, {**asked, "max_results": 200, **({"page_token": token} if token else {})})
            yield from answer.get(rows, ())
            if not (token := answer.get("next_page_token")):
                return

    def ask(self, method: str, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """One call. Errors as `pages`."""
        url = f"{self.address}/api/2.0/mlflow/{path}"
        if method == "GET":
            url += "?" + urllib.parse.urlencode(asked)
        request = urllib.request.Request(url, method=method, data=json.dumps(asked).encode() if method == "POST" else None, headers={"Content-Type": "application/json", **_account()})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer)

    def _experiment(self) -> str | None:
        try:
            return self.ask("GET", "experiments/get-by-name", {"experiment_name": EXPERIMENT})["experiment"]["experiment_id"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


def tags(row: dict[str, Any]) -> dict[str, str]:
    """Of a run's data or of a version."""
    return {tag["key"]: tag.get("value", "") for tag in row.get("tags", ())}


def _account() -> dict[str, str]:
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if not (user and password):
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
