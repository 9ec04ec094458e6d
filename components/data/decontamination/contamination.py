"""What was found of the benchmarks in the documents: collected shard by shard, summed, and told by item, benchmark and domain."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.data.decontamination.benchmarks import Item
from components.data.decontamination.overlap import Index, Shares

SHOWN_DOCUMENTS = 5  # of an item
DOCUMENT = pa.struct([("id", pa.string()), ("overlap", pa.float32()), ("kept", pa.bool_())])
SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("task", pa.string()),  # lm-eval's name
        ("doc_id", pa.int64()),  # lm-eval's number
        ("ngrams", pa.int64()),  # of its largest form; 0 = it is too short or too common to be told, and what follows says nothing
        ("best_overlap", pa.float32()),  # largest share of its n-grams in one document that was kept
        ("total_overlap", pa.float32()),  # share of its n-grams that stand somewhere in what was kept
        ("contaminated", pa.bool_()),  # best_overlap >= min_overlap
        ("best_overlap_before", pa.float32()),  # the same three, in what came in
        ("total_overlap_before", pa.float32()),
        ("contaminated_before", pa.bool_()),
        ("documents", pa.list_(DOCUMENT)),  # of those that came in, the ones with the most of it
    ]
)
_TOP = np.dtype([("item", np.int32), ("share", np.float32), ("kept", bool), ("id", "U16")])


class Found:
    """How much of each item was found in what was kept, and in all that came in (`before`)."""

    def __init__(self, index: Index) -> None:
        self.seen, self.seen_before = (np.zeros(len(index.keys), bool) for _ in range(2))
        self.best, self.best_before = (np.zeros(len(index.benchmarks), np.float32) for _ in range(2))
        self.top = np.zeros(0, _TOP)

    def add(self, rows: np.ndarray, keys: np.ndarray, shares: Shares, ids: np.ndarray, kept: np.ndarray) -> None:
        """Add a table: what `Index.found` and `Index.shares` gave, and each document's id and fate."""
        self.seen_before[keys] = True
        self.seen[keys[kept[rows]]] = True
        stays = kept[shares.row]
        np.maximum.at(self.best_before, shares.item, shares.share.astype(np.float32))
        np.maximum.at(self.best, shares.item[stays], shares.share[stays].astype(np.float32))
        top = np.zeros(len(shares.row), _TOP)
        top["item"], top["share"], top["kept"], top["id"] = shares.item, shares.share, stays, ids[shares.row]
        self._keep_top(top)

    def merge(self, path: Path) -> None:
        """Add what another shard's was `save`d as; shards in their order."""
        with np.load(path) as file:
            self.seen |= _unpacked(file["seen"], len(self.seen))
            self.seen_before |= _unpacked(file["seen_before"], len(self.seen))
            self.best, self.best_before = np.maximum(self.best, file["best"]), np.maximum(self.best_before, file["best_before"])
            self._keep_top(file["top"])

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path, seen=np.packbits(self.seen), seen_before=np.packbits(self.seen_before), best=self.best, best_before=self.best_before, top=self.top
        )

    def _keep_top(self, more: np.ndarray) -> None:
        """Of each item the documents with the most of it, of equals the first."""
        both = np.concatenate([self.top, more])
        both = both[np.lexsort((-both["share"], both["item"]))]
        place = np.arange(len(both)) - np.searchsorted(both["item"], both["item"])
        self.top = both[place < SHOWN_DOCUMENTS]


def _unpacked(bits: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(bits, count=count).astype(bool)


class Matrix:
    """Documents and items that meet, by domain and benchmark."""

    def __init__(self) -> None:
        self.documents: Counter[tuple[str, str]] = Counter()
        self.items: dict[tuple[str, str], set[int]] = {}

    def enter(self, domain: str, benchmark: str, item: int, is_new: bool) -> None:
        """A document of the domain holds an item; `is_new`: it is the document's first of this benchmark."""
        self.documents[domain, benchmark] += is_new
        self.items.setdefault((domain, benchmark), set()).add(item)

    def plain(self) -> list[list[Any]]:
        """[domain, benchmark, documents, items] each, as JSON takes it."""
        return [[*pair, self.documents[pair], sorted(items)] for pair, items in sorted(self.items.items())]


def table(plain_matrices: Iterable[list[list[Any]]]) -> dict[str, dict[str, dict[str, int]]]:
    """{domain: {benchmark: {"documents", "items"}}} of all shards; an item that several shards have counts once."""
    documents: Counter[tuple[str, str]] = Counter()
    met: dict[tuple[str, str], set[int]] = {}
    for domain, benchmark, count, items in (entry for matrix in plain_matrices for entry in matrix):
        documents[domain, benchmark] += count
        met.setdefault((domain, benchmark), set()).update(items)
    told: dict[str, dict[str, dict[str, int]]] = {}
    for (domain, benchmark), items in sorted(met.items()):
        told.setdefault(domain, {})[benchmark] = {"documents": documents[domain, benchmark], "items": len(items)}
    return told


def report(items: Sequence[Item], index: Index, found: Found, min_overlap: float) -> pa.Table:
    """One row an item, in SCHEMA."""
    ends = np.searchsorted(found.top["item"], np.arange(len(items) + 1))
    documents = [[{"id": str(t["id"]), "overlap": t["share"], "kept": bool(t["kept"])} for t in found.top[a:b]] for a, b in itertools.pairwise(ends)]
    columns = {
        "benchmark": [item.benchmark for item in items],
        "task": [item.task for item in items],
        "doc_id": [item.doc_id for item in items],
        "ngrams": index.ngrams,
        "best_overlap": found.best,
        "total_overlap": index.totalled(found.seen).astype(np.float32),
        "contaminated": found.best >= np.float32(min_overlap),
        "best_overlap_before": found.best_before,
        "total_overlap_before": index.totalled(found.seen_before).astype(np.float32),
        "contaminated_before": found.best_before >= np.float32(min_overlap),
        "documents": pa.array(documents, pa.list_(DOCUMENT)),
    }
    return pa.table(columns, schema=SCHEMA)


def by_benchmark(report: pa.Table) -> dict[str, dict[str, int]]:
    """{benchmark: {"items", "cannot_be_told", "contaminated_before", "contaminated"}}"""
    told = {}
    for name in sorted(report["benchmark"].unique().to_pylist()):
        rows = report.filter(pc.equal(report["benchmark"], name))
        counts = {column: pc.sum(rows[column]).as_py() for column in ("contaminated_before", "contaminated")}
        told[name] = {"items": rows.num_rows, "cannot_be_told": pc.sum(pc.equal(rows["ngrams"], 0)).as_py(), **counts}
    return told
