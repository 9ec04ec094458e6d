"""Fingerprints: 64 bits of a whole text or paragraph with white space and case folded, equal for what a reader would call the same text.

Runs of white space count as one space, those at the ends as none; letters count in lower case; punctuation counts. Compiled, as folding
strings and hashing them one by one took 17 ms a MB, as long as the MinHash signature; this takes 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import njit

from components.data import words

SPACE = ord(" ")


def fingerprints(texts: Sequence[str]) -> np.ndarray:
    """A hash of each text, (texts,) uint64."""
    points = words.code_points(texts)
    return _fingerprints(points.values, points.offsets, _folded())


@lru_cache(maxsize=1)
def _folded() -> np.ndarray:
    """By code point: its lower case where that is one character, SPACE for every white space; the rare ones above stand for themselves."""
    table = np.arange(words.KNOWN, dtype=np.uint32)
    for point in range(words.KNOWN):
        lower = chr(point).lower()
        table[point] = SPACE if lower.isspace() else ord(lower) if len(lower) == 1 else point
    return table


@njit(cache=True, nogil=True)
def _fingerprints(points: np.ndarray, offsets: np.ndarray, folded: np.ndarray) -> np.ndarray:
    out = np.empty(len(offsets) - 1, np.uint64)
    for row in range(len(out)):
        hashed, spaces, begun = np.uint64(0), False, False
        for at in range(offsets[row], offsets[row + 1]):
            point = points[at]
            if point < len(folded):
                point = folded[point]
            if point == SPACE:
                spaces = True
                continue
            if spaces and begun:
                hashed = _mixed(hashed, np.uint64(SPACE))
            hashed = _mixed(hashed, np.uint64(point))
            spaces, begun = False, True
        out[row] = words._scrambled(hashed)
    return out


@njit(cache=True, inline="always")
def _mixed(hashed: np.uint64, point: np.uint64) -> np.uint64:
    """The multiply and shift of words.ngram_hashes."""
    hashed = (hashed ^ point) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    return hashed ^ (hashed >> np.uint64(32))
