"""What a reward model thinks of whole chats, in batches, on its own scale: what judges with it, and what asks where it is unsure.

    score = reward_model(folder)
    score([[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], ...])      # a number each; higher is better
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from components.models.build import load_tokenizer
from components.models.heads import scalar_model_from, scores
from components.schema.config import BadInput

Chat = list[dict[str, str]]
Score = Callable[[Sequence[Chat]], Sequence[float]]  # of whole chats
SCORED_AT_ONCE = 32


def reward_model(folder: Path, seed: int = 0) -> Score:
    """The scores of a reward model's folder, on its own scale. Errors: BadInput where it is none."""
    if not (folder / "scale.json").is_file():
        raise BadInput(
            f"judging: {folder} has no scale.json, so it is no reward model and its scores would mean nothing. Give the folder of a finished reward stage"
        )
    model, words = scalar_model_from(folder, seed).eval(), load_tokenizer(folder)
    if torch.cuda.is_available():
        model.cuda()

    @torch.no_grad()
    def score(chats: Sequence[Chat]) -> list[float]:
        rows = words.apply_chat_template(list(chats), return_dict=False)  # the turn's end is the last token, where the head reads
        order, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), [0.0] * len(rows)
        for start in range(0, len(order), SCORED_AT_ONCE):
            chunk = order[start : start + SCORED_AT_ONCE]
            width = max(len(rows[i]) for i in chunk)
            ids = torch.tensor([rows[i] + [words.pad_token_id] * (width - len(rows[i])) for i in chunk], device=model.device)  # (B, T)
            for i, value in zip(chunk, scores(model, ids).tolist(), strict=True):
                found[i] = value
        return found

    return score
