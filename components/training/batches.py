"""Which examples there are, which of them a step sees, and how they are laid out: pure functions of their arguments.

Notation: B rows, T tokens. Masks say what True means: `counts` is True where a token enters the loss.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.schema.config import BadInput


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Errors: BadInput naming the line."""
    if not path.is_file():
        raise BadInput(f"data: {path} does not exist, so there is nothing to learn from. Run the data stages first")
    rows = []
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # not splitlines(): U+2028 and others may stand inside a text
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise BadInput(f"data: {path} line {number} is not JSON ({error}). Make the file again") from None
    return rows


def visits(n: int, start: int, count: int, seed: int) -> list[int]:
    """The examples that stand at positions start ... start+count-1 of an endless visit of n examples.

    Each pass over the examples is a permutation of its own, from (seed, pass): nothing is seen twice before all was seen once.
    """
    return [int(_pass_order(n, position // n, seed)[position % n]) for position in range(start, start + count)]


@lru_cache(maxsize=4)  # a batch spans two passes, unless it is larger than the data
def _pass_order(n: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(n)


@dataclass(frozen=True)
class Packed:
    """Several texts in each row, none of which sees another."""

    ids: Tensor
    """(B, T) tokens."""
    position_ids: Tensor
    """(B, T) position within the own text: it starts anew at each text, which is how transformers tells them apart."""
    counts: Tensor
    """(B, T) True where the token is a target of the loss, that is, is predicted from the one before it."""


def pack(lengths: Sequence[int], context_tokens: int) -> list[list[int]]:
    """Put texts into as few rows of `context_tokens` as best-fit-decreasing finds; every text is in exactly one row.

    Texts must fit. (Best-fit packing for language models: Ding et al. 2024, arXiv:2404.10830.)
    """
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = {}  # free tokens -> rows
    rooms = 0  # bit n is set where a row has n tokens free, so that the smallest that suffices is found at once
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[i]
        fitting = rooms >> need
        if fitting:
            free = need + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[free].pop()
            if not rows_with_room[free]:
                rooms &= ~(1 << free)
        else:
            rows.append([])
            row, free = len(rows) - 1, context_tokens
        rows[row].append(i)
        rows_with_room.setdefault(free - need, []).append(row)
        rooms |= 1 << (free - need)
    return rows


def weights_by_kind(mix: Mapping[str, float], kinds: Sequence[str]) -> list[float]:
    """The weight of each text by its kind; 1 where the mix does not name it. Errors: BadInput for a kind that no text has."""
    if unknown := sorted(set(mix) - set(kinds)):
        raise BadInput(f"sft: mix names {', '.join(unknown)}, and no training row is of that kind: its weight would be ignored. The kinds are {', '.join(sorted(set(kinds)))}")
    return [mix.get(kind, 1.0) for kind in kinds]


class Passes:
    """Endless passes over texts, as rows in an order: `rows(start, count)` are those at positions start ... start+count-1, whatever was asked before.

    Without weights each pass has the same rows (every text once), each time in an order of its own. With weights a text of weight w is in w of the
    passes on average, as evenly as can be: after p passes it was drawn p * w times, rounded up or down. Each pass then packs what it has drawn.
    """

    def __init__(self, lengths: Sequence[int], seed: int, *, context_tokens: int | None, weights: Sequence[float] | None = None) -> None:
        """`context_tokens`: room of a row; None = each text is a row of its own."""
        self.lengths, self.seed, self.context_tokens = lengths, seed, context_tokens
        self.weights = None if weights is None or set(weights) == {1.0} else np.asarray(weights, dtype=np.float64)
        self._begins = [0]  # position at which each pass begins, as far as passes were asked for
        self._kept = lru_cache(maxsize=2)(self._packed)  # a batch spans two passes, unless it is larger than the data

    def rows(self, start: int, count: int) -> list[list[int]]:
        """The texts of each row."""
        if self.weights is None:
            packed = self._kept(0)
            return [packed[i] for i in visits(len(packed), start, count, self.seed)]
        return [self._row(position) for position in range(start, start + count)]

    def length(self) -> int:
        """Rows of the first pass."""
        return len(self._kept(0))

    def seen(self, total: int) -> np.ndarray:
        """How often each text stands in the first `total` rows: (texts,)."""
        found = np.zeros(len(self.lengths), dtype=np.int64)
        for row in self.rows(0, total):
            np.add.at(found, row, 1)  # a text of weight 2 may stand in a row twice
        return found

    def seen_by(self, kinds: Sequence[str], total: int) -> dict[str, int]:
        """Texts of each kind in the first `total` rows."""
        counts = self.seen(total)
        return {kind: int(counts[[own == kind for own in kinds]].sum()) for kind in sorted(set(kinds))}

    def drawn(self, number: int) -> list[int]:
        """The texts of a pass; one of weight 2 is there twice."""
        if self.weights is None:
            return list(range(len(self.lengths)))
        offsets = np.random.default_rng([self.seed, len(self.weights)]).random(len(self.weights))  # else all of weight 1/2 would come in the same pass
        copies = np.floor((number + 1) * self.weights + offsets) - np.floor(number * self.weights + offsets)
        return np.repeat(np.arange(len(copies)), copies.astype(np.int64)).tolist()

    def _packed(self, number: int) -> list[list[int]]:
        texts = self.drawn(number)
        if self.context_tokens is None:
            return [[i] for i in texts]
        return [[texts[i] for i in row] for row in pack([self.lengths[i] for i in texts], self.context_tokens)]

    def _row(self, position: int) -> list[int]:
        while self._begins[-1] <= position:
            self._begins.append(self._begins[-1] + len(self._kept(len(self._begins) - 1)))
        number = bisect_right(self._begins, position) - 1
        packed = self._kept(number)
        return packed[_pass_order(len(packed), number, self.seed)[position - self._begins[number]]]


def lay_out(rows: Sequence[Sequence[int]], texts: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_id: int) -> Packed:
    """Rows of texts, each (ids, counts), as tensors padded on the right to the longest row. Padding is a text of its own that never counts."""
    width = max(sum(len(texts[i][0]) for i in row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    counts = np.zeros((len(rows), width), dtype=bool)
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            text, counted = texts[i]
            end = at + len(text)
            ids[r, at:end], positions[r, at:end], counts[r, at:end] = text, np.arange(len(text)), counted
            counts[r, at] = False  # the first token of a text has nothing of its own before it
            at = end
        positions[r, at:] = np.arange(width - at)
    return Packed(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(counts))


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows padded on the right to the longest: (B, T)."""
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
