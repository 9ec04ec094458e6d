"""A mixture of experts keeps its experts equally busy by a loss of its own, which training has to ask for.

transformers adds it only to the loss that it computes itself. We compute ours, so the router's logits are asked for
(`asked`) and their loss is added (`router_loss`):

    output = model.base_model(input_ids=ids, use_cache=False, **asked(model))
    loss = cross_entropy + router_loss(model, output.router_logits)

Fedus et al. 2021 (Switch, arXiv:2101.03961, equations 4 to 6), with several experts for each token as in Mixtral: E x sum over experts of
(share of tokens sent there) x (mean probability), over the tokens of all blocks together; it is `experts per token` where all are equally busy.
E = experts, k = experts that read a token, N = tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.models.architectures import AUXILIARY_COEFFICIENTS, experts_per_token, first_of


def is_balanced_by_loss(model: PreTrainedModel) -> bool:
    """Whether it is a mixture of experts whose architecture has such a loss (DeepSeek-V3, for one, has none)."""
    return bool(experts_per_token(model.config)) and first_of(model.config, AUXILIARY_COEFFICIENTS) is not None


def asked(model: PreTrainedModel) -> dict[str, bool]:
    """What a forward pass has to be given so that its output holds router_logits; nothing for a dense model."""
    return {"output_router_logits": True} if is_balanced_by_loss(model) else {}


def router_loss(model: PreTrainedModel, router_logits: Sequence[Tensor | None], counts: Tensor | None = None) -> Tensor:
    """The architecture's coefficient times its balance, to be added to the mean loss of a token.

    router_logits: one (N, E) for each block. counts (B, T): True where a token counts; None = all.
    """
    coefficient = getattr(model.config, first_of(model.config, AUXILIARY_COEFFICIENTS))
    return coefficient * balance(router_logits, experts_per_token(model.config), counts)


def balance(router_logits: Sequence[Tensor | None], per_token: int, counts: Tensor | None = None) -> Tensor:
    """E x sum_e f_e P_e; at least k where routing follows the probabilities, and k where every expert is equally busy."""
    blocks = [block.flatten(0, -2) for block in router_logits if block is not None]
    keep = slice(None) if counts is None else counts.flatten()
    logits = torch.cat([block[keep] for block in blocks]).float()  # (blocks x N, E)
    probabilities = logits.softmax(-1)
    chosen = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(per_token, dim=-1).indices, 1.0)
    return logits.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()
