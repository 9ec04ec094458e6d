"""Probes: what is asked of a model beyond benchmarks. One file a probe; each says what its figures mean and from which paper they come.

    check(config, suites)                         # before a model is loaded
    figures = run(config, Room(lm, ...))          # {"refusals": {"refused_harmful": 0.92, ...}, "robustness": {...}, ...}

A probe is `ask_all(room, config)`, which lets the model answer and gives one row an item, and `figures(rows, config, seed)`, which is pure. The rows are kept
(rows.py), so a killed evaluation goes on at the probe where it died, and every figure can be computed again from what was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.evaluation.probes import bias, calibration, refusals, robustness, rows, shots, toxicity, truthfulness
from components.evaluation.probes.asking import RateToxicity, Room, is_multiple_choice
from components.schema.config import BadInput
from components.schema.probes import ProbesConfig

__all__ = ["PROBES", "RateToxicity", "Room", "check", "run"]

PROBES: Mapping[str, Any] = {
    "refusals": refusals,
    "toxicity": toxicity,
    "bias": bias,
    "truthfulness": truthfulness,
    "shots": shots,
    "robustness": robustness,
    "calibration": calibration,
}


def check(config: ProbesConfig, suites: Mapping[str, Mapping[str, Any]]) -> None:
    """See that the probes can ask what they name. `suites`: loaded, by name. Errors: BadInput."""
    for name in ("shots", "robustness"):
        mine = getattr(config, name)
        for suite in mine.suites if mine else ():
            if suite not in suites:
                raise BadInput(
                    f"probes: evals.probes.{name}.suites names {suite}, which evals.suites does not hold ({', '.join(suites)}), so it could not be asked. "
                    "Add it to evals.suites, or drop it"
                )
            if name == "robustness" and not is_multiple_choice(suites[suite]):
                raise BadInput(
                    f"probes: evals.probes.robustness.suites names {suite}, whose tasks do not choose between answers to one prompt, "
                    "so nothing could be compared. Name multiple-choice suites, or none for all of them"
                )


def run(config: ProbesConfig, room: Room) -> dict[str, dict[str, float]]:
    """Every probe that is asked for, in order: its figures. Those whose rows stand already are not asked again; one that had nothing to ask has no figures."""
    told: dict[str, dict[str, float]] = {}
    for name, probe in PROBES.items():
        if (mine := getattr(config, name)) is None:
            continue
        path = rows.path_of(room.out, room.role, name)
        if not path.is_file():
            rows.write(probe.ask_all(room, mine), path)
        if seen := rows.read(path):
            told[name] = probe.figures(seen, mine, room.seed)
    return told
