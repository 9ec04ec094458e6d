"""Ways of aligning one and the same chat model, several seeds each: what each does to the reward, to the model's distance from itself, to sums and to length.

    modelyard run recipes/tiny.yaml                                  # makes the chat model and the reward model
    .venv/bin/python -m benchmarks.alignment recipes/tiny.yaml [--seeds 5] [--methods ppo,dpo,grpo]

Every policy is measured with one yardstick: answers to held-out preference prompts, sampled at temperature 1, scored by the reward model; KL from the chat model; and
mini_gsm8k. Results that stand are reused, so it goes on where it was cut off. Writes the section Alignment of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter

from benchmarks.results import machine, write_section
from components.data.versioning import versions
from components.launch import launch
from components.models.build import load
from components.schema import jobs
from components.schema.evaluation import EvalConfig
from components.schema.posttraining import AlignConfig
from components.schema.recipe import Recipe
from components.schema.records import Artifact, Record
from components.training.align import Given
from components.training.online import judge_policy, prepare
from components.training.trainer import Context

T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, two-sided, by seeds
SHORT = {"warmup_steps": 4, "heldout_prompts": 64, "checkpoint_every_iterations": 8}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "steps": 120, "batch_size": 16, "learning_rate": 3e-5, "warmup_steps": 10, "beta": 0.1, "heldout_pairs": 200},
    "grpo": {
        "method": "grpo", "iterations": 100, "rollout_size": 256, "minibatch_size": 256, "epochs": 1, "group_size": 16, "max_new_tokens": 64, "learning_rate": 1e-4, "kl_coef": 0.01,
        "prompts": {"source": "chats", "kinds": ["word_problem"]}, "rewards": [{"kind": "math"}], **SHORT,
    },
}  # fmt: skip
MEASURES = {"reward": "reward", "kl": "KL, nats an answer", "mini_gsm8k": "mini_gsm8k", "length": "tokens an answer"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe with sft, reward and a ppo section that was run")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method")
    parser.add_argument("--methods", default="ppo,dpo,grpo", help="which of them")
    options = parser.parse_args()
    yard = Yard(Recipe.load(options.recipe))
    before = yard.measured(yard.chat)
    rows = {"chat (SFT)": [before]}
    for method in options.methods.split(","):
        rows[method] = [yard.measured(yard.aligned(method, seed)) for seed in range(1, options.seeds + 1)]
    text = [f"{machine()}. {options.recipe.name}'s chat model, {options.seeds} seeds each; mean ± half of the 95 % interval over seeds (Student's t).", "", *_table(rows)]
    print("\n".join(text))
    write_section("Alignment", "\n".join(text))
    print("written to benchmarks/RESULTS.md; next: change a method's settings in benchmarks/alignment.py, or run more --seeds")


class Yard:
    """The chat model, what aligns it, and the yardstick."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.dataset = recipe, versions.current(recipe.data)
        self.run = jobs.Run(recipe_name=recipe.name, seed=recipe.seed)
        line = jobs.line(recipe, self.dataset, self.run)
        self.chat, self.scorers = line["sft"].output, {"reward": line["reward"].output}
        given = Given(Path(self.chat.path), {"reward": Path(self.scorers["reward"].path)}, Path(self.dataset.preferences.path), Path(self.dataset.chats.path), lambda programs: [])
        self.config = recipe.align
        self.ground = prepare(self.config, given, Context(seed=recipe.seed))

    def aligned(self, method: str, seed: int) -> Artifact:
        raw = {**self.recipe.align.model_dump(mode="json")} if method == "ppo" else METHODS[method]
        job = jobs.align(TypeAdapter(AlignConfig).validate_python(raw), self.chat, self.scorers, self.dataset, self.run.model_copy(update={"seed": seed}))
        _launched(job, f"{method} seed {seed}")
        return job.output

    def measured(self, model: Artifact) -> dict[str, float]:
        self.ground.policy.load_state_dict(load(Path(model.path)).state_dict())
        judged = judge_policy(self.ground, self.config, self.recipe.seed)
        config = EvalConfig(suites=("mini_gsm8k",), batch_size=64, max_new_tokens=64, perplexity_sequences=8)
        record = _launched(jobs.evaluate(config, {"policy": model}, self.dataset, self.run), "mini_gsm8k")
        found = {"reward": fmean(judged["worth"]["reward"]), "kl": judged["kl"], "length": judged["length"], "mini_gsm8k": record.figures["scores"]["policy"]["mini_gsm8k"]["score"]}
        print("   ", {name: round(value, 3) for name, value in found.items()}, file=sys.stderr, flush=True)
        return found


def _launched(job: jobs.Job, what: str) -> Record:
    record, found = launch(job, lambda event: None)
    print(f"{what}: {found.action}", file=sys.stderr, flush=True)
    return record


def _table(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = ["| | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---|" * len(MEASURES)]
    for name, runs in rows.items():
        lines.append(f"| {name} | " + " | ".join(_interval([run[measure] for run in runs]) for measure in MEASURES) + " |")
    return lines


def _interval(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {T95.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
