"""Held-out perplexity and bits per byte over the packed token shards.

Sequences follow one another without a gap, each reading `context` tokens and predicting the `context` tokens one further on,
so every token but the first is predicted exactly once; the document separator is predicted like any other token and counts
no bytes. Bits per byte can be compared between tokenizers, perplexity cannot.
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
    """Measure lm (a LocalModel) on the first `sequences` held-out sequences of its own context length."""
    inputs, targets = heldout_sequences(tokens, sequences, lm.max_length)
    nats = 0.0
    for start in range(0, len(inputs), batch_size):
        batch = torch.from_numpy(inputs[start : start + batch_size]).to(lm.device)  # (B, T)
        with torch.inference_mode():
            logits = lm.model(batch).logits.float()  # (B, T, V)
        wanted = torch.from_numpy(targets[start : start + batch_size]).to(lm.device)  # (B, T)
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    count = targets.size
    text = lm.tokenizer.decode(targets.flatten().tolist(), skip_special_tokens=True)
    return {"bits_per_byte": nats / math.log(2) / len(text.encode()), "perplexity": math.exp(nats / count), "tokens": count}


def heldout_sequences(tokens: Path, sequences: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, both (sequences, context); fewer sequences where the shard is shorter. Errors: BadInput."""
    try:
        dtype = json.loads((tokens / "tokens.json").read_text())["dtype"]
        stream = np.fromfile(tokens / "heldout.bin", dtype=dtype, count=sequences * context + 1).astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"evaluation: {tokens} holds no readable heldout.bin and tokens.json ({error}): perplexity cannot be measured. Run the data stages") from None
    rows = (len(stream) - 1) // context
    if rows < 1:
        raise BadInput(
            f"evaluation: {tokens / 'heldout.bin'} has {len(stream)} tokens, fewer than one sequence of {context}: perplexity cannot be "
            "measured. Raise data.heldout_fraction or add documents"
        )
    inputs = stream[: rows * context].reshape(rows, context)
    return inputs, stream[1 : rows * context + 1].reshape(rows, context)
