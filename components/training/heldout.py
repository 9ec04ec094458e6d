"""What a model makes of text that it never saw: nats a token, bits a byte, masked tokens restored; of all of it and of each domain.

Bits per byte is the measure that does not depend on the tokenizer: mean nats per held-out token, times tokens per byte of the
held-out file, over ln 2. The mean is over sequences spread evenly over the file, the same at every look; the tokens per byte are the
whole file's (tokens.json), so only the mean carries noise: its standard error is given.

An encoder's measure is the loss of the tokens that are masked, always the same ones, and the share of them that it restores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from components.schema.config import BadInput
from components.training import fast
from components.training import tokens as token_files
from components.training.masking import IGNORED
from components.training.tokens import TokenFile

Masking = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (B, T) -> inputs and labels (B, T)


class Heldout:
    """The held-out text of a dataset, and how a model is measured on it."""

    def __init__(self, tokens: Path, length: int, vocab_size: int, sequences: int, at_once: int, masking: Masking | None = None) -> None:
        """`masking`: how the tokens that an encoder is asked for are chosen; None for a causal model. Errors: BadInput."""
        self.file = token_files.heldout(tokens, length, vocab_size)
        domains = token_files.heldout_by_domain(tokens, length, vocab_size)
        self.domains = domains if len(domains) > 1 else {}
        self.sequences, self.at_once, self.masking = sequences, at_once, masking
        report = token_files.read_report(tokens)
        self.bits = {"": _bits_a_nat(report, tokens), **{name: _bits_a_nat(report["domains"][name], tokens) for name in self.domains}}

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """{"heldout_loss", "bits_per_byte" or "masked_accuracy", each with its _stderr}, and the losses again by domain where there are several."""
        whole = self._measure(model, self.file, self.bits[""])
        each = {name: self._measure(model, file, self.bits[name]) for name, file in self.domains.items()}
        return {**whole, **({"by_domain": each} if each else {})}

    def look(self, model: PreTrainedModel) -> dict[str, float]:
        """The same as one flat set of numbers, without standard errors: what a logger keeps during training."""
        found = self.measure(model)
        each = {f"{name}/{domain}": value for domain, numbers in found.pop("by_domain", {}).items() for name, value in numbers.items()}
        return {name: value for name, value in {**found, **each}.items() if "_stderr" not in name}

    @torch.no_grad()
    def _measure(self, model: PreTrainedModel, file: TokenFile, bits: float) -> dict[str, float]:
        training = model.training
        model.eval()
        indices = file.spread(self.sequences)
        found = [self._of(model, file.rows(indices[i : i + self.at_once])) for i in range(0, len(indices), self.at_once)]
        model.train(training)
        loss, loss_stderr = _mean(torch.cat([losses for losses, _ in found]))
        if self.masking is None:
            return {"heldout_loss": loss, "heldout_loss_stderr": loss_stderr, "bits_per_byte": loss * bits, "bits_per_byte_stderr": loss_stderr * bits}
        accuracy, stderr = _mean(torch.cat([right for _, right in found]))
        return {"heldout_loss": loss, "heldout_loss_stderr": loss_stderr, "masked_accuracy": accuracy, "masked_accuracy_stderr": stderr}

    def _of(self, model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean nats of each row and the share of its masked tokens that were restored: rows (B, T + 1) -> (B,), (B,)."""
        if self.masking is None:
            losses = fast.next_token_losses(model, rows[:, :-1].to(model.device), rows[:, 1:].to(model.device)).mean(1)
            return losses.double().cpu(), torch.zeros(0)
        inputs, labels = (part.to(model.device) for part in self.masking(rows[:, :-1]))
        logits = model(input_ids=inputs).logits
        asked = (labels != IGNORED).sum(1).clamp(min=1)
        nats = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none").view(labels.shape)
        right = ((logits.argmax(-1) == labels) & (labels != IGNORED)).sum(1)
        return (nats.sum(1) / asked).double().cpu(), (right / asked).double().cpu()


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error over sequences."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _bits_a_nat(counts: dict[str, Any], tokens: Path) -> float:
    """Bits per byte of one nat per token. Errors: BadInput."""
    try:
        return counts["heldout_tokens"] / counts["heldout_bytes"] / math.log(2)
    except (KeyError, ZeroDivisionError) as error:
        raise BadInput(f"pretrain: {tokens / 'tokens.json'} does not say how many held-out tokens and bytes there are ({error!r}), so bits per byte are unknown. Make the tokens again") from None
