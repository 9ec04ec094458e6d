"""Whether a training's start grows with its data, and its resume with the steps behind it.

    .venv/bin/python -m benchmarks.late start FOLDER TOKENS     # seconds to the first batch
    .venv/bin/python -m benchmarks.late resume FOLDER STEP      # seconds from the call to the first batch of a run that goes on after STEP

Called by benchmarks.pretrain. The shards of 10^9 tokens are real files of zeros (holes: they take no room on the disk). A run of a million steps is not waited
for: the checkpoint that a small model wrote after ten steps has its counters set to a million, and its curve a million lines.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROUNDS = 3
FEW, MANY = 1_000_000, 1_000_000_000
EARLY, LATE, TOTAL = 10, 1_000_000, 1_000_100


def write_tokens(folder: Path, tokens: int, length: int, vocabulary: int, *, holes: bool = False) -> None:
    """One domain's token file with its report and mixture, as the data stages leave them; random, or a file of holes."""
    train = folder / "tokens" / "train"
    train.mkdir(parents=True, exist_ok=True)
    path = train / "text-00000.bin"
    if holes:
        with path.open("wb") as file:
            file.truncate(2 * tokens)
    else:
        np.random.default_rng(0).integers(0, vocabulary, tokens).astype(np.uint16).tofile(path)
    shard = {"name": path.stem, "tokens": tokens}
    (folder / "tokens" / "tokens.json").write_text(json.dumps({"vocab_size": vocabulary, "dtype": "uint16", "domains": {"text": {"shards": [shard]}}}))
    mix = {"domains": ["text"], "max_epochs": 1e9, "phases": [{"until": 1.0, "probabilities": {"text": 1.0}}]}
    (folder / "mix.json").write_text(json.dumps(mix))


def measure(environment: dict[str, str], folder: Path) -> tuple[list[str], list[str]]:
    """Lines of Markdown about the start, and about the resume."""
    starts: dict[int, list[dict[str, float]]] = {FEW: [], MANY: []}
    for tokens in starts:
        write_tokens(folder / f"of-{tokens}", tokens, 256, 4096, holes=True)
    resumes: dict[int, list[dict[str, float]]] = {EARLY: [], LATE: []}
    _run("prepare", environment, folder, EARLY)
    for _ in range(ROUNDS):
        for tokens, found in starts.items():
            found.append(_run("start", environment, folder / f"of-{tokens}", tokens))
        for step, found in resumes.items():
            found.append(_run("resume", environment, folder, step))
    return (
        ["### Start and size of the data", "", *_lines("tokens in the shards", starts, ("shards opened", "order of the run", "first batch"))],
        ["### Resume and steps behind", "", f"A run of {TOTAL:,} steps that goes on.", "", *_lines("after step", resumes, ("resumed",))],
    )


def _lines(what: str, found: dict[int, list[dict[str, float]]], parts: tuple[str, ...]) -> list[str]:
    head = [f"| {what} | " + " | ".join(f"{part}, s" for part in parts) + " | peak memory |", "|---|" + "---|" * (len(parts) + 1)]
    rows = []
    for size, runs in found.items():
        times = " | ".join(f"{median(run[part] for run in runs):.3f} ({min(run[part] for run in runs):.3f} to {max(run[part] for run in runs):.3f})" for part in parts)
        rows.append(f"| {size:,} | {times} | {median(run['peak_memory_mb'] for run in runs):,.0f} MiB |")
    return head + rows


def _run(what: str, environment: dict[str, str], folder: Path, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.late", what, str(folder), str(size)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


# ---------------------------------------------------------------- in a process of its own


def start(folder: Path, steps: int) -> dict[str, float]:
    """The same run over more data."""
    from components.training import tokens

    marks = [time.perf_counter()]
    mix = tokens.read_mix(folder)
    shards = tokens.TokenShards(folder / "tokens", mix, 256)
    marks.append(time.perf_counter())
    schedule = tokens.Schedule(mix, shards.sizes, 1000, 16, seed=0)
    marks.append(time.perf_counter())
    shards.rows(*schedule.batch(0))
    marks.append(time.perf_counter())
    return dict(zip(("shards opened", "order of the run", "first batch"), np.diff(marks).tolist(), strict=True))


class Asked(Exception):
    """The first batch was asked for."""


def trained(folder: Path, last: int) -> float:
    """Run a small model up to step `last`; returns the seconds from the call to the first batch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.peers.train_side import pretraining
    from components.schema.recipe import Resources
    from components.training import trainer
    from components.training.pretrain import NextToken

    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    first: list[float] = []

    def batch(step: int) -> Any:
        first.append(time.perf_counter())
        if step >= last:
            raise Asked
        return torch.ones(2, 9, dtype=torch.long)

    context = trainer.Context(0, [], lambda event: print(event.get("text", ""), file=sys.stderr) if "resumed" in str(event) else None, Resources(threads=1))
    began = time.perf_counter()
    try:
        trainer.fit(NextToken(model, pretraining(TOTAL)), batch, TOTAL, every=EARLY, out=folder, context=context, identity={})
    except Asked:
        pass
    return first[0] - began


def prepare(folder: Path) -> dict[str, float]:
    """A run stopped after ten steps, and one that says it was stopped after a million."""
    from components.training import checkpoints

    early, late = folder / f"after-{EARLY}", folder / f"after-{LATE}"
    trained(early, EARLY + 5)
    shutil.copytree(early, late)
    (path,) = (late / "work").glob("step-*.ckpt")
    state = _moved(checkpoints.load(path))
    path.unlink()
    line = (early / "work" / "curve.jsonl").read_bytes().splitlines(keepends=True)[0]
    (late / "work" / "curve.jsonl").write_bytes(line * LATE)
    state["callbacks"]["Watch"]["curve"] = len(line) * LATE
    temporary = late / "work" / "checkpoint.tmp"
    digest = checkpoints._save(state, temporary)
    temporary.rename(late / "work" / f"step-{LATE:08d}-{digest}.ckpt")
    return {}


def _moved(state: Any) -> Any:
    """Every counter that says ten says a million."""
    import torch

    if isinstance(state, dict):
        return {key: _moved(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_moved(value) for value in state)
    if isinstance(state, torch.Tensor):
        return torch.full_like(state, LATE) if state.ndim == 0 and state.item() == EARLY else state
    return LATE + state - EARLY if type(state) is int and state in (EARLY, EARLY + 1) else state


def resume(folder: Path, step: int) -> dict[str, float]:
    """From the call of `fit` to the first batch, on a copy, so that each time is the first."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / f"after-{step}", copy)
    return {"resumed": trained(copy, step)}


def main() -> None:
    import resource

    what, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    found = {"start": lambda: start(folder, size), "prepare": lambda: prepare(folder), "resume": lambda: resume(folder, size)}[what]()
    print(json.dumps({**found, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
