"""How pretraining, SFT and reward model change their weights: optimizer, schedule, clipping, and what guards them.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), or Muon for the matrices of the blocks (muon.py); schedules.py says how the
learning rate goes, spikes.py which steps are left out, ema.py how weights are averaged.

Only matrices decay; norms, biases and other vectors do not. Nor does an input embedding that is not the output layer as well: each
step shrinks the rows of all words, also of those that did not occur, and small embeddings make large gradients (OLMo 2,
arXiv:2501.00656, section 3; Takase et al. 2023, arXiv:2312.16903). Nor does Mamba's A_log, as in its authors' code.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from components.schema.config import BadInput
from components.schema.training import OptimConfig
from components.training import ema
from components.training.muon import MuonWithAdamW, hidden_matrices
from components.training.schedules import share
from components.training.spikes import Spikes


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with decay and those without; a group that would be empty is left out."""
    decaying = _decaying(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p in decaying], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _decaying(module: nn.Module) -> set[nn.Parameter]:
    """Matrices that do not only look words up."""
    return {
        parameter
        for owner in module.modules()
        if not isinstance(owner, nn.Embedding)  # a tied one is found again at the output layer
        for name, parameter in owner.named_parameters(recurse=False)
        if parameter.ndim >= 2 and not name.endswith(("bias", "A_log"))
    }


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of a module's trainable parameters, at peak learning rates; AdamW's groups come first. Errors: BadInput."""
    groups = parameter_groups(module, config.weight_decay)
    adamw = {"lr": config.learning_rate, "betas": config.betas, "fused": config.precision != "fp16"}  # a fused one unscales for itself, after clipping
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    matrices = hidden_matrices(module)
    if not matrices:
        raise BadInput("training: optimizer=muon is for the matrices of a model's blocks, and this model has none that it knows and may train, so it would do nothing. Use optimizer=adamw")
    others = [{**group, "params": [p for p in group["params"] if p not in set(matrices)]} for group in groups]
    muon = {"lr": config.muon_learning_rate, "momentum": config.muon_momentum, "weight_decay": config.weight_decay}
    return MuonWithAdamW([group for group in others if group["params"]] or [{"params": []}], matrices, adamw=adamw, muon=muon)


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, whichever process holds which part of them: a scalar, the same on all."""
    norm = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class OptimizedModule(LightningModule):
    """A LightningModule that trains as its OptimConfig says.

    Logs grad_norm (before clipping), lr, steps_left_out and, at the steps that are logged, parameter_norm. All is done once in an optimizer step,
    whatever number of micro-batches it has.
    """

    def __init__(self, config: OptimConfig) -> None:
        super().__init__()
        self.config = config
        self.spikes = Spikes(config.skip_spikes)
        self.step_taken = True
        """Whether the last step changed the weights."""
        self._optimizer: Optimizer | None = None

    def configure_optimizers(self) -> dict[str, Any]:
        self._optimizer = make_optimizer(self, self.config)
        if self.config.ema_decay is not None:
            ema.attach(self._optimizer, self.config.ema_decay)
        schedule = LambdaLR(self._optimizer, lambda step: share(self.config, step))
        return {"optimizer": self._optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clip by global norm, or leave the step out: without gradients an optimizer changes neither weights nor moments."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = global_norm([p.grad for p in parameters])
        if self._scaler_judges(norm):
            self.step_taken = False
        else:
            self.step_taken = self.spikes.accepts(norm.item())
            if self.step_taken:
                nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip_norm, norm)
            else:
                self.zero_grad(set_to_none=True)
        self._log(norm, optimizer)

    def _scaler_judges(self, norm: Tensor) -> bool:
        """Whether the norm is no number and fp16's loss scaler, which lowers its scale and leaves the step out, is there to see it."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None and not norm.isfinite().item()

    def _log(self, norm: Tensor, optimizer: Optimizer) -> None:
        self.log_dict({"grad_norm": norm, "lr": optimizer.param_groups[0]["lr"], "steps_left_out": float(self.spikes.left_out)})
        every = self.trainer.log_every_n_steps
        if every and (self.trainer.global_step + 1) % every == 0:  # a step that reaches the loggers
            self.log("parameter_norm", global_norm([p.detach() for p in self.parameters() if p.requires_grad]))

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the weights are their averages, to measure or save them; without ema_decay they are the weights themselves."""
        return nullcontext() if self._optimizer is None else ema.swapped(self._optimizer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spikes"] = self.spikes.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.spikes.load(checkpoint["spikes"])

    def take_over(self, checkpoint: dict[str, Any]) -> None:
        """Weights, averages and memory of an unsharded checkpoint, where nothing is left to train and so no Trainer loads it."""
        self.load_state_dict(checkpoint["state_dict"])
        self.on_load_checkpoint(checkpoint)
        self.configure_optimizers()["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
