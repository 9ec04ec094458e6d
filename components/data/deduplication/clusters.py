"""Clusters of copies: who belongs together, who of them stays, and a report that a person can read.

Two documents are in one cluster when a chain of copies leads from one to the other (connected components), so the ends of a long chain may
differ by more than the threshold; `similarity` in the report is to the one that was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from components.data import shuffle
from components.data.deduplication import minhash

SHOWN_CLUSTERS = 10_000  # the largest ones
SHOWN_MEMBERS = 10  # of each: the kept one and the first others
EXCERPT_CHARACTERS = 300
EXACT, NEAR = 1, 2  # why a document is left out; 0 = it stays

SCHEMA = pa.schema(
    [
        ("cluster", pa.int64()),  # rank by size, 0 = the largest
        ("size", pa.int64()),  # documents in it, shown here or not
        ("id", pa.string()),
        ("kept", pa.bool_()),
        ("kind", pa.string()),  # exact or near: why it was left out; null for the kept one
        ("similarity", pa.float32()),  # Jaccard to the kept one, estimated from signatures; 1 for exact copies
        ("source", pa.string()),
        ("domain", pa.string()),
        ("url", pa.string()),
        ("excerpt", pa.string()),
    ]
)


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur in pairs (`shuffle.pack`), ascending, and a label for each: equal labels = connected."""
    a, b = shuffle.unpack(pairs)
    ids, ends = np.unique(np.concatenate([a, b]), return_inverse=True)
    graph = coo_matrix((np.ones(len(pairs), bool), (ends[: len(pairs)], ends[len(pairs) :])), shape=(len(ids), len(ids)))
    return ids, connected_components(graph, directed=False)[1]


def forest(pairs: np.ndarray) -> np.ndarray:
    """Fewer pairs that connect the same: each id with the smallest of its component."""
    if not len(pairs):
        return pairs
    ids, labels = components(pairs)
    _, first, of = np.unique(labels, return_index=True, return_inverse=True)
    least = ids[first[of]]  # ids ascend, so a label's first is its smallest
    return np.sort(shuffle.pack(least, ids)[least != ids])


def keepers(pairs: np.ndarray, quality: np.ndarray, keeper: np.ndarray) -> None:
    """Write into `keeper` (documents,) who stays for each id in `pairs`: the highest quality of its cluster, of equals the first."""
    if len(pairs):
        ids, labels = components(pairs)
        order = np.lexsort((ids, -quality[ids], labels))
        ranked = labels[order]
        first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        keeper[ids[order]] = np.repeat(ids[order][first], np.diff(np.r_[first, len(ids)]))


def shown(keeper: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Which documents the report shows, and what is said of all clusters.

    keeper: (documents,) uint32. Returns (shown, 3) int64, of id, cluster and size, by ascending id.
    """
    sizes = np.bincount(keeper, minlength=len(keeper)) if len(keeper) else np.zeros(0, np.int64)
    several = np.flatnonzero(sizes > 1)
    largest = several[np.argsort(-sizes[several], kind="stable")][:SHOWN_CLUSTERS]
    rank = np.full(len(keeper), -1, np.int64)
    rank[largest] = np.arange(len(largest))
    members = np.flatnonzero(rank[keeper] >= 0)
    of = rank[keeper[members]]
    order = np.lexsort((members, keeper[members] != members, of))
    members, of = members[order], of[order]
    place = np.arange(len(of)) - np.searchsorted(of, of)  # 0 = the kept one
    chosen = place < SHOWN_MEMBERS
    rows = np.column_stack([members[chosen], of[chosen], sizes[largest][of[chosen]]]).astype(np.int64).reshape(-1, 3)
    edges, counts = np.unique(1 << np.log2(sizes[several]).astype(np.int64), return_counts=True)
    told = {
        "count": len(several),
        "documents": int(sizes[several].sum()),
        "largest": int(sizes[several].max(initial=0)),
        "sizes": {str(edge): int(count) for edge, count in zip(edges, counts, strict=True)},
    }
    return rows[np.argsort(rows[:, 0])], told


def rows_of(table: pa.Table, clusters: np.ndarray, state: np.ndarray, similarity: np.ndarray) -> pa.Table:
    """Rows of the report. All have one entry for each row of `table`; clusters: (rows, 2) of cluster and size."""
    columns = {
        "cluster": clusters[:, 0],
        "size": clusters[:, 1],
        "id": table["id"],
        "kept": state == 0,
        "kind": pa.array([(None, "exact", "near")[s] for s in state], pa.string()),
        "similarity": similarity.astype(np.float32),
        **{name: table[name] for name in ("source", "domain", "url")},
        "excerpt": pc.utf8_slice_codeunits(table["text"], 0, EXCERPT_CHARACTERS),
    }
    return pa.table(columns, schema=SCHEMA)


def write(parts: Sequence[Path], folder: Path) -> None:
    """folder/report/clusters.parquet out of the tasks' parts: by cluster, the kept one first."""
    tables = [pq.read_table(path) for path in parts]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    order = np.lexsort((np.arange(table.num_rows), ~table["kept"].to_numpy(), table["cluster"].to_numpy()))
    (folder / "report").mkdir(parents=True, exist_ok=True)
    pq.write_table(table.take(pa.array(order)), folder / "report/clusters.parquet", compression="zstd")


def signatures_of(ids: np.ndarray, files: Sequence[str], starts: Sequence[int]) -> np.ndarray:
    """Signatures of documents, (ids, permutations), out of one file a shard; shard s holds the ids from starts[s] on."""
    shard = np.searchsorted(np.asarray(starts), ids, side="right") - 1
    parts, places = [], []
    for s in np.unique(shard):
        here = np.flatnonzero(shard == s)
        parts.append(np.load(files[s], mmap_mode="r")[ids[here] - starts[s]])  # mapped anew each time: no page stays
        places.append(here)
    return np.concatenate(parts)[np.argsort(np.concatenate(places))]


def similarities(a: np.ndarray, b: np.ndarray, files: Sequence[str], starts: Sequence[int], batch: int = 65_536) -> np.ndarray:
    """Estimated Jaccard similarity of documents a[i] and b[i], (n,)."""
    parts = [np.zeros(0)]
    for at in range(0, len(a), batch):
        parts.append(minhash.similarity(*(signatures_of(side[at : at + batch], files, starts) for side in (a, b))))
    return np.concatenate(parts)
