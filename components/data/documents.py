"""Documents: gather every source and the curriculum, drop what is empty, twice there or part of a benchmark, split by hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from components.data import curriculum, sources, split
from components.schema.config import BadInput
from components.schema.data import DataConfig


def run(config: DataConfig, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl and counts.json. Errors: BadInput from a source, or where nothing is left."""
    drops = split.Drops()
    kept = dict(_clean(config, drops))
    if not kept:
        reasons = {reason: entry["count"] for reason, entry in drops.reasons.items()}
        raise BadInput(f"documents: dataset {config.name!r} is empty after cleaning (dropped: {reasons or 'nothing was read'}). Add sources or a curriculum")
    items = [{"text": text, "source": source} for text, source in kept.items()]
    sides = split.write_split(items, lambda item: item["text"], config.heldout_fraction, folder, "documents")
    by_source = dict(sorted(Counter(kept.values()).items()))
    counts = {"documents": len(kept), "bytes": sum(len(text.encode()) for text in kept), **sides, "by_source": by_source, "dropped": drops.reasons}
    split.write_counts(folder, counts)


def _clean(config: DataConfig, drops: split.Drops) -> Iterator[tuple[str, str]]:
    """Stripped texts, each once, none with a held-out item of the curriculum in it."""
    seen: set[str] = set()
    for text, label, reason in _gather(config):
        text = text.strip()
        reason = reason or ("empty" if not text else "duplicate" if text in seen else None)
        if reason:
            drops.add(reason, f"{label}: {text}")
        else:
            seen.add(text)
            yield text, label


def _gather(config: DataConfig) -> Iterator[tuple[str, str, str | None]]:
    """Text, source, and why it must not be trained on, if so. Curriculum texts were checked when they were made."""
    guard = curriculum.Guard(config.curriculum.seed) if config.curriculum else None
    for source in config.sources:
        for text, label in sources.documents(source):
            yield text, label, guard.reason(text) if guard else None
    if config.curriculum:
        for text, label in curriculum.documents(config.curriculum):
            yield text, label, None
