"""Heads on a language model: logits where they are wanted, one score per text, one value per token.

The scalar model is transformers' own `AutoModelForSequenceClassification(num_labels=1)`. Read at the last token it is
a reward model; read at every token it is PPO's value function. So a reward model's folder starts either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from components.models.build import load_as


def logits_at(model: PreTrainedModel, counts: Tensor, **inputs: Tensor) -> Tensor:
    """Logits of the positions where `counts` (B, T) is True, in row-major order: (N, V).

    The rows to keep are picked in front of the output layer, whose matrix product is the largest of a small model, and
    whatever the architecture does behind it (scaling, soft caps) still happens. `use_cache=False` is not a detail:
    with a cache transformers ignores that position_ids start anew, and packed texts read each other.
    """

    def pick(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][counts], *args[1:])  # (B, T, H) -> (N, H)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


def scalar_model_from(folder: Path, seed: int) -> PreTrainedModel:
    """A scalar model whose trunk is the language model in `folder`; the head is new unless the folder has one. Errors: BadInput."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_as(AutoModelForSequenceClassification, folder, may_be_new=("score.",), num_labels=1)


def scores(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Score of each text, read at its last token that is not padding: (B,). `ids` (B, T) is padded on the right.

    No attention mask is needed: attention is causal, so no token of a text sees the padding behind it.
    """
    return model(input_ids=ids, use_cache=False).logits.squeeze(-1)


def values(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The scalar head read at every token: (B, T). `ids` is padded on the right."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    return model.score(hidden).squeeze(-1)
