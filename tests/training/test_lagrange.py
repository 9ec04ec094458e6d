"""The price of cost: by hand, towards its limit, and at the optimum of a problem that is known."""

import math

import pytest
import torch

from components.schema.posttraining import SafetyConfig
from components.training.lagrange import BOUND, Multiplier, constrained


def costs(*values):
    return torch.tensor(values)


def test_the_multiplier_by_hand():
    price = Multiplier(SafetyConfig(limit=0.5, multiplier=2.0, learning_rate=0.1, memory=0.5))
    price.follow(costs(1.0, 2.0))  # mean 1.5, 1.0 above the limit
    assert price.value == pytest.approx(2 * math.exp(0.1))
    price.follow(costs(-0.5, -0.5))  # running mean (1.5 - 0.5) / 2 = 0.5: at the limit
    assert price.mean_cost.item() == pytest.approx(0.5)
    assert price.value == pytest.approx(2 * math.exp(0.1))
    price.follow(costs(-1.5))  # (0.5 - 1.5) / 2 = -0.5: 1.0 below
    assert price.value == pytest.approx(2.0)


def test_the_running_mean_is_a_plain_mean_until_there_is_enough_to_remember():
    price = Multiplier(SafetyConfig(memory=0.9))
    for value in (4.0, 1.0, 1.0):
        price.follow(costs(value))
    assert price.mean_cost.item() == pytest.approx(2.0)


def test_it_rises_above_the_limit_falls_below_it_and_stays_within_its_bounds():
    above, below = (Multiplier(SafetyConfig(limit=0.0, learning_rate=1.0)) for _ in range(2))
    for _ in range(100):
        above.follow(costs(1.0))
        below.follow(costs(-1.0))
    assert above.log.item() == BOUND and below.log.item() == -BOUND


def test_its_state_is_in_a_checkpoint():
    first = Multiplier(SafetyConfig())
    for value in (1.0, 3.0):
        first.follow(costs(value))
    second = Multiplier(SafetyConfig())
    second.load_state_dict(first.state_dict())
    for price in (first, second):
        price.follow(costs(0.3))
    assert (first.value, first.mean_cost.item(), first.rounds.item()) == (second.value, second.mean_cost.item(), second.rounds.item())


def test_advantages_are_weighed_by_hand_and_keep_their_size():
    assert constrained(torch.tensor([3.0]), torch.tensor([1.0]), 2.0).item() == pytest.approx(1 / 3)
    assert constrained(torch.tensor([3.0]), torch.tensor([1.0]), 0.0).item() == 3
    assert constrained(torch.tensor([3.0]), torch.tensor([1.0]), 1e6).item() == pytest.approx(-1, rel=1e-4)


def test_with_a_best_response_the_multiplier_finds_the_price_at_which_the_limit_is_kept():
    """Three answers; the policy for a price is softmax(reward - price * cost): the right price solves E[cost] = limit."""
    reward, cost, limit = torch.tensor([2.0, 1.0, 0.0]).double(), torch.tensor([1.0, 0.2, -1.0]).double(), 0.0
    expected = lambda price: float((torch.softmax(reward - price * cost, 0) * cost).sum())  # noqa: E731
    low, high = 0.0, 100.0
    for _ in range(60):
        low, high = ((low + high) / 2, high) if expected((low + high) / 2) > limit else (low, (low + high) / 2)
    price = Multiplier(SafetyConfig(limit=limit, learning_rate=0.3))
    for _ in range(500):
        price.follow(torch.tensor([expected(price.value)]))
    assert expected(0.0) > 0.5
    assert price.value == pytest.approx(low, rel=1e-2)
