"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): Nesterov momentum, whose matrix U S V^T is replaced by about
U V^T (five quintic Newton-Schulz iterations), so that every direction is learnt equally fast. The iterations are torch.optim.Muon's.
Rows and columns of a weight are its outputs and inputs; an update is

    weights <- (1 - lr * weight_decay) * weights - lr * sqrt(max(1, rows / cols)) * U V^T

(torch's "original" scale), so muon_learning_rate is the update's spectral norm (up to that factor, and to the 30 % by which five
iterations leave singular values around 1): it hardly depends on the width, and is not to be compared with AdamW's.

Muon takes the weights of linear layers inside the numbered blocks, and each expert's matrices where a mixture keeps them in one stack
(experts, rows, cols). Embeddings, output and reward heads, routers, convolutions, Mamba's state matrix, norms and biases are AdamW's.
GPT-2 stores its matrices the other way round (Conv1D); there the factor falls on the layers that narrow.

Under FSDP2 momentum is sharded as the weight is, and each matrix is gathered once in a step, for the iterations: torch's own step would
gather it some ten times and sum in bf16 over shards, which makes directions of small singular values differ by the number of processes.
Stacks of experts that are sharded by expert (FSDP2's way) are not gathered at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, _zeropower_via_newtonschulz
from transformers.pytorch_utils import Conv1D


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters that Muon takes: (rows, cols) or (experts, rows, cols) each."""
    return [
        parameter
        for path, owner in module.named_modules()
        if any(part.isdigit() for part in path.split("."))
        for parameter in owner.parameters(recurse=False)
        if parameter.requires_grad and _is_matrix(owner, parameter)
    ]


def _is_matrix(owner: nn.Module, parameter: nn.Parameter) -> bool:
    if isinstance(owner, nn.Linear | Conv1D):
        return parameter.ndim == 2 and min(parameter.shape) > 1
    return parameter.ndim == 3 and type(owner).__name__.endswith("Experts")


class Muon(torch.optim.Muon):
    """torch's Muon (to the bit), for sharded matrices and stacks of them too: parameters (experts, rows, cols) may be added as a group."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momentum, lr = state["momentum_buffer"], group["lr"]
        momentum.lerp_(parameter.grad, 1 - group["momentum"])
        direction = parameter.grad.lerp(momentum, group["momentum"])
        rows, cols = parameter.shape[-2:]
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(orthogonal(direction), alpha=-lr * math.sqrt(max(1, rows / cols)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, or of each in a stack, in bf16; sharded as it came."""
    if isinstance(matrix, DTensor):
        return _orthogonal_sharded(matrix)
    if matrix.ndim == 2:
        return _newton_schulz(matrix)
    return torch.stack([_newton_schulz(one) for one in matrix]) if len(matrix) else matrix


def _orthogonal_sharded(matrix: DTensor) -> DTensor:
    mesh, placements = matrix.device_mesh, matrix.placements
    if matrix.ndim == 3 and not any(isinstance(placement, Shard) and placement.dim for placement in placements):  # whole matrices are here
        return DTensor.from_local(orthogonal(matrix.to_local()), mesh, placements, run_check=False, shape=matrix.shape, stride=matrix.stride())
    return DTensor.from_local(orthogonal(matrix.full_tensor()), mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(placements=placements)


def _newton_schulz(matrix: Tensor) -> Tensor:
    return _zeropower_via_newtonschulz(matrix, (DEFAULT_A, DEFAULT_B, DEFAULT_C), DEFAULT_NS_STEPS, EPS)


class MuonWithAdamW(Optimizer):
    """Muon and AdamW behind the face of one optimizer, for schedulers, checkpoints and precision plugins that want one.

    Its groups are AdamW's followed by Muon's; groups and state are the same objects in all three, so its state_dict is a plain one.
    """

    def __init__(self, others: Sequence[dict[str, Any]], matrices: Sequence[nn.Parameter], *, adamw: dict[str, Any], muon: dict[str, Any]) -> None:
        """`others`: AdamW's parameter groups; `matrices`: Muon's parameters; `adamw`, `muon`: their further arguments."""
        self._adamw = torch.optim.AdamW(others, **adamw)
        self._muon = Muon([p for p in matrices if p.ndim == 2], **muon)
        if stacks := [p for p in matrices if p.ndim == 3]:
            self._muon.add_param_group({"params": stacks})
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self._adamw.param_groups)
        self._adamw.param_groups, self._muon.param_groups = self.param_groups[:count], self.param_groups[count:]
        self._adamw.state = self._muon.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # puts new groups and a new state in place
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._adamw.step()
        self._muon.step()
        return result
