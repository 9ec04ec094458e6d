"""Which token comes next in each row of a batch: greedy, or sampled at a temperature from the likeliest (top_k; top_p: Holtzman et al. 2020, arXiv:1904.09751).

A row's token is decided by one uniform number (its distribution function inverted, as components/models/generate.py does it), and that number follows from the
request's seed and the token's place alone: an answer does not depend on what else is in the batch, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen."""

    temperature: float = 1.0
    """0 = always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability; 1 = all."""
    top_k: int = 0
    """Only this many of the likeliest tokens; 0 = all."""
    logprobs: int | None = None
    """How many alternatives are told with each token's log-probability; None = nothing is told."""


@dataclass(frozen=True)
class Odds:
    """The log-probability of a chosen token, at temperature 1, and of the likeliest ones."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def chances(seed: int, choice: int) -> np.random.Generator:
    """The uniform numbers of one answer."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, choice], np.uint64)))


def pick(logits: Tensor, how: Sequence[Sampling], uniform: Sequence[float]) -> list[int]:
    """(n, V) -> n tokens."""
    tokens = logits.argmax(-1)
    rows = [row for row, one in enumerate(how) if one.temperature > 0]
    if rows:
        scaled = logits[rows].float() / torch.tensor([how[row].temperature for row in rows], device=logits.device)[:, None]
        reached = _cut(scaled, [how[row] for row in rows]).softmax(-1).cumsum(-1, dtype=torch.float64)  # (m, V)
        at = torch.tensor([uniform[row] for row in rows], dtype=torch.float64, device=logits.device)[:, None] * reached[:, -1:]
        tokens[rows] = torch.searchsorted(reached, at, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens.tolist()


def odds(logits: Tensor, tokens: Sequence[int], how: Sequence[Sampling]) -> list[Odds | None]:
    """(n, V) -> what is told about each row's token; None where nothing was asked."""
    told: list[Odds | None] = [None] * len(tokens)
    rows = [row for row, one in enumerate(how) if one.logprobs is not None]
    if rows:
        shares = logits[rows].float().log_softmax(-1)  # (m, V)
        values, ids = (found.tolist() for found in shares.topk(min(shares.shape[1], max(1, *(how[row].logprobs or 0 for row in rows))), -1))
        for k, row in enumerate(rows):
            count = how[row].logprobs or 0
            told[row] = Odds(float(shares[k, tokens[row]]), tuple(zip(ids[k][:count], values[k][:count], strict=True)))
    return told


def _cut(scaled: Tensor, how: Sequence[Sampling]) -> Tensor:
    """What top_k and top_p leave out becomes impossible: (m, V) -> (m, V)."""
    rows = [row for row, one in enumerate(how) if one.top_p < 1 or one.top_k]
    if not rows:
        return scaled
    ordered, ids = scaled[rows].sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    most = torch.tensor([how[row].top_k or scaled.shape[1] for row in rows], device=scaled.device)
    ordered = ordered.masked_fill(rank >= most[:, None], float("-inf"))
    shares = ordered.softmax(-1, dtype=torch.float64)
    before = shares.cumsum(-1) - shares
    enough = torch.tensor([how[row].top_p for row in rows], dtype=torch.float64, device=scaled.device)
    ordered = ordered.masked_fill((before >= enough[:, None]) & (rank > 0), float("-inf"))
    scaled[rows] = torch.empty_like(ordered).scatter_(1, ids, ordered)
    return scaled
