"""Prepared pages of MLflow: the curves of one kind of stage, of every run, side by side.

    page("http://127.0.0.1:5000", "1", "pretrain")     # .../runs?...&viewStateShareKey=modelyard-pretrain

By itself MLflow opens the mode for chat applications, hides the stages under their recipe's run, and puts the bars of single figures above the
curves. What its button "Share" keeps as a tag of the experiment (mlflow.sharedViewState.KEY), is written here once, in the form that MLflow 3.17 reads:
runs in one flat list, curves first, and the loss also against the tokens read, an axis on which runs with other batches can be compared.
"""

from __future__ import annotations

import json
from typing import Any

SHARED = "mlflow.sharedViewState."  # then the key that the address names
TRAINING = "workflowType=machine_learning"  # else what the browser chose last, and at first the mode for applications
SECTION = "Model metrics"  # MLflow's own name, so that figures without a prefix that are no curves here follow in it
COMMON = ("loss", "heldout_loss", "loss by tokens", "tokens_per_s", "lr", "grad_norm")
CURVES: dict[str, tuple[str, ...]] = {
    "pretrain": COMMON,
    "sft": COMMON,
    "reward": ("loss", "accuracy", "tokens_per_s", "lr", "grad_norm"),
    "align": ("reward", "kl", "loss", "tokens_per_s", "lr", "grad_norm"),
}


def tags() -> dict[str, str]:
    """The experiment's tags that hold the views."""
    return {f"{SHARED}{key(stage)}": json.dumps(_view(stage, curves), separators=(",", ":")) for stage, curves in CURVES.items()}


def key(stage: str) -> str:
    return f"modelyard-{stage}"


def page(server: str, experiment: str, stage: str) -> str:
    """The view's address at a server."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{TRAINING}&compareRunsMode=CHART&viewStateShareKey={key(stage)}"


def _view(stage: str, curves: tuple[str, ...]) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.`modelyard.stage` = '{stage}'",
        "orderByKey": "attributes.created",  # not start_time, by which stages would be nested and their curves hidden
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "isAccordionReordered": True,  # keeps our section before those that MLflow adds
        "compareRunSections": [{"uuid": "curves", "name": SECTION, "display": True, "isReordered": True}],
        "compareRunCharts": [_chart(curve) for curve in curves],
    }


def _chart(curve: str) -> dict[str, Any]:
    """A line chart; `NAME by OTHER` against another metric of the same steps."""
    metric, _, other = curve.partition(" by ")
    return {
        "type": "LINE",
        "uuid": curve,
        "metricSectionId": "curves",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": curve,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric" if other else "step",
        "selectedXAxisMetricKey": other,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": not other,
        "useGlobalLineSmoothing": True,
    }
