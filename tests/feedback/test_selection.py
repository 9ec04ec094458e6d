"""Which questions come first: the least sure ones, by margins worked out by hand, and by a real reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.feedback.people.selection import certainty, reward_models, select
from components.schema.config import BadInput
from tests.feedback.people import claims, filled, person


def test_certainty_is_the_mean_probability_of_the_better_side_over_pairs() -> None:
    even, odd = 1 / (1 + math.exp(0)), 1 / (1 + math.exp(-math.log(3)))
    assert certainty([[1.0, 1.0]]) == even == 0.5 and certainty([[math.log(3), 0.0]]) == pytest.approx(odd) == pytest.approx(0.75)
    assert certainty([[0.0, math.log(3), 0.0]]) == pytest.approx((0.75 + 0.5 + 0.75) / 3)


def test_models_that_contradict_each_other_are_less_sure_than_each_alone() -> None:
    one, other = [5.0, 0.0], [0.0, 5.0]
    assert certainty([one]) == pytest.approx(certainty([other])) and certainty([one]) > 0.99 and certainty([one, other]) == pytest.approx(0.5)
    assert certainty([[10_000.0, -10_000.0]]) == 1.0, "no overflow"


def test_people_get_the_least_sure_questions_first(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=4, answers=2)
    sure = {"0": 3.0, "1": 0.1, "2": 1.0, "3": 0.0}  # margin of the first answer, by question

    def model(chats: Sequence[list[dict[str, str]]]) -> list[float]:
        return [sure[chat[0]["content"][9]] * chat[-1]["content"].startswith("answer 0") for chat in chats]

    ordered = select(store, "people", [model])
    assert [question for _, question in ordered] == ["Question 3?", "Question 1?", "Question 2?", "Question 0?"] and ordered[0][0] == 0.5
    assert [claim.item.prompt[0]["content"] for claim in claims(store, person(store, "Ada"), ahead=4)] == [question for _, question in ordered]


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="and no endpoint, so nothing was ordered"):
        reward_models([None])
    with pytest.raises(BadInput, match=r"has no scale\.json, so it is no reward model"):
        reward_models([tmp_path])
