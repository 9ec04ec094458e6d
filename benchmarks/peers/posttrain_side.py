"""Modelyard's side of the post-training benchmark: a stage as it runs, given its turn where it asks for a batch.

    python -m benchmarks.peers.posttrain_side WORK FOLDER    # WORK: sft, dpo, grpo, grpo4 (four epochs), ppo, ppo_head (values from the policy's trunk). A line {"ready": ...}; for each line "N" that comes in, N steps and a line {"seconds": ...}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from components.schema.posttraining import DPOConfig, GRPOConfig, PPOConfig, SFTConfig
from components.schema.recipe import Resources
from components.training import trainer
from components.training.align import Given

WARM_UP, STEPS = 2, 1000
PLAN = {"learning_rate": 1e-5, "warmup_steps": 1, "steps": STEPS, "checkpoint_every_steps": STEPS}
ONLINE = {
    "iterations": STEPS, "rollout_size": 32, "minibatch_size": 32, "max_new_tokens": 64, "learning_rate": 1e-5, "warmup_steps": 1, "kl_coef": 0.04, "heldout_prompts": 4,
    "checkpoint_every_iterations": STEPS, "unfinished_penalty": 0.0, "prompts": {"source": "chats"}, "rewards": [{"kind": "format", "pattern": r"(?s).*\bw7\b.*"}],
}  # fmt: skip
CONFIGS = {
    "sft": SFTConfig(batch_size=16, heldout_chats=4, **PLAN),
    "dpo": DPOConfig(method="dpo", batch_size=8, heldout_pairs=8, **PLAN),
    "grpo": GRPOConfig(method="grpo", epochs=1, **ONLINE),
    "grpo4": GRPOConfig(method="grpo", epochs=4, **ONLINE),
    "ppo": PPOConfig(epochs=4, **ONLINE),
    "ppo_head": PPOConfig(epochs=4, value_function="head", **ONLINE),
}


class Gate:
    """Stands in front of `batch`."""

    def __init__(self) -> None:
        self.left, self.began, self.is_ready = WARM_UP, 0.0, False

    def __call__(self, batch: Callable[[int], Any]) -> Callable[[int], Any]:
        def gated(step: int) -> Any:
            if not self.left:
                self._wait(time.perf_counter() - self.began)
            self.left -= 1
            return batch(step)

        return gated

    def _wait(self, seconds: float) -> None:
        print(json.dumps({"seconds" if self.is_ready else "ready": seconds, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
        self.is_ready = True
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.began = int(line), time.perf_counter()


def main() -> None:
    work, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gate, fit = Gate(), trainer.fit

    def gated_fit(module: Any, batch: Callable[[int], Any], *args: Any, **options: Any) -> Any:
        return fit(module, gate(batch), *args, **options)

    module = f"components.training.{work.removesuffix('4').removesuffix('_head')}"
    stage = import_module(module)
    for name in (module, "components.training.online"):
        if hasattr(found := sys.modules.get(name), "fit"):
            found.fit = gated_fit
    context = trainer.Context(0, [], lambda event: None, Resources(threads=torch.get_num_threads()))
    out = folder / f"modelyard-{work}"
    if work == "sft":
        stage.run(CONFIGS[work], folder / "model", folder / "chats", out, context)
    else:
        stage.run(CONFIGS[work], _given(folder), out, context)


def _given(folder: Path) -> Given:
    """The model, signed as a chat model."""
    from components.models.build import load_tokenizer
    from components.training.template import write_contract

    write_contract(load_tokenizer(folder / "model"), folder / "model")
    return Given(folder / "model", {}, folder / "preferences", folder / "questions", lambda programs: [False] * len(programs))


if __name__ == "__main__":
    main()
