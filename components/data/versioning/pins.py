"""Pins: what a recipe's sources were when they were read, and with them params.yaml, which DVC's data stages depend on.

A local file's pin follows its content. What is on the hub or installed keeps the pin it has, so that data pulled on another
machine is used rather than collected again; and since a hub's pin is a commit, it becomes the source's `revision`: a step that
must read it again reads the same. `update=True` looks anew. A local file that is not here keeps its pin too: its output may
come from the cache or the remote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.data.decontamination.benchmarks import datasets_of
from components.data.reading import hub, permissions, sources
from components.data.tokenizing import tokenizer
from components.data.versioning import params
from components.schema.config import BadInput
from components.schema.data import CurriculumConfig, DataConfig, Source, TokenizerConfig

Pins = dict[str, str]


def entry(config: DataConfig, update: bool = False) -> dict[str, Any]:
    """What params.yaml should hold for a dataset. Errors: BadInput where a source without a pin is not here."""
    pinned = params.load().get(config.name, {}).get("pins") or {}
    official = tuple(Source(kind="hub", id=id) for id in sorted({id for name in config.benchmarks for id in datasets_of(name)}))
    groups = {"documents": config.sources, "chats": config.chats, "preferences": config.preferences, "benchmarks": official}
    pins = {group: {s.label: _pin(s, (pinned.get(group) or {}).get(s.label), update) for s in members} for group, members in groups.items()}
    pins["tokenizer"] = _pins_of_tokenizer(config.tokenizer, pinned.get("tokenizer") or {}, update)
    dump = config.model_dump(mode="json", exclude={"name"})
    for field, group in (("sources", "documents"), ("chats", "chats"), ("preferences", "preferences")):
        dump[field] = [_plain(_at_commit(source, pins[group].get(source.label))) for source in getattr(config, field)]
    for section in ("collect", "clean", "filter", "dedup", "decontaminate", "mix"):
        dump[section] = _plain(getattr(config, section))
    dump["tokenizer"] = _plain(_at_commit(config.tokenizer, pins["tokenizer"].get(config.tokenizer.id or "")))
    dump["curriculum"] = dump["curriculum"] or dict.fromkeys(CurriculumConfig.model_fields)
    if robots := permissions.fingerprint(config.collect):
        pins["documents"]["robots"] = robots
    return {**dump, "pins": pins}


def write(config: DataConfig, update: bool = False) -> None:
    """Bring the dataset's entry up to date; other datasets stay as they are, and an unchanged file is not touched."""
    datasets = params.load()
    wanted = entry(config, update)
    if datasets.get(config.name) == wanted:
        return
    datasets[config.name] = wanted
    temporary = params.PATH.with_suffix(".yaml.tmp")
    temporary.write_text(yaml.safe_dump({"datasets": dict(sorted(datasets.items()))}, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    temporary.replace(params.PATH)


def _plain(section: Any) -> dict[str, Any]:
    """Without defaults: a new kind of option must not rerun old data."""
    return section.model_dump(mode="json", exclude_defaults=True)


def _at_commit(source: Any, pin: str | None) -> Any:
    """A source or tokenizer on the hub, as it was when it was pinned; anything else as it is."""
    commit = hub.commit(pin)
    return source.model_copy(update={"revision": commit}) if commit else source


def _pins_of_tokenizer(config: TokenizerConfig, pinned: Pins, update: bool) -> Pins:
    if config.kind != "pretrained" or not config.id:
        return {}
    remembered = None if update or Path(config.id).is_dir() else pinned.get(config.id)
    return {config.id: remembered or tokenizer.fingerprint(config)}


def _pin(source: Source, pinned: str | None, update: bool) -> str:
    remembered = source.kind in ("hub", "installed") and pinned and not update
    found = pinned if remembered else sources.fingerprint(source) or pinned
    if not found:
        raise BadInput(f"source: {source.path} does not exist, so there is nothing to read. The path is relative to {Path.cwd()}; correct it in the recipe")
    return found
