"""Numbers beside sums: which of two is larger, and how a sequence goes on.

A comparison's key is its two numbers, whichever is asked for and in whichever order; a sequence's key is its first number and its
step. Both are held out by hash. A training sequence of four numbers contains two of three; neither may be held out.

`keys_in` finds the keys in any text, without knowing how the text was made.
"""

from __future__ import annotations

import hashlib
import re
from random import Random

LARGEST = 59
LARGEST_STEP = 6
SHOWN = 3  # numbers of a sequence that a question shows
HELDOUT_PERCENT = 12

Key = tuple[str, int, int]

_COMPARED = re.compile(r"(?:larger|smaller),? (\d+) or (\d+)|(\d+) is (?:larger|smaller) than (\d+)")
_SEQUENCE = re.compile(r"\d+(?:, \d+){2,}")


def is_heldout(key: Key, seed: int) -> bool:
    """Whether a comparison or sequence is kept for mini_mmlu."""
    return int(hashlib.md5(f"{seed}/{key}".encode()).hexdigest(), 16) % 100 < HELDOUT_PERCENT


def comparison_key(a: int, b: int) -> Key:
    return ("comparison", min(a, b), max(a, b))


def keys_in(text: str) -> set[Key]:
    """The keys of every comparison and every run of evenly spaced numbers in a text."""
    found = set()
    for match in _COMPARED.finditer(text):
        a, b = (int(group) for group in match.groups() if group is not None)
        found.add(comparison_key(a, b))
    for match in _SEQUENCE.finditer(text):
        row = [int(number) for number in match.group().split(", ")]
        for a, b, c in zip(row, row[1:], row[2:], strict=False):
            if b - a == c - b:
                found.add(("sequence", a, b - a))
    return found


def draw_comparison(rng: Random, seed: int, heldout: bool) -> tuple[int, int]:
    """Two different numbers on one side of the split."""
    while True:
        a, b = rng.sample(range(1, LARGEST + 1), 2)
        if is_heldout(comparison_key(a, b), seed) == heldout:
            return a, b


def draw_sequence(rng: Random, seed: int, heldout: bool) -> list[int]:
    """SHOWN + 1 evenly spaced numbers: held out by its first SHOWN ones, or with nothing held out in it."""
    while True:
        first, step = rng.randint(1, 40), rng.randint(1, LARGEST_STEP)
        row = [first + i * step for i in range(SHOWN + 1)]
        keys = [("sequence", row[i], step) for i in range(2)]
        if is_heldout(keys[0], seed) if heldout else not any(is_heldout(key, seed) for key in keys):
            return row


def ask_comparison(a: int, b: int, rng: Random) -> tuple[str, int]:
    """A question about two numbers, and its answer."""
    word = rng.choice(("larger", "smaller"))
    return f"Which is {word}, {a} or {b}?", max(a, b) if word == "larger" else min(a, b)


def ask_sequence(row: list[int]) -> tuple[str, int]:
    """A question about how a sequence goes on, and its answer."""
    return f"What comes next: {', '.join(map(str, row[:SHOWN]))}?", row[SHOWN]
