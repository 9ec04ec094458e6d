"""Each stage on its own: it learns, its figures mean what they say, and what cannot work is said before anything starts."""

import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from transformers import AutoModelForCausalLM

from components.models.build import load, load_tokenizer
from components.models.heads import scalar_model_from
from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.schema.training import ModelConfig, OptimConfig, PretrainConfig
from components.training import pretrain, sft
from components.training.batches import lay_out
from components.training.optim import parameter_groups
from components.training.reward import compare, length_bias, read_pairs, score_pairs
from components.training.schedules import share
from components.training.trainer import Context

from .conftest import make_chat, make_pair, write_rows

# ---------------------------------------------------------------- the optimizer


def test_warm_up_rises_to_the_peak_and_the_cosine_falls_to_the_minimum():
    config = OptimConfig(steps=101, batch_size=1, learning_rate=1, warmup_steps=10, min_learning_rate_ratio=0.1)
    shares = [share(config, step) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert shares[10] == 1 and shares[100] == pytest.approx(0.1)
    assert shares[55] == pytest.approx(0.1 + 0.9 * 0.5)  # half way down
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_only_matrices_decay_and_every_parameter_is_in_one_group(line):
    model = load(line.of("pretrain"))
    decayed, spared = (group["params"] for group in parameter_groups(model, 0.1))
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in decayed) and all(p.ndim == 1 for p in spared)


# ---------------------------------------------------------------- pretraining


def test_pretraining_learns_and_its_bits_per_byte_are_what_plain_transformers_measures(line, tmp_path):
    figures = line.run("pretrain", tmp_path, steps=120).figures
    assert figures["bits_per_byte_after"] < 0.6 * figures["bits_per_byte_before"]
    assert figures["tokens_seen"] == 120 * 4 * 32
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.from_numpy(np.fromfile(line.tokens / "heldout.bin", np.uint16).astype(np.int64))
    starts = [32 * i for i in np.linspace(0, (len(tokens) - 1) // 32 - 1, 8).astype(int)]
    losses = [model(tokens[s : s + 33][None], labels=tokens[s : s + 33][None]).loss.item() for s in starts]
    counts = json.loads((line.tokens / "tokens.json").read_text())
    expected = np.mean(losses) / math.log(2) * counts["heldout_tokens"] / counts["heldout_bytes"]
    assert figures["bits_per_byte_after"] == pytest.approx(expected, rel=1e-5)
    assert figures["bits_per_byte_stderr_after"] == pytest.approx(np.std(losses, ddof=1) / math.sqrt(8) / math.log(2) * 20 / 50, rel=1e-4)


def test_the_curve_has_every_step_once(line):
    curve = [json.loads(text) for text in (line.of("pretrain") / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == list(range(1, 11))
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_progress_is_told_and_always_ends_with_the_last_step(line, tmp_path, capfd):
    events = []
    line.run("pretrain", tmp_path, Context(seed=1, emit=events.append))
    assert {"event": "progress", "step": 10, "total": 10, "unit": "steps"}.items() <= events[-1].items()
    assert {"loss", "tokens_per_s", "lr"} <= events[-1].keys()
    assert len([event for event in events if event["event"] == "progress"]) <= 5
    assert any("estimated" in event.get("text", "") for event in events)
    assert capfd.readouterr() == ("", "")


def test_figures_say_how_much_of_each_domain_was_seen(line, tmp_path):
    figures = line.run("pretrain", tmp_path).figures
    assert figures["tokens_by_domain"] == {"counting": 10 * 4 * 32}
    assert figures["epochs_by_domain"] == {"counting": round(40 / ((4000 - 1) // 32), 4)}


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_change(line, tmp_path):
    with pytest.raises(BadInput, match=r"the (loss|gradient norm) is (nan|inf).*Lower learning_rate.*Its batch \(step \d+\) is in .*bad-batch-\d+.pt"):
        line.run("pretrain", tmp_path, learning_rate=1e30)
    assert not (tmp_path / "model.safetensors").exists()


# ---------------------------------------------------------------- SFT


TEXTS = [([2, 30, 31, 4, 3, 40, 4], [False] * 5 + [True] * 2), ([2, 50, 4, 3, 60, 61, 62, 4], [False] * 4 + [True] * 4), ([2, 3, 9, 4], [False, False, True, True])]


def test_packed_loss_and_gradient_equal_the_unpacked_ones(line):
    def of(rows):
        model = load(line.of("pretrain")).eval()
        losses = sft.answer_losses(model, lay_out(rows, TEXTS, pad_id=0))
        losses.sum().backward()
        return losses, [p.grad for p in model.parameters()]

    packed, packed_grads = of([[0, 1, 2]])
    apart, apart_grads = of([[0], [1], [2]])
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-6)
    for a, b in zip(packed_grads, apart_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_answer_loss_is_what_transformers_computes_from_labels(line):
    model = load(line.of("pretrain")).eval()
    losses = sft.answer_losses(model, lay_out([[1]], TEXTS, pad_id=0))
    ids, counts = torch.tensor([TEXTS[1][0]]), torch.tensor([TEXTS[1][1]])
    assert losses.mean().item() == pytest.approx(model(ids, labels=ids.where(counts, -100)).loss.item(), rel=1e-5)


@torch.no_grad()
def test_more_padding_changes_no_answer_loss(line):
    model = load(line.of("pretrain")).eval()
    alone = sft.answer_losses(model, lay_out([[0]], TEXTS, pad_id=0))
    beside = sft.answer_losses(model, lay_out([[0], [0, 1, 2]], TEXTS, pad_id=0))[: len(alone)]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


def test_fine_tuning_learns_to_answer_and_shows_held_out_answers(line, tmp_path):
    outcome = line.run("sft", tmp_path, steps=150)
    assert outcome.figures["heldout_loss_after"] < 0.4 * outcome.figures["heldout_loss_before"]
    assert {sample.output[:3] for sample in outcome.samples} == {"is "}
    assert outcome.samples[0].output.endswith("<|end|>")


def test_chats_that_do_not_fit_are_dropped_and_counted_and_all_of_them_is_an_error(line, tmp_path):
    words = load_tokenizer(line.tokenizer)
    long = {"messages": [{"role": "user", "content": "1 " * 40}, {"role": "assistant", "content": "no"}]}
    folder = write_rows(tmp_path, lambda i: long if i % 3 == 0 else make_chat(i), train=9)
    kept, _, dropped = sft.read_chats(folder / "train.jsonl", words, 32)
    assert (len(kept), dropped) == (6, 3)
    with pytest.raises(BadInput, match="has 9 chats, and none of them has an assistant turn within 5 tokens"):
        sft.read_chats(folder / "train.jsonl", words, 5)


def test_a_broken_line_is_named(line, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n{oops\n')
    with pytest.raises(BadInput, match=r"train.jsonl line 2 is not JSON"):
        sft.read_chats(tmp_path / "train.jsonl", load_tokenizer(line.tokenizer), 32)


# ---------------------------------------------------------------- reward model


def test_the_reward_model_learns_what_is_preferred_and_writes_its_scale(line, tmp_path):
    outcome = line.run("reward", tmp_path, steps=60)
    assert outcome.figures["accuracy_after"] == 1.0 and outcome.figures["mean_margin_after"] > 1
    model, words = scalar_model_from(tmp_path, 0), load_tokenizer(tmp_path)
    pairs, _ = read_pairs(line.preferences / "heldout.jsonl", words, 32, at_most=8)
    chosen, rejected = score_pairs(model, pairs, 3, words.pad_token_id)
    scale = json.loads((tmp_path / "scale.json").read_text())
    assert scale["mean"] == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert (chosen > rejected).all()


def test_accuracy_counts_a_tie_as_half():
    compared = compare(torch.tensor([1.0, 2.0, 0.0, 5.0]).double(), torch.tensor([0.0, 2.0, 1.0, 4.0]).double())
    assert compared["accuracy"] == 0.625
    assert compared["mean_margin"] == 0.25
    assert compared["accuracy_stderr"] == pytest.approx(math.sqrt(0.625 * 0.375 / 4))


def test_length_bias_sees_a_scorer_that_only_counts_tokens(line):
    words = load_tokenizer(line.tokenizer)
    pairs, _ = read_pairs(line.preferences / "heldout.jsonl", words, 32)
    chosen, rejected = (torch.tensor([float(len(side)) for side in sides]).double() for sides in zip(*((p.chosen, p.rejected) for p in pairs), strict=True))
    bias = length_bias(pairs, chosen, rejected)
    assert bias["longer_scores_higher"] == 1 and bias["correlation"] == pytest.approx(1)
    assert length_bias(pairs, -chosen, -rejected)["longer_scores_higher"] == 0


def test_equal_sides_are_refused_with_the_row(line, tmp_path):
    folder = write_rows(tmp_path, lambda i: {**make_pair(i), **({"rejected": make_pair(i)["chosen"]} if i == 4 else {})})
    with pytest.raises(BadInput, match=r"train.jsonl row 5 has equal sides \('is 8'\)"):
        read_pairs(folder / "train.jsonl", load_tokenizer(line.tokenizer), 32)


# ---------------------------------------------------------------- what is logged


class Remembering(Logger):
    """A logger that keeps what it is told."""

    name, version = "remembering", "0"

    def __init__(self):
        super().__init__()
        self.told = []

    def log_metrics(self, metrics, step=None):
        self.told.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_a_logger_hears_loss_gradient_norm_and_learning_rate_every_tenth_step(line, tmp_path):
    logger = Remembering()
    line.run("pretrain", tmp_path, Context(seed=1, loggers=[logger]), steps=40)
    assert [step for step, _ in logger.told] == [9, 19, 29, 39]
    curve = [json.loads(text)["loss"] for text in (tmp_path / "curve.jsonl").read_text().splitlines()]
    for step, metrics in logger.told:
        assert {"loss", "grad_norm", "lr"} <= metrics.keys()
        assert metrics["loss"] == pytest.approx(curve[step])


def test_a_logger_hears_every_iteration_of_ppo_with_what_must_be_watched(line, tmp_path):
    logger = Remembering()
    line.run("ppo", tmp_path, Context(seed=1, loggers=[logger]), iterations=3)
    assert len(logger.told) == 3
    assert {"reward", "kl", "kl_k3", "entropy", "length", "finished", "policy_loss", "value_loss", "clipped", "grad_norm"} <= logger.told[0][1].keys()


# ---------------------------------------------------------------- other models, other beginnings


def with_model(line, tmp_path, out, weights=None, context=None, **parts):
    """Pretraining of another model on the same world."""
    config, model = parts.pop("config", {}), {"hidden_size": 32, "layers": 2, "context_tokens": 32, **parts}
    plan = PretrainConfig(**{"steps": 12, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "heldout_sequences": 8, "checkpoint_every_steps": 4, **config})
    return pretrain.run(plan, ModelConfig(**model), line.tokens, line.tokens.parent / "mix", line.tokenizer, out, context or Context(seed=1), weights)


@pytest.mark.parametrize(("architecture", "more"), [("gpt2", {}), ("mamba2", {}), ("mixtral", {"extra": {"num_local_experts": 4}})])
def test_every_kind_of_causal_model_learns(line, tmp_path, architecture, more):
    figures = with_model(line, tmp_path, tmp_path / "out", architecture=architecture, **more).figures
    assert figures["bits_per_byte_after"] < 0.9 * figures["bits_per_byte_before"]


def test_an_encoder_learns_to_restore_what_is_masked_and_says_so_in_samples(line, tmp_path):
    outcome = with_model(line, tmp_path, tmp_path / "out", architecture="modernbert", heads=2, config={"objective": "masked", "steps": 150, "batch_size": 8})
    assert outcome.figures["heldout_loss_after"] < 0.9 * outcome.figures["heldout_loss_before"]
    assert outcome.figures["masked_accuracy_after"] > outcome.figures["masked_accuracy_before"] and "bits_per_byte_after" not in outcome.figures
    assert all("[" in sample.prompt for sample in outcome.samples)


def test_a_training_that_goes_on_begins_where_the_other_ended(line, tmp_path):
    first = line.run("pretrain", tmp_path / "first").figures
    more = ModelConfig(init_from=str(tmp_path / "first"), context_tokens=32)
    plan = PretrainConfig(steps=4, batch_size=4, learning_rate=1e-3, warmup_steps=1, heldout_sequences=8, checkpoint_every_steps=2)
    second = pretrain.run(plan, more, line.tokens, line.tokens.parent / "mix", line.tokenizer, tmp_path / "second", Context(seed=2), tmp_path / "first").figures
    assert second["heldout_loss_before"] == pytest.approx(first["heldout_loss_after"], abs=1e-6)


def test_micro_batches_and_a_batch_that_grows_leave_the_curve_as_it_is(line, tmp_path):
    ramp = {"batch_ramp": {"base": 1, "interval_steps": 3}}
    whole = line.run("pretrain", tmp_path / "whole", **ramp)
    parts = line.run("pretrain", tmp_path / "parts", Context(seed=1, resources=Resources(micro_batch_size=1)), **ramp)
    assert whole.figures["tokens_seen"] == (3 * 1 + 3 * 2 + 4 * 4) * 32
    losses = [[json.loads(text)["loss"] for text in (tmp_path / name / "curve.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and parts.figures["heldout_loss_after"] == pytest.approx(whole.figures["heldout_loss_after"], rel=1e-4)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_micro_batches_leave_the_later_stages_as_they_are_too(line, tmp_path, stage):
    whole = line.run(stage, tmp_path / "whole")
    parts = line.run(stage, tmp_path / "parts", Context(seed=1, resources=Resources(micro_batch_size=1)))
    assert parts.figures["loss_last"] == pytest.approx(whole.figures["loss_last"], rel=1e-3)
    assert parts.figures["heldout_loss_after"] == pytest.approx(whole.figures["heldout_loss_after"], rel=1e-3)


def test_the_average_of_the_weights_is_what_is_measured_and_saved(line, tmp_path):
    plain = line.run("pretrain", tmp_path / "plain").figures
    averaged = line.run("pretrain", tmp_path / "averaged", ema_decay=0.5).figures
    assert averaged["loss_last"] == plain["loss_last"] and averaged["heldout_loss_after"] != plain["heldout_loss_after"]
    again = line.run("pretrain", tmp_path / "averaged", ema_decay=0.5).figures  # nothing is left to train: measured from the last checkpoint
    assert again["heldout_loss_after"] == averaged["heldout_loss_after"]
