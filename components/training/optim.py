"""The optimizer of pretraining, SFT and reward model: AdamW, linear warm-up, cosine decay, clipping by global norm.

AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101. Only matrices decay; norms and biases do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from components.schema.training import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with decay, everything else without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate_share(config: OptimConfig, step: int) -> float:
    """Share of the peak learning rate that step number `step` (from 0) uses: warm-up from 1/warmup, then cosine to the minimum."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    low = config.min_learning_rate_ratio
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class OptimizedModule(LightningModule):
    """A LightningModule that trains as its OptimConfig says and logs the gradient's norm before clipping."""

    def __init__(self, config: OptimConfig) -> None:
        super().__init__()
        self.config = config

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(parameter_groups(self, self.config.weight_decay), lr=self.config.learning_rate, betas=self.config.betas, fused=True)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_share(self.config, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.grad_clip_norm)
        self.log_dict({"grad_norm": norm, "lr": optimizer.param_groups[0]["lr"]})
