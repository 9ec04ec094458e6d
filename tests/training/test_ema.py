"""The average of the weights, against torch's AveragedModel and a sum written out; and what it does not follow."""

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from components.training import ema

from .small import Small, config, equal, llama, rows, train, weights


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, after=lambda: None) -> None:
    for step in range(steps):
        ids = rows(step, 4)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()


def averaging(model: torch.nn.Module, decay: float, **arguments) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **arguments)
    ema.attach(optimizer, decay)
    return optimizer


def averages(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [average.clone() for _, average in ema.averages(optimizer)]


def test_with_a_decay_that_needs_no_warm_up_it_is_torchs_average():
    model = llama()
    optimizer = averaging(model, 0.1)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1))
    learn(model, optimizer, 5, after=lambda: reference.update_parameters(model))
    assert equal(averages(optimizer), [p.detach() for p in reference.module.parameters()])


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_it_is_the_weighted_sum_of_all_weights_seen(decay):
    model, seen = llama(), []
    optimizer = averaging(model, decay)
    learn(model, optimizer, 12, after=lambda: seen.append(next(model.parameters()).detach().double().numpy().copy()))
    kept = [min(decay, (1 + t) / (10 + t)) for t in range(1, 12)]  # of what was before, in the second step, the third ...
    shares = [np.prod(kept[i:]) * ((1 - kept[i - 1]) if i else 1) for i in range(12)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    assert np.allclose(averages(optimizer)[0], expected, atol=1e-6)


def test_the_first_steps_hardly_remember_and_the_later_ones_remember_as_asked():
    assert ema.decay_at(0.999, 0) == 0.1
    assert ema.decay_at(0.999, 90) == 0.91
    assert ema.decay_at(0.999, 100_000) == 0.999


def test_inside_the_swap_the_averages_are_the_weights_and_afterwards_every_bit_is_back_even_after_an_error():
    model = llama()
    optimizer = averaging(model, 0.9)
    learn(model, optimizer, 4)
    before, average, state = weights(model), averages(optimizer), {**optimizer.state_dict()}
    with ema.swapped(optimizer, model):
        assert equal(list(weights(model).values()), average) and not equal(weights(model), before)
    assert equal(weights(model), before) and equal(averages(optimizer), average) and equal(optimizer.state_dict(), state)
    with pytest.raises(ZeroDivisionError), ema.swapped(optimizer, model):
        raise ZeroDivisionError
    assert equal(weights(model), before) and equal(averages(optimizer), average)


def test_before_the_first_step_a_swap_changes_nothing():
    model = llama()
    before = weights(model)
    with ema.swapped(averaging(model, 0.9), model):
        assert equal(weights(model), before)


def test_averaging_changes_nothing_about_training():
    plain, averaged = llama(), llama()
    learn(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), 4)
    learn(averaged, averaging(averaged, 0.9), 4)
    assert equal(weights(plain), weights(averaged))


def test_a_parameter_that_is_trained_only_later_has_an_average_from_then_on():
    model = llama()
    optimizer = averaging(model, 0.9)
    late = model.lm_head.weight
    late.requires_grad_(False)
    learn(model, optimizer, 2)
    assert len(averages(optimizer)) == len(list(model.parameters())) - 1
    late.requires_grad_(True)
    learn(model, optimizer, 1)
    assert torch.equal(optimizer.state[late][ema.AVERAGE], late)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_micro_batches_are_not_steps(tmp_path, optimizer):
    large, small = (Small(config(optimizer=optimizer, ema_decay=0.5)) for _ in range(2))
    batches = [rows(step) for step in range(4)]
    train(large, batches, tmp_path)
    train(small, [part for batch in batches for part in batch.split(2)], tmp_path, accumulate=4)
    assert small._optimizer.param_groups[0][ema.STEPS] == large._optimizer.param_groups[0][ema.STEPS] == 4
    with large.averaged_weights(), small.averaged_weights():
        assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(large.parameters(), small.parameters(), strict=True))


def test_the_module_gives_its_averages_where_it_keeps_them_and_its_weights_where_it_does_not(tmp_path):
    kept, plain = Small(config(ema_decay=0.9)), Small(config())
    for module in (kept, plain):
        train(module, [rows(step) for step in range(5)], tmp_path)
    before = weights(plain)
    assert equal(weights(kept), before)
    with kept.averaged_weights(), plain.averaged_weights():
        assert equal(weights(plain), before) and not equal(weights(kept), before)
    assert equal(weights(kept), before)
    with Small(config(ema_decay=0.9)).averaged_weights():
        pass  # not trained yet
