"""Preference pairs from the recipe's sources and the curriculum, in one form: {"prompt", "chosen", "rejected", "kind"}.

Columns may be `prompt` (text or turns), `chosen`, `rejected` (text or turns), or LLaMA-Factory's `conversations` with
{"from", "value"} turns. The split goes by the prompt: all pairs of one prompt lie on one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data import curriculum, sources, split
from components.data.chats import Message, checked, clean, empty, prompt_key
from components.schema.config import BadInput
from components.schema.data import DataConfig

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def run(config: DataConfig, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl, counts.json. Errors: BadInput naming file and row."""
    drops = split.Drops()
    kept = clean(_from_sources(config), config, drops)
    if config.curriculum:  # clean as it comes; what it repeats, it repeats on purpose
        kept += curriculum.preferences(config.curriculum)
    if not kept and not config.preferences and not config.curriculum:
        sides = empty(folder)
    else:
        sides = split.write_split(kept, lambda item: prompt_key(item["prompt"]), config.heldout_fraction, folder, "preferences")
    kinds = dict(sorted(Counter(item["kind"] for item in kept).items()))
    split.write_counts(folder, {"pairs": len(kept), **sides, "by_kind": kinds, "dropped": drops.reasons})


def _from_sources(config: DataConfig) -> Iterator[dict[str, Any]]:
    for source in config.preferences:
        for row in sources.rows(source):
            yield {**_pair(row), "kind": source.label}


def _pair(row: sources.Row) -> dict[str, Any]:
    values = row.values
    asked = values.get("prompt") if values.get("prompt") is not None else values.get("conversations")
    if asked is None or "chosen" not in values or "rejected" not in values:
        raise BadInput(
            f"preferences: {row.where} has columns {', '.join(values)}, from which no pair can be made. "
            "Use `prompt`/`chosen`/`rejected`, or `conversations`/`chosen`/`rejected`"
        )
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else [_turn(turn) for turn in asked]
    prompt = checked(turns, f"preferences: {row.where}")
    if prompt[-1]["role"] != "user":
        raise BadInput(f"preferences: {row.where}: the prompt ends with the {prompt[-1]['role']}, so there is nothing to answer. End it with a user turn")
    chosen, rejected = (_answer(values[side], side, row.where) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadInput(f"preferences: {row.where}: chosen and rejected are the same text, so the pair prefers nothing. Remove the row")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _turn(turn: Any) -> Message:
    """One turn in our form, from {"role", "content"} or {"from", "value"}."""
    if not isinstance(turn, dict):
        return {}
    speaker = turn.get("role") or turn.get("from")
    return {"role": _SPEAKERS.get(speaker, speaker), "content": turn.get("content") or turn.get("value")}


def _answer(value: Any, side: str, where: str) -> str:
    """The text of one side: plain, one turn, or the last of a list of turns."""
    if isinstance(value, list):
        value = value[-1] if value else None
    text = _turn(value).get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"preferences: {where}: {side} is empty or not text, so it cannot be compared. Fill it or remove the row")
    return text
