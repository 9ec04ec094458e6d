"""What is asked of an evaluation."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from components.schema.config import Config
from components.schema.data import Suite
from components.schema.probes import ProbesConfig


class EvalConfig(Config):
    """Benchmarks through lm-eval's own code, and held-out perplexity."""

    suites: tuple[Suite, ...]
    """Which suites: any task, group or tag of lm-eval by its name, and mini_*. Each must be among data.benchmarks, or defined in `definitions`."""
    definitions: str | None = None
    """Folder with definitions of your own in lm-eval's format (YAML), relative to the project."""
    limit: PositiveInt | None = None
    """Items per task at most (for mmlu: per subject). None = all."""
    fewshot: dict[Suite, NonNegativeInt] = {}
    """Worked examples in front of each question, by suite; the suite's own default where absent."""
    fewshot_seed: NonNegativeInt = 1234
    """Which worked examples are drawn, where a suite draws them; 1234 is lm-eval's own."""
    chat_template: bool | None = None
    """Ask through the model's chat template, worked examples as turns of their own; empty = every model but the base model."""
    batch_size: PositiveInt = 64
    """Sequences scored or generated together, at most; fewer where memory is short."""
    max_new_tokens: PositiveInt | None = None
    """Longest generated answer, in tokens; empty = as the suite defines it (lm-eval's default is 256)."""
    perplexity_sequences: PositiveInt = 64
    """Held-out sequences on which perplexity and bits per byte are measured."""
    probes: ProbesConfig | None = None
    """What is asked beyond benchmarks: safety, truthfulness, in-context learning, robustness, calibration; {} = all of it, empty = nothing."""
