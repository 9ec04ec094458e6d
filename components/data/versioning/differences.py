"""Differences: what changed in the data between two Git revisions, or between one and the files as they stand.

    difference = compare("HEAD~1", "HEAD")      # compare("HEAD") holds the last commit against the files here
    print(render(difference)); difference.plain()

    python -m components data-diff HEAD~1 HEAD --dataset tiny --json

dvc.lock says which outputs, parameters and code each version was made of; the counts and document ids come from what DVC stored
(`stored`), no version is checked out. A document's id is the hash of what was collected: a document that was cleaned another way counts
as kept, while its step's bytes change.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from components.data.steps import MODULES
from components.data.versioning.stored import Missing, Store
from components.schema.config import BadInput

EXAMPLES, EXCERPT_CHARACTERS = 3, 100
ACCOUNTS = ("counts.json", "tokens.json", "mix.json")  # where a step says what it did
NOT_COMPARED = ("histograms", "examples")

Change = tuple[Any, Any]  # before, after; None where it is not there


@dataclass(frozen=True)
class Stage:
    """One step of a dataset, as dvc.lock has it."""

    md5: str
    code: dict[str, str]
    """Files it depends on beside data, with their md5."""
    parameters: dict[str, Any]
    """By dotted name: what it was made with."""


@dataclass(frozen=True)
class Version:
    """The data of one revision."""

    name: str
    stages: dict[tuple[str, str], Stage]
    """By dataset and step."""
    parameters: dict[str, Any]
    """What params.yaml asks for, by dataset."""


@dataclass(frozen=True)
class StepChange:
    """A step whose output is not the same."""

    dataset: str
    step: str
    md5: Change
    counts: dict[str, Change] = field(default_factory=dict)
    """Numbers of its counts.json that changed, by dotted name."""


@dataclass(frozen=True)
class DocumentsChange:
    """The documents of a dataset, by id."""

    added: int
    removed: int
    kept: int
    moved: int
    """Of the kept ones, those that went from training to held out or back."""
    examples: dict[str, list[dict[str, str]]]
    """added, removed: a few documents with id, source, url and first words."""


@dataclass(frozen=True)
class Difference:
    """What changed between two versions."""

    before: str
    after: str
    steps: list[StepChange] = field(default_factory=list)
    parameters: dict[str, Change] = field(default_factory=dict)
    """Of params.yaml, by dotted name."""
    code: dict[str, list[str]] = field(default_factory=dict)
    """Files that steps depend on, and the steps that were made with another content of it."""
    documents: dict[str, DocumentsChange] = field(default_factory=dict)
    """By dataset."""
    unmade: list[str] = field(default_factory=list)
    """Stages of the later version that were made with other parameters than its params.yaml has."""
    missing: list[str] = field(default_factory=list)
    """Stages whose files are neither in the cache nor in the remote, so that less could be compared."""

    def plain(self) -> dict[str, Any]:
        """The difference as JSON-able data."""
        return asdict(self)


def main(revisions: Sequence[str], dataset: str | None = None, as_json: bool = False) -> None:
    """`modelyard data diff`. Errors: BadInput."""
    from components.data.versioning.difference_text import render

    if len(revisions) > 2:
        raise BadInput(f"data diff: {len(revisions)} revisions ({', '.join(revisions)}), and a difference has two sides. Give one or two")
    difference = compare(*(revisions or ["HEAD"]), dataset=dataset)
    print(json.dumps(difference.plain(), ensure_ascii=False, indent=2) if as_json else render(difference))


def compare(a: str = "HEAD", b: str | None = None, dataset: str | None = None) -> Difference:
    """What changed from revision `a` to revision `b`, or to the files here; of one dataset or of all. Errors: BadInput."""
    before, after = version(a), version(b)
    known = sorted({name for side in (before, after) for name in [*side.parameters, *(name for name, _ in side.stages)]})
    if dataset is not None and dataset not in known:
        raise BadInput(f"data diff: neither {before.name} nor {after.name} has a dataset {dataset!r}, so there is nothing to compare. They have: {', '.join(known) or 'none'}")
    names = [dataset] if dataset else known
    keys = sorted({key for side in (before, after) for key in side.stages if key[0] in names}, key=_place)
    missing: list[str] = []
    with Store() as store:
        steps = [_step(store, key, before, after, missing) for key in keys if _md5(before, key) != _md5(after, key)]
        documents = {name: found for name in names if (found := _documents(store, name, before, after, missing))}
    return Difference(
        before.name,
        after.name,
        steps,
        {name: pair for one in names for name, pair in _parameters(before.parameters.get(one), after.parameters.get(one), f"datasets.{one}").items()},
        _code(keys, before, after),
        documents,
        [f"{step}@{name}" for name, step in keys if (stage := after.stages.get((name, step))) and _is_stale(stage, after.parameters)],
        list(dict.fromkeys(missing)),
    )


# ---------------------------------------------------------------- versions


def version(revision: str | None) -> Version:
    """The data of a revision; None: of the files here. Errors: BadInput."""
    if revision is None:
        name, read = "the files here", lambda path: Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
    else:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if not commit:
            raise BadInput(f"data diff: Git knows no revision {revision!r} here, so there is nothing to compare with. Name a commit, a branch or a tag: git log --oneline -- dvc.lock")
        short = commit.strip()[:8]
        name, read = revision if revision == short else f"{revision} ({short})", lambda path: _git("show", f"{short}:./{path}") or ""
    lock = _yaml(read("dvc.lock"), f"dvc.lock at {name}")
    parameters = _yaml(read("params.yaml"), f"params.yaml at {name}")
    return Version(name, dict(_stages(lock.get("stages") or {})), parameters.get("datasets") or {})


def _git(*words: str) -> str | None:
    """What Git says; None where it says that there is no such thing."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, encoding="utf-8")
    if done.returncode and "not a git repository" in done.stderr:
        raise BadInput(f"data diff: {Path.cwd()} is not in a Git repository, so data has no versions to compare. Run from the project's own folder")
    return done.stdout if done.returncode == 0 else None


def _yaml(text: str, what: str) -> dict[str, Any]:
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"data diff: {what} is not YAML ({str(error).splitlines()[0]}), so the version cannot be read. Mend the file, or name another revision") from None


def _stages(lock: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Stage]]:
    """Every stage with an output data/DATASET/STEP."""
    for stage in lock.values():
        for out in stage.get("outs") or []:
            parts = PurePosixPath(out["path"]).parts
            if len(parts) == 3 and parts[0] == "data" and "md5" in out:
                code = {dep["path"]: dep.get("md5", "") for dep in stage.get("deps") or [] if PurePosixPath(dep["path"]).parts[0] != "data"}
                parameters = {name: value for file in (stage.get("params") or {}).values() for name, value in file.items()}
                yield parts[1:], Stage(out["md5"], code, parameters)


def _place(key: tuple[str, str]) -> tuple[str, int, str]:
    """Datasets by name, steps in the order in which they run."""
    name, step = key
    return name, list(MODULES).index(step) if step in MODULES else len(MODULES), step


def _md5(side: Version, key: tuple[str, str]) -> str | None:
    return side.stages[key].md5 if key in side.stages else None


def _is_stale(stage: Stage, datasets: dict[str, Any]) -> bool:
    return any(_at({"datasets": datasets}, name) != value for name, value in stage.parameters.items() if name.startswith("datasets."))


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _code(keys: Sequence[tuple[str, str]], before: Version, after: Version) -> dict[str, list[str]]:
    """Code whose content changed, and the stages of both versions that were made with it."""
    found: dict[str, list[str]] = {}
    for key in keys:
        sides = [side.stages[key].code for side in (before, after) if key in side.stages]
        if len(sides) == 2:
            for path in sorted({path for side in sides for path in side}):
                if sides[0].get(path) != sides[1].get(path):
                    found.setdefault(path, []).append(f"{key[1]}@{key[0]}")
    return dict(sorted(found.items()))


# ---------------------------------------------------------------- parameters and counts


def _parameters(old: Any, new: Any, name: str) -> dict[str, Change]:
    """A dataset that only one side has is one change."""
    return _changed(old, new, name) if (old and new) or old == new else {name: (old, new)}


def _changed(old: Any, new: Any, name: str) -> dict[str, Change]:
    """Leaves that differ, by dotted name."""
    old, new = _by_name(old), _by_name(new)
    if old == new:
        return {}
    if not any(isinstance(one, dict) for one in (old, new)) or not all(isinstance(one, dict) or one is None for one in (old, new)):
        return {name: (old, new)}
    old, new = old or {}, new or {}
    inside = {key: key if key.startswith("[") or not name else f".{key}" for key in map(str, [*old, *new])}
    return {inner: pair for key, below in inside.items() for inner, pair in _changed(old.get(key), new.get(key), name + below).items()}


def _by_name(value: Any) -> Any:
    """A list of mappings as a mapping: a source is called by what it reads, so that another one before it changes nothing."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return value
    named: dict[str, Any] = {}
    for number, one in enumerate(value):
        reads = [one.get("path") or one.get("id") or "+".join(map(str, one.get("packages") or ())), one.get("config"), one.get("split")]
        label = f"[{':'.join(str(part) for part in reads if part)}]" if reads[0] else f"[{number}]"
        named[label if label not in named else f"[{number}]"] = one
    return named


def _step(store: Store, key: tuple[str, str], before: Version, after: Version, missing: list[str]) -> StepChange:
    sides = []
    for side in (before, after):
        md5 = _md5(side, key)
        sides.append(_read(lambda md5=md5: _account(store, md5), missing, key, side.name) if md5 else None)
    counts = _changed(*sides, "") if None not in sides else {}
    return StepChange(*key, (_md5(before, key), _md5(after, key)), {name: pair for name, pair in counts.items() if any(isinstance(one, int | float) for one in pair)})


def _account(store: Store, md5: str) -> dict[str, Any]:
    """The numbers that a step left beside its output."""
    tree = store.tree(md5)
    name = next((name for name in ACCOUNTS if name in tree), None)
    return _numbers(store.json(tree[name])) if name else {}


def _numbers(tree: Any) -> Any:
    """The tree without what is no number; a number for {count, examples}."""
    if isinstance(tree, dict):
        inner = {key: found for key, value in tree.items() if key not in NOT_COMPARED and (found := _numbers(value)) is not None}
        return inner["count"] if set(tree) == {"count", "examples"} else inner
    return tree if isinstance(tree, int | float) and not isinstance(tree, bool) else None


def _read(read: Callable[[], Any], missing: list[str], key: tuple[str, str], name: str) -> Any:
    """What `read` gives; None where DVC does not have it, which is noted."""
    try:
        return read()
    except Missing:
        missing.append(f"{key[1]}@{key[0]} of {name}")
        return None


# ---------------------------------------------------------------- documents


def _documents(store: Store, name: str, before: Version, after: Version, missing: list[str]) -> DocumentsChange | None:
    """None where one side has no documents, or they are the same, or they are not stored."""
    key = (name, "documents")
    if key not in before.stages or key not in after.stages or _md5(before, key) == _md5(after, key):
        return None
    trees = [_read(lambda side=side: store.tree(_md5(side, key)), missing, key, side.name) for side in (before, after)]
    if None in trees:
        return None
    files = [{path: md5 for path, md5 in tree.items() if path.endswith(".parquet")} for tree in trees]
    same = files[0].items() & files[1].items()  # a file that both have tells nothing, and need not be read but for its rows
    own = [{path: md5 for path, md5 in side.items() if (path, md5) not in same} for side in files]
    ids = [_read(lambda own=one: _ids(store, own), missing, key, side.name) for one, side in zip(own, (before, after), strict=True)]
    rows = _read(lambda: sum(_rows(store, md5) for _, md5 in same), missing, key, after.name)
    if None in ids or rows is None:
        return None
    old, new = (np.concatenate([*side.values(), np.zeros(0, np.uint64)]) for side in ids)
    moved = sum(np.intersect1d(ids[0].get(one, old[:0]), ids[1].get(other, old[:0])).size for one, other in (("train", "heldout"), ("heldout", "train")))
    added, removed = np.setdiff1d(new, old), np.setdiff1d(old, new)
    shown = {"added": _examples(store, own[1], added), "removed": _examples(store, own[0], removed)}
    return DocumentsChange(added.size, removed.size, rows + np.intersect1d(old, new).size, moved, shown)


def _rows(store: Store, md5: str) -> int:
    with store.open(md5) as file, pq.ParquetFile(file) as shard:
        return shard.metadata.num_rows


def _ids(store: Store, files: dict[str, str]) -> dict[str, np.ndarray]:
    """By side (train, heldout) the ids in its files, as uint64; nothing but this column is read."""
    found: dict[str, list[np.ndarray]] = {}
    for path, md5 in sorted(files.items()):
        with store.open(md5) as file, pq.ParquetFile(file) as shard:
            for group in range(shard.num_row_groups):
                found.setdefault(PurePosixPath(path).parts[0], []).append(_as_numbers(shard.read_row_group(group, columns=["id"])["id"].to_pylist()))
    return {side: np.concatenate(parts) for side, parts in found.items()}


def _as_numbers(ids: list[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def _examples(store: Store, files: dict[str, str], wanted: np.ndarray) -> list[dict[str, str]]:
    """The first few documents, in the order of the files, whose ids are wanted."""
    found: list[dict[str, str]] = []
    for _, md5 in sorted(files.items() if wanted.size else ()):
        with store.open(md5) as file, pq.ParquetFile(file) as shard:
            for group in range(shard.num_row_groups):
                hits = np.flatnonzero(np.isin(_as_numbers(shard.read_row_group(group, columns=["id"])["id"].to_pylist()), wanted))
                if hits.size:
                    rows = shard.read_row_group(group, columns=["id", "source", "url", "text"]).take(hits[: EXAMPLES - len(found)])
                    found += [_shown(row) for row in rows.to_pylist()]
                if len(found) >= EXAMPLES:
                    return found
    return found


def _shown(row: dict[str, Any]) -> dict[str, str]:
    text = " ".join(row["text"][: 4 * EXCERPT_CHARACTERS].split())[:EXCERPT_CHARACTERS]
    return {"id": row["id"], "source": row["source"] or "", "url": row["url"] or "", "text": text}
