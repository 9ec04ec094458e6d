"""What a model costs to keep and to ask: its size, from the files, and its latency, measured. For the gate's hard limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 32, 32, 5


def measure(folder: Path, asked: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{"size": {"bytes", "parameters"}, "latency": {"ms_per_token"}} of a transformers folder, as far as the paths in `asked` begin with these words."""
    kinds = {path.partition(".")[0] for path in asked}
    found: dict[str, dict[str, Any]] = {}
    if "size" in kinds:
        found["size"] = size(folder)
    if "latency" in kinds:
        found["latency"] = {"ms_per_token": latency(folder)}
    return found


def size(folder: Path) -> dict[str, int]:
    """Bytes and parameters of the weights, read from the headers of the safetensors files."""
    from safetensors import safe_open

    parameters = 0
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="np") as tensors:
            parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return {"bytes": sum(file.stat().st_size for file in files), "parameters": parameters}


def latency(folder: Path) -> float:
    """Milliseconds for each new token of one answer alone: the median of ROUNDS, after one to warm up. It depends on the machine and on what else it does."""
    import torch

    from components.evaluation.local_model import load_model
    from components.models.generate import generate

    lm = load_model(folder, batch_size=1)
    room = min(PROMPT_TOKENS + NEW_TOKENS, lm.max_length) - NEW_TOKENS
    prompt = torch.randint(0, lm.model.config.vocab_size, (max(1, room),), generator=torch.Generator().manual_seed(0)).tolist()
    took = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        generate(lm.model, [prompt], stop_ids=(), pad_id=lm.tokenizer.pad_token_id or 0, max_new_tokens=NEW_TOKENS)
        took.append(1000 * (time.perf_counter() - began) / NEW_TOKENS)
    return statistics.median(took[1:])
