"""Pretraining: a model from scratch learns to predict the next token of raw text.

A batch is `batch_size` sequences of `context_tokens`, drawn from the domains' token shards as the mixture says (tokens.py).
Documents are joined by <|endoftext|> and the model reads across it (as GPT-2 did; masking between documents costs speed
and gains little at this length).

Bits per byte is the measure that does not depend on the tokenizer: mean nats per held-out token, times tokens per byte
of the held-out file, over ln 2. The mean is over sequences spread evenly over the file, the same before and after; the
tokens per byte are the whole file's (tokens.json), so only the mean carries noise: its standard error is given.

    python -m components pretrain --config recipe.yaml --out DIR
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import build, count_parameters, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.schema.config import BadInput
from components.schema.records import Outcome, Sample
from components.schema.training import ModelConfig, PretrainConfig
from components.training import tokens as token_files
from components.training.optim import OptimizedModule
from components.training.tokens import Schedule, TokenFile, TokenShards
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 16, 48


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


def run(config: PretrainConfig, model: ModelConfig, tokens: Path, mix: Path, tokenizer: Path, out: Path, context: Context) -> Outcome:
    """Train a model from scratch on `tokens`, mixed as `mix` says, and leave it in `out`. Errors: BadInput."""
    words = load_tokenizer(tokenizer)
    mixture = token_files.read_mix(mix)
    train, heldout = TokenShards(tokens, mixture, model.context_tokens, len(words)), token_files.heldout(tokens, model.context_tokens, len(words))
    schedule = Schedule(mixture, train.sizes, config.steps, config.batch_size, context.seed)
    tokens_per_byte = read_tokens_per_byte(tokens)
    network = build(model, words, context.seed).to(device_of(context.accelerator))
    before = remembered(out, "before", lambda: measure(network, heldout, config, tokens_per_byte))

    course = fit(
        Pretraining(network, config),
        lambda step: train.rows(*schedule.batch(step)),
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
        **by_domain(train, schedule),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    return Outcome(figures=figures, samples=continuations(network, heldout, words), execution=course.execution())


def by_domain(train: TokenShards, schedule: Schedule) -> dict[str, dict[str, float]]:
    """Tokens that training sees of each domain, and how many times that is all of them."""
    drawn = list(zip(train.domains, schedule.drawn().tolist(), train.sizes.tolist(), strict=True))
    return {
        "tokens_by_domain": {name: sequences * train.length for name, sequences, _ in drawn},
        "epochs_by_domain": {name: round(sequences / size, 4) if size else 0.0 for name, sequences, size in drawn},
    }


def read_tokens_per_byte(tokens: Path) -> float:
    """Tokens per UTF-8 byte of the held-out file. Errors: BadInput."""
    counts = token_files.read_report(tokens)
    try:
        return counts["heldout_tokens"] / counts["heldout_bytes"]
    except (KeyError, ZeroDivisionError) as error:
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
