"""What the records say about a released model: the material of its card. Nothing here is guessed, and what was not recorded is absent.

    told = story("models:/modelyard@champion")
    told.scores["mmlu"].low, told.sources[0].licence, told.totals["kwh"]

All of it is read from MLflow (the records of the stages, and the dvc.lock of when they ran). Counts of the data (its licences, say) stand in the data's own
folder, and are read where that folder is here and is still that version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.evaluation.statistics import Z, wilson
from components.registry import ancestry
from components.registry.ancestry import Ancestry, Lock, Node
from components.schema import data
from components.schema.records import Record

COSTS = ("hours", "kwh", "amount")


@dataclass(frozen=True)
class Stage:
    """One stage that the model went through."""

    name: str
    facts: dict[str, Any]
    record: Record


@dataclass(frozen=True)
class Source:
    """One raw source of the data."""

    label: str
    what: str
    licence: str


@dataclass(frozen=True)
class Score:
    """What the released model got on one suite, with an interval of 95 %."""

    suite: str
    metric: str
    score: float
    low: float
    high: float
    items: int
    clean: dict[str, Any]
    contaminated: dict[str, Any]
    truncated: int


@dataclass(frozen=True)
class Story:
    """A released model, as its records have it."""

    name: str
    version: str
    model: dict[str, Any]
    """Of the version: uri, aliases, registered, recipe, action, reason ..."""
    role: str
    stages: list[Stage]
    """Those whose results the model needs, the earliest first."""
    evaluation: Record | None
    data: list[Node]
    sources: list[Source]
    licences: dict[str, dict[str, int]]
    """Documents and bytes by licence; empty where the data is not here."""
    scores: list[Score] = field(default_factory=list)

    @property
    def measured(self) -> dict[str, Any]:
        """Other figures of the evaluation for this model, by kind: perplexity, probes."""
        figures = self.evaluation.figures if self.evaluation else {}
        return {kind: found for kind in ("perplexity", "probes") if (found := figures.get(kind, {}).get(self.role))}

    @property
    def totals(self) -> dict[str, float]:
        """Hours, kWh and money of all stages together, as far as they were metered."""
        bills = [stage.record.execution.get("cost") or {} for stage in self.stages]
        return {name: sum(bill.get(name) or 0.0 for bill in bills) for name in COSTS if any(name in bill for bill in bills)}

    @property
    def currency(self) -> str:
        return next((bill["currency"] for stage in self.stages if (bill := stage.record.execution.get("cost")) and "currency" in bill), "")


def story(uri: str) -> Story:
    """The story of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Errors: BadInput where there is none, or its records are gone."""
    found = ancestry.trace(uri)
    release, own = _release(found), found.stage_of_model()
    report = release and found.nodes.get(release.inputs.get("report", ""))
    released = release and ancestry.record_of(release.facts["run_id"])
    evaluation = ancestry.record_of(report.facts["run_id"]) if report and report.kind == "stage" else None
    role = released.config["role"] if released else "policy"
    behind = list(found.behind(own))
    name, _, version = found.nodes[found.root].name.removeprefix("models:/").rpartition("/")
    return Story(
        name=name,
        version=version,
        model=found.nodes[found.root].facts,
        role=role,
        stages=[Stage(node.name, node.facts, record) for node in behind if (record := ancestry.record_of(node.facts["run_id"]))],
        evaluation=evaluation,
        data=_data(found, own),
        sources=list(_sources(found)),
        licences=_licences(found),
        scores=[_score(suite, score) for suite, score in (evaluation.figures["scores"].get(role, {}) if evaluation else {}).items()],
    )


def data_here(identity: str, root: Path = Path(".")) -> Path | None:
    """The folder of the data part of this DVC md5, where the project's dvc.lock still says that it is that one."""
    file = root / "dvc.lock"
    lock = Lock(file.read_text(encoding="utf-8") if file.is_file() else "")
    step = lock.made.get(identity)
    folder = step and root / lock.stages[step]["outs"][0]["path"]
    return folder if folder and folder.is_dir() else None


def _release(found: Ancestry) -> Node | None:
    return found.nodes.get(found.nodes[found.root].inputs.get("release", ""))


def _data(found: Ancestry, own: Node) -> list[Node]:
    """The data parts that the model's stages read, each once, in the order in which they were read."""
    read = [id for stage in found.behind(own) for id in stage.inputs.values() if found.nodes[id].kind in ("data", "weights", "missing")]
    return [found.nodes[id] for id in dict.fromkeys(read)]


def _sources(found: Ancestry) -> list[Source]:
    """Raw sources, each once, with the licence that the recipe states for it. A generated one is the same for all steps but for its amounts."""
    told: dict[str, list[str]] = {}
    licences: dict[str, str] = {}
    for node in found.nodes.values():
        if node.kind == "source":
            amounts = [f"{name} {value}" for name, value in node.facts.items() if name != "pin"]
            told.setdefault(node.name, []).extend([str(node.facts["pin"])] if "pin" in node.facts else amounts)
        for name, given in (node.facts.get("parameters") or {}).items():
            if isinstance(given, list) and name.rpartition(".")[2] in ("sources", "chats", "preferences"):
                licences |= {source.label: source.licence for source in _asked(given) if source.licence}
    return [Source(label, ", ".join(dict.fromkeys(what)), licences.get(label, "")) for label, what in told.items()]


def _asked(given: list[Any]) -> Iterator[data.Source]:
    """Sources as a recipe names them; one that an older version of the recipe's form named is left out."""
    for source in given:
        with suppress(ValidationError):
            yield data.Source.model_validate(source)


def _licences(found: Ancestry) -> dict[str, dict[str, int]]:
    """From the counts of the step that collected the texts."""
    for node in found.nodes.values():
        if node.kind == "data" and node.name.startswith("collect@") and (folder := data_here(node.facts["md5"])):
            return json.loads((folder / "counts.json").read_text(encoding="utf-8")).get("by_licence", {})
    return {}


def _score(suite: str, told: dict[str, Any]) -> Score:
    value, items = float(told["score"]), int(told["items"])
    right = value * items
    if 0 <= value <= 1 and items and abs(right - round(right)) < 1e-6:
        low, high = wilson(round(right), items)
    else:
        low, high = value - Z * told["stderr"], value + Z * told["stderr"]
    return Score(suite, told["metric"], value, low, high, items, told.get("clean") or {}, told.get("contaminated") or {}, int(told.get("truncated") or 0))
