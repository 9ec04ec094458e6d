"""Calibration: whether a model is right as often as it is sure (Guo et al. 2017, arXiv:1706.04599).

Read off the items of every multiple-choice suite that was measured, so it costs nothing. A model's confidence is the largest share of the softmax over the
log-likelihoods of an item's choices; it is right where that choice is the target.

Figures, by suite, and for `all` items together where there are several suites:
    <suite>/ece               expected calibration error: |accuracy - confidence| over bins of equal width, weighted by their items (Naeini et al. 2015)
    <suite>/ece_of_chance     what a perfectly calibrated model with these confidences would show on as many items, on average: an ece near it is none
    <suite>/overconfidence    mean confidence - accuracy
    <suite>/brier             mean squared distance of the shares from the truth, in [0, 2] (Brier 1950)
    <suite>/accuracy, /confidence, /items
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from components.evaluation.probes.asking import Room
from components.evaluation.probes.rows import Row
from components.schema.probes import CalibrationProbe

DRAWS = 200  # of a calibrated model's answers


def ask_all(room: Room, config: CalibrationProbe) -> list[Row]:
    """One row an item that compares choices: its confidence, and whether it is right."""
    rows = [_row(suite, item) for suite in room.suites for item in _items(room.out / "items" / room.role / f"{suite}.parquet")]
    if not rows:
        room.note("calibration: no suite compares choices, so it is not measured")
    return rows


def figures(rows: list[Row], config: CalibrationProbe, seed: int) -> dict[str, float]:
    """The numbers above, from the rows."""
    groups = {suite: [row for row in rows if row["suite"] == suite] for suite in dict.fromkeys(row["suite"] for row in rows)}
    if len(groups) > 1:
        groups["all"] = rows
    return {f"{name}/{key}": value for name, mine in groups.items() for key, value in _measured(mine, config.bins, seed).items()}


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """The weighted gap over `bins` bins of equal width; a confidence on an edge belongs to the bin below.

    confidence (N,) in [0, 1]; right (N,) True or False, or (draws, N) for as many errors.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (N,)
    gaps = np.stack([np.abs((right - confidence)[..., place == one].sum(-1)) for one in range(bins)])  # (bins, ...)
    return gaps.sum(0) / len(confidence)


def _measured(rows: list[Row], bins: int, seed: int) -> dict[str, float]:
    confidence, right = np.array([row["confidence"] for row in rows]), np.array([row["score"] for row in rows])  # (N,)
    by_luck = np.random.default_rng(seed).random((DRAWS, len(rows))) < confidence  # (DRAWS, N)
    return {
        "ece": float(expected_calibration_error(confidence, right, bins)),
        "ece_of_chance": float(expected_calibration_error(confidence, by_luck, bins).mean()),
        "overconfidence": float((confidence - right).mean()),
        "brier": float(np.mean([row["brier"] for row in rows])),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "items": len(rows),
    }


def _row(suite: str, item: Mapping[str, object]) -> Row:
    logprobs, choices = np.array(item["logprobs"], dtype=float), list(item["choices"])
    shares = np.exp(logprobs - logprobs.max())
    shares /= shares.sum()
    best = int(shares.argmax())
    truth = np.array([choice == item["target"] for choice in choices], dtype=float)
    return {
        "suite": suite, "task": item["task"], "id": item["id"], "item": item["item"], "output": choices[best], "target": item["target"],
        "score": float(truth[best]), "confidence": float(shares[best]), "brier": float(((shares - truth) ** 2).sum()),
    }  # fmt: skip


def _items(path: Path) -> Iterable[dict[str, object]]:
    """Items of a suite that have likelihoods; none where the suite generates."""
    columns = ["task", "id", "item", "target", "choices", "logprobs"]
    return (item for item in pq.read_table(path, columns=columns).to_pylist() if item["logprobs"]) if path.is_file() else ()
