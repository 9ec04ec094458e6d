"""Which examples there are, which of them a step sees, and how they are laid out: pure functions of their arguments.

Notation: B rows, T tokens. Masks say what True means: `counts` is True where a token enters the loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[i]
        room = next((free for free in range(need, context_tokens + 1) if rows_with_room.get(free)), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, context_tokens
        else:
            row = rows_with_room[room].pop()
        rows[row].append(i)
        rows_with_room.setdefault(room - need, []).append(row)
    return rows


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
