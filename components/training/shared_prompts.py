"""Answers to the same prompt, laid out so that the prompt is computed once: in GRPO with groups of 8 a prompt would otherwise be read eight times in each pass.

Notation: B answers of at most A tokens, G different prompts of at most P. A layout is one row of N = G * P + B * A tokens: the prompts, each padded on the right to P,
then the answers, each padded to A. All of a block but its attention works on single tokens and does not care; attention is told apart here: a prompt sees itself,
an answer sees its prompt and itself. The numbers are those of whole rows, within rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

WORTH = 0.85  # of the tokens of whole rows: above, joining keys costs what is saved


class SharedPrompts(NamedTuple):
    """A layout of answers and what they share."""

    ids: Tensor
    """(1, N)"""
    positions: Tensor
    """(1, N) counted from the beginning of each text."""
    shape: tuple[int, int, int, int]
    """G, P, B, A."""
    place: Tensor
    """(B,) which prompt an answer belongs to."""
    mask: Tensor
    """(1 or B, 1, A, P + A) True where an answer's token may look: its prompt, then itself."""
    says: Tensor
    """(n,) where in N the token stands after which each of the n answer tokens is said, answer by answer."""


def share(ids: Tensor, counts: Tensor) -> SharedPrompts | None:
    """From rows padded on the right and a mask that is True on their answers, both (B, T); None where little is shared.

    What stands before an answer is its prompt. Answers must be contiguous and not empty.
    """
    B, T = ids.shape
    column = torch.arange(T, device=ids.device)
    known, new = counts.int().argmax(1), counts.sum(1)  # (B,) tokens of prompt and answer
    P, A = int(known.max()), int(new.max())
    prompts, place = torch.unique(ids[:, :P].masked_fill(column[:P] >= known[:, None], -1), dim=0, return_inverse=True)  # (G, P), (B,)
    G = len(prompts)
    if G * P + B * A > WORTH * B * T:
        return None
    lengths = (prompts >= 0).sum(1)  # (G,)
    own = torch.arange(A, device=ids.device)
    answers = torch.where(own < new[:, None], ids.gather(1, (known[:, None] + own).clamp(max=T - 1)), 0)
    sees_prompt = column[:P] < known[:, None] if (lengths < P).any() else torch.ones(1, P, dtype=torch.bool, device=ids.device)  # (B or 1, P)
    sees_own = own[:, None] >= own  # (A, A)
    mask = torch.cat([sees_prompt[:, None].expand(-1, A, -1), sees_own.expand(len(sees_prompt), -1, -1)], 2)[:, None]
    first = place * P + known - 1  # (B,) the last token of the prompt says the first of the answer
    says = torch.cat([first[:, None], G * P + torch.arange(B, device=ids.device)[:, None] * A + own[:-1]], 1)  # (B, A)
    return SharedPrompts(
        ids=torch.cat([prompts.clamp(min=0).flatten(), answers.flatten()])[None],
        positions=torch.cat([column[:P].repeat(G), (known[:, None] + own).clamp(max=T - 1).flatten()])[None],
        shape=(G, P, B, A),
        place=place,
        mask=mask,
        says=says[own < new[:, None]],
    )


def attend(query: Tensor, key: Tensor, value: Tensor, shared: SharedPrompts, scale: float) -> Tensor:
    """Causal attention within each text: (1, H, N, D), twice (1, K, N, D) -> (1, H, N, D)."""
    G, P, B, A = shared.shape
    grouped = query.shape[1] != key.shape[1]
    parts = (x.split([G * P, B * A], 2) for x in (query, key, value))
    theirs, mine = zip(*((_texts(prompts, G), _texts(answers, B)) for prompts, answers in parts), strict=True)  # (G, ., P, D), (B, ., A, D)
    of_prompts = scaled_dot_product_attention(*theirs, is_causal=True, scale=scale, enable_gqa=grouped)
    keys, values = (torch.cat([prompt.index_select(0, shared.place), answer], 2) for prompt, answer in zip(theirs[1:], mine[1:], strict=True))  # (B, K, P + A, D)
    of_answers = scaled_dot_product_attention(mine[0], keys, values, attn_mask=shared.mask, scale=scale, enable_gqa=grouped)
    return torch.cat([x.transpose(0, 1).flatten(1, 2) for x in (of_prompts, of_answers)], 1)[None]


def _texts(x: Tensor, texts: int) -> Tensor:
    """(1, H, texts * L, D) -> (texts, H, L, D)."""
    return x[0].unflatten(1, (texts, -1)).transpose(0, 1)
