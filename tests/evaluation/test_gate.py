"""The gate's decision, by hand-worked cases and by properties over random ones."""

from __future__ import annotations

import math
import random

import pytest

from components.evaluation.gate import Decision, decide
from components.schema.gate import GateConfig


def score(value: float, stderr: float = 0.05, metric: str = "acc") -> dict:
    return {"score": value, "stderr": stderr, "metric": metric}


def verdicts(decision: Decision) -> dict[str, str]:
    return {c.suite: c.verdict for c in decision.comparisons}


def test_the_first_model_is_promoted_where_every_floor_holds() -> None:
    decision = decide({"a": score(0.5)}, None, GateConfig(minimum_scores={"a": 0.5}))
    assert decision.action == "promote"
    assert decision.reason == "first release: there is no champion yet, and every floor holds (a)"


def test_the_first_model_is_held_below_a_floor() -> None:
    decision = decide({"a": score(0.49)}, None, GateConfig(minimum_scores={"a": 0.5}))
    assert decision.action == "hold" and "a 0.490 is below its floor 0.5" in decision.reason


def test_a_floor_on_a_suite_that_was_not_measured_holds() -> None:
    decision = decide({"a": score(0.9)}, None, GateConfig(minimum_scores={"b": 0.1}))
    assert decision.action == "hold" and "b was not measured (its floor is 0.1)" in decision.reason


def test_nothing_measured_is_never_promoted() -> None:
    assert decide({}, None, GateConfig()).action == "hold"
    assert decide({}, {}, GateConfig()).reason == "held: no suite was measured"


@pytest.mark.parametrize(("challenger", "action"), [(0.45, "promote"), (0.358, "hold"), (0.36, "promote"), (0.9, "promote"), (0.5, "promote")])
def test_worse_counts_from_two_standard_errors_of_the_difference(challenger: float, action: str) -> None:
    # by hand: 2 * sqrt(0.05^2 + 0.05^2) = 0.1414, so 0.5 may fall to 0.3586
    decision = decide({"a": score(challenger)}, {"a": score(0.5)}, GateConfig(noise_sigmas=2.0))
    assert decision.action == action
    assert decision.comparisons[0].noise == pytest.approx(0.141421, abs=1e-6)


def test_one_worse_suite_holds_whatever_the_others_gained() -> None:
    decision = decide({"a": score(0.99), "b": score(0.1)}, {"a": score(0.1), "b": score(0.9)}, GateConfig())
    assert decision.action == "hold"
    assert verdicts(decision) == {"a": "passes", "b": "worse"}
    assert "b 0.100 is worse than the champion's 0.900 by more than its noise 0.141" in decision.reason and "a 0" not in decision.reason


def test_a_suite_that_only_the_champion_has_holds_and_says_what_to_do() -> None:
    decision = decide({"a": score(0.5)}, {"a": score(0.5), "b": score(0.7)}, GateConfig())
    assert decision.action == "hold"
    assert "b was not measured (the champion has 0.700): add it to evals.suites, or release under another gate.model_name" in decision.reason


def test_a_suite_that_only_the_challenger_has_is_said_and_does_not_hold() -> None:
    decision = decide({"a": score(0.5), "b": score(0.0)}, {"a": score(0.5)}, GateConfig())
    assert decision.action == "promote" and decision.reason.endswith("the champion was not measured on b")


def test_scores_by_different_metrics_are_not_compared() -> None:
    decision = decide({"a": score(0.1, metric="acc")}, {"a": score(0.9, metric="exact_match")}, GateConfig())
    assert verdicts(decision) == {"a": "not comparable"} and "measured by another metric on a" in decision.reason


def test_equal_scores_without_any_noise_pass() -> None:
    assert decide({"a": score(1 / 3, 0.0)}, {"a": score(1 / 3, 0.0)}, GateConfig(noise_sigmas=0.0)).action == "promote"


def test_random_cases_agree_with_the_rule_stated_suite_by_suite() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        suites = rng.sample("abcd", rng.randint(1, 4))
        mine = {s: score(rng.random(), rng.random() / 10) for s in suites}
        theirs = {s: score(rng.random(), rng.random() / 10) for s in suites if rng.random() < 0.8}
        config = GateConfig(noise_sigmas=rng.choice([0.0, 1.0, 2.0, 4.0]), minimum_scores={s: rng.random() / 2 for s in suites if rng.random() < 0.2})
        fine = all(
            mine[s]["score"] >= config.minimum_scores.get(s, 0.0)
            and (s not in theirs or theirs[s]["score"] - mine[s]["score"] <= config.noise_sigmas * math.sqrt(mine[s]["stderr"] ** 2 + theirs[s]["stderr"] ** 2))
            for s in suites
        )
        decision = decide(mine, theirs, config)
        assert (decision.action == "promote") == fine, (mine, theirs, config)
        assert {c.suite for c in decision.comparisons} == set(suites)
        seen.add(decision.action)
    assert seen == {"promote", "hold"}


def test_a_better_challenger_is_never_held_where_a_worse_one_was_promoted() -> None:
    rng = random.Random(1)
    for _ in range(500):
        low = rng.random()
        high = low + rng.random() * (1 - low)
        champion, config = {"a": score(rng.random())}, GateConfig(minimum_scores={"a": rng.random()})
        if decide({"a": score(low)}, champion, config).action == "promote":
            assert decide({"a": score(high)}, champion, config).action == "promote"
