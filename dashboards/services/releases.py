"""Released models, as MLflow's registry keeps them: versions, aliases, what the gate said, and what each was made of.

    for version in releases.versions(): print(version.uri, version.action, version.scores)
    releases.ancestry(version)               # stages and data behind it, as a graph
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from dashboards.services import mlflow, web

PAGE = 1000
DEEPEST = 12  # stages one behind the other; a line has six


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    created: float
    """Seconds since the epoch."""
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    """Without the prefix modelyard."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By suite: metric, score, stderr, items."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.number}"

    @property
    def label(self) -> str:
        return f"{self.model} {self.number}" + (f" ({', '.join(self.aliases)})" if self.aliases else "")

    @property
    def is_champion(self) -> bool:
        return "champion" in self.aliases

    @property
    def page(self) -> str:
        return mlflow.page(f"/#/models/{self.model}/versions/{self.number}")


@dataclass(frozen=True)
class Node:
    """One thing that a model came from: a stage's result or a part of the data."""

    kind: str
    """stage or data"""
    name: str
    identity: str
    run_id: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    """By the role it has there: the identity of another node."""
    figures: dict[str, float] = field(default_factory=dict)


@st.cache_data(ttl=15, show_spinner=False)
def versions() -> list[Version]:
    """Every version of every model: champions first, then the newest. Errors: Away."""
    models, rows = web.at_once(lambda: _pages("registered-models/search", "registered_models"), lambda: _pages("model-versions/search", "model_versions"))
    named = {(model["name"], str(alias["version"])): [] for model in models for alias in model.get("aliases", [])}
    for model in models:
        for alias in model.get("aliases", []):
            named[model["name"], str(alias["version"])].append(alias["alias"])
    found = [_version(row, sorted(named.get((row["name"], str(row["version"])), []))) for row in rows]
    return sorted(found, key=lambda version: (not version.is_champion, -version.created))


@st.cache_data(ttl=15, show_spinner=False)
def moves(model: str) -> list[dict[str, str]]:
    """Every move of the alias champion, the last first: version, how, who, why, at. Errors: Away."""
    tags = mlflow.ask("GET", "registered-models/get", name=model)["registered_model"].get("tags", [])
    told = [{**json.loads(tag["value"]), "at": tag["key"].removeprefix("modelyard.champion.")} for tag in tags if tag["key"].startswith("modelyard.champion.")]
    return sorted(told, key=lambda move: move["at"], reverse=True)


def evidence(version: Version) -> dict[str, Any]:
    """What the evaluation measured: scores with subjects, perplexity, probes; empty where none was kept. Errors: Away."""
    return _json(version, "gate/evidence.json")


def decision(version: Version) -> dict[str, Any]:
    """What the gate compared: each suite's difference with its interval and verdict; empty where none was kept. Errors: Away."""
    return _json(version, "gate/decision.json")


@st.cache_data(ttl=mlflow.FOREVER_S, show_spinner=False, max_entries=50)
def items(run_id: str) -> Any:
    """Every item's score that was kept with a release's run: a table of suite, key, score; None where none was kept. Errors: Away."""
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(mlflow.artifact(run_id, "gate/items.parquet")), columns=["suite", "key", "score"])
    except web.Absent:
        return None


@st.cache_data(ttl=60, show_spinner=False)
def ancestry(run_id: str) -> dict[str, Node]:
    """What a release was made of, by identity, the release itself first: one question for each stage, those of one depth at once. Errors: Away."""
    released = mlflow.run(run_id)
    nodes = {(top := released["tags"].get("stage_identity", run_id)): _stage(released, top)}
    waiting = list(dict.fromkeys(nodes[top].inputs.values()))
    for _ in range(DEEPEST):
        stages = [identity for identity in waiting if not identity.endswith(".dir")]
        found = dict(zip(stages, web.at_once(*(lambda one=one: mlflow.stage_run(one) for one in stages)), strict=True))
        roles = {identity: role for node in nodes.values() for role, identity in node.inputs.items()}
        for identity in waiting:
            run = found.get(identity)
            nodes[identity] = _stage(run, identity) if run else Node("data" if identity.endswith(".dir") else "weights", roles[identity], identity)
        waiting = list(dict.fromkeys(one for identity in waiting for one in nodes[identity].inputs.values() if one not in nodes))
        if not waiting:
            break
    return nodes


def behind(nodes: dict[str, Node], identity: str) -> dict[str, Node]:
    """The part of an ancestry that one node needs, itself first."""
    found: dict[str, Node] = {}
    waiting = [identity]
    while waiting:
        if (one := waiting.pop()) in nodes and one not in found:
            found[one] = nodes[one]
            waiting += nodes[one].inputs.values()
    return found


def of_model(nodes: dict[str, Node]) -> dict[str, Node]:
    """The part of a release's ancestry that the model itself needs; what was only measured beside it is left out."""
    return behind(nodes, next(iter(nodes.values())).inputs.get("model", "")) if nodes else {}


def _stage(run: mlflow.Run, identity: str) -> Node:
    return Node("stage", run["tags"].get("stage", run["name"]), identity, run["id"], run["inputs"], run["metrics"])


def _version(row: dict[str, Any], aliases: list[str]) -> Version:
    tags = {tag["key"].removeprefix("modelyard."): tag["value"] for tag in row.get("tags", [])}
    return Version(row["name"], int(row["version"]), int(row["creation_timestamp"]) / 1000, row.get("run_id", ""), tuple(aliases), tags, _loads(tags.pop("scores", "{}")))


def _json(version: Version, path: str) -> dict[str, Any]:
    try:
        return _loads(mlflow.artifact(version.run_id, path)) if version.run_id else {}
    except web.Absent:
        return {}


def _loads(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _pages(path: str, key: str) -> list[dict[str, Any]]:
    """All rows of a search, page by page."""
    rows, token = [], ""
    while True:
        answer = mlflow.ask("GET", path, max_results=PAGE, **({"page_token": token} if token else {}))
        rows += answer.get(key, [])
        if not (token := answer.get("next_page_token", "")):
            return rows
