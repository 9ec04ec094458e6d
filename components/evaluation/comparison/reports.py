"""Reports: one model as one evaluation measured it, read from the evaluate stage's folder.

    report = Report.read(Path(".modelyard/stages/evaluate-1a2b..."), role="policy", label="policy")
    report.scores["mmlu"]["score"]; report.items("mmlu")          # a row an item, by what the item is

An item is the same in two reports where its task and the md5 of its document are the same, whatever its place or the prompt's form. A
document that stands twice in a task is told apart by its turn. Of a released model whose evaluation is gone, `restored` reads what went with it into the
registry: every score, and no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluation import evidence
from components.evaluation.comparison.origin import Origin
from components.schema.config import BadInput
from components.schema.records import REVISIONS, Record, file_md5

KEY = ["task", "item", "turn"]
NUMBERS = ("task", "id", "item", "score", "truncated", "overlap")
TEXTS = ("question", "prompt", "target", "output", "choices", "logprobs")


@dataclass(frozen=True)
class Report:
    """One role of one evaluation."""

    label: str
    """What it is called on the page."""
    role: str
    """base, chat or policy."""
    folder: Path
    record: Record
    origin: Origin
    code: Mapping[str, Any] = field(default_factory=dict)
    """What its code was: git_commit, uncommitted_changes, python, packages; empty where nobody knows."""
    known: dict[str, pd.DataFrame | None] = field(default_factory=dict, repr=False, compare=False)
    """Items by suite, as far as they were read."""

    @classmethod
    def read(cls, folder: Path, role: str | None = None, label: str | None = None, stages: Path | None = None, code: Mapping[str, Any] | None = None) -> Report:
        """`role` None: the last model of the line. `stages`: where the records of what it was made of stand; beside `folder` unless told. Errors: BadInput."""
        record = Record.read(folder)
        if record.stage != "evaluate":
            raise BadInput(
                f"compare: {folder} is the result of {record.stage}, which has no scores. "
                f"Give an evaluate folder: modelyard compare {folder.parent}/evaluate-..."
            )
        measured: Mapping[str, Any] = record.figures["scores"]
        role = role or list(measured)[-1]
        if role not in measured:
            raise BadInput(
                f"compare: {folder.name} did not measure a {role!r}, so it cannot be compared. It measured: {', '.join(measured)}. "
                f"Write {folder.name}#{list(measured)[-1]}"
            )
        return cls(label or f"{folder.name}#{role}", role, folder, record, Origin.trace(record, role, stages or folder.parent), code or {})

    @classmethod
    def restored(cls, folder: Path, identity: str, label: str, stages: Path) -> Report:
        """From the evidence that went with a released version of this identity."""
        found, role = evidence.restore(folder), "released"
        settings = {"fewshot": {suite: asked.get("fewshot") for suite, asked in found.settings.items()}}
        for asked in found.settings.values():  # the same for every suite
            settings |= {"chat_template": {role: asked.get("chat_template")}, "max_new_tokens": asked.get("max_new_tokens")}
        figures = {kind: {role: found.figures[kind]} for kind in evidence.KINDS if kind in found.figures}
        figures |= {"scores": {role: found.scores}, "tasks": {suite: asked.get("version") for suite, asked in found.settings.items()}, "settings": settings}
        record = Record(stage="evaluate", identity=identity, revision=REVISIONS["evaluate"], config={}, inputs={role: identity}, files={}, figures=figures)
        origin = Origin.trace(record, role, stages)
        origin = replace(origin, revisions={stage: number for stage, number in origin.revisions.items() if stage != "evaluate"})
        return cls(label, role, folder, record, origin, known={suite: _of_evidence(items) for suite, items in found.items.items()})

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By suite: metric, score, stderr, items, and what else the harness wrote."""
        return self.record.figures["scores"][self.role]

    def of(self, kind: str) -> dict[str, Any]:
        """This role's part of another kind of figures (perplexity, probes); empty where it was not measured."""
        return self.record.figures.get(kind, {}).get(self.role) or {}

    def items(self, suite: str) -> pd.DataFrame | None:
        """id, score, truncated, overlap and row (place in the file) by (task, item, turn); None where no items were kept."""
        if suite not in self.known:
            self.known[suite] = self._read(suite)
        return self.known[suite]

    def texts(self, suite: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What was asked and answered, of some rows of the file, in their order; nothing where no text was kept."""
        if not self._path(suite).is_file():
            return [{}] * len(rows)
        table = pq.read_table(self._path(suite), columns=list(TEXTS))
        return table.take(pa.array(list(rows), pa.int64())).to_pylist()

    def _path(self, suite: str) -> Path:
        return self.folder / "items" / self.role / f"{suite}.parquet"

    def _read(self, suite: str) -> pd.DataFrame | None:
        path = self._path(suite)
        kept = self.record.files.get(str(path.relative_to(self.folder)))
        if kept is None:
            return None
        if not path.is_file() or file_md5(path) != kept.md5:
            what = "has other bytes than when it was made" if path.is_file() else "is missing"
            raise BadInput(
                f"compare: {path} {what}, so what it says is not what {self.label} did. Run its recipe again with `modelyard run`: the damaged stage is redone"
            )
        if absent := [name for name in (*NUMBERS, *TEXTS) if name not in pq.read_schema(path).names]:
            raise BadInput(
                f"compare: {path} has no column {', '.join(absent)}, so its items cannot be told apart. "
                f"It is no file of this version: evaluate {self.label} again"
            )
        frame = pq.read_table(path, columns=list(NUMBERS)).to_pandas()
        frame["row"] = range(len(frame))
        return evidence.with_turns(frame).set_index(KEY).sort_index()


def _of_evidence(items: evidence.Items) -> pd.DataFrame:
    """Keys of evidence are task/md5/turn."""
    parts = [key.rsplit("/", 2) for key in items.keys]
    frame = pd.DataFrame(parts, columns=KEY).astype({"turn": int})
    rows = range(len(frame))
    return frame.assign(id=rows, score=items.scores, truncated=False, overlap=items.overlap, row=rows).set_index(KEY).sort_index()
