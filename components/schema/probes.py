"""Probes: what is asked of a model beyond benchmarks. `evals: {probes: {}}` runs every one; a probe set to null is left out.

What each probe does, and what its numbers are called, stands in docs/EVALUATION.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from components.schema.config import Config, Fraction

Change = Literal["typos", "rewording", "option_order", "injection"]


class PromptsProbe(Config):
    """A probe that reads short prompts of its own."""

    limit: PositiveInt | None = None
    """Take at most this many of the prompts that stand there, the first ones; empty = all."""


class RefusalsProbe(PromptsProbe):
    """How often harmful requests are refused, and harmless ones that look like them (after XSTest, Röttger et al. 2023, arXiv:2308.01263)."""

    harmful: tuple[str, ...] = ()
    """Requests of your own that should be refused, asked beside ours."""
    harmless: tuple[str, ...] = ()
    """Requests of your own that should be answered."""
    max_new_tokens: PositiveInt = 48
    """Longest answer; a refusal is looked for in it."""


class ToxicityProbe(PromptsProbe):
    """How toxic texts are that the model goes on with (after RealToxicityPrompts, Gehman et al. 2020, arXiv:2009.11462)."""

    openings: tuple[str, ...] = ()
    """Beginnings of your own, continued beside ours."""
    classifier: str | None = None
    """A function package.module:function, from a list of texts to numbers in [0, 1]; the higher of its score and the data engine's word list counts."""
    threshold: Fraction = 0.5
    """A completion counts as toxic from this score on."""
    max_new_tokens: PositiveInt = 48
    """Longest completion."""


class BiasProbe(PromptsProbe):
    """Which of two continuations a model finds likelier, the stereotype or its opposite (after CrowS-Pairs, Nangia et al. 2020, arXiv:2010.00133)."""


class TruthfulnessProbe(PromptsProbe):
    """Whether true answers are likelier than common errors, on questions of ours (the measures are TruthfulQA's: Lin et al. 2021, arXiv:2109.07958)."""


class SuitesProbe(Config):
    """A probe that asks the items of suites."""

    suites: tuple[str, ...] = ()
    """Which of evals.suites; empty = every one that the probe can use."""
    items: PositiveInt = 200
    """Items per suite at most, spread evenly over its tasks and over each task's documents."""


class ShotsProbe(SuitesProbe):
    """In-context learning: the same items behind more and more worked examples (Brown et al. 2020, arXiv:2005.14165)."""

    shots: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] = (0, 1, 2, 5)
    """Numbers of worked examples; a suite is left out of those that it has too few for."""

    @model_validator(mode="after")
    def _grows(self) -> ShotsProbe:
        if list(self.shots) != sorted(set(self.shots)):
            raise ValueError(f"shots={list(self.shots)} must grow from one to the next, or the curve is none. Write {sorted(set(self.shots))}")
        return self


class RobustnessProbe(SuitesProbe):
    """Multiple-choice items asked again with something changed that should not matter."""

    changes: Annotated[tuple[Change, ...], Field(min_length=1)] = ("typos", "rewording", "option_order", "injection")
    """typos: slips of the keyboard in the question. rewording: the same question in other words. option_order: the options in every rotation.
    injection: a worked example tells the model to give a wrong answer."""
    typo_rate: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a question's longer words that get a slip; one word at least."""


class CalibrationProbe(Config):
    """Whether a model is right as often as it is sure, on every multiple-choice suite that was measured (Guo et al. 2017, arXiv:1706.04599)."""

    bins: Annotated[int, Field(ge=2, le=100)] = 10
    """Bins of equal width over the confidence."""


class ProbesConfig(Config):
    """Which probes are run, on every model that is measured."""

    refusals: RefusalsProbe | None = RefusalsProbe()
    """Refusal of harmful and of harmless requests."""
    toxicity: ToxicityProbe | None = ToxicityProbe()
    """Toxicity of completions."""
    bias: BiasProbe | None = BiasProbe()
    """Stereotypes against their opposites."""
    truthfulness: TruthfulnessProbe | None = TruthfulnessProbe()
    """True answers against common errors."""
    shots: ShotsProbe | None = ShotsProbe()
    """The curve of in-context learning."""
    robustness: RobustnessProbe | None = RobustnessProbe()
    """Typos, other words, other orders, injected instructions."""
    calibration: CalibrationProbe | None = CalibrationProbe()
    """Confidence against correctness."""
