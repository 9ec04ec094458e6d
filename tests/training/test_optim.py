"""The optimizer under Lightning: what decays, what is clipped and logged, micro-batches, and going on from a checkpoint to the bit."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from transformers import MambaConfig, MambaForCausalLM

from components.schema.config import BadInput
from components.training import ema, spikes
from components.training.muon import MuonWithAdamW, hidden_matrices
from components.training.optim import global_norm, make_optimizer, parameter_groups

from .small import Small, config, equal, llama, rows, train, weights

# ---------------------------------------------------------------- groups


def names_of(model: torch.nn.Module, decaying: bool) -> set[str]:
    name = {parameter: name for name, parameter in model.named_parameters()}
    return {name[p] for group in parameter_groups(model, 0.1) if (group["weight_decay"] > 0) == decaying for p in group["params"]}


def test_norms_and_word_tables_do_not_decay_and_everything_else_does():
    model = llama()
    assert names_of(model, decaying=False) == {"model.embed_tokens.weight"} | {name for name, p in model.named_parameters() if p.ndim == 1}
    assert names_of(model, decaying=True) == {name for name, p in model.named_parameters() if p.ndim == 2} - {"model.embed_tokens.weight"}


def test_a_table_that_is_the_output_layer_too_decays():
    model = llama(tie_word_embeddings=True)
    assert names_of(model, decaying=True) == {name for name, p in model.named_parameters() if p.ndim == 2}


def test_a_state_space_models_state_matrix_does_not_decay():
    model = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1))
    assert {name.rpartition(".")[2] for name in names_of(model, decaying=False)} == {"A_log", "D", "weight", "bias"}
    assert "backbone.layers.0.mixer.conv1d.weight" in names_of(model, decaying=True)
    assert "backbone.layers.0.mixer.A_log" in names_of(model, decaying=False)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_trained_parameter_is_in_one_group_and_no_frozen_one_is(optimizer):
    model = llama()
    model.model.layers[0].mlp.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    grouped = [p for group in make_optimizer(model, config(optimizer=optimizer)).param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(trained) and set(grouped) == set(trained)


def test_learning_rates_decay_and_moments_are_those_of_the_configuration():
    settings = config(optimizer="muon", learning_rate=3e-3, muon_learning_rate=0.03, muon_momentum=0.9, weight_decay=0.2, betas=(0.8, 0.9))
    model = llama()
    optimizer = make_optimizer(model, settings)
    assert isinstance(optimizer, MuonWithAdamW)
    decayed, spared, matrices = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], decayed["betas"]) == (3e-3, 0.2, (0.8, 0.9)) and decayed["params"] == [model.lm_head.weight]
    assert (spared["lr"], spared["weight_decay"]) == (3e-3, 0.0)
    assert (matrices["lr"], matrices["weight_decay"], matrices["momentum"]) == (0.03, 0.2, 0.9) and matrices["params"] == hidden_matrices(model)


def test_muon_is_refused_where_it_would_do_nothing():
    model = llama()
    model.model.layers.requires_grad_(False)
    with pytest.raises(BadInput, match=r"optimizer=muon is for the matrices of a model's blocks, and this model has none .* Use optimizer=adamw"):
        make_optimizer(model, config(optimizer="muon"))


def test_with_fp16_the_optimizer_leaves_unscaling_to_the_scaler():
    for precision, fused in (("fp32", True), ("bf16", True), ("fp16", False)):
        optimizer = make_optimizer(llama(), config(precision=precision))
        assert optimizer.defaults["fused"] is fused and getattr(optimizer, "_step_supports_amp_scaling", False) is fused


# ---------------------------------------------------------------- clipping and the log


class Kept(Logger):
    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_hyperparams(self, *_, **__) -> None:
        pass

    def log_metrics(self, metrics, step) -> None:
        self.rows.append((step, dict(metrics)))

    def of(self, name: str) -> dict[int, float]:
        return {step: row[name] for step, row in self.rows if name in row}


def gradients_of(model: torch.nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    logits = model(input_ids=batch[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_the_norm_is_that_of_all_gradients_written_as_one_vector():
    gradients = gradients_of(llama(), rows(0))
    assert global_norm(gradients).item() == pytest.approx(torch.cat([g.flatten() for g in gradients]).double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("bound", [0.01, 1e6])
def test_a_gradient_is_scaled_down_to_the_bound_and_never_up(tmp_path, bound):
    seen: list[torch.Tensor] = []

    class Watching(Small):
        def configure_gradient_clipping(self, optimizer, *_, **__):
            super().configure_gradient_clipping(optimizer)
            seen.extend(p.grad.clone() for p in self.parameters())

    module = Watching(config(1, grad_clip_norm=bound))
    train(module, [rows(0)], tmp_path)
    expected = gradients_of(llama(), rows(0))
    norm = global_norm(expected).item()
    assert 0.01 < norm < 1e6 and module.norms == [pytest.approx(norm)]
    assert all(torch.allclose(a, b * min(1, bound / norm), rtol=1e-4, atol=1e-9) for a, b in zip(seen, expected, strict=True))


def test_the_log_has_norm_learning_rate_steps_left_out_and_the_weights_norm_before_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(spikes, "NEEDED", 2)
    batches = [(rows(step), 1e5 if step == 5 else 1.0) for step in range(8)]
    logger, module = Kept(), Small(config(8, schedule="linear", min_learning_rate_ratio=0.0, skip_spikes=10))
    train(module, batches, tmp_path, logger=logger, log_every_n_steps=1)
    assert list(logger.of("grad_norm").values()) == pytest.approx(module.norms)
    assert list(logger.of("lr").values()) == pytest.approx([1e-2 * (1 - step / 7) for step in range(8)])
    assert list(logger.of("steps_left_out").values()) == [0.0] * 5 + [1.0] * 3
    lengths = logger.of("parameter_norm")
    assert lengths[0] == pytest.approx(math.sqrt(sum(p.square().sum().item() for p in llama().parameters())), rel=1e-5)
    assert len(lengths) == 8 and lengths[6] == lengths[5] != lengths[7]  # step 5 was left out


def test_what_is_logged_every_third_step_is_of_that_step(tmp_path):
    often, seldom = Kept(), Kept()
    for logger, every in ((often, 1), (seldom, 3)):
        train(Small(config(7)), [rows(step) for step in range(7)], tmp_path, logger=logger, log_every_n_steps=every)
    assert list(seldom.of("grad_norm")) == [2, 5]
    for name in ("grad_norm", "parameter_norm"):
        assert seldom.of(name) == {step: often.of(name)[step] for step in (2, 5)}


# ---------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_trains_as_the_whole_does(tmp_path, optimizer, parts):
    settings = config(optimizer=optimizer, ema_decay=0.5, skip_spikes=10)
    large, small = Small(settings), Small(settings)
    batches = [rows(step) for step in range(6)]
    train(large, batches, tmp_path)
    train(small, [part for batch in batches for part in batch.split(8 // parts)], tmp_path, accumulate=parts)
    assert small.norms == pytest.approx(large.norms, rel=1e-3 if optimizer == "adamw" else 1e-2)
    assert list(small.spikes.norms) == small.norms
    start = weights(Small(settings))
    for name, weight in weights(large).items():  # Muon's iterations are in bf16
        assert (weights(small)[name] - weight).norm() < (1e-3 if optimizer == "adamw" else 0.02) * (weight - start[name]).norm()


# ---------------------------------------------------------------- going on


class Killed(BaseException):
    """Stands for the end of the process."""


class DiesAfterFive(Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == 4:
            trainer.save_checkpoint(self.path)
            raise Killed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits_with_averages_and_guard(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(spikes, "NEEDED", 2)
    settings = config(10, optimizer=optimizer, ema_decay=0.9, skip_spikes=5, schedule="cosine")
    batches = [(rows(step), 1e5 if step in (3, 7) else 1.0) for step in range(10)]
    whole, begun, resumed = Small(settings), Small(settings), Small(settings)
    train(whole, batches, tmp_path)
    assert whole.taken == [step not in (3, 7) for step in range(10)]

    with pytest.raises(Killed):
        train(begun, batches, tmp_path, callbacks=[DiesAfterFive(tmp_path / "five.ckpt")])
    train(resumed, batches, tmp_path, resume=tmp_path / "five.ckpt", first=5)
    assert resumed.taken == whole.taken[5:] and resumed.norms == whole.norms[5:]
    assert equal(weights(resumed), weights(whole))
    assert equal(resumed._optimizer.state_dict(), whole._optimizer.state_dict())
    assert resumed.spikes.state() == whole.spikes.state() and whole.spikes.left_out == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_finished_run_is_taken_over_without_training(tmp_path, optimizer):
    settings = config(4, optimizer=optimizer, ema_decay=0.9, skip_spikes=5)
    done, again = Small(settings), Small(settings)
    train(done, [rows(step) for step in range(4)], tmp_path).save_checkpoint(tmp_path / "end.ckpt")
    again.take_over(torch.load(tmp_path / "end.ckpt", weights_only=True))
    assert equal(weights(again), weights(done)) and again.spikes.state() == done.spikes.state()
    with again.averaged_weights(), done.averaged_weights():
        assert equal(weights(again), weights(done))
    assert len(ema.averages(again._optimizer)) == len(list(again.parameters()))
