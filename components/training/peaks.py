"""How fast a device can multiply matrices at most, and how much work a token is: what "share of peak" is measured against.

The table holds dense peaks (vendors' headline figures are often with 2:4 sparsity, twice as much), with fp32 accumulation. Sources are
the makers' data sheets and architecture white papers, named beside each group; tests recompute the entries from
multiprocessors x clock x operations per clock. fp32 is that of the vector units, for torch leaves TF32 off.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any

import torch

MEASURED_SIZE, MEASURED_TIMES = 768, 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Words of a device's name (torch.cuda.get_device_name), and TFLOP/s by precision. The first entry all of whose words occur is taken.
PEAKS: list[tuple[str, dict[str, float]]] = [
    # NVIDIA Blackwell architecture brief and HGX B200 data sheet
    ("GB200", {"fp32": 80.0, "bf16": 2500.0, "fp16": 2500.0}),
    ("B200", {"fp32": 75.0, "bf16": 2250.0, "fp16": 2250.0}),
    # NVIDIA H100 and H200 Tensor Core GPU data sheets
    ("H200 NVL", {"fp32": 60.0, "bf16": 835.5, "fp16": 835.5}),
    ("H200", {"fp32": 66.9, "bf16": 989.4, "fp16": 989.4}),
    ("H100 NVL", {"fp32": 60.0, "bf16": 835.5, "fp16": 835.5}),
    ("H100 PCIe", {"fp32": 51.2, "bf16": 756.4, "fp16": 756.4}),
    ("H100", {"fp32": 66.9, "bf16": 989.4, "fp16": 989.4}),
    # NVIDIA A100, V100 and T4 white papers
    ("A100", {"fp32": 19.5, "bf16": 311.9, "fp16": 311.9}),
    ("V100", {"fp32": 15.7, "fp16": 125.3}),
    ("T4", {"fp32": 8.1, "fp16": 65.1}),
    # NVIDIA L4, L40S, A10 data sheets; Amazon's G5 page for the A10G
    ("L40S", {"fp32": 91.6, "bf16": 366.4, "fp16": 366.4}),
    ("L4", {"fp32": 30.3, "bf16": 121.2, "fp16": 121.2}),
    ("A10G", {"fp32": 35.0, "bf16": 70.0, "fp16": 70.0}),
    ("A10", {"fp32": 31.2, "bf16": 125.0, "fp16": 125.0}),
    # NVIDIA Ada and Ampere (GA102) white papers
    ("RTX 4090", {"fp32": 82.6, "bf16": 165.2, "fp16": 165.2}),
    ("RTX 3090", {"fp32": 35.6, "bf16": 71.2, "fp16": 71.2}),
    ("RTX A6000", {"fp32": 38.7, "bf16": 154.8, "fp16": 154.8}),
    # AMD Instinct MI300X and MI250X data sheets
    ("MI300X", {"fp32": 163.4, "bf16": 1307.4, "fp16": 1307.4}),
    ("MI250X", {"fp32": 47.9, "bf16": 383.0, "fp16": 383.0}),
]


def listed_peak(name: str, precision: str) -> float | None:
    """FLOP/s of the GPU with this name; None where the table does not know it, or it lacks the precision."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    for known, peaks in PEAKS:
        if set(known.split()) <= words:
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s that this device can reach: from the table for a GPU, measured once for a CPU (at the threads in use). None where unknown."""
    if device.type == "cuda":
        return listed_peak(torch.cuda.get_device_name(device), precision)
    return measured_peak(precision, torch.get_num_threads())


@lru_cache(maxsize=8)
def measured_peak(precision: str, threads: int) -> float:
    """FLOP/s of the fastest of a few matrix products on this CPU; takes some hundredths of a second."""
    a, b = (torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(MEASURED_TIMES):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * MEASURED_SIZE**3 / best


def flops_per_token(model: torch.nn.Module, context_tokens: int) -> float:
    """Forward and backward of one token: 6N + 12 * layers * width * context (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    N counts the weights that are multiplied with: an input embedding is looked up, so it counts only where it is the output layer too;
    of a mixture's experts only those that a token visits. What activation checkpointing repeats is not counted, nor is causality.
    """
    config: Any = model.config
    layers, width = getattr(config, "num_hidden_layers", 0), _attention_width(config)
    return 6 * multiplied_parameters(model) + 12 * layers * width * context_tokens


def multiplied_parameters(model: torch.nn.Module) -> float:
    """N of `flops_per_token`."""
    config: Any = model.config
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    visited = (getattr(config, "num_experts_per_tok", None) or 1) / (getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1)
    looked_up = head is None or head.weight is not embedding
    return sum(
        p.numel() * (visited if ".experts." in name else 1) for name, p in model.named_parameters() if not (looked_up and p is embedding)
    )


def _attention_width(config: Any) -> int:
    """Heads times width of a head; the PaLM formula's H * Q. 0 where nothing attends."""
    heads = getattr(config, "num_attention_heads", 0) or 0
    return heads * (getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads))
