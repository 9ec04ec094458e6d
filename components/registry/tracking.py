"""Runs in MLflow: one for each pipeline, one for each stage under it, found again after a kill.

    parent = open_pipeline("tiny", recipe_hash, recipe_text, lineage(Path.cwd()))
    run_id = open_stage(parent, "sft", identity, params={"steps": 200}, lineage={})
    sink = MetricSink(run_id); sink.log({"loss": 2.1}, step=10); sink.close()
    close_stage(run_id, "FINISHED", record.figures, folder / "record.json", record)

A run is found by what it is (the recipe's hash, the stage's identity), not by who started it: a stage that was killed and
started again, by whichever pipeline, goes on in the same run.
"""

from __future__ import annotations

import getpass
import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.registry.lineage import PINS, lineage
from components.registry.load import SystemLoad
from components.registry.metrics import MetricSink, send_unsent
from components.registry.store import answering, asks_store, client, experiment_id, locked, prepare, store_uri
from components.registry.views import TRAINING
from components.schema.records import Record

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = [
    "MetricSink", "SystemLoad", "artifact_link", "attach", "close_stage", "lineage", "lineage_of", "log_folder", "log_inputs", "log_pins", "open_pipeline", "open_stage", "prepare", "send_unsent", "store_uri",
]  # fmt: skip

LONGEST_PARAM, LONGEST_TAG = 6000, 5000  # MLflow refuses longer ones
TAGGED_LINEAGE = ("python", "cpu", "cores", "threads", "platform", "recipe", "recipe_hash", "seed", "git_commit")
SHORT = 8  # characters of an identity in a name
APART = ("git_patch", "installed", "pins")  # of a lineage: kept as files of their own


@asks_store
def open_pipeline(recipe_name: str, recipe_hash: str, recipe_text: str, lineage: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> str:
    """The run of this very recipe: a new one, or the one that an earlier start left. Returns its id. `params`: the recipe's values, to compare recipes by."""
    tags = {"modelyard.kind": "pipeline", "modelyard.recipe": recipe_name, "modelyard.recipe_hash": recipe_hash}
    run_id = _find_or_create("modelyard.recipe_hash", recipe_hash, "pipeline", f"{recipe_name}-{recipe_hash[:SHORT]}", tags)
    client().log_text(run_id, recipe_text, "recipe.yaml")
    _log_params(run_id, params or {})
    _log_lineage(run_id, lineage)
    return run_id


@asks_store
def open_stage(parent_id: str | None, stage: str, identity: str, params: Mapping[str, Any], lineage: Mapping[str, Any]) -> str:
    """The run of the stage with this identity, under whichever parent it was begun. Returns its id."""
    tags = {"modelyard.kind": "stage", "modelyard.stage": stage, "modelyard.stage_identity": identity}
    if parent_id:
        tags["mlflow.parentRunId"] = parent_id
    name = " ".join(filter(None, (lineage.get("recipe"), stage, identity[:SHORT])))
    run_id = _find_or_create("modelyard.stage_identity", identity, "stage", name, tags)
    _log_params(run_id, params)
    _log_lineage(run_id, lineage)
    return run_id


def close_stage(
    run_id: str,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    figures: Mapping[str, Any],
    record_path: Path | None = None,
    record: Record | None = None,
) -> None:
    """Log what came out, then end the run. Closes pipelines too. Figures already there with the same value are not logged again."""
    with answering(store_uri()):
        _close(run_id, status, figures, record_path, record)


def _close(run_id: str, status: str, figures: Mapping[str, Any], record_path: Path | None, record: Record | None) -> None:
    from mlflow.entities import Metric

    store = client()
    run = store.get_run(run_id)
    named = {_apart_from_curves(run, name): value for name, value in flatten(figures)}
    numbers = {name: value for name, value in named.items() if run.data.metrics.get(name) != value}
    now = run.info.start_time
    for start in range(0, len(numbers), 1000):
        store.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in list(numbers.items())[start : start + 1000]])
    if record is not None:
        if record.samples:
            store.log_text(run_id, _readable(record), "samples.md")
        store.set_tag(run_id, "modelyard.record_hash", record.hash)
    if record_path is not None:
        store.log_artifact(run_id, str(record_path))
    store.set_terminated(run_id, status)


def _apart_from_curves(run: Run, name: str) -> str:
    """A final figure that has the name of a curve gets one of its own: as one more point at step 0 it would bend the line."""
    if name not in run.data.metrics or not any(metric.step > 0 for metric in client().get_metric_history(run.info.run_id, name)):
        return name
    return f"final/{name}"


def log_inputs(run_id: str, inputs: Mapping[str, tuple[str | Path, str]], counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
    """What a run read: {name: (path, digest)}, the digest (DVC's md5, or a stage's identity) kept as given. `counts` by name: rows, tokens, shown with it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entries = [
        DatasetInput(
            Dataset(name, digest, "dvc" if digest.endswith(".dir") else "stage", json.dumps({"uri": str(path)}), profile=json.dumps(counts[name]) if counts and counts.get(name) else None),
            [InputTag("mlflow.data.context", name)],
        )
        for name, (path, digest) in inputs.items()
    ]
    with answering(store_uri()):
        client().log_inputs(run_id, datasets=entries)


@asks_store
def log_pins(run_id: str, identity: str, files: Iterable[Path]) -> None:
    """What a data version is, with the data's run: one folder for each version, since one recipe's data changes with its sources."""
    for file in files:
        if file.is_file():
            client().log_artifact(run_id, str(file), f"versions/{identity[:16]}")


@asks_store
def log_folder(run_id: str, folder: Path, name: str) -> None:
    """The files of a folder as the run's artifacts under `name`."""
    client().log_artifacts(run_id, str(folder), name)


def lineage_of(run_id: str) -> dict[str, Any]:
    """The code behind a stage's run: git_commit, uncommitted_changes, python, packages. Empty where the store has no such run, or kept no lineage."""
    found = whole_lineage(run_id)
    if not found:
        return {}
    return {
        "git_commit": found.get("git_commit"),
        "uncommitted_changes": bool(found["git_patch"] or found.get("git_untracked")),
        "python": found.get("python"),
        "packages": found.get("packages", {}),
    }


@asks_store
def whole_lineage(run_id: str) -> dict[str, Any]:
    """All that `lineage` gave when a run was last started; of its pipeline's last start, where the stage kept none. Empty where there is none."""
    run = run_with(run_id)
    if run is not None and "modelyard.starts" not in run.data.tags:
        run = run_with(run.data.tags.get("mlflow.parentRunId", ""))
    if run is None or "modelyard.starts" not in run.data.tags:
        return {}
    with tempfile.TemporaryDirectory(prefix="modelyard-lineage-") as scratch:
        folder = Path(client().download_artifacts(run.info.run_id, f"lineage/{run.data.tags['modelyard.starts']}", scratch))
        texts = {path.name: path.read_bytes().decode(errors="surrogateescape") for path in folder.iterdir()}
    pins = {name: texts[name] for name in PINS if name in texts}
    return {**json.loads(texts["lineage.json"]), "git_patch": texts["uncommitted.patch"], "installed": texts["installed.txt"].split(), "pins": pins}


def attach(run_id: str, folder: Path, name: str) -> bool:
    """`log_folder` for a run that may be another store's; False where this one has no such run."""
    if run_with(run_id) is None:
        return False
    log_folder(run_id, folder, name)
    return True


def artifact_link(run_id: str, name: str) -> str | None:
    """Where a browser finds a run's artifact; None where MLflow is a file that no server shows."""
    if not store_uri().startswith(("http://", "https://")):
        return None
    return f"{store_uri().rstrip('/')}/#/experiments/{experiment_id()}/runs/{run_id}/artifacts/{name}?{TRAINING}"


def flatten(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested numbers as `a/b/c`, the only form MLflow keeps; text, lists, booleans and what is not finite are left to record.json."""
    for key, value in figures.items():
        name = prefix + re.sub(r"[^\w\-. /]", "_", str(key))
        if isinstance(value, Mapping):
            yield from flatten(value, name + "/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)


def run_with(run_id: str) -> Run | None:
    """A run, or None where the store has none of this id."""
    from mlflow.exceptions import MlflowException

    with answering(store_uri()):
        try:
            return client().get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def run_called(tag: str, value: str, kind: str) -> Run | None:
    """The first run of a kind (pipeline, stage) that carries a tag, or None."""
    with answering(store_uri()):
        found = client().search_runs([experiment_id()], f"tags.`{tag}` = '{value}' and tags.`modelyard.kind` = '{kind}'", max_results=1, order_by=["attributes.start_time ASC"])
    return next(iter(found), None)


def _find_or_create(tag: str, value: str, kind: str, name: str, tags: dict[str, str]) -> str:
    store, experiment = client(), experiment_id()
    with locked(), answering(store_uri()):
        if found := run_called(tag, value, kind):
            run_id = found.info.run_id
            store.update_run(run_id, status="RUNNING")
            return run_id
        return store.create_run(experiment, tags={**tags, **_columns(kind, tags)}, run_name=name).info.run_id


def _columns(kind: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's list of runs shows as user and source."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.type": "LOCAL", "mlflow.source.name": "modelyard run" if kind == "pipeline" else f"modelyard stage {tags['modelyard.stage']}"}


def _log_params(run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, text[:LONGEST_PARAM]) for name, text in _flatten_params(params)]
    with answering(store_uri()):
        for start in range(0, len(flat), 100):
            client().log_batch(run_id, params=flat[start : start + 100])


def _flatten_params(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """By dotted name; what is empty is left out, or it would fill the pages that compare runs."""
    for key, value in params.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flatten_params(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _log_lineage(run_id: str, lineage: Mapping[str, Any]) -> None:
    """Short facts as tags to search by. A full lineage is kept as files too, anew for each start: the code may have changed in between."""
    with answering(store_uri()):
        _log_lineage_files(run_id, lineage)


def _log_lineage_files(run_id: str, lineage: Mapping[str, Any]) -> None:
    from mlflow.entities import RunTag

    store = client()
    tags = {f"modelyard.{name}": str(lineage[name])[:LONGEST_TAG] for name in TAGGED_LINEAGE if lineage.get(name) is not None}
    if lineage.get("git_commit"):
        tags["mlflow.source.git.commit"] = lineage["git_commit"]
    if "installed" in lineage:
        start = int(store.get_run(run_id).data.tags.get("modelyard.starts", 0)) + 1
        tags["modelyard.uncommitted_changes"] = str(bool(lineage["git_patch"] or lineage["git_untracked"])).lower()
        with tempfile.TemporaryDirectory(prefix="modelyard-lineage-") as folder:
            _write_lineage(Path(folder), lineage)
            store.log_artifacts(run_id, folder, f"lineage/{start}")
        tags["modelyard.starts"] = str(start)  # the number last: what it names is whole
    if tags:
        store.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])


def _write_lineage(folder: Path, lineage: Mapping[str, Any]) -> None:
    """A lineage as files: lineage.json, the patch, what was installed, and what the data was."""
    rest = {name: value for name, value in lineage.items() if name not in APART}
    texts = {"lineage.json": json.dumps(rest, indent=2), "uncommitted.patch": lineage["git_patch"], "installed.txt": "\n".join(lineage["installed"]) + "\n", **lineage.get("pins", {})}
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))


def _readable(record: Record) -> str:
    return "\n\n".join(f"### {i}\n\n**prompt**\n\n```\n{s.prompt}\n```\n\n**output**\n\n```\n{s.output}\n```" for i, s in enumerate(record.samples, 1)) + "\n"
