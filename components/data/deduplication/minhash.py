"""MinHash signatures and the bands that find near copies without comparing every pair.

A document is the set of its word n-grams (shingles). The share of equal places in two signatures estimates the Jaccard
similarity of two such sets (Broder 1997); signatures cut into bands of rows meet in some band with probability
1 - (1 - s^rows)^bands at similarity s (Indyk and Motwani 1998), so that near copies are found by equal keys alone.

    banding = bands(0.75, 112)                            # Banding(bands=..., rows=...)
    keys = band_keys(signatures(texts, 112, 5), banding)  # (rows, bands): two equal keys in a column = candidates

A permutation is a multiply-add of 64 bits of which the upper 32 are kept (Dietzfelbinger et al. 1997): integers without division,
which compile to SIMD. Rust-backed rensa 0.5 was measured on the same texts, one core, 112 permutations: 3.2 ms a MB for signatures
from our shingle hashes, which it hands over as Python lists, against 4.2 ms here; and 48 ms a MB just to make the Python strings that it
takes otherwise. Hashing the words (8.6 ms a MB) is the larger part, and is ours either way: it would be a dependency for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

from components.data import words

EMPTY = np.uint32(0xFFFFFFFF)  # every place of the signature of a text without words
NO_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)  # the band key of such a signature: it means "equal to nothing" and no other signature has it
SEED = 1
GRID = 2001  # points at which the curve is integrated; the choice of bands is the same from 500 on


@dataclass(frozen=True)
class Banding:
    """How signatures are cut: `bands` runs of `rows` places each; what is left over of a signature is used by `similarity` only."""

    bands: int
    rows: int

    def curve(self, similarities: np.ndarray) -> np.ndarray:
        """Probability that two documents of each Jaccard similarity become candidates; the shape of `similarities`."""
        return 1 - (1 - np.asarray(similarities, np.float64) ** self.rows) ** self.bands

    @property
    def steepest(self) -> float:
        """The similarity near which the curve rises, (1/bands)^(1/rows) (Leskovec et al. 2020, Mining of Massive Datasets, 3.4)."""
        return (1 / self.bands) ** (1 / self.rows)


@lru_cache(maxsize=16)
def bands(threshold: float, permutations: int, weight_of_misses: float = 0.5) -> Banding:
    """The banding with the least weighted area of wrong candidates below the threshold and of missed pairs above it.

    This is the criterion of datasketch's MinHashLSH (Zhu et al. 2016, arXiv:1603.08785 uses it too), and its weights by default.
    """
    grid = np.linspace(0, 1, GRID)
    below = grid <= threshold

    def cost(banding: Banding) -> float:
        curve = banding.curve(grid)
        wrong, missed = np.where(below, curve, 0).mean(), np.where(below, 0, 1 - curve).mean()
        return (1 - weight_of_misses) * wrong + weight_of_misses * missed

    return min((Banding(b, r) for b in range(1, permutations + 1) for r in range(1, permutations // b + 1)), key=cost)


def signatures(texts: Sequence[str], permutations: int, shingle_words: int) -> np.ndarray:
    """MinHash signatures, (texts, permutations) uint32.

    A text shorter than a shingle is one shingle, its whole; a text without words has EMPTY everywhere, which `band_keys` and
    `similarity` match with nothing, not even with itself.
    """
    shingles = words.ngram_hashes(words.word_hashes(texts), shingle_words, short_rows_whole=True)
    return _signatures(shingles.values, shingles.offsets, *_coefficients(permutations))


def band_keys(signed: np.ndarray, banding: Banding) -> np.ndarray:
    """A key for each band of each signature, (rows, bands) uint64; leave out those that are NO_KEY before you look for equal ones."""
    if signed.shape[1] < banding.bands * banding.rows:
        raise ValueError(
            f"signatures of {signed.shape[1]} permutations cannot be cut into {banding.bands} bands of {banding.rows} rows: the last bands would "
            f"be empty and equal. Use at least {banding.bands * banding.rows} permutations, or take the banding from bands(threshold, {signed.shape[1]})"
        )
    return _band_keys(np.ascontiguousarray(signed), banding.bands, banding.rows)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures (..., permutations), broadcast against each other: (...) float64.

    Its standard error at similarity s is sqrt(s * (1 - s) / permutations).
    """
    return ((a == b) & (a != EMPTY)).mean(axis=-1)


@lru_cache(maxsize=4)
def _coefficients(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and any summands, the same in every process: (permutations,) uint64 each."""
    drawn = np.random.PCG64(SEED).random_raw((permutations, 2))  # raw: numpy keeps the stream of a bit generator from version to version
    return drawn[:, 0] | np.uint64(1), drawn[:, 1].copy()


@njit(cache=True, nogil=True)
def _signatures(shingles: np.ndarray, offsets: np.ndarray, factors: np.ndarray, summands: np.ndarray) -> np.ndarray:
    out = np.full((len(offsets) - 1, len(factors)), EMPTY, np.uint32)
    for row in range(len(offsets) - 1):
        least = out[row]
        for at in range(offsets[row], offsets[row + 1]):
            shingle = shingles[at]
            for k in range(len(factors)):  # compiles to SIMD
                least[k] = min(least[k], np.uint32((shingle * factors[k] + summands[k]) >> np.uint64(32)))
    return out


@njit(cache=True, nogil=True)
def _band_keys(signed: np.ndarray, count: int, rows: int) -> np.ndarray:
    out = np.empty((len(signed), count), np.uint64)
    for row in range(len(signed)):
        for band in range(count):
            hashed, empty = np.uint64(band), True
            for k in range(band * rows, (band + 1) * rows):
                empty &= signed[row, k] == EMPTY
                hashed = (hashed ^ np.uint64(signed[row, k])) * np.uint64(0x9E3779B97F4A7C15)
                hashed ^= hashed >> np.uint64(32)
            out[row, band] = NO_KEY if empty else min(hashed, NO_KEY - np.uint64(1))
    return out
