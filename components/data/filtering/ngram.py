"""A small n-gram language model: how surprised a reader of the reference would be by a text, in bits a word.

    model = train(word_hashes(reference_texts))
    bits = model.bits_per_word(word_hashes(texts))        # (texts,) cross-entropy; nan where a text has no words
    model.save(path); model = load(path)

Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, section 2.8) over trigrams of words.py's hashes, with one discount D an
order, n1 / (n1 + 2 n2) (Ney et al. 1994), and g what the discounts leave to the next lower order:

    P(w | u v) = max(c(u v w) - D3, 0) / c(u v .) + g(u v) P(w | v)        c: how often it stands in the reference
    P(w | v)   = max(n(v w) - D2, 0) / n(v .)     + g(v) P(w)              n(v w): how many different words stand before it
    P(w)       = max(n(w) - D1, 0) / n(.)         + g / VOCABULARY

Each line sums to 1 over VOCABULARY words, known or not. Departures from KenLM (Heafield 2011): words are hashes; the end of a text is not
predicted; trigrams seen once are left out after the discounts are estimated, and what they had goes to the lower order.

All orders lie in one open hash table from the hash of an n-gram to two float32: the first term above, and g where it is a context. What holds
both shares a cache line, and a context that is not there has no n-grams to look for, so a word costs about two misses of the cache.
Training sorts arrays: for a moment some 120 bytes a word, so it is given a sample (quality.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from components.data.words import Ragged

VOCABULARY = 2**20  # words that a language is taken to have
LEAST_TRIGRAM = 2  # trigrams are kept from this count on
BEFORE = np.uint64(0x5DEECE66D)  # stands before the first word of a text, twice
MOST_FILLED = 0.7  # of the table


@dataclass(frozen=True)
class Model:
    """A trained model."""

    table: np.ndarray
    """(places, 2) uint64, places a power of 2: the hash of an n-gram (0 = empty), and its two float32; linear probing"""
    floor: float
    """Probability of a word that was never seen."""
    words: int
    """Words it was trained on."""

    def bits_per_word(self, words: Ragged, rows: np.ndarray | None = None) -> np.ndarray:
        """Cross-entropy in bits a word of the rows with these numbers, or of all: (rows,) float64, nan for rows without words."""
        wanted = np.arange(len(words)) if rows is None else rows
        return _bits(words.values, words.offsets, wanted, self.table, self.table.view(np.float32), self.floor)

    def save(self, path: Path) -> None:
        """One .npz file."""
        np.savez(path, table=self.table, floor=self.floor, words=self.words)


def load(path: Path) -> Model:
    """A model that `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Model(file["table"], float(file["floor"]), int(file["words"]))


def train(words: Ragged) -> Model:
    """The model of these rows of words."""
    one, two, three, before_one, before_two = _grams(words.values, words.offsets)
    keys, ends, counts = _different(three, np.arange(len(three)))
    trigrams = _order(keys, before_two[ends], counts, LEAST_TRIGRAM)
    keys, ends, counts = _different(two, ends)  # each different trigram counts its last two words once
    bigrams = _order(keys, before_one[ends], counts)
    keys, ends, counts = _different(one, ends)
    unigrams = _order(keys, np.zeros(len(keys), np.uint64), counts)
    left_over = float(unigrams.left[0]) if len(keys) else 1.0
    return Model(_table((trigrams, bigrams, unigrams)), left_over / VOCABULARY, len(words.values))


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order: terms of those kept, and what each context leaves over."""

    keys: np.ndarray
    terms: np.ndarray
    contexts: np.ndarray
    left: np.ndarray


def _different(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different keys at these places, in order; the place of the first of each; at how many of the places it stands."""
    different, first, counts = np.unique(keys[places], return_index=True, return_counts=True)
    return different, places[first], counts


def _order(keys: np.ndarray, contexts: np.ndarray, counts: np.ndarray, least: int = 1) -> _Order:
    different, which = np.unique(contexts, return_inverse=True)
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    discount = once / (once + 2 * twice) if once and twice else 0.5  # too little text to estimate it
    kept = counts >= least
    terms = (counts - discount) / np.bincount(which, counts)[which] if len(keys) else np.zeros(0)
    left = 1 - np.bincount(which[kept], terms[kept], minlength=len(different))
    return _Order(keys[kept], terms[kept].astype(np.float32), different, left.astype(np.float32))


def _table(orders: tuple[_Order, ...]) -> np.ndarray:
    entries = sum(len(order.keys) + len(order.contexts) for order in orders)
    table = np.zeros((1 << int(entries / MOST_FILLED + 1).bit_length(), 2), np.uint64)
    for order in orders:
        open_contexts = order.left < 1
        _insert(table, table.view(np.float32), order.keys, order.terms, 2)
        _insert(table, table.view(np.float32), order.contexts[open_contexts], order.left[open_contexts], 3)
    return table


@njit(cache=True, inline="always")
def pair(context, word):  # type: ignore[no-untyped-def]
    """Hash of an n-gram, from that of all but its last word, and that word."""
    hashed = (context ^ (word + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    hashed = (hashed ^ (hashed >> np.uint64(29)) ^ word) * np.uint64(0x94D049BB133111EB)
    return hashed ^ (hashed >> np.uint64(32))


@njit(cache=True, nogil=True)
def _grams(words, offsets):  # type: ignore[no-untyped-def]
    """For each word the 1-, 2- and 3-gram that ends with it, and the contexts of the last two: five times (words,) uint64."""
    two, three = np.empty_like(words), np.empty_like(words)
    before_one, before_two = np.empty_like(words), np.empty_like(words)
    for row in range(len(offsets) - 1):
        last, last_two = BEFORE, pair(BEFORE, BEFORE)
        for at in range(offsets[row], offsets[row + 1]):
            before_one[at], before_two[at] = last, last_two
            two[at], three[at] = pair(last, words[at]), pair(last_two, words[at])
            last, last_two = words[at], two[at]
    return words, two, three, before_one, before_two


@njit(cache=True, nogil=True)
def _insert(table, floats, keys, values, column):  # type: ignore[no-untyped-def]
    """Put values in a column of (places, 4) float32 views of the table; new entries are no n-gram (term 0) and leave everything (1)."""
    for i in range(len(keys)):
        place = _place(table, keys[i])
        if table[place, 0] == 0:
            table[place, 0] = keys[i]
            floats[place, 3] = 1
        floats[place, column] = values[i]


@njit(cache=True, inline="always")
def _place(table, key):  # type: ignore[no-untyped-def]
    """Where the key is, or the empty place where it would be."""
    mask = len(table) - 1
    place = np.int64(key & np.uint64(mask))
    while table[place, 0] != key and table[place, 0] != 0:
        place = (place + 1) & mask
    return place


@njit(cache=True, inline="always")
def _left(table, floats, place):  # type: ignore[no-untyped-def]
    """What the context at this place leaves to the lower order: everything, where it is not there."""
    return floats[place, 3] if table[place, 0] != 0 else np.float32(1)


@njit(cache=True, nogil=True)
def _bits(words, offsets, rows, table, floats, floor):  # type: ignore[no-untyped-def]
    bits = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        total, last, last_two = 0.0, BEFORE, pair(BEFORE, BEFORE)
        left_one, left_two = _left(table, floats, _place(table, last)), _left(table, floats, _place(table, last_two))
        for at in range(offsets[row], offsets[row + 1]):
            word = words[at]
            place, both = _place(table, word), pair(last, word)
            probability, left_word, left_both = floor + floats[place, 2], _left(table, floats, place), np.float32(1)
            if left_one < 1:
                place = _place(table, both)
                probability, left_both = floats[place, 2] + left_one * probability, _left(table, floats, place)
            if left_two < 1:
                probability = floats[_place(table, pair(last_two, word)), 2] + left_two * probability
            total -= np.log2(probability)
            last, last_two, left_one, left_two = word, both, left_word, left_both
        if offsets[row + 1] > offsets[row]:
            bits[i] = total / (offsets[row + 1] - offsets[row])
    return bits
