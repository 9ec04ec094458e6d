"""Chats for SFT from the recipe's sources and the curriculum, in one form: {"messages": [{"role", "content"}], "kind"}.

Rows are recognised by shape (`shapes.CHATS` is the table); those with one right answer also say it (`labels`). The split goes by the prompt, so a
held-out question is never among the training ones, not even with another answer; questions about one context stay together. Files: see `conversations`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.data import curriculum
from components.data.dialogue import conversations
from components.data.dialogue.shapes import CHATS
from components.data.dialogue.turns import Message
from components.schema.data import DataConfig


def run(config: DataConfig, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl, dropped.jsonl, counts.json. Errors: BadInput for a source of which most rows do not convert."""
    made = curriculum.chats(config.curriculum) if config.curriculum else ()
    conversations.run("chats", "chats", config.chats, CHATS, made, _asked, config, folder)


def _asked(item: dict[str, Any]) -> list[Message]:
    """What decides an item's side of the split: its prompt, or the context that it asks about."""
    return [{"role": "user", "content": item["context"]}] if "context" in item else item["messages"][:-1]
