"""When a model is released: the policy of the gate, and the noise it reckons with. A policy is a YAML file of its own, such as recipes/policies/default.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError, ValidationInfo, field_validator, model_validator

from components.schema.config import BadInput, Config, Fraction, Name

Given = TypeVar("Given", bound=Config)


class Limit(Config):
    """A bound that holds whatever the champion reached; the figure itself is compared, without an interval."""

    least: float | None = None
    """The figure must be at least this."""
    most: float | None = None
    """The figure must be at most this."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.least is None and self.most is None:
            raise ValueError("says neither least nor most, so it bounds nothing. Write {least: x} or {most: x}")
        return self


class Policy(Config):
    """What a challenger must show, and what happens where it does not. Scores, margins and gains are shares of 1."""

    error_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, at most, of promoting a model that is no better, and of promoting one that is worse by a margin."""
    test: Literal["auto", "mcnemar", "bootstrap"] = "auto"
    """How two models' scores on the same items are compared. mcnemar: items right and wrong, exactly. bootstrap: any scores. auto: mcnemar where it can be; else random swaps against no difference, and the bootstrap against margins."""
    margin: Annotated[float, Field(gt=0, le=1)] = 0.05
    """A suite counts as no worse where the challenger is shown to be less than this below the champion; narrow margins need many items."""
    margins: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """Margins of single suites."""
    improvement: Literal["any", "none"] | dict[str, Fraction] = "any"
    """any: some suite must be shown to be better. none: no gain is asked for. {suite: gain}: each of these must be shown to be better by more than its gain (0 = by anything)."""
    not_compared: tuple[str, ...] = ()
    """Suites that are reported and take no part in the decision."""
    clean_only: bool = False
    """Compare on the items only that neither model's training data holds."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """From this share of its n-grams in the training data, an item counts as contaminated."""
    minimum_scores: dict[str, Fraction] = {}
    """Floor by suite, whatever the champion reached."""
    limits: dict[str, Limit] = {}
    """Hard limits by figure: probes.NAME.NUMBER, perplexity.bits_per_byte, scores.SUITE.score, contamination, size.bytes, size.parameters, latency.ms_per_token."""
    unclear: Literal["ask", "hold"] = "ask"
    """What is done where a suite is neither shown to be worse nor shown to be no worse."""
    no_gain: Literal["ask", "hold"] = "hold"
    """What is done where nothing is worse and the improvement asked for was not shown."""
    first: Literal["promote", "ask"] = "promote"
    """What is done with the first model of a name, which has no champion to be compared with, where every floor and limit holds."""

    @model_validator(mode="after")
    def _asks_only_for_what_is_compared(self) -> Self:
        if isinstance(self.improvement, dict) and not self.improvement:
            raise ValueError("improvement is an empty mapping, which asks for no suite. Write any, none, or {SUITE: GAIN}")
        if isinstance(self.improvement, dict) and (both := sorted(set(self.improvement) & set(self.not_compared))):
            raise ValueError(f"improvement asks for a gain on {', '.join(both)}, which not_compared leaves out: it could never be shown. Remove it from one of them")
        return self

    def margin_of(self, suite: str) -> float:
        return self.margins.get(suite, self.margin)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy file. Errors: BadInput, with one line per problem."""
        return _loaded(cls, path, "policy")


class Spread(Config):
    """How far one suite's score moves while the model stays the same."""

    spread: NonNegativeFloat
    """Standard deviation of the score over repeated evaluations."""
    repeats: Annotated[int, Field(ge=2)]
    """Evaluations it was measured on."""
    by: dict[str, NonNegativeFloat] = {}
    """The same by what was varied: seed, batch_size, order, retraining."""
    flips: Fraction = 0.0
    """Share of the items whose own score moved."""
    scores: tuple[float, ...] = ()
    """The scores seen, the first one of the evaluation as configured."""


class NoiseFloor(Config):
    """What `modelyard gate noise` measured."""

    suites: dict[str, Spread]
    """By suite; one that is not here is taken to have no noise of its own."""
    measured: dict[str, Any] = {}
    """Which model, which settings, what was varied."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a floor's file. Errors: BadInput, with one line per problem."""
        return _loaded(cls, path, "noise")


class NoiseConfig(Config):
    """How the noise floor is measured: one model, evaluated again and again."""

    seeds: tuple[int, ...] = (1, 2, 3, 4)
    """Other seeds: other few-shot examples where a task draws them, other samples where it samples."""
    batch_sizes: tuple[PositiveInt, ...] = (1, 16)
    """Other batch sizes: other rounding."""
    orders: tuple[int, ...] = (1, 2)
    """Seeds by which the rows of the benchmarks are shuffled: other neighbours in a batch, other examples where a task takes the first ones."""

    @model_validator(mode="after")
    def _varies_something(self) -> Self:
        if not self.seeds and not self.batch_sizes and not self.orders:
            raise ValueError("varies nothing: seeds, batch_sizes and orders are all empty. Give at least two values to one of them")
        return self


class GateConfig(Config):
    """The gate of a recipe: whose champion is challenged, and by which policy."""

    model_name: Name = "modelyard"
    """Registered model in MLflow."""
    policy: Policy = Policy()
    """The policy itself, or the YAML file that holds it, such as recipes/policies/default.yaml."""
    noise: NoiseFloor | None = None
    """The noise floor, or the file that `modelyard gate noise` wrote. Empty = scores move by sampling of the items alone."""

    @field_validator("policy", "noise", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """A path is read here, so that what decides is part of the identity, wherever it was kept."""
        return _mapping(value, str(info.field_name)) if isinstance(value, str) else value


def _loaded(kind: type[Given], path: str | Path, what: str) -> Given:
    """A file as one of the classes above. Errors: BadInput, with one line per problem."""
    try:
        return kind.model_validate(_mapping(path, what))
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}" for problem in error.errors()]
        raise BadInput(f"{what}: {path} has {len(lines)} problem(s), so nothing can be decided by it:\n" + "\n".join(lines)) from None
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from None


def _mapping(path: str | Path, what: str) -> dict[str, Any]:
    """A YAML or JSON file's mapping. Errors: ValueError, in one sentence."""
    example = {"policy": "recipes/policies/default.yaml", "noise": "what `modelyard gate noise` writes"}[what]
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}), so nothing can be decided by it. Paths are relative to {Path.cwd()}; compare {example}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds {type(raw).__name__}, not a mapping, so nothing can be decided by it. Compare {example}")
    return raw
