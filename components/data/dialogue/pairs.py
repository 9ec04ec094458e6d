"""Preference pairs out of rows: two sides of one prompt, or K ranked answers to it.

    {"prompt": [turns], "chosen": "...", "rejected": "..."}
    {... "ranking": "9f...", "ranks": [1, 3], "of": 4}          # from K ranked answers: group, ranks of the two sides, K
    {... "safer": "rejected", "safe": [False, True]}            # which side does less harm, and whether (chosen, rejected) are without harm
    {... "margin": 0.5}                                         # how much better the chosen side is, where the source says it

**K ranked answers** become pairs of unequal rank: all of them up to ALL_PAIRS answers, as Ouyang et al. 2022 (arXiv:2203.02155,
section 3.5) compare their 4 to 9. Above that K(K-1)/2 would let one prompt outweigh hundreds, so an answer is compared
with one of the next rank only: that still tells the whole order, and names every answer, so that `ranking` and `ranks`
regroup them for a Plackett-Luce loss. Rank 1 is the best; equal answers share a rank, and the next rank is one more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, groupby, pairwise
from typing import Any

from components.data.dialogue.turns import (
    Changes,
    Message,
    Unfit,
    answer,
    instructed,
    introduced,
    is_transcript,
    prompt,
    question,
    text,
    transcript,
)
from components.schema.records import digest

ALL_PAIRS = 9  # the most answers of which every pair of unequal rank is kept
ANSWERS = ("answers", "responses", "completions")
PROMPTS = ("prompt", "question", "conversations", "messages")
_TEXTS = ("answer", "response", "text", "completion", "content", "value")
_IN_EACH = {"rank": 1, "score": -1, "fine-grained_score": -1, "overall_score": -1}  # UltraFeedback's mean of four aspects before its one judgement

Pair = dict[str, Any]


def asked(values: dict[str, Any]) -> list[Message]:
    """The turns of a row's prompt columns; none where it has no such column. Raises Unfit."""
    column = next((name for name in PROMPTS if values.get(name) is not None), None)
    if column is None and values.get("instruction") is None:
        return []
    return introduced(values, question(values[column]) if column else instructed(values))


def two_sides(values: dict[str, Any]) -> tuple[list[Pair], Changes]:
    """One pair from `chosen` and `rejected`, with the prompt in columns of its own or as the turns that both sides share. Raises Unfit."""
    chosen, rejected = (_side(values[side]) for side in ("chosen", "rejected"))
    shared = chosen[:-1]
    if shared != rejected[:-1]:
        raise Unfit("sides_part_before_the_last_turn", f"chosen has {len(chosen)} turns, rejected {len(rejected)}")
    if wrong := [side[-1]["role"] for side in (chosen, rejected) if side[-1]["role"] != "assistant"]:
        raise Unfit("side_does_not_end_with_the_assistant", f"a side ends with the {wrong[0]}")
    if chosen[-1]["content"] == rejected[-1]["content"]:
        raise Unfit("sides_are_equal", chosen[-1]["content"][:80])
    turns, changes = prompt(_joined(asked(values), shared))
    return [{"prompt": turns, "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"], **_judged(values)}], changes


def _judged(values: dict[str, Any]) -> dict[str, Any]:
    """What a row says about its two sides besides which is better, in the columns of our own files. Raises Unfit where that has no sense."""
    found = {name: values[name] for name in ("margin", "safer", "safe") if values.get(name) is not None}
    if "margin" in found and (isinstance(found["margin"], bool) or not isinstance(found["margin"], int | float) or not math.isfinite(found["margin"])):
        raise Unfit("margin_is_no_number", f"margin is {str(found['margin'])[:60]!r}")
    if found.get("safer", "chosen") not in ("chosen", "rejected"):
        raise Unfit("safer_names_no_side", f"safer is {str(found['safer'])[:60]!r}; it must be chosen or rejected")
    if "safe" in found and (not isinstance(found["safe"], list) or [type(one) for one in found["safe"]] != [bool, bool]):
        raise Unfit("safe_is_not_two_truths", f"safe is {str(found['safe'])[:60]!r}; it must be [of chosen, of rejected], true or false")
    if {"safer", "safe"} <= found.keys() and found["safe"] == [found["safer"] == "rejected", found["safer"] == "chosen"]:
        raise Unfit("the_safer_side_is_the_unsafe_one", f"safer is {found['safer']}, safe is {found['safe']}")
    return found


def safe_rlhf(values: dict[str, Any]) -> tuple[list[Pair], Changes]:
    """One pair from two responses with the numbers of the better and of the safer one, and whether each is safe. Raises Unfit."""
    better, safer = (values[name] for name in ("better_response_id", "safer_response_id"))
    if wrong := [number for number in (better, safer) if type(number) is not int or number not in (0, 1)]:
        raise Unfit("response_id_is_neither_0_nor_1", f"better_response_id is {better!r}, safer_response_id {safer!r}: {wrong[0]!r} names no response")
    safe = [values.get(f"is_response_{number}_safe") for number in (better, 1 - better)]
    sides = {side: values[f"response_{number}"] for side, number in (("chosen", better), ("rejected", 1 - better))}
    return two_sides({"prompt": values["prompt"], **sides, "safer": "chosen" if safer == better else "rejected", "safe": safe})


def _side(value: Any) -> list[Message]:
    return transcript(value) if is_transcript(value) else answer(value)


def _joined(asked: list[Message], shared: list[Message]) -> list[Message]:
    """The prompt of a row that may tell it twice: in its own columns and at the head of both sides, where it is whole but for a system turn."""
    if not shared or asked[-len(shared) :] == shared:
        return asked
    return [*(turn for turn in asked[:1] if turn["role"] == "system" != shared[0]["role"]), *shared]


def ranked(values: dict[str, Any]) -> tuple[list[Pair], Changes]:
    """Pairs from K answers with `ranks` (1 is best), `scores` (higher is better), `ranking` (numbers of the answers from 0, the best first),
    or a rank or score in each answer. Raises Unfit."""
    given = next(values[name] for name in ANSWERS if isinstance(values.get(name), list))
    if len(given) < 2:
        raise Unfit("fewer_than_two_answers", f"{len(given)} answers")
    turns, changes = prompt(asked(values))
    answers = _in_order(given, _ranks(values, given))
    if len(answers) < len(given):
        changes += ("empty_or_repeated_answers_left_out",)
    if not answers or answers[0][0] == answers[-1][0]:
        raise Unfit("answers_all_of_one_rank", f"{len(answers)} different answers")
    group = {"ranking": digest([turns, answers])[:16], "of": len(answers)}
    return [{"prompt": turns, "chosen": c, "rejected": r, **group, "ranks": [better, worse]} for (better, c), (worse, r) in _compared(answers)], changes


def _ranks(values: dict[str, Any], given: list[Any]) -> list[float]:
    """For each answer a number, the lower the better."""
    if values.get("ranking") is not None:
        order = values["ranking"]
        if not isinstance(order, list) or any(type(i) is not int for i in order) or sorted(order) != list(range(len(given))):
            raise Unfit("ranking_is_no_order_of_the_answers", f"ranking is {str(order)[:60]}; it must number the {len(given)} answers from 0, the best first")
        return [order.index(i) for i in range(len(given))]
    if values.get("ranks") is not None:
        return _numbers(values["ranks"], "ranks", given)
    if values.get("scores") is not None:
        return [-score for score in _numbers(values["scores"], "scores", given)]
    if all(isinstance(one, dict) for one in given):
        for name, sign in _IN_EACH.items():
            if all(one.get(name) is not None for one in given):
                return [sign * number for number in _numbers([one[name] for one in given], name, given)]
    raise Unfit("answers_without_ranks", "neither ranking, ranks nor scores, and no rank or score in each answer")


def _numbers(found: Any, what: str, given: list[Any]) -> list[float]:
    if not isinstance(found, list) or len(found) != len(given):
        raise Unfit("not_one_rank_for_each_answer", f"{what}: {str(found)[:60]} for {len(given)} answers")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and one == one for one in found):
        raise Unfit("ranks_are_not_numbers", f"{what}: {str(found)[:60]}")
    return found


def _in_order(given: list[Any], ranks: list[float]) -> list[tuple[int, str]]:
    """Answers with their rank, the best first; empty ones left out, and of equal texts all but the best."""
    best: dict[str, float] = {}
    for one, rank in zip(given, ranks, strict=True):
        if said := _text(one):
            best[said] = min(rank, best.get(said, rank))
    places = {rank: place for place, rank in enumerate(sorted(set(best.values())), start=1)}
    return sorted((places[rank], said) for said, rank in best.items())


def _text(value: Any) -> str | None:
    """An answer's text; None where it is empty. Raises Unfit where it is something else than text."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        value = next((value[name] for name in _TEXTS if value.get(name) is not None), None)
    return None if value is None or (isinstance(value, str) and not value.strip()) else text(value, "answer")


def _compared(answers: list[tuple[int, str]]) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    """Pairs of answers, the better first. answers: sorted by rank."""
    if len(answers) <= ALL_PAIRS:
        yield from ((a, b) for a, b in combinations(answers, 2) if a[0] < b[0])
        return
    for upper, lower in pairwise(list(members) for _, members in groupby(answers, key=lambda answer: answer[0])):
        yield from ((upper[i % len(upper)], lower[i % len(lower)]) for i in range(max(len(upper), len(lower))))
