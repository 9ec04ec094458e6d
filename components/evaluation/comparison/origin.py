"""Origin: what a model was made of, read from the records of the stages it came through.

A record names its inputs by identity, and a stage's folder is named by that identity, so from a model the whole line can be walked back to
the data. A stage whose folder is gone is named as missing: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.schema.config import BadInput
from components.schema.jobs import ALIGN, SCORERS
from components.schema.records import Record

MODELS = ("base", "chat", "policy", *SCORERS)  # inputs that a stage made; another one without a record is data, or weights from elsewhere
ORDER = ("pretrain", "sft", *SCORERS, *ALIGN)


@dataclass(frozen=True)
class Origin:
    """Everything that a model follows from, as flat names and plain values."""

    config: dict[str, Any] = field(default_factory=dict)
    """Of every stage on its way, by dotted name; `stages` are their names."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the evaluation, by dotted name."""
    data: dict[str, str] = field(default_factory=dict)
    """Identity of each part of the data, and of each model whose record is gone."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Rows and tokens of the parts, by dotted name, where the data's record stands."""
    revisions: dict[str, int] = field(default_factory=dict)
    """Revision of the code of each stage."""
    runs: tuple[str, ...] = ()
    """MLflow runs of the stages, the evaluation's first."""
    missing: tuple[str, ...] = ()
    """Inputs whose records are gone."""

    @classmethod
    def trace(cls, evaluation: Record, role: str, stages: Path) -> Origin:
        """Walk back from the model that `role` was in this evaluation."""
        config: dict[str, Any] = {}
        data: dict[str, str] = {"benchmarks": evaluation.inputs["benchmarks"]} if "benchmarks" in evaluation.inputs else {}
        revisions, missing = {"evaluate": evaluation.revision}, []
        runs = [evaluation.execution.get("mlflow_run_id")]
        waiting, seen = [(role, evaluation.inputs.get(role, ""))], set()
        while waiting:
            name, identity = waiting.pop(0)
            if identity in seen:
                continue
            seen.add(identity)
            record = _with(identity, stages)
            if record is None:
                data |= {name: identity} if identity else {}
                missing += [name] if name in MODELS else []
                continue
            runs.append(record.execution.get("mlflow_run_id"))
            revisions[record.stage] = record.revision
            config |= dict(flatten(_named(record)))
            waiting += record.inputs.items()
        if config:
            config = {"stages": ", ".join(stage for stage in ORDER if stage in revisions), **config}
        return cls(
            config, dict(flatten(evaluation.config)), data, _counts(data, stages), revisions, tuple(run for run in runs if run), tuple(missing)
        )  # fmt: skip


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names; lists and what is empty stay whole."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _named(record: Record) -> dict[str, Any]:
    """A stage's configuration; three stages share the section `reward`, so theirs are called by the stage."""
    return {record.stage if name == "reward" else name: value for name, value in record.config.items()}


def _with(identity: str, stages: Path) -> Record | None:
    """The record of the stage with this identity, where it stands and can be read."""
    for folder in stages.glob(f"*-{identity[:16]}") if identity else ():
        try:
            return Record.read(folder)
        except BadInput:
            continue
    return None


def _counts(data: Mapping[str, str], stages: Path) -> dict[str, Any]:
    """Counts of the data version that holds these parts."""
    for path in sorted(stages.glob("data-*/record.json")):
        try:
            record = Record.read(path.parent)
        except BadInput:
            continue
        if all(record.config.get(part, {}).get("identity") == identity for part, identity in data.items() if part in record.figures):
            return {name: value for name, value in flatten(record.figures) if isinstance(value, int | float)}
    return {}
