"""What the data card reads: the counts and reports that the other steps left beside its folder.

What a step does not tell is {} or (): a dataset of generated text alone has a short card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.data.versioning import params
from components.schema.config import BadInput
from components.schema.data import DataConfig
from components.schema.records import file_md5

TEXT_STEPS = ("collect", "clean", "filter", "dedup", "decontaminate")  # each reads the documents of the one before it
STEPS = ("benchmarks", *TEXT_STEPS, "documents", "chats", "preferences", "tokenizer")
LARGEST_CLUSTERS = 30
SHOWN_MEMBERS = 4  # of a cluster


@dataclass(frozen=True)
class Inputs:
    """What the other steps left: by step its counts.json, and the reports beside them; {} or () where there is none."""

    config: DataConfig
    counts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    clusters: tuple[Mapping[str, Any], ...] = ()
    pins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def of(self, step: str, key: str, default: Any = None) -> Any:
        """A key of a step's counts, or `default`."""
        value = self.counts.get(step, {}).get(key)
        return default if value is None else value

    @property
    def last(self) -> dict[str, Any]:
        """The counts of the last text step that ran: what all filters left."""
        return next((self.counts[step] for step in reversed(TEXT_STEPS) if self.counts.get(step)), {})

    def side(self, side: str) -> dict[str, int]:
        """Documents and bytes to train on (train) or held out (heldout)."""
        members = self.of("documents", "by_domain", {}).values()
        return {"documents": self.of("documents", side, 0), "bytes": sum(entry.get(f"{side}_bytes", 0) for entry in members)}


def read(config: DataConfig, data: Path) -> Inputs:
    """What the steps of a dataset left in its folder. Errors: BadInput where not even documents were collected."""
    paths = {step: f"{step}/counts.json" for step in STEPS} | {"tokens": "tokens/tokens.json", "mix": "mix/mix.json", "report": "tokenizer/report.json"}
    there = {name: path for name, path in paths.items() if (data / path).is_file()}
    if not there.keys() & {"collect", "documents"}:
        raise BadInput(f"card: {data} holds no counts of the collect step, so there is nothing to show. Run the steps before it: modelyard data repro RECIPE")
    told = {name: json.loads((data / path).read_text(encoding="utf-8")) for name, path in there.items()}
    return Inputs(
        config,
        counts={step: told[step] for step in STEPS if step in told},
        tokens=told.get("tokens", {}),
        mix=told.get("mix", {}),
        tokenizer=told.get("report", {}),
        clusters=_largest_clusters(data / "dedup/report/clusters.parquet"),
        pins=params.load().get(config.name, {}).get("pins") or {},
        digests={path: file_md5(data / path) for path in there.values()},
    )


def _largest_clusters(path: Path) -> tuple[dict[str, Any], ...]:
    """Members of the largest clusters, the kept one of each first."""
    if not path.is_file():
        return ()
    rows = pq.read_table(path, filters=[("cluster", "<", LARGEST_CLUSTERS)]).to_pylist()
    return tuple(row for i, row in enumerate(rows) if sum(other["cluster"] == row["cluster"] for other in rows[:i]) < SHOWN_MEMBERS)
