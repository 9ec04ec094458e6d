"""Random numbers that follow from whole numbers, such as (seed, step): there is no random state to lose."""

from __future__ import annotations

import random

import numpy as np
import torch


def mixed_seed(*parts: int) -> int:
    """One seed from a few whole numbers, such as (seed, step); near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def seed_everything(*parts: int) -> None:
    """Seed torch, numpy and python from a few whole numbers, such as (seed, step)."""
    state = mixed_seed(*parts)
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)
