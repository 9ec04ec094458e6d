"""One side of the training benchmark, as a process that waits for its turn.

    python -m benchmarks.peers.train_side SIDE FOLDER     # a line {"ready": ...}; for each line "N" that comes in, N steps and a line {"seconds": ...}

Sides: plain (a loop over transformers' Llama), nanogpt, litgpt, each also with "-compiled"; step (Modelyard's forward, backward and optimizer, in a loop of
four lines), muon (that with its other optimizer) and fit (the same under Lightning, with shards from the disk, MLflow, checkpoints and the watch).
All: AdamW, clipping at norm 1, float32, the same tokens, batch and threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS, INTERMEDIATE, BATCH = 4096, 256, 256, 6, 4, 704, 16
OPTIMIZER = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
WARM_UP = 3


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    if side == "fit":
        return fit(folder)
    name, _, compiled = side.partition("-")
    model, step = {"plain": plain, "nanogpt": nanogpt, "litgpt": litgpt, "step": modelyard, "muon": muon}[name](bool(compiled))
    batches = _batches(folder)
    began = time.perf_counter()
    step(next(batches))
    first = time.perf_counter() - began
    for _ in range(WARM_UP):
        loss = step(next(batches))
    _ready(model, loss, first)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step(next(batches))
        _tell({"seconds": time.perf_counter() - began})


def _batches(folder: Path) -> Iterator[Tensor]:
    """Rows (B, T + 1) of the shards that `fit` reads too; here they lie in memory."""
    import numpy as np

    path = next((folder / "tokens" / "train").glob("*.bin"))
    tokens = torch.from_numpy(np.fromfile(path, np.uint16, 64 * (BATCH * CONTEXT + 1)).astype(np.int64))
    rows = tokens[: 64 * BATCH * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    i = 0
    while True:
        yield rows[i * BATCH : (i + 1) * BATCH]
        i = (i + 1) % 64


def _ready(model: nn.Module, loss: float, first: float) -> None:
    _tell({"ready": {"parameters": sum(p.numel() for p in model.parameters()), "loss": loss, "first_step_seconds": first}})


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps({**what, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


Step = Callable[[Tensor], float]


def _loop(model: nn.Module, loss_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Step]:
    """Forward, backward, clipping, optimizer."""

    def step(rows: Tensor) -> float:
        loss = loss_of(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return model, step


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **shape)).train()


def plain(compiled: bool) -> tuple[nn.Module, Step]:
    """transformers as its documentation shows it."""
    model = _llama()
    run = torch.compile(model) if compiled else model
    return _loop(model, lambda rows: run(input_ids=rows[:, :-1], labels=rows[:, :-1], shift_labels=rows[:, 1:], use_cache=False).loss, torch.optim.AdamW(model.parameters(), **OPTIMIZER))


def nanogpt(compiled: bool) -> tuple[nn.Module, Step]:
    """train.py of nanoGPT: its optimizer is the fused one only on a GPU; compiled by default."""
    from benchmarks.peers.nanogpt import NanoGPT

    model = NanoGPT(VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS)
    run = torch.compile(model) if compiled else model
    return _loop(model, lambda rows: run(rows[:, :-1], rows[:, 1:]), torch.optim.AdamW(model.parameters(), **OPTIMIZER))


def litgpt(compiled: bool) -> tuple[nn.Module, Step]:
    """litgpt's pretrain.py: its model, its loss in chunks of 128 rows, compiled by default. Its head is not tied (it can not be in this version)."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "intermediate_size": INTERMEDIATE, "block_size": CONTEXT}
    llama = {"rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
    model = GPT(Config(vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, **shape, **llama))
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER)
    return _loop(model, lambda rows: chunked_cross_entropy(run(rows[:, :-1].contiguous()), rows[:, 1:].contiguous()), optimizer)


def modelyard(compiled: bool, optimizer: str = "adamw") -> tuple[nn.Module, Step]:
    """What a step of Modelyard's pretraining computes, in a loop without anything around it."""
    from components.training import fast
    from components.training.optim import make_optimizer

    model = _llama()
    fast.prepare(model)
    return _loop(model, lambda rows: fast.next_token_loss(model, rows[:, :-1], rows[:, 1:]).loss, make_optimizer(model, pretraining(100, optimizer=optimizer)))


def muon(compiled: bool) -> tuple[nn.Module, Step]:
    return modelyard(compiled, "muon")


def pretraining(steps: int, **changes: Any) -> Any:
    """The pretrain section of a recipe, for this comparison."""
    from components.schema.training import PretrainConfig

    return PretrainConfig(**{"steps": steps, "batch_size": BATCH, "learning_rate": 3e-4, "weight_decay": 0.1, "warmup_steps": 2, "checkpoint_every_steps": 50, **changes})


def fit(folder: Path) -> None:
    """Modelyard's trainer as a stage runs it; it is given its turn where it asks for a batch."""
    from components.registry import tracking
    from components.schema.recipe import Resources
    from components.stage_logger import StageLogger
    from components.training import fast, tokens, trainer
    from components.training.pretrain import NextToken

    mix = tokens.read_mix(folder)
    shards = tokens.TokenShards(folder / "tokens", mix, CONTEXT)
    total = 100_000
    schedule = tokens.Schedule(mix, shards.sizes, total, BATCH, seed=0)
    model = _llama()
    fast.prepare(model)
    left, began, first = WARM_UP + 1, 0.0, 0.0

    def batch(step: int) -> Tensor:
        nonlocal left, began, first
        if step == 0:
            began = time.perf_counter()
        if step == 1:
            first = time.perf_counter() - began
        if not left:
            seconds = time.perf_counter() - began
            if step == WARM_UP + 1:
                _ready(model, float("nan"), first)
            else:
                _tell({"seconds": seconds})
            line = sys.stdin.readline()
            if not line:
                sys.stdout.flush()
                os._exit(0)
            left, began = int(line), time.perf_counter()
        left -= 1
        return shards.rows(*schedule.batch(step))

    logger = StageLogger(tracking.MetricSink(tracking.open_stage(None, "pretrain", str(time.time()), {}, {})))
    context = trainer.Context(0, [logger], lambda event: None, Resources(threads=torch.get_num_threads()))
    trainer.fit(NextToken(model, pretraining(total)), batch, total, every=50, out=folder / "fit", context=context, identity={})


if __name__ == "__main__":
    main()
