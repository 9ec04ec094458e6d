"""Supervised fine-tuning: a base model learns to answer chats.

The loss counts the assistant's content and its end-of-turn token, nothing else. Chats are short beside the context, so
several share a row; position_ids that start anew keep them from seeing each other (`batches.lay_out`; checked on the
model itself before training, since not every architecture does it). Rows are packed once, and each pass visits them in
an order of its own. Only counted positions reach the output layer (`heads.logits_at`).

    python -m components sft --config recipe.yaml --out DIR
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.models.heads import logits_at
from components.schema.config import BadInput
from components.schema.records import Outcome, Sample
from components.schema.training import SFTConfig
from components.training.batches import Packed, lay_out, pack, read_rows, visits
from components.training.optim import OptimizedModule
from components.training.template import encode, encode_prompts, preflight, write_contract
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, SAMPLE_TOKENS = 3, 96
Text = tuple[list[int], list[bool]]


class FineTuning(OptimizedModule):
    """Cross-entropy of the assistant's tokens."""

    def __init__(self, model: PreTrainedModel, config: SFTConfig) -> None:
        super().__init__(config)
        self.model = model

    def training_step(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        losses = answer_losses(self.model, Packed(**batch))
        return {"loss": losses.sum() / max(1, len(losses)), "tokens": batch["ids"].numel(), "weight": len(losses)}


def answer_losses(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Nats of every counted token, in row-major order: (N,)."""
    predicts = packed.counts.roll(-1, dims=1)  # (B, T) True where the next token counts; column 0 never does, so none wraps round
    logits = logits_at(model, predicts, input_ids=packed.ids, position_ids=packed.position_ids)  # (N, V)
    return cross_entropy(logits, packed.ids[packed.counts], reduction="none")


def run(config: SFTConfig, base: Path, chats: Path, out: Path, context: Context) -> Outcome:
    """Fine-tune the model in `base` on `chats` and leave it in `out`. Errors: BadInput."""
    words, model = load_tokenizer(base), load(base).to(device_of(context.accelerator))
    preflight(model, words)
    width = model.config.max_position_embeddings
    train, dropped = read_chats(chats / "train.jsonl", words, width)
    heldout, _ = read_chats(chats / "heldout.jsonl", words, width, at_most=config.heldout_chats)
    rows = pack([len(ids) for ids, _ in train], width)
    before = remembered(out, "before", lambda: measure(model, heldout, config.batch_size, words.pad_token_id))

    def batch(step: int) -> dict[str, Tensor]:
        chosen = visits(len(rows), step * config.batch_size, config.batch_size, context.seed)
        return vars(lay_out([rows[r] for r in chosen], train, words.pad_token_id))

    module = FineTuning(model, config)
    course = fit(
        module, batch, config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        after = measure(model, heldout, config.batch_size, words.pad_token_id)
        save(model, base, out)
        samples = answers(model, chats / "heldout.jsonl", words)
    write_contract(words, out)
    figures = {
        "chats": len(train),
        "chats_dropped_longer_than_context": dropped,
        "rows": len(rows),
        "row_fill": sum(len(ids) for ids, _ in train) / (len(rows) * width),
        "passes": config.steps * config.batch_size / len(rows),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    return Outcome(figures=figures, samples=samples, execution=course.execution())


def read_chats(path: Path, words: PreTrainedTokenizerBase, context_tokens: int, at_most: int | None = None) -> tuple[list[Text], int]:
    """The first `at_most` chats that fit the context and have something to learn, and how many were too long. Errors: BadInput."""
    rows = read_rows(path)
    try:
        texts = encode(words, [row["messages"] for row in rows[:at_most]])
    except (KeyError, TypeError) as error:
        raise BadInput(f"sft: {path} has a row without proper `messages` ({error!r}), so it cannot be rendered. Make the chats again") from None
    fitting = [(ids, counts) for ids, counts in texts if len(ids) <= context_tokens]
    kept = [text for text in fitting if any(text[1][1:])]
    if not kept:
        raise BadInput(
            f"sft: {path} has {len(rows)} chats, and none of them has an assistant turn within {context_tokens} tokens: nothing would be learnt. "
            "Raise model.context_tokens or give shorter chats"
        )
    return kept, len(texts) - len(fitting)


@torch.no_grad()
def measure(model: PreTrainedModel, heldout: list[Text], batch_size: int, pad_id: int) -> dict[str, float]:
    """Mean loss per assistant token over held-out chats, with its standard error over chats (a ratio: chats differ in length)."""
    model.eval()
    totals, counted = [], []
    for start in range(0, len(heldout), batch_size):
        chunk = heldout[start : start + batch_size]
        packed = lay_out([[i] for i in range(len(chunk))], chunk, pad_id)
        on_device = Packed(*(t.to(model.device) for t in (packed.ids, packed.position_ids, packed.counts)))
        lengths = packed.counts.sum(1)
        totals += [losses.double().sum() for losses in answer_losses(model, on_device).split(lengths.tolist())]
        counted.append(lengths.double())
    model.train()
    total, tokens = torch.stack(totals).cpu(), torch.cat(counted)  # (chats,), (chats,)
    loss = (total.sum() / tokens.sum()).item()
    residual = total - loss * tokens
    stderr = residual.std().item() * math.sqrt(len(total)) / tokens.sum().item() if len(total) > 1 else 0.0
    return {"heldout_loss": loss, "heldout_loss_stderr": stderr}


def answers(model: PreTrainedModel, path: Path, words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """Greedy answers to a few held-out prompts that leave half of the context free, of different kinds where there are some."""
    room = model.config.max_position_embeddings // 2
    rows = read_rows(path)
    prompts = encode_prompts(words, [_until_assistant(row["messages"]) for row in rows])
    by_kind = {row.get("kind"): ids for row, ids in reversed(list(zip(rows, prompts, strict=True))) if len(ids) <= room}
    ids = list(by_kind.values())[:SAMPLES]
    outputs = generate(model, ids, stop_ids=stop_ids(words), pad_id=words.pad_token_id, max_new_tokens=min(SAMPLE_TOKENS, room))
    return tuple(Sample(prompt=words.decode(p), output=words.decode(a)) for p, a in zip(ids, outputs, strict=True))


def _until_assistant(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    end = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return messages[:end]
