"""What chats, pairs and documents share: which side of the split a text is on, drops counted by reason, JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 120


class Drops:
    """Counts what is dropped by reason and keeps a few examples of each."""

    def __init__(self) -> None:
        self.reasons: dict[str, dict[str, Any]] = {}

    def add(self, reason: str, example: str) -> None:
        entry = self.reasons.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES_PER_REASON:
            entry["examples"].append(example[:EXAMPLE_CHARACTERS])


def order(text: str) -> str:
    """The md5 of a text: decides its side of the split and its place in the file, whatever else is in the data."""
    return hashlib.md5(text.encode()).hexdigest()


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a text is on the held-out side. Adding or removing other texts does not move it."""
    return int(order(text)[:8], 16) < fraction * 2**32


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a file that one of our steps wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_counts(folder: Path, counts: dict[str, Any]) -> None:
    """counts.json: what a person reads to see what a step did."""
    (folder / "counts.json").write_text(json.dumps(counts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
