"""The shuffle between two maps: 64-bit keys, sorted where they are made, gathered range by range where equal ones must meet.

A map task leaves a run, its keys in order with a number (the row, say) for each. A reduce task takes one range of keys out of
every run by binary search in the mapped files, so it reads its share and no more, and the number of ranges can follow from the number
of keys, which nobody knows before all maps are done.

    save(out / "copies", keys, rows)                                    # in the map
    for first, last in ranges(entries): ...                             # one reduce task each
    keys, ids = between(runs, starts, first, last)                      # in the reduce: sorted, equal keys in the order of runs

A reduce task holds ENTRIES keys of 8 bytes with their ids of 4, the same again sorted, and 8 bytes a key for the order: about 130 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ENTRIES = 4_000_000  # keys in a range
LARGEST = 2**64 - 1
LOW = np.uint64(2**32 - 1)


def save(run: Path, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Write a run: keys (n,) uint64 and their numbers (n,) uint32, sorted by key; equal keys stay in the order given."""
    order = np.argsort(keys, kind="stable")
    np.save(f"{run}.keys.npy", keys[order])
    np.save(f"{run}.numbers.npy", numbers[order].astype(np.uint32))


def ranges(entries: int) -> list[tuple[int, int]]:
    """Equal ranges of keys, (first, last) with both ends inside, of about ENTRIES uniformly spread keys each."""
    count = max(1, -(-entries // ENTRIES))
    edges = [i * (LARGEST + 1) // count for i in range(count + 1)]
    return [(low, high - 1) for low, high in itertools.pairwise(edges)]


def between(runs: Sequence[str | Path], starts: Sequence[int], first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys in a range and their ids (number + start of the run, uint32), sorted by key; equal keys in ascending order of id."""
    keys, ids = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    for run, start in zip(runs, starts, strict=True):
        all_keys = _mapped(f"{run}.keys.npy")
        low, high = np.searchsorted(all_keys, np.uint64(first)), np.searchsorted(all_keys, np.uint64(last), side="right")
        keys.append(np.array(all_keys[low:high]))
        ids.append(_mapped(f"{run}.numbers.npy")[low:high] + np.uint32(start))
    gathered, of = np.concatenate(keys), np.concatenate(ids)
    order = np.argsort(gathered, kind="stable")
    return gathered[order], of[order]


def pack(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two ids as one uint64 that sorts by a, then b."""
    return a.astype(np.uint64) << np.uint64(32) | b.astype(np.uint64)


def unpack(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `pack` packed, uint32 each."""
    return (pairs >> np.uint64(32)).astype(np.uint32), (pairs & LOW).astype(np.uint32)


def pairs_from(files: Sequence[str | Path], low: int, high: int) -> np.ndarray:
    """Sorted pairs (uint64), each once, whose first id is at least `low` and below `high`, out of files of sorted pairs."""
    found = [np.empty(0, np.uint64)]
    for file in files:
        pairs = _mapped(file)
        found.append(np.array(pairs[np.searchsorted(pairs, np.uint64(low << 32)) : np.searchsorted(pairs, np.uint64(high << 32))]))
    return np.unique(np.concatenate(found))


def _mapped(path: str | Path) -> np.ndarray:
    """A file's array, read where it is touched; an empty one cannot be mapped."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        return np.load(path)
