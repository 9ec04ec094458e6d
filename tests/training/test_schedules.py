"""Learning rate and batch by step, against transformers' and torch's schedules and a doubling written as a loop."""

import numpy as np
import pytest
import torch
import transformers

from components.schema.training import BatchRamp, OptimConfig, PretrainConfig
from components.training.schedules import batch_size_at, batch_sizes, share

SCHEDULES = ["cosine", "linear", "wsd", "constant", "inverse_sqrt"]


def optim(**changes) -> OptimConfig:
    return OptimConfig(**{"steps": 100, "batch_size": 8, "learning_rate": 1.0, "warmup_steps": 10, **changes})


def shares(config: OptimConfig) -> list[float]:
    return [share(config, step) for step in range(config.steps)]


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def of_transformers(make, first: int, count: int, **arguments) -> list[float]:
    """`count` values of a schedule from its step number `first` on."""
    rule = make(optimizer(), **arguments).lr_lambdas[0]
    return [rule(step) for step in range(first, first + count)]


@pytest.mark.parametrize("warmup", [1, 10, 60, 99])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_that_of_transformers_one_step_later_so_that_no_step_learns_nothing(schedule, warmup):
    expected = of_transformers(transformers.get_constant_schedule_with_warmup, 1, warmup, num_warmup_steps=warmup)
    assert shares(optim(schedule=schedule, warmup_steps=warmup))[:warmup] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 10, 98])
@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
def test_the_cosine_is_that_of_transformers_and_of_torch(warmup, low):
    mine = shares(optim(schedule="cosine", warmup_steps=warmup, min_learning_rate_ratio=low))[warmup:]
    make = transformers.get_cosine_with_min_lr_schedule_with_warmup
    assert mine == pytest.approx(of_transformers(make, warmup, 100 - warmup, num_warmup_steps=warmup, num_training_steps=99, min_lr_rate=low))
    sgd = optimizer()
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=99 - warmup, eta_min=low)
    for value in mine:
        assert value == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-9)
        sgd.step()
        annealing.step()


@pytest.mark.parametrize("warmup", [0, 10, 98])
@pytest.mark.parametrize("low", [0.0, 0.1])
def test_the_straight_line_is_that_of_transformers_above_the_minimum(warmup, low):
    mine = shares(optim(schedule="linear", warmup_steps=warmup, min_learning_rate_ratio=low))[warmup:]
    line = of_transformers(transformers.get_linear_schedule_with_warmup, warmup, 100 - warmup, num_warmup_steps=warmup, num_training_steps=99)
    assert mine == pytest.approx([low + (1 - low) * value for value in line])


@pytest.mark.parametrize(("warmup", "fraction", "decay"), [(10, 0.2, 20), (0, 0.5, 50), (10, 0.9, 90), (1, 0.01, 1)])
def test_warmup_stable_decay_is_after_the_warm_up_that_of_transformers_one_step_later(warmup, fraction, decay):
    mine = shares(optim(schedule="wsd", warmup_steps=warmup, decay_fraction=fraction, min_learning_rate_ratio=0.1))[warmup:]
    arguments = {"num_warmup_steps": warmup, "num_decay_steps": decay, "num_training_steps": 100, "decay_type": "linear", "min_lr_ratio": 0.1}
    assert mine == pytest.approx(of_transformers(transformers.get_wsd_schedule, warmup + 1, 100 - warmup, **arguments))


@pytest.mark.parametrize("warmup", [1, 10, 60])
def test_the_inverse_square_root_is_that_of_transformers_one_step_later_and_of_the_paper(warmup):
    mine = shares(optim(schedule="inverse_sqrt", warmup_steps=warmup))
    assert mine == pytest.approx(of_transformers(transformers.get_inverse_sqrt_schedule, 1, 100, num_warmup_steps=warmup))
    assert mine == pytest.approx([min(t**-0.5, t * warmup**-1.5) / warmup**-0.5 for t in range(1, 101)])


@pytest.mark.parametrize(("schedule", "warmup"), [(s, w) for s in SCHEDULES for w in (0, 1, 10, 99) if w or s != "inverse_sqrt"])
def test_every_schedule_rises_to_the_peak_and_never_rises_again(schedule, warmup):
    values = shares(optim(schedule=schedule, warmup_steps=warmup))
    peak = max(warmup - 1, 0)
    assert values[peak] == max(values) == 1
    assert values[:peak] == sorted(values[:peak]) and values[peak:] == sorted(values[peak:], reverse=True)
    assert min(values) > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_minimum(schedule):
    for low in (0.0, 0.1, 1.0):
        assert shares(optim(schedule=schedule, min_learning_rate_ratio=low))[-1] == pytest.approx(low)


def test_a_decay_longer_than_what_follows_the_warm_up_begins_right_after_it_and_none_is_constant():
    values = shares(optim(schedule="wsd", decay_fraction=1.0, min_learning_rate_ratio=0.1))
    assert values[10:] == pytest.approx(np.linspace(1, 0.1, 91)[1:].tolist())
    assert set(shares(optim(schedule="wsd", decay_fraction=0.0))[10:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_training_of_one_step_has_a_learning_rate(schedule):
    assert share(optim(steps=1, warmup_steps=0, schedule=schedule), 0) > 0


def pretraining(ramp: BatchRamp | None, batch_size: int = 100, steps: int = 50) -> PretrainConfig:
    return PretrainConfig(steps=steps, batch_size=batch_size, learning_rate=1.0, warmup_steps=0, batch_ramp=ramp)


@pytest.mark.parametrize(("base", "interval", "batch_size"), [(4, 7, 100), (1, 1, 64), (3, 60, 12), (200, 5, 100), (100, 5, 100)])
def test_the_batch_doubles_after_every_interval_until_it_is_whole(base, interval, batch_size):
    expected, size = [], base
    for step in range(50):
        if step and step % interval == 0:
            size *= 2
        expected.append(min(size, batch_size))
    config = pretraining(BatchRamp(base=base, interval_steps=interval), batch_size)
    assert batch_sizes(config).tolist() == expected
    assert [batch_size_at(config, step) for step in range(50)] == expected


def test_without_a_ramp_every_batch_is_whole():
    assert batch_sizes(pretraining(None)).tolist() == [100] * 50
    assert batch_size_at(pretraining(None), 7) == 100


def test_a_ramp_over_a_long_training_does_not_overflow():
    config = pretraining(BatchRamp(base=3, interval_steps=1), 10**9, steps=5000)
    sizes = batch_sizes(config)
    assert sizes[-1] == 10**9 == batch_size_at(config, 10**12) and (np.diff(sizes) >= 0).all()
