"""Held-out perplexity and bits per byte over the packed token shards, as a whole and by domain.

heldout.bin holds one domain after another, so the sequences measured are spread evenly over it. Each reads `context` tokens and predicts the `context`
tokens one further on: where all of them are measured, every token but the first is predicted exactly once. The document separator is predicted like any
other token and counts no bytes. Bits per byte can be compared between tokenizers, perplexity cannot.

A domain is measured in the same way over its own shards (heldout/<domain>-00000.bin), with as many sequences as its share of the whole would be, and
DOMAIN_LEAST at least.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.schema.config import BadInput

DOMAIN_LEAST = 8  # sequences of a domain, where it has as many


def perplexity(lm: Any, tokens: Path, sequences: int, batch_size: int) -> dict[str, Any]:
    """Measure lm (a LocalModel) on `sequences` held-out sequences of its own context length, and the domains of several apart."""
    told: dict[str, Any] = _measured(lm, *heldout_sequences(tokens, sequences, lm.max_length), batch_size)
    parts = domains(tokens)
    if len(parts) > 1:
        whole = sum(len(stream) for stream in parts.values())
        told["domains"] = {}
        for name, stream in parts.items():
            inputs, targets = _spread(stream, max(DOMAIN_LEAST, round(sequences * len(stream) / whole)), lm.max_length)
            if len(inputs):
                told["domains"][name] = _measured(lm, inputs, targets, batch_size)
    return told


def _measured(lm: Any, inputs: np.ndarray, targets: np.ndarray, batch_size: int) -> dict[str, float | int]:
    """inputs, targets (sequences, T)."""
    nats = 0.0
    for start in range(0, len(inputs), batch_size):
        batch = torch.from_numpy(inputs[start : start + batch_size]).to(lm.device)  # (B, T)
        with torch.inference_mode():
            logits = lm.model(batch).logits.float()  # (B, T, V)
        wanted = torch.from_numpy(targets[start : start + batch_size]).to(lm.device)  # (B, T)
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    count = targets.size
    text_bytes = sum(
        len(text.encode()) for text in lm.tokenizer.batch_decode(targets.tolist(), skip_special_tokens=True)
    )  # a character cut at a row's end counts whole
    return {"bits_per_byte": nats / math.log(2) / text_bytes, "perplexity": math.exp(nats / count), "tokens": count}


def heldout_sequences(tokens: Path, sequences: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, both (sequences, context); fewer sequences where the file is shorter. Errors: BadInput."""
    try:
        stream = np.memmap(tokens / "heldout.bin", dtype=_dtype(tokens), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"evaluation: {tokens} holds no readable heldout.bin and tokens.json ({error}): perplexity cannot be measured. Run the data stages"
        ) from None
    inputs, targets = _spread(stream, sequences, context)
    if not len(inputs):
        raise BadInput(
            f"evaluation: {tokens / 'heldout.bin'} has {len(stream)} tokens, fewer than one sequence of {context}: perplexity cannot be "
            "measured. Raise data.heldout_fraction or add documents"
        )
    return inputs, targets


def domains(tokens: Path) -> dict[str, np.ndarray]:
    """Each domain's held-out tokens, by name; none where the folder has no shards."""
    shards: dict[str, list[np.ndarray]] = {}
    for path in sorted((tokens / "heldout").glob("*.bin")):
        shards.setdefault(path.stem.rpartition("-")[0], []).append(np.fromfile(path, dtype=_dtype(tokens)))
    return {name: np.concatenate(parts) for name, parts in shards.items()}


def _dtype(tokens: Path) -> str:
    return str(json.loads((tokens / "tokens.json").read_text())["dtype"])


def _spread(stream: np.ndarray, sequences: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that lie evenly over a stream: inputs and targets, (at most `sequences`, context) each."""
    rows = max(0, (len(stream) - 1) // context)
    starts = np.unique(np.linspace(0, rows - 1, min(sequences, rows)).astype(int)) * context if rows else np.zeros(0, int)
    taken = np.asarray(stream)[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # (sequences, context + 1)
    return taken[:, :-1], taken[:, 1:]
