"""Held-out perplexity and bits per byte over the packed token shards.

heldout.bin holds one domain after another, so the sequences measured are spread evenly over it. Each reads `context` tokens and
predicts the `context` tokens one further on: where all of them are measured, every token but the first is predicted exactly once. The
document separator is predicted like any other token and counts no bytes. Bits per byte can be compared between tokenizers, perplexity cannot.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.schema.config import BadInput


def perplexity(lm: Any, tokens: Path, sequences: int, batch_size: int) -> dict[str, float | int]:
    """Measure lm (a LocalModel) on `sequences` held-out sequences of its own context length."""
    inputs, targets = heldout_sequences(tokens, sequences, lm.max_length)
    nats = 0.0
    for start in range(0, len(inputs), batch_size):
        batch = torch.from_numpy(inputs[start : start + batch_size]).to(lm.device)  # (B, T)
        with torch.inference_mode():
            logits = lm.model(batch).logits.float()  # (B, T, V)
        wanted = torch.from_numpy(targets[start : start + batch_size]).to(lm.device)  # (B, T)
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    count = targets.size
    text_bytes = sum(len(text.encode()) for text in lm.tokenizer.batch_decode(targets.tolist(), skip_special_tokens=True))  # a character cut at a row's end counts whole
    return {"bits_per_byte": nats / math.log(2) / text_bytes, "perplexity": math.exp(nats / count), "tokens": count}


def heldout_sequences(tokens: Path, sequences: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, both (sequences, context); fewer sequences where the file is shorter. Errors: BadInput."""
    try:
        dtype = json.loads((tokens / "tokens.json").read_text())["dtype"]
        stream = np.memmap(tokens / "heldout.bin", dtype=dtype, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"evaluation: {tokens} holds no readable heldout.bin and tokens.json ({error}): perplexity cannot be measured. Run the data stages") from None
    rows = (len(stream) - 1) // context
    if rows < 1:
        raise BadInput(
            f"evaluation: {tokens / 'heldout.bin'} has {len(stream)} tokens, fewer than one sequence of {context}: perplexity cannot be "
            "measured. Raise data.heldout_fraction or add documents"
        )
    starts = np.unique(np.linspace(0, rows - 1, min(sequences, rows)).astype(int)) * context
    taken = stream[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # (sequences, context + 1)
    return taken[:, :-1], taken[:, 1:]
