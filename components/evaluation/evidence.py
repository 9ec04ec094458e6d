"""What the gate reads of an evaluation: its figures, and of every item its score and how much of it the training data holds.

    evidence = read(evaluate_folder, role="policy")
    keep(evidence, folder); restore(folder)          # what goes with a released version, so that its challenger meets it item by item

An item is known by its task, the md5 of its document, and its turn where a document stands several times. What was asked and answered stays
in the evaluate folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from components.schema.config import BadInput
from components.schema.records import Record

KINDS = ("perplexity", "probes")  # figures by role, besides the scores


class Items(NamedTuple):
    """One suite's items, sorted by key."""

    keys: np.ndarray
    """(N,) task/md5/turn."""
    scores: np.ndarray
    """(N,) the suite's metric on each item."""
    overlap: np.ndarray
    """(N,) share of the item's n-grams in the training data; NaN = not looked."""


@dataclass(frozen=True)
class Evidence:
    """One model as one evaluation measured it."""

    scores: Mapping[str, Mapping[str, Any]]
    """By suite: metric, score, stderr, items."""
    items: Mapping[str, Items] = field(default_factory=dict)
    """By suite; a suite without items is compared by its score alone."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What limits can be set on, besides scores: perplexity, probes, size, latency."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By suite, how it was asked, as far as the evaluation recorded it: two suites asked in different ways cannot be compared."""

    def figure(self, path: str) -> float | None:
        """A number by its dotted path, such as probes.refusals.refused_harmful; None where it was not measured."""
        node: Any = {**self.figures, "scores": self.scores}
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return None
            node = node[key]
        return float(node) if isinstance(node, int | float) else None

    def contaminated(self, suite: str) -> float | None:
        """Share of a suite's items that stand in the training data, by the data engine's rule; None where nobody looked."""
        parts = [(self.scores.get(suite, {}).get(part) or {}).get("items") for part in ("clean", "contaminated")]
        return parts[1] / sum(parts) if None not in parts and sum(parts) else None

    def with_figures(self, **kinds: Any) -> Evidence:
        return replace(self, figures={**self.figures, **kinds})


def read(folder: Path, role: str) -> Evidence:
    """An evaluate stage's folder. Errors: BadInput where it is none, has no such role, or an item file is damaged."""
    record = Record.read(folder)
    measured = record.figures.get("scores", {})
    if role not in measured:
        raise BadInput(f"gate: {folder} measured no {role!r}, so there is nothing to decide about. It measured: {', '.join(measured) or 'nothing'}")
    items = {}
    for suite in measured[role]:
        path = folder / "items" / role / f"{suite}.parquet"
        if path.is_file():
            items[suite] = _items(pd.read_parquet(path, columns=["task", "id", "item", "score", "overlap"]))
    figures = {kind: record.figures[kind][role] for kind in KINDS if role in (record.figures.get(kind) or {})}
    return Evidence(measured[role], items, figures, settings(record, role))


def settings(record: Record, role: str) -> dict[str, dict[str, Any]]:
    """By suite: the version of its tasks, its number of worked examples, the longest answer, and whether it was asked through the chat template."""
    versions, asked = record.figures.get("tasks") or {}, record.figures.get("settings") or {}
    shots, chat = asked.get("fewshot") or {}, (asked.get("chat_template") or {}).get(role)
    return {
        suite: {"version": versions.get(suite), "fewshot": shots.get(suite), "max_new_tokens": asked.get("max_new_tokens"), "chat_template": chat}
        for suite in record.figures["scores"][role]
    }


def keep(evidence: Evidence, folder: Path) -> None:
    """Write evidence.json and items.parquet; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"scores": evidence.scores, "figures": evidence.figures, "settings": evidence.settings}
    (folder / "evidence.json").write_text(json.dumps(plain, indent=1, sort_keys=True), encoding="utf-8")
    frames = [pd.DataFrame({"suite": suite, "key": items.keys, "score": items.scores, "overlap": items.overlap}) for suite, items in evidence.items.items()]
    if frames:
        pd.concat(frames).to_parquet(folder / "items.parquet", index=False)


def restore(folder: Path) -> Evidence:
    """What `keep` wrote."""
    plain = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    path, items = folder / "items.parquet", {}
    if path.is_file():
        for suite, part in pd.read_parquet(path).groupby("suite", sort=False):
            items[str(suite)] = Items(*(part[name].to_numpy() for name in ("key", "score", "overlap")))
    return Evidence(plain["scores"], items, plain["figures"], plain["settings"])


def of_scores(scores: Mapping[str, float], overlap: float = np.nan) -> Items:
    """Items from a plain mapping of key to score."""
    keys = np.array(sorted(scores))
    return Items(keys, np.array([scores[key] for key in keys], dtype=float), np.full(len(keys), overlap))


def with_turns(frame: pd.DataFrame) -> pd.DataFrame:
    """The items in the order of their numbers, with `turn`: how many times the same document stood in the task before."""
    frame = frame.sort_values(["task", "id"], kind="stable")
    return frame.assign(turn=frame.groupby(["task", "item"]).cumcount())


def _items(frame: pd.DataFrame) -> Items:
    frame = with_turns(frame[frame["score"].notna()])
    keys = (frame["task"] + "/" + frame["item"] + "/" + frame["turn"].astype(str)).to_numpy(dtype=str)
    order = np.argsort(keys)
    return Items(keys[order], frame["score"].to_numpy(float)[order], frame["overlap"].to_numpy(float, na_value=np.nan)[order])
