"""How the learning rate and the batch go over a training: pure functions of the configuration and the step.

Steps count from 0. The warm-up rises in a straight line and reaches the peak with its last step: (step + 1) / warmup.
`share` is what LambdaLR multiplies each group's peak with, so AdamW's and Muon's learning rates go together.
"""

from __future__ import annotations

import math

import numpy as np

from components.schema.training import OptimConfig, PretrainConfig


def share(config: OptimConfig, step: int) -> float:
    """Share of the peak learning rate that step number `step` (from 0) uses, in (0, 1] unless the minimum is 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return AFTER_WARMUP[config.schedule](config, step)


def _cosine(config: OptimConfig, step: int) -> float:
    """Half a cosine from 1 to the minimum (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""
    return _above_minimum(config, 0.5 * (1 + math.cos(math.pi * _done(config, step))))


def _linear(config: OptimConfig, step: int) -> float:
    return _above_minimum(config, 1 - _done(config, step))


def _wsd(config: OptimConfig, step: int) -> float:
    """Constant, then linear over the last decay_fraction of all steps; the last step has the minimum (Hu et al. 2024, arXiv:2404.06395)."""
    decay_steps = min(round(config.decay_fraction * config.steps), config.steps - config.warmup_steps)
    past = step + 1 - (config.steps - decay_steps)
    return 1.0 if past <= 0 else _above_minimum(config, 1 - min(1.0, past / decay_steps))


def _constant(config: OptimConfig, step: int) -> float:
    return 1.0


def _inverse_sqrt(config: OptimConfig, step: int) -> float:
    """min(t / warmup, sqrt(warmup / t)) with t from 1 (Vaswani et al. 2017, arXiv:1706.03762, section 5.3, scaled to a peak of 1)."""
    return math.sqrt(config.warmup_steps / (step + 1))


AFTER_WARMUP = {"cosine": _cosine, "linear": _linear, "wsd": _wsd, "constant": _constant, "inverse_sqrt": _inverse_sqrt}


def _done(config: OptimConfig, step: int) -> float:
    """How much of the way from the first step after the warm-up (0) to the last step (1) is done."""
    return min(1.0, (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps))


def _above_minimum(config: OptimConfig, height: float) -> float:
    """A height in [0, 1] as a share between the minimum and 1."""
    low = config.min_learning_rate_ratio
    return low + (1 - low) * height


def batch_sizes(config: PretrainConfig) -> np.ndarray:
    """Sequences in each step, over all processes: (steps,) int64; min(batch_size, base * 2^floor(step / interval_steps)) where the batch grows.

    The batch grows since the gradient's noise scale does (McCandlish et al. 2018, arXiv:1812.06162; in GPT-3's training, arXiv:2005.14165, table 2.1).
    """
    if config.batch_ramp is None:
        return np.full(config.steps, config.batch_size, np.int64)
    doublings = np.arange(config.steps, dtype=np.int64) // config.batch_ramp.interval_steps
    grown = config.batch_ramp.base << np.minimum(doublings, config.batch_size.bit_length())  # no more doublings than can matter: no overflow
    return np.minimum(config.batch_size, grown)


def batch_size_at(config: PretrainConfig, step: int) -> int:
    """Sequences in step number `step`, over all processes."""
    if config.batch_ramp is None:
        return config.batch_size
    doublings = min(step // config.batch_ramp.interval_steps, config.batch_size.bit_length())
    return min(config.batch_size, config.batch_ramp.base << doublings)
