"""Versions: DVC as the owner of what the data is.

    dataset, ran = reproduce(config, emit)      # params.yaml, then each stage in order; only what changed runs
    fetch(config, emit)                         # what another machine made is brought here; nothing is run
    status(config)                              # {"tokenizer": "vocab_size changed", ...}; runs nothing, writes nothing
    current(config)                             # the Dataset where everything stands, else None

An output that is missing here is looked for in DVC's cache and remote before its stage is run. A stage that fails with a
BadInput raises that same BadInput here, not DVC's traceback.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from components.data.steps import MODULES
from components.data.versioning import params, pins, sharing
from components.schema import storage
from components.schema.config import BadInput, Unavailable
from components.schema.data import DataConfig
from components.schema.records import Dataset, Part

STEPS = tuple(MODULES)
PARTS = tuple(step for step in STEPS if step in Dataset.model_fields)  # the others are only on the way to these

Emit = Callable[[dict[str, Any]], None]
write_params = pins.write


def reproduce(config: DataConfig, emit: Emit) -> tuple[Dataset, list[str]]:
    """Make a dataset: what stands is kept, what can be fetched is fetched, the rest is run. Gives the names of stages that ran.

    Errors: BadInput, from a source or from a stage.
    """
    pins.write(config)
    ran = []
    with _repository() as repo:
        shared = sharing.Shared(repo, emit)
        for done, step in enumerate(STEPS, start=1):
            started = time.perf_counter()
            verdict = _reproduce_one(repo, f"{step}@{config.name}", shared)
            if verdict == "made":
                ran.append(step)
            emit({"event": "note", "text": f"{step} {verdict} ({time.perf_counter() - started:.1f} s)"})
            emit({"event": "progress", "step": done, "total": len(STEPS), "unit": "steps"})
        shared.push(f"{step}@{config.name}" for step in STEPS)
    dataset = current(config)
    assert dataset, "every stage has just succeeded"
    return dataset, ran


def fetch(config: DataConfig, emit: Emit) -> Dataset | None:
    """Bring a dataset here that another machine made, from the store that they share; no stage is run. None where there is no store, or it lacks a part. Errors: BadInput."""
    if storage.address() is None:
        return None
    pins.write(config)
    with _repository() as repo:
        shared = sharing.Shared(repo, emit, may_make=False)
        for step in STEPS:
            started = time.perf_counter()
            try:
                verdict = _reproduce_one(repo, f"{step}@{config.name}", shared)
            except sharing.NotThere:
                return None
            emit({"event": "note", "text": f"{step} {verdict} ({time.perf_counter() - started:.1f} s)"})
    return current(config)


def _reproduce_one(repo: Any, name: str, shared: sharing.Shared) -> str:
    """Bring one stage up to date and say how: current, restored, fetched or made."""
    restored = _restore(repo, name)
    asked = {"pull": True} if shared.has_to_be_asked(name) else {}
    with tempfile.NamedTemporaryFile("r", prefix="modelyard-", suffix=".txt", encoding="utf-8") as told:
        with _environment(MODELYARD_STEP_ERROR=told.name):
            try:
                made = repo.reproduce(name, single_item=True, **asked)
            except Exception as error:
                if reason := told.read():
                    raise BadInput(reason) from None
                if isinstance(error.__cause__, sharing.NotThere):
                    raise error.__cause__ from None
                raise _explained(error, name) from error
    if name in shared.fetched:
        return "fetched"
    return "made" if made else "restored" if restored else "current"


def _restore(repo: Any, name: str) -> bool:
    """Fetch a stage's missing output from the cache or the remote. Not finding it is no error: the stage then runs."""
    (stage,) = repo.stage.collect(name)
    wanted = [out for out in stage.outs if out.hash_info and not out.exists]
    with repo.lock:
        if not wanted or stage.changed(allow_missing=True):  # what was made from something else is not worth the way
            return False
    for fetch in (repo.checkout, repo.pull):
        with contextlib.suppress(Exception):  # a remote can fail in as many ways as there are kinds of remote
            fetch(targets=[name])
        if all(out.exists for out in wanted):
            return True
    return False


def status(config: DataConfig) -> dict[str, str]:
    """Which stages would not be left as they are, and why. Nothing is run, fetched or written. Errors: BadInput."""
    wanted = {"datasets": {config.name: pins.entry(config)}}
    if config.name not in params.load():
        return dict.fromkeys(STEPS, "never made")
    remade: dict[str, str] = {}
    absent: dict[str, str] = {}
    with _repository() as repo, repo.lock:
        for step in STEPS:
            (stage,) = repo.stage.collect(f"{step}@{config.name}")
            if reason := _why_remade(stage, wanted, remade):
                remade[step] = reason
            elif not all(out.exists for out in stage.outs):
                absent[step] = "is not here: fetched where cache or remote has it, else made anew"
    return {step: reason for step in STEPS if (reason := remade.get(step) or absent.get(step))}


def _why_remade(stage: Any, wanted: dict[str, Any], remade: dict[str, str]) -> str | None:
    """None where a stage's output, here or elsewhere, is what it should be, else the first reason found against it."""
    from dvc.dependency import ParamsDependency

    if not all(out.hash_info for out in stage.outs):
        return "never made"
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            locked = dependency.hash_info.value or {}
            changed = [name for name in dependency.params if _at(wanted, name) != locked.get(name)]
            if changed:
                return f"{', '.join(name.split('.', 2)[2] for name in changed)} changed"
            continue
        path = Path(dependency.def_path)
        if earlier := next((part for part in path.parts if part in remade and path.parts[0] == "data"), None):
            return f"{earlier} will be made anew"
        if dependency.exists and dependency.status():
            return f"{path} changed"
    return next((f"{out.def_path} was changed by hand" for out in stage.outs if out.exists and out.status()), None)


def current(config: DataConfig) -> Dataset | None:
    """The dataset as dvc.lock and the folders have it, or None where a part is missing."""
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {}) if lock.is_file() else {}
    parts = {}
    for step in PARTS:
        entry = stages.get(f"{step}@{config.name}")
        if not entry or not Path(entry["outs"][0]["path"]).is_dir():
            return None
        (out,) = entry["outs"]
        parts[step] = Part(path=out["path"], identity=out["md5"], counts=_counts(Path(out["path"])))
    return Dataset(name=config.name, **parts)


# ---------------------------------------------------------------- talking to DVC


@contextlib.contextmanager
def _repository() -> Iterator[Any]:
    """DVC's Repo of the current folder, quiet, with this interpreter first on PATH. Errors: BadInput."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with _environment(PATH=path, DVC_NO_ANALYTICS="1"), contextlib.redirect_stdout(sys.stderr):
        try:
            repo = Repo(".", config=storage.dvc_options() or None, _wait_for_lock=True)  # several runs look at their data at once, each for a second
        except NotDvcRepoError:
            raise BadInput(f"data: {Path.cwd()} is not a project with DVC (no .dvc folder), so data has no version. Run from the project's own folder") from None
        with contextlib.closing(repo):
            yield repo


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _explained(error: Exception, name: str) -> Exception:
    """A lock held by another DVC process, which is over some time; anything else is a defect and keeps its trace."""
    from dvc.lock import LockError

    if isinstance(error, LockError) or isinstance(error.__cause__, LockError):  # DVC wraps that of a stage's files
        return Unavailable("data: another DVC process is at work in this project, so its data cannot be made now. Wait for it to end and run again")
    return RuntimeError(f"data stage {name} failed; its own output stands above")


def _counts(folder: Path) -> dict[str, int]:
    """Numbers from a step's report, drops by reason among them; for tokens also the drops of the documents they come from."""
    steps = ("collect", "clean", "filter", "dedup", "decontaminate") if folder.name == "tokens" else (folder.name,)
    whole = _report(folder)
    counts = {name: value for name, value in whole.items() if isinstance(value, int)}
    counts |= {f"kind_{name}": count for name, count in whole.get("by_kind", {}).items()}
    for step in steps:
        counts |= {f"dropped_{reason}": entry["count"] for reason, entry in _report(folder.parent / step).get("dropped", {}).items()}
    return counts


def _report(folder: Path) -> dict[str, Any]:
    """A step's own account; empty where its folder was not fetched."""
    path = next((path for name in ("tokens.json", "mix.json", "counts.json") if (path := folder / name).is_file()), None)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def _at(tree: Any, path: str) -> Any:
    """The value at a dotted path of nested mappings."""
    for key in path.split("."):
        tree = tree[key] if isinstance(tree, dict) else None
    return tree
