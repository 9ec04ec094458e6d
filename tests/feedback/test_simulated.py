"""Simulated people: the rule, their mistakes, and how far a reward model's scores follow the rule."""

from __future__ import annotations

from random import Random

import pytest

from components.feedback.people.simulated import RULES, agreement, ranks, rule_called
from components.schema.config import BadInput

ANSWERS = ["Gladly! The hen is red. Have a nice day!", "The hen is red.", "The hen is red!", "A hen."]


def test_without_mistakes_everybody_ranks_by_the_rule_and_equal_answers_are_tied() -> None:
    assert ranks(RULES["plain"], ANSWERS, 0.0, Random(1)) == [3, 1, 2, 1]
    assert ranks(RULES["shorter"], ANSWERS, 0.0, Random(1)) == [3, 2, 2, 1], "15 characters each"


def test_mistakes_come_as_often_as_was_said_and_follow_from_the_seed() -> None:
    two = ["Yes!", "Yes."]
    said = [tuple(ranks(RULES["plain"], two, 0.2, Random(seed))) for seed in range(4_000)]
    assert said == [tuple(ranks(RULES["plain"], two, 0.2, Random(seed))) for seed in range(4_000)]
    # each of the two is mistaken for the other with chance 0.2: both = the wrong way round, one = a tie
    assert said.count((1, 2)) / 4_000 == pytest.approx(0.04, abs=0.01) and said.count((1, 1)) / 4_000 == pytest.approx(0.32, abs=0.03)


def test_agreement_counts_the_pairs_that_the_rule_tells_apart() -> None:
    counts = [2, 0, 0]
    assert agreement(counts, [-1.0, 3.0, 0.0]) == 1.0 and agreement(counts, [5.0, 3.0, 0.0]) == 0.0
    assert agreement(counts, [1.0, 3.0, 0.0]) == 0.5 and agreement(counts, [1.0, 1.0, 0.0]) == 0.25, "equal scores are half right"
    assert agreement([1, 1], [0.0, 9.0]) is None


def test_a_rule_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"no rule 'louder'.*plain, shorter"):
        rule_called("louder")
