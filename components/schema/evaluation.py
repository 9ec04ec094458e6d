"""What is asked of an evaluation."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from components.schema.config import Config
from components.schema.data import Suite


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
