"""How far people agree: Krippendorff's alpha over pairs of answers, by item and by person, and how often they are right where that is known.

    figures(store.read(lambda session: said(session, "people")))

A unit is a pair of answers to one prompt, its value what a person says: the first is better, both are alike, the second is better. Alpha is 1
minus the observed over the expected disagreement (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): 1 = they agree, 0 = as by
chance. Every pair counts in both directions, so that nothing depends on which answer is called the first. "All bad" without ranks says
that all are alike. Known questions are left out of alpha: that people agree on the easy ones says little about the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, permutations
from statistics import fmean, median
from typing import Any

import krippendorff
import numpy as np

from components.feedback.people.opinions import Said

VALUES = (-1, 0, 1)  # the second is better, both are alike, the first is better
RELIABLE, TENTATIVE = 0.8, 0.667  # Krippendorff 2004, "Content Analysis", page 241

Counts = np.ndarray  # (units, 3): how many people gave each value


def figures(rankings: Sequence[Said]) -> dict[str, Any]:
    """All of it; alpha is None where no two people ranked the same item, or where all always said the same."""
    asked = [one for one in rankings if one.item.gold is None]
    by_item = _by(asked, lambda one: one.item.id)
    several = {item: group for item, group in by_item.items() if len(group) > 1}
    counts = _counts(several.values())
    return {
        "rankings": len(asked),
        "items": len(by_item),
        "items_by_several": len(several),
        "annotators": len({one.annotator for one in rankings}),
        "alpha": alpha(counts, "ordinal"),
        "alpha_nominal": alpha(counts, "nominal"),
        "gold": _gold(rankings),
        "by_item": sorted((_item(group, counts) for group in several.values()), key=lambda row: (row["agree"], row["item"])),
        "by_annotator": [_annotator(name, own, several) for name, own in sorted(_by(rankings, lambda one: one.annotator).items())],
    }


def alpha(counts: Counts, level: str) -> float | None:
    """Krippendorff's alpha of counted values; None where there is nothing to compare."""
    pairable = counts[counts.sum(1) > 1]
    if not len(pairable) or (pairable.sum(0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, value_domain=list(VALUES), level_of_measurement=level))


def word(value: float | None) -> str:
    """What an alpha means, in a few words."""
    if value is None:
        return "not known yet: no two people have ranked the same questions, or they never differed"
    if value >= RELIABLE:
        return "reliable"
    return "good enough for tentative conclusions" if value >= TENTATIVE else "too low to rely on: look at the questions below, and at what people are told"


def gold_accuracy(rankings: Iterable[Said]) -> dict[str, float]:
    """By person: the share of known pairs that they have in the right order, a tie counting half. Those who saw none are not there."""
    known = _by((one for one in rankings if one.item.gold is not None), lambda one: one.annotator)
    return {name: fmean(right for one in own for right in _right(one)) for name, own in known.items()}


def by_model(rankings: Iterable[Said]) -> list[dict[str, Any]]:
    """By model: how often its answers are better than other models' to the same prompt, a tie counting half; the best first. Answers that several models gave do not count. For who asks, never for who ranks."""
    won: dict[str, list[float]] = defaultdict(list)
    for one in rankings:
        for first, second in permutations(range(len(one.item.answers)), 2):
            model, other = one.item.answers[first]["model"], one.item.answers[second]["model"]
            if one.item.gold is None and model and other and model != other:
                won[model].append((order(one, first, second) + 1) / 2)
    return sorted(({"model": model, "better": fmean(all), "pairs": len(all)} for model, all in won.items()), key=lambda row: -row["better"])


def order(one: Said, first: int, second: int) -> int:
    """What a person says about two answers, as one of VALUES."""
    ranks = one.opinion.ranks
    return 0 if ranks is None else (ranks[second] > ranks[first]) - (ranks[second] < ranks[first])


def _right(one: Said) -> Iterator[float]:
    assert one.item.gold is not None
    for first, second in permutations(range(len(one.item.gold)), 2):
        if one.item.gold[first] < one.item.gold[second]:
            yield (order(one, first, second) + 1) / 2


def _gold(rankings: Sequence[Said]) -> dict[str, Any]:
    known = [one for one in rankings if one.item.gold is not None]
    return {"rankings": len(known), "accuracy": fmean(right for one in known for right in _right(one)) if known else None}


def _counts(groups: Iterable[Sequence[Said]]) -> Counts:
    """A row for each pair of each group's answers, in both directions."""
    rows = [
        [sum(order(one, *pair) == value for one in group) for value in VALUES] for group in groups for pair in permutations(range(len(group[0].item.answers)), 2)
    ]
    return np.array(rows, dtype=int).reshape(-1, len(VALUES))


def _item(group: Sequence[Said], everybody: Counts) -> dict[str, Any]:
    """One item: how many pairs of judgements agree, and its own alpha, which measures its disagreement by what chance gives over all items."""
    counts, item = _counts([group]), group[0].item
    shown = item.prompt[-1]["content"]
    observed, expected = 1 - _agree(counts), _expected(everybody)
    return {"item": item.id, "prompt": shown, "annotators": len(group), "agree": 1 - observed, "alpha": 1 - observed / expected if expected else None}


def _agree(counts: Counts) -> float:
    """Share of pairs of judgements about one unit that are the same, over units judged by equally many."""
    people = counts.sum(1)
    return float(((counts * (counts - 1)).sum(1) / (people * (people - 1))).mean())


def _expected(counts: Counts) -> float:
    """Share of all pairs of judgements, whoever made them about whatever, that differ (nominal)."""
    totals = counts.sum(0)
    n = totals.sum()
    return float(1 - (totals * (totals - 1)).sum() / (n * (n - 1)))


def _annotator(name: str, own: Sequence[Said], several: dict[Any, list[Said]]) -> dict[str, Any]:
    """One person: how often they say what another says, and alpha without them (higher than with them: they are the odd one out)."""
    mine = {one.item.id: one for one in own if one.item.id in several}
    same = [
        order(one, *pair) == order(other, *pair)
        for item, one in mine.items()
        for other in several[item]
        if other.annotator != name
        for pair in combinations(range(len(one.item.answers)), 2)
    ]
    others = [[one for one in group if one.annotator != name] for group in several.values()]
    known = gold_accuracy(own)
    return {
        "annotator": name,
        "rankings": sum(one.item.gold is None for one in own),
        "agree": fmean(same) if same else None,
        "alpha_without": alpha(_counts(group for group in others if len(group) > 1), "ordinal"),
        "gold": sum(one.item.gold is not None for one in own),
        "gold_accuracy": known.get(name),
        "seconds": median(one.opinion.seconds for one in own),
    }


def _by(rankings: Iterable[Said], key: Any) -> dict[Any, list[Said]]:
    groups: dict[Any, list[Said]] = defaultdict(list)
    for one in rankings:
        groups[key(one)].append(one)
    return groups
