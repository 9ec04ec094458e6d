"""A small Llama under Lightning, for tests of the optimiser: batches are given by hand, losses are means."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import LlamaConfig, LlamaForCausalLM

from components.schema.training import OptimConfig
from components.training.optim import OptimizedModule

VOCABULARY, LENGTH = 40, 9


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


class Small(OptimizedModule):
    """Next-token loss of rows (B, T + 1), times a weight that stands in a batch's second place, if there is one."""

    def __init__(self, config: OptimConfig) -> None:
        super().__init__(config)
        self.model = llama()
        self.norms: list[float] = []
        self.taken: list[bool] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        rows, weight = batch if isinstance(batch, list | tuple) else (batch, 1.0)
        logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits
        return weight * cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def _log(self, norm: Tensor, optimizer: Any) -> None:
        super()._log(norm, optimizer)
        self.norms.append(norm.item())
        self.taken.append(self.step_taken)


def rows(seed: int, count: int = 8) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def config(steps: int = 6, **changes: Any) -> OptimConfig:
    plain = {"batch_size": 8, "learning_rate": 1e-2, "muon_learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}
    return OptimConfig(**{"steps": steps, **plain, **changes})


class From(Sampler):
    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.total))


def train(module: Small, batches: Sequence[Any], folder: Path, *, resume: Path | None = None, first: int = 0, accumulate: int = 1, **trainer: Any) -> Trainer:
    """Train on batches[first:], of which those before `first` were seen before `resume` was saved."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = Trainer(
            accelerator="cpu", devices=1, max_epochs=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accumulate_grad_batches=accumulate, default_root_dir=folder, **{"logger": False, **trainer},
        )  # fmt: skip
        lightning.fit(module, DataLoader(list(batches), batch_size=None, sampler=From(first, len(batches))), ckpt_path=resume, weights_only=True)
    return lightning


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of dicts, lists and tensors are the same to the bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
