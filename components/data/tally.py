"""The tally of a step: what it kept, what it dropped and why, with a few examples of each; tallies of shards add up.

`counts.json` of a step is a tally and whatever else the step has to say:

    documents, bytes            what was kept
    by_domain, by_source, by_language, by_licence      {name: {"documents": n, "bytes": n}}
    dropped                     {reason: {"count": n, "bytes": n, "examples": ["source: text ...", ...]}}
    changed                     {what was done: how often}: lines removed, addresses replaced
    histograms                  {name: {lower edge: count}}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.data.shards import text_bytes

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 160
GROUPS = ("domain", "source", "language", "licence")


class Tally:
    """Counts of one step or shard."""

    def __init__(self) -> None:
        self.documents = self.bytes = 0
        self.groups: dict[str, dict[str, Counter[str]]] = {group: {} for group in GROUPS}
        self.dropped: dict[str, dict[str, Any]] = {}
        self.changed: Counter[str] = Counter()
        self.histograms: dict[str, Counter[str]] = {}

    def keep(self, table: pa.Table) -> None:
        """Count the rows of a table as kept."""
        sizes = text_bytes(table)
        self.documents += table.num_rows
        self.bytes += sum(sizes)
        for group, members in self.groups.items():
            for name, size in zip(table[group].to_pylist(), sizes, strict=True):
                entry = members.setdefault(name or "unknown", Counter())
                entry["documents"] += 1
                entry["bytes"] += size
        self.measure("document_bytes", (1 << size.bit_length() >> 1 for size in sizes))

    def drop(self, reason: str, example: str, size: int | None = None) -> None:
        """Count one dropped document; `size` is its bytes of text, where they are not the example's."""
        entry = self.dropped.setdefault(reason, {"count": 0, "bytes": 0, "examples": []})
        entry["count"] += 1
        entry["bytes"] += len(example.encode("utf-8", "replace")) if size is None else size
        if len(entry["examples"]) < EXAMPLES_PER_REASON:
            entry["examples"].append(_shown(example))

    def change(self, what: str, count: int = 1) -> None:
        """Count something that was done to a text that stays."""
        if count:
            self.changed[what] += count

    def measure(self, histogram: str, edges: Iterable[float | int]) -> None:
        """Add values, each given as the lower edge of its bin."""
        self.histograms.setdefault(histogram, Counter()).update(f"{edge:g}" for edge in edges)

    def add(self, other: dict[str, Any]) -> None:
        """Add another tally, as `plain` gave it."""
        self.documents += other["documents"]
        self.bytes += other["bytes"]
        for group in GROUPS:
            for name, entry in other[f"by_{group}"].items():
                self.groups[group].setdefault(name, Counter()).update(entry)
        for reason, entry in other["dropped"].items():
            mine = self.dropped.setdefault(reason, {"count": 0, "bytes": 0, "examples": []})
            mine["count"] += entry["count"]
            mine["bytes"] += entry["bytes"]
            mine["examples"] = (mine["examples"] + entry["examples"])[:EXAMPLES_PER_REASON]
        self.changed.update(other["changed"])
        for name, bins in other["histograms"].items():
            self.histograms.setdefault(name, Counter()).update(bins)

    def plain(self) -> dict[str, Any]:
        """The tally as JSON-able data, keys in a fixed order."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            **{f"by_{group}": {name: dict(entry) for name, entry in sorted(members.items())} for group, members in self.groups.items()},
            "dropped": dict(sorted(self.dropped.items())),
            "changed": dict(sorted(self.changed.items())),
            "histograms": {name: dict(sorted(bins.items(), key=lambda item: float(item[0]))) for name, bins in sorted(self.histograms.items())},
        }


def summed(parts: Iterable[dict[str, Any]]) -> Tally:
    """The sum of plain tallies, in their order."""
    tally = Tally()
    for part in parts:
        tally.add(part)
    return tally


def write(folder: Path, counts: dict[str, Any]) -> None:
    """counts.json: what a person reads to see what a step did."""
    (folder / "counts.json").write_text(json.dumps(counts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """A step's counts.json."""
    return json.loads((folder / "counts.json").read_text(encoding="utf-8"))


def _shown(text: str) -> str:
    """The beginning of a text, with nothing in it that a terminal or a JSON reader would stumble over."""
    return text[:EXAMPLE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
