"""Reading: a passage says who is in which room; the question asks for one of them.

The key of a passage is the set of its statements, whatever their order and whoever is asked for. Held out by hash.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random

from components.data.curriculum.world import PEOPLE

ROOMS = ("kitchen", "library", "attic", "cellar", "hall", "yard", "shop", "school")
HELDOUT_PERCENT = 12
Key = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Passage:
    """Who is where, in the order of telling."""

    places: tuple[tuple[str, str], ...]

    @property
    def key(self) -> Key:
        return frozenset(self.places)

    @property
    def text(self) -> str:
        return " ".join(f"{name} is in the {room}." for name, room in self.places)


def is_heldout(key: Key, seed: int) -> bool:
    """Whether a passage is kept for mini_mmlu."""
    return int(hashlib.md5(f"{seed}/{sorted(key)}".encode()).hexdigest(), 16) % 100 < HELDOUT_PERCENT


def draw(rng: Random, seed: int, heldout: bool) -> Passage:
    """A random passage of two or three people on one side of the split."""
    while True:
        people = rng.choice((2, 2, 3))
        passage = Passage(tuple(zip(rng.sample(PEOPLE, people), rng.sample(ROOMS, people), strict=True)))
        if is_heldout(passage.key, seed) == heldout:
            return passage


def key_in(text: str) -> Key:
    """The statements found in a text, however they are arranged."""
    return frozenset(re.findall(rf"\b({'|'.join(PEOPLE)}) is in the ({'|'.join(ROOMS)})\b", text))
