"""The leaf maths of post-training, in log-probabilities and masks.

Notation: B answers, T tokens. `counts` (B, T) is True where a token is the model's own answer; only those enter a mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def masked_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Mean over the positions that count; whatever stands elsewhere (even nan) does not matter."""
    return x[counts].mean()


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Loss of each pair, -log P(chosen beats rejected) with P = sigmoid of the score difference: (B,).

    Bradley and Terry 1952; as a reward model's loss in Ouyang et al. 2022, arXiv:2203.02155, eq. 1.
    """
    return -logsigmoid(chosen - rejected)


def kl_k1(logp: Tensor, reference: Tensor) -> Tensor:
    """log p - log q under samples of p: unbiased, noisy, negative on some tokens (http://joschu.net/blog/kl-approx.html)."""
    return logp - reference


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """exp(log q - log p) - 1 - (log q - log p) under samples of p: unbiased too, and never negative."""
    difference = reference - logp
    return difference.expm1() - difference


def whiten(x: Tensor, counts: Tensor) -> Tensor:
    """Shift and scale so that the counted positions have mean 0 and variance 1; 0 elsewhere."""
    seen = x[counts]
    scaled = (x - seen.mean()) / (seen.std(correction=0) + 1e-8)
    return torch.where(counts, scaled, 0.0)


def gae(rewards: Tensor, values: Tensor, counts: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of answers that end where `counts` ends: (B, T), (B, T); 0 where it is False.

    Schulman et al. 2016, arXiv:1506.02438. values[t] estimates what is still to come before token t is chosen; after
    the last token nothing comes. Counted positions must be contiguous in each row.
    """
    advantages = torch.zeros_like(rewards)
    running = next_value = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        here = counts[:, t]
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(here, surprise + gamma * lam * running, 0.0)
        next_value = torch.where(here, values[:, t], 0.0)
        advantages[:, t] = running
    return advantages, torch.where(counts, advantages + values, 0.0)


def ppo_policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, counts: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate and the share of tokens on which the clip binds (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    ratio = (logp - old_logp).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return masked_mean(torch.maximum(free, clipped), counts), masked_mean((clipped > free).float(), counts)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, counts: Tensor, clip_range: float) -> Tensor:
    """Half the squared error, of the value or of the value clipped around its old estimate, whichever is worse."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), counts)
