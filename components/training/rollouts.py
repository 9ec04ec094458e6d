"""Answers sampled from a policy, laid out for training, and what models say about them.

Notation: B answers, T tokens of prompt and answer together, V words. `counts` (B, T) is True on the answer's tokens.
Log-probabilities are never taken from generation: they are computed again by the forward that training uses, for the
policy and the reference alike, so that ratio and KL start at exactly 1 and 0 (TRL issues 615 and 1857).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from components.models.generate import generate
from components.models.heads import logits_at
from components.training.batches import pad_right


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


def sample(policy: PreTrainedModel, prompts: list[list[int]], *, stop_ids: list[int], max_new_tokens: int, temperature: float, seed: int) -> Rollout:
    """Let the policy answer; `stop_ids` is (end of turn, padding). The same seed and weights give the same answers."""
    end_id, pad_id = stop_ids
    answers = generate(
        policy, prompts, stop_ids=stop_ids, pad_id=pad_id, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=128
    )  # fmt: skip
    return lay_out_rollout(prompts, answers, pad_id, end_id, policy.device)


def answer_logprobs(model: PreTrainedModel, ids: Tensor, counts: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token, and the entropy of the distribution it was drawn from: (B, T), (B, T); 0 elsewhere.

    The distribution is the one that was sampled from: logits over the temperature. Entropy carries no gradient.
    """
    logits = logits_at(model, counts.roll(-1, dims=1), input_ids=ids) / temperature  # (N, V)
    log_p = log_softmax(logits, dim=-1)
    chosen = log_p.gather(1, ids[counts].unsqueeze(1)).squeeze(1)  # (N,)
    frozen = log_p.detach()
    entropy = -(frozen.exp() * frozen).sum(-1)  # (N,)
    return torch.zeros_like(ids, dtype=chosen.dtype).masked_scatter(counts, chosen), torch.zeros_like(ids, dtype=entropy.dtype).masked_scatter(counts, entropy)
