"""Direct preference learning: log-probabilities and losses equal a slow loop, pairs are learnt by every method, and a killed run ends the same."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.models.build import load, load_tokenizer
from components.schema.config import BadInput
from components.schema.posttraining import DPOConfig
from components.training import dpo, trainer
from components.training.align import Given
from components.training.dpo import DirectPreference, answer_sums, lay_out, log_probabilities, losses, measure, sides
from components.training.pairs import Pair, read_pairs
from components.training.trainer import Context

from . import dpo_run
from .conftest import PLAN, write_rows
from .test_resume import Killed, interrupt_at, outputs

ROOT = Path(__file__).parents[2]
METHODS = ["dpo", "ipo", "kto", "orpo"]
TEXTS = [[([7, 8, 5, 4], 2), ([7, 8, 9], 2), ([7, 8, 6, 6, 4], 2)], [([9, 11, 12, 13, 14, 4], 1), ([9, 4], 1), ([9, 5], 1)], [([5, 6, 7, 8], 3), ([5, 6, 7, 9, 9], 3), ([5, 6, 7, 4], 3)]]


def config_of(method, **changes):
    return DPOConfig(**{"method": method, "steps": 10, "heldout_pairs": 8, **PLAN, "learning_rate": 3e-3, **changes})


def run(line, out, method="dpo", context=None, preferences=None, **changes):
    given = Given(line.of("sft"), {}, preferences or line.preferences, line.chats, lambda programs: [])
    return dpo.run(config_of(method, **changes), given, out, context or Context(seed=1))


@pytest.fixture
def policy(line):
    return load(line.of("sft")).eval()


def module_of(policy, config):
    module = DirectPreference(policy, config)
    module.log_dict = lambda *args: None
    return module


def slow_sum(model, ids, start):
    """log p of ids[start:], one softmax for each token."""
    logp = 0.0
    for t in range(start, len(ids)):
        logp += model(torch.tensor([ids[:t]]), use_cache=False).logits[0, -1].double().log_softmax(-1)[ids[t]].item()
    return logp


# ---------------------------------------------------------------- log-probabilities


@torch.no_grad()
def test_log_probabilities_equal_a_loop_over_whole_softmaxes_whatever_shares_a_batch(policy):
    expected = [[slow_sum(policy, ids, start) for ids, start in row] for row in TEXTS]
    for rows in (1, 4, 100):
        for got, want in zip(log_probabilities(policy, TEXTS, range(3), rows, pad_id=0), expected, strict=True):
            assert got == pytest.approx(want, abs=1e-4)
    some = log_probabilities(policy, TEXTS, [1], 4, pad_id=0)
    assert some[1] == pytest.approx(expected[1], abs=1e-4) and some[0] == some[2] == [0, 0, 0]


def test_only_the_answer_counts_and_padding_does_not(policy):
    batch = lay_out([[([7, 8, 5, 4], 2)], [([9, 11, 12, 13, 14, 4], 1)]], [[0.0], [0.0]], pad_id=0)
    sums = answer_sums(policy, *(batch[name][:, 0] for name in ("ids", "starts", "ends")))
    longer = torch.nn.functional.pad(batch["ids"][:, 0], (0, 5), value=17)
    torch.testing.assert_close(answer_sums(policy, longer, batch["starts"][:, 0], batch["ends"][:, 0]), sums, rtol=1e-5, atol=1e-5)
    whole = answer_sums(policy, batch["ids"][:1, 0], torch.tensor([1]), torch.tensor([4]))
    assert whole.item() < sums[0].item(), "a token of the prompt would make it less likely"


# ---------------------------------------------------------------- the loss of a batch


def by_hand(method, beta, p, r, n, kl):
    """Loss of one pair from log-probabilities, reference and lengths of (chosen, rejected), in plain Python."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    c, j = (p[s] - r[s] for s in (0, 1))
    if method == "dpo":
        return -math.log(sigmoid(beta * (c - j)))
    if method == "ipo":
        return (c / n[0] - j / n[1] - 1 / (2 * beta)) ** 2
    if method == "kto":
        return (2 - sigmoid(beta * (c - kl)) - sigmoid(beta * (kl - j))) / 2
    odds = [math.exp(p[s] / n[s]) / (1 - math.exp(p[s] / n[s])) for s in (0, 1)]
    return -p[0] / n[0] - beta * math.log(sigmoid(math.log(odds[0] / odds[1])))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_has_the_loss_of_its_pairs_by_hand_however_it_is_ordered(line, policy, method):
    config = config_of(method, beta=0.3)
    texts = [row[: 3 if method == "kto" else 2] for row in TEXTS]
    torch.manual_seed(0)
    with torch.no_grad():
        p = [[slow_sum(policy, ids, start) for ids, start in row] for row in texts]
    reference = [[value + torch.randn(()).item() for value in row] for row in p]
    kl = max(0.0, sum(a[2] - b[2] for a, b in zip(p, reference, strict=True)) / 3) if method == "kto" else 0.0
    each = [by_hand(method, 0.3, a, b, [len(ids) - start for ids, start in row], kl) for a, b, row in zip(p, reference, texts, strict=True)]
    for order in ([0, 1, 2], [2, 0, 1]):
        batch = lay_out([texts[i] for i in order], [reference[i] for i in order], pad_id=0)
        assert module_of(policy, config).training_step(batch, 0)["loss"].item() == pytest.approx(sum(each) / 3, rel=1e-4)


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo"])
def test_micro_batches_add_up_to_the_batch(policy, method):
    texts = [row[:2] for row in TEXTS]
    batch = lay_out(texts, [[-3.0, -4.0]] * 3, pad_id=0)
    module = module_of(policy, config_of(method))
    whole = module.training_step(batch, 0)["loss"].item()
    parts = [module.training_step({name: value[rows] for name, value in batch.items()}, 0) for rows in (slice(0, 2), slice(2, 3))]
    assert sum(part["loss"].item() * part["weight"] for part in parts) / 3 == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_on_one_pair_widens_the_lead_of_the_chosen_answer(line, method):
    policy = load(line.of("sft")).eval()
    texts = [TEXTS[1][: 3 if method == "kto" else 2]]
    before = log_probabilities(policy, texts, [0], 4, 0)
    module = module_of(policy, config_of(method, beta=0.5))
    module.training_step(lay_out(texts, before, 0), 0)["loss"].backward()
    with torch.no_grad():
        for p in policy.parameters():
            if p.grad is not None:
                p -= 1e-2 * p.grad
    after = log_probabilities(policy, texts, [0], 4, 0)
    n = [len(ids) - start for ids, start in texts[0]] if method in ("ipo", "orpo") else [1, 1]
    assert after[0][0] / n[0] - after[0][1] / n[1] > before[0][0] / n[0] - before[0][1] / n[1]
    if method == "dpo":
        assert after[0][0] > before[0][0] and after[0][1] < before[0][1]


def test_dpos_gradient_at_the_reference_is_half_beta_times_the_difference_of_the_two_gradients(line, policy):
    texts = [TEXTS[0][:2]]
    reference = log_probabilities(policy, texts, [0], 4, 0)
    weight = policy.get_input_embeddings().weight
    (got,) = torch.autograd.grad(module_of(policy, config_of("dpo", beta=0.4)).training_step(lay_out(texts, reference, 0), 0)["loss"], weight)
    gradients = []
    for ids, start in texts[0]:
        logp = policy(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        gradients.append(torch.autograd.grad(sum(logp[t - 1, ids[t]] for t in range(start, len(ids))), weight)[0])
    torch.testing.assert_close(got, -0.2 * (gradients[0] - gradients[1]), rtol=1e-3, atol=1e-5)


def test_without_a_reference_it_is_a_uniform_one():
    torch.manual_seed(0)
    policy, lengths = torch.randn(5, 2).double() - 5, torch.full((5, 2), 4)
    free = losses(config_of("dpo", reference_free=True), policy, torch.randn(5, 2).double(), lengths)
    uniform = losses(config_of("dpo"), policy, torch.full((5, 2), -4 * math.log(300)).double(), lengths)
    torch.testing.assert_close(free, uniform)  # of equal length: else a uniform reference would not cancel


def test_sft_weight_adds_the_chosen_answers_own_loss_per_token():
    policy, reference, lengths = torch.tensor([[-6.0, -9.0]]), torch.tensor([[-7.0, -8.0]]), torch.tensor([[3, 4]])
    plain, weighted = (losses(config_of("dpo", sft_weight=weight), policy, reference, lengths).item() for weight in (0.0, 0.5))
    assert weighted - plain == pytest.approx(0.5 * 6 / 3)


def test_ktos_third_text_is_the_prompt_with_an_answer_to_another_prompt():
    pairs = [Pair([1, 2, 5], [1, 2, 6], "k", (2, 2)), Pair([1, 2, 7], [1, 2, 8], "k", (2, 2)), Pair([3, 9, 9, 9, 9], [3, 10], "k", (1, 1))]
    third = [row[2] for row in sides(pairs, config_of("kto"), 5)]
    assert third == [([1, 2, 9, 9, 9], 2), ([1, 2, 10], 2), ([3, 5], 1)]  # the first is cut at the fifth token
    assert [len(row) for row in sides(pairs, config_of("dpo"), 5)] == [2, 2, 2]
    with pytest.raises(BadInput, match="kto: all 2 pairs have one prompt"):
        sides(pairs[:2], config_of("kto"), 5)


def test_held_out_figures_by_hand():
    pairs = [Pair([1, 5], [1, 6], "k", (1, 1)), Pair([2, 5], [2, 6], "k", (1, 1))]
    policy, reference = torch.tensor([[-2.0, -4.0], [-6.0, -4.0]]).double(), torch.tensor([[-3.0, -3.0], [-5.0, -5.0]]).double()
    found = measure(config_of("dpo", beta=0.5), pairs, policy, reference, torch.tensor([[2, 4], [2, 2]]))
    assert found["accuracy"] == 0.5 and found["mean_margin"] == pytest.approx((0.5 * 2 - 0.5 * 2) / 2)
    assert found["chosen_logp"] == pytest.approx((-1 - 3) / 2) and found["rejected_logp"] == pytest.approx((-1 - 2) / 2)
    assert found["chosen_is_likelier_per_token"] == 0.25  # a tie and a loss
    assert found["loss"] == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2)


# ---------------------------------------------------------------- the stage


@pytest.mark.parametrize("changes", [{"method": method} for method in METHODS] + [{"method": "dpo", "reference_free": True}, {"method": "dpo", "label_smoothing": 0.1, "sft_weight": 0.1}])
def test_every_method_learns_what_is_preferred(line, tmp_path, changes):
    figures = run(line, tmp_path, **changes, steps=40).figures
    assert figures["accuracy_after"] == 1.0 and figures["loss_after"] < figures["loss_before"]
    assert figures["chosen_logp_after"] - figures["rejected_logp_after"] > figures["chosen_logp_before"] - figures["rejected_logp_before"]


def test_the_first_step_begins_at_the_reference_and_the_result_is_a_chat_model(line, tmp_path):
    outcome = run(line, tmp_path)
    assert outcome.figures["loss_before"] == pytest.approx(math.log(2)) and outcome.figures["accuracy_before"] == 0.5
    assert json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[0])["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert load_tokenizer(tmp_path).chat_template and (tmp_path / "template.json").exists()
    load(tmp_path)
    assert len(outcome.samples) == 3 and outcome.samples[0].output.startswith("before: ")


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("step", [3, 9])
def test_killed_before_a_step_it_ends_with_the_same_bits_and_figures(line, tmp_path, monkeypatch, method, step):
    whole = run(line, tmp_path / "whole", method)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Killed):
            run(line, tmp_path / "parts", method)
    monkeypatch.setattr(dpo, "log_probabilities", measured_once(dpo.log_probabilities))
    again = run(line, tmp_path / "parts", method)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole") and again.figures == whole.figures and again.samples == whole.samples


def measured_once(original):
    """After a resume only the held-out pairs are measured again, at the end: the reference is what it was."""

    def measure(model, texts, which, rows, pad_id):
        assert len(texts) == 8, "the reference was computed a second time"
        return original(model, texts, which, rows, pad_id)

    return measure


def test_killed_while_it_saves_it_trains_no_step_again(line, tmp_path, monkeypatch):
    whole = run(line, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(dpo, "save", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(line, tmp_path / "parts")
    monkeypatch.setattr(trainer, "_run_trainer", lambda *_: pytest.fail("trained again"))
    assert run(line, tmp_path / "parts").figures == whole.figures and outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_two_processes_train_on_one_reference_and_end_like_one(line, tmp_path):
    plan = config_of("dpo", steps=6).model_dump(mode="json")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", dpo_run.__file__, line.of("sft"), line.preferences, tmp_path / "two", json.dumps(plan)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = json.loads((tmp_path / "two" / "figures.json").read_text()), run(line, tmp_path / "one", steps=6).figures
    assert {name: two[name] for name in ("loss_last", "loss_after", "chosen_logp_after")} == pytest.approx({name: one[name] for name in ("loss_last", "loss_after", "chosen_logp_after")}, rel=1e-3)


def test_the_reference_is_asked_only_about_pairs_that_will_be_seen(line, tmp_path, monkeypatch):
    asked = []
    original = dpo.log_probabilities
    monkeypatch.setattr(dpo, "log_probabilities", lambda model, texts, which, *rest: asked.append(len(which)) or original(model, texts, which, *rest))
    run(line, tmp_path / "few", steps=5)
    assert asked == [8, 20, 8]  # held-out, 5 batches of 4, held-out
    asked.clear()
    run(line, tmp_path / "none", "orpo", steps=5)
    assert asked == [8, 0, 8]


def test_pairs_that_do_not_fit_are_counted(line, tmp_path):
    folder = write_rows(tmp_path / "preferences", lambda i: {"prompt": [{"role": "user", "content": f"{i}"}], "chosen": "is 1", "rejected": "cat" * (40 if i == 3 else 1), "kind": "k"})
    assert run(line, tmp_path / "out", preferences=folder).figures["pairs_dropped_longer_than_context"] == 1
    assert len(read_pairs(folder / "train.jsonl", load_tokenizer(line.of("sft")), 32)[0]) == 59
