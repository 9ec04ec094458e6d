"""The release gate: a pure decision with its reason.

A challenger is promoted where it stands above every floor and is on no suite worse than the champion by more than
noise: noise_sigmas times the standard error of the difference, sqrt(se1^2 + se2^2). Suites are compared as unpaired
samples, which is cautious where both models answered the same items.

    decide({"mini_gsm8k": {"score": 0.5, "stderr": 0.05}}, champion=None, config=GateConfig())
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from components.schema.config import Config
from components.schema.gate import GateConfig

Score = Mapping[str, Any]  # "score" and "stderr" in [0, 1]; "metric" and "items" where known


class Comparison(Config):
    """One suite, challenger against champion."""

    suite: str
    challenger: float | None
    """Score; None where the challenger was not measured on this suite."""
    champion: float | None
    """Score; None where there is no champion, or it was not measured on this suite."""
    noise: float | None
    """How much worse the challenger may be before it counts; None where nothing is compared."""
    floor: float | None
    """Least score the recipe asks for."""
    verdict: Literal["passes", "worse", "below floor", "not measured", "not comparable"]


class Decision(Config):
    """What to do with the challenger, and why."""

    action: Literal["promote", "hold"]
    reason: str
    comparisons: tuple[Comparison, ...]


def decide(scores: Mapping[str, Score], champion: Mapping[str, Score] | None, config: GateConfig) -> Decision:
    """Compare `scores` (by suite) with the champion's. champion None = nothing was released yet."""
    suites = [*scores, *(s for s in champion or {} if s not in scores)]
    suites += [s for s in config.minimum_scores if s not in suites]
    comparisons = tuple(_compare(suite, scores.get(suite), (champion or {}).get(suite), config) for suite in suites)
    failed = [_sentence(c) for c in comparisons if c.verdict in ("worse", "below floor", "not measured")]
    if not scores:
        failed = ["no suite was measured"]
    if failed:
        return Decision(action="hold", reason="held: " + "; ".join(failed), comparisons=comparisons)
    if champion is None:
        floors = f"every floor holds ({_list(config.minimum_scores)})" if config.minimum_scores else "there are no floors"
        return Decision(action="promote", reason=f"first release: there is no champion yet, and {floors}", comparisons=comparisons)
    return Decision(action="promote", reason=_praise(comparisons, config), comparisons=comparisons)


def _compare(suite: str, mine: Score | None, theirs: Score | None, config: GateConfig) -> Comparison:
    floor = config.minimum_scores.get(suite)
    comparable = mine is not None and theirs is not None and mine.get("metric") == theirs.get("metric")
    noise = config.noise_sigmas * math.hypot(mine["stderr"], theirs["stderr"]) if comparable else None
    if mine is None:
        verdict = "not measured"
    elif floor is not None and mine["score"] < floor:
        verdict = "below floor"
    elif noise is None:
        verdict = "not comparable" if theirs is not None else "passes"
    else:
        verdict = "worse" if theirs["score"] - mine["score"] > noise + 1e-12 else "passes"
    return Comparison(
        suite=suite,
        challenger=None if mine is None else mine["score"],
        champion=None if theirs is None else theirs["score"],
        noise=noise,
        floor=floor,
        verdict=verdict,
    )


def _sentence(c: Comparison) -> str:
    """Why one suite stands in the way."""
    if c.verdict == "not measured":
        against = f"the champion has {c.champion:.3f}" if c.champion is not None else f"its floor is {c.floor:g}"
        return f"{c.suite} was not measured ({against}): add it to evals.suites, or release under another gate.model_name"
    if c.verdict == "below floor":
        return f"{c.suite} {c.challenger:.3f} is below its floor {c.floor:g}"
    return f"{c.suite} {c.challenger:.3f} is worse than the champion's {c.champion:.3f} by more than its noise {c.noise:.3f}"


def _praise(comparisons: tuple[Comparison, ...], config: GateConfig) -> str:
    compared = [c for c in comparisons if c.noise is not None]
    parts = [f"{c.suite} {c.champion:.3f} -> {c.challenger:.3f} (noise {c.noise:.3f})" for c in compared]
    reason = f"no suite is worse than the champion's by more than {config.noise_sigmas:g} standard errors: " + ", ".join(parts)
    if not compared:
        reason = "no suite can be compared with the champion's"
    if new := [c.suite for c in comparisons if c.champion is None]:
        reason += f"; the champion was not measured on {_list(new)}"
    if odd := [c.suite for c in comparisons if c.verdict == "not comparable"]:
        reason += f"; measured by another metric on {_list(odd)}, so not compared"
    return reason


def _list(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(names)
