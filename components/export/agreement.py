"""Whether an export answers as the model that it was made from: the same token ids in, logits out, side by side.

    asked = batch(tokenizer, model.config)          # texts and drawn ids, the same every time
    agreement(reference, exported).figures()        # {"logit_difference_max": ..., "kl_mean": ..., "same_likeliest": ...}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.schema.config import BadInput

ROWS, LONGEST = 4, 64
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "12 + 30 = 42, and 7*6=42; it's 3.14 (nearly).",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1,  2))",
    "Grüße, naïve café: 東京 123 ½ – “quoted” 🙂 e\u0301",
    "  leading, trailing   and\t tabs \n\n new lines  ",
    "DON'T we'll I'd they've\r\nx=1_000.5e-3",
)


@dataclass(frozen=True)
class Agreement:
    """How far apart two sets of logits are."""

    largest: float
    """Largest difference of one logit."""
    kl: float
    """Mean over positions of KL(original || export), in nats."""
    same: float
    """Share of the positions at which both find the same token likeliest."""
    positions: int

    def figures(self) -> dict[str, Any]:
        return {"logit_difference_max": self.largest, "kl_mean": self.kl, "same_likeliest": self.same, "positions": self.positions}


def compare(reference: Tensor, exported: Tensor) -> Agreement:
    """Logits of the same positions, (..., V) each. Errors: BadInput where the export gives something else than numbers for every token."""
    if reference.shape != exported.shape or not torch.isfinite(exported).all():
        what = "numbers that are not finite" if reference.shape == exported.shape else f"logits of shape {tuple(exported.shape)} instead of {tuple(reference.shape)}"
        raise BadInput(f"export: the exported model gives {what}, so it is not the same model. Nothing was kept; export to another form, and report the architecture")
    p, q = reference.double().log_softmax(-1), exported.double().log_softmax(-1)
    return Agreement(
        largest=float((reference - exported).abs().max()),
        kl=max(0.0, float((p.exp() * (p - q)).sum(-1).mean())),
        same=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        positions=p[..., 0].numel(),
    )


def drawn(vocabulary: int, context: int, rows: int = ROWS) -> Tensor:
    """Token ids that are the same every time: (rows, at most LONGEST)."""
    return torch.randint(0, vocabulary, (rows, min(LONGEST, context)), generator=torch.Generator().manual_seed(0))


def prompts(tokenizer: Any, context: int) -> list[list[int]]:
    """The texts as the model reads them, and one of them through the chat template where there is one."""
    found = [tokenizer(text)["input_ids"] for text in TEXTS]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": TEXTS[1]}]
        found.append(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"])
    return [ids[:context] for ids in found if ids]


@torch.no_grad()
def side_by_side(model: Any, tokenizer: Any, exported: Callable[[Tensor], Tensor]) -> Agreement:
    """The model's logits and the export's, on drawn ids and on each text. `exported`: (B, T) ids -> (B, T, V) logits."""
    context = context_of(model.config)
    asked = [drawn(model.config.vocab_size, context), *(torch.tensor([ids]) for ids in prompts(tokenizer, context))]
    pairs = [(model.eval()(input_ids=ids, use_cache=False).logits.float(), exported(ids).float()) for ids in asked]
    for reference, found in pairs:
        compare(reference, found)
    return compare(*(torch.cat([side.flatten(0, 1) for side in sides]) for sides in zip(*pairs, strict=True)))


def context_of(config: Any) -> int:
    """Tokens that the model reads; LONGEST where its configuration does not say."""
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or LONGEST)
