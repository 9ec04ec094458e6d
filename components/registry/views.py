"""Prepared pages of MLflow: the curves of one kind of stage, of every run, side by side.

    tags("1")     # of the experiment: the pages, and a note with their links, which stands above the list of runs

By itself MLflow opens the mode for chat applications, hides the stages under their recipe's run, and puts the bars of single figures above the
curves. What its button "Share" keeps as a tag of the experiment (mlflow.sharedViewState.KEY), is written here once, in the form that MLflow 3.17 reads:
runs in one flat list, curves first, and the loss also against the tokens read, an axis on which runs with other batches can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHARED = "mlflow.sharedViewState."  # then the key that the address names
TRAINING = "workflowType=machine_learning"  # else what the browser chose last, and at first the mode for applications
NOTE, OPENING = "mlflow.note.content", "Curves of all runs side by side:"
SECTION = "Model metrics"  # MLflow's own name, so that figures without a prefix that are no curves here follow in it
TRAINED = ("loss", "heldout_loss", "loss by tokens", "tokens_per_s", "lr", "grad_norm")
SAMPLED = ("reward", "kl", "loss", "length", "entropy", "tokens_per_s", "grad_norm")  # by iteration: prompts sampled, answers scored, weights moved
CURVES = {**dict.fromkeys(("pretrain", "sft", "reward", "cost", "judge", "dpo"), TRAINED), **dict.fromkeys(("ppo", "grpo"), SAMPLED)}


def tags(experiment: str) -> dict[str, str]:
    """The experiment's tags that hold the views and their links."""
    links = ", ".join(f"[{stage}]({page(experiment, stage)})" for stage in CURVES)
    return {NOTE: f"{OPENING} {links}", **{f"{SHARED}{key(stage)}": json.dumps(_view(stage, curves), separators=(",", ":")) for stage, curves in CURVES.items()}}


def outdated(kept: Mapping[str, str], experiment: str) -> dict[str, str]:
    """Those of `tags` that are to be written. A note that somebody else wrote stays."""
    ours = kept.get(NOTE, OPENING).startswith(OPENING)
    return {name: text for name, text in tags(experiment).items() if kept.get(name) != text and (name != NOTE or ours)}


def key(stage: str) -> str:
    return f"modelyard-{stage}"


def page(experiment: str, stage: str) -> str:
    """A view's address, from any page of the same server."""
    return f"#/experiments/{experiment}/runs?{TRAINING}&compareRunsMode=CHART&viewStateShareKey={key(stage)}"


def _view(stage: str, curves: tuple[str, ...]) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.`modelyard.stage` = '{stage}'",
        "orderByKey": "attributes.created",  # not start_time, by which stages would be nested and their curves hidden
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "hideEmptyCharts": True,
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
