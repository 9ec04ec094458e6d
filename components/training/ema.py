"""Exponential moving average of the weights, kept beside the optimizer's moments.

    decay_t = min(decay, (1 + t) / (10 + t)),   average = decay_t * average + (1 - decay_t) * weights

with t the steps averaged before; the first step's weights are the first average. The warm-up is that of
tf.train.ExponentialMovingAverage(num_updates=t), without which early weights would last 1 / (1 - decay) steps.

The average of a parameter stands in the optimizer's state of that parameter. So it is in every checkpoint, is cut over
processes exactly as the moments are (FSDP2), and follows steps that were taken: not micro-batches, not steps left out, not those
that fp16's loss scaler refused. torch.optim.swa_utils.AveragedModel does not serve: it is a second module with parameters of
its own, which DDP, FSDP2 and the optimizer would take for the model's; its rule for averaging (`get_ema_multi_avg_fn`) does.

Weights are fp32 whatever the precision of the products, and the average is of their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGE, STEPS = "average", "averaged_steps"


def attach(optimizer: Optimizer, decay: float) -> None:
    """Keep an average from now on: it is updated after every step that the optimizer takes."""
    for group in optimizer.param_groups:
        group[STEPS] = 0  # in the groups, so that it is in the optimizer's state_dict
    optimizer.register_step_post_hook(lambda taken, args, kwargs: _update(taken, decay))


def decay_at(decay: float, t: int) -> float:
    """The decay of the update that follows t others."""
    return min(decay, (1 + t) / (10 + t))


@torch.no_grad()
def _update(optimizer: Optimizer, decay: float) -> None:
    if all(p.grad is None for p in _parameters(optimizer)):  # the step was left out
        return
    t = optimizer.param_groups[0][STEPS]
    trained = [p for p in _parameters(optimizer) if optimizer.state.get(p)]  # has moments: a state that is not empty would keep AdamW from making them
    followed = [p for p in trained if AVERAGE in optimizer.state[p]]
    if followed:
        get_ema_multi_avg_fn(decay_at(decay, t))([optimizer.state[p][AVERAGE] for p in followed], followed, t)
    for p in trained:
        if AVERAGE not in optimizer.state[p]:
            optimizer.state[p][AVERAGE] = p.detach().clone()
    for group in optimizer.param_groups:
        group[STEPS] = t + 1


def averages(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Each parameter that has an average, and the average; none before the first step."""
    return [(p, optimizer.state[p][AVERAGE]) for p in _parameters(optimizer) if AVERAGE in optimizer.state.get(p, {})]


@contextmanager
def swapped(optimizer: Optimizer, module: nn.Module) -> Iterator[None]:
    """The module with the averages as its weights, to measure or save it; afterwards every bit is where it was. Do not train inside."""
    _swap(optimizer, module)
    try:
        yield
    finally:
        _swap(optimizer, module)


@torch.no_grad()
def _swap(optimizer: Optimizer, module: nn.Module) -> None:
    for p, average in averages(optimizer):
        kept = p.detach().clone()
        p.copy_(average)
        average.copy_(kept)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # else weights gathered before the swap would be used after it


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]
