"""Turns: what a chat is made of, read from the forms in which datasets keep them into one: {"role", "content"}.

    chat(turns([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]))
    prompt(transcript("\\n\\nHuman: Hi\\n\\nAssistant: Hello\\n\\nHuman: Bye"))

What does not fit raises Unfit with a short reason, which is counted, and a detail, which is listed beside the row.
"""

from __future__ import annotations

import re
from typing import Any

Message = dict[str, str]
Changes = tuple[str, ...]  # what was left out of a row that is kept
ROLES = ("system", "user", "assistant")
SPEAKERS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot"),
}
_ROLE_OF = {speaker: role for role, speakers in SPEAKERS.items() for speaker in speakers}
_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Unfit(Exception):
    """A row, or a turn of it, that cannot be converted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def text(value: Any, what: str, detail: str | None = None) -> str:
    """A value that must be text with something in it. `what` (turn, answer, question) names it in the reason. Raises Unfit."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = _parts(value, what)
    if value is not None and not isinstance(value, str):
        raise Unfit(f"{what}_not_text", f"{detail or what} is of type {type(value).__name__}")
    if not value or not value.strip():
        raise Unfit(f"empty_{what}", f"{detail or what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unfit("half_a_surrogate_pair", f"{detail or what}, character {error.start}") from None
    return value


def _parts(parts: list[dict[str, Any]], what: str) -> str:
    """Content in parts, as OpenAI's interface has it; only text can be kept."""
    if other := [part.get("type") for part in parts if part.get("type") != "text" or not isinstance(part.get("text"), str)]:
        raise Unfit(f"{what}_with_parts_that_are_not_text", f"part of type {str(other[0])[:40]!r}")
    return "".join(part["text"] for part in parts)


def turn(value: Any, number: int = 1) -> Message:
    """One turn from {"role", "content"} or {"from", "value"}. Raises Unfit."""
    if not isinstance(value, dict):
        raise Unfit("turn_not_an_object", f"turn {number} is of type {type(value).__name__}")
    speaker = next((name for key in ("role", "from") if (name := value.get(key)) is not None), None)
    role = _ROLE_OF.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise Unfit("unknown_speaker", f"turn {number} is of {str(speaker)[:40]!r}")
    content = value.get("content") if value.get("content") is not None else value.get("value")
    return {"role": role, "content": text(content, "turn", f"turn {number} ({role})")}


def turns(value: Any) -> list[Message]:
    """All turns of a list. Raises Unfit."""
    if not isinstance(value, list) or not value:
        raise Unfit("no_turns", f"{type(value).__name__} without turns")
    return [turn(one, number) for number, one in enumerate(value, start=1)]


def is_transcript(value: Any) -> bool:
    """Whether a value is text in turns of `Human:` and `Assistant:`."""
    return isinstance(value, str) and "\n\nAssistant:" in value and value.lstrip().startswith("Human:")


def transcript(value: str) -> list[Message]:
    """The turns of a text with `\\n\\nHuman: ` and `\\n\\nAssistant: ` before them (Bai et al. 2022, arXiv:2204.05862). Raises Unfit."""
    _, *pieces = _MARK.split(value.strip())
    spoken = [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if len(spoken) > 1 and spoken[-1] == {"role": "assistant", "content": ""}:
        spoken.pop()  # a prompt that ends where the answer would begin
    return turns(spoken)


def question(value: Any) -> list[Message]:
    """The turns of a prompt: plain text of the user, a transcript, a turn, or a list of turns. Raises Unfit."""
    return transcript(value) if is_transcript(value) else _said(value, "user", "question")


def answer(value: Any) -> list[Message]:
    """The turns of an answer: plain text of the assistant, a turn, or a list of turns. Raises Unfit."""
    return _said(value, "assistant", "answer")


def _said(value: Any, role: str, what: str) -> list[Message]:
    if isinstance(value, dict):
        return [turn(value)]
    return turns(value) if isinstance(value, list) else [{"role": role, "content": text(value, what)}]


def instructed(values: dict[str, Any]) -> list[Message]:
    """What alpaca's columns ask: instruction, then input on a new line; `context` (Dolly) stands for input. Raises Unfit."""
    parts = [values.get("instruction"), values.get("input") if values.get("input") is not None else values.get("context")]
    if wrong := [part for part in parts if part is not None and not isinstance(part, str)]:
        raise Unfit("question_not_text", f"instruction or input is of type {type(wrong[0]).__name__}")
    return [{"role": "user", "content": text("\n".join(part for part in parts if part), "question", "instruction")}]


def introduced(values: dict[str, Any], spoken: list[Message]) -> list[Message]:
    """Turns with what the row's own columns `system` and `history` say before them. Raises Unfit."""
    system = values.get("system")
    opening = [{"role": "system", "content": text(system, "turn")}] if isinstance(system, str) and system.strip() and spoken[0]["role"] != "system" else []
    history = values.get("history") if isinstance(values.get("history"), list) else []
    return [*opening, *(message for pair in history for message in _exchange(pair)), *spoken]


def _exchange(pair: Any) -> list[Message]:
    """One [question, answer] of a history."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise Unfit("history_not_in_pairs", f"history holds {str(pair)[:60]!r}")
    return [{"role": role, "content": text(one, "turn", f"history ({role})")} for role, one in zip(("user", "assistant"), pair, strict=True)]


def chat(messages: list[Message]) -> tuple[list[Message], Changes]:
    """Turns to learn from: at most one system turn, then user and assistant in turn, the assistant last. Raises Unfit.

    Answers before the first question are left out, as FastChat does (fastchat/train/train.py), and questions after the last answer.
    """
    opening, spoken, changes = _opened(messages)
    asked = len(spoken)
    while spoken and spoken[-1]["role"] == "user":
        spoken = spoken[:-1]
    if not spoken:
        raise Unfit("no_answer_to_a_question", f"turns are {_who(messages)}")
    return _alternating(opening + spoken), (*changes, *(("questions_after_the_last_answer_left_out",) if len(spoken) < asked else ()))


def prompt(messages: list[Message]) -> tuple[list[Message], Changes]:
    """Turns to answer: as a chat, the user last. Raises Unfit."""
    opening, spoken, changes = _opened(messages)
    if not spoken or spoken[-1]["role"] != "user":
        raise Unfit("prompt_does_not_end_with_the_user", f"turns are {_who(messages) or 'none'}")
    return _alternating(opening + spoken), changes


def _opened(messages: list[Message]) -> tuple[list[Message], list[Message], Changes]:
    """The system turn, and all from the first question on."""
    whole = 1 if messages and messages[0]["role"] == "system" else 0
    first = whole
    while first < len(messages) and messages[first]["role"] == "assistant":
        first += 1
    return messages[:whole], messages[first:], ("answers_before_the_first_question_left_out",) if first > whole else ()


def _alternating(messages: list[Message]) -> list[Message]:
    roles = [message["role"] for message in messages[messages[0]["role"] == "system" :]]
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        raise Unfit("turns_do_not_alternate", f"turns are {_who(messages)}")
    return messages


def _who(messages: list[Message]) -> str:
    roles = [message["role"] for message in messages]
    return ", ".join(roles[:12]) + (", ..." if len(roles) > 12 else "")
