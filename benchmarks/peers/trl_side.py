"""TRL's side of the post-training benchmark, run by TRL's environment: a process that waits for its turn at each optimizer step.

    python -m benchmarks.peers.trl_side WORK FOLDER      # WORK: sft, dpo, grpo. A line {"ready": ...}; for each line "N" that comes in, N steps and a line {"seconds": ...}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import TrainerCallback

WARM_UP = 2
STEPS = 100_000


class Gate(TrainerCallback):
    """Holds the trainer before a step until it is told to go on."""

    def __init__(self) -> None:
        self.left, self.began = WARM_UP, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.left:
            seconds = time.perf_counter() - self.began
            print(json.dumps({"ready" if state.global_step == WARM_UP else "seconds": seconds, "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self.left, self.began = int(line), time.perf_counter()
        self.left -= 1


def main() -> None:
    work, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    common = {
        "output_dir": str(folder / f"trl-{work}"), "max_steps": STEPS, "learning_rate": 1e-5, "report_to": "none", "save_strategy": "no", "logging_steps": 10, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "disable_tqdm": True, "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    trainer = {"sft": sft, "dpo": dpo, "grpo": grpo}[work](folder, common)
    trainer.add_callback(Gate())
    trainer.train()


def sft(folder: Path, common: dict[str, Any]) -> Any:
    """Rows of 256 tokens, packed; the loss on the assistant's tokens."""
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset("json", data_files=str(folder / "chats/train.jsonl"), split="train").select_columns(["messages"])
    return SFTTrainer(str(folder / "model"), SFTConfig(per_device_train_batch_size=16, packing=True, max_length=256, assistant_only_loss=True, **common), train_dataset=rows)


def dpo(folder: Path, common: dict[str, Any]) -> Any:
    """8 pairs a step, 256 tokens each side."""
    from trl import DPOConfig, DPOTrainer

    rows = load_dataset("json", data_files=str(folder / "preferences/train.jsonl"), split="train")
    rows = rows.map(lambda row: {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}, remove_columns=["kind"])
    return DPOTrainer(str(folder / "model"), args=DPOConfig(per_device_train_batch_size=8, max_length=256, beta=0.1, **common), train_dataset=rows)


def grpo(folder: Path, common: dict[str, Any]) -> Any:
    """4 prompts of 32 tokens, 8 completions of at most 64 each, one update."""
    from trl import GRPOConfig, GRPOTrainer

    rows = load_dataset("json", data_files=str(folder / "questions/train.jsonl"), split="train").map(lambda row: {"prompt": row["messages"][:1]}, remove_columns=["messages", "kind"])

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float("w7" in one[0]["content"]) for one in completions]

    settings = GRPOConfig(per_device_train_batch_size=32, num_generations=8, max_completion_length=64, beta=0.04, temperature=1.0, loss_type="grpo", **common)
    return GRPOTrainer(str(folder / "model"), reward_funcs=reward, args=settings, train_dataset=rows)


if __name__ == "__main__":
    main()
