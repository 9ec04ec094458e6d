"""When a model is released: the policy of the gate."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from components.schema.config import Config, Fraction, Name


class GateConfig(Config):
    """When a challenger becomes champion: no suite worse than the champion's by more than its noise."""

    model_name: Name = "modelyard"
    """Registered model in MLflow."""
    noise_sigmas: NonNegativeFloat = 2.0
    """How many standard errors of the difference count as noise."""
    minimum_scores: dict[str, Fraction] = {}
    """Floor by suite, whatever the champion reached."""
