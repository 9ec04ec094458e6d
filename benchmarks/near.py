"""Near copies by exact Jaccard similarity, every pair against every other, to judge what MinHash finds.

A shingle here is five words as Python's `\\w+` finds them in the lower-cased text: no code of either side is used for the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from scipy import sparse

SHINGLE_WORDS = 5
Pair = tuple[int, int]


def exact_pairs(texts: Sequence[str], least: float = 0.2) -> dict[Pair, float]:
    """Every pair (i, j), i < j, of at least this similarity."""
    rows, columns = [], []
    for i, text in enumerate(texts):
        shingles = _shingles(text)
        rows.append(np.full(len(shingles), i))
        columns.append(np.fromiter(shingles, np.uint64, len(shingles)))
    ids, column = np.unique(np.concatenate(columns), return_inverse=True)
    sets = sparse.csr_matrix((np.ones(len(column), np.int32), (np.concatenate(rows), column)), shape=(len(texts), len(ids)))
    common = sparse.triu(sets @ sets.T, k=1).tocoo()
    sizes = np.diff(sets.indptr)
    similarity = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    near = similarity >= least
    return dict(zip(zip(common.row[near].tolist(), common.col[near].tolist(), strict=True), similarity[near].tolist(), strict=True))


def _shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    grams = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))
    return {int.from_bytes(blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest(), "little") for gram in grams}


def meeting(keys: Iterable[np.ndarray], ids: Iterable[np.ndarray]) -> set[Pair]:
    """Pairs of documents with equal keys in some band: keys and the documents' numbers, band by band."""
    found: set[Pair] = set()
    for band, numbers in zip(keys, ids, strict=True):
        order = np.argsort(band, kind="stable")
        for group in np.split(numbers[order], np.flatnonzero(np.diff(band[order])) + 1):
            if len(group) > 1:
                members = sorted(group.tolist())
                found.update((a, b) for i, a in enumerate(members) for b in members[i + 1 :])
    return found


def datatrove_pairs(signatures: Path, rows_per_band: int) -> set[Pair]:
    """Pairs that meet in datatrove's signature files: a record is the band's hashes (uint64 each) and the document's number (uint32)."""
    record = np.dtype([("hashes", "<u8", rows_per_band), ("document", "<u4")])
    bands = [np.fromfile(file, record) for file in sorted(signatures.glob("bucket_*/*.minhash.sig"))]
    keys = [np.unique(band["hashes"], axis=0, return_inverse=True)[1].ravel() for band in bands]
    return meeting(keys, [band["document"].astype(np.int64) for band in bands])


@dataclass(frozen=True)
class Quality:
    """How well found pairs match the true ones."""

    recall: float
    """Share of the pairs of at least the threshold that were found"""
    precision: float
    """Share of what was found that has at least the threshold"""
    pairs: int
    """Pairs of at least the threshold"""


def quality(found: set[Pair], truth: dict[Pair, float], threshold: float) -> Quality:
    near = {pair for pair, similarity in truth.items() if similarity >= threshold}
    hits = len(found & near)
    return Quality(hits / max(len(near), 1), hits / max(len(found), 1), len(near))
