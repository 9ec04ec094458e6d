"""How often the gate is right: its decisions on simulated evaluations whose truth is known, and the items a suite needs.

    rates(Policy(), {"gsm8k": Shape(1319)}, change=0.03, trials=1000).promote     # share of trials
    items_needed(gain=0.03, disagreement=0.2)                                     # 1,093, by formula

A simulated suite of right and wrong: on `disagreement` of the items the two models differ, and a true change d makes the challenger win
(disagreement + d) / 2 of them. That share decides the width of everything; two models that agree on 90 % of the items are told apart with a
tenth of the items that coin flips need. `modelyard gate power` prints the rates for suites of given sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from components.evaluation.evidence import Evidence, Items
from components.evaluation.gate import decide
from components.evaluation.statistics import wilson
from components.schema.config import BadInput
from components.schema.gate import NoiseFloor, Policy, Spread


class Shape(NamedTuple):
    """A suite as far as its size of evidence goes."""

    items: int
    score: float = 0.5
    """The champion's true score."""
    disagreement: float = 0.2
    """Share of the items that one model has right and the other wrong."""
    graded: bool = False
    """Scores between 0 and 1 instead of right and wrong; `disagreement` then says nothing."""


class Rates(NamedTuple):
    """Shares of the trials."""

    promote: float
    ask: float
    hold: float
    trials: int

    def interval(self) -> tuple[float, float]:
        """95 % interval of the share promoted."""
        return wilson(round(self.promote * self.trials), self.trials)


def rates(
    policy: Policy, suites: Mapping[str, Shape], change: float | Mapping[str, float], trials: int = 1000, seed: int = 0, spread: float = 0.0, repeats: int = 5
) -> Rates:
    """What the gate does where the challenger's true scores differ by `change` (of every suite, or by suite; absent = 0).

    `spread`: every score also moves by itself by this standard deviation, and the gate knows it from `repeats` evaluations. Floors and limits, which do
    not depend on the champion, are taken to hold. Errors: BadInput.
    """
    policy = policy.model_copy(update={"limits": {}, "minimum_scores": {}, "clean_only": False})
    rng = np.random.default_rng(seed)
    changes = {name: change.get(name, 0.0) if isinstance(change, Mapping) else change for name in suites}
    for name, shape in suites.items():
        _check(name, shape, changes[name])
    keys = {name: np.array([f"{i:06d}" for i in range(shape.items)]) for name, shape in suites.items()}
    counts = dict.fromkeys(("promote", "ask", "hold"), 0)
    for _ in range(trials):
        pairs = {name: _draw(rng, shape, changes[name] + spread * math.sqrt(2) * rng.standard_normal()) for name, shape in suites.items()}
        noise = NoiseFloor(suites={name: Spread(spread=np.std(spread * rng.standard_normal(repeats), ddof=1), repeats=repeats) for name in suites}) if spread else None
        counts[decide(_evidence(pairs, keys, 0), _evidence(pairs, keys, 1), policy, noise).action] += 1
    return Rates(*(counts[action] / trials for action in ("promote", "ask", "hold")), trials)


def items_needed(gain: float, disagreement: float, error_rate: float = 0.05, power: float = 0.8) -> int:
    """Items on which a true gain is shown with this chance, by one one-sided McNemar test (Connor 1987, Biometrics 43)."""
    alpha, beta = -ndtri(error_rate), ndtri(power)
    return math.ceil(((alpha * math.sqrt(disagreement) + beta * math.sqrt(disagreement - gain**2)) / gain) ** 2)


def draw(policy: Policy, file: Path, sizes: Sequence[int] = (50, 164, 500, 1319, 5000, 14042), disagreement: float = 0.2, trials: int = 400) -> None:
    """A picture of the power: promotions by true gain and items, and how sure an unchanged model is to be shown no worse."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "modelyard"  # the same file every time
    from matplotlib import pyplot

    gains, margins = [0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15], [0.01, 0.02, 0.03, 0.05, 0.1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for size in sizes:
        left.plot(gains, [rates(policy, {"suite": Shape(size, disagreement=disagreement)}, gain, trials).promote for gain in gains], marker=".", label=f"{size:,} items")
    left.axhline(policy.error_rate, color="grey", linestyle=":")
    left.set(xlabel="true gain", ylabel="share promoted", title=f"A better model (one suite, margin {policy.margin:g})")
    for margin in margins:
        easy = policy.model_copy(update={"margin": margin, "margins": {}, "improvement": "none"})
        shown = [rates(easy, {"suite": Shape(size, disagreement=disagreement)}, 0.0, trials).promote for size in sizes]
        right.plot(sizes, shown, marker=".", label=f"margin {margin:g}")
    right.set(xscale="log", xlabel="items", ylabel="share shown to be no worse", title="An unchanged model")
    for axes in (left, right):
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(f"The two models differ on {disagreement:.0%} of the items; {trials} trials a point", fontsize="medium")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _check(name: str, shape: Shape, change: float) -> None:
    room = 1.0 if shape.graded else shape.disagreement
    if shape.items < 1 or not 0 <= shape.score + change <= 1 or not 0 <= shape.score <= 1 or not 0 <= shape.disagreement <= 1 or abs(change) > room:
        raise BadInput(
            f"power: {name} with {shape.items} items, a score of {shape.score:g} and models that differ on {shape.disagreement:g} of them cannot change by {change:g}, so "
            "nothing can be simulated. The change must be no larger than the share that differs, and lead to a score in [0, 1]"
        )


def _draw(rng: np.random.Generator, shape: Shape, change: float) -> tuple[np.ndarray, np.ndarray]:
    """Challenger's and champion's scores on the items, each (N,)."""
    if shape.graded:
        return _draw_graded(rng, shape, change)
    apart = shape.disagreement
    change = min(max(change, -apart), apart)
    won, lost = (apart + change) / 2, (apart - change) / 2
    right = min(max(shape.score - lost, 0.0), 1 - apart)  # both
    counts = rng.multinomial(shape.items, [won, lost, right, 1 - apart - right])
    return np.repeat([1.0, 0.0, 1.0, 0.0], counts), np.repeat([0.0, 1.0, 1.0, 0.0], counts)


def _draw_graded(rng: np.random.Generator, shape: Shape, change: float) -> tuple[np.ndarray, np.ndarray]:
    """Two draws from each item's own distribution; a change turns some of the challenger's scores into 1, or into 0."""
    ease = rng.beta(4 * shape.score, 4 * (1 - shape.score), shape.items).clip(0.01, 0.99)
    mine, theirs = rng.beta(2 * ease, 2 * (1 - ease)), rng.beta(2 * ease, 2 * (1 - ease))
    share = change / (1 - shape.score) if change > 0 else -change / shape.score
    return np.where(rng.random(shape.items) < share, float(change > 0), mine), theirs


def _evidence(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], keys: Mapping[str, np.ndarray], which: int) -> Evidence:
    scores = {name: {"score": float(pair[which].mean()), "stderr": 0.0, "items": len(keys[name])} for name, pair in pairs.items()}
    nowhere = {name: np.full(len(keys[name]), np.nan) for name in pairs}
    return Evidence(scores, {name: Items(keys[name], pair[which], nowhere[name]) for name, pair in pairs.items()})
