"""Compare: two or more reports become one comparison, each model held against the first.

    comparison = compare([Report.read(before), Report.read(after)], seed=0)
    comparison.suites["mmlu"].against[1].difference          # Difference(difference=0.031, low=0.008, high=0.054)

On a suite whose items were kept, the difference is the mean over the items that both models answered, item by item: with right and wrong
Tango's score interval and McNemar's exact test, with graded scores the paired bootstrap. Without items, or where the suite's score is no mean
of its items, the two scores count as independent samples, which is wider. The p-values of all suites and models are corrected together
(Holm). A measured noise floor widens the differences of its suites. A subject's difference is to read by, not to decide by: subjects are
corrected among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from components.evaluation.comparison.changes import Changes, changes
from components.evaluation.comparison.origin import flatten
from components.evaluation.comparison.reports import TEXTS, Report
from components.evaluation.statistics import (
    Difference,
    Z,
    bootstrap_p,
    cautious_error,
    holm,
    is_binary,
    mcnemar,
    p_with_noise,
    paired_difference,
    paired_share_difference,
    unpaired_difference,
    unpaired_p,
    widened,
    wilson,
)
from components.schema.config import BadInput
from components.schema.gate import NoiseFloor, Spread

LEVEL, ALPHA = 0.95, 0.05
SAME_MEAN = 1e-6  # how near the mean of a suite's items must be to its score

Verdict = Literal["better", "worse", "no difference seen"]


@dataclass(frozen=True)
class Score:
    """What one model got on one group of items."""

    score: float
    low: float
    high: float
    items: int
    truncated: int = 0


@dataclass(frozen=True)
class Against:
    """One model minus the first one, on one group of items. The verdict reads the corrected p."""

    difference: Difference
    p: float
    corrected_p: float
    items: int
    """That both answered; 0 where they are compared as independent samples."""
    won: int
    """Items with a better score than the first model's."""
    lost: int
    verdict: Verdict


@dataclass(frozen=True)
class Row:
    """One suite or subject: a score and a difference for each model (None: not measured, not comparable; the first has no difference)."""

    name: str
    metric: str
    scores: list[Score | None]
    against: list[Against | None]
    subjects: list[Row] = field(default_factory=list)
    higher_is_better: bool = True


class Number(NamedTuple):
    """A plain figure of each model; None where it was not measured."""

    name: str
    values: list[float | None]


@dataclass(frozen=True)
class Flip:
    """An item whose score is not the same for all models. Lists are in the order of the models; None where one did not answer it, or its text is not kept."""

    suite: str
    task: str
    id: int
    question: str
    target: str
    prompts: list[str | None]
    outputs: list[str | None]
    scores: list[float | None]
    won: list[bool | None]
    """Whether each later model did better than the first on it; None where it did as well."""
    choices: list[str]
    logprobs: list[list[float]]
    overlap: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything the page says."""

    labels: list[str]
    suites: dict[str, Row]
    figures: dict[str, list[Number]]
    """Other measures by kind: text (perplexity), one for each probe, second (metrics), contamination."""
    flips: dict[str, list[Flip]]
    """By suite: items won and lost, their subjects in turn; at most as many of each as was asked for."""
    changes: Changes
    warnings: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON-able data, without the items' text; what is not finite is null."""
        return _finite(asdict(replace(self, flips={})) | {"flips": {suite: len(flips) for suite, flips in self.flips.items()}})


def compare(reports: Sequence[Report], seed: int = 0, shown: int = 20, noise: NoiseFloor | None = None) -> Comparison:
    """Hold every report against the first. Errors: BadInput.

    `shown`: items won, and as many lost, whose text is read, by suite and model. `noise` widens the differences of the suites it was measured on.
    """
    if len(reports) < 2:
        raise BadInput(
            "compare: one model, and a difference has two sides. Name two or more: modelyard compare A B; of one evaluation, its roles: "
            "modelyard compare A#base A#policy"
        )
    spreads = noise.suites if noise else {}
    names = dict.fromkeys(chain.from_iterable(report.scores for report in reports))
    suites = _corrected({suite: _noisy(_suite(suite, reports, seed), spreads.get(suite)) for suite in names})
    flips = {suite: found for suite in suites if (found := _flips(suite, reports, shown))}
    return Comparison([report.label for report in reports], suites, _figures(reports), flips, changes(reports), list(_warnings(reports)))


# ---------------------------------------------------------------- suites


def _suite(suite: str, reports: Sequence[Report], seed: int) -> Row:
    scores = [report.scores.get(suite) for report in reports]
    items = [report.items(suite) if score else None for report, score in zip(reports, scores, strict=True)]
    row = _row(suite, scores, items, seed)
    names = list(dict.fromkeys(chain.from_iterable(_subjects(score, frame) for score, frame in zip(scores, items, strict=True))))
    return replace(row, subjects=[subject for name in names if (subject := _subject(name, scores, items, seed))] if len(names) > 1 else [])


def _subjects(score: Mapping[str, Any] | None, items: pd.DataFrame | None) -> list[str]:
    if items is not None:
        return list(items.index.unique("task"))
    return list((score or {}).get("subjects", {}))


def _subject(name: str, scores: Sequence[Mapping[str, Any] | None], items: Sequence[pd.DataFrame | None], seed: int) -> Row | None:
    """None where nobody scored it."""
    parts: list[pd.DataFrame | None] = [None if frame is None or name not in frame.index.unique("task") else frame.loc[[name]] for frame in items]
    found = [_part(name, score, part) for score, part in zip(scores, parts, strict=True)]
    return _row(name, found, parts, seed) if any(found) else None


def _part(name: str, score: Mapping[str, Any] | None, items: pd.DataFrame | None) -> dict[str, Any] | None:
    """A subject's score in the form of a suite's: what the harness wrote, else the mean of its items."""
    if score is None:
        return None
    part = {
        "metric": score["metric"],
        "lower_is_better": score.get("lower_is_better", False),
        "truncated": 0 if items is None else int(items["truncated"].sum()),
    }
    if found := score.get("subjects", {}).get(name):
        return part | found
    if items is None or items["score"].isna().any():
        return None
    mean, count = float(items["score"].mean()), len(items)
    return part | {"score": mean, "stderr": float(items["score"].std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0, "items": count}


def _row(name: str, scores: Sequence[Mapping[str, Any] | None], items: Sequence[pd.DataFrame | None], seed: int) -> Row:
    metric = next(score["metric"] for score in scores if score)
    upwards = not any(score.get("lower_is_better") for score in scores if score)
    against: list[Against | None] = [None]
    for score, frame in zip(scores[1:], items[1:], strict=True):
        comparable = scores[0] and score and scores[0]["metric"] == score["metric"]
        against.append(_against(score, scores[0], frame, items[0], seed, upwards) if comparable else None)
    return Row(name, metric, [score and _score(score, frame) for score, frame in zip(scores, items, strict=True)], against, higher_is_better=upwards)


def _score(score: Mapping[str, Any], items: pd.DataFrame | None) -> Score:
    value, count = float(score["score"]), int(score["items"])
    if items is not None and is_binary(items["score"]) and _is_mean(score, items):
        low, high = wilson(round(items["score"].sum()), len(items))
    else:
        low, high = value - Z * _error(score), value + Z * _error(score)
        if 0 <= value <= 1:  # a share cannot be outside
            low, high = max(low, 0.0), min(high, 1.0)
    return Score(value, low, high, count, int(score.get("truncated", 0)))


def _against(
    mine: Mapping[str, Any], first: Mapping[str, Any], my_items: pd.DataFrame | None, first_items: pd.DataFrame | None, seed: int, upwards: bool
) -> Against:
    a, b = _paired(my_items, first_items)
    up, down = int((a > b).sum()), int((a < b).sum())
    won, lost = (up, down) if upwards or not _is_mean(first, first_items) else (down, up)
    if not (len(a) and _is_mean(mine, my_items) and _is_mean(first, first_items)):  # no items, or the score is not their mean: independent samples
        pair = [(float(one["score"]), _error(one)) for one in (mine, first)]
        p = 2 * min(unpaired_p(*pair), unpaired_p(*reversed(pair)))
        return Against(unpaired_difference(*pair, LEVEL), min(1.0, p), 1.0, 0, won, lost, "no difference seen")
    if is_binary(a) and is_binary(b):
        return Against(paired_share_difference(a, b, LEVEL), mcnemar(a, b), 1.0, len(a), won, lost, "no difference seen")
    p = 2 * min(bootstrap_p(a, b, seed=seed), bootstrap_p(b, a, seed=seed))
    return Against(paired_difference(a, b, seed, LEVEL), min(1.0, p), 1.0, len(a), won, lost, "no difference seen")


def _error(score: Mapping[str, Any]) -> float:
    """The standard error; all right and all wrong have one too. Infinite where nobody knows it."""
    stated, value = float(score["stderr"]), float(score["score"])
    if stated > 0:
        return stated
    return cautious_error(value, int(score["items"])) if 0 <= value <= 1 else math.inf


def _noisy(row: Row, spread: Spread | None) -> Row:
    """Differences and their p once each score also moves by itself, by as much as was measured."""
    if spread is None:
        return row

    def moved(one: Against) -> Against:
        p = 2 * p_with_noise(one.p / 2, abs(one.difference.difference), spread.spread, spread.repeats)
        return replace(one, difference=widened(one.difference, spread.spread, spread.repeats, LEVEL), p=min(1.0, p))

    return replace(row, against=[one and moved(one) for one in row.against])


def _paired(mine: pd.DataFrame | None, first: pd.DataFrame | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the items that both answered, (N,) each."""
    if mine is None or first is None:
        return np.empty(0), np.empty(0)
    both = mine.index.intersection(first.index)
    a, b = mine["score"].reindex(both).to_numpy(), first["score"].reindex(both).to_numpy()
    scored = np.isfinite(a) & np.isfinite(b)
    return a[scored], b[scored]


def _is_mean(score: Mapping[str, Any], items: pd.DataFrame | None) -> bool:
    return items is not None and abs(float(items["score"].mean()) - score["score"]) < SAME_MEAN


def _corrected(suites: dict[str, Row]) -> dict[str, Row]:
    """Holm over all suites and models; within a suite over its subjects."""
    rows = [replace(row, subjects=_holm(row.subjects)) for row in suites.values()]
    return dict(zip(suites, _holm(rows), strict=True))


def _holm(rows: list[Row]) -> list[Row]:
    corrected = iter(holm([one.p for row in rows for one in row.against if one]))
    return [replace(row, against=[one and _verdict(replace(one, corrected_p=next(corrected)), row.higher_is_better) for one in row.against]) for row in rows]


def _verdict(against: Against, upwards: bool) -> Against:
    up = (against.difference.difference > 0) == upwards
    return replace(against, verdict=("better" if up else "worse") if against.corrected_p < ALPHA and against.difference.difference else "no difference seen")


# ---------------------------------------------------------------- items


def _flips(suite: str, reports: Sequence[Report], shown: int) -> list[Flip]:
    """Items that a later model won or lost against the first, their subjects in turn."""
    frames = [report.items(suite) if suite in report.scores else None for report in reports]
    if frames[0] is None:
        return []
    scores = pd.DataFrame({i: frame["score"] for i, frame in enumerate(frames) if frame is not None})  # outer join: an item that one did not answer is NaN
    picked: list[tuple[str, str, int]] = []
    for i in list(scores)[1:]:
        step = scores[i] - scores[0]
        for group in (scores[step > 0], scores[step < 0]):
            picked += in_turn(group.index.tolist())[:shown]
    keys = list(dict.fromkeys(picked))
    if not keys:
        return []
    score = reports[0].scores[suite]
    upwards = not (score.get("lower_is_better") and _is_mean(score, frames[0]))
    told = [{} if frame is None else _told(report, suite, frame, keys) for report, frame in zip(reports, frames, strict=True)]
    return [_flip(suite, key, frames, told, upwards) for key in keys]


def in_turn(keys: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Keys dealt out task by task, so that the first few come from many subjects."""
    by_task: dict[str, list[tuple[str, str, int]]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(key)
    return [key for turn in zip_longest(*by_task.values()) for key in turn if key is not None]


def _told(report: Report, suite: str, frame: pd.DataFrame, keys: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    known = frame.loc[frame.index.intersection(keys)]
    return dict(zip(known.index, report.texts(suite, known["row"].tolist()), strict=True))


def _flip(
    suite: str, key: tuple[str, str, int], frames: Sequence[pd.DataFrame | None], told: Sequence[Mapping[tuple[str, str, int], dict[str, Any]]], upwards: bool
) -> Flip:
    rows = [None if frame is None or key not in frame.index else frame.loc[key] for frame in frames]
    texts = [by.get(key) or {} for by in told]
    first = rows[0]
    assert first is not None  # an item that the first did not answer is neither won nor lost
    text = next((one for one in texts if one), dict.fromkeys(TEXTS, ""))
    scores = [None if row is None or pd.isna(row["score"]) else float(row["score"]) for row in rows]
    return Flip(
        suite=suite,
        task=key[0],
        id=int(first["id"]),
        question=text["question"],
        target=text["target"],
        prompts=[one.get("prompt") for one in texts],
        outputs=[one.get("output") for one in texts],
        scores=scores,
        won=[None if score is None or scores[0] is None or score == scores[0] else (score > scores[0]) == upwards for score in scores[1:]],
        choices=list(text["choices"] or []),
        logprobs=[list(one.get("logprobs") or []) for one in texts],
        overlap=None if pd.isna(first["overlap"]) else float(first["overlap"]),
    )


# ---------------------------------------------------------------- other figures, and what to beware of


def _figures(reports: Sequence[Report]) -> dict[str, list[Number]]:
    """Perplexity and probes, and scores apart by contamination, as rows of plain numbers."""
    kinds = {"text": [report.of("perplexity") for report in reports]}
    probes = [report.of("probes") for report in reports]
    kinds |= {name: [by.get(name) or {} for by in probes] for name in dict.fromkeys(chain.from_iterable(probes))}
    kinds["second"] = [
        {f"{suite} {second['metric']}": second["score"] for suite, score in report.scores.items() if (second := score.get("second"))} for report in reports
    ]
    kinds["contamination"] = [dict(_by_contamination(report)) for report in reports]
    return {kind: rows for kind, values in kinds.items() if (rows := _numbers(values))}


def _numbers(values: Sequence[Mapping[str, Any]]) -> list[Number]:
    flat = [dict(flatten(by)) for by in values]
    names = list(dict.fromkeys(chain.from_iterable(flat)))
    rows = [Number(name, [_number(by.get(name)) for by in flat]) for name in names]
    return [row for row in rows if any(value is not None for value in row.values)]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _by_contamination(report: Report) -> Iterator[tuple[str, Any]]:
    """full, clean and contaminated of each suite that was looked at."""
    for suite, score in report.scores.items():
        if "clean" in score or "contaminated" in score:
            yield f"{suite}.full", score["score"]
            for part in ("clean", "contaminated"):
                if found := score.get(part):
                    yield f"{suite}.{part}", found["score"]
                    yield f"{suite}.{part}_items", found["items"]


def _warnings(reports: Sequence[Report]) -> Iterator[str]:
    """What makes a difference less than it seems."""
    first = reports[0]
    for report in reports[1:]:
        pair = f"{report.label} and {first.label}"
        for suite in first.scores | report.scores:
            mine, its = report.scores.get(suite), first.scores.get(suite)
            if not mine or not its:
                yield f"{suite} was measured for {(report if mine else first).label} alone."
                continue
            if mine["metric"] != its["metric"]:
                yield f"{suite} has the metric {its['metric']} for {first.label} and {mine['metric']} for {report.label}: not compared."
            elif (versions := [str(one.record.figures.get("tasks", {}).get(suite)) for one in (first, report)]) and versions[0] != versions[1]:
                yield f"{suite} is another test for {pair}: version {versions[0]} of its definition, and {versions[1]}."
            yield from _about_items(suite, report, first)
        if without := [suite for suite in report.scores if suite in first.scores and (report.items(suite) is None or first.items(suite) is None)]:
            yield f"{', '.join(without)}: the items of {pair} are not both kept, so these are compared as independent samples, whose intervals are wider."
        asked = [_asked(one) for one in (first, report)]
        for name in (name for name in asked[0] if name in asked[1] and asked[0][name] != asked[1][name]):
            yield f"{pair} were not asked alike: {name} is {_as_words(asked[1][name])} for the one and {_as_words(asked[0][name])} for the other."


def _asked(report: Report) -> dict[str, Any]:
    """How the suites were put to a model, by name, as far as its evaluation says."""
    settings = report.record.figures.get("settings", {})
    asked = {"the chat template": settings.get("chat_template", {}).get(report.role)}
    asked |= {f"the number of worked examples of {suite}": count for suite, count in settings.get("fewshot", {}).items()}
    asked = {name: value for name, value in asked.items() if value is not None}
    return asked | {name: settings[name] for name in ("limit", "max_new_tokens", "fewshot_seed") if name in settings}


def _as_words(value: Any) -> str:
    return "not set" if value is None else ("used" if value else "not used") if isinstance(value, bool) else str(value)


def _about_items(suite: str, report: Report, first: Report) -> Iterator[str]:
    mine, its = report.items(suite), first.items(suite)
    if mine is None or its is None:
        return
    both = len(mine.index.intersection(its.index))
    if both < max(len(mine), len(its)):
        yield f"{suite}: {report.label} answered {len(mine):,} items and {first.label} {len(its):,}; {both:,} are the same, and the difference is of these."
    if not (_is_mean(report.scores[suite], mine) and _is_mean(first.scores[suite], its)):
        yield f"{suite}: its score is no mean of its items, so its difference is of independent samples."


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
