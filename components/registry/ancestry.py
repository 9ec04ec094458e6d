"""Where a released model came from, step by step, down to the raw sources: a graph, read from MLflow alone.

    found = trace("models:/modelyard@champion")
    found.nodes[found.root].inputs                      # {"release": "stage:4f0c..."}
    found.stage_of_model()                              # the stage whose files the version is

Every stage's run keeps its record (what it was given, what it made) and the dvc.lock of that moment (which data step made which bytes, from
which sources), so neither the project's folder nor .modelyard/stages is needed, and a server's store answers the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import yaml

from components.registry import models
from components.registry.store import answering, asks_store, client, store_uri
from components.registry.tracking import run_called, run_with, whole_lineage
from components.schema.config import BadInput
from components.schema.records import Record

if TYPE_CHECKING:
    from mlflow.entities import Run

Kind = Literal["model", "stage", "data", "source", "weights", "missing"]
TOLD = ("modelyard.action", "modelyard.reason", "modelyard.settled_by", "modelyard.settled_why", "modelyard.rolled_back_by", "modelyard.rolled_back_why", "modelyard.reproduced")


@dataclass(frozen=True)
class Node:
    """One thing that the model came from."""

    kind: Kind
    name: str
    """Of a stage its name, of a data step STEP@DATASET, of a source its label."""
    inputs: dict[str, str] = field(default_factory=dict)
    """By the role it has there: the id of another node."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is known of it: identity or md5, run, code, machine, figures, parameters, pin."""


@dataclass(frozen=True)
class Ancestry:
    """A model and everything behind it."""

    root: str
    nodes: dict[str, Node]

    def plain(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    def stage_of_model(self) -> Node:
        """The stage whose output the version is. Errors: BadInput where its record is gone."""
        release = self.nodes.get(self.nodes[self.root].inputs.get("release", ""))
        found = release and self.nodes.get(release.inputs.get("model", ""))
        if found is None or found.kind != "stage":
            raise BadInput(f"lineage: MLflow at {store_uri()} keeps no record of the stage that made {self.nodes[self.root].name}, so what it was made of is unknown. It was registered by hand, or its run was deleted")
        return found

    def behind(self, node: Node) -> Iterator[Node]:
        """The stages that a node's result needs, earlier ones first, itself last; each once."""
        seen: set[str] = set()

        def walk(one: Node) -> Iterator[Node]:
            for id in one.inputs.values():
                if id not in seen and self.nodes[id].kind == "stage":
                    seen.add(id)
                    yield from walk(self.nodes[id])
            yield one

        return walk(node)


@asks_store
def trace(uri: str) -> Ancestry:
    """The ancestry of `models:/name@alias` or `models:/name/3`. Errors: BadInput, naming what there is."""
    return _Tracer(uri).trace()


def record_of(run_id: str) -> Record | None:
    """The record that a stage's run keeps; None where it has none, as a stage that did not finish."""
    from mlflow.exceptions import MlflowException

    with answering(store_uri()), tempfile.TemporaryDirectory(prefix="modelyard-record-") as scratch:
        try:
            return Record.model_validate_json(Path(client().download_artifacts(run_id, "record.json", scratch)).read_text(encoding="utf-8"))
        except (MlflowException, OSError, ValueError) as error:
            if "API request to" in str(error):
                raise
            return None


class _Tracer:
    """Builds the graph from a version downwards."""

    def __init__(self, uri: str) -> None:
        self.version = models.version_called(uri)
        self.nodes: dict[str, Node] = {}

    def trace(self) -> Ancestry:
        version, root = self.version, f"model:{self.version.name}/{self.version.version}"
        run = run_with(version.run_id)
        identity = run.data.tags.get("modelyard.stage_identity") if run else None
        facts = {
            "uri": f"models:/{version.name}/{version.version}",
            "aliases": sorted(alias for alias, number in client().get_registered_model(version.name).aliases.items() if str(number) == str(version.version)),
            "registered": _when(version.creation_timestamp),
            "recipe": version.tags.get("modelyard.recipe"),
            "recipe_hash": version.tags.get("modelyard.recipe_hash"),
            "identity": version.tags.get(models.IDENTITY),
            **{name.removeprefix("modelyard."): version.tags[name] for name in TOLD if version.tags.get(name)},
        }
        inputs = {"release": self._stage(identity, "release", self._pins(version.run_id))} if identity else {}
        self.nodes[root] = Node("model", facts["uri"], inputs, facts)
        return Ancestry(root, dict(reversed(self.nodes.items())))

    # ---------------------------------------------------------------- stages

    def _stage(self, identity: str, role: str, lock: Lock) -> str:
        """The node of what has this identity: a stage's result, a part of the data, or weights from elsewhere. `lock`: of the stage that read it."""
        id = f"stage:{identity}"
        if id in self.nodes:
            return id
        run = run_called("modelyard.stage_identity", identity, "stage")
        record = record_of(run.info.run_id) if run else None
        if run is None or record is None:
            return self._other(identity, role, lock)
        lineage = whole_lineage(run.info.run_id)
        pins = Lock(lineage.get("pins", {}).get("dvc.lock", ""))
        inputs = {name: self._stage(given, name, pins) for name, given in record.inputs.items()}
        self.nodes[id] = Node("stage", record.stage, inputs, _facts(run, record, lineage))
        return id

    def _other(self, identity: str, role: str, lock: Lock) -> str:
        if step := lock.made.get(identity):
            return self._data(step, identity, lock)
        kind: Kind = "data" if identity.endswith(".dir") else "weights" if role == "weights" or role.startswith("model_") else "missing"
        id = f"{kind}:{identity}"
        self.nodes.setdefault(id, Node(kind, role, {}, {"identity": identity}))
        return id

    def _pins(self, run_id: str) -> Lock:
        return Lock(whole_lineage(run_id).get("pins", {}).get("dvc.lock", "") if run_id else "")

    # ---------------------------------------------------------------- data

    def _data(self, step: str, md5: str, lock: Lock) -> str:
        """A data step's output, and what it was made of: earlier steps, and sources with their pins."""
        id = f"data:{md5}"
        if id in self.nodes:
            return id
        self.nodes[id] = Node("data", step)  # its place; filled below
        entry = lock.stages[step]
        parameters = {name: value for file in (entry.get("params") or {}).values() for name, value in file.items() if value not in (None, {}, [])}
        inputs = {}
        for dependency in entry.get("deps") or []:
            if earlier := lock.step_at(dependency["path"]):
                inputs[earlier.partition("@")[0]] = self._data(earlier, lock.stages[earlier]["outs"][0]["md5"], lock)
        for label, facts in _sources(parameters):
            source = f"source:{label}:{facts.get('pin') or json.dumps(facts, sort_keys=True)}"
            self.nodes.setdefault(source, Node("source", label, {}, facts))
            inputs[label] = source
        code = {dependency["path"]: dependency.get("md5", "") for dependency in entry.get("deps") or [] if not lock.step_at(dependency["path"])}
        (out,) = entry["outs"]
        del self.nodes[id]  # after what it is made of, as every node
        self.nodes[id] = Node("data", step, inputs, {"md5": md5, "path": out["path"], "bytes": out.get("size"), "files": out.get("nfiles"), "parameters": parameters, "code": code})
        return id


class Lock:
    """dvc.lock read as: which step made which bytes."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        raw = (yaml.load(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages") or {}
        return {name: entry for name, entry in raw.items() if len(entry.get("outs") or []) == 1 and len(PurePosixPath(entry["outs"][0]["path"]).parts) == 3}

    @cached_property
    def made(self) -> dict[str, str]:
        return {entry["outs"][0]["md5"]: name for name, entry in self.stages.items()}

    @cached_property
    def by_path(self) -> dict[str, str]:
        return {entry["outs"][0]["path"]: name for name, entry in self.stages.items()}

    def step_at(self, path: str) -> str | None:
        """The step whose output is this folder, or holds this file."""
        return next((name for place in (path, *map(str, PurePosixPath(path).parents)) if (name := self.by_path.get(place))), None)


def _sources(parameters: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Raw sources of a data step: what was pinned, and the generated curriculum."""
    generated = {name.rpartition(".")[2]: value for name, value in parameters.items() if ".curriculum." in name}
    if generated:
        yield "curriculum", generated
    for name, value in parameters.items():
        if ".pins." in name and isinstance(value, dict):
            yield from ((label, {"pin": pin}) for label, pin in value.items())


def _facts(run: Run, record: Record, lineage: dict[str, Any]) -> dict[str, Any]:
    """What a person asks about a stage."""
    return {
        "identity": record.identity,
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "status": run.info.status,
        "ended": _when(run.info.end_time),
        "bytes": sum(file.size for file in record.files.values()),
        "files": len(record.files),
        "record_hash": record.hash,
        "seed": record.config.get("seed"),
        "starts": int(run.data.tags.get("modelyard.starts", 1)),
        "git_commit": lineage.get("git_commit"),
        "uncommitted_changes": bool(lineage.get("git_patch") or lineage.get("git_untracked")),
        "python": lineage.get("python"),
        "torch": lineage.get("packages", {}).get("torch"),
        "cpu": lineage.get("cpu"),
        "gpus": lineage.get("gpus"),
        "threads": run.data.tags.get("modelyard.threads"),
        "work_seconds": record.execution.get("work_seconds"),
        "init_from": (record.config.get("model") or {}).get("init_from"),
        "figures": {name: value for name, value in record.figures.items() if isinstance(value, int | float | str) and not isinstance(value, bool)},
    }


def _when(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None


def dumps(found: Ancestry) -> str:
    """The graph as JSON text."""
    return json.dumps(found.plain(), ensure_ascii=False, indent=1)
