"""How far numbers for two answers agree with the people who compared them: accuracy, calibration, length bias, by source.

Notation: chosen and rejected (pairs,), in double precision: scores, or implicit rewards of a policy. P(chosen is better) = sigmoid of their difference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from components.training.pairs import Pair
from components.training.preference_losses import bradley_terry

BINS = 10


def compare(chosen: Tensor, rejected: Tensor, groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """Share of pairs in which the chosen side is higher (a tie counts half), its standard error, the mean margin and the Bradley-Terry loss.

    `groups`: pairs of one group (one prompt) are no independent evidence; the error is then that of a mean over clusters.
    """
    right = wins(chosen, rejected)
    accuracy = right.mean().item()
    return {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / len(right)) if groups is None else clustered_stderr(right, groups),
        "mean_margin": (chosen - rejected).mean().item(),
        "heldout_loss": bradley_terry(chosen, rejected).mean().item(),
    }


def wins(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen side is higher, a half where both are equal: (pairs,)."""
    return (chosen > rejected).double() + 0.5 * (chosen == rejected).double()


def clustered_stderr(x: Tensor, groups: Sequence[Hashable]) -> float:
    """Standard error of the mean of x (n,) when only groups are independent (Liang and Zeger 1986); each its own group: the usual one."""
    sums: dict[Hashable, float] = defaultdict(float)
    for group, residual in zip(groups, (x - x.mean()).tolist(), strict=True):
        sums[group] += residual
    return math.sqrt(sum(s * s for s in sums.values())) / len(x)


def calibration(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """Whether it is right as often as it says: the mean confidence, and its distance from the accuracy over ten bins of equally many pairs
    (expected calibration error, Guo et al. 2017, arXiv:1706.04599; its bins have equal width). Confidence: the probability of the side that it prefers.
    """
    right = wins(chosen, rejected)
    confidence = (chosen - rejected).abs().sigmoid()
    order = confidence.argsort(stable=True)
    bins = [
        {"confidence": confidence[part].mean().item(), "accuracy": right[part].mean().item(), "pairs": len(part)}
        for part in order.tensor_split(min(BINS, len(order)))
    ]
    error = sum(abs(one["confidence"] - one["accuracy"]) * one["pairs"] for one in bins) / len(right)
    return {"error": error, "confidence": confidence.mean().item(), "bins": bins}


def length_bias(pairs: Sequence[Pair], chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """How far the score follows length.

    Over pairs whose sides differ in length: how often the longer side scores higher, how often people preferred it, and the accuracy on
    both kinds: a score that only follows length is right on one and wrong on the other. Over all pairs: the correlation of length difference and score difference.
    """
    longer = torch.tensor([len(p.chosen) - len(p.rejected) for p in pairs]).double()
    margin = chosen - rejected
    unequal = longer != 0
    agree = ((longer > 0) == (margin > 0))[unequal]
    spread = longer.std() * margin.std()
    correlation = ((longer - longer.mean()) * (margin - margin.mean())).sum() / (len(pairs) - 1) / spread if len(pairs) > 1 and spread > 0 else torch.tensor(0.0)
    share = lambda x: x.double().mean().item() if len(x) else 0.5  # noqa: E731
    right = wins(chosen, rejected)
    return {
        "longer_scores_higher": share(agree),
        "longer_is_preferred": share((longer > 0)[unequal]),
        "accuracy_where_longer_is_preferred": share(right[longer > 0]),
        "accuracy_where_shorter_is_preferred": share(right[longer < 0]),
        "correlation": correlation.item(),
    }


def length_baseline(train: Sequence[Pair], heldout: Sequence[Pair]) -> float:
    """Accuracy on held-out pairs of always taking the longer side, or always the shorter one, whichever is better on the training pairs; ties count half."""
    lead = lambda pairs: torch.tensor([len(p.chosen) - len(p.rejected) for p in pairs]).double()  # noqa: E731
    sign = 1.0 if wins(lead(train), torch.zeros(len(train))).mean() >= 0.5 else -1.0
    return wins(sign * lead(heldout), torch.zeros(len(heldout))).mean().item()


def by_source(pairs: Sequence[Pair], chosen: Tensor, rejected: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy, calibration and length bias of each kind of pair."""
    kinds = [pair.kind for pair in pairs]
    found = {}
    for kind in sorted(set(kinds)):
        which = [i for i, one in enumerate(kinds) if one == kind]
        own, c, r = [pairs[i] for i in which], chosen[which], rejected[which]
        compared, bias = compare(c, r, [pair.prompt for pair in own]), length_bias(own, c, r)
        found[kind] = {
            "pairs": len(own),
            "accuracy": compared["accuracy"],
            "accuracy_stderr": compared["accuracy_stderr"],
            "calibration_error": calibration(c, r)["error"],
            "longer_scores_higher": bias["longer_scores_higher"],
            "longer_is_preferred": bias["longer_is_preferred"],
        }
    return found
