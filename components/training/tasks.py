"""Task heads: fine-tuning for a task with one right answer, in place of chatting.

- classification: a linear layer on the text's last token names one of the labels. Rows of chats with a `label`.
- question_answering: two scores at each token, where the answer begins and where it ends in a given context (Rajpurkar et al. 2016,
  arXiv:1606.05250). Rows with a `context` and `span`, the answer's [start, end] in characters of it, or none where the context has no answer; then both
  scores must be highest at the text's last token, which has read everything (Rajpurkar et al. 2018, arXiv:1806.03822, take the first, which in a
  causal model has read nothing).

A text is what a chat model would be given, up to where the assistant is to speak, so a chat model is a good beginning. Question comes before
context: a causal model must know what it looks for. Each text is a row; what is saved is transformers' own
AutoModelForSequenceClassification or AutoModelForQuestionAnswering.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.adapters import choose
from components.models.build import load_tokenizer, save
from components.models.heads import task_model_from
from components.schema.config import BadInput
from components.schema.posttraining import SFTConfig, TaskConfig
from components.schema.records import Outcome, Sample
from components.training import fast
from components.training.batches import Passes, lay_out, read_rows, weights_by_kind
from components.training.neftune import noisy, row_seeds
from components.training.optim import OptimizedModule
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, SAMPLE_CHARACTERS = 3, 400
LONGEST_ANSWER_TOKENS = 30
Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A text and what is right about it."""

    ids: list[int]
    kind: str
    right: tuple[int, int]
    """(label, label), or the first and last token of the answer."""
    window: tuple[int, int] = (0, 0)
    """First and last token of the context."""
    context: str = ""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    """For each token its characters in the context, as [start, end)."""
    answers: tuple[str, ...] = ()
    """All answers that are right; one empty one where there is none."""


# ---------------------------------------------------------------- the two tasks


class Classification:
    """One label for a text."""

    def __init__(self, config: TaskConfig, words: PreTrainedTokenizerBase, rows: Sequence[Row], path: Path) -> None:
        self.words = words
        found = {str(row["label"]) for row in rows if row.get("label") is not None}
        self.labels = config.labels or tuple(sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
        if len(self.labels) < 2:
            raise BadInput(f"sft.task: {path} has {len(self.labels)} labels{' (' + self.labels[0] + ')' if self.labels else ''}: there is nothing to tell apart. Give rows with a `label`, of at least two kinds")

    def wants(self, row: Row) -> bool:
        return row.get("label") is not None

    def examples(self, rows: Sequence[Row], where: str) -> list[Example]:
        """Errors: BadInput for a label that is not among them."""
        encoded = _encode(self.words, [_text(self.words, row) for row in rows])["input_ids"]
        return [Example(ids, row.get("kind", ""), (self._number(row, where),) * 2) for ids, row in zip(encoded, rows, strict=True)]

    def _number(self, row: Row, where: str) -> int:
        label = str(row["label"])
        if label in self.labels:
            return self.labels.index(label)
        if label.isdigit() and int(label) < len(self.labels):  # datasets often store the number of a class
            return int(label)
        raise BadInput(f"sft.task: {where} has a row with label {label!r}, which is not among {', '.join(self.labels)}: it could be neither learnt nor judged. Name all labels in sft.task.labels")

    def losses(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Nats of each text: (B,)."""
        return cross_entropy(self._logits(model, batch), batch["right"][:, 0], reduction="none")

    def _logits(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        return model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits.float()  # (B, labels)

    def predictions(self, model: PreTrainedModel, batch: dict[str, Tensor], examples: Sequence[Example]) -> list[str]:
        return [self.labels[i] for i in self._logits(model, batch).argmax(-1).tolist()]

    def wanted(self, example: Example) -> str:
        return self.labels[example.right[0]]

    def metrics(self, predicted: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
        return classification_metrics(predicted, [self.wanted(example) for example in examples], self.labels)

    def about(self, train: Sequence[Example], heldout: Sequence[Example]) -> dict[str, Any]:
        """Figures of the data: rows of each label, and the share that always saying the commonest would get right."""
        counts = Counter(self.wanted(example) for example in train)
        commonest = max(self.labels, key=lambda label: counts[label])
        return {"labels": {label: counts[label] for label in self.labels}, "accuracy_of_commonest": sum(self.wanted(e) == commonest for e in heldout) / len(heldout)}


class QuestionAnswering:
    """The span of a context that answers a question."""

    labels = ("start", "end")

    def __init__(self, words: PreTrainedTokenizerBase) -> None:
        self.words = words

    def wants(self, row: Row) -> bool:
        return bool(row.get("context"))

    def examples(self, rows: Sequence[Row], where: str) -> list[Example]:
        """Errors: BadInput for a span outside its context, and a context that is not in the text."""
        texts = [_text(self.words, row) for row in rows]
        encoded = _encode(self.words, texts, return_offsets_mapping=True)
        return [self._example(*one, where) for one in zip(rows, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)]

    def _example(self, row: Row, text: str, ids: list[int], offsets: list[tuple[int, int]], where: str) -> Example:
        context, span = row["context"], row.get("span")
        at = text.rfind(context)
        if at < 0:
            raise BadInput(f"sft.task: {where} has a row whose messages do not hold its `context` ({context[:60]!r}): the answer has no place in them. Put the context into the user's turn")
        if span and not 0 <= span[0] < span[1] <= len(context):
            raise BadInput(f"sft.task: {where} has a row with span {span} in a context of {len(context)} characters ({context[:60]!r}): there is no such answer. Give [start, end] in characters")
        inside = [i for i, (start, end) in enumerate(offsets) if end > at and start < at + len(context) and end > start]
        moved = [(max(0, start - at), min(len(context), end - at)) for start, end in offsets]
        nowhere = len(ids) - 1
        right = (nowhere, nowhere) if not span else tuple(([i for i in inside if moved[i][1] > span[0] and moved[i][0] < span[1]])[end] for end in (0, -1))
        answers = tuple(row.get("answers") or ((context[span[0] : span[1]],) if span else ("",)))
        return Example(ids, row.get("kind", ""), right, (inside[0], inside[-1]), context, moved, answers)

    def losses(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Nats of each text, the mean of begin and end: (B,)."""
        start, end = self._scores(model, batch)
        return (cross_entropy(start, batch["right"][:, 0], reduction="none") + cross_entropy(end, batch["right"][:, 1], reduction="none")) / 2

    def _scores(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of beginning and ending at each token, (B, T) both; only the context's tokens and the last one are asked."""
        out = model(input_ids=batch["ids"], attention_mask=batch["mask"])
        place = torch.arange(batch["ids"].shape[1], device=batch["ids"].device)
        first, last = batch["window"].unbind(1)
        may = (place >= first[:, None]) & (place <= last[:, None]) | (place == batch["mask"].sum(1, keepdim=True) - 1)
        return tuple(scores.float().masked_fill(~may, -1e9) for scores in (out.start_logits, out.end_logits))  # type: ignore[return-value]

    def predictions(self, model: PreTrainedModel, batch: dict[str, Tensor], examples: Sequence[Example]) -> list[str]:
        start, end = (scores.cpu() for scores in self._scores(model, batch))
        return [self._answer(example, best_span(start[i], end[i], example.window, len(example.ids) - 1)) for i, example in enumerate(examples)]

    def _answer(self, example: Example, span: tuple[int, int] | None) -> str:
        return example.context[example.offsets[span[0]][0] : example.offsets[span[1]][1]].strip() if span else ""

    def wanted(self, example: Example) -> str:
        return example.answers[0]

    def metrics(self, predicted: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
        return squad_metrics(predicted, [example.answers for example in examples])

    def about(self, train: Sequence[Example], heldout: Sequence[Example]) -> dict[str, Any]:
        """Figures of the data: the share of questions that the context does not answer."""
        return {"unanswerable": sum(e.right[0] == len(e.ids) - 1 for e in heldout) / len(heldout)}


Task = Classification | QuestionAnswering


def best_span(start: Tensor, end: Tensor, window: tuple[int, int], nowhere: int) -> tuple[int, int] | None:
    """The begin and end, (T,) scores both, with the highest sum inside the window, at most LONGEST_ANSWER_TOKENS long; None where the sum at `nowhere` is higher."""
    first, last = window
    start, end, none = start[first : last + 1], end[first : last + 1], float(start[nowhere] + end[nowhere])
    best, found = -math.inf, (first, first)
    for length in range(min(LONGEST_ANSWER_TOKENS, len(start))):
        value, at = (start[: len(start) - length] + end[length:]).max(0)
        if float(value) > best:
            best, found = float(value), (first + int(at), first + int(at) + length)
    return None if none > best else found


# ---------------------------------------------------------------- what is right


def classification_metrics(predicted: Sequence[str], right: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its standard error, F1 of each label (0 where it neither occurs nor is predicted), and their mean."""
    n = len(right)
    accuracy = sum(p == r for p, r in zip(predicted, right, strict=True)) / n
    hits, said, there = Counter(p for p, r in zip(predicted, right, strict=True) if p == r), Counter(predicted), Counter(right)
    f1 = {label: 2 * hits[label] / max(1, said[label] + there[label]) for label in labels}
    return {"accuracy": accuracy, "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / n), "macro_f1": sum(f1.values()) / len(f1), "f1_by_label": f1}


def squad_metrics(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 over words as SQuAD's own script computes them (evaluate-v2.0.py), in shares of 1, with standard errors."""
    exact = torch.tensor([max(float(_plain(p) == _plain(answer)) for answer in answers) for p, answers in zip(predicted, right, strict=True)], dtype=torch.float64)
    f1 = torch.tensor([max(word_f1(p, answer) for answer in answers) for p, answers in zip(predicted, right, strict=True)], dtype=torch.float64)
    told: dict[str, float] = {}
    for name, values in (("exact_match", exact), ("f1", f1)):
        told |= {name: values.mean().item(), f"{name}_stderr": (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0}
    return told


def word_f1(predicted: str, right: str) -> float:
    """Harmonic mean of precision and recall over words; 1 where both are empty."""
    p, r = _plain(predicted).split(), _plain(right).split()
    if not p or not r:
        return float(p == r)
    return 2 * (Counter(p) & Counter(r)).total() / (len(p) + len(r))


def _plain(text: str) -> str:
    """Lower case, without punctuation, articles and further spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


# ---------------------------------------------------------------- from rows to tensors


def _text(words: PreTrainedTokenizerBase, row: Row) -> str:
    """What is asked, up to where the assistant is to speak."""
    messages = row["messages"]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not words.chat_template:
        return "\n".join(message["content"] for message in asked)
    return words.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)


def _encode(words: PreTrainedTokenizerBase, texts: list[str], **options: Any) -> Any:
    return words(texts, add_special_tokens=not words.chat_template, **options)  # a template writes its own


def make(config: TaskConfig, words: PreTrainedTokenizerBase, rows: Sequence[Row], path: Path) -> Task:
    """The task, as the training rows have it. Errors: BadInput."""
    return Classification(config, words, rows, path) if config.kind == "classification" else QuestionAnswering(words)


def read(task: Task, path: Path, context_tokens: int, at_most: int | None = None) -> tuple[list[Example], dict[str, int]]:
    """The first `at_most` examples that fit the context, and how many rows were left out and why. Errors: BadInput where none is left."""
    rows = read_rows(path)
    wanted = [row for row in rows if task.wants(row)]
    examples = task.examples(wanted[:at_most], str(path)) if wanted else []
    kept = [example for example in examples if len(example.ids) <= context_tokens]
    if not kept:
        needs = "`label`" if isinstance(task, Classification) else "`context` and `span`"
        raise BadInput(
            f"sft.task: {path} has {len(rows)} chats, {len(wanted)} with {needs}, and none of these fits {context_tokens} tokens: nothing would be learnt. "
            "Give rows like {text, label} or SQuAD's under data.chats, or raise model.context_tokens"
        )
    return kept, {"rows_of_other_tasks": len(rows) - len(wanted), "dropped_longer_than_context": len(examples) - len(kept)}


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """ids, position_ids and mask (B, T), padded on the right; right and window (B, 2)."""
    laid_out = lay_out([[i] for i in range(len(examples))], [(e.ids, [False] * len(e.ids)) for e in examples], pad_id)
    mask = torch.arange(laid_out.ids.shape[1]) < torch.tensor([[len(e.ids)] for e in examples])
    return {
        "ids": laid_out.ids,
        "position_ids": laid_out.position_ids,
        "mask": mask.long(),
        "right": torch.tensor([e.right for e in examples]),
        "window": torch.tensor([e.window for e in examples]),
    }


# ---------------------------------------------------------------- the stage


class TaskTuning(OptimizedModule):
    """Cross-entropy of the right label, or of where the answer begins and ends."""

    def __init__(self, model: PreTrainedModel, config: SFTConfig, task: Task) -> None:
        super().__init__(config)
        self.model, self.task = model, task

    def training_step(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        with noisy(self.model, self.config.neftune_alpha, batch["position_ids"], batch.get("noise")):
            losses = self.task.losses(self.model, batch)
        return {"loss": losses.mean(), "tokens": batch["ids"].numel(), "weight": len(losses)}


def run(config: SFTConfig, base: Path, chats: Path, out: Path, context: Context) -> Outcome:
    """Train a head, and the model in `base` under it, on the rows of `chats` that have what the task needs; leave it in `out`. Errors: BadInput."""
    words = load_tokenizer(base)
    path = chats / "train.jsonl"
    task = make(config.task, words, read_rows(path), path)
    model, new = task_model_from(base, config.task.kind, task.labels, context.seed, words.pad_token_id)
    model.to(device_of(context.accelerator))
    fast.prepare(model)
    train, left_out = read(task, path, model.config.max_position_embeddings)
    heldout, _ = read(task, chats / "heldout.jsonl", model.config.max_position_embeddings, at_most=config.heldout_chats)
    kinds = [example.kind for example in train]
    passes = Passes([len(example.ids) for example in train], context.seed, context_tokens=None, weights=weights_by_kind(config.mix, kinds))
    before = remembered(out, "before", lambda: measure(task, model, heldout, config.batch_size, words.pad_token_id)[0])
    training = choose(model, config, context.seed, also=new)
    for line in training.lines():
        context.note(line)
    trainable = training.figures()

    def batch(step: int) -> dict[str, Tensor]:
        chosen = [i for row in passes.rows(step * config.batch_size, config.batch_size) for i in row]
        seeds = {"noise": row_seeds(context.seed, step, config.batch_size)} if config.neftune_alpha else {}
        return {**collate([train[i] for i in chosen], words.pad_token_id), **seeds}

    module = TaskTuning(model, config, task)
    course = fit(
        module, batch, config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        training.merge()
        after, predicted = measure(task, model, heldout, config.batch_size, words.pad_token_id)
        save(model, base, out)
    figures = {
        **trainable,
        "examples": len(train),
        **left_out,
        **task.about(train, heldout),
        "examples_seen_by_kind": passes.seen_by(kinds, config.steps * config.batch_size),
        "passes": config.steps * config.batch_size / passes.length(),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    return Outcome(figures=figures, samples=_samples(task, words, heldout, predicted), execution=course.execution())


@torch.no_grad()
def measure(task: Task, model: PreTrainedModel, examples: Sequence[Example], batch_size: int, pad_id: int) -> tuple[dict[str, Any], list[str]]:
    """The held-out loss and the task's own metrics, and what was predicted. Texts of like length are read together."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    losses, predicted = torch.zeros(len(examples), dtype=torch.float64), [""] * len(examples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        some = [examples[i] for i in chosen]
        batch = {name: tensor.to(model.device) for name, tensor in collate(some, pad_id).items()}
        losses[chosen] = task.losses(model, batch).double().cpu()
        for i, said in zip(chosen, task.predictions(model, batch, some), strict=True):
            predicted[i] = said
    model.train()
    return {"heldout_loss": losses.mean().item(), **task.metrics(predicted, examples)}, predicted


def _samples(task: Task, words: PreTrainedTokenizerBase, examples: Sequence[Example], predicted: Sequence[str]) -> tuple[Sample, ...]:
    return tuple(
        Sample(prompt=words.decode(e.ids)[-SAMPLE_CHARACTERS:], output=f"{said or '(no answer)'} [right: {task.wanted(e) or '(no answer)'}]")
        for e, said in list(zip(examples, predicted, strict=True))[:SAMPLES]
    )
