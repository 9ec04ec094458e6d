"""Ratings of models from comparisons of their answers, two at a time (Bradley and Terry 1952).

    ratings([Verdict("q1", "chat", "base", 1.0), ...], seed=0)     # {"chat": Rating(rating=0.9, low=0.5, high=1.4, ...), "base": ...}

P(a beats b) = sigmoid(rating_a - rating_b); the ratings are those under which the verdicts are likeliest, with mean 0, in nats of log-odds. A draw
counts half for each. Half a win is added to both sides of every pair that met, which is Jeffreys' prior for two models (Firth 1993): a model that
never lost has no finite rating without it. Intervals are expanded percentiles (Hesterberg 2015, arXiv:1411.5279) of the bootstrap over prompts: all
verdicts about a prompt are drawn together, since its answers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

from components.schema.config import BadInput

RESAMPLES = 2000
HALF_A_WIN = 0.5
ELO = 400 / np.log(10)  # points for one nat, on Elo's scale
LARGEST_STEP, ENOUGH = 2.0, 1e-10  # of Newton's method, in nats


class Verdict(NamedTuple):
    """One comparison."""

    prompt: str
    """What was asked; verdicts of one prompt are drawn together."""
    first: str
    """A model."""
    second: str
    """Another one."""
    preference: float
    """1: the first is better, 0: the second, 0.5: a draw."""


class Rating(NamedTuple):
    """How good a model's answers are found."""

    rating: float
    """In nats; the mean over all models is 0."""
    low: float
    high: float
    """95 % interval."""
    elo: float
    """The rating in Elo's points, 1000 in the mean."""
    wins: float
    """Share of its comparisons that it won, draws as halves."""
    comparisons: int


def ratings(verdicts: Sequence[Verdict], seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> dict[str, Rating]:
    """Every model's rating, the best first. Errors: BadInput where some models were never compared, not even through others."""
    models = sorted({name for verdict in verdicts for name in (verdict.first, verdict.second)})
    by_prompt = wins_by_prompt(verdicts, models)
    wins = by_prompt.sum(0)  # (K, K)
    _require_connected(wins, models)
    draws = np.random.default_rng(seed).multinomial(len(by_prompt), np.full(len(by_prompt), 1 / len(by_prompt)), size=resamples)  # (R, P)
    met = wins + wins.T > 0
    best = fit(wins, met)
    outside = _outside(len(by_prompt), level)
    low, high = np.quantile(fit(np.einsum("rp,pij->rij", draws.astype(float), by_prompt), met), [outside, 1 - outside], axis=0)
    shares = wins.sum(1) / (wins + wins.T).sum(1)
    found = {
        name: Rating(float(best[i]), float(low[i]), float(high[i]), float(1000 + ELO * best[i]), float(shares[i]), round((wins + wins.T)[i].sum()))
        for i, name in enumerate(models)
    }
    return dict(sorted(found.items(), key=lambda entry: -entry[1].rating))


def wins_by_prompt(verdicts: Sequence[Verdict], models: Sequence[str]) -> np.ndarray:
    """(P, K, K): how often model i beat model j on each prompt."""
    place, prompts = {name: i for i, name in enumerate(models)}, {name: i for i, name in enumerate(dict.fromkeys(verdict.prompt for verdict in verdicts))}
    wins = np.zeros((len(prompts), len(models), len(models)))
    for prompt, first, second, preference in verdicts:
        wins[prompts[prompt], place[first], place[second]] += preference
        wins[prompts[prompt], place[second], place[first]] += 1 - preference
    return wins


def fit(wins: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The likeliest ratings, (..., K), of wins (..., K, K) with half a win added where models `met` (K, K): Newton's method on a concave function."""
    wins = wins + HALF_A_WIN * met
    games = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(200):
        chance = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))  # (..., K, K) that i beats j
        slope = (wins - games * chance).sum(-1)
        weight = games * chance * (1 - chance)
        curve = np.eye(wins.shape[-1]) * weight.sum(-1)[..., None] - weight + 1.0  # the ones hold the mean at 0
        step = np.clip(np.linalg.solve(curve, slope[..., None])[..., 0], -LARGEST_STEP, LARGEST_STEP)
        theta = theta + step
        if np.abs(step).max() < ENOUGH:
            break
    return theta - theta.mean(-1, keepdims=True)


def _outside(prompts: int, level: float) -> float:
    """The share of resamples on each side of an interval: less than (1 - level) / 2, by what the plain bootstrap lacks where prompts are few."""
    n = max(2, prompts)
    return float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))


def _require_connected(wins: np.ndarray, models: Sequence[str]) -> None:
    reached, met = {0}, wins + wins.T > 0
    while new := {int(j) for i in reached for j in np.flatnonzero(met[i])} - reached:
        reached |= new
    if len(reached) < len(models):
        apart = [name for i, name in enumerate(models) if i not in reached]
        raise BadInput(
            f"rating: {', '.join(apart)} and {', '.join(name for name in models if name not in apart)} were never compared, not even through others, "
            "so they have no common scale. Compare some of them on the same prompts, or rate the groups apart"
        )
