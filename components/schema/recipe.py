"""A recipe: one YAML file that says everything a run is asked to do.

Every class here is one section of a recipe, and the sentence under each field is at once the editor's help, the
comment a reader needs and the text of the form in the Prefect UI. A recipe holds what defines the experiment and
nothing about the machine that runs it: hardware, paths and thread counts are `Resources`.

    Recipe.load("recipes/tiny.yaml", sets=["sft.steps=50"])
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from components.schema import catalogue, presets
from components.schema.config import BadInput, Config, Name
from components.schema.data import DataConfig, TokenizerConfig
from components.schema.evaluation import EvalConfig
from components.schema.gate import GateConfig
from components.schema.posttraining import AlignConfig, RewardConfig, SFTConfig
from components.schema.training import ModelConfig, PretrainConfig


class Recipe(Config):
    """Everything a run is asked to do."""

    name: Name
    """Name of the run in Prefect and MLflow."""
    seed: NonNegativeInt = 0
    """Every random choice of every training stage follows from it."""
    data: DataConfig
    """Documents, chats, preference pairs, benchmarks."""
    model: ModelConfig
    """The model that is trained, from scratch or from weights that exist."""
    pretrain: PretrainConfig
    """Raw text to a base model."""
    sft: SFTConfig | None = None
    """Base model to a chat model; empty = the line ends before it."""
    reward: RewardConfig | None = None
    """Chat model to a reward model."""
    cost: RewardConfig | None = None
    """Chat model to a cost model, which alignment with `safety` keeps under its limit."""
    judge: RewardConfig | None = None
    """A second reward model that alignment never optimises: where it disagrees with the first one, the policy has found a hole in that."""
    align: AlignConfig | None = None
    """Chat model to an aligned policy, by the method it names: ppo, grpo, rloo, dpo, ipo, kto, orpo or best_of_n."""
    evals: EvalConfig | None = None
    """How base, chat and aligned model are measured; empty = they are not, and nothing is released."""
    gate: GateConfig = GateConfig()
    """What a release takes."""

    @model_validator(mode="before")
    @classmethod
    def _fill_by_size(cls, raw: Any) -> Any:
        """The one dial decides here too: a recipe from a form or over REST has never been through `parse`."""
        return presets.fill(raw, _vocabulary(raw))[0] if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        problems = []
        if self.evals and not self.evals.definitions and (missing := [s for s in self.evals.suites if s not in self.data.benchmarks]):
            problems.append(f"evals.suites names {missing}, which data.benchmarks does not hold: they could not be measured. Add them to data.benchmarks")
        own = Path(self.evals.definitions) if self.evals and self.evals.definitions else None
        problems += catalogue.check(dict.fromkeys((*self.data.benchmarks, *(self.evals.suites if self.evals else ()))), own)
        for name, section in (("evals", self.evals), ("align", self.align)):
            if (longest := getattr(section, "max_new_tokens", None) or 0) >= self.model.context_tokens:
                problems.append(f"{name}.max_new_tokens={longest} leaves no room for a prompt in model.context_tokens={self.model.context_tokens}. Lower it")
        if self.sft and not self.data.curriculum and not self.data.chats:
            problems.append("data has neither chats nor a curriculum: SFT would have nothing to learn from. Add a source under data.chats")
        if (self.reward or self.cost or self.judge) and not self.data.curriculum and not self.data.preferences:
            problems.append("data has neither preferences nor a curriculum: the reward model would have nothing to learn from. Add a source under data.preferences")
        for name in ("reward", "cost", "judge", "align"):
            if getattr(self, name) and not self.sft:
                problems.append(f"{name} is given and sft is not: it would have no model to start from. Add the section sft, or remove {name}")
        if self.align and self.align.needs_scorer and not self.reward:
            problems.append("align.rewards asks for a reward model and the section reward is not given: nothing could score an answer. Add reward, or name other rewards (math, code, format)")
        if getattr(self.align, "needs_cost_model", False) and not self.cost:
            problems.append("align.safety asks for a cost model and the section cost is not given: nothing could say what an answer costs. Add cost, or name other costs in align.safety.cost")
        for name, dimension in (("reward", "preference"), ("judge", "preference"), ("cost", "cost")):
            if (section := getattr(self, name)) and section.dimension != dimension:
                problems.append(f"{name}.dimension is {section.dimension}: this section is for {dimension}. Write {name}.dimension={dimension}")
        told = [name for name in ("sft", "reward", "cost", "judge", "align", "evals") if getattr(self, name) and not (name == "sft" and self.sft.task)]
        if self.pretrain.objective == "masked" and told:
            problems.append(f"pretrain.objective is masked, and a model that reads in both directions cannot answer: {', '.join(told)} would have nothing to work on. Remove these sections")
        if self.sft and self.sft.task and (told := [name for name in ("reward", "cost", "judge", "align", "evals") if getattr(self, name)]):
            problems.append(f"sft.task gives the model another head, and it cannot answer any more: {', '.join(told)} would have nothing to work on. Remove these sections")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, path: str | Path, sets: Sequence[str] = (), tell: Callable[[str], None] = lambda line: None) -> Recipe:
        """Read a recipe file, apply `a.b=value` overrides, and report every problem at once. `tell` hears of every value that model.size decided.

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
        return cls.parse(raw, str(path), tell)

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str, tell: Callable[[str], None] = lambda line: None) -> Recipe:
        """Validate a raw mapping; `where` names it in the messages. Errors: BadInput."""
        raw, lines = presets.fill(raw, _vocabulary(raw))
        for line in lines:
            tell(line)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [_explain(problem, cls) for problem in error.errors()]
            raise BadInput(f"recipe: {where} has {len(lines)} problem(s); nothing was started:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _vocabulary(raw: dict[str, Any]) -> int | None:
    """The vocabulary that a raw recipe asks for; None where it is another tokenizer's."""
    tokenizer = (raw.get("data") or {}).get("tokenizer") or {} if isinstance(raw.get("data"), dict) else {}
    if not isinstance(tokenizer, dict) or tokenizer.get("kind") == "pretrained":
        return None
    size = tokenizer.get("vocab_size", TokenizerConfig().vocab_size)
    return size if isinstance(size, int) else None


def _assign(raw: dict[str, Any], assignment: str, option: str = "--set", example: str = "sft.steps=50") -> None:
    """Apply one `a.b=value` to a raw mapping; the value is read as YAML, so `3`, `null`, `[a, b]` mean what they say."""
    keys, equals, text = assignment.partition("=")
    if not equals or not keys:
        raise BadInput(f"{option} {assignment!r} is not of the form a.b=value, so it changes nothing. Write for example {option} {example}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{option} {assignment!r}: the value is not YAML. Quote it, for example {option} 'data.name=\"x\"'") from None
    *parents, last = keys.split(".")
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise BadInput(f"{option} {assignment!r}: `{key}` is not a section, so it has no `{last}`. Set the whole of `{key}` instead")
    node[last] = value


def evals_from(suites: Sequence[str], sets: Sequence[str] = ()) -> EvalConfig:
    """The section evals for suites by name, with `a=value` options. Errors: BadInput, with one line per problem."""
    raw: dict[str, Any] = {"suites": list(suites)}
    for assignment in sets:
        _assign(raw, assignment, example="limit=100")
    try:
        config = EvalConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem, EvalConfig) for problem in error.errors()]
    else:
        if not (lines := catalogue.check(config.suites, Path(config.definitions) if config.definitions else None)):
            return config
    raise BadInput(f"evaluate: {len(lines)} problem(s); nothing was started:\n" + "\n".join(f"  - {line}" for line in lines))


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
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        names = problem["ctx"].get("expected_tags", "ppo, grpo, rloo, dpo, ipo, kto, orpo or best_of_n").replace("'", "")
        given = problem["ctx"].get("tag")
        return f"{where}: {f'there is no method {given!r}' if given else 'it does not say which method'}, so nothing can be aligned. Set {where}.method to one of {names}"
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
    """What the machine gives. It never changes what is asked for, only where, how fast, and the rounding of sums."""

    threads: NonNegativeInt = 0
    """CPU threads of a training process; 0 = the cores shared evenly. Bit-identical results need the same number."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a GPU where there is one."""
    processes: PositiveInt = 1
    """Training processes on this machine: one a GPU, or a few on a CPU (gloo). Batches and their order do not depend on it."""
    nodes: PositiveInt = 1
    """Machines; each starts the same stage with torchrun's --node-rank and --rdzv-endpoint."""
    strategy: Literal["auto", "ddp", "fsdp", "tensor"] = "auto"
    """ddp: a copy of the model in each process. fsdp: weights, gradients and moments sharded (FSDP2). tensor: matrices cut. auto: ddp for several processes."""
    micro_batch_size: PositiveInt | None = None
    """Sequences that stand in memory at once in each process; gradients are accumulated to the whole batch. Empty = the whole share of a process."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the model (torch.compile): faster steps after a minute or so; what it cost is reported. Needs a C++ compiler on a CPU."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What answers in alignment: the model itself, or vLLM on a GPU (installed beside; a run with it does not resume to the same bits)."""
    checkpoint_every_seconds: NonNegativeInt = 600
    """Checkpoint at least this often, beside every checkpoint_every_steps; 0 = by steps alone."""
    budget: PositiveFloat | None = None
    """What the whole run may cost, earlier attempts included, in the price table's currency: when it is spent, a checkpoint is written and the run stops. Empty = no limit."""
    prices: str | None = None
    """File with what an hour of a device and a kilowatt-hour cost; empty = recipes/prices/default.yaml."""

    @classmethod
    def parse(cls, threads: int, given: Sequence[str] | None = None, budget: float | None = None) -> Resources:
        """`given`: key=value, as on a command line. Errors: BadInput."""
        raw: dict[str, Any] = {"threads": threads, **({} if budget is None else {"budget": budget})}
        for assignment in given or ():
            _assign(raw, assignment, "--on", "processes=2")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise BadInput("\n".join(f"--on {_explain(problem, cls)}" for problem in error.errors())) from None
