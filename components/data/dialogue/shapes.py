"""Shapes: the forms in which chats and preferences are published, recognised by a row's columns and the types of their values.

CHATS and PREFERENCES are the whole table. A row takes the first shape that fits; a source may mix them.

    shape, items, changes = convert(row.values, CHATS)       # raises Unfit with its reason

Left out: **KTO** rows as preferences (prompt, completion, label: Ethayarajh et al. 2024, arXiv:2402.01306): a pair is two answers to one
prompt, and such rows have one. As chats, those that are labelled good are taken. And two texts without a prompt or marks of who
speaks (TRL's implicit prompt in plain text), since where the prompt ends would be a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.data.dialogue import labels, pairs
from components.data.dialogue.turns import (
    Changes,
    Message,
    Unfit,
    answer,
    chat,
    instructed,
    introduced,
    is_transcript,
    question,
    transcript,
    turns,
)

Values = dict[str, Any]
Items = list[dict[str, Any]]
SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class Shape:
    """One form of rows."""

    name: str
    columns: str
    """What it is recognised by, for a person."""
    source: str
    """Who writes rows like this."""
    fits: Callable[[Values], bool]
    convert: Callable[[Values], tuple[Items, Changes]]
    """Items and what was left out of them. Raises Unfit."""


def convert(values: Values, known: Sequence[Shape]) -> tuple[str, Items, Changes]:
    """A row's shape, what it gives, and what was left out of it. Raises Unfit."""
    for shape in known:
        if shape.fits(values):
            return shape.name, *shape.convert(values)
    columns = ", ".join(f"{name}: {type(value).__name__}" for name, value in list(values.items())[:SHOWN_COLUMNS])
    raise Unfit("no_known_shape", f"columns are {columns or 'none'}")


def listed(known: Sequence[Shape]) -> str:
    """The table in one line, for messages."""
    return "; ".join(f"{shape.name} ({shape.columns})" for shape in known)


# ---------------------------------------------------------------- chats


def _chat(messages: list[Message]) -> tuple[Items, Changes]:
    kept, changes = chat(messages)
    return [{"messages": kept}], changes


def _own(values: Values) -> tuple[Items, Changes]:
    """Messages, and what our own files say beside them."""
    (item,), changes = _chat(turns(values["messages"]))
    return [{**item, **labels.own(values)}], changes


def _answered(values: Values, asked: list[Message], column: str) -> tuple[Items, Changes]:
    """What is asked, with the answer in a column."""
    return _chat([*introduced(values, asked), *answer(values[column])])


def _answer_of(values: Values) -> str:
    """The column that holds the answer to a prompt."""
    return "completion" if "completion" in values else "response"


def _labelled(values: Values) -> tuple[Items, Changes]:
    if not values["label"]:
        raise Unfit("labelled_as_a_bad_answer", str(values["completion"])[:80])
    return _answered(values, question(values["prompt"]), "completion")


def _conversation(values: Values) -> list[Message]:
    name = "conversations" if isinstance(values.get("conversations"), list) else "conversation"
    return introduced({"system": values.get("system")}, turns(values[name]))


def _is(kind: type, *names: str) -> Callable[[Values], bool]:
    """All these columns are there; what is in them is of this kind or empty."""
    return lambda values: all(name in values and (values[name] is None or isinstance(values[name], kind)) for name in names)


def _text_or_turns(*names: str) -> Callable[[Values], bool]:
    return lambda values: all(isinstance(values.get(name), str | list) for name in names)


CHATS = (
    Shape(
        "openai_messages", "messages: list of {role, content}", "OpenAI's chat interface; TRL, most chat sets on the hub",
        lambda v: isinstance(v.get("messages"), list), _own,
    ),
    Shape(
        "sharegpt", "conversations: list of {from, value}, system where there is one", "ShareGPT as FastChat reads it (Zheng et al. 2023, arXiv:2306.05685); LLaMA-Factory",
        lambda v: isinstance(v.get("conversations"), list) or isinstance(v.get("conversation"), list), lambda v: _chat(_conversation(v)),
    ),
    Shape(
        "alpaca", "instruction, output; input, system, history where there are", "Stanford Alpaca (Taori et al. 2023); system and history: LLaMA-Factory",
        _is(str, "instruction", "output"), lambda v: _answered(v, instructed(v), "output"),
    ),
    Shape(
        "dolly", "instruction, response; context where there is one", "databricks-dolly-15k (Conover et al. 2023)",
        _is(str, "instruction", "response"), lambda v: _answered(v, instructed(v), "response"),
    ),
    Shape(
        "kto", "prompt, completion, label: true or false", "TRL's unpaired preferences (Ethayarajh et al. 2024, arXiv:2402.01306); only answers labelled true are taken",
        lambda v: _text_or_turns("prompt", "completion")(v) and isinstance(v.get("label"), bool), _labelled,
    ),
    Shape(
        "prompt_completion", "prompt, completion or response, each text or turns", "TRL's prompt-completion; OpenAI's first fine-tuning format",
        lambda v: _text_or_turns("prompt")(v) and _answer_of(v) in v, lambda v: _answered(v, question(v["prompt"]), _answer_of(v)),
    ),
    Shape(
        "question_answer", "question, answer", "GSM8K (Cobbe et al. 2021, arXiv:2110.14168)",
        _is(str, "question", "answer"), lambda v: _answered(v, question(v["question"]), "answer"),
    ),
    Shape(
        "transcript", "text or chosen: turns after `Human:` and `Assistant:`", "hh-rlhf (Bai et al. 2022, arXiv:2204.05862); of pairs the chosen side",
        lambda v: is_transcript(v.get("text")) or is_transcript(v.get("chosen")), lambda v: _chat(transcript(v["text"] if is_transcript(v.get("text")) else v["chosen"])),
    ),
    Shape(
        "labelled", "text or sentence (or sentence1 and sentence2, premise and hypothesis), label", "text classification on the hub; GLUE (Wang et al. 2019, arXiv:1804.07461)",
        labels.has_label, labels.labelled,
    ),
    Shape(
        "squad", "context, question, answers: {text, answer_start}", "SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822)",
        labels.has_place, labels.placed,
    ),
)  # fmt: skip


# ---------------------------------------------------------------- preferences


def _has_sides(values: Values) -> bool:
    return "chosen" in values and "rejected" in values


def _has_prompt(values: Values) -> bool:
    return any(values.get(name) is not None for name in (*pairs.PROMPTS[:2], "instruction"))


def _has_turns(values: Values) -> bool:
    return any(isinstance(values.get(name), list) for name in pairs.PROMPTS[2:])


def _has_answers(values: Values) -> bool:
    return any(isinstance(values.get(name), list) for name in pairs.ANSWERS)


PREFERENCES = (
    Shape(
        "hh_rlhf", "chosen, rejected: whole transcripts after `Human:` and `Assistant:`", "hh-rlhf (Bai et al. 2022, arXiv:2204.05862)",
        lambda v: _has_sides(v) and is_transcript(v["chosen"]) and is_transcript(v["rejected"]), pairs.two_sides,
    ),
    Shape(
        "dpo", "prompt (or question, or instruction and input), chosen, rejected, each text or turns; system and history where there are",
        "DPO (Rafailov et al. 2023, arXiv:2305.18290); TRL's explicit prompt, LLaMA-Factory's alpaca form, orca_dpo_pairs",
        lambda v: _has_sides(v) and _has_prompt(v), pairs.two_sides,
    ),
    Shape(
        "implicit_prompt", "chosen, rejected: whole conversations in turns", "TRL's implicit prompt; ultrafeedback_binarized",
        lambda v: _has_sides(v) and all(isinstance(v[side], list) and len(v[side]) > 1 for side in ("chosen", "rejected")), pairs.two_sides,
    ),
    Shape(
        "sharegpt_pair", "conversations: list of {from, value}, with chosen and rejected: a turn each", "LLaMA-Factory's sharegpt form",
        lambda v: _has_sides(v) and _has_turns(v), pairs.two_sides,
    ),
    Shape(
        "ranked", "prompt (or question, or instruction), answers (or responses, completions): list, with ranking, ranks, scores, or a rank or score in each",
        "UltraFeedback (Cui et al. 2023, arXiv:2310.01377); Nectar (Zhu et al. 2023)",
        lambda v: _has_answers(v) and (_has_prompt(v) or _has_turns(v)), pairs.ranked,
    ),
    Shape(
        "safe_rlhf", "prompt, response_0, response_1, better_response_id, safer_response_id, is_response_0_safe, is_response_1_safe",
        "PKU-SafeRLHF (Ji et al. 2024, arXiv:2406.15513): help and harm judged apart",
        lambda v: all(name in v for name in ("response_0", "response_1", "better_response_id", "safer_response_id")) and _has_prompt(v), pairs.safe_rlhf,
    ),
)  # fmt: skip
