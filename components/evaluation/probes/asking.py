"""Asking a model the items of a suite, or prompts of our own, through lm-eval's own model interface and tasks.

    asked = [ask(room, task, doc, number, shots=2) for ...]     # nothing is computed yet
    rows = answered(room, asked)                                # everything in one call to the model, so that it can sort by length

Prompts, choices, filters and metrics are the tasks' own. A probe asks copies of them: the tasks stay as they were, and so do the numbers of the suites.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

from components.evaluation.probes.rows import Row
from components.schema.config import BadInput
from components.schema.records import digest

RateToxicity = Callable[[list[str]], Sequence[float]]  # a score in [0, 1] for each text


class Room(NamedTuple):
    """Everything that a probe may need."""

    lm: Any
    """lm-eval's LM."""
    chat: bool
    """Whether the model reads its chat template, as for the suites."""
    suites: Mapping[str, Mapping[str, Any]]
    """Loaded suites by name: {"tasks": {name: task}}."""
    seed: int
    out: Path
    """The stage's folder; the suites' items are under items/<role>."""
    role: str
    emit: Callable[[dict[str, Any]], None]
    rate_toxicity: RateToxicity | None

    def note(self, text: str) -> None:
        self.emit({"event": "note", "text": text})


@dataclass
class Asked:
    """One item on its way: what the task sends to the model, and what a probe wants to remember of it."""

    suite: str
    task: Any
    id: int
    doc: dict[str, Any]
    requests: list[Instance]
    more: Row = field(default_factory=dict)
    """Columns of the probe's own."""


# ---------------------------------------------------------------- items of suites


class Drawn(NamedTuple):
    """One item of a suite."""

    name: str
    """Of its task in the suite."""
    task: Any
    id: int
    doc: dict[str, Any]


def draw(loaded: Mapping[str, Any], items: int) -> list[Drawn]:
    """`items` items of a suite, spread evenly over its tasks and their documents; all of them where there are fewer."""
    docs = {name: task.eval_docs for name, task in loaded["tasks"].items()}
    places = [(name, i) for name, there in docs.items() for i in range(len(there))]
    count = min(items, len(places))
    return [Drawn(name, loaded["tasks"][name], i, docs[name][i]) for name, i in (places[n * len(places) // count] for n in range(count))]


def fresh(loaded: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Copies of a suite's tasks, by name, that draw their worked examples anew from the seed. Whatever is done with them, the originals stay as they were."""
    return {name: _fresh(task, seed) for name, task in loaded["tasks"].items()}


def _fresh(task: Any, seed: int) -> Any:
    mine = copy.copy(task)
    if hasattr(mine, "sampler"):
        mine.sampler = copy.copy(mine.sampler)
    mine.set_fewshot_seed(seed)
    return mine


def examples_of(task: Any) -> int:
    """How many worked examples a task has at most for one item."""
    settings = task.fewshot_cfg
    if not (settings.split or getattr(settings, "samples", None)):
        return 0
    itself = bool(settings.split) and settings.split == task.config.test_split  # the item itself is never its own example
    return max(0, len(task.sampler.fewshot_docs()) - itself)


def shots_of(task: Any) -> int:
    """How many worked examples the suite is measured with."""
    return task.config.num_fewshot or 0


def is_multiple_choice(loaded: Mapping[str, Any]) -> bool:
    """Whether every task compares choices behind one prompt."""
    return all(task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input for task in loaded["tasks"].values())


def ask(room: Room, suite: str, drawn: Drawn, shots: int, doc: dict[str, Any] | None = None, **more: Any) -> Asked:
    """An item with `shots` worked examples; `doc`: the document to show in place of its own."""
    task, shown = drawn.task, drawn.doc if doc is None else doc
    template = room.lm.apply_chat_template if room.chat else None
    context = task.fewshot_context(
        shown, shots, apply_chat_template=room.chat, fewshot_as_multiturn=room.chat, chat_template=template, gen_prefix=task.doc_to_prefix(shown)
    )
    requests = task.construct_requests(
        doc=shown, ctx=context, metadata=(task.config["task"], drawn.id, 1), apply_chat_template=room.chat, chat_template=template
    )
    return Asked(suite, task, drawn.id, drawn.doc, requests if isinstance(requests, list) else [requests], {"shots": shots, **more})


def answered(room: Room, asked: Sequence[Asked]) -> list[Row]:
    """Let the model answer, and score as the tasks do: one row an item, in order, its score by the task's first metric.

    What is asked twice is computed once.
    """
    by_kind: dict[str, dict[str, list[Instance]]] = {}
    for request in (request for one in asked for request in one.requests):
        by_kind.setdefault(request.request_type, {}).setdefault(repr(request.args), []).append(request)
    for kind, same in by_kind.items():
        for requests, response in zip(same.values(), getattr(room.lm, kind)([requests[0] for requests in same.values()], disable_tqdm=True), strict=True):
            for request in requests:
                request.resps = [response]
    return [_row(room.lm, one) for one in asked]


def _row(lm: Any, one: Asked) -> Row:
    task, shown = one.task, one.requests[0].doc
    chosen = task._filters[0]
    chosen.apply(one.requests)
    results = [request.filtered_resps[chosen.name] for request in one.requests]
    row = {
        "suite": one.suite, "task": task.task_name, "id": one.id, "item": digest(_plain(one.doc)), "question": str(task.doc_to_text(shown)),
        "prompt": one.requests[0].args[0], "score": _first_metric(task, one.suite, task.process_results(shown, results)),
        "truncated": any(is_truncated(lm, request) for request in one.requests),
    }  # fmt: skip
    if task.OUTPUT_TYPE == "multiple_choice":
        choices, logprobs = list(task.doc_to_choice(shown)), [float(result[0]) for result in results]
        gold = golds(task, shown)
        answers = {
            "choices": choices,
            "logprobs": logprobs[: len(choices)],
            "output": choices[best(logprobs[: len(choices)])],
            "target": choices[gold[0]] if gold else "",
        }
    else:
        answers = {"choices": [], "logprobs": [], "output": str(one.requests[0].resps[0]), "target": str(task.doc_to_target(shown))}
    return {**row, **answers, **one.more}


def golds(task: Any, doc: Mapping[str, Any]) -> list[int]:
    """The places of the right choices."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = list(task.doc_to_choice(doc))
    places = [choices.index(one) if isinstance(one, str) and one in choices else one for one in (gold if isinstance(gold, list) else [gold])]
    return [place for place in places if isinstance(place, int) and 0 <= place < len(choices)]


def best(logprobs: Sequence[float]) -> int:
    """The place of the likeliest, the first one where several are."""
    return max(range(len(logprobs)), key=lambda i: logprobs[i])


def _first_metric(task: Any, suite: str, results: Mapping[str, Any]) -> float:
    name = next((entry["metric"] for entry in task.config.metric_list or [] if entry.get("metric") in results), next(iter(results)))
    try:
        return float(results[name])
    except (TypeError, ValueError):
        raise BadInput(
            f"probes: suite {suite} is scored by {name}, which has no value for a single item, so its curve cannot be drawn. "
            "Name other suites in evals.probes.shots.suites"
        ) from None


def is_truncated(lm: Any, request: Instance) -> bool:
    """Whether a prompt's beginning is cut to fit the model's context; false for a model that does not say."""
    encode, longest = getattr(lm, "tok_encode", None), getattr(lm, "max_length", None)
    if encode is None or not isinstance(longest, int):
        return False
    prompt, rest = request.args[:2]
    if request.request_type == "generate_until":
        return len(encode(prompt)) > longest - rest.get("max_gen_toks", lm.max_gen_toks)
    return len(encode(prompt + rest)) > longest + 1


def _plain(value: Any) -> Any:
    """A document as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else getattr(value, "__name__", None) or str(value)


# ---------------------------------------------------------------- prompts of our own

PLAIN_QUESTION, PLAIN_STOP = "Question: {}\nAnswer:", "\nQuestion:"


def question_prompt(room: Room, question: str) -> str:
    """A question as the model reads it: a user's turn, or plain text for a base model."""
    return room.lm.apply_chat_template([{"role": "user", "content": question}]) if room.chat else PLAIN_QUESTION.format(question)


def written(room: Room, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
    """What the model goes on with behind each prompt, greedily."""
    options = {"until": list(stop), "max_gen_toks": max_new_tokens, "do_sample": False}
    return [
        text.strip()
        for text in room.lm.generate_until([_request("generate_until", prompt, dict(options), i) for i, prompt in enumerate(prompts)], disable_tqdm=True)
    ]


def likelihoods(room: Room, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Log-probability in nats of each continuation behind its prompt."""
    return [float(answer[0]) for answer in room.lm.loglikelihood([_request("loglikelihood", *pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True)]


def _request(kind: Any, prompt: str, rest: Any, number: int) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=(prompt, rest), idx=0, metadata=("probe", number, 1))
