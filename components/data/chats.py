"""Chats for SFT from the recipe's sources and the curriculum, in one form: {"messages": [{"role", "content"}], "kind"}.

Columns may be `messages`, or `instruction` with `input` and `output`, or `question` and `answer`. The split goes by the
prompt, so a held-out question is never among the training ones, not even with another answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data import curriculum, sources, split
from components.data.tokenizer import SPECIAL_TOKENS
from components.schema.config import BadInput
from components.schema.data import DataConfig

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


def run(config: DataConfig, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl, counts.json. Errors: BadInput naming file and row."""
    drops = split.Drops()
    kept = clean(_from_sources(config), config, drops)
    if config.curriculum:  # clean as it comes; what it repeats, it repeats on purpose
        kept += curriculum.chats(config.curriculum)
    if not kept and not config.chats and not config.curriculum:
        sides = empty(folder)
    else:
        sides = split.write_split(kept, lambda item: prompt_key(item["messages"][:-1]), config.heldout_fraction, folder, "chats")
    kinds = dict(sorted(Counter(item["kind"] for item in kept).items()))
    split.write_counts(folder, {"chats": len(kept), **sides, "by_kind": kinds, "dropped": drops.reasons})


def empty(folder: Path) -> dict[str, int]:
    """Nothing was asked for: empty files, so that later steps find them."""
    for side in ("train", "heldout"):
        split.write_json_lines(folder / f"{side}.jsonl", [])
    return {"train": 0, "heldout": 0}


def prompt_key(prompt: list[Message]) -> str:
    """The text by which a prompt's side of the split is decided."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def clean(items: Iterator[dict[str, Any]], config: DataConfig, drops: split.Drops) -> list[dict[str, Any]]:
    """Each item once, none that spells a special token, none with a held-out item of the curriculum in it."""
    guard = curriculum.Guard(config.curriculum.seed) if config.curriculum else None
    kept: dict[str, dict[str, Any]] = {}
    for item in items:
        key, text = json.dumps(item, sort_keys=True), curriculum.as_text(item)
        reason = "duplicate" if key in kept else "spells_a_special_token" if any(token in text for token in SPECIAL_TOKENS) else None
        reason = reason or (guard.reason(text) if guard else None)
        if reason:
            drops.add(reason, text)
        else:
            kept[key] = item
    return list(kept.values())


def _from_sources(config: DataConfig) -> Iterator[dict[str, Any]]:
    for source in config.chats:
        for row in sources.rows(source):
            yield {"messages": _messages(row), "kind": source.label}


def _messages(row: sources.Row) -> list[Message]:
    values, where = row.values, f"chats: {row.where}"
    if values.get("messages") is not None:
        messages = checked(values["messages"], where)
    elif "instruction" in values and "output" in values:
        prompt = "\n".join(part for part in (values["instruction"], values.get("input")) if part)
        messages = checked([{"role": "user", "content": prompt}, {"role": "assistant", "content": values["output"]}], where)
    elif "question" in values and "answer" in values:
        messages = checked([{"role": "user", "content": values["question"]}, {"role": "assistant", "content": values["answer"]}], where)
    else:
        raise BadInput(
            f"{where} has columns {', '.join(values)}, from which no chat can be made. "
            "Use `messages`, or `instruction`/`input`/`output`, or `question`/`answer`"
        )
    if messages[-1]["role"] != "assistant":
        raise BadInput(f"{where} ends with a turn of the {messages[-1]['role']}, so there is nothing to learn from it. End it with the assistant's answer")
    return messages


def checked(messages: Any, where: str) -> list[Message]:
    """The turns as we keep them: an optional system message, then user and assistant in turn. Errors: BadInput."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: `messages` is not a list of turns, so no chat can be made of it. Write [{{\"role\": \"user\", \"content\": ...}}, ...]")
    turns = []
    for i, message in enumerate(messages, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES:
            raise BadInput(f"{where}: turn {i} has role {role!r}, which the chat template does not know. Use one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise BadInput(f"{where}: turn {i} ({role}) is empty or not text, so it teaches nothing. Fill it or remove the row")
        turns.append({"role": role, "content": content})
    spoken = [turn["role"] for turn in turns[turns[0]["role"] == "system" :]]
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise BadInput(f"{where}: turns are {', '.join(t['role'] for t in turns)}; they must alternate user, assistant, after at most one system turn. Reorder or remove the row")
    return turns
