"""params.yaml: what DVC's data stages depend on, written from a recipe's DataConfig.

    datasets:
      tiny:
        sources: [...]           the DataConfig, without its name; of sources only what is not the default
        curriculum: {...}        every value null where there is no curriculum, since DVC wants each parameter to exist
        pins: {documents: {installed:stdlib: python 3.11.2}, chats: {}, ...}

A **pin** says what a source was when it was read. A local file's pin follows its content. A hub dataset or an installed
package keeps the pin it has, so that data pulled on another machine is used rather than collected again; `update=True`
looks anew. A local file that is not here keeps its pin too: its output may come from the cache or the remote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.data import permissions, sources
from components.data.benchmarks import OFFICIAL
from components.schema.config import BadInput
from components.schema.data import CurriculumConfig, DataConfig, Source

PATH = Path("params.yaml")


def entry(config: DataConfig, update: bool = False) -> dict[str, Any]:
    """What params.yaml should hold for a dataset. Errors: BadInput where a source without a pin is not here."""
    pinned = load().get(config.name, {}).get("pins") or {}
    official = [Source(kind="hub", id=OFFICIAL[name]) for name in config.benchmarks if name in OFFICIAL]
    groups = {"documents": config.sources, "chats": config.chats, "preferences": config.preferences, "benchmarks": official}
    dump = config.model_dump(mode="json", exclude={"name"})
    for group in ("sources", "chats", "preferences"):  # without defaults: a new kind of option must not rerun old data
        dump[group] = [source.model_dump(mode="json", exclude_defaults=True) for source in getattr(config, group)]
    for section in ("collect", "clean", "filter", "dedup", "decontaminate", "mix", "tokenizer"):
        dump[section] = getattr(config, section).model_dump(mode="json", exclude_defaults=True)
    dump["curriculum"] = dump["curriculum"] or dict.fromkeys(CurriculumConfig.model_fields)
    dump["pins"] = {group: {s.label: _pin(s, (pinned.get(group) or {}).get(s.label), update) for s in members} for group, members in groups.items()}
    if robots := permissions.fingerprint(config.collect):
        dump["pins"]["documents"]["robots"] = robots
    return dump


def write(config: DataConfig, update: bool = False) -> None:
    """Bring the dataset's entry up to date; other datasets stay as they are, and an unchanged file is not touched."""
    datasets = load()
    wanted = entry(config, update)
    if datasets.get(config.name) == wanted:
        return
    datasets[config.name] = wanted
    temporary = PATH.with_suffix(".yaml.tmp")
    temporary.write_text(yaml.safe_dump({"datasets": dict(sorted(datasets.items()))}, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    temporary.replace(PATH)


def load(path: Path | None = None) -> dict[str, Any]:
    """The datasets of params.yaml by name."""
    path = path or PATH
    return ((yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}).get("datasets") or {}


def read(path: Path, name: str) -> DataConfig:
    """One dataset of params.yaml as the config it was written from. Errors: BadInput."""
    datasets = load(path)
    if name not in datasets:
        raise BadInput(f"params: {path} holds no dataset {name!r}, so there is nothing to make. It holds: {', '.join(datasets) or 'none'}")
    raw = {key: value for key, value in datasets[name].items() if key != "pins"}
    if not any(value is not None for value in raw["curriculum"].values()):
        raw["curriculum"] = None
    return DataConfig.model_validate({"name": name, **raw})


def _pin(source: Source, pinned: str | None, update: bool) -> str:
    remembered = source.kind in ("hub", "installed") and pinned and not update
    found = pinned if remembered else sources.fingerprint(source) or pinned
    if not found:
        raise BadInput(f"source: {source.path} does not exist, so there is nothing to read. The path is relative to {Path.cwd()}; correct it in the recipe")
    return found
