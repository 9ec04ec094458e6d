"""Preference pairs as tokens: read from rows, split into halves, put together again to the rankings they come from.

A row is {"prompt", "chosen", "rejected", "kind"}, and may carry `ranking`, `ranks` (of K ranked answers), `margin`, `safer` and `safe`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from components.schema.config import BadInput
from components.training.batches import read_rows
from components.training.template import encode

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as whole chats in tokens."""

    chosen: list[int]
    rejected: list[int]
    kind: str
    starts: tuple[int, int] = (0, 0)
    """Where the answer begins in chosen and in rejected."""
    margin: float = 1.0
    """How much better the chosen side is, in units of the recipe's margin."""
    unsafe: tuple[bool, bool] | None = None
    """Whether chosen and rejected do harm; None where nobody said."""
    safer: Literal["chosen", "rejected"] | None = None
    """The side that does less harm; None where nobody said."""
    ranking: str | None = None
    """Which ranking of K answers it comes from."""
    ranks: tuple[int, int] = (1, 2)
    """Ranks of chosen and rejected there, 1 the best."""

    @property
    def prompt(self) -> tuple[int, ...]:
        return tuple(self.chosen[: self.starts[0]])

    def by_harm(self) -> Pair:
        """The same pair with the side that does more harm in the place of the chosen one."""
        if self.safer == "rejected":
            return self
        return Pair(self.rejected, self.chosen, self.kind, self.starts[::-1], self.margin, self.unsafe and self.unsafe[::-1], "rejected")


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt, as whole chats in tokens, with their ranks: 1 is the best."""

    texts: list[list[int]]
    ranks: list[int]
    margin: float = 1.0
    unsafe: tuple[bool, ...] | None = None


def read_pairs(path: Path, words: PreTrainedTokenizerBase, context_tokens: int, at_most: int | None = None) -> tuple[list[Pair], int]:
    """The first `at_most` pairs, of them those of which both sides fit the context, and how many did not. Errors: BadInput naming the row."""
    rows = read_rows(path)[:at_most]
    for number, row in enumerate(rows, 1):
        _check(row, f"preferences: {path} row {number}")
    sides = [encode(words, [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in rows]) for side in SIDES]
    pairs = [_pair(row, chosen, rejected) for row, chosen, rejected in zip(rows, *sides, strict=True)]
    fitting = [p for p in pairs if max(len(p.chosen), len(p.rejected)) <= context_tokens]
    if not fitting:
        raise BadInput(f"preferences: {path} has {len(rows)} pairs, none of which fits {context_tokens} tokens: nothing would be learnt. Raise model.context_tokens or give shorter ones")
    return fitting, len(pairs) - len(fitting)


def _check(row: dict[str, Any], where: str) -> None:
    if missing := [key for key in ("prompt", *SIDES) if not row.get(key)]:
        raise BadInput(f"{where} has no {missing[0]}, so there is nothing to compare. Make the pairs again")
    if row["chosen"] == row["rejected"]:
        raise BadInput(f"{where} has equal sides ({row['chosen'][:60]!r}): it says nothing about what is better. Remove it or correct one side")
    margin, safer, safe = row.get("margin"), row.get("safer"), row.get("safe")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin)):
        raise BadInput(f"{where} has margin {margin!r}, which is no number: it could not be multiplied with the recipe's margin. Correct or remove it")
    if safer is not None and safer not in SIDES:
        raise BadInput(f"{where} has safer={safer!r}: it names neither side, so nothing could be learnt from it. Write chosen or rejected")
    if safe is not None and not (isinstance(safe, list) and len(safe) == 2 and all(isinstance(one, bool) for one in safe)):
        raise BadInput(f"{where} has safe={safe!r}: it must say for chosen and rejected whether they are without harm. Write for example [true, false]")
    if safer and safe and safe[0] != safe[1] and not safe[SIDES.index(safer)]:
        raise BadInput(f"{where} says that {safer} is safer, and that it is unsafe while the other is safe: one of the two is wrong, and both would be learnt. Correct safer or safe")


def _pair(row: dict[str, Any], chosen: tuple[list[int], list[bool]], rejected: tuple[list[int], list[bool]]) -> Pair:
    return Pair(
        chosen[0],
        rejected[0],
        row.get("kind", ""),
        (answer_start(chosen[1]), answer_start(rejected[1])),
        1.0 if row.get("margin") is None else float(row["margin"]),
        tuple(not one for one in row["safe"]) if row.get("safe") is not None else None,
        row.get("safer"),
        row.get("ranking"),
        tuple(row.get("ranks") or (1, 2)),
    )


def answer_start(counts: Sequence[bool]) -> int:
    """Where the last assistant turn begins: the tokens from there to the end of the turn are the answer, whatever turns the prompt has."""
    end = len(counts) - counts[::-1].index(True)
    return next((i + 1 for i in reversed(range(end)) if not counts[i]), 0)


def half(pairs: list[Pair], share: Literal["all", "first_half", "second_half"]) -> list[Pair]:
    """All pairs, or those of the first or of the other half of the prompts, so that both sides of a prompt stay on one side. Errors: BadInput."""
    if share == "all":
        return pairs
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    first = set(prompts[: len(prompts) // 2])
    found = [pair for pair in pairs if (pair.prompt in first) == (share == "first_half")]
    if not found:
        raise BadInput(f"preferences: share={share} of {len(prompts)} prompts is none, so nothing would be learnt. Give more prompts, or share=all")
    return found


def by_harm(pairs: list[Pair], path: Path) -> list[Pair]:
    """The pairs that say which side does less harm and whether the sides are safe, the more harmful one in the place of `chosen`. Errors: BadInput."""
    found = [pair.by_harm() for pair in pairs if pair.safer and pair.unsafe]
    if not found:
        raise BadInput(f"preferences: none of the {len(pairs)} pairs of {path} says `safer` and `safe`, so no cost could be learnt. Add pairs that do, or data.curriculum.safety")
    return found


def rankings(pairs: list[Pair]) -> list[Ranking]:
    """Each ranking whole again, answers by rank; a pair that comes from none is a ranking of two. In the order of the first pair of each."""
    groups: dict[Any, dict[tuple[int, ...], int]] = {}
    for number, pair in enumerate(pairs):
        answers = groups.setdefault(number if pair.ranking is None else pair.ranking, {})
        answers |= {tuple(pair.chosen): pair.ranks[0], tuple(pair.rejected): pair.ranks[1]}
    ordered = [sorted(answers.items(), key=lambda answer: answer[1]) for answers in groups.values()]
    return [Ranking([list(text) for text, _ in answers], [rank for _, rank in answers]) for answers in ordered]
