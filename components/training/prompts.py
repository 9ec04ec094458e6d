"""What is answered in training: the prompts of a dataset, with what a verifier needs to judge an answer.

Preference pairs give prompts alone. Chats are asked up to their last assistant turn, which is the reference answer; where a
row carries `tests`, those judge code. Each prompt is asked once, whatever the number of rows it stands in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.schema.config import BadInput
from components.schema.posttraining import PromptsConfig
from components.training.align import Given
from components.training.batches import read_rows
from components.training.template import encode_prompts

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One prompt, and what is known about a right answer."""

    ids: list[int]
    """The chat up to where the assistant is to speak."""
    text: str
    """What the last message before it says."""
    answer: str | None
    """The reference: what the chat's own assistant says there. None for preference pairs, whose chosen side is only the better one of two."""
    tests: str | None
    """Python that asserts something of prompt + answer."""
    kind: str | None
    """The row's kind."""
    messages: tuple[Message, ...] = ()
    """The chat up to where the assistant is to speak, as messages."""


def read_questions(config: PromptsConfig, given: Given, words: PreTrainedTokenizerBase, split: str, longest: int, at_most: int | None = None) -> list[Question]:
    """The distinct prompts of a split ("train" or "heldout") of at most `longest` tokens in the file's order, the first `at_most` of them. Errors: BadInput."""
    path = getattr(given, config.source) / f"{split}.jsonl"
    rows = read_rows(path)
    try:
        asked = [_asked(row, config.source) for row in rows]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        field = "messages" if config.source == "chats" else "prompt"
        raise BadInput(f"prompts: {path} has a row without a proper `{field}` ({error!r}), so it cannot be asked. Make the dataset again") from None
    distinct: dict[str, tuple[list[Message], str | None, dict[str, Any]]] = {}
    for row, (messages, answer) in zip(rows, asked, strict=True):
        if messages and (not config.kinds or row.get("kind") in config.kinds):
            distinct.setdefault(json.dumps(messages, sort_keys=True), (messages, answer, row))
    if not distinct:
        there = sorted({str(row["kind"]) for row in rows if "kind" in row})
        raise BadInput(
            f"prompts: {path} has no prompt of kinds {list(config.kinds)} (its kinds: {there}): nothing could be asked. Correct prompts.kinds or leave it out"
        )
    prompts = encode_prompts(words, [messages for messages, _, _ in distinct.values()])
    questions = [
        Question(ids, messages[-1]["content"], answer, row.get("tests"), row.get("kind"), tuple(messages))
        for ids, (messages, answer, row) in zip(prompts, distinct.values(), strict=True)
        if len(ids) <= longest
    ]
    if not questions:
        raise BadInput(
            f"prompts: none of the {len(distinct)} prompts of {path} fits {longest} tokens, which max_new_tokens leaves of the context: "
            "nothing could be answered. Lower max_new_tokens"
        )
    return questions[:at_most]


def _asked(row: dict[str, Any], source: str) -> tuple[list[Message], str | None]:
    """The messages before the answer, and the reference; no messages where a chat has no assistant turn that follows something."""
    if source == "preferences":
        return row["prompt"], None
    messages = row["messages"]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    return messages[:last], messages[last]["content"]
