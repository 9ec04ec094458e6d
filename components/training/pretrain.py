"""Pretraining: a model from scratch learns to predict the next token of raw text.

A batch is `batch_size` sequences of `context_tokens`, cut from the flat token file. Each pass over the file visits every
sequence once, in an order of its own (seed, pass). Documents are joined by <|endoftext|> and the model reads across
it (as GPT-2 did; masking between documents costs speed and gains little at this length).

Bits per byte is the measure that does not depend on the tokenizer: mean nats per held-out token, times tokens per byte
of the held-out file, over ln 2. The mean is over sequences spread evenly over the file, the same before and after; the
tokens per byte are the whole file's (tokens.json), so only the mean carries noise: its standard error is given.

    python -m components pretrain --config recipe.yaml --out DIR
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import build, count_parameters, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.schema.config import BadInput
from components.schema.recipe import ModelConfig, PretrainConfig
from components.schema.records import Outcome, Sample
from components.training.batches import visits
from components.training.optim import OptimizedModule
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 16, 48


class TokenFile:
    """Sequences of `length` + 1 tokens (input and shifted target overlap) cut from a flat uint16 file."""

    def __init__(self, path: Path, length: int, vocab_size: int) -> None:
        if not path.is_file() or path.stat().st_size < 2 * (length + 1):
            raise BadInput(f"pretrain: {path} does not hold one sequence of {length + 1} tokens, so there is nothing to learn from. Give more text, or lower model.context_tokens")
        self.tokens, self.length = np.memmap(path, dtype=np.uint16, mode="r"), length
        self.n = (len(self.tokens) - 1) // length
        if (largest := int(self.tokens.max())) >= vocab_size:
            raise BadInput(f"pretrain: {path} holds token {largest}, and the tokenizer has {vocab_size}: they do not belong together. Make the tokens again with this tokenizer")

    def rows(self, indices: list[int]) -> Tensor:
        """The sequences with these numbers: (B, T + 1)."""
        starts = [i * self.length for i in indices]
        return torch.from_numpy(np.stack([self.tokens[s : s + self.length + 1] for s in starts]).astype(np.int64))

    def spread(self, count: int) -> list[int]:
        """At most `count` sequences, evenly over the file."""
        return np.unique(np.linspace(0, self.n - 1, min(count, self.n)).astype(int)).tolist()


class Pretraining(OptimizedModule):
    """Cross-entropy of each next token."""

    def __init__(self, model: PreTrainedModel, config: PretrainConfig) -> None:
        super().__init__(config)
        self.model = model

    def training_step(self, rows: Tensor, step: int) -> dict[str, Any]:
        loss = next_token_losses(self.model, rows).mean()
        self.log("loss", loss.detach())
        return {"loss": loss, "tokens": rows[:, 1:].numel()}


def next_token_losses(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Nats of every next token: rows (B, T + 1) -> (B, T)."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # (B, T, V)
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(rows.shape[0], -1)


def run(config: PretrainConfig, model: ModelConfig, tokens: Path, tokenizer: Path, out: Path, context: Context) -> Outcome:
    """Train a model from scratch on `tokens` and leave it in `out`. Errors: BadInput."""
    words = load_tokenizer(tokenizer)
    train, heldout = (TokenFile(tokens / f"{split}.bin", model.context_tokens, len(words)) for split in ("train", "heldout"))
    tokens_per_byte = read_tokens_per_byte(tokens)
    network = build(model, words, context.seed).to(device_of(context.accelerator))
    before = remembered(out, "before", lambda: measure(network, heldout, config, tokens_per_byte))

    course = fit(
        Pretraining(network, config),
        lambda step: train.rows(visits(train.n, step * config.batch_size, config.batch_size, context.seed)),
        config.steps,
        every=config.checkpoint_every_steps,
        out=out,
        context=context,
        identity={"config": config.model_dump(mode="json"), "model": model.model_dump(mode="json")},
    )
    after = measure(network, heldout, config, tokens_per_byte)
    save(network, tokenizer, out)
    figures = {
        "parameters": count_parameters(network),
        "tokens_seen": config.steps * config.batch_size * model.context_tokens,
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    return Outcome(figures=figures, samples=continuations(network, heldout, words), execution=course.execution())


def read_tokens_per_byte(tokens: Path) -> float:
    """Tokens per UTF-8 byte of the held-out file. Errors: BadInput."""
    try:
        counts = json.loads((tokens / "tokens.json").read_text(encoding="utf-8"))
        return counts["heldout_tokens"] / counts["heldout_bytes"]
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise BadInput(f"pretrain: {tokens / 'tokens.json'} does not say how many held-out tokens and bytes there are ({error!r}), so bits per byte are unknown. Make the tokens again") from None


@torch.no_grad()
def measure(model: PreTrainedModel, heldout: TokenFile, config: PretrainConfig, tokens_per_byte: float) -> dict[str, float]:
    """Held-out loss in nats per token and bits per byte, each with its standard error over sequences."""
    model.eval()
    indices = heldout.spread(config.heldout_sequences)
    batches = [indices[i : i + config.batch_size] for i in range(0, len(indices), config.batch_size)]
    losses = torch.cat([next_token_losses(model, heldout.rows(batch).to(model.device)).mean(1) for batch in batches]).double()  # (sequences,)
    model.train()
    to_bits = tokens_per_byte / math.log(2)
    loss, stderr = losses.mean().item(), losses.std().item() / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return {"heldout_loss": loss, "heldout_loss_stderr": stderr, "bits_per_byte": loss * to_bits, "bits_per_byte_stderr": stderr * to_bits}


def continuations(model: PreTrainedModel, heldout: TokenFile, words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """Greedy continuations of a few held-out beginnings."""
    width = min(PROMPT_TOKENS, heldout.length // 2)
    prompts = heldout.rows(heldout.spread(SAMPLES))[:, :width].tolist()
    room = min(SAMPLE_TOKENS, heldout.length - width)
    answers = generate(model, prompts, stop_ids=stop_ids(words), pad_id=words.pad_token_id, max_new_tokens=room)
    return tuple(Sample(prompt=words.decode(p), output=words.decode(a)) for p, a in zip(prompts, answers, strict=True))
