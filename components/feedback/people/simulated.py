"""People who are not there: they rank by a plain rule, and err now and then. For showing the whole loop, and for testing it.

    ranks(RULES["plain"], ["Yes! Gladly!", "Yes."], noise=0.1, rng=Random(1))      # [2, 1]; with noise 0.1 sometimes not

A rule is worked out from an answer's text alone, so everybody can check what a model learnt of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random
from typing import NamedTuple

from components.schema.config import BadInput
from components.schema.people import dense

NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal", "Ina", "Jo", "Kim", "Lou")


class Rule(NamedTuple):
    """What simulated people prefer."""

    says: str
    unit: str
    """Of what it counts."""
    count: Callable[[str], int]
    """Of an answer; less is better, and equal counts are as good as each other."""


RULES = {
    "plain": Rule("the fewer exclamation marks an answer has, the better", "exclamation marks an answer", lambda text: text.count("!")),
    "shorter": Rule("the shorter an answer, the better", "characters an answer", len),
}


def rule_called(name: str) -> Rule:
    """Errors: BadInput where there is none of that name."""
    if name not in RULES:
        raise BadInput(f"feedback: there is no rule {name!r}, so people would not know how to rank. There are: {', '.join(RULES)}")
    return RULES[name]


def ranks(rule: Rule, answers: Sequence[str], noise: float, rng: Random) -> list[int]:
    """The rank of each answer, 1 the best. With chance `noise` a person mistakes an answer for another one of the same question."""
    counts = [rule.count(text) for text in answers]
    seen = [rng.choice([*counts[:i], *counts[i + 1 :]]) if rng.random() < noise else count for i, count in enumerate(counts)]
    return list(dense(tuple(1 + count for count in seen)))


def agreement(counts: Sequence[int], scores: Sequence[float]) -> float | None:
    """Of the pairs about which the rule says something, the share that scores put in its order; equal scores are half right. None where it says nothing."""
    pairs = [(first, second) for first, second in combinations(range(len(counts)), 2) if counts[first] != counts[second]]
    right = [_half((scores[first] - scores[second]) * (counts[second] - counts[first])) for first, second in pairs]
    return sum(right) / len(right) if right else None


def _half(product: float) -> float:
    return 1.0 if product > 0 else 0.5 if product == 0 else 0.0
