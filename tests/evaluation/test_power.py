"""How often the gate is wrong, by simulation of evaluations whose truth is known, and how often it sees what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from components.evaluation import gate
from components.evaluation.power import Shape, draw, items_needed, rates
from components.schema.config import BadInput
from components.schema.gate import Policy

SMALL, CODE, MATHS, KNOWLEDGE = Shape(46, 0.9, 0.1), Shape(164, 0.3), Shape(1319, 0.4), Shape(14042, 0.5, 0.3)


def at_most(share: float, trials: int) -> float:
    """What `trials` show at most, but once in a thousand times, where the chance is `share`."""
    return stats.binom.ppf(0.999, trials, share) / trials


UNCHANGED = [
    ({"a": SMALL}, Policy()),
    ({"a": CODE}, Policy()),
    ({"a": CODE}, Policy(test="bootstrap")),
    ({"a": MATHS}, Policy()),
    ({"a": MATHS, "b": CODE, "c": KNOWLEDGE}, Policy(margin=0.2)),
    ({str(i): Shape(400) for i in range(8)}, Policy(margin=0.2)),
    ({"a": MATHS, "b": KNOWLEDGE}, Policy(improvement={"a": 0.0})),
    ({"a": MATHS}, Policy(error_rate=0.01)),
    ({"a": Shape(120, 0.6, graded=True)}, Policy(margin=0.5)),
]
WORSE = [
    ({"a": CODE}, -0.05, Policy(improvement="none")),
    ({"a": MATHS}, -0.05, Policy(improvement="none")),
    ({"a": MATHS}, -0.05, Policy(improvement="none", test="bootstrap")),
    ({"a": SMALL}, -0.1, Policy(improvement="none", margin=0.1)),
    ({"a": MATHS, "b": KNOWLEDGE}, {"a": 0.1, "b": -0.02}, Policy(margin=0.02)),  # a gain elsewhere buys nothing
    ({"a": Shape(120, 0.6, graded=True)}, -0.1, Policy(improvement="none", margin=0.1)),
]


def trials_for(suites: dict[str, Shape], policy: Policy) -> int:
    """As many as take about a second."""
    return 150 if policy.test == "bootstrap" or len(suites) > 1 or next(iter(suites.values())).graded else 1000


@pytest.mark.parametrize(("suites", "policy"), UNCHANGED)
def test_a_model_without_any_change_is_promoted_at_most_as_often_as_the_policy_says(suites: dict[str, Shape], policy: Policy) -> None:
    trials = trials_for(suites, policy)
    assert rates(policy, suites, 0.0, trials).promote <= at_most(policy.error_rate, trials)


@pytest.mark.parametrize(("suites", "change", "policy"), WORSE)
def test_a_model_that_is_worse_by_a_margin_is_promoted_at_most_as_often(suites: dict[str, Shape], change: float | dict[str, float], policy: Policy) -> None:
    trials = trials_for(suites, policy)
    assert rates(policy, suites, change, trials).promote <= at_most(policy.error_rate, trials)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_error_rates_hold_over_thousands_of_trials() -> None:
    for suites, change, policy in [(suites, 0.0, policy) for suites, policy in UNCHANGED] + WORSE:
        found = rates(policy, suites, change, 2000, seed=1)
        print(policy.error_rate, found, suites)
        assert found.promote <= at_most(policy.error_rate + 0.003, 2000), (suites, change, policy)  # the score test and the bootstrap are approximations


def test_a_model_without_any_change_is_rarely_called_worse() -> None:
    suites = {str(i): Shape(400) for i in range(8)}
    found = rates(Policy(improvement="none", margin=0.001), suites, 0.0, 250)  # held only where something is worse
    assert found.hold <= at_most(0.05, 250) and found.promote == 0


def test_noise_that_was_measured_on_a_few_evaluations_keeps_the_promise() -> None:
    found = rates(Policy(margin=0.5), {"a": MATHS}, 0.0, 1000, spread=0.03, repeats=4)
    assert found.promote <= at_most(0.05, 1000)


def test_noise_that_nobody_measured_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.evaluation.power.decide", lambda mine, theirs, policy, noise: gate.decide(mine, theirs, policy, None))
    assert rates(Policy(margin=0.5), {"a": MATHS}, 0.0, 300, spread=0.03).promote > 0.2


def test_the_simulation_is_able_to_catch_a_gate_without_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "holm", list)
    assert rates(Policy(margin=0.2), {str(i): Shape(400) for i in range(8)}, 0.0, 200).promote > 0.15


@pytest.mark.parametrize(("gain", "disagreement"), [(0.02, 0.1), (0.03, 0.2), (0.05, 0.3)])
def test_the_items_needed_are_those_that_show_the_gain(gain: float, disagreement: float) -> None:
    items = items_needed(gain, disagreement, power=0.8)
    found = rates(Policy(margin=0.9), {"a": Shape(items, 0.5, disagreement)}, gain, 600).promote
    assert found == pytest.approx(0.8, abs=0.06)  # the formula is normal; the exact test is a little more cautious


def test_power_grows_with_the_gain_and_with_the_items() -> None:
    by_gain = [rates(Policy(), {"a": MATHS}, gain, 150).promote for gain in (0.0, 0.02, 0.04, 0.08)]
    by_items = [rates(Policy(margin=0.5), {"a": Shape(items)}, 0.04, 150).promote for items in (100, 400, 1600, 6400)]
    for curve in (by_gain, by_items):
        assert curve == sorted(curve) and curve[-1] > 0.95 and curve[0] < 0.2


def test_floors_and_limits_are_taken_to_hold() -> None:
    policy = Policy(limits={"latency.ms_per_token": {"most": 1}}, minimum_scores={"a": 1.0, "b": 1.0}, clean_only=True)
    assert rates(policy, {"a": MATHS}, 0.1, 50).promote > 0.9


def test_a_change_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match=r"a with 50 items.*differ on 0.2 of them cannot change by 0.3"):
        rates(Policy(), {"a": Shape(50)}, 0.3, 1)


def test_the_picture_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(Policy(), tmp_path / name, sizes=(50, 500), trials=3)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "<!-- 500 items -->" in (tmp_path / "one.svg").read_text()
