"""The leaf maths of reinforcement learning on answers, in log-probabilities and masks.

Notation: B answers, T tokens. `counts` (B, T) is True where a token is the model's own answer; only those enter a mean. `weights` (B, T) says which
mean is taken: how much each token's term counts, 0 where it does not. A loss is then a sum, so the losses of parts of a batch add up to the batch's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-4  # beside a group's standard deviation: a group whose rewards are equal but for rounding has nothing to teach


def masked_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Mean over the positions that count; whatever stands elsewhere (even nan) does not matter."""
    return x[counts].mean()


def token_weights(counts: Tensor, each: Literal["answer", "batch", "constant"], longest: int = 1) -> Tensor:
    """How much a token's term counts: (B, T), 0 where `counts` is False.

    answer: the mean over an answer's tokens, then over answers (GRPO, Shao et al. 2024, arXiv:2402.03300). batch: the mean over all tokens
    (PPO as usual; DAPO, Yu et al. 2025, arXiv:2503.14476). constant: an answer's sum over `longest`, then the mean over answers (Dr. GRPO, Liu et al. 2025,
    arXiv:2503.20783), so a token weighs the same in a long answer and in a short one.
    """
    if each == "answer":
        return counts / counts.sum(1, keepdim=True).clamp(min=1) / len(counts)
    return counts / (counts.sum().clamp(min=1) if each == "batch" else longest * len(counts))


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum of the terms by their weights; whatever stands where the weight is 0 (even nan) does not matter."""
    return torch.where(weights > 0, x * weights, 0.0).sum()


# ---------------------------------------------------------------- distance


def kl_k1(logp: Tensor, reference: Tensor) -> Tensor:
    """log p - log q under samples of p: unbiased, noisy, negative on some tokens (http://joschu.net/blog/kl-approx.html)."""
    return logp - reference


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """exp(log q - log p) - 1 - (log q - log p) under samples of p: unbiased too, and never negative.

    As a loss its gradient is another thing than as a number: under samples of p it is that of KL(q || p) (Tang and Munos 2025, arXiv:2506.09477).
    """
    difference = reference - logp
    return difference.expm1() - difference


# ---------------------------------------------------------------- advantages


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


def token_rewards(score: Tensor, kl: Tensor, counts: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: minus the price of its KL, plus the answer's score (B,) at its last token: (B, T); 0 elsewhere."""
    is_last = counts & ~counts.roll(-1, dims=1)
    is_last[:, -1] = counts[:, -1]  # what rolls in from column 0 is no successor
    return torch.where(counts, -kl_coef * kl, 0.0) + torch.where(is_last, score.unsqueeze(1), 0.0)


def group_advantages(rewards: Tensor, group_size: int, normalise_by_std: bool) -> Tensor:
    """Reward of each answer minus its group's mean, over the group's standard deviation where asked: (B,). Groups stand together.

    Shao et al. 2024, arXiv:2402.03300; the deviation is the sample's, as TRL has it.
    """
    groups = rewards.view(-1, group_size)
    above = groups - groups.mean(1, keepdim=True)
    return (above / (groups.std(1, keepdim=True) + EPSILON) if normalise_by_std else above).flatten()


def leave_one_out_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Reward of each answer minus the mean of the others of its group: (B,) (Ahmadian et al. 2024, arXiv:2402.14740)."""
    groups = rewards.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


# ---------------------------------------------------------------- losses


def policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, weights: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, and by weight the share of tokens on which the clip binds (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    ratio = (logp - old_logp).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return weighted_sum(torch.maximum(free, clipped), weights), weighted_sum((clipped > free).float(), weights)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, clip_range: float) -> Tensor:
    """Half the squared error, of the value or of the value clipped around its old estimate, whichever is worse."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * weighted_sum(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), weights)
