"""Arithmetic of the little world: sums with one or two steps, as bare equations and as stories in the manner of GSM8K.

A sum is a list of signed terms, a term being a number or a product: 12 + 5 - 3 is [+12, +5, -3], 3 * 4 + 5 is [+3*4, +5].
Its **key** is those terms in sorted order, so neither commuting nor rewording, other names or other objects make a new key.
Keys are held out by hash. What that means for the steps inside a longer sum:

- A step counts as a sum of its own: training never shows a held-out sum, be it a story, a bare line or a step of a chain.
- A chain has a key of its own besides; a held-out chain may contain steps that training shows alone, since what is tested
  is putting known steps together.
- Few single sums are held out: a model this small learns them as a table, and a sum missing from the table tests something
  harder, whether it found the rule of columns and carries.
- Single products are a table to be learnt by heart and are never held out; chains that contain one are.

`keys_in` finds the keys in any text by reading its equations, without knowing how the text was made.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random

from components.data.curriculum.world import PEOPLE

LARGEST_OPERAND = 40
LARGEST_RESULT = 59
HELDOUT_SINGLE_PERCENT, HELDOUT_CHAIN_PERCENT = 5, 15
CHAIN_SHARE = 0.6  # of the stories

Term = tuple[int, tuple[int, ...]]  # sign, factors in sorted order
Key = tuple[Term, ...]

OBJECTS = ("apples", "pears", "coins", "books", "shells", "cards", "eggs", "stones", "nuts", "pens", "cups", "balls")
_BOXES = ("bags", "boxes", "baskets", "jars")
_SUM_STARTS = (
    "{p} had {a} {o}. {p} got {b} more.",
    "{p} had {a} {o}. {q} gave {p} {b} more.",
    "{p} has {a} {o} at home and {b} {o} at school.",
    "{p} found {a} {o} and then {b} more {o}.",
)
_DIFFERENCE_STARTS = (
    "{p} had {a} {o}. {p} lost {b}.",
    "{p} had {a} {o}. {p} gave {b} to {q}.",
    "{p} had {a} {o} and sold {b} of them.",
)
_PRODUCT_STARTS = ("{p} has {a} {x} with {b} {o} in each.", "{p} filled {a} {x} with {b} {o} each.")
_GAINS = ("Then {p} got {c} more.", "Then {p} found {c} more.", "Later {q} gave {p} {c} more.")
_LOSSES = ("Then {p} lost {c}.", "Then {p} gave {c} to {q}.", "Later {p} sold {c}.")
_QUESTIONS = ("How many {o} does {p} have now?", "How many {o} does {p} have in all?")


@dataclass(frozen=True)
class Step:
    """One equation, `left operator right = result`."""

    left: int
    operator: str
    right: int

    @property
    def result(self) -> int:
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.operator]

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Story:
    """A word problem: what happened, what is asked, the steps to the answer."""

    events: str
    question: str
    steps: tuple[Step, ...]
    objects: str

    @property
    def text(self) -> str:
        return f"{self.events} {self.question}"

    @property
    def solution(self) -> str:
        """Worked steps and the final line, in GSM8K's form."""
        return "\n".join(f"{step} {self.objects}." for step in self.steps) + f"\n#### {self.steps[-1].result}"


# ---------------------------------------------------------------- keys


def is_heldout(key: Key, seed: int) -> bool:
    """Whether a sum is kept for the benchmarks. Sums outside the curriculum's range, and lone products, never are."""
    numbers = [n for _, factors in key for n in factors]
    in_range = all(0 < n <= LARGEST_OPERAND for n in numbers) and len(numbers) in (2, 3) and 0 <= value_of(key) <= LARGEST_RESULT
    if not in_range or len(key) < 2:
        return False
    percent = HELDOUT_SINGLE_PERCENT if len(numbers) == 2 else HELDOUT_CHAIN_PERCENT
    return int(hashlib.md5(f"{seed}/{key}".encode()).hexdigest(), 16) % 100 < percent


def value_of(key: Key) -> int:
    """What the sum comes to."""
    total = 0
    for sign, factors in key:
        product = sign
        for factor in factors:
            product *= factor
        total += product
    return total


def key_of_steps(steps: tuple[Step, ...]) -> Key:
    """The key of a whole chain: each step's left operand after the first is the result so far."""
    terms = _terms(steps[0].left, [(steps[0].operator, steps[0].right)])
    for step in steps[1:]:
        terms += _terms(0, [(step.operator, step.right)])[1:]
    return tuple(sorted(terms))


_EXPRESSION = re.compile(r"\d+(?:\s*[-+*]\s*\d+)+(?:\s*=\s*\d+)?")
_OPERAND = re.compile(r"([-+*=]?)\s*(\d+)")


def keys_in(text: str) -> set[Key]:
    """The keys of every sum written in a text: each equation, and each pair of equations where one goes on from the other."""
    found: set[Key] = set()
    terms: list[Term] = []
    carried = -1
    for match in _EXPRESSION.finditer(text):
        parts = [(operator, int(number)) for operator, number in _OPERAND.findall(match.group())]
        first, rest = parts[0][1], [part for part in parts[1:] if part[0] != "="]
        own = _terms(first, rest)
        found.add(tuple(sorted(own)))
        goes_on = first == carried and rest[0][0] in "+-"
        terms = terms + own[1:] if goes_on else own
        found.add(tuple(sorted(terms)))
        carried = parts[-1][1] if parts[-1][0] == "=" else -1
    return found


def _terms(first: int, rest: list[tuple[str, int]]) -> list[Term]:
    """Signed terms of `first op n op n ...`, products gathered into one term."""
    terms: list[Term] = [(1, (first,))]
    for operator, number in rest:
        if operator == "*":
            sign, factors = terms[-1]
            terms[-1] = (sign, tuple(sorted((*factors, number))))
        else:
            terms.append((1 if operator == "+" else -1, (number,)))
    return terms


# ---------------------------------------------------------------- making sums and stories


def draw_steps(rng: Random, seed: int, heldout: bool, chain: bool | None = None) -> tuple[Step, ...]:
    """Random steps whose sum is held out (`heldout=True`), or in which nothing is. `chain` fixes one step or two."""
    while True:
        two = rng.random() < CHAIN_SHARE if chain is None else chain
        steps = (_first_step(rng, allow_product=not heldout or two),)
        if two:
            steps += (_next_step(rng, steps[0].result),)
        if min(steps[0].left, *(step.right for step in steps)) < 2 or not 0 <= steps[-1].result <= LARGEST_RESULT or steps[-1].left > LARGEST_OPERAND:
            continue
        if heldout and is_heldout(key_of_steps(steps), seed):
            return steps
        if not heldout and not any(is_heldout(k, seed) for k in (*(key_of_steps((s,)) for s in steps), key_of_steps(steps))):
            return steps


def draw_series(rng: Random, seed: int) -> list[Step]:
    """One sum or difference again and again, its left number moved by one or by ten; held-out members are left out."""
    operator, right, stride = rng.choice("+-"), rng.randint(2, 20), rng.choice((1, 10))
    first = rng.randint(2, 12) + (right if operator == "-" else 0)
    series = [Step(left, operator, right) for left in range(first, LARGEST_OPERAND + 1, stride)]
    return [step for step in series if step.result <= LARGEST_RESULT and not is_heldout(key_of_steps((step,)), seed)][:8]


def _first_step(rng: Random, allow_product: bool) -> Step:
    kind = rng.choice("++--*" if allow_product else "+-")
    if kind == "*":
        return Step(rng.randint(2, 5), "*", rng.randint(2, 6))
    if kind == "+":
        return Step(rng.randint(2, 20), "+", rng.randint(2, 20))
    a = rng.randint(3, 30)
    return Step(a, "-", rng.randint(2, min(a, 20)))


def _next_step(rng: Random, so_far: int) -> Step:
    if rng.random() < 0.5:
        return Step(so_far, "+", rng.randint(2, 12))
    return Step(so_far, "-", rng.randint(2, max(2, min(so_far, 12))))


def tell(steps: tuple[Step, ...], rng: Random) -> Story:
    """Wrap steps in a story."""
    p, q = rng.sample(PEOPLE, 2)
    words = {"p": p, "q": q, "o": rng.choice(OBJECTS), "x": rng.choice(_BOXES)}
    starts = {"+": _SUM_STARTS, "-": _DIFFERENCE_STARTS, "*": _PRODUCT_STARTS}[steps[0].operator]
    events = rng.choice(starts).format(a=steps[0].left, b=steps[0].right, **words)
    for step in steps[1:]:
        events += " " + rng.choice(_GAINS if step.operator == "+" else _LOSSES).format(c=step.right, **words)
    return Story(events, rng.choice(_QUESTIONS).format(**words), steps, words["o"])
