"""Words as 64-bit hashes: what deduplication, decontamination and the n-gram model compare instead of strings.

A word here is a run of letters, marks and digits, lower-cased, wherever it stands; punctuation and white space only part words.
A whole batch of texts is one array of code points and every word one integer, so that the loops over it compile to machine
code (numba) and n-grams are a rolling combination of integers.

    words = word_hashes(["The cat sat.", "A dog"])     # Ragged: values [the, cat, sat, a, dog], offsets [0, 3, 5]
    ngrams = ngram_hashes(words, 2)                    # Ragged: values [the+cat, cat+sat, a+dog], offsets [0, 2, 3]
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

KNOWN = 0x20000  # code points with a class of their own; those above are rare ideographs, and count as letters


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray
    """(rows + 1,) int64"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


def code_points(texts: Sequence[str]) -> Ragged:
    """All texts as one array of uint32 code points."""
    whole = "".join(texts).encode("utf-32-le", "surrogatepass")
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return Ragged(np.frombuffer(whole, np.uint32), offsets)


def word_hashes(texts: Sequence[str]) -> Ragged:
    """The words of each text, as hashes (uint64)."""
    points = code_points(texts)
    return Ragged(*_word_hashes(points.values, points.offsets, _lowered()))


def ngram_hashes(words: Ragged, n: int, short_rows_whole: bool = False) -> Ragged:
    """The n-grams of each row (uint64). A row with fewer than n words has none, or with `short_rows_whole` one: all its words."""
    return Ragged(*_ngram_hashes(words.values, words.offsets, n, short_rows_whole))


@lru_cache(maxsize=1)
def _lowered() -> np.ndarray:
    """By code point: the lower-case letter, mark or digit, or 0 where it is none of these."""
    table = np.zeros(KNOWN, np.uint32)
    for point in range(KNOWN):
        character = chr(point)
        if unicodedata.category(character)[0] in "LMN":
            lower = character.lower()
            table[point] = ord(lower) if len(lower) == 1 else point
    return table


@njit(cache=True, nogil=True)
def _word_hashes(points: np.ndarray, offsets: np.ndarray, lowered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.empty(len(points) // 2 + len(offsets), np.uint64)
    ends = np.zeros(len(offsets), np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        hashed, inside = np.uint64(0), False
        for at in range(offsets[row], offsets[row + 1]):
            point = points[at]
            letter = lowered[point] if point < len(lowered) else point
            if letter:
                hashed = (hashed ^ np.uint64(letter)) * np.uint64(0x100000001B3) + np.uint64(1)
                inside = True
            elif inside:
                values[count] = _scrambled(hashed)
                count += 1
                hashed, inside = np.uint64(0), False
        if inside:
            values[count] = _scrambled(hashed)
            count += 1
        ends[row + 1] = count
    return values[:count].copy(), ends


@njit(cache=True, nogil=True)
def _ngram_hashes(values: np.ndarray, offsets: np.ndarray, n: int, short_rows_whole: bool) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(len(values), np.uint64)
    ends = np.zeros(len(offsets), np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        length = offsets[row + 1] - offsets[row]
        size = min(n, length) if short_rows_whole and length else n
        for at in range(offsets[row], offsets[row + 1] - size + 1):
            hashed = np.uint64(size)
            for k in range(size):
                hashed = (hashed ^ values[at + k]) * np.uint64(0x9E3779B97F4A7C15)
                hashed ^= hashed >> np.uint64(32)
            out[count] = hashed
            count += 1
        ends[row + 1] = count
    return out[:count].copy(), ends


@njit(cache=True, inline="always")
def _scrambled(hashed: np.uint64) -> np.uint64:
    """splitmix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of the input."""
    hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashed ^ (hashed >> np.uint64(31))
