"""A frozen scalar model that says what answers are worth, or what they cost.

A reward model's scores have an arbitrary zero and unit, so they are given on the scale of `scale.json`, which the stage that trained it wrote: mean and
standard deviation over held-out chosen answers. A cost model's scores mean something as they are, positive where an answer is unsafe, so its scale is 0 and 1.

    judge = load_scorer(folder, seed, device)
    judge(rollout, pad_id)                           # (B,)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.models.heads import scalar_model_from, scores
from components.schema.config import BadInput
from components.training import fast
from components.training.batches import pad_right
from components.training.rollouts import Rollout

SCALE = "scale.json"
FORWARD_ROWS = 64


@dataclass(frozen=True)
class Scorer:
    """A frozen scalar model with its scale."""

    model: PreTrainedModel
    mean: float
    std: float

    def __call__(self, rollout: Rollout, pad_id: int) -> Tensor:
        """Score of each answer, read behind its prompt, on the model's scale: (B,), on the rollout's device."""
        texts = [prompt + answer for prompt, answer in zip(rollout.prompts, rollout.answers, strict=True)]
        return self.texts(texts, pad_id).float().to(rollout.ids.device)

    def texts(self, texts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Score of each whole chat on the model's scale, in double precision on the CPU: (texts,)."""
        return (score_texts(self.model, texts, FORWARD_ROWS, pad_id) - self.mean) / self.std


def load_scorer(folder: Path, seed: int, device: torch.device) -> Scorer:
    """The scalar model in a folder, frozen, with its scale. Errors: BadInput."""
    try:
        scale = json.loads((folder / SCALE).read_text(encoding="utf-8"))
        mean, std = float(scale["mean"]), float(scale["std"])
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean {mean}, std {std}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"scorer: {folder / SCALE} cannot be read ({error!r}), so scores have no scale. Give the folder of a finished reward or cost stage") from None
    model = scalar_model_from(folder, seed).eval().requires_grad_(False).to(device)
    fast.prepare(model)
    return Scorer(model, mean, std)


def write_scale(folder: Path, mean: float = 0.0, std: float = 1.0) -> None:
    """Leave the scale in a scalar model's folder; 0 and 1 leave scores as they are."""
    (folder / SCALE).write_text(json.dumps({"mean": mean, "std": std}) + "\n", encoding="utf-8")


@torch.no_grad()
def score_texts(model: PreTrainedModel, texts: Sequence[Sequence[int]], batch_size: int, pad_id: int) -> Tensor:
    """Score of each text in double precision, on the CPU: (texts,). Texts of like length share a batch."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = torch.empty(len(texts), dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        result[chunk] = scores(model, pad_right([texts[i] for i in chunk], pad_id).to(model.device)).double().cpu()
    model.train(was_training)
    return result
