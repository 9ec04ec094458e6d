"""A recipe: one YAML file that says everything a run is asked to do.

Every class here is one section of a recipe, and the sentence under each field is at once the editor's help, the
comment a reader needs and the text of the form in the Prefect UI. A recipe holds what defines the experiment and
nothing about the machine that runs it: hardware, paths and thread counts are `Resources`.

    Recipe.load("recipes/tiny.yaml", sets=["sft.steps=50"])
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from components.schema.config import BadInput, Config, Fraction, Name
from components.schema.data import DataConfig, Suite

# ---------------------------------------------------------------- model and training


class ModelConfig(Config):
    """A causal language model built by transformers from its configuration, from scratch."""

    architecture: str = "llama"
    """transformers' model_type: llama, qwen2, mistral, gpt2, ..."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    layers: PositiveInt
    """Number of transformer blocks."""
    heads: PositiveInt
    """Attention heads; must divide hidden_size."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    context_tokens: Annotated[int, Field(ge=32)] = 256
    """Longest sequence the model reads, in tokens."""
    tie_embeddings: bool = True
    """Share the input and output embedding matrices."""
    extra: dict[str, Any] = {}
    """Further fields of the architecture's own transformers configuration."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.hidden_size % self.heads:
            fits = [h for h in range(1, 65) if self.hidden_size % h == 0]
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}: heads would have unequal widths. Use heads in {fits}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size/heads={self.hidden_size // self.heads} is odd: rotary positions need pairs. Choose an even width per head")
        return self


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with linear warm-up and cosine decay."""

    steps: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt
    """Sequences (pretraining, SFT) or pairs (reward model) in each optimizer step, over all processes together."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up from zero."""
    min_learning_rate_ratio: Fraction = 0.1
    """Learning rate at the last step, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices; norms and biases are never decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's moment coefficients."""
    grad_clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this global norm."""
    checkpoint_every_steps: PositiveInt = 50
    """A killed run goes on from the last multiple of this many steps."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> OptimConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is not below steps={self.steps}: the peak learning rate would never be reached. Lower warmup_steps")
        return self


class PretrainConfig(OptimConfig):
    """Next-token prediction on packed token sequences of context_tokens."""

    heldout_sequences: PositiveInt = 64
    """Held-out sequences on which bits per byte are measured before and after."""


class SFTConfig(OptimConfig):
    """Supervised fine-tuning on chats; the loss counts the assistant's tokens and its end-of-turn token only."""

    heldout_chats: PositiveInt = 256
    """Held-out chats on which the loss is measured before and after."""


class RewardConfig(OptimConfig):
    """A scalar head learns which of two answers people prefer (Bradley-Terry loss; Ouyang et al. 2022, arXiv:2203.02155)."""

    heldout_pairs: PositiveInt = 400
    """Held-out pairs on which accuracy is measured before and after."""


class PPOConfig(Config):
    """Align the chat model against the reward model (Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593)."""

    iterations: PositiveInt
    """Rounds of sampling and updating."""
    rollout_size: PositiveInt = 64
    """Prompts answered by the policy before each round of updates."""
    minibatch_size: PositiveInt = 32
    """Answers in each optimizer step; must divide rollout_size."""
    epochs: PositiveInt = 2
    """Passes over each round's answers."""
    max_new_tokens: PositiveInt = 64
    """Longest answer; one that has not ended by then is charged `unfinished_penalty`."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the rollouts."""
    learning_rate: PositiveFloat = 3e-5
    """Peak learning rate of policy and value head, held constant after warm-up."""
    warmup_steps: NonNegativeInt = 5
    """Optimizer steps of linear warm-up."""
    kl_coef: NonNegativeFloat = 0.05
    """Price, in reward units per nat, of moving away from the SFT model. 0 = unregularised."""
    clip_range: PositiveFloat = 0.2
    """The probability ratio counts only within 1 +- this."""
    value_clip_range: PositiveFloat = 0.2
    """The value may move at most this far from its old estimate before its loss stops counting."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss beside the policy loss."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """GAE's trade between bias and variance (Schulman et al. 2016, arXiv:1506.02438)."""
    unfinished_penalty: NonNegativeFloat = 1.0
    """Reward taken from an answer without an end-of-turn token."""
    grad_clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this global norm."""
    heldout_prompts: PositiveInt = 128
    """Held-out prompts on which reward and KL are measured before and after."""
    checkpoint_every_iterations: PositiveInt = 5
    """A killed run goes on from the last multiple of this many iterations."""

    @model_validator(mode="after")
    def _minibatches_divide(self) -> PPOConfig:
        if self.rollout_size % self.minibatch_size:
            fits = [m for m in range(1, self.rollout_size + 1) if self.rollout_size % m == 0]
            raise ValueError(
                f"rollout_size={self.rollout_size} is not a multiple of minibatch_size={self.minibatch_size}: the last "
                f"{self.rollout_size % self.minibatch_size} answers of every round would never train. Use minibatch_size in {fits}"
            )
        return self


# ---------------------------------------------------------------- evaluation and release


class EvalConfig(Config):
    """Benchmarks through lm-eval's own code, and held-out perplexity."""

    suites: tuple[Suite, ...]
    """Which suites; each must be among data.benchmarks."""
    limit: PositiveInt | None = None
    """Items per task at most (for mmlu: per subject). None = all."""
    fewshot: dict[Suite, NonNegativeInt] = {}
    """Worked examples in front of each question, by suite; the suite's own default where absent."""
    batch_size: PositiveInt = 64
    """Sequences scored or generated together."""
    max_new_tokens: PositiveInt = 96
    """Longest generated answer, in tokens."""
    perplexity_sequences: PositiveInt = 64
    """Held-out sequences on which perplexity and bits per byte are measured."""


class GateConfig(Config):
    """When a challenger becomes champion: no suite worse than the champion's by more than its noise."""

    model_name: Name = "modelyard"
    """Registered model in MLflow."""
    noise_sigmas: NonNegativeFloat = 2.0
    """How many standard errors of the difference count as noise."""
    minimum_scores: dict[str, Fraction] = {}
    """Floor by suite, whatever the champion reached."""


class Recipe(Config):
    """Everything a run is asked to do."""

    name: Name
    """Name of the run in Prefect and MLflow."""
    seed: NonNegativeInt = 0
    """Every random choice of every training stage follows from it."""
    data: DataConfig
    """Documents, chats, preference pairs, benchmarks."""
    model: ModelConfig
    """The model that is trained from scratch."""
    pretrain: PretrainConfig
    """Raw text to a base model."""
    sft: SFTConfig
    """Base model to a chat model."""
    reward: RewardConfig
    """Chat model to a reward model."""
    align: PPOConfig
    """Chat model to an aligned policy."""
    evals: EvalConfig
    """How base, chat and aligned model are measured."""
    gate: GateConfig = GateConfig()
    """What a release takes."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        problems = []
        if missing := [s for s in self.evals.suites if s not in self.data.benchmarks]:
            problems.append(f"evals.suites names {missing}, which data.benchmarks does not hold: they could not be measured. Add them to data.benchmarks")
        if self.evals.max_new_tokens >= self.model.context_tokens:
            problems.append(f"evals.max_new_tokens={self.evals.max_new_tokens} leaves no room for a prompt in model.context_tokens={self.model.context_tokens}. Lower it")
        if self.align.max_new_tokens >= self.model.context_tokens:
            problems.append(f"align.max_new_tokens={self.align.max_new_tokens} leaves no room for a prompt in model.context_tokens={self.model.context_tokens}. Lower it")
        if not self.data.curriculum and not self.data.chats:
            problems.append("data has neither chats nor a curriculum: SFT would have nothing to learn from. Add a source under data.chats")
        if not self.data.curriculum and not self.data.preferences:
            problems.append("data has neither preferences nor a curriculum: the reward model would have nothing to learn from. Add a source under data.preferences")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, path: str | Path, sets: Sequence[str] = ()) -> Recipe:
        """Read a recipe file, apply `a.b=value` overrides, and report every problem at once.

        Errors: BadInput, with one line per problem.
        """
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = sorted(str(p) for p in Path("recipes").glob("*.yaml"))
            raise BadInput(f"recipe: {path} does not exist, so there is nothing to run. Recipes here: {', '.join(known) or 'none'}") from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise BadInput(f"recipe: {path} is not readable YAML ({str(error).splitlines()[0]}). Compare it with recipes/tiny.yaml") from None
        if not isinstance(raw, dict):
            raise BadInput(f"recipe: {path} holds {type(raw).__name__}, not a mapping of sections. Compare it with recipes/tiny.yaml")
        for assignment in sets:
            _assign(raw, assignment)
        return cls.parse(raw, where=str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str) -> Recipe:
        """Validate a raw mapping; `where` names it in the messages. Errors: BadInput."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [_explain(problem, cls) for problem in error.errors()]
            raise BadInput(f"recipe: {where} has {len(lines)} problem(s); nothing was started:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _assign(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b=value` to a raw recipe; the value is read as YAML, so `3`, `null`, `[a, b]` mean what they say."""
    keys, equals, text = assignment.partition("=")
    if not equals or not keys:
        raise BadInput(f"--set {assignment!r} is not of the form a.b=value, so it changes nothing. Write for example --set sft.steps=50")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"--set {assignment!r}: the value is not YAML. Quote it, for example --set 'data.name=\"x\"'") from None
    *parents, last = keys.split(".")
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise BadInput(f"--set {assignment!r}: `{key}` is not a section, so it has no `{last}`. Set the whole of `{key}` instead")
    node[last] = value


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """One pydantic problem as a sentence: where, what was given, what to do."""
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = list(_section(model, problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}"
        return f"{where}: unknown key, it would be ignored. {hint}"
    if problem["type"] == "missing":
        return f"{where}: required and not given. Add it to the recipe"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
    return f"{where}: {message}{given}"


def _section(model: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel]:
    """The config class that stands at `loc` below `model`, as far as it can be followed."""
    for key in loc:
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model


class Resources(Config):
    """What the machine gives. It never changes what is computed, only where and how fast."""

    threads: NonNegativeInt = 0
    """CPU threads of a training process; 0 = as many as there are cores. Bit-identical results need the same number."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a GPU where there is one."""
