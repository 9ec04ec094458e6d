"""Pretraining: a model learns from raw text, to predict the next token or to restore masked ones.

A batch is `batch_size` sequences of `context_tokens`, drawn from the domains' token shards as the mixture says (tokens.py).
Documents are joined by <|endoftext|> and the model reads across it (as GPT-2 did; masking between documents costs speed
and gains little at this length). It begins from random weights, or goes on from given ones (models/initial.py).

    python -m components pretrain --config job.yaml
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models import memory, routing
from components.models.architectures import mask_id
from components.models.build import build, count_parameters, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.models.initial import begin
from components.schema.records import Outcome, Sample
from components.schema.training import ModelConfig, PretrainConfig
from components.training import fast
from components.training import tokens as token_files
from components.training.heldout import Heldout
from components.training.masking import IGNORED, mask
from components.training.optim import OptimizedModule
from components.training.schedules import batch_sizes
from components.training.tokens import Schedule, TokenFile, TokenShards
from components.training.trainer import Context, Looks, device_of, fit, remembered

SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 16, 48
LOOKED_AT = -1  # the step whose masks held-out text always has


class NextToken(OptimizedModule):
    """Cross-entropy of each next token; in a mixture of experts also what keeps the experts equally busy."""

    def __init__(self, model: PreTrainedModel, config: PretrainConfig) -> None:
        super().__init__(config)
        self.model, self.objective = model, config
        self.routes = routing.asked(model)
        self._routed: list[Any] = []
        if self.routes:
            model.base_model.register_forward_hook(lambda module, inputs, output: self._routed.append(output.router_logits))

    def training_step(self, rows: Tensor, step: int) -> dict[str, Any]:
        self._routed.clear()
        weights = {"z_loss": self.objective.z_loss, "label_smoothing": self.objective.label_smoothing}
        found = fast.next_token_loss(self.model, rows[:, :-1], rows[:, 1:], **weights, **self.routes)
        shown = {"loss": found.loss, "tokens": rows[:, 1:].numel()}
        if not self.routes:
            return shown
        balance = routing.router_loss(self.model, self._routed[-1])
        return {**shown, "loss": found.loss + balance, "router_loss": balance.detach()}


class Restoring(OptimizedModule):
    """Cross-entropy of the tokens that were masked."""

    def __init__(self, model: PreTrainedModel, config: PretrainConfig) -> None:
        super().__init__(config)
        self.model, self.objective = model, config

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Any]:
        inputs, labels = batch
        logits = self.model(input_ids=inputs).logits  # (B, T, V)
        asked = labels != IGNORED
        loss = cross_entropy(logits[asked].float(), labels[asked], label_smoothing=self.objective.label_smoothing)
        return {"loss": loss, "tokens": inputs.numel(), "weight": int(asked.sum())}


def run(config: PretrainConfig, model: ModelConfig, tokens: Path, mix: Path, tokenizer: Path, out: Path, context: Context, weights: Path | None = None) -> Outcome:
    """Train a model on `tokens`, mixed as `mix` says, and leave it in `out`; `weights`: the folder it begins from. Errors: BadInput."""
    words = load_tokenizer(tokenizer)
    mixture = token_files.read_mix(mix)
    train = TokenShards(tokens, mixture, model.context_tokens, len(words))
    schedule = Schedule(mixture, train.sizes, config.steps, batch_sizes(config), context.seed)
    network = begin(model, words, weights, config.objective) if weights else build(model, words, context.seed, config.objective)
    network.to(device_of(context.accelerator))
    masking = _masking(config, words) if config.objective == "masked" else None
    heldout = Heldout(tokens, model.context_tokens, len(words), config.heldout_sequences, context.resources.micro_batch_size or config.batch_size, masking and (lambda rows: masking(rows, 0, LOOKED_AT)))
    estimated = None if weights else _memory(config, model, words, context)
    before = remembered(out, "before", lambda: heldout.measure(network))
    fast.prepare(network)

    module = (Restoring if masking else NextToken)(network, config)
    course = fit(
        module,
        _batches(train, schedule, masking, context.seed),
        config.steps,
        every=config.checkpoint_every_steps,
        out=out,
        context=context,
        identity={"config": config.model_dump(mode="json"), "model": model.model_dump(mode="json")},
        looks=_looks(config, network, heldout, words),
    )
    with module.averaged_weights():
        after = heldout.measure(network)
        save(network, tokenizer, out)
        samples = tuple(continuations(network, heldout.file, words) if masking is None else restorations(network, heldout.file, words, masking))
    figures = {
        "parameters": count_parameters(network),
        "tokens_seen": schedule.n * model.context_tokens,
        **by_domain(train, schedule),
        "loss_last": course.losses[-1],
        "steps_left_out": module.spikes.left_out,
        **({"best_step": course.best["step"]} if course.best else {}),
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }
    estimate = {"estimated_memory_mb": round(estimated.total / 2**20, 1)} if estimated else {}
    return Outcome(figures=figures, samples=samples, execution={**course.execution(), **estimate})


def _memory(config: PretrainConfig, model: ModelConfig, words: PreTrainedTokenizerBase, context: Context) -> memory.MemoryEstimate:
    """Told before the run, and the run refused where it cannot fit. Errors: BadInput."""
    found = memory.for_training(model, len(words), config, context.resources)
    for line in found.lines():
        context.note(line)
    memory.refuse(found, model)
    return found


def _masking(config: PretrainConfig, words: PreTrainedTokenizerBase) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]]:
    """Corrupts rows (B, T) as (seed, step) say."""
    masked = mask_id(words)
    special = sorted({masked, *words.all_special_ids})
    size = max(len(words), masked + 1)
    return lambda rows, seed, step: mask(rows, fraction=config.mask_fraction, mask_id=masked, vocab_size=size, special_ids=special, seed=seed, step=step % 2**32)


def _batches(train: TokenShards, schedule: Schedule, masking: Callable[[Tensor, int, int], tuple[Tensor, Tensor]] | None, seed: int) -> Callable[[int], Any]:
    """The whole batch of a step: rows (B, T + 1), or inputs and labels (B, T)."""
    if masking is None:
        return lambda step: train.rows(*schedule.batch(step))
    return lambda step: masking(train.rows(*schedule.batch(step))[:, :-1], seed, step)


def _looks(config: PretrainConfig, network: PreTrainedModel, heldout: Heldout, words: PreTrainedTokenizerBase) -> Looks:
    """What is looked at during training."""

    def sample(step: int) -> list[dict[str, str]]:
        return [one.model_dump() for one in continuations(network, heldout.file, words)] if config.objective == "next_token" else []

    return Looks(validate=lambda step: heldout.look(network), validate_every=config.validate_every_steps, sample=sample, sample_every=config.sample_every_steps)


def by_domain(train: TokenShards, schedule: Schedule) -> dict[str, dict[str, float]]:
    """Tokens that training sees of each domain, and how many times that is all of them."""
    drawn = list(zip(train.domains, schedule.drawn().tolist(), train.sizes.tolist(), strict=True))
    return {
        "tokens_by_domain": {name: sequences * train.length for name, sequences, _ in drawn},
        "epochs_by_domain": {name: round(sequences / size, 4) if size else 0.0 for name, sequences, size in drawn},
    }


def continuations(model: PreTrainedModel, heldout: TokenFile, words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """Greedy continuations of a few held-out beginnings."""
    width = min(PROMPT_TOKENS, heldout.length // 2)
    prompts = heldout.rows(heldout.spread(SAMPLES))[:, :width].tolist()
    room = min(SAMPLE_TOKENS, heldout.length - width)
    answers = generate(model, prompts, stop_ids=stop_ids(words), pad_id=words.pad_token_id, max_new_tokens=room)
    return tuple(Sample(prompt=words.decode(p), output=words.decode(a)) for p, a in zip(prompts, answers, strict=True))


@torch.no_grad()
def restorations(model: PreTrainedModel, heldout: TokenFile, words: PreTrainedTokenizerBase, masking: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]) -> tuple[Sample, ...]:
    """A few held-out texts with [masked words] as they were, and as the model restores them."""
    rows = heldout.rows(heldout.spread(SAMPLES))[:, : SAMPLE_TOKENS]
    inputs, labels = masking(rows, 0, LOOKED_AT)
    model.eval()
    found = model(input_ids=inputs.to(model.device)).logits.argmax(-1).cpu()
    return tuple(
        Sample(prompt=_marked(words, row, label != IGNORED), output=_marked(words, torch.where(label != IGNORED, restored, row), label != IGNORED))
        for row, label, restored in zip(rows, labels, found, strict=True)
    )


def _marked(words: PreTrainedTokenizerBase, row: Tensor, asked: Tensor) -> str:
    """A text with the tokens that were asked for in brackets."""
    return "".join(f"[{words.decode([token])}]" if is_asked else words.decode([token]) for token, is_asked in zip(row.tolist(), asked.tolist(), strict=True))
