"""Which steps are left out, and that such a step leaves no trace but its count."""

import math
import statistics

import pytest
import torch

from components.schema.config import BadInput
from components.training import spikes
from components.training.spikes import Spikes

from .small import Small, config, equal, rows, train, weights


def used_to(norms: list[float], factor: float | None = 3.0) -> Spikes:
    guard = Spikes(factor)
    assert all([guard.accepts(norm) for norm in norms])
    return guard


def test_a_norm_is_refused_when_it_exceeds_the_factor_times_the_median_of_the_last_accepted():
    norms = [0.1] * 100 + [float(i) for i in range(1, 129)]
    guard = used_to(norms[:100], factor=1e9)
    guard.factor = 3.0
    guard.norms.extend(norms[100:])
    bound = 3 * statistics.median(range(1, 129))
    assert guard.accepts(bound) and not guard.accepts(math.nextafter(3 * statistics.median([*range(2, 129), bound]), math.inf))


def test_refused_norms_do_not_enter_the_median():
    guard = used_to([1.0] * 40)
    assert [guard.accepts(norm) for norm in (100.0, 2.9, 100.0, math.inf, math.nan, 3.1)] == [False, True, False, False, False, False]
    assert guard.left_out == 5 and list(guard.norms) == [1.0] * 40 + [2.9]


def test_nothing_finite_is_refused_before_some_dozens_were_seen_or_without_a_factor():
    guard = Spikes(2.0)
    assert all(guard.accepts(10.0**i) for i in range(-10, 22))
    assert not guard.accepts(1e22)
    assert all(used_to([1.0] * 200, None).accepts(norm) for norm in (1e9, 1e30))


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_without_a_factor_a_norm_that_is_no_number_ends_the_run(norm):
    with pytest.raises(BadInput, match=rf"the gradient norm is {norm}: a step along it would lose the weights. Lower learning_rate or raise warmup_steps, or set skip_spikes"):
        used_to([1.0], None).accepts(norm)


def test_a_run_that_leaves_out_everything_is_given_up():
    guard = used_to([1.0] * 40)
    for _ in range(spikes.PATIENCE - 1):
        assert not guard.accepts(50.0)
    assert guard.accepts(1.0)  # counts in a row
    for _ in range(spikes.PATIENCE - 1):
        assert not guard.accepts(50.0)
    with pytest.raises(BadInput, match=r"25 steps in a row were left out \(gradient norm 50; median of those accepted: 1\), so nothing is learnt any more. .*raise skip_spikes=3.0"):
        guard.accepts(50.0)


def test_what_it_remembers_is_plain_and_comes_back():
    guard = used_to([float(i) for i in range(1, 200)])
    guard.accepts(1e6)
    again = Spikes(3.0)
    again.load(guard.state())
    assert again.state() == guard.state() and len(again.norms) == spikes.REMEMBERED
    assert [again.accepts(x) for x in (200.0, 500.0)] == [guard.accepts(x) for x in (200.0, 500.0)] == [True, False]
    assert again.state() == guard.state()


SOUND = [rows(step) for step in range(8)]


@pytest.fixture
def soon(monkeypatch):
    """Judge from the third step on."""
    monkeypatch.setattr(spikes, "NEEDED", 2)


@pytest.mark.parametrize("weight", [1e6, math.inf, math.nan])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_left_out_changes_neither_weights_nor_moments_nor_averages(tmp_path, soon, optimizer, weight):
    settings = config(8, optimizer=optimizer, ema_decay=0.5, skip_spikes=5)
    disturbed, quiet = Small(settings), Small(settings)
    train(disturbed, [*SOUND[:4], (rows(99), weight), *SOUND[4:]], tmp_path)
    train(quiet, SOUND, tmp_path)
    assert disturbed.taken == [True] * 4 + [False] + [True] * 4 and disturbed.spikes.left_out == 1
    assert equal(weights(disturbed), weights(quiet))
    assert equal(disturbed._optimizer.state_dict(), quiet._optimizer.state_dict())
    assert disturbed.spikes.norms == quiet.spikes.norms


def test_without_the_guard_the_same_step_changes_them(tmp_path):
    disturbed, quiet = Small(config(8)), Small(config(8))
    train(disturbed, [*SOUND[:4], (rows(99), 1e6), *SOUND[4:]], tmp_path)
    train(quiet, SOUND, tmp_path)
    assert not equal(weights(disturbed), weights(quiet))


def test_a_spike_among_micro_batches_leaves_the_whole_step_out(tmp_path, soon):
    module = Small(config(4, skip_spikes=5))
    parts = [(part, 1.0) for batch in SOUND[:4] for part in batch.split(4)]
    parts[5] = (parts[5][0], 1e6)  # of the third step
    train(module, parts, tmp_path, accumulate=2)
    assert module.taken == [True, True, False, True]


def test_without_the_guard_a_gradient_that_is_no_number_ends_the_run_with_the_weights_as_they_were(tmp_path):
    module, before = Small(config(8)), Small(config(8))
    train(before, SOUND[:2], tmp_path)
    with pytest.raises(BadInput, match="the gradient norm is nan"):
        train(module, [*SOUND[:2], (rows(99), math.nan), *SOUND[2:]], tmp_path)
    assert equal(weights(module), weights(before))


def test_the_loss_scaler_of_fp16_judges_for_itself_and_the_average_follows_it(tmp_path, soon):
    from lightning.pytorch.plugins import MixedPrecision

    module, plain = (Small(config(8, precision=precision, ema_decay=0.5, skip_spikes=5)) for precision in ("fp16", "fp32"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflowing = [*SOUND[:4], (SOUND[4], 1e35), *SOUND[4:]]
    train(module, overflowing, tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    train(plain, SOUND, tmp_path)
    assert module.taken == [True] * 4 + [False] + [True] * 4 and not math.isfinite(module.norms[4])
    assert module.spikes.left_out == 0 and scaler.get_scale() == 2.0**9  # it is the scaler's business
    assert module._optimizer.param_groups[0]["averaged_steps"] == 8
    del module.norms[4]
    assert module.norms == pytest.approx(plain.norms, rel=0.02)  # unscaled before it is measured and clipped
    assert all(torch.allclose(a, b, atol=0.02) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
