"""Changes: what the models of a comparison were made of, where it is not the same.

Only names whose values differ are kept, so that two runs of one recipe have no changes, and a run with one other option has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.evaluation.comparison.reports import Report

ABSENT = None  # the value of a name that a model does not have

Differing = dict[str, list[Any]]
"""By name: a value for each model."""


@dataclass(frozen=True)
class Changes:
    """By kind; each list is in the order of the models."""

    config: Differing = field(default_factory=dict)
    """Options of the stages that made the models."""
    settings: Differing = field(default_factory=dict)
    """Options of the evaluation."""
    data: Differing = field(default_factory=dict)
    """Identities of the parts of the data."""
    counts: Differing = field(default_factory=dict)
    """Rows and tokens of the data."""
    code: Differing = field(default_factory=dict)
    """Commit, uncommitted changes, packages, revisions of stages, lm-eval and its tasks' versions."""
    unknown: tuple[str, ...] = ()
    """What could not be compared, in sentences."""
    history: tuple[str, ...] = ()
    """Commits between the first model's code and another's, one line each, where Git knows both."""


def changes(reports: Sequence[Report]) -> Changes:
    """What differs between the origins of these reports."""
    origins = [report.origin for report in reports]
    return Changes(
        config=differing([origin.config for origin in origins]),
        settings=differing([origin.settings for origin in origins]) if all(origin.settings for origin in origins) else {},
        data=differing([origin.data for origin in origins]),
        counts=differing([origin.counts for origin in origins]),
        code=differing(_of_all([_code(report) for report in reports])),
        unknown=tuple(_unknown(reports)),
    )


def differing(values: Sequence[Mapping[str, Any]]) -> Differing:
    """The names whose values are not all the same."""
    names = dict.fromkeys(name for one in values for name in one)
    table = {name: [one.get(name, ABSENT) for one in values] for name in names}
    return {name: row for name, row in table.items() if any(value != row[0] for value in row[1:])}


def _of_all(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is known of every model: a stage or suite that one lacks is no change of code."""
    return [{name: value for name, value in one.items() if all(name in other for other in values)} for one in values]


def _code(report: Report) -> dict[str, Any]:
    figures = report.record.figures
    code: dict[str, Any] = {name: value for name, value in report.code.items() if name != "packages"}
    code |= {f"package {name}": version for name, version in report.code.get("packages", {}).items()}
    code |= {f"revision of {stage}": number for stage, number in report.origin.revisions.items()}
    code |= {f"definition of {suite}": version for suite, version in figures.get("tasks", {}).items()}
    return code | ({"lm-eval": figures["lm_eval"]} if "lm_eval" in figures else {})


def _unknown(reports: Sequence[Report]) -> list[str]:
    said = [
        f"The evaluation of {one.label} is gone: its scores went with the released version, its answers and settings did not."
        for one in reports
        if not one.origin.settings
    ]
    said += [f"The record of {', '.join(gone)} of {one.label} is gone, so its options are not compared." for one in reports if (gone := one.origin.missing)]
    if without := [report.label for report in reports if not report.code.get("git_commit")]:
        said.append(f"The commit of {', '.join(without)} is not known: it stands in MLflow for models that `modelyard run` made.")
    if dirty := [report.label for report in reports if report.code.get("uncommitted_changes") is True]:
        said.append(f"{', '.join(dirty)}: made with changes that were never committed; lineage/ of the run in MLflow has them.")
    return said
