"""The release gate: a pure decision (promote, hold, or ask a person) with its reason in sentences.

    decide(challenger, champion, policy)      # Decision(action="promote", reason="promoted: ...", comparisons=(...))

1. A floor or a hard limit that does not hold, or was not measured: hold.
2. There is no champion: promote.
3. Suite by suite, on the items that both models answered, three one-sided tests at `error_rate`:
   better       the challenger beats the champion (Holm's correction over the suites, or each suite that the policy names with its gain)
   no worse     it is less than the margin below (non-inferiority; every suite must show it, so that no correction is due)
   worse        the champion beats it (Holm over the suites), and `no worse` was not shown
   Something worse: hold. Something neither worse nor no worse: ask, or hold. Nothing better: hold, or ask. Else: promote.

So, with one evaluation each and margins named beforehand, a model without any change is promoted with a chance of at most error_rate, and so is one that
is worse by a margin anywhere; tests/evaluation/test_power.py measures both. Whether there is any difference is tested exactly (McNemar for right and wrong, random swaps for
graded scores), margins by Tango's score test or the paired bootstrap. Scores without items count as independent samples, and the reason says so. A measured noise floor widens everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from components.evaluation.evidence import Evidence, Items
from components.evaluation.statistics import (
    Difference,
    PairedBootstrap,
    cautious_error,
    discordant,
    holm,
    is_binary,
    p_with_noise,
    paired_share_difference,
    share_p,
    sign_flip,
    unpaired_difference,
    unpaired_p,
    widened,
)
from components.schema.config import BadInput, Config
from components.schema.gate import Limit, NoiseFloor, Policy, Spread

Verdict = Literal["better", "no worse", "unclear", "worse", "below floor", "not measured", "not comparable", "new", "left out"]
SAME_MEAN = 1e-6  # how near the mean of a suite's items must be to its score, for the items to stand for it
SHOWN = 6  # suites that a sentence names, at most


class Comparison(Config):
    """One suite, challenger against champion. Differences are challenger minus champion, turned round where a lower score is better."""

    suite: str
    verdict: Verdict
    challenger: float | None = None
    """Score; None where the challenger was not measured on this suite."""
    champion: float | None = None
    """Score; None where there is no champion, or it was not measured on this suite."""
    difference: float | None = None
    """Mean over the items compared."""
    low: float | None = None
    """Lower end of the interval, whose level is 1 - 2 * error_rate: above -margin is no worse."""
    high: float | None = None
    margin: float | None = None
    items: int | None = None
    """Items compared one by one; None where the two scores count as independent samples."""
    won: int = 0
    """Items on which the challenger scored higher."""
    lost: int = 0
    p_better: float | None = None
    """One-sided, corrected for the number of suites where the policy takes any gain."""
    p_no_worse: float | None = None
    p_worse: float | None = None
    """One-sided, corrected for the number of suites."""
    note: str = ""
    """What a reader must know of this comparison."""


class Decision(Config):
    """What to do with the challenger, and why."""

    action: Literal["promote", "hold", "ask"]
    reason: str
    comparisons: tuple[Comparison, ...] = ()
    limits: dict[str, float | None] = {}
    """Every figure that a hard limit is set on; None where it was not measured."""


def decide(challenger: Evidence, champion: Evidence | None, policy: Policy, noise: NoiseFloor | None = None) -> Decision:
    """Judge `challenger` by `policy`. champion None = nothing was released yet. Errors: BadInput where policy.test cannot be done on the scores."""
    spreads = noise.suites if noise else {}
    comparisons = _corrected([_compare(suite, challenger, champion, policy, spreads.get(suite)) for suite in _suites(challenger, champion, policy)], policy)
    limits = {path: _limited(challenger, path, policy) for path in policy.limits}
    broken = [sentence for path, value in limits.items() if (sentence := _beyond(path, value, policy.limits[path]))]
    broken += [_floor(c, policy) for c in comparisons if c.verdict == "below floor"]
    action, reason = _settle(comparisons, broken, champion is not None, bool(challenger.scores), policy)
    return Decision(action=action, reason=reason, comparisons=tuple(comparisons), limits=limits)


# ---------------------------------------------------------------- one suite


class _Pair(NamedTuple):
    """What can be asked of two models' scores on one suite."""

    p: Callable[[float], float]
    """One-sided p of "worse by this margin or more"."""
    p_reversed: float
    """One-sided p of "the champion is no better"."""
    interval: Difference
    items: int | None
    won: int
    lost: int


def _compare(suite: str, challenger: Evidence, champion: Evidence | None, policy: Policy, spread: Spread | None) -> Comparison:
    """Raw p-values and a first verdict; `_corrected` settles those that depend on the other suites."""
    mine, theirs = challenger.scores.get(suite), (champion.scores if champion else {}).get(suite)
    scores = {"challenger": mine and mine["score"], "champion": theirs and theirs["score"]}
    floor = policy.minimum_scores.get(suite)
    if floor is not None and mine is not None and mine["score"] < floor:
        return Comparison(suite=suite, verdict="below floor", **scores)
    if suite in policy.not_compared:
        return Comparison(suite=suite, verdict="left out", **scores)
    if mine is None:
        return Comparison(suite=suite, verdict="not measured", **scores)
    if theirs is None:
        wanted = champion is not None and isinstance(policy.improvement, dict) and suite in policy.improvement
        note = "the champion was not measured on it, and a gain is asked for" if wanted else ""
        return Comparison(suite=suite, verdict="not comparable" if wanted else "new", note=note, **scores)
    if why := _asked_otherwise(suite, challenger, champion):
        return Comparison(suite=suite, verdict="not comparable", note=why, **scores)
    pair, note = _pair(suite, challenger, champion, policy)
    if pair is None:
        return Comparison(suite=suite, verdict="not comparable", note=note, **scores)
    remarks = [note, "lower is better, so the difference is turned round" if mine.get("lower_is_better") else "", _asked_as_chat(suite, challenger, champion)]
    margin, size, repeats = policy.margin_of(suite), spread.spread if spread else 0.0, spread.repeats if spread else 2
    difference = pair.interval.difference
    gain = policy.improvement.get(suite, 0.0) if isinstance(policy.improvement, dict) else 0.0
    interval = widened(pair.interval, size, repeats, 1 - 2 * policy.error_rate)
    return Comparison(
        suite=suite,
        verdict="unclear",
        **scores,
        difference=difference,
        low=interval.low,
        high=interval.high,
        margin=margin,
        items=pair.items,
        won=pair.won,
        lost=pair.lost,
        p_better=p_with_noise(pair.p(-gain), difference - gain, size, repeats),
        p_no_worse=p_with_noise(pair.p(margin), difference + margin, size, repeats),
        p_worse=p_with_noise(pair.p_reversed, -difference, size, repeats),
        note="; ".join(filter(None, remarks)),
    )


def _pair(suite: str, challenger: Evidence, champion: Evidence, policy: Policy) -> tuple[_Pair | None, str]:
    """The two models' scores made comparable, and what a reader must know of it; None where they cannot be."""
    upwards = not challenger.scores[suite].get("lower_is_better")
    mine, theirs = challenger.items.get(suite), champion.items.get(suite)
    if mine is None or theirs is None or not (_stands_for(mine, challenger.scores[suite]) and _stands_for(theirs, champion.scores[suite])):
        if policy.clean_only:
            return None, "its items are not there, or its score is not their mean, so the clean ones cannot be told apart"
        who = "the champion's" if theirs is None else "the challenger's"
        why = f"{who} items are gone" if mine is None or theirs is None else "its score is not the mean of its items"
        return _unpaired(challenger.scores[suite], champion.scores[suite], upwards, policy), f"compared as independent samples, since {why}"
    first, second, clean = _joined(mine, theirs, policy.overlap)
    note = f"{len(first)} items were answered by both, of {len(mine.keys)} and {len(theirs.keys)}" if len(first) < max(len(mine.keys), len(theirs.keys)) else ""
    if policy.clean_only:
        if clean is None:
            return None, "nobody looked for its items in the training data, and the policy compares clean ones only"
        note = "; ".join(filter(None, [note, f"{int((~clean).sum())} contaminated items left out"]))
        first, second = first[clean], second[clean]
    if not len(first):
        return None, f"no {'clean ' if policy.clean_only else ''}item was answered by both"
    return _paired(suite, *((first, second) if upwards else (second, first)), policy), note


def _joined(mine: Items, theirs: Items, overlap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores of the items in both, each (N,), and which of them are clean for both models, (N,); None where nobody looked."""
    if np.array_equal(mine.keys, theirs.keys):
        here = there = np.arange(len(mine.keys))
    else:
        _, here, there = np.intersect1d(mine.keys, theirs.keys, assume_unique=True, return_indices=True)
    held = np.stack([mine.overlap[here], theirs.overlap[there]])  # (2, N)
    clean = None if np.isnan(held).all(axis=1).any() else (np.nan_to_num(held) < overlap).all(axis=0)
    return mine.scores[here], theirs.scores[there], clean


def _paired(suite: str, mine: np.ndarray, theirs: np.ndarray, policy: Policy) -> _Pair:
    binary, level = is_binary(mine) and is_binary(theirs), 1 - 2 * policy.error_rate
    if policy.test == "mcnemar" and not binary:
        raise BadInput(f"gate: policy.test is mcnemar, which counts right and wrong, and {suite} has graded scores, so it cannot be tested. Write test: auto, or bootstrap")
    if binary and policy.test != "bootstrap":
        won, lost = discordant(mine, theirs)
        return _Pair(lambda margin: share_p(mine, theirs, margin), share_p(theirs, mine), paired_share_difference(mine, theirs, level), len(mine), won, lost)
    won, lost = int((mine > theirs).sum()), int((mine < theirs).sum())
    drawn = PairedBootstrap(mine, theirs)
    if policy.test == "bootstrap":
        return _Pair(drawn.p, drawn.p_reversed(), drawn.interval(level), len(mine), won, lost)
    return _Pair(lambda margin: drawn.p(margin) if margin else sign_flip(mine, theirs), sign_flip(theirs, mine), drawn.interval(level), len(mine), won, lost)


def _unpaired(mine: Mapping[str, Any], theirs: Mapping[str, Any], upwards: bool, policy: Policy) -> _Pair:
    first, second = ((score["score"], _error(score)) for score in (mine, theirs))
    if not upwards:
        first, second = second, first
    interval = unpaired_difference(first, second, 1 - 2 * policy.error_rate)
    return _Pair(lambda margin: unpaired_p(first, second, margin), unpaired_p(second, first), interval, None, 0, 0)


def _error(score: Mapping[str, Any]) -> float:
    """A score's standard error; where it is a share of known many items, not below what few items allow."""
    stated = score.get("stderr") or 0.0
    return cautious_error(score["score"], score["items"], stated) if score.get("items") and 0 <= score["score"] <= 1 else stated


def _stands_for(items: Items, score: Mapping[str, Any]) -> bool:
    """Whether a suite's score is the mean of its items, as most are."""
    return len(items.scores) > 0 and abs(float(items.scores.mean()) - score["score"]) < SAME_MEAN


def _asked_otherwise(suite: str, challenger: Evidence, champion: Evidence) -> str:
    """Why two scores of the same suite mean different things; empty where they do not."""
    mine, theirs = challenger.scores[suite].get("metric"), champion.scores[suite].get("metric")
    if mine != theirs:
        return f"measured by {mine}, the champion by {theirs}"
    mine, theirs = challenger.settings.get(suite, {}), champion.settings.get(suite, {})
    names = {"version": "version of the task", "fewshot": "number of worked examples", "max_new_tokens": "length of answers"}
    other = [text for name, text in names.items() if name in mine and name in theirs and mine[name] != theirs[name]]
    return f"the champion was asked with another {' and another '.join(other)}" if other else ""


def _asked_as_chat(suite: str, challenger: Evidence, champion: Evidence) -> str:
    """Each model is asked in its own way; said where the ways differ."""
    mine, theirs = (evidence.settings.get(suite, {}).get("chat_template") for evidence in (challenger, champion))
    return f"the challenger was asked {'as a chat' if mine else 'in plain text'}, the champion {'as a chat' if theirs else 'in plain text'}" if mine != theirs else ""


# ---------------------------------------------------------------- all suites together


def _suites(challenger: Evidence, champion: Evidence | None, policy: Policy) -> list[str]:
    """Every suite that anybody measured or the policy names, once."""
    wanted = policy.improvement if isinstance(policy.improvement, dict) and champion is not None else ()
    return list(dict.fromkeys([*challenger.scores, *(champion.scores if champion else ()), *policy.minimum_scores, *wanted]))


def _corrected(comparisons: list[Comparison], policy: Policy) -> list[Comparison]:
    """p-values corrected for their number, and the verdicts that follow."""
    tested = [c for c in comparisons if c.p_no_worse is not None]
    named = [c for c in tested if isinstance(policy.improvement, dict) and c.suite in policy.improvement]  # all of them are asked for: no choice, no correction
    others = [c for c in tested if c not in named]
    better = {c.suite: c.p_better for c in named} | dict(zip([c.suite for c in others], holm([c.p_better for c in others]), strict=True))
    corrected = {c.suite: (better[c.suite], worse) for c, worse in zip(tested, holm([c.p_worse for c in tested]), strict=True)}
    return [_judged(c, *corrected[c.suite], policy.error_rate) if c.suite in corrected else c for c in comparisons]


def _judged(c: Comparison, p_better: float, p_worse: float, error_rate: float) -> Comparison:
    if c.p_no_worse <= error_rate:
        verdict = "better" if p_better <= error_rate else "no worse"
    else:
        verdict = "worse" if p_worse <= error_rate else "unclear"
    return c.model_copy(update={"verdict": verdict, "p_better": p_better, "p_worse": p_worse})


def _settle(comparisons: Sequence[Comparison], broken: list[str], has_champion: bool, measured: bool, policy: Policy) -> tuple[str, str]:
    """(action, reason)"""
    by = {verdict: [c for c in comparisons if c.verdict == verdict] for verdict in Verdict.__args__}
    if not measured:
        return "hold", "held: no suite was measured"
    broken = broken + [_absent(c, policy) for c in by["not measured"]]
    against = broken + [_worse(c) for c in by["worse"]]
    doubts = [_unclear(c) for c in by["unclear"]] + [f"{c.suite} cannot be compared: {c.note}" for c in by["not comparable"]]
    if has_champion and not any(c.p_no_worse is not None for c in comparisons) and not doubts:
        doubts = ["no suite can be compared with the champion's"]
    if not has_champion:
        if against:
            return "hold", "held: " + _listed(against)
        held = _listed([*policy.minimum_scores, *policy.limits], ", ")
        what = "first release: there is no champion yet, and " + (f"every floor and limit holds ({held})" if held else "there are no floors or limits")
        return policy.first, what if policy.first == "promote" else _opening("ask") + what
    if against:
        return "hold", "held: " + _listed(against + doubts)
    if doubts:
        return policy.unclear, _opening(policy.unclear) + _listed(doubts) + ". `modelyard gate power` says how many items would tell" + _rest(by)
    gained, wanted = _gains(by, policy)
    if wanted:
        return policy.no_gain, _opening(policy.no_gain) + _listed(wanted) + _rest(by)
    return "promote", "promoted: " + (_listed(gained) + ";" if gained else "no gain is asked for;") + _fine(by)


def _gains(by: Mapping[str, list[Comparison]], policy: Policy) -> tuple[list[str], list[str]]:
    """Improvements shown, and improvements missed, as sentences."""
    shown = [f"{c.suite} is better: {_numbers(c)}" for c in by["better"]]
    if policy.improvement == "none":
        return shown, []
    if policy.improvement == "any":
        return shown, [] if shown else ["no suite was shown to be better than the champion's"]
    missed = {c.suite: c for c in by["no worse"] if c.suite in policy.improvement}
    asked = [c for c in by["better"] if c.suite in policy.improvement]
    gained = [f"{c.suite} is better by more than {policy.improvement[c.suite]:g}: {_numbers(c)}" for c in asked]
    return gained, [f"{suite} was not shown to be better by more than {policy.improvement[suite]:g}: {_numbers(c)}" for suite, c in missed.items()]


# ---------------------------------------------------------------- floors, limits, sentences


def _limited(challenger: Evidence, path: str, policy: Policy) -> float | None:
    """The figure that a limit is set on. `contamination` is the largest share among the suites, contamination.SUITE one suite's."""
    kind, _, suite = path.partition(".")
    if kind != "contamination":
        return challenger.figure(path)
    shares = [challenger.contaminated(name) for name in ([suite] if suite else challenger.scores)]
    return None if not shares or None in shares else max(shares)


def _beyond(path: str, value: float | None, limit: Limit) -> str:
    """Why a limit does not hold; empty where it does."""
    bounds = " and ".join(f"at {name} {bound:g}" for name, bound in (("least", limit.least), ("most", limit.most)) if bound is not None)
    if value is None:
        return f"{path} must be {bounds} and was not measured"
    if (limit.least is not None and not value >= limit.least) or (limit.most is not None and not value <= limit.most):
        return f"{path} is {value:.4g} and must be {bounds}"
    return ""


def _floor(c: Comparison, policy: Policy) -> str:
    return f"{c.suite} {c.challenger:.3f} is below its floor {policy.minimum_scores[c.suite]:g}"


def _absent(c: Comparison, policy: Policy) -> str:
    why = f"the champion has {c.champion:.3f}" if c.champion is not None else "the policy names it"
    return f"{c.suite} was not measured ({why}): add it to evals.suites, name it in policy.not_compared, or release under another gate.model_name"


def _numbers(c: Comparison) -> str:
    how = f"{c.items} items, {c.won} won and {c.lost} lost" if c.items is not None else "independent samples"
    text = f"{c.champion:.3f} -> {c.challenger:.3f}, difference {c.difference:+.3f} in [{c.low:+.3f}, {c.high:+.3f}], {how}"
    return f"{text} ({c.note})" if c.note else text


def _worse(c: Comparison) -> str:
    return f"{c.suite} is worse: {_numbers(c)}, corrected p {c.p_worse:.2g}"


def _unclear(c: Comparison) -> str:
    return f"{c.suite} may be worse by its margin {c.margin:g}, or may not: {_numbers(c)}"


def _fine(by: Mapping[str, list[Comparison]]) -> str:
    tested = by["better"] + by["no worse"]
    parts = [f"{c.suite} at least {c.low:+.3f} (margin {c.margin:g})" for c in tested]
    return f" no suite is worse by its margin: {_listed(parts, ', ')}" + _rest(by)


def _rest(by: Mapping[str, list[Comparison]]) -> str:
    """What took no part."""
    new, out = [c.suite for c in by["new"]], [c.suite for c in by["left out"]]
    text = f"; the champion was not measured on {_listed(new, ', ')}" if new else ""
    return text + (f"; left out by the policy: {_listed(out, ', ')}" if out else "")


def _opening(action: str) -> str:
    return {"ask": "a person is asked: ", "hold": "held: "}[action]


def _listed(parts: Iterable[str], between: str = "; ") -> str:
    """At most SHOWN of them, and how many more there are."""
    parts = list(parts)
    return between.join(parts[:SHOWN]) + (f"{between}and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
