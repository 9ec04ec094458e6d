"""What a critic is asked, in words: one user turn each, so that any chat model can answer.

The conversation is shown as text and not as turns: what stands in it is to be judged, never followed.
"""

from __future__ import annotations

import re

from components.feedback.constitution import Principle

Message = dict[str, str]
LABELS = ("A", "B")
_SPEAKER = {"system": "System", "user": "User", "assistant": "Assistant"}
_FIRST = re.compile(r"^\W*(?i:(?:the )?(?:better )?(?:answer|option|choice)(?: is)?)?\W*([AB])(?!\w)(?! [a-z])")
_ANYWHERE = re.compile(r"(?<!\w)([AB])(?!\w)")


def critique(prompt: list[Message], answer: str, principle: Principle) -> list[Message]:
    """Asks what is wrong with an answer."""
    return _asked(f"{_shown(prompt)}\n\nAssistant: {answer}", principle.asks("critique"))


def revision(prompt: list[Message], answer: str, critique: str, principle: Principle) -> list[Message]:
    """Asks for a better answer."""
    return _asked(f"{_shown(prompt)}\n\nAssistant: {answer}\n\nCritique: {critique}", f"{principle.asks('revision')} Write the new answer and nothing else.")


def preference(prompt: list[Message], first: str, second: str, principle: Principle) -> list[Message]:
    """Asks which of two answers is better, as one of LABELS."""
    answers = f"Answer {LABELS[0]}: {first}\n\nAnswer {LABELS[1]}: {second}"
    return _asked(f"{_shown(prompt)}\n\n{answers}", f"{principle.asks('preference')} Reply with one letter, {LABELS[0]} or {LABELS[1]}.")


def label_in(reply: str) -> str | None:
    """The label that a reply begins with, or ends with as the only one; None where it is not clear. An article is no label: `A better one`."""
    reply = reply.strip()
    if first := _FIRST.match(reply):
        return first[1]
    found = _ANYWHERE.findall(reply)
    return found[0] if len(set(found)) == 1 and reply.rstrip(" .!*)\"'").endswith(found[0]) else None


def _asked(shown: str, request: str) -> list[Message]:
    return [{"role": "user", "content": f"{shown}\n\n{request}"}]


def _shown(prompt: list[Message]) -> str:
    return "\n\n".join(f"{_SPEAKER[message['role']]}: {message['content']}" for message in prompt)
