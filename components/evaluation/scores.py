"""A suite's number as lm-eval computed it, and the same over the items that did not stand in the training text, and over those that did."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from lm_eval.api.metrics import pooled_sample_stderr

DRAWS = 200  # of a bootstrap, where lm-eval gives no standard error
PLAIN_FILTERS = ("none", "create_test")  # filters that a metric's name can do without


def score_of(suite: str, loaded: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The suite's first metric with its standard error, the second where there is one, each task's where there are several; and lm-eval's key of the first.

    A suite of several tasks that lm-eval does not average (a tag) is averaged over items, as lm-eval's groups are.
    """
    tasks, found = list(loaded["tasks"]), results["results"]
    keys = _keys(found.get(suite, {})) or _keys(found[tasks[0]])
    items = {task: results["n-samples"][task]["effective"] for task in tasks}
    whole = found[suite] if _keys(found.get(suite, {})) else _averaged(keys, found, items)
    score = _metric(keys[0], whole, sum(items.values()), lambda: _bootstrapped(loaded["tasks"], results, keys[0]))
    if any(results["higher_is_better"].get(task, {}).get(keys[0].partition(",")[0]) is False for task in tasks):
        score["lower_is_better"] = True
    if len(keys) > 1:
        score["second"] = _metric(keys[1], whole, sum(items.values()), lambda: _bootstrapped(loaded["tasks"], results, keys[1]))
    if len(tasks) > 1:
        parts = {task: _metric(keys[0], found[task], items[task]) for task in tasks if keys[0] in found[task]}
        score["subjects"] = {task: {"score": part["score"], "stderr": part["stderr"], "items": items[task]} for task, part in parts.items()}
    return score, keys[0]


def _keys(entry: Mapping[str, Any]) -> list[str]:
    """lm-eval's keys of metrics: metric,filter."""
    return [key for key in entry if "," in key and "_stderr," not in key and isinstance(entry[key], int | float | np.number)]


def _averaged(keys: list[str], found: Mapping[str, Any], items: Mapping[str, int]) -> dict[str, Any]:
    """Means over all items, with lm-eval's pooled standard error."""
    out: dict[str, Any] = {}
    for key in keys:
        tasks = [task for task in items if key in found[task]]
        sizes = [items[task] for task in tasks]
        name, _, filtered = key.partition(",")
        out[key] = sum(found[task][key] * items[task] for task in tasks) / sum(sizes)
        stderrs = [found[task].get(f"{name}_stderr,{filtered}") for task in tasks]
        if all(isinstance(stderr, float) for stderr in stderrs) and sum(sizes) > len(sizes):
            out[f"{name}_stderr,{filtered}"] = float(pooled_sample_stderr(stderrs, sizes))
    return out


def _metric(key: str, results: Mapping[str, Any], count: int, otherwise: Any = None) -> dict[str, Any]:
    name, _, filtered = key.partition(",")
    value = float(results[key])
    stderr = results.get(f"{name}_stderr,{filtered}")
    if not isinstance(stderr, float | int) or math.isnan(stderr):  # lm-eval gives none
        stderr = math.sqrt(value * (1 - value) / count) if 0 <= value <= 1 else otherwise() if otherwise else 0.0  # binomial, as for one item
    return {"metric": name if filtered in PLAIN_FILTERS else key, "score": value, "stderr": float(stderr)}


def _bootstrapped(tasks: Mapping[str, Any], results: Mapping[str, Any], key: str) -> float:
    """The standard error of one task's aggregate that is no mean, such as a perplexity, from DRAWS draws of its items; 0 where there are several tasks."""
    if len(tasks) > 1:
        return 0.0
    ((name, task),) = tasks.items()
    metric, _, filtered = key.partition(",")
    measured = [sample[metric] for sample in results["samples"][name] if sample["filter"] == filtered and metric in sample]
    drawn = random.Random(0)
    return float(np.std([task.aggregation()[metric](drawn.choices(measured, k=len(measured))) for _ in range(DRAWS)], ddof=1))


def with_overlap(score: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The score, and beside it the same over clean and over contaminated items, where somebody looked and the metric is a mean over items."""
    told = [row for row in rows if row["contaminated"] is not None]
    values = [row["score"] for row in rows]
    if not told or None in values or not math.isclose(float(np.mean(values)), score["score"], rel_tol=1e-6, abs_tol=1e-9):
        return score
    parts = {
        name: [row["score"] for row in told if row["contaminated"] is is_contaminated] for name, is_contaminated in (("clean", False), ("contaminated", True))
    }
    return {**score, **{name: _mean(part) for name, part in parts.items()}}


def _mean(values: list[float]) -> dict[str, Any]:
    count = len(values)
    stderr = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else 0.0
    return {"score": float(np.mean(values)) if values else None, "stderr": stderr if values else None, "items": count}
