"""The line as jobs: what each stage is given, in one place.

A job is pure data: its identity and its output's place follow from its configuration and its inputs, so the whole line
can be planned before anything runs, and the flows, `--plan` and `modelyard stage` cannot disagree about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.schema.config import Config
from components.schema.data import DataConfig
from components.schema.evaluation import EvalConfig
from components.schema.gate import GateConfig, NoiseConfig
from components.schema.posttraining import AlignConfig, RewardConfig, SFTConfig
from components.schema.recipe import Recipe, Resources
from components.schema.records import Artifact, Dataset, digest, file_md5, folder_of, identity_of
from components.schema.training import ModelConfig, PretrainConfig

LINE = ("data", "pretrain", "sft", "reward", "cost", "judge", "align", "evaluate", "release")
SECTIONS = {"sft": "sft", "reward": "reward", "cost": "cost", "judge": "judge", "align": "align", "evaluate": "evals", "release": "evals"}  # what is in the line where its section is given
SCORERS = ("reward", "cost", "judge")  # scalar models: one stage, thrice
ALIGN = ("ppo", "grpo", "dpo", "best_of_n")  # what `align` is, by the recipe's method
TRAINING = ("pretrain", "sft", *SCORERS, "dpo")  # what several processes can do together; a policy samples in one


class Run(Config):
    """What every stage of one run shares besides its own configuration."""

    recipe_name: str = "unnamed"
    """Name of the recipe, for the tracker."""
    recipe_hash: str = ""
    """md5 of the resolved recipe."""
    seed: int = 0
    """The recipe's seed."""
    resources: Resources = Resources()
    """What this machine gives."""
    parent_run_id: str | None = None
    """MLflow run under which the stages' runs stand; None = each stands alone."""
    spent: float = 0.0
    """What the run's other stages have cost, in the currency of its prices; a budget is compared with this and the stage's own cost."""
    options: dict[str, Any] = {}
    """What else a stage is told that never changes its result: where an endpoint is reached, how patiently."""


class Job(Config):
    """One stage to be run: everything its process is told."""

    stage: str
    config: dict[str, Any]
    """What defines the result, seed included."""
    inputs: dict[str, Artifact] = {}
    run: Run = Run()
    """What surrounds it; never part of the identity."""

    @property
    def identity(self) -> str:
        return identity_of(self.stage, self.config, {name: part.identity for name, part in self.inputs.items()})

    @property
    def folder(self) -> Path:
        return folder_of(self.stage, self.identity)

    @property
    def output(self) -> Artifact:
        """What a later stage reads, known before this one has run."""
        return Artifact(path=str(self.folder), identity=self.identity)


def data(config: DataConfig, run: Run) -> Job:
    return Job(stage="data", config=_plain(data=config), run=run)


def pretrain(model: ModelConfig, config: PretrainConfig, dataset: Dataset, run: Run, weights: Artifact | None = None) -> Job:
    """`weights`: what model.init_from names."""
    given = {"weights": weights} if weights else {}
    return Job(
        stage="pretrain",
        config=_plain(model=model, pretrain=config, seed=run.seed),
        inputs={"tokens": dataset.tokens, "mix": dataset.mix, "tokenizer": dataset.tokenizer, **given},
        run=run,
    )


def sft(config: SFTConfig, base: Artifact, dataset: Dataset, run: Run) -> Job:
    return Job(stage="sft", config=_plain(sft=config, seed=run.seed), inputs={"base": base, "chats": dataset.chats}, run=run)


def reward(config: RewardConfig, chat: Artifact, dataset: Dataset, run: Run, stage: str = "reward") -> Job:
    """`stage`: reward, cost or judge."""
    return Job(stage=stage, config=_plain(reward=config, seed=run.seed), inputs={"chat": chat, "preferences": dataset.preferences}, run=run)


def align(config: AlignConfig, chat: Artifact, scorers: dict[str, Artifact], dataset: Dataset, run: Run) -> Job:
    """`scorers` by role: reward, cost, judge; those that the recipe has."""
    return Job(
        stage=config.stage,
        config=_plain(align=config, seed=run.seed),
        inputs={"chat": chat, **scorers, "preferences": dataset.preferences, "chats": dataset.chats},
        run=run,
    )


def evaluate(config: EvalConfig, models: dict[str, Artifact], dataset: Dataset, run: Run) -> Job:
    """`models` by role: base, chat, policy. All are measured in one process, so that before and after share every setting."""
    own = {"definitions": folder_artifact(Path(config.definitions))} if config.definitions else {}
    return Job(
        stage="evaluate",
        config=_plain(evals=config, seed=run.seed),
        inputs={**models, "benchmarks": dataset.benchmarks, "tokens": dataset.tokens, "overlap": dataset.overlap, **own},
        run=run,
    )


def noise(config: NoiseConfig, evals: EvalConfig, model: Artifact, role: str, dataset: Dataset, run: Run, retrained: tuple[Artifact, ...] = ()) -> Job:
    """Beside the line: how far scores move while the model stays the same. `retrained`: models of the same recipe with other seeds."""
    others = {f"retrained_{number:02d}": other for number, other in enumerate(retrained)}
    asked = _plain(noise=config, evals=evals.model_copy(update={"probes": None}), seed=evals.fewshot_seed, role=role)
    return Job(stage="noise", config=asked, inputs={"model": model, **others, "benchmarks": dataset.benchmarks, "tokens": dataset.tokens}, run=run)


def release(config: GateConfig, models: dict[str, Artifact], report: Artifact, run: Run) -> Job:
    """The last model of the line is released: policy, else chat, else base."""
    role = list(models)[-1]
    return Job(stage="release", config=_plain(gate=config, role=role), inputs={"model": models[role], "report": report}, run=run)


def stages(recipe: Recipe) -> tuple[str, ...]:
    """The stages of a recipe's line, in order."""
    return tuple(recipe.align.stage if name == "align" else name for name in LINE if name not in SECTIONS or getattr(recipe, SECTIONS[name]))


def line(recipe: Recipe, dataset: Dataset, run: Run, weights: Artifact | None = None) -> dict[str, Job]:
    """Every stage after the data, in order, by name. `weights`: what model.init_from names."""
    made = {"pretrain": pretrain(recipe.model, recipe.pretrain, dataset, run, weights)}
    models = {"base": made["pretrain"].output}
    if recipe.sft:
        made["sft"] = sft(recipe.sft, models["base"], dataset, run)
        models["chat"] = made["sft"].output
    scorers = {}
    for name in SCORERS:
        if config := getattr(recipe, name):
            made[name] = reward(config, models["chat"], dataset, run, name)
            scorers[name] = made[name].output
    if recipe.align:
        made[recipe.align.stage] = align(recipe.align, models["chat"], scorers, dataset, run)
        models["policy"] = made[recipe.align.stage].output
    if recipe.evals:
        made["evaluate"] = evaluate(recipe.evals, models, dataset, run)
        made["release"] = release(recipe.gate, models, made["evaluate"].output, run)
    return made


def folder_artifact(path: Path) -> Artifact:
    """A folder of a person's own, known by what is in it; one that is not there is told by the stage."""
    return Artifact(path=str(path), identity=digest({str(file.relative_to(path)): file_md5(file) for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts}))


def _plain(**parts: Any) -> dict[str, Any]:
    """Configs as JSON-able mappings."""
    return {name: part.model_dump(mode="json") if isinstance(part, Config) else part for name, part in parts.items()}
