"""What a suite's name means: lm-eval's definition files, read as text, and the datasets that they name.

    leaves("ai2_arc")        # [Leaf("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test"), Leaf("arc_easy", ...)]

Both the data line, which fetches a benchmark, and the evaluation, which measures it, ask here; neither lm_eval nor torch is imported. lm-eval's own index
parses 14,000 files (4 to 10 s); we look for the lines that name a task or a group (0.3 s), and parse a file when it is asked for.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import yaml

from components.schema.config import BadInput
from components.schema.data import MiniSuite

_NAMED = re.compile(rb'^["\']?(?:task|group)["\']?:[ \t]*["\']?([^\s"\'#\[{]+)["\']?[ \t]*\r?$', re.MULTILINE)
_INCLUDED = re.compile(rb'^["\']?include["\']?:[ \t]*["\']?([^\s"\'#\[]+)', re.MULTILINE)
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
_STRUCTURE = {"group", "group_alias", "task", "aggregate_metric_list", "metadata"}  # keys of a group that are not handed on to its tasks


@dataclass(frozen=True)
class Leaf:
    """One task of a suite: what it reads."""

    task: str
    dataset: str | None
    """Hub id; None where the definition is Python code, which may read anything."""
    config: str | None
    """Configuration of the dataset; None = its default."""
    split: str
    """Split that is measured."""
    runs_code: bool = False
    """Whether it runs programs that the model wrote."""


@lru_cache
def official() -> Path:
    """The folder of lm-eval's definitions, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


@lru_cache
def files(folder: Path) -> dict[str, Path]:
    """Every task and group that a folder defines, and the file that does; of two with one name the first, as lm-eval has it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        for name in _NAMED.findall(path.read_bytes()):
            found.setdefault(name.decode(), path)
    return found


def known(own: Path | None = None) -> dict[str, Path]:
    """`files` of lm-eval, and over them those of a folder of one's own."""
    return {**files(official()), **(files(own) if own else {})}


@lru_cache
def tagged(tag: str, folder: Path) -> tuple[str, ...]:
    """The tasks of a folder that carry a tag. Only files are parsed that have the word in them or in what they include."""
    word = tag.encode()
    return tuple(sorted(name for name, path in files(folder).items() if _may_hold(path, word) and tag in _listed(definition(path).get("tag"))))


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@lru_cache(maxsize=100_000)
def _may_hold(path: Path, word: bytes) -> bool:
    text = path.read_bytes()
    if word in text:
        return True
    if b"include" not in text:
        return False
    return any(_may_hold(path.parent / include.decode(), word) for include in _INCLUDED.findall(text)) or b"\ninclude:\n" in text


def definition(path: Path) -> dict[str, Any]:
    """A definition with what it includes; functions stay names."""
    config = yaml.load(path.read_bytes(), Loader=_Loader) or {}
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= definition(path.parent / include)
    return merged | config


def leaves(suite: str, own: Path | None = None) -> list[Leaf]:
    """The tasks of a suite and what each reads. Errors: BadInput where nothing has that name."""
    return list(dict.fromkeys(_leaves(suite, {}, known(own), own)))


def check(suites: Iterable[str], own: Path | None = None) -> list[str]:
    """What is wrong with the names of suites, a sentence each."""
    problems = []
    for suite in suites:
        if suite not in get_args(MiniSuite) and suite not in known(own):
            try:
                members(suite, own)
            except BadInput as error:
                problems.append(str(error).removeprefix("evaluation: "))
    return problems


def _leaves(name: str, handed_on: dict[str, Any], paths: dict[str, Path], own: Path | None) -> Iterator[Leaf]:
    if name not in paths:
        for task in members(name, own):
            yield from _leaves(task, handed_on, paths, own)
        return
    config = definition(paths[name]) | handed_on
    if not isinstance(children := config.get("task"), list):
        yield _leaf(name, config)
        return
    given = {key: value for key, value in config.items() if key not in _STRUCTURE}
    for child in children:
        entry = {"task": child} if isinstance(child, str) else child
        inner = str(entry.get("group", entry.get("task")))
        extra = given | {key: value for key, value in entry.items() if key not in ("task", "group")}
        if "dataset_path" in entry and inner not in paths:  # a task that is written inside its group
            yield _leaf(f"{name}::{inner}", extra)
        else:
            yield from _leaves(inner, extra, paths, own)


def _leaf(name: str, config: dict[str, Any]) -> Leaf:
    split = config.get("test_split") or config.get("validation_split") or "test"
    return Leaf(name, config.get("dataset_path"), config.get("dataset_name"), split, bool(config.get("unsafe_code")))


def definitions(suite: str, own: Path | None = None) -> dict[str, Path]:
    """Every task and group that a suite is made of, and the file of each: what lm-eval's index must hold to load it. Errors: BadInput."""
    paths, found, asked = known(own), dict[str, Path](), [suite]
    while asked:
        name = asked.pop()
        if name in found:
            continue
        if name not in paths:
            asked.extend(members(name, own))
            continue
        found[name] = paths[name]
        if isinstance(children := definition(paths[name]).get("task"), list):
            entries = [{"task": child} if isinstance(child, str) else child for child in children]
            inner = [str(entry.get("group", entry.get("task"))) for entry in entries if "dataset_path" not in entry]
            asked.extend(inner)
    return found


def members(tag: str, own: Path | None = None) -> tuple[str, ...]:
    """The tasks that carry a tag. Errors: BadInput, with what the name may have been meant to be."""
    for folder in (own, official()):
        if folder and (found := tagged(tag, folder)):
            return found
    near = get_close_matches(tag, [*get_args(MiniSuite), *known(own)], n=3, cutoff=0.6)
    raise BadInput(
        f"evaluation: no task, group or tag of lm-eval is called {tag}, so it cannot be measured. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + "`lm_eval ls tasks` lists them; a definition of your own belongs in the folder evals.definitions names"
    )


def split_files(folder: Path, config: str | None) -> dict[str, list[str]]:
    """Parquet files by split, of a copy of a dataset whose README does not say which are whose: by their names, as the hub writes them. Empty where it does."""
    readme = folder / "README.md"
    if readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace"):
        return {}
    inside = folder / config if config and (folder / config).is_dir() else folder
    found: dict[str, list[str]] = {}
    for path in sorted(inside.rglob("*.parquet")):
        if match := _SHARD.fullmatch(path.name):
            found.setdefault(match[1], []).append(str(path))
    return found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which `!function module.name` is that name."""


_Loader.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))
