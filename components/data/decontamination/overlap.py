"""Which benchmark items stand in a text: word n-grams of the items in one sorted table, looked up for every position of a text.

    index = Index.build(benchmarks.items(folder), 13)
    index.hits(["a text", "another"])          # [[(item number, share of the item's n-grams in the text), ...], ...]

As in Brown et al. 2020 (arXiv:2005.14165, appendix C) case and punctuation do not count and n-grams have 13 words. Changed:

- An item is looked for in several forms, its share is that of the best: the whole item, with its choices or solution, and the question
  alone where that has n words. A copied question with another answer counts, and "Which of these is true?" alone does not.
- A form with fewer than n words is one n-gram of its own length. Below LEAST words (or n) it cannot be told from chance and is not looked for.
- An n-gram in more than TEMPLATE_ITEMS items of a task, and in more than TEMPLATE_SHARE of them, is the task's manner of speaking and does not
  count. There are 81 among the 765,000 of MMLU (all 895 moral scenarios ask one question), none in GSM8K and HumanEval.

An item with no n-gram left has `ngrams` 0: nothing can be said about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from components.data import words
from components.data.decontamination.benchmarks import Item

LEAST = 5
TEMPLATE_ITEMS, TEMPLATE_SHARE = 10, 0.01
FILTER_BITS = 24  # the table that turns away nearly all positions of a text has 2^24 bits: 2 MB, which a core's cache holds


class Shares(NamedTuple):
    """How much of which item stands in which text; arrays of one length."""

    row: np.ndarray
    item: np.ndarray
    share: np.ndarray  # of the n-grams of the item's best form, in (0, 1]


@dataclass(frozen=True)
class Index:
    """The n-grams of items. A key is an n-gram, an entry one form of an item; entries of key k are entries[offsets[k] : offsets[k + 1]]."""

    keys: np.ndarray  # (keys,) uint64, sorted
    offsets: np.ndarray  # (keys + 1,) int64
    entries: np.ndarray  # (uses,) int32
    item_of: np.ndarray  # (entries,) int32
    totals: np.ndarray  # (entries,) int32: n-grams that count
    lengths: np.ndarray  # (n + 1,) bool: whether some n-gram has so many words
    begun: np.ndarray  # (2^FILTER_BITS / 8,) uint8: a bit for the top bits of the hash of every n-gram's first LEAST words
    benchmarks: np.ndarray  # (items,) str

    @classmethod
    def build(cls, items: Iterable[Item], ngram_words: int) -> Index:
        """The index of some items, numbered in their order."""
        items = list(items)
        item_of, texts = _forms(items, ngram_words)
        spoken = words.word_hashes(texts)
        keys, begun, rows = _ngrams(spoken.values, spoken.offsets, ngram_words, min(LEAST, ngram_words))
        tasks = np.unique([item.task for item in items], return_inverse=True)[1] if items else np.zeros(0, np.int64)
        keys, entries, _ = _counted(keys, rows)
        counts = ~_is_template(keys, item_of[entries], tasks)
        keys, entries = keys[counts], entries[counts]
        unique, starts = np.unique(keys, return_index=True)
        lengths = np.zeros(ngram_words + 1, bool)
        lengths[np.minimum(np.diff(spoken.offsets), ngram_words)] = True
        lengths[: min(LEAST, ngram_words)] = False
        filled = np.zeros(1 << FILTER_BITS, bool)
        filled[begun >> np.uint64(64 - FILTER_BITS)] = True
        return cls(
            keys=unique,
            offsets=np.append(starts, len(keys)).astype(np.int64),
            entries=entries.astype(np.int32),
            item_of=item_of,
            totals=np.bincount(entries, minlength=len(item_of)).astype(np.int32),
            lengths=lengths,
            begun=np.packbits(filled, bitorder="little"),
            benchmarks=np.array([item.benchmark for item in items], dtype=np.str_),
        )

    @property
    def ngrams(self) -> np.ndarray:
        """N-grams that count, of each item's largest form: (items,) int32. 0 = the item cannot be looked for."""
        out = np.zeros(len(self.benchmarks), np.int32)
        np.maximum.at(out, self.item_of, self.totals)
        return out

    def hits(self, texts: Sequence[str]) -> list[list[tuple[int, float]]]:
        """For each text the items of which it has something, as (item number, share of its n-grams), by number."""
        found: list[list[tuple[int, float]]] = [[] for _ in texts]
        for row, item, share in zip(*(part.tolist() for part in self.shares(*self.found(texts))), strict=True):
            found[row].append((item, share))
        return found

    def found(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which keys stand in which texts: (row, key), each pair once, in order; int64 each."""
        if not len(self.keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        spoken = words.word_hashes(texts)
        pairs = np.unique(_look_up(spoken.values, spoken.offsets, self.keys, self.lengths, self.begun, min(LEAST, len(self.lengths) - 1)))
        return np.divmod(pairs, len(self.keys))

    def shares(self, rows: np.ndarray, keys: np.ndarray) -> Shares:
        """The items of which something stands in a row, from what `found` gave, in order of row and item."""
        uses = np.diff(self.offsets)[keys]
        within = np.arange(uses.sum()) - np.repeat(np.cumsum(uses) - uses, uses)
        entries = self.entries[np.repeat(self.offsets[keys], uses) + within]
        row, entry, counts = _counted(np.repeat(rows, uses), entries)
        return _best(Shares(row, self.item_of[entry], counts / self.totals[entry]))

    def totalled(self, seen: np.ndarray) -> np.ndarray:
        """The share of each item's n-grams among those seen anywhere. seen: (keys,) bool. Returns (items,) float64."""
        counts = np.bincount(self.entries, np.repeat(seen, np.diff(self.offsets)), minlength=len(self.item_of))
        out = np.zeros(len(self.benchmarks))
        np.maximum.at(out, self.item_of, counts / np.maximum(1, self.totals))
        return out

    def save(self, path: Path) -> None:
        """Write the index for `load`, in any process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Index:
        with np.load(path) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


def _forms(items: Sequence[Item], ngram_words: int) -> tuple[np.ndarray, list[str]]:
    """The texts that are looked for, and which item each belongs to: (entries,) int32."""
    asked = np.diff(words.word_hashes([item.question for item in items]).offsets)
    forms = [(i, form) for i, item in enumerate(items) for form in ((item.question,) if asked[i] >= ngram_words else ()) + item.forms]
    return np.array([i for i, _ in forms], np.int32), [form for _, form in forms]


def _is_template(keys: np.ndarray, items: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """For each use of a key, whether the key is common in some task. keys, items: (uses,); tasks: (items,)."""
    distinct, of, _ = _counted(keys, items)
    distinct, task, counts = _counted(distinct, tasks[of])
    limits = np.maximum(TEMPLATE_ITEMS, TEMPLATE_SHARE * np.bincount(tasks))
    return np.isin(keys, distinct[counts > limits[task]])


def _counted(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs (a, b), in order, and how often each is there."""
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    starts = np.flatnonzero(_first(a, b))
    return a[starts], b[starts], np.diff(np.append(starts, len(a)))


def _first(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In sorted pairs, whether each differs from the one before."""
    first = np.ones(len(a), bool)
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return first


def _best(shares: Shares) -> Shares:
    """The largest share of each row and item."""
    order = np.lexsort((-shares.share, shares.item, shares.row))
    order = order[_first(shares.row[order], shares.item[order])]
    return Shares(*(part[order] for part in shares))


@njit(cache=True, nogil=True)
def _ngrams(values: np.ndarray, offsets: np.ndarray, n: int, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash, hash of the first `least` words and row of each n-gram; a shorter row is one n-gram of its own length, or none below `least`."""
    keys, begun, rows = np.empty(len(values), np.uint64), np.empty(len(values), np.uint64), np.empty(len(values), np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        size = min(n, offsets[row + 1] - offsets[row])
        for at in range(offsets[row], offsets[row + 1] - size + 1 if size >= least else 0):
            hashed = np.uint64(0)
            for k in range(size):
                hashed = _longer(hashed, values[at + k])
                if k + 1 == least:
                    begun[count] = hashed
            keys[count], rows[count] = hashed, row
            count += 1
    return keys[:count].copy(), begun[:count].copy(), rows[:count].copy()


@njit(cache=True, nogil=True)
def _look_up(values: np.ndarray, offsets: np.ndarray, keys: np.ndarray, lengths: np.ndarray, begun: np.ndarray, least: int) -> np.ndarray:
    """row * len(keys) + key wherever an n-gram of the index stands; not in order, and with repetitions."""
    out, count = np.empty(1024, np.int64), 0
    shift = np.uint64(64 - FILTER_BITS)
    for row in range(len(offsets) - 1):
        for at in range(offsets[row], offsets[row + 1] - least + 1):
            hashed = np.uint64(0)
            for k in range(least):
                hashed = _longer(hashed, values[at + k])
            bit = hashed >> shift
            if not begun[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7)) & np.uint8(1):
                continue
            for size in range(least, min(len(lengths) - 1, offsets[row + 1] - at) + 1):
                if size > least:
                    hashed = _longer(hashed, values[at + size - 1])
                if lengths[size]:
                    key = np.searchsorted(keys, hashed)
                    if key < len(keys) and keys[key] == hashed:
                        if count == len(out):
                            out = np.concatenate((out, np.empty_like(out)))
                        out[count] = row * len(keys) + key
                        count += 1
    return out[:count].copy()


@njit(cache=True, inline="always")
def _longer(hashed: np.uint64, word: np.uint64) -> np.uint64:
    """The hash of an n-gram with one word more."""
    hashed = (hashed ^ word) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    return hashed ^ (hashed >> np.uint64(32))
