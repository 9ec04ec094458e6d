"""Which weights change: all of them, those whose names match a pattern, or low-rank adapters beside frozen ones.

    training = only(model, r"layers\.[45]\.|norm")              # the last two blocks and the norms
    training = adapt(model, LoraConfig(rank=8), seed)            # LoRA (Hu et al. 2021, arXiv:2106.09685), by peft
    training = choose(model, SFTConfig(...), seed)               # as a recipe says; everything where it says nothing
    for line in training.lines(): print(line)                    # trains 12,288 of 1,400,000 parameters (0.88 %): ...
    training.merge()                                             # adapters become part of the weights; the model is plain again

A model with adapters is the same object of the same class, with other modules inside. `merge` leaves neither peft nor a trace of it, so what
is saved is a checkpoint like any other.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import torch
from peft import LoraConfig as PeftLora
from peft.tuners.lora import LoraModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from components.schema.config import BadInput
from components.schema.posttraining import LoraConfig, SFTConfig

ALL_LINEAR = "all-linear"
SHOWN = 8


@dataclass
class Training:
    """What of a model trains."""

    model: PreTrainedModel
    adapters: LoraModel | None = None

    @property
    def trained(self) -> int:
        """Parameters that change."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def total(self) -> int:
        """Parameters of the model; adapters, which will be merged, are not among them."""
        return sum(p.numel() for name, p in self.model.named_parameters() if not _is_adapter(name))

    def lines(self) -> list[str]:
        """What trains, for a person: how many parameters, and which, those of all blocks in one line."""
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        told = [f"trains {self.trained:,} of {self.total:,} parameters ({self.trained / self.total:.2%}), {len(names)} tensors"]
        if self.trained < self.total:
            shown = [re.sub(r"\.lora_A\..*", ", its adapter", name) for name in names if ".lora_B" not in name]
            alike = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in shown)
            told += [f"  {name}" + (f" (of {count} blocks)" if count > 1 else "") for name, count in list(alike.items())[:SHOWN]]
            told += [f"  and {len(alike) - SHOWN} more"] if len(alike) > SHOWN else []
        return told

    def figures(self) -> dict[str, int]:
        """For the record."""
        return {"trainable_parameters": self.trained, "parameters": self.total}

    def merge(self) -> None:
        """W + (alpha / rank) B A takes the place of W; without adapters nothing happens. Once only."""
        if self.adapters is not None:
            self.adapters.merge_and_unload(progressbar=False)
            self.adapters = None
        self.model.requires_grad_(True)


def choose(model: PreTrainedModel, config: SFTConfig, seed: int, also: tuple[str, ...] = ()) -> Training:
    """What the recipe asks for; parameters whose names begin with one of `also` (a new head) train in any case. Errors: BadInput."""
    if config.lora:
        return adapt(model, config.lora, seed, also)
    if config.train_layers:
        return only(model, config.train_layers, also)
    return Training(model.requires_grad_(True))


def only(model: PreTrainedModel, pattern: str, also: tuple[str, ...] = ()) -> Training:
    """Parameters in whose names `pattern` is found train, and those whose names begin with one of `also`. Errors: BadInput where none or an impossible pattern."""
    names = [name for name, _ in model.named_parameters()]
    found = {name for name in _matching("train_layers", pattern, names)} | {name for name in names if name.startswith(also or ("\0",))}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in found)
    return Training(model)


def adapt(model: PreTrainedModel, config: LoraConfig, seed: int, also: tuple[str, ...] = ()) -> Training:
    """Adapters beside the linear layers that `config.layers` names, A from the seed and B zero, so that the model says what it said; the rest is frozen,
    but for parameters whose names begin with one of `also`. Errors: BadInput where no layer is named, or one that takes no adapter."""
    layers = linear_layers(model)
    chosen = layers if config.layers == ALL_LINEAR else _matching("lora.layers", config.layers, layers)
    if not chosen:
        raise BadInput(f"lora: architecture {model.config.model_type!r} has no linear layers in its blocks, so adapters have no place. Leave lora out, or use train_layers")
    asked = PeftLora(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=chosen,
        fan_in_fan_out=isinstance(model.get_submodule(chosen[0]), Conv1D),
    )  # fmt: skip
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapters = LoraModel(model, asked, "default")
        except (ValueError, TypeError) as error:
            raise BadInput(f"lora: {error}. Name other layers in lora.layers, or leave lora out") from None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or name.startswith(also or ("\0",)))
    model.train(training)
    return Training(model, adapters)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the blocks: what lies in a list of modules."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))]


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _matching(what: str, pattern: str, names: list[str]) -> list[str]:
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise BadInput(f"{what}: {pattern!r} is no regular expression ({error}), so it chooses nothing. Correct it") from None
    if not found:
        raise BadInput(f"{what}: {pattern!r} is found in none of {len(names)} names, so nothing would train. They are like {', '.join(names[:3])}, ..., {names[-1]}")
    return found
