"""What runs now: of each stage at work its loss, speed, step and what it has still to do, as MLflow heard of them last.

A stage sends its curve to MLflow every two seconds, and what its machine does every ten. So "last heard of" old and still RUNNING means that
its process is gone or hangs. A run that was left RUNNING more than a day ago is not counted: nobody works on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from flows.exported.tracker import Tracker, tags

FORGOTTEN_S = 24 * 3600
LABELS = ("stage", "recipe", "run")
TOTALS = ("steps", "iterations")  # how a stage's section calls what it does so often
# MLflow's key, and what it is here: a name, a factor and an explanation.
SHOWN: dict[str, tuple[str, float, str]] = {
    "loss": ("modelyard_training_loss", 1, "Loss of the last step that was logged, in nats."),
    "heldout_loss": ("modelyard_training_heldout_loss", 1, "Loss on held-out data when it was last measured, in nats."),
    "lr": ("modelyard_training_learning_rate", 1, "Learning rate."),
    "grad_norm": ("modelyard_training_grad_norm", 1, "Norm of the gradient before it is clipped."),
    "tokens": ("modelyard_training_tokens", 1, "Tokens read since the stage's first step, by all its processes and starts."),
    "tokens_per_s": ("modelyard_training_tokens_per_second", 1, "Tokens read a second since the loss was logged before."),
    "share_of_peak": ("modelyard_training_share_of_peak", 1, "Arithmetic done, as a share of what the devices could do at most."),
    "steps_left_out": ("modelyard_training_steps_left_out", 1, "Steps that were left out for a spike of the loss or the gradient."),
    "reward": ("modelyard_training_reward", 1, "Mean reward of the answers (alignment)."),
    "kl": ("modelyard_training_kl", 1, "Divergence from the model that alignment began with, in nats an answer."),
    "accuracy": ("modelyard_training_accuracy", 1, "Share of pairs that are ordered as people ordered them (reward models)."),
    "system/cpu_utilization_percentage": ("modelyard_stage_machine_cpu_share", 0.01, "Share of its machine's processor that is busy, all programs together."),
    "system/stage_memory_usage_megabytes": ("modelyard_stage_memory_bytes", 1e6, "Memory of the stage's processes."),
}


class Training:
    """Stages that MLflow takes to be running; `collect` looks once."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def collect(self) -> list[Metric]:
        """Errors: OSError where the server does not answer, ValueError where it answers something else."""
        families = {name: GaugeMetricFamily(name, what, labels=LABELS) for name, _, what in SHOWN.values()}
        families |= {name: GaugeMetricFamily(name, what, labels=LABELS) for name, what in _OF_A_RUN.items()}
        for run in self.tracker.stages("attributes.status = 'RUNNING'"):
            labels = _labels(run)
            for name, value in _numbers(run, time.time()):
                families[name].add_metric(labels, value)
        return [*families.values()]


_OF_A_RUN = {
    "modelyard_stage_began_timestamp_seconds": "When a running stage was first begun.",
    "modelyard_stage_heard_timestamp_seconds": "When a running stage was last heard of.",
    "modelyard_training_step": "Steps (or iterations) done.",
    "modelyard_training_steps": "Steps (or iterations) that it is to do.",
    "modelyard_training_step_timestamp_seconds": "When the last step was logged.",
}


def _labels(run: dict[str, Any]) -> tuple[str, str, str]:
    known = tags(run["data"])
    return known.get("modelyard.stage", "unknown"), known.get("modelyard.recipe", "unknown"), known.get("modelyard.stage_identity", run["info"]["run_id"])[:8]


def _numbers(run: dict[str, Any], now: float) -> Iterator[tuple[str, float]]:
    """Names and values of one running stage; none where it was forgotten."""
    began, seen = int(run["info"]["start_time"]) / 1000, {row["key"]: row for row in run["data"].get("metrics", ())}
    heard = max([began, *(int(row["timestamp"]) / 1000 for row in seen.values())])
    if now - heard > FORGOTTEN_S:
        return
    yield "modelyard_stage_began_timestamp_seconds", began
    yield "modelyard_stage_heard_timestamp_seconds", heard
    for key, (name, factor, _) in SHOWN.items():
        if key in seen:
            yield name, float(seen[key]["value"]) * factor
    if total := _total(run):
        yield "modelyard_training_steps", total
        yield "modelyard_training_step", float(int(seen["loss"]["step"]) + 1 if "loss" in seen else 0)
    if "loss" in seen:
        yield "modelyard_training_step_timestamp_seconds", int(seen["loss"]["timestamp"]) / 1000


def _total(run: dict[str, Any]) -> float | None:
    """Of its parameters `sft.steps`, `align.iterations` and the like; None for a stage that does not train."""
    for row in run["data"].get("params", ()):
        section, _, field = row["key"].partition(".")
        if section and field in TOTALS:
            return float(row["value"])
    return None
