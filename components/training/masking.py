"""Corruption of text for the masked objective: a pure function of the rows, the seed and the step.

Devlin et al. 2019, arXiv:1810.04805, section 3.1: of the chosen tokens 80 % become the mask, 10 % a token drawn at
random, 10 % stay. Changed: the number of chosen tokens is the fraction of each row's ordinary tokens, rounded, instead of
a coin for each token, so every row asks for about as much; and a random token is never a special one.

Each row of the global batch draws from a generator of its own, from (seed, step, number of the row): how many processes
share the batch does not matter. Notation: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.schema.config import BadInput

MASKED, REPLACED = 0.8, 0.1
IGNORED = -100


def mask(
    rows: Tensor, *, fraction: float, mask_id: int | None, vocab_size: int, special_ids: Sequence[int], seed: int, step: int, first_row: int = 0
) -> tuple[Tensor, Tensor]:
    """Corrupted inputs and labels of rows (B, T) int64: (B, T), (B, T); labels are -100 where nothing is asked.

    `special_ids` (end of text, padding, the mask itself ...) are never chosen and never put in. `first_row` is the number of
    rows[0] in the global batch. A row with ordinary tokens is asked for at least one. Errors: BadInput.
    """
    ids = rows.numpy()
    ordinary = _ordinary(vocab_size, special_ids, mask_id)
    inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
    for r, row in enumerate(ids):
        random = np.random.default_rng([seed, step, first_row + r])
        chosen = _choose(row, special_ids, fraction, random)
        fate = random.random(len(chosen))
        labels[r, chosen] = row[chosen]
        inputs[r, chosen[fate < MASKED]] = mask_id
        replaced = chosen[(fate >= MASKED) & (fate < MASKED + REPLACED)]
        inputs[r, replaced] = random.choice(ordinary, len(replaced))
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def _choose(row: np.ndarray, special_ids: Sequence[int], fraction: float, random: np.random.Generator) -> np.ndarray:
    """Positions that are asked for, without repetition: round(fraction * ordinary tokens) of them."""
    candidates = np.flatnonzero(~np.isin(row, special_ids))
    count = min(len(candidates), max(1, round(fraction * len(candidates))))
    return random.choice(candidates, count, replace=False)


def _ordinary(vocab_size: int, special_ids: Sequence[int], mask_id: int | None) -> np.ndarray:
    """The ids that text is made of. Errors: BadInput where the vocabulary does not serve."""
    if mask_id is None:
        raise BadInput("pretrain: objective masked needs a mask token, and the tokenizer has none (mask_token is empty): there is nothing to put in place of a token. Give the tokenizer a mask token")
    if mask_id not in special_ids:
        raise BadInput(f"pretrain: the mask token {mask_id} is not among the special tokens {sorted(special_ids)}: it would be asked for like text. Add it to them")
    ordinary = np.setdiff1d(np.arange(vocab_size), special_ids)
    if not len(ordinary):
        raise BadInput(f"pretrain: all {vocab_size} tokens of the vocabulary are special, so no token can be masked or replaced. Use a tokenizer that has text tokens")
    return ordinary
