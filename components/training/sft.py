"""Supervised fine-tuning: a base model learns to answer chats.

The loss counts the assistant's content and its end-of-turn token, nothing else. Chats are short beside the context, so
several share a row; position_ids that start anew keep them from seeing each other (`batches.lay_out`; checked on the
model itself before training, since not every architecture does it). Each pass visits the rows in an order of its own, and draws
kinds of chats as often as `mix` says. Only counted positions reach the output layer, and logits never stand whole (`fast`).

All weights train, or those that `train_layers` names, or LoRA's adapters, which are merged at the end (`models/adapters.py`): what is
left is always a plain checkpoint. With `task` a head is trained instead (`tasks.py`).

    python -m components sft --config job.yaml
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.adapters import choose
from components.models.build import load, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.schema.config import BadInput
from components.schema.posttraining import SFTConfig
from components.schema.records import Outcome, Sample
from components.schema.training import OptimConfig
from components.training import fast, tasks
from components.training.batches import Packed, Passes, lay_out, pack, read_rows, weights_by_kind
from components.training.neftune import noisy, row_seeds
from components.training.optim import OptimizedModule
from components.training.template import encode, encode_prompts, preflight, write_contract
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, SAMPLE_TOKENS = 3, 96
IGNORED = -100
Text = tuple[list[int], list[bool]]


class FineTuning(OptimizedModule):
    """Cross-entropy of the assistant's tokens; a batch is what `lay_out` gives, with `noise`, a seed for each row, where NEFTune is asked for."""

    def __init__(self, model: PreTrainedModel, config: OptimConfig) -> None:
        super().__init__(config)
        self.model = model
        self.alpha = getattr(config, "neftune_alpha", 0.0)

    def training_step(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        packed = Packed(batch["ids"], batch["position_ids"], batch["counts"])
        with noisy(self.model, self.alpha, packed.position_ids, batch.get("noise")):
            found = fast.next_token_loss(self.model, packed.ids, targets(packed), position_ids=packed.position_ids)
        return {"loss": found.loss, "tokens": packed.ids.numel(), "weight": int(found.count)}


def targets(packed: Packed) -> Tensor:
    """What is to be said after each token, (B, T), `IGNORED` where nothing counts. Column 0 never counts, so none wraps round."""
    return packed.ids.roll(-1, dims=1).where(packed.counts.roll(-1, dims=1), IGNORED)


def answer_losses(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Nats of every counted token, in row-major order: (N,)."""
    wanted = targets(packed)
    return fast.next_token_losses(model, packed.ids, wanted, position_ids=packed.position_ids)[wanted != IGNORED]


def run(config: SFTConfig, base: Path, chats: Path, out: Path, context: Context) -> Outcome:
    """Fine-tune the model in `base` on `chats` and leave it in `out`. Errors: BadInput."""
    _refuse_tensor_adapters(config, context)
    if config.task:
        return tasks.run(config, base, chats, out, context)
    words, model = load_tokenizer(base), load(base).to(device_of(context.accelerator))
    fast.prepare(model)
    preflight(model, words)
    width = model.config.max_position_embeddings
    train, kinds, dropped = read_chats(chats / "train.jsonl", words, width)
    heldout, heldout_kinds, _ = read_chats(chats / "heldout.jsonl", words, width, at_most=config.heldout_chats)
    passes = Passes([len(ids) for ids, _ in train], context.seed, context_tokens=width, weights=weights_by_kind(config.mix, kinds))

    def look() -> dict[str, Any]:
        return measure(model, heldout, config.batch_size, words.pad_token_id, heldout_kinds)

    before = remembered(out, "before", look)
    training = choose(model, config, context.seed)
    for line in training.lines():
        context.note(line)
    trainable = training.figures()

    def batch(step: int) -> dict[str, Tensor]:
        laid_out = vars(lay_out(passes.rows(step * config.batch_size, config.batch_size), train, words.pad_token_id))
        return {**laid_out, **({"noise": row_seeds(context.seed, step, config.batch_size)} if config.neftune_alpha else {})}

    module = FineTuning(model, config)
    course = fit(
        module, batch, config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        training.merge()
        after = look()
        save(model, base, out)
        samples = answers(model, chats / "heldout.jsonl", words)
    write_contract(words, out)
    figures = {
        **trainable,
        "chats": len(train),
        "chats_dropped_longer_than_context": dropped,
        "chats_seen_by_kind": passes.seen_by(kinds, config.steps * config.batch_size),
        "rows": passes.length(),
        "row_fill": sum(len(train[i][0]) for i in passes.drawn(0)) / (passes.length() * width),
        "passes": config.steps * config.batch_size / passes.length(),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    return Outcome(figures=figures, samples=samples, execution=course.execution())


def _refuse_tensor_adapters(config: SFTConfig, context: Context) -> None:
    if config.lora and context.resources.strategy == "tensor":
        raise BadInput("sft: lora with strategy=tensor: an adapted layer cannot be cut by transformers' plan, so no process could hold it. Use strategy=fsdp or ddp, or leave lora out")


def read_chats(path: Path, words: PreTrainedTokenizerBase, context_tokens: int, at_most: int | None = None) -> tuple[list[Text], list[str], int]:
    """The first `at_most` chats that fit the context and have something to learn, the kind of each, and how many were too long. Errors: BadInput."""
    rows = read_rows(path)[:at_most]
    try:
        texts = encode(words, [row["messages"] for row in rows])
    except (KeyError, TypeError) as error:
        raise BadInput(f"sft: {path} has a row without proper `messages` ({error!r}), so it cannot be rendered. Make the chats again") from None
    fitting = [(text, str(row.get("kind", "chat"))) for text, row in zip(texts, rows, strict=True) if len(text[0]) <= context_tokens]
    kept = [(text, kind) for text, kind in fitting if any(text[1][1:])]
    if not kept:
        raise BadInput(
            f"sft: {path} has {len(rows)} chats, and none of them has an assistant turn within {context_tokens} tokens: nothing would be learnt. "
            "Raise model.context_tokens or give shorter chats"
        )
    return [text for text, _ in kept], [kind for _, kind in kept], len(texts) - len(fitting)


@torch.no_grad()
def measure(model: PreTrainedModel, heldout: list[Text], batch_size: int, pad_id: int, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """Mean loss per assistant token over held-out chats, with its standard error over chats (a ratio: chats differ in length); by kind where they are given."""
    model.eval()
    tokens = torch.tensor([sum(counts[1:]) for _, counts in heldout], dtype=torch.float64)  # (chats,)
    total = torch.zeros_like(tokens)
    rows = pack([len(ids) for ids, _ in heldout], max(len(ids) for ids, _ in heldout))
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        packed = lay_out(chunk, heldout, pad_id)
        losses = answer_losses(model, Packed(*(t.to(model.device) for t in (packed.ids, packed.position_ids, packed.counts))))
        chats = [i for row in chunk for i in row]
        total[chats] = torch.stack([part.double().sum() for part in losses.split([int(tokens[i]) for i in chats])]).cpu()
    model.train()
    loss = (total.sum() / tokens.sum()).item()
    residual = total - loss * tokens
    stderr = residual.std().item() * math.sqrt(len(total)) / tokens.sum().item() if len(total) > 1 else 0.0
    by_kind = {kind: [i for i, own in enumerate(kinds) if own == kind] for kind in sorted(set(kinds))}
    parts = {kind: (total[chats].sum() / tokens[chats].sum()).item() for kind, chats in by_kind.items()}
    return {"heldout_loss": loss, "heldout_loss_stderr": stderr, **({"heldout_loss_by_kind": parts} if len(parts) > 1 else {})}


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
