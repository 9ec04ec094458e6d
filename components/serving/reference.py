"""The prompts that a model was trained on, found by its record, as the profile that drift is measured against.

    profile = profile_of(folder)                  # a checkpoint's folder with its record.json; BadInput says why there is none

The record names its data by DVC's md5, so the very version is read from the project's cache or remote, whatever lies in data/ today. Chats are taken up to
each turn of the assistant, as a conversation asks an endpoint; preference pairs give their prompts. Made once for a data version and tokenizer (seconds), then read from
MODELYARD_HOME/profiles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from components.schema.config import BadInput
from components.schema.records import Record, digest, file_md5, home
from components.serving.drift import Profile, profile_of_prompts

READ = ("chats", "preferences")  # inputs of a stage that hold prompts
MOST = 8000  # prompts that are counted, evenly over the files
REVISION = 2  # of what a profile is; part of the cached file's name

Message = dict[str, str]


def profile_of(folder: Path) -> Profile:
    """The profile of a checkpoint's training prompts. Errors: BadInput where it has no record, no such data, or the data's version cannot be had."""
    if not (folder / "record.json").is_file():
        raise BadInput(f"drift: {folder} has no record.json, so what it was trained on is not known. Serve a model that was trained or released here, or go without")
    inputs = {name: md5 for name, md5 in Record.read(folder).inputs.items() if name in READ}
    if not inputs:
        raise BadInput(f"drift: the record of {folder} names neither chats nor preferences, so there are no training prompts to compare with. Serve a chat model, or go without")
    cached = home() / "profiles" / f"{digest([REVISION, inputs, file_md5(folder / 'tokenizer.json')])}.json"
    if not cached.is_file():
        _write(cached, profile_of_prompts(_tokens(folder, _conversations(inputs))))
    return Profile.model_validate_json(cached.read_text(encoding="utf-8"))


def _write(path: Path, profile: Profile) -> None:
    """Whole or not at all, since several servers may make it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(profile.model_dump_json(), encoding="utf-8")
    temporary.replace(path)


def _conversations(inputs: dict[str, str]) -> list[list[Message]]:
    """What the assistant was asked, up to 8,000 times. Errors: BadInput."""
    from components.data.versioning.stored import Missing, Store

    found: list[list[Message]] = []
    try:
        with Store() as store:
            for name, md5 in sorted(inputs.items()):
                with store.open(store.tree(md5)["train.jsonl"]) as file:
                    found += [asked for line in file for asked in _asked(json.loads(line), name)]
    except (Missing, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"drift: the {name} {md5[:12]} that the model was trained on cannot be read here ({error}). Fetch them with `dvc pull`, or go without") from None
    places = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST)).astype(int))
    return [found[place] for place in places]


def _asked(row: dict[str, Any], source: str) -> Iterator[list[Message]]:
    """The messages before each turn of the assistant."""
    if source == "preferences":
        yield row["prompt"]
        return
    messages = row["messages"]
    yield from (messages[:place] for place, message in enumerate(messages) if place and message["role"] == "assistant")


def _tokens(folder: Path, conversations: list[list[Message]]) -> list[list[int]]:
    """As the model is given them, its template around them."""
    from components.models.build import load_tokenizer

    return load_tokenizer(folder).apply_chat_template(conversations, add_generation_prompt=True, return_dict=False) if conversations else []
