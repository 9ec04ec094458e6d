"""Overlap: how much of each benchmark item stands in what is learnt from, for the evaluation to join to its per-item results.

    overlap.parquet     task, doc_id: lm-eval's name and number of the item
                        overlap: largest share of its n-grams in one document, chat or preference that was kept for training; null = it is too short to be told
                        contaminated: whether that is at least decontaminate.min_overlap
                        found_in: documents, chats or preferences, where most of it stands; null where nothing does

A part of its own: what was found says nothing about the tokens, so a new benchmark does not train a model anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.data import curriculum, split
from components.data.decontamination import benchmarks
from components.data.decontamination.overlap import Index
from components.schema.data import DataConfig

ROWS_AT_ONCE = 512
KINDS = ("documents", "chats", "preferences")


def run(config: DataConfig, folder: Path) -> None:
    """Write overlap.parquet and counts.json. Documents were compared by the decontaminate step; chats and preferences are read here."""
    dataset, options = folder.parent, config.decontaminate
    report = pq.read_table(dataset / "decontaminate/report/items.parquet", columns=["task", "doc_id", "ngrams", "best_overlap"])
    index = Index.build(benchmarks.items(dataset / "benchmarks"), options.ngram_words)
    shares = np.stack(
        [report["best_overlap"].to_numpy().astype(np.float64), *(_best(index, dataset / kind / "train.jsonl") for kind in KINDS[1:])]
    )  # (kinds, items)
    best, where, told = shares.max(0), shares.argmax(0), report["ngrams"].to_numpy() > 0
    table = pa.table(
        {
            "task": report["task"],
            "doc_id": report["doc_id"],
            "overlap": pa.array(best, mask=~told),
            "contaminated": pa.array(best >= np.float32(options.min_overlap), mask=~told),
            "found_in": pa.array([KINDS[i] for i in where], mask=~told | (best == 0)),
        }
    )
    pq.write_table(table, folder / "overlap.parquet", compression="zstd")
    split.write_counts(
        folder, {"items": table.num_rows, "cannot_be_told": int((~told).sum()), "contaminated": int((told & (best >= np.float32(options.min_overlap))).sum())}
    )


def _best(index: Index, path: Path) -> np.ndarray:
    """Of each item the largest share in one line of a file: (items,) float64."""
    best = np.zeros(len(index.benchmarks))
    rows = _texts(path)
    while texts := list(islice(rows, ROWS_AT_ONCE)):
        found = index.shares(*index.found(texts))
        np.maximum.at(best, found.item, found.share)
    return best


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield curriculum.as_text(json.loads(line))
