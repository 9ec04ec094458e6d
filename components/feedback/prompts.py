"""Prompts to answer: from a file of pairs, of chats, or of bare questions, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.feedback.wording import Message
from components.schema.config import BadInput

ROLES = ("system", "user", "assistant")


def read(path: Path, at_most: int | None = None) -> list[list[Message]]:
    """The first `at_most` different prompts of a file of JSON lines. Errors: BadInput."""
    found: dict[str, list[Message]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if len(found) == at_most:
                    break
                if line.strip():
                    prompt = prompt_of(json.loads(line), f"{path}, line {number}")
                    found.setdefault(json.dumps(prompt), prompt)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"prompts: {path} cannot be read ({str(error).splitlines()[0]}), so nothing is asked. Name JSON lines with `prompt` or `messages`"
        ) from None
    if not found:
        raise BadInput(f"prompts: {path} is empty, so there is nothing to answer. Name a file of JSON lines with `prompt` or `messages`")
    return list(found.values())


def prompt_of(row: Any, where: str) -> list[Message]:
    """Turns up to where the assistant is to speak."""
    given = row.get("prompt", row.get("messages")) if isinstance(row, dict) else None
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str) for turn in turns)
    ):
        raise BadInput(
            f"prompts: {where} has no question: it needs `prompt` (text or turns of role and content) or `messages`. Correct the line, or name another file"
        )
    if turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise BadInput(f"prompts: {where} does not end with a question of the user, so there is nothing to answer. Correct the line, or name another file")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
