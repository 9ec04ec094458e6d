"""The leaf maths of learning from preferences: what a reward model, a cost model and direct methods minimise.

Notation: B pairs or rankings, K answers of a ranking, N answers. Every loss is given for each row; the mean is the caller's.
`chosen` and `rejected` (B,) are scores (reward models) or, in the direct methods, log pi(y|x) - log pi_ref(y|x) of the two answers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# ---------------------------------------------------------------- scalar models


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log P(chosen beats rejected by `margin`), P the sigmoid of the lead: (B,).

    Bradley and Terry 1952; as a reward model's loss in Ouyang et al. 2022, arXiv:2203.02155, eq. 1; with a margin in Touvron et al. 2023,
    arXiv:2307.09288, eq. 2.
    """
    return -logsigmoid(chosen - rejected - margin)


def plackett_luce(scores: Tensor, ranks: Tensor) -> Tensor:
    """-log likelihood of whole rankings: scores (B, K), ranks (B, K) with 1 the best and 0 where there is no answer -> (B,).

    The best is chosen among all, the second among the others, and so on (Luce 1959; Plackett 1975). Two answers are Bradley-Terry. Answers of
    equal rank do not compete: each is chosen among itself and all that are worse.
    """
    counts = ranks > 0
    beaten = counts[:, None, :] & (ranks[:, None, :] > ranks[:, :, None])  # (B, K, K): True where k is worse than i
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    field = torch.where(beaten | itself, scores[:, None, :], -torch.inf).logsumexp(-1)  # (B, K)
    return torch.where(counts, field - scores, 0.0).sum(1)


def centring(scores: Tensor, counts: Tensor) -> Tensor:
    """Four times the squared mean of the scores that count: (B, K) -> (B,). Of a pair this is (chosen + rejected)^2.

    Eisenstein et al. 2023, arXiv:2312.09244, section 3.1: it decides what pairs leave open, the zero of the scores.
    """
    return 4 * (torch.where(counts, scores, 0.0).sum(1) / counts.sum(1)).square()


def cost_loss(worse: Tensor, safer: Tensor, worse_is_unsafe: Tensor, safer_is_unsafe: Tensor) -> Tensor:
    """The worse answer costs more, an unsafe one costs more than 0 and a safe one less: (B,).

    Dai et al. 2023 (Safe RLHF), arXiv:2310.12773, eq. 6: -log s(w - l) - log s(+-w) - log s(+-l), s the sigmoid, + where an answer is unsafe.
    """
    signed = [torch.where(unsafe, cost, -cost) for cost, unsafe in ((worse, worse_is_unsafe), (safer, safer_is_unsafe))]
    return -logsigmoid(worse - safer) - logsigmoid(signed[0]) - logsigmoid(signed[1])


# ---------------------------------------------------------------- direct methods


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log P(chosen beats rejected) under the reward beta * log ratio: (B,). Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

    `label_smoothing`: the chance that the pair is the wrong way round (conservative DPO, Mitchell 2023).
    """
    lead = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(lead) - label_smoothing * logsigmoid(-lead)


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Squared distance of the lead from 1 / (2 beta): (B,). Azar et al. 2023, arXiv:2310.12036, eq. 17, tau = beta.

    The log ratios are to be means over an answer's tokens, which its authors advise, since a sum's target would depend on length.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def kto_loss(log_ratios: Tensor, desirable: Tensor, kl: Tensor, beta: float) -> Tensor:
    """One minus the Kahneman-Tversky value of each answer: log ratios (N,), desirable (N,) True where people liked it -> (N,).

    Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8, both weights 1. `kl`: the reference point, an estimate of the KL from the reference; it carries no gradient.
    """
    lead = beta * (log_ratios - kl.detach().clamp(min=0))
    return 1 - torch.where(desirable, lead, -lead).sigmoid()


def orpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log p of the chosen answer, and beta times -log sigmoid of the log odds ratio: (B,). Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.

    Here `chosen` and `rejected` are mean log-probabilities of an answer's tokens, below 0, with no reference.
    """
    return -chosen - beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp), logp <= 0, exact near both ends."""
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-7)))
