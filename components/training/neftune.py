"""NEFTune: uniform noise on the input embeddings while fine-tuning (Jain et al. 2023, arXiv:2310.05914).

    with noisy(model, 5.0, position_ids, seeds):
        loss = ...

Departure from the paper's code: a text's noise depends on its own length, so that texts packed into one row have the noise that they would have
alone; and a row's noise follows from a seed of its own, so that micro-batches and processes change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.training.seeds import mixed_seed


def row_seeds(seed: int, step: int, rows: int) -> Tensor:
    """A seed for each row of a step's batch: (rows,)."""
    return torch.tensor([mixed_seed(seed, step, row) for row in range(rows)])


@contextmanager
def noisy(model: PreTrainedModel, alpha: float, position_ids: Tensor, seeds: Tensor | None) -> Iterator[None]:
    """Inside, the input embeddings carry uniform noise between -a and a, a = alpha / sqrt(tokens * width), tokens of the text itself.

    Only in training mode. position_ids (B, T) start anew at each text; seeds (B,), None = no noise.
    """
    if not alpha or seeds is None:
        yield
        return

    def add(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        if not module.training:  # a look aside, in the middle of a step
            return embedded
        size = alpha / (own_lengths(position_ids) * embedded.shape[-1]).sqrt()  # (B, T)
        return embedded + size[..., None].to(embedded.dtype) * _uniform(seeds, embedded)

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def own_lengths(position_ids: Tensor) -> Tensor:
    """For each token the length of its text: (B, T) -> (B, T)."""
    number = (position_ids == 0).cumsum(1) - 1
    return torch.zeros_like(position_ids).scatter_add_(1, number, torch.ones_like(position_ids)).gather(1, number)


def _uniform(seeds: Tensor, like: Tensor) -> Tensor:
    """Between -1 and 1, each row from its seed: (B, T, D)."""
    generator, noise = torch.Generator(like.device), torch.empty_like(like)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.uniform_(-1, 1, generator=generator.manual_seed(seed))
    return noise
