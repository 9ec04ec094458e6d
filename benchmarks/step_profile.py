"""Where the time of a training step goes, by kind of operation: a plain loop over transformers beside Modelyard's step.

    .venv/bin/python -m benchmarks.step_profile SIDE FOLDER    # one side, as JSON: milliseconds of a step by kind; called by benchmarks.pretrain

torch's profiler measures, in one thread, so that no time is waiting for another.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIDES = {"plain": "transformers, plain loop", "step": "Modelyard's step"}
STEPS = 4
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::addmm_"),
    "attention": ("flash_attention",),
    "loss": ("softmax", "nll_loss", "gather", "scatter", "exp_"),
    "SwiGLU, normalisation and positions in one pass each": ("_FeedForward", "_Projected", "_Norm"),
    "copies and layouts": ("copy_", "cat", "contiguous", "clone", "empty", "zero", "fill"),
    "optimizer and clipping": ("adam", "foreach", "norm", "Optimizer"),
    "embedding": ("embedding", "index"),
}
OTHERS = "other passes over activations"


def table(environment: dict[str, str], folder: Path) -> list[str]:
    """Lines of Markdown."""
    found = {side: _measured(side, environment, folder) for side in SIDES}
    lines = ["### Where a step's time goes", "", "Milliseconds of a step in one thread under torch's profiler, which itself costs some.", ""]
    lines += ["| | " + " | ".join(SIDES.values()) + " |", "|---|" + "---|" * len(SIDES)]
    lines += [f"| {kind} | " + " | ".join(f"{times.get(kind, 0):.0f}" for times in found.values()) + " |" for kind in (*KINDS, OTHERS)]
    return [*lines, "| all | " + " | ".join(f"{sum(times.values()):.0f}" for times in found.values()) + " |"]


def _measured(side: str, environment: dict[str, str], folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.step_profile", side, str(folder)]
    return json.loads(subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True).stdout)


def kind_of(operation: str) -> str:
    """The first kind one of whose words occurs."""
    return next((kind for kind, words in KINDS.items() if any(word in operation for word in words)), OTHERS)


def main() -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.peers import train_side

    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, step = {"plain": train_side.plain, "step": train_side.modelyard}[sys.argv[1]](False)
    batches = train_side._batches(Path(sys.argv[2]))
    for _ in range(2):
        step(next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step(next(batches))
    times: dict[str, float] = {}
    for row in seen.key_averages():
        times[kind_of(row.key)] = times.get(kind_of(row.key), 0.0) + row.self_cpu_time_total / 1000 / STEPS
    print(json.dumps(times))


if __name__ == "__main__":
    main()
