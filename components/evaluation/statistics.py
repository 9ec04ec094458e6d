"""Intervals and tests for scores that two models got on the same items. Pure functions of arrays.

    paired_difference(mine, theirs, seed=0)   # Difference(difference=0.031, low=0.008, high=0.054)
    mcnemar(mine, theirs)                     # 0.011

In every function of two arrays, `a` and `b` hold one score an item, (N,), the same item at the same place, and the difference is a - b.
Levels and p-values are shares in [0, 1]. No result depends on the order of the items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

Side = Literal["two-sided", "greater"]  # "greater": the question is whether a is better than b
RESAMPLES = 10_000
Z = 1.959964  # standard errors to either side of an interval of 95 %
ITEMS_A_VALUE = 8  # where a value stands for so many items on average, a resample is drawn as counts of the values: faster
DRAWS_AT_ONCE = 1_000_000  # random indices held at once, else
TINY = 1e-12


class Difference(NamedTuple):
    """mean(a) - mean(b) and its interval, in the score's unit."""

    difference: float
    low: float
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES) -> Difference:
    """The mean difference and its paired bootstrap interval: items are drawn again with replacement, each with both its scores.

    One item says nothing of its spread: its interval is infinite. Errors: ValueError for arrays that are empty or of different lengths.
    """
    return PairedBootstrap(a, b, seed, resamples).interval(level)


def bootstrap_p(a: Sequence[float], b: Sequence[float], margin: float = 0.0, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """One-sided p of "a is worse than b by `margin` or more": small where a is better than that. It agrees with paired_difference's interval.

    margin 0 asks for an improvement, margin > 0 for non-inferiority. A p below 1 / resamples cannot be seen.
    """
    return PairedBootstrap(a, b, seed, resamples).p(margin)


class PairedBootstrap:
    """The bootstrap distribution of mean(a) - mean(b), drawn once for several questions.

    Expanded percentiles (Hesterberg 2015, arXiv:1411.5279): the percentiles are moved outwards by what the plain ones lack at small N.
    """

    def __init__(self, a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> None:
        d = _differences(a, b)
        self.n, self.mean = len(d), float(d.mean())
        self.means = _bootstrap_means(d, seed, resamples)  # (resamples,)
        self.expansion = math.sqrt(self.n / (self.n - 1)) if self.n > 1 else math.inf

    def interval(self, level: float = 0.95) -> Difference:
        if self.n == 1:
            return Difference(self.mean, -math.inf, math.inf)
        outside = ndtr(self.expansion * stdtrit(self.n - 1, (1 - level) / 2))
        low, high = np.quantile(self.means, [outside, 1 - outside])
        return Difference(self.mean, float(low), float(high))

    def p(self, margin: float = 0.0) -> float:
        """Of "a is worse than b by `margin` or more"."""
        return self._p(np.count_nonzero(self.means <= -margin + TINY))

    def p_reversed(self) -> float:
        """Of "b is no better than a"."""
        return self._p(np.count_nonzero(self.means >= -TINY))

    def _p(self, count: int) -> float:
        if self.n == 1:
            return 1.0
        share = min((1 + count) / (1 + len(self.means)), 1 - TINY)
        return float(stdtr(self.n - 1, ndtri(share) / self.expansion))


def mcnemar(a: Sequence[float], b: Sequence[float], side: Side = "two-sided") -> float:
    """Exact p of McNemar's test (1947): of the items that one model alone got right, a fair coin says which model it was.

    Scores are right (1) or wrong (0). It never rejects more often than the level says. Errors: ValueError for other scores.
    """
    won, lost = discordant(a, b)
    if side == "greater":
        return _coin(lost, won + lost)
    return min(1.0, 2 * _coin(min(won, lost), won + lost))


def sign_flip(a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> float:
    """One-sided p of "a is no better than b" for any scores: what McNemar's test is to right and wrong (Fisher 1935).

    Were there no difference between the models, each item's two scores could as well be swapped: how often do random swaps give a mean as large? It
    never rejects more often than the level says, where the bootstrap may by half a point.
    """
    d = _differences(a, b)
    rng, seen = _random(seed, d), d.sum()
    sizes, counts = np.unique(np.abs(d[d != 0]), return_counts=True)
    if len(sizes) * ITEMS_A_VALUE <= len(d):
        sums = (2.0 * rng.binomial(counts, 0.5, size=(resamples, len(sizes))) - counts) @ sizes
    else:
        rows = max(1, DRAWS_AT_ONCE // len(d))
        sums = np.concatenate([(2.0 * rng.integers(0, 2, size=(min(rows, resamples - start), len(d)), dtype=np.int8) - 1) @ d for start in range(0, resamples, rows)])
    return float((1 + np.count_nonzero(sums >= seen - TINY * len(d))) / (1 + resamples))


def paired_share_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Difference:
    """The difference of two paired shares with Tango's score interval (1998, Statistics in Medicine 17).

    For right (1) or wrong (0). Unlike a bootstrap it keeps its width where few or no items tell the models apart.
    """
    won, lost = discordant(a, b)
    n, z = len(np.asarray(a)), -ndtri((1 - level) / 2)
    return Difference((won - lost) / n, _where_score_is(won, lost, n, z), _where_score_is(won, lost, n, -z))


def share_p(a: Sequence[float], b: Sequence[float], margin: float = 0.0) -> float:
    """One-sided p of "a is worse than b by `margin` or more" for right (1) or wrong (0): Tango's score test; at margin 0 exact McNemar."""
    if margin == 0:
        return mcnemar(a, b, "greater")
    return float(ndtr(-_score(*discordant(a, b), len(np.asarray(a)), -margin)))


def discordant(a: Sequence[float], b: Sequence[float]) -> tuple[int, int]:
    """(items that only a has right, items that only b has right). Errors: ValueError where a score is neither 0 nor 1."""
    d = _differences(a, b)
    if not (is_binary(a) and is_binary(b)):
        raise ValueError("this test counts items right and wrong, and some scores are neither 1 nor 0: use the bootstrap for them")
    return int((d > 0).sum()), int((d < 0).sum())


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    values = np.asarray(scores, dtype=float)
    return bool(((values == 0) | (values == 1)).all())


def unpaired_difference(first: tuple[float, float], second: tuple[float, float], level: float = 0.95) -> Difference:
    """The difference of two independent scores, each with its standard error; normal interval."""
    difference, half = first[0] - second[0], -ndtri((1 - level) / 2) * math.hypot(first[1], second[1])
    return Difference(difference, float(difference - half), float(difference + half))


def unpaired_p(first: tuple[float, float], second: tuple[float, float], margin: float = 0.0) -> float:
    """One-sided p of "the first is worse than the second by `margin` or more", of independent scores with their standard errors."""
    above, error = first[0] - second[0] + margin, math.hypot(first[1], second[1])
    if error == 0:
        return 0.0 if above > 0 else 1.0
    return float(ndtr(-above / error))


def cautious_error(score: float, items: int, stderr: float = 0.0) -> float:
    """A standard error of a mean of scores in [0, 1] that is not zero where all items scored the same (Agresti and Caffo 2000), and never below the one stated."""
    share = (score * items + 1) / (items + 2)
    return max(stderr, math.sqrt(share * (1 - share) / (items + 2)))


def p_with_noise(p: float, effect: float, spread: float, repeats: int) -> float:
    """A one-sided p once each of the two scores also moves by itself, with a standard deviation `spread` that was seen on `repeats` evaluations.

    `effect` is what was tested against nothing: the difference plus the margin. The test's own standard error, which p and effect imply, and
    the noise of both scores add in quadrature; the spread is itself an estimate, so Student's t replaces the normal. Its degrees of freedom are
    those of Welch (1947) without the square, which is a little more cautious: with three or four evaluations Welch's own reject a truth 6 % of the time at 5 %.
    """
    if spread == 0 or p >= 0.5 or effect <= 0:
        return p
    own, noise = (effect / -ndtri(max(p, 1e-300))) ** 2, 2 * spread**2
    freedom = (repeats - 1) * (1 + own / noise)
    return float(stdtr(freedom, -effect / math.sqrt(own + noise)))


def widened(interval: Difference, spread: float, repeats: int, level: float = 0.95) -> Difference:
    """An interval once each of the two scores also moves by itself: both sides grow in quadrature (Zou and Donner 2008)."""
    if spread == 0:
        return interval
    difference, low, high = interval
    noise = -stdtrit(repeats - 1, (1 - level) / 2) * math.sqrt(2) * spread
    return Difference(difference, float(difference - math.hypot(difference - low, noise)), float(difference + math.hypot(high - difference, noise)))


def wilson(k: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of a share of which k in n were seen (Wilson 1927). n = 0 says nothing: (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    z = -ndtri((1 - level) / 2)
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return (0.0 if k == 0 else float(middle - half)), (1.0 if k == n else float(middle + half))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given: reject where one is at most alpha, and the chance of any false rejection is at most alpha."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, so_far = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, ps[i] * (len(ps) - rank)))
        corrected[i] = so_far
    return corrected


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """a - b, sorted, (N,)."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"paired scores must be two equally long lists with at least one item; their shapes are {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired scores must be finite; leave out items that have no score in both lists")
    return np.sort(first - second)


def _random(seed: int, d: np.ndarray) -> np.random.Generator:
    """Draws that follow from the seed and the data: the same every time, and not the same draws, with the same luck, for every data."""
    return np.random.default_rng([seed, crc32(d.tobytes())])


def _bootstrap_means(d: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of resamples of d, (resamples,). d is sorted."""
    rng, n = _random(seed, d), len(d)
    values, counts = np.unique(d, return_counts=True)
    if len(values) * ITEMS_A_VALUE <= n:
        return rng.multinomial(n, counts / n, size=resamples) @ values / n
    rows = max(1, DRAWS_AT_ONCE // n)
    return np.concatenate([d[rng.integers(0, n, size=(min(rows, resamples - start), n), dtype=np.int32)].mean(axis=1) for start in range(0, resamples, rows)])


def _coin(k: int, n: int) -> float:
    """The chance of at most k heads in n throws of a fair coin."""
    return float(bdtr(k, n, 0.5)) if k < n else 1.0


def _score(won: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic for "the true difference is `difference`": how many standard errors the one seen is above it.

    The share that b alone has right is estimated under that hypothesis (the restricted maximum likelihood, a quadratic equation).
    """
    quadratic, linear, constant = 2 * n, (2 * n - won + lost) * difference - won - lost, -lost * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear * linear - 4 * quadratic * constant)) - linear) / (2 * quadratic)
    variance = n * (2 * share + difference * (1 - difference))
    above = won - lost - n * difference
    if variance <= 1e-12:
        return 0.0 if abs(above) < 1e-9 else math.copysign(math.inf, above)
    return above / math.sqrt(variance)


def _where_score_is(won: int, lost: int, n: int, z: float) -> float:
    """The difference at which the statistic, which falls as the difference grows, is z: bisection to 1e-12."""
    low, high = -1.0, 1.0
    for _ in range(42):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(won, lost, n, middle) > z else (low, middle)
    return (low + high) / 2
