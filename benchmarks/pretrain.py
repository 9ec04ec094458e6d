"""A step of pretraining side by side with nanoGPT, litgpt and a plain loop over transformers: same shape, batch, tokens and threads, in turns.

    make bench                                                            # sets up .venv-bench, then:
    .venv/bin/python -m benchmarks.pretrain --litgpt .venv-bench/litgpt [--rounds 7] [--steps 10] [--threads 2]

Each side is a process that is ready before the first round and stands still while it is not its turn; all run in this environment, so with one torch.
Then: what Lightning, logging, checkpoints and data add to a step, where a step's time goes, and whether start and resume grow with the run.
Prints `ratio NAME VALUE BAR` for what has a bar to reach, and writes the section Pretraining of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PathDistribution, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import late, step_profile
from benchmarks.late import write_tokens
from benchmarks.peers.train_side import BATCH, CONTEXT, HEADS, INTERMEDIATE, LAYERS, VOCABULARY, WIDTH
from benchmarks.results import machine, write_section
from components.launch import ENVIRONMENT

TOKENS = BATCH * CONTEXT
OURS = ("step", "fit", "muon")
SIDES = {
    "plain": "transformers, plain loop",
    "plain-compiled": "transformers, compiled",
    "litgpt": "litgpt",
    "litgpt-compiled": "litgpt, compiled (its default)",
    "nanogpt": "nanoGPT",
    "nanogpt-compiled": "nanoGPT, compiled (its default)",
    "step": "Modelyard's step alone",
    "fit": "**Modelyard**: Lightning, shards, MLflow, checkpoints",
    "muon": "Modelyard's step alone, with Muon",
}
BARS = {"over_nanogpt": 1.0, "over_nanogpt_compiled": 1.0, "over_litgpt": 1.0, "over_litgpt_compiled": 1.0, "over_plain": 1.25, "step_over_whole": 0.97}


class Side:
    """A process that trains when it is told to."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name, self.rounds = name, []
        command = [sys.executable, "-m", "benchmarks.peers.train_side", name, str(folder)]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()["ready"]

    def run(self, steps: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.rounds.append(answer["seconds"] / steps)
        self.about["peak_memory_mb"] = answer["peak_memory_mb"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            raise SystemExit(f"benchmark: the side {self.name} ended with {self.process.wait()}: see above")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def rate(self, pick: Any = median) -> float:
        """Tokens/s."""
        return TOKENS / pick(self.rounds)


def main() -> None:
    options = _options()
    load = os.getloadavg()[0]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(options.litgpt), "HF_HUB_OFFLINE": "1"}
    ours = {**environment, **ENVIRONMENT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment["MODELYARD_HOME"] = str(folder)
        write_tokens(folder, 4_000_000, CONTEXT, VOCABULARY)
        began = time.monotonic()
        sides = [_begin(name, folder, ours if name in OURS else environment) for name in SIDES]
        for i in range(options.rounds):
            for side in [*sides[i % len(sides) :], *sides[: i % len(sides)]]:
                side.run(options.steps)
            print(f"round {i + 1} of {options.rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for side in sides:
            side.end()
        by_name = {side.name: side for side in sides}
        profile = step_profile.table(environment, folder)
        starts, resumes = late.measure(environment, folder)
    ratios = _ratios(by_name)
    text = [_about(options, load), "", *_table(sides), "", *_around(by_name), "", *profile, "", *starts, "", *resumes, "", *_bars(ratios)]
    print("\n".join(text))
    write_section("Pretraining", "\n".join(text))
    print("written to benchmarks/RESULTS.md; next: read it there, or run again with more --rounds")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litgpt", type=Path, required=True, help="folder with the package litgpt (pip install --no-deps --target FOLDER litgpt==0.5.13)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps in a turn")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each side")
    options = parser.parse_args()
    if not (options.litgpt / "litgpt" / "model.py").exists():
        parser.error(f"{options.litgpt} does not hold litgpt, so there is nothing to compare with. Run: make bench")
    options.litgpt = options.litgpt.resolve()
    return options


def _begin(name: str, folder: Path, environment: dict[str, str]) -> Side:
    side = Side(name, folder, environment)
    print(f"ready: {name}, {side.about['parameters'] / 1e6:.2f}M parameters, first step {side.about['first_step_seconds']:.1f} s", file=sys.stderr, flush=True)
    return side


def _about(options: argparse.Namespace, load: float) -> str:
    litgpt = next(PathDistribution(path).version for path in options.litgpt.glob("litgpt-*.dist-info"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lightning", "mlflow"))
    return (
        f"{machine()}; {options.threads} threads, load {load:.1f} when begun; {versions}, litgpt {litgpt}, nanoGPT's model written anew. "
        f"Vocabulary {VOCABULARY}, width {WIDTH}, {LAYERS} layers, {HEADS} heads, Llama's MLP {INTERMEDIATE} wide; batch {BATCH} x {CONTEXT}, float32, AdamW, clipping. "
        f"{options.rounds} rounds in turns, {options.steps} steps each. All wait passively (OMP_WAIT_POLICY), as a stage does; Modelyard's also ask for huge pages, as a stage does."
    )


def _table(sides: list[Side]) -> list[str]:
    lines = ["| side | parameters | tokens/s: median (slowest to fastest) | ms a step | first step | peak memory |", "|---|---|---|---|---|---|"]
    for side in sides:
        about = side.about
        lines.append(
            f"| {SIDES[side.name]} | {about['parameters'] / 1e6:.2f}M | {side.rate():,.0f} ({side.rate(max):,.0f} to {side.rate(min):,.0f}) "
            f"| {1000 * median(side.rounds):.0f} | {about['first_step_seconds']:.1f} s | {about['peak_memory_mb']:,.0f} MiB |"
        )
    return lines


def _ratios(sides: dict[str, Side]) -> dict[str, list[float]]:
    """By round, so that what slows a round down slows both."""

    def over(name: str) -> list[float]:
        return [theirs / ours for theirs, ours in zip(sides[name].rounds, sides["fit"].rounds, strict=True)]

    found = {f"over_{name.replace('-', '_')}": over(name) for name in ("nanogpt", "nanogpt-compiled", "litgpt", "litgpt-compiled", "plain", "plain-compiled")}
    found["step_over_whole"] = [alone / whole for alone, whole in zip(sides["step"].rounds, sides["fit"].rounds, strict=True)]
    return found


def _bars(ratios: dict[str, list[float]]) -> list[str]:
    lines = ["| ratio of whole Modelyard, by rounds | median | range | bar |", "|---|---|---|---|"]
    for name, values in ratios.items():
        bar = BARS.get(name)
        said = "" if bar is None else f"at least {bar}"
        lines.append(f"| {name} | {median(values):.3f} | {min(values):.3f} to {max(values):.3f} | {said} |")
        print(f"ratio {name} {median(values):.3f} {'' if bar is None else bar}")
    return lines


def _around(sides: dict[str, Side]) -> list[str]:
    alone, whole = sides["step"], sides["fit"]
    return [
        "### What is around the step",
        "",
        f"The step alone takes {1000 * median(alone.rounds):.1f} ms, inside `fit` {1000 * median(whole.rounds):.1f} ms (medians); least {1000 * min(alone.rounds):.1f} and {1000 * min(whole.rounds):.1f} ms: "
        f"{100 * (1 - min(alone.rounds) / min(whole.rounds)):.1f} % of it is Lightning, the shards, MLflow, checkpoints every 50 steps, and the watch.",
    ]


if __name__ == "__main__":
    main()
