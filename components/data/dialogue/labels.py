"""Rows with one right answer: a label for a text, or the place of an answer in a context. As chats they teach to answer in words; with the recipe's
`sft.task` they train a head.

    {"messages": [...], "label": "sports"}
    {"messages": [...], "context": "...", "span": [start, end], "answers": ["...", ...]}     # span in characters of the context; null = it has no answer

The question stands before the context, for a causal model must know what it looks for.
"""

from __future__ import annotations

from typing import Any

from components.data.dialogue.turns import Changes, Unfit, chat, introduced, text

TEXTS = (("text",), ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis"))
NO_ANSWER = "The text does not say."


def has_label(values: dict[str, Any]) -> bool:
    """A text, or two, in columns known for it, and a label of few words or a number."""
    return _texts(values) is not None and _label(values) is not None


def labelled(values: dict[str, Any]) -> tuple[list[dict[str, Any]], Changes]:
    """A text and its label. Raises Unfit."""
    label = str(_label(values))
    if label == "-1":
        raise Unfit("label_unknown", "label is -1, which published test sets have in place of it")
    said = "\n".join(text(values[name], "question", name) for name in _texts(values) or ())
    messages, changes = chat(introduced(values, [{"role": "user", "content": said}, {"role": "assistant", "content": text(label, "answer", "label")}]))
    return [{"messages": messages, "label": label}], changes


def _texts(values: dict[str, Any]) -> tuple[str, ...] | None:
    return next((names for names in TEXTS if all(isinstance(values.get(name), str) for name in names)), None)


def _label(values: dict[str, Any]) -> str | int | bool | None:
    found = values.get("label_text") if isinstance(values.get("label_text"), str) else values.get("label")
    return found if isinstance(found, str | int) else None


def own(values: dict[str, Any]) -> dict[str, Any]:
    """What a chat of our own files says beside its messages: label, context with span and answers, and the tests that judge its code. Raises Unfit."""
    found = {name: values[name] for name in ("label", "context", "span", "answers", "tests") if values.get(name) is not None}
    if not isinstance(found.get("tests", ""), str) or not isinstance(found.get("context", ""), str):
        raise Unfit("tests_or_context_not_text", f"they are of types {type(found.get('tests')).__name__}, {type(found.get('context')).__name__}")
    if "label" in found:
        found["label"] = text(str(found["label"]), "label")
    if "context" not in found:
        return {name: value for name, value in found.items() if name in ("label", "tests")}
    return {**found, "span": _span(found.get("span"), found["context"])}


def _span(span: Any, context: str) -> list[int] | None:
    if span is not None and not (isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span) and 0 <= span[0] < span[1] <= len(context)):
        raise Unfit("span_outside_its_context", f"span is {str(span)[:60]} in {len(context)} characters")
    return span


def has_place(values: dict[str, Any]) -> bool:
    """SQuAD's columns."""
    answers = values.get("answers")
    return all(isinstance(values.get(name), str) for name in ("context", "question")) and isinstance(answers, dict) and {"text", "answer_start"} <= set(answers)


def placed(values: dict[str, Any]) -> tuple[list[dict[str, Any]], Changes]:
    """A question and where its context answers it; the first of several places. Raises Unfit."""
    context, question = text(values["context"], "context"), text(values["question"], "question")
    said, starts = values["answers"]["text"], values["answers"]["answer_start"]
    if not isinstance(said, list) or not isinstance(starts, list) or len(said) != len(starts):
        raise Unfit("answers_without_places", f"{str(said)[:60]} at {str(starts)[:60]}")
    for answer, start in zip(said, starts, strict=True):
        if type(start) is not int or start < 0 or context[start : start + len(text(answer, "answer"))] != answer:
            raise Unfit("answer_not_at_its_place", f"{answer[:60]!r} is not at character {start}")
    span = [starts[0], starts[0] + len(said[0])] if said else None
    asked = introduced(values, [{"role": "user", "content": f"{question}\n{context}"}, {"role": "assistant", "content": said[0] if said else NO_ANSWER}])
    messages, changes = chat(asked)
    return [{"messages": messages, "context": context, "span": span, "answers": list(dict.fromkeys(said)) or [""]}], changes
