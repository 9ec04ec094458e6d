"""How far people agree, against the library and against numbers worked out by hand."""

from __future__ import annotations

from itertools import permutations
from random import Random

import krippendorff
import numpy as np
import pytest

from components.feedback.people import agreement
from components.feedback.people.opinions import Said
from components.feedback.people.store import Item
from components.schema.people import Opinion


def one(item: int, annotator: str, ranks: tuple[int, ...] | None, gold: list[int] | None = None) -> Said:
    answers = [{"text": str(k), "model": f"m{k}"} for k in range(len(ranks or (1, 2, 3)))]
    asked = Item(id=item, dataset="people", digest=f"{item:032}", prompt=[{"role": "user", "content": f"q{item}"}], answers=answers, gold=gold)
    return Said(asked, annotator, Opinion(ranks=ranks, all_bad=ranks is None), 0.0)


def table(rankings: list[Said]) -> np.ndarray:
    """People by pairs in both directions, NaN where somebody said nothing: what the library reads first."""
    units = sorted({(r.item.id, *pair) for r in rankings for pair in permutations(range(len(r.item.answers)), 2)})
    rows = {name: [np.nan] * len(units) for name in sorted({r.annotator for r in rankings})}
    for r in rankings:
        for i, (item, first, second) in enumerate(units):
            if item == r.item.id:
                rows[r.annotator][i] = float(np.sign(r.opinion.ranks[second] - r.opinion.ranks[first]))
    return np.array(list(rows.values()))


def noisy(seed: int, people: int = 4, items: int = 12) -> list[Said]:
    rng = Random(seed)
    found = []
    for item in range(items):
        truth = [rng.random() for _ in range(3)]
        for name in rng.sample([f"p{i}" for i in range(people)], rng.randint(1, people)):
            seen = [t + rng.gauss(0, 0.4) for t in truth]
            found.append(one(item, name, tuple(1 + sum(x > y + 0.1 for x in seen) for y in seen)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_library_s_over_who_said_what_about_each_pair(seed: int) -> None:
    rankings = noisy(seed)
    found = agreement.figures(rankings)
    for name, level in (("alpha", "ordinal"), ("alpha_nominal", "nominal")):
        assert found[name] == pytest.approx(krippendorff.alpha(table(rankings), level_of_measurement=level), abs=1e-9)


def test_alpha_does_not_depend_on_how_answers_are_numbered() -> None:
    rankings = noisy(5)
    turned = [one(r.item.id, r.annotator, r.opinion.ranks[::-1]) for r in rankings]
    assert agreement.figures(turned)["alpha"] == pytest.approx(agreement.figures(rankings)["alpha"])


def test_the_alpha_of_the_only_item_is_the_alpha_of_all() -> None:
    found = agreement.figures([one(1, "Ada", (1, 2, 3)), one(1, "Bo", (1, 3, 2)), one(1, "Cy", (2, 1, 3))])
    assert found["by_item"][0]["alpha"] == pytest.approx(found["alpha_nominal"])
    assert found["by_item"][0]["agree"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3), "0-1: two of three, 0-2: all, 1-2: two of three"


def test_who_disagrees_is_seen_by_person_and_by_item() -> None:
    rankings = [one(item, name, (1, 2, 3)) for item in range(6) for name in ("Ada", "Bo")]
    rankings += [one(item, "Cy", (3, 2, 1) if item < 3 else (1, 2, 3)) for item in range(6)]
    found = agreement.figures(rankings)
    people = {row["annotator"]: row for row in found["by_annotator"]}
    assert people["Cy"]["agree"] == 0.5 and people["Ada"]["agree"] == 0.75
    assert people["Cy"]["alpha_without"] == 1.0 > found["alpha"] > people["Ada"]["alpha_without"]
    assert [row["agree"] for row in found["by_item"]] == pytest.approx([1 / 3] * 3 + [1.0] * 3)


def test_known_questions_count_as_right_or_wrong_and_not_in_alpha() -> None:
    rankings = [one(1, "Ada", (1, 2, 3), gold=[1, 2, 2]), one(1, "Bo", (2, 2, 1), gold=[1, 2, 2]), one(2, "Ada", (1, 2, 3)), one(2, "Bo", (1, 2, 3))]
    found = agreement.figures(rankings)
    assert agreement.gold_accuracy(rankings) == {"Ada": 1.0, "Bo": 0.25}, "of two known pairs Bo has one tied and one wrong"
    assert found["gold"] == {"rankings": 2, "accuracy": 0.625} and found["alpha"] == 1.0 and found["rankings"] == 2


def test_with_nothing_to_compare_alpha_is_not_known() -> None:
    for rankings in ([], [one(1, "Ada", (1, 2, 3))], [one(1, "Ada", (1, 1, 1)), one(1, "Bo", None)]):
        assert agreement.figures(rankings)["alpha"] is None
    assert agreement.word(None).startswith("not known yet") and agreement.word(0.81) == "reliable" and agreement.word(0.3).startswith("too low")


def test_models_are_told_apart_by_whose_answers_win() -> None:
    found = agreement.by_model([one(1, "Ada", (1, 2, 2)), one(2, "Ada", (1, 2, 3), gold=[1, 2, 3])])
    assert [(row["model"], row["better"], row["pairs"]) for row in found] == [("m0", 1.0, 2), ("m1", 0.25, 2), ("m2", 0.25, 2)]
