"""Intervals and tests, against brute force, other formulas, scipy, and their own coverage."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import optimize, stats

from components.evaluation.statistics import (
    Difference,
    bootstrap_p,
    cautious_error,
    holm,
    mcnemar,
    p_with_noise,
    paired_difference,
    paired_share_difference,
    share_p,
    sign_flip,
    unpaired_difference,
    unpaired_p,
    widened,
    wilson,
)


def pairs(won: int, lost: int, right: int = 0, wrong: int = 0) -> tuple[list[float], list[float]]:
    return [1.0] * won + [0.0] * lost + [1.0] * right + [0.0] * wrong, [0.0] * won + [1.0] * lost + [1.0] * right + [0.0] * wrong


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (9, 3), (3, 9), (40, 25)])
def test_mcnemar_is_the_binomial_test_of_the_items_that_differ(won: int, lost: int) -> None:
    expected = [stats.binomtest(won, won + lost, alternative=side).pvalue if won + lost else 1.0 for side in ("two-sided", "greater")]
    a, b = pairs(won, lost, 7, 4)
    assert [mcnemar(a, b), mcnemar(a, b, "greater")] == pytest.approx(expected)


def test_mcnemar_is_the_permutation_test_over_every_swap_of_the_two_models() -> None:
    a, b = pairs(6, 2, 1, 1)
    seen = sum(a) - sum(b)
    swaps = [sum((x - y) * sign for x, y, sign in zip(a, b, signs, strict=True)) for signs in itertools.product((1, -1), repeat=len(a))]
    assert mcnemar(a, b, "greater") == pytest.approx(sum(s >= seen for s in swaps) / len(swaps))


def test_random_swaps_come_to_what_all_swaps_say() -> None:
    rng = random.Random(0)
    for values in ([0.0, 0.25, 0.5, 1.0], None):  # counted by value, and each by itself
        a, b = ([rng.choice(values) if values else rng.random() for _ in range(14)] for _ in range(2))
        d = [x + 0.1 - y for x, y in zip(a, b, strict=True)]
        sums = [sum(x * sign for x, sign in zip(d, signs, strict=True)) for signs in itertools.product((1, -1), repeat=14)]
        assert sign_flip(d, [0.0] * 14) == pytest.approx(sum(s >= sum(d) - 1e-9 for s in sums) / len(sums), abs=0.015)


def test_random_swaps_of_right_and_wrong_are_mcnemars_test() -> None:
    for won, lost in ((20, 9), (30, 30), (5, 0)):
        a, b = pairs(won, lost, 200, 100)
        assert sign_flip(a, b, resamples=40_000) == pytest.approx(mcnemar(a, b, "greater"), abs=0.008)


def test_equal_scores_are_no_difference() -> None:
    assert sign_flip([0.3, 0.7], [0.3, 0.7]) == 1.0 and bootstrap_p([0.3] * 9, [0.3] * 9) > 0.5


def test_scores_that_are_neither_right_nor_wrong_are_not_counted_as_such() -> None:
    with pytest.raises(ValueError, match="neither 1 nor 0: use the bootstrap"):
        mcnemar([1.0, 0.5], [0.0, 1.0])


def tango_by_maximum_likelihood(won: int, lost: int, n: int, difference: float) -> float:
    """The statistic with its nuisance share found by a search instead of the formula."""

    def loss(lost_share: float) -> float:
        won_share, same = lost_share + difference, 1 - 2 * lost_share - difference
        terms = [(won, won_share), (lost, lost_share), (n - won - lost, same)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in terms if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (won - lost - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(("won", "lost", "n"), [(9, 3, 40), (3, 9, 40), (20, 20, 100), (1, 6, 50), (80, 100, 1319)])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_the_score_test_uses_the_restricted_maximum_likelihood(won: int, lost: int, n: int, margin: float) -> None:
    a, b = pairs(won, lost, n - won - lost)
    assert share_p(a, b, margin) == pytest.approx(stats.norm.sf(tango_by_maximum_likelihood(won, lost, n, -margin)), abs=1e-6)


def test_the_ends_of_the_score_interval_are_where_the_score_test_just_rejects() -> None:
    a, b = pairs(12, 20, 60, 8)
    _, low, high = paired_share_difference(a, b, level=0.9)
    assert share_p(a, b, -low) == pytest.approx(0.05, abs=1e-6)
    assert share_p(b, a, high) == pytest.approx(0.05, abs=1e-6)


def test_models_that_agree_on_five_items_are_not_thereby_equal() -> None:
    difference, low, high = paired_share_difference([1.0] * 5, [1.0] * 5)
    z2 = stats.norm.ppf(0.975) ** 2
    assert difference == 0 and high == pytest.approx(z2 / (5 + z2)) and low == pytest.approx(-high)  # by hand: n d = z^2 (1 - d)
    assert share_p([1.0] * 5, [1.0] * 5, 0.05) > 0.2 and share_p([1.0] * 500, [1.0] * 500, 0.05) < 1e-6


def test_the_bootstrap_interval_is_students_where_differences_are_normal() -> None:
    d = np.random.default_rng(0).normal(0.1, 1, 40)
    found = paired_difference(d, np.zeros(40), resamples=40_000)
    expected = stats.t.interval(0.95, 39, d.mean(), stats.sem(d))
    assert found.difference == pytest.approx(d.mean())
    assert [found.low, found.high] == pytest.approx(expected, abs=0.03)


def test_the_bootstrap_by_counts_and_by_indices_have_one_distribution() -> None:
    rng = np.random.default_rng(1)
    few = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.2, 0.5, 0.3])  # counts
    many = few + rng.normal(0, 1e-9, 400)  # indices
    one, other = (paired_difference(d, np.zeros(400), resamples=20_000) for d in (few, many))
    assert one == pytest.approx(other, abs=0.006)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(600):
        mine, theirs = rng.beta(2, 2, 30), rng.beta(2, 2, 30)
        _, low, high = paired_difference(mine, theirs, resamples=600)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 600 <= 0.975  # 95 % within three standard errors


def test_the_bootstrap_p_is_alpha_where_the_interval_ends_at_the_margin() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(60), rng.random(60)
    _, low, high = paired_difference(a, b, level=0.9)
    assert bootstrap_p(a, b, -low) == pytest.approx(0.05, abs=0.002)
    assert bootstrap_p(b, a, high) == pytest.approx(0.05, abs=0.005)


def test_the_order_of_the_items_changes_nothing() -> None:
    rng = random.Random(0)
    a, b = [rng.random() for _ in range(50)], [rng.random() for _ in range(50)]
    order = rng.sample(range(50), 50)
    assert paired_difference(a, b) == paired_difference([a[i] for i in order], [b[i] for i in order])


def test_one_item_and_no_item_say_nothing() -> None:
    assert paired_difference([1.0], [0.0]) == Difference(1.0, -math.inf, math.inf) and bootstrap_p([1.0], [0.0]) == 1.0
    with pytest.raises(ValueError, match="at least one item"):
        paired_difference([], [])
    with pytest.raises(ValueError, match=r"shapes are \(2,\) and \(1,\)"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference([math.nan], [1.0])


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (700, 1319)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(tuple(stats.binomtest(k, n).proportion_ci(0.95, "wilson")), abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_holm_by_hand_and_by_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    rng = random.Random(0)
    for _ in range(200):
        ps, alpha = [rng.random() ** 3 for _ in range(rng.randint(1, 6))], rng.choice([0.01, 0.05, 0.2])
        rejected, ordered = set(), sorted(range(len(ps)), key=ps.__getitem__)
        for rank, i in enumerate(ordered):  # step down until one stands
            if ps[i] > alpha / (len(ps) - rank):
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(ps)) if p <= alpha} == rejected


def test_holm_keeps_the_chance_of_any_false_rejection() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([min(holm(rng.random(5).tolist())) <= 0.05 for _ in range(4000)]) == pytest.approx(0.05, abs=0.011)


def test_independent_scores_are_compared_by_the_normal_test() -> None:
    assert unpaired_difference((0.5, 0.03), (0.4, 0.04)) == pytest.approx((0.1, 0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=1e-4)
    assert unpaired_p((0.5, 0.03), (0.5, 0.04), 0.05) == pytest.approx(stats.norm.sf(1.0))
    assert unpaired_p((0.5, 0.0), (0.5, 0.0)) == 1.0 and unpaired_p((0.6, 0.0), (0.5, 0.0)) == 0.0


def test_a_score_of_one_on_few_items_has_an_error_all_the_same() -> None:
    assert cautious_error(1.0, 8) == pytest.approx(math.sqrt(0.9 * 0.1 / 10))
    assert cautious_error(0.5, 10_000, stderr=0.02) == 0.02


def test_noise_that_is_well_known_adds_to_the_standard_error_in_quadrature() -> None:
    p = stats.norm.sf(0.06 / 0.02)
    assert p_with_noise(p, 0.06, 0.01, repeats=10**6) == pytest.approx(stats.norm.sf(0.06 / math.sqrt(0.02**2 + 2 * 0.01**2)), rel=1e-4)
    assert p_with_noise(p, 0.06, 0.0, 2) == p and p_with_noise(0.7, -0.01, 0.1, 2) == 0.7
    found = widened(Difference(0.06, 0.02, 0.1), 0.01, 10**6)
    assert found.low == pytest.approx(0.06 - math.hypot(0.04, 1.96 * math.sqrt(2) * 0.01), abs=1e-4)
    assert found.high - 0.06 == pytest.approx(0.06 - found.low)


@pytest.mark.parametrize(("own", "repeats"), [(0.02, 4), (0.5, 4), (1.0, 3), (5.0, 6)])
def test_a_spread_that_was_itself_estimated_keeps_the_level(own: float, repeats: int) -> None:
    """Differences of nothing but their own error and the noise of two scores, of variance 1 together; own is in its units."""
    rng, trials = np.random.default_rng(0), 4000
    seen = rng.normal(0, math.sqrt(own + 1), trials)
    spreads = np.sqrt(rng.chisquare(repeats - 1, trials) / (repeats - 1) / 2)
    ps = [p_with_noise(stats.norm.sf(d / math.sqrt(own)), d, s, repeats) for d, s in zip(seen, spreads, strict=True)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.047, abs=0.013)


def test_noise_that_is_barely_known_counts_for_more() -> None:
    p = stats.norm.sf(3.0)
    assert p_with_noise(p, 0.06, 0.02, repeats=3) > p_with_noise(p, 0.06, 0.02, repeats=30) > p
