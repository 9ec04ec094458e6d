"""Answers sampled from a policy, laid out for training, and what models say about them.

Notation: B answers, T tokens of prompt and answer together, V words. `counts` (B, T) is True on the answer's tokens.
Log-probabilities are never taken from generation: they are computed again by the forward that training uses, for the
policy and the reference alike, so that ratio and KL start at exactly 1 and 0 (TRL issues 615 and 1857).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from transformers import PreTrainedModel

from components.models.engines import Engine
from components.models.generate import generate
from components.models.heads import logits_at
from components.training import fast
from components.training.batches import pad_right
from components.training.cross_entropy import chunk_rows, linear_cross_entropy
from components.training.shared_prompts import share

BATCH = 128  # rows that are answered together


@dataclass(frozen=True)
class Rollout:
    """A batch of sampled answers."""

    prompts: list[list[int]]
    answers: list[list[int]]
    ids: Tensor
    """(B, T) prompt and answer, padded on the right."""
    counts: Tensor
    """(B, T) True on the answer's tokens, its end included."""
    finished: Tensor
    """(B,) True where the answer ended its turn."""

    def rows(self, which: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids and counts of some rows, without columns that are padding in all of them."""
        width = max(len(self.prompts[i]) + len(self.answers[i]) for i in which)
        return self.ids[list(which), :width], self.counts[list(which), :width]


def lay_out_rollout(prompts: list[list[int]], answers: list[list[int]], pad_id: int, end_id: int, device: torch.device) -> Rollout:
    """Prompts and their answers as one right-padded batch."""
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    ids = pad_right(texts, pad_id).to(device)
    column = torch.arange(ids.shape[1], device=device)  # (T,)
    starts = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    ends = torch.tensor([[len(text)] for text in texts], device=device)
    finished = torch.tensor([answer[-1] == end_id for answer in answers], device=device)
    return Rollout(prompts, answers, ids, (column >= starts) & (column < ends), finished)


def sample(
    policy: PreTrainedModel,
    prompts: list[list[int]],
    *,
    stop_ids: list[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    copies: int = 1,
    engine: Engine | None = None,
) -> Rollout:
    """Let the policy answer each prompt `copies` times; `stop_ids` is (end of turn, padding). The same seed and weights give the same answers.

    The answers to a prompt are neighbours: row i * copies + k is answer k to prompts[i]. A prompt is read once, whether it is repeated here or in `prompts`.
    `engine` answers in place of the model's own loop; it is given the policy's weights first (engines.py).
    """
    end_id, pad_id = stop_ids
    asked = [prompt for prompt in prompts for _ in range(copies)]
    how = {"stop_ids": stop_ids, "pad_id": pad_id, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if engine is None:
        answers = generate(policy, asked, **how, batch_size=BATCH)
    else:
        engine.take(policy)
        answers = engine.generate(asked, **how)
    return lay_out_rollout(asked, answers, pad_id, end_id, policy.device)


def answer_logprobs(model: PreTrainedModel, ids: Tensor, counts: Tensor, temperature: float, *, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token, and the entropy of the distribution it was drawn from: (B, T), (B, T); 0 elsewhere.

    The distribution is the one that was sampled from: logits over the temperature. Entropy carries no gradient; without `with_entropy` it is nan where it would
    count, and costs nothing. Logits stand for a few rows at a time, never whole (fast.py).
    """
    logp, entropy, _ = _answers(model, ids, counts, temperature, with_entropy, None)
    return logp, entropy


def answer_logprobs_and_values(model: PreTrainedModel, ids: Tensor, counts: Tensor, temperature: float, read: nn.Linear) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token, and what `read` (D -> K) makes of the last hidden state before it: (B, T), (B, T, K), both with gradient; 0 elsewhere."""
    logp, _, values = _answers(model, ids, counts, temperature, False, read)
    return logp, values


def _answers(
    model: PreTrainedModel, ids: Tensor, counts: Tensor, temperature: float, with_entropy: bool, read: nn.Linear | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    seen: list[Tensor] = []
    values: list[Tensor] = []

    def ask(hidden: Tensor, head: nn.Linear) -> Tensor:
        rows = hidden[predicts]  # (N, D)
        if read is not None:
            values.append(read(rows))
        if temperature != 1:
            rows = rows / temperature
        bias = None if head.bias is None else head.bias / temperature
        if with_entropy:
            logp, entropy = _look(rows.detach(), chosen, head.weight.detach(), None if bias is None else bias.detach())
            seen.append(entropy)
            if not torch.is_grad_enabled():
                return logp
        return -linear_cross_entropy(rows, head.weight, chosen, bias=bias, reduction="none")  # (N,)

    chosen, predicts = ids[counts], counts.roll(-1, dims=1)  # (N,); (B, T) True where the next token counts: column 0 never does
    inputs: dict[str, Any] = {"input_ids": ids}
    if fast.can_share(model, ids.shape[1]) and (shared := share(ids, counts)):
        predicts = (torch.zeros_like(shared.says), shared.says)
        inputs = {"input_ids": shared.ids, "position_ids": shared.positions, "attention_mask": shared.mask, "shared_prompts": shared}
    logp = fast.at_head(model, ask, **inputs)
    if logp is None:  # what the model does behind its head is its own
        if read is not None:
            values.append(read(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[counts.roll(-1, dims=1)]))
        log_p = log_softmax(logits_at(model, counts.roll(-1, dims=1), input_ids=ids).float() / temperature, dim=-1)  # (N, V)
        logp = log_p.gather(1, chosen[:, None])[:, 0]
        seen = [-(log_p.detach().exp() * log_p.detach()).sum(-1)] if with_entropy else []
    entropy = seen[0] if with_entropy else torch.full_like(logp.detach(), math.nan)
    said = torch.zeros(*counts.shape, values[0].shape[1], device=ids.device).masked_scatter(counts[..., None], values[0]) if values else None
    return _spread(logp, counts), _spread(entropy, counts), said


def _spread(values: Tensor, counts: Tensor) -> Tensor:
    """(N,) to where `counts` (B, T) is True; 0 elsewhere."""
    return torch.zeros(counts.shape, dtype=values.dtype, device=values.device).masked_scatter(counts, values)


def _look(hidden: Tensor, chosen: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p of the chosen words and the entropy of p = softmax(hidden @ weight.T + bias), a few rows at a time: (N, D), (N,), (V, D), (V,) -> (N,), (N,)."""
    size = chunk_rows(len(weight))
    logp, entropy = hidden.new_zeros((2, len(hidden)), dtype=torch.float32)
    for start in range(0, len(hidden), size):
        here = slice(start, start + size)
        log_p = log_softmax(linear(hidden[here], weight, bias).float(), dim=-1)  # (size, V)
        logp[here] = log_p.gather(1, chosen[here, None])[:, 0]
        entropy[here] = -(log_p.exp() * log_p).sum(-1)
    return logp, entropy
