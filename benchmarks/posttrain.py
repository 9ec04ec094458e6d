"""SFT, DPO and GRPO side by side with TRL, and PPO beside our own GRPO: same model, data, batch, lengths and threads, in turns.

    make bench                                                            # sets up .venv-bench/trl, then:
    .venv/bin/python -m benchmarks.posttrain --trl .venv-bench/trl/bin/python [--rounds 5] [--threads 2]

TRL no longer has a PPO, so ours is compared by episodes a second. Each side is a whole trainer with its data loading and logging, ready before the first
round, and stands still while it is not its turn. Prints `ratio NAME VALUE BAR` and writes the section Post-training of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers import posttrain_data
from benchmarks.results import machine, write_section
from components.launch import ENVIRONMENT

# work: (what a step makes, how many of it, steps in a turn)
WORKS = {"sft": ("tokens", 16 * 256, 3), "dpo": ("pairs", 8, 4), "grpo": ("completions", 32, 3), "grpo4": ("completions", 32, 3), "ppo": ("episodes", 32, 3), "ppo_head": ("episodes", 32, 3)}
SIDES = [*((who, work) for work in ("sft", "dpo", "grpo") for who in ("trl", "modelyard")), *(("modelyard", work) for work in ("grpo4", "ppo", "ppo_head"))]
# name: (ours, what it is compared with, at least)
BARS = {
    "sft_over_trl": (("modelyard", "sft"), ("trl", "sft"), 2.7),
    "dpo_over_trl": (("modelyard", "dpo"), ("trl", "dpo"), 2.0),
    "grpo_over_trl": (("modelyard", "grpo"), ("trl", "grpo"), 3.0),
    "ppo_over_grpo": (("modelyard", "ppo"), ("modelyard", "grpo"), 0.7),
    "ppo_over_grpo_of_as_many_epochs": (("modelyard", "ppo"), ("modelyard", "grpo4"), 0.7),
    "ppo_head_over_grpo_of_as_many_epochs": (("modelyard", "ppo_head"), ("modelyard", "grpo4"), 0.7),
}


class Side:
    """A trainer that trains when it is told to."""

    def __init__(self, who: str, work: str, python: Path, folder: Path, environment: dict[str, str]) -> None:
        self.who, self.work, self.rounds, self.peak = who, work, [], 0.0
        module = "benchmarks.peers.trl_side" if who == "trl" else "benchmarks.peers.posttrain_side"
        self.log = (folder / f"{who}-{work}.log").open("w+")
        command = [str(python), "-m", module, work, str(folder)]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self._answer("ready")

    def run(self) -> None:
        assert self.process.stdin
        steps = WORKS[self.work][2]
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer("seconds") / steps)

    def _answer(self, key: str) -> float:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(f'{{"{key}"'):
                answer: dict[str, Any] = json.loads(line)
                self.peak = answer["peak_memory_mb"]
                return answer[key]
        self.log.seek(0)
        raise SystemExit(f"benchmark: {self.who} {self.work} ended with {self.process.wait()}:\n{self.log.read()[-3000:]}")

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def rate(self, pick: Any = median) -> float:
        """Things a second."""
        return WORKS[self.work][1] / pick(self.rounds)


def main() -> None:
    options = _options()
    load = os.getloadavg()[0]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        posttrain_data.write(folder)
        sides = []
        for who, work in SIDES:
            ours = {**environment, **ENVIRONMENT}
            sides.append(Side(who, work, options.trl if who == "trl" else Path(sys.executable), folder, environment if who == "trl" else ours))
            print(f"ready: {who} {work}", file=sys.stderr, flush=True)
        began = time.monotonic()
        for i in range(options.rounds):
            for side in [*sides[i % len(sides) :], *sides[: i % len(sides)]]:
                side.run()
            print(f"round {i + 1} of {options.rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for side in sides:
            side.end()
    text = [_about(options, load), "", *_table(sides), "", *_bars({(side.who, side.work): side for side in sides})]
    print("\n".join(text))
    write_section("Post-training", "\n".join(text))
    print("written to benchmarks/RESULTS.md; next: read it there, or run again with more --rounds")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posttrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="the Python of an environment that has TRL (make bench sets one up)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each side")
    options = parser.parse_args()
    if not options.trl.exists():
        parser.error(f"{options.trl} does not exist, so there is nothing to compare with. Run: make bench")
    return options


def _about(options: argparse.Namespace, load: float) -> str:
    theirs = subprocess.run([options.trl, "-c", "import trl, transformers, torch; print(trl.__version__, transformers.__version__, torch.__version__)"], capture_output=True, text=True, check=True)
    trl, transformers, torch = theirs.stdout.split()[-3:]
    data = posttrain_data
    return (
        f"{machine()}; {options.threads} threads, load {load:.1f} when begun. Ours: torch {version('torch')}, transformers {version('transformers')}. Theirs: TRL {trl}, torch {torch}, transformers {transformers}. "
        f"Llama of 5.9M parameters (vocabulary {data.VOCABULARY}, width {data.WIDTH}, {data.LAYERS} layers), float32. SFT: rows of {data.CONTEXT} tokens, 16 a step, packed, the loss on answers. DPO: 8 pairs of {data.CONTEXT} tokens. "
        f"GRPO: 4 prompts of {data.QUESTION + 3} tokens, 8 completions of at most 64 each, one update (grpo4: four), with a reference. PPO: 32 episodes of at most 64, 4 epochs, reference, value model (ppo_head: a layer on the policy's trunk). {options.rounds} rounds in turns."
    )


def _table(sides: list[Side]) -> list[str]:
    lines = ["| work | side | a second: median (slowest to fastest) | s a step | peak memory |", "|---|---|---|---|---|"]
    for side in sides:
        lines.append(
            f"| {side.work} | {side.who} | {side.rate():,.1f} {WORKS[side.work][0]} ({side.rate(max):,.1f} to {side.rate(min):,.1f}) | {median(side.rounds):.2f} | {side.peak:,.0f} MiB |"
        )
    return lines


def _bars(sides: dict[tuple[str, str], Side]) -> list[str]:
    """By round, so that what slows a round down slows both."""
    lines = ["| ratio, by rounds | median | range | bar |", "|---|---|---|---|"]
    for name, (ours, theirs, bar) in BARS.items():
        values = [b / a for a, b in zip(sides[ours].rounds, sides[theirs].rounds, strict=True)]
        lines.append(f"| {name} | {median(values):.2f} | {min(values):.2f} to {max(values):.2f} | at least {bar} |")
        print(f"ratio {name} {median(values):.3f} {bar}")
    return lines


if __name__ == "__main__":
    main()
