"""Fine-tuning: texts in one row do not see each other on the fast path either, adapters leave a plain checkpoint, noise and mixes follow from the seed."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from components.models.build import build, load, load_tokenizer
from components.schema.config import BadInput
from components.schema.posttraining import SFTConfig
from components.schema.recipe import Resources
from components.schema.training import ModelConfig
from components.training import fast, sft
from components.training.batches import lay_out, pack
from components.training.neftune import noisy, own_lengths, row_seeds
from components.training.trainer import Context

from .test_resume import Killed, interrupt_at, outputs

LORA = {"lora": {"rank": 2, "alpha": 8.0}}


def random_texts(count=12, longest=20, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest, (count,), generator=draw).tolist()
    return [(torch.randint(5, 200, (n,), generator=draw).tolist(), [*(torch.rand(n, generator=draw) < 0.6).tolist()[:-1], True]) for n in lengths]


@pytest.fixture(params=["llama", "qwen2", "mistral"])
def model(request, model_config, tokenizer_folder):
    made = build(model_config.model_copy(update={"architecture": request.param}), load_tokenizer(tokenizer_folder), seed=0)
    assert fast.prepare(made) == 2  # the blocks are the fast ones
    return made


# ---------------------------------------------------------------- packed = unpacked


def test_a_packed_batch_trains_as_each_text_alone_does_in_plain_transformers(model):
    texts = random_texts()
    rows = pack([len(ids) for ids, _ in texts], 32)
    assert len(rows) < len(texts) / 2
    step = sft.FineTuning(model, SFTConfig(steps=10, batch_size=1, learning_rate=1, warmup_steps=0)).training_step(vars(lay_out(rows, texts, 0)), 0)
    step["loss"].backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    total, counted = 0.0, 0
    for ids, counts in texts:
        logits = plain(torch.tensor([ids])).logits[0, :-1]
        right = torch.tensor(counts[1:])
        total, counted = total + cross_entropy(logits[right], torch.tensor(ids[1:])[right], reduction="sum"), counted + int(right.sum())
    (total / counted).backward()
    assert step["weight"] == counted
    assert step["loss"].item() == pytest.approx((total / counted).item(), rel=1e-5)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-3, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_another_neighbour_changes_no_loss_of_a_text(model):
    texts = random_texts(4, 8)
    other = [([199 - token for token in ids], counts) for ids, counts in texts]
    first = sum(texts[0][1][1:])
    beside = [sft.answer_losses(model.eval(), lay_out([[0, 1, 2, 3]], [texts[0], *some[1:]], 0))[:first] for some in (texts, other)]
    assert torch.equal(*beside)


def test_held_out_loss_is_the_mean_over_tokens_whatever_the_packing(model):
    texts, kinds = random_texts(), ["a", "b", "b"] * 4
    whole = sft.measure(model, texts, 5, 0, kinds)
    apart = [(sft.measure(model, [text], 1, 0)["heldout_loss"], sum(text[1][1:])) for text in texts]
    assert whole["heldout_loss"] == pytest.approx(sum(loss * n for loss, n in apart) / sum(n for _, n in apart), rel=1e-5)
    of_b = [one for one, kind in zip(apart, kinds, strict=True) if kind == "b"]
    assert whole["heldout_loss_by_kind"]["b"] == pytest.approx(sum(loss * n for loss, n in of_b) / sum(n for _, n in of_b), rel=1e-5)


def test_a_batch_in_which_nothing_counts_is_no_number_gone_wrong(model):
    texts = [(ids, [False] * len(ids)) for ids, _ in random_texts(3)]
    step = sft.FineTuning(model, SFTConfig(steps=10, batch_size=1, learning_rate=1, warmup_steps=0)).training_step(vars(lay_out([[0], [1, 2]], texts, 0)), 0)
    assert (step["loss"].item(), step["weight"]) == (0, 0)


# ---------------------------------------------------------------- which weights change


def test_lora_leaves_a_plain_checkpoint_that_differs_by_low_rank_in_the_layers_named(line, tmp_path):
    notes = []
    outcome = line.run("sft", tmp_path, Context(seed=1, emit=lambda e: notes.append(e.get("text", ""))), steps=40, lora={"rank": 2, "alpha": 8, "layers": "q_proj|down_proj"})
    base, tuned = (load_file(folder / "model.safetensors") for folder in (line.of("pretrain"), tmp_path))
    assert base.keys() == tuned.keys()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {f"model.layers.{i}.{part}.weight" for i in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")}
    for name in changed:
        assert torch.linalg.matrix_rank((tuned[name] - base[name]).double(), rtol=1e-4) <= 2
    trained = 2 * (2 * (16 + 16) + 2 * (32 + 16))
    assert outcome.figures["trainable_parameters"] == trained and outcome.figures["parameters"] == sum(p.numel() for p in load(line.of("pretrain")).parameters())
    assert any(f"trains {trained:,} of" in note for note in notes)
    assert any("model.layers.*.self_attn.q_proj, its adapter (of 2 blocks)" in note for note in notes)
    assert outcome.figures["heldout_loss_after"] < outcome.figures["heldout_loss_before"]


def test_what_is_saved_after_lora_is_what_was_measured(line, tmp_path):
    figures = line.run("sft", tmp_path, **LORA, ema_decay=0.5).figures
    words = load_tokenizer(tmp_path)
    texts, _, _ = sft.read_chats(line.chats / "heldout.jsonl", words, 32, at_most=8)
    assert sft.measure(load(tmp_path), texts, 4, words.pad_token_id)["heldout_loss"] == pytest.approx(figures["heldout_loss_after"], rel=1e-5)


def test_frozen_layers_keep_their_bits_and_the_named_ones_move(line, tmp_path):
    notes = []
    line.run("sft", tmp_path, Context(seed=1, emit=lambda e: notes.append(e.get("text", ""))), train_layers=r"layers\.1\.|norm\.weight")
    base, tuned = (load_file(folder / "model.safetensors") for folder in (line.of("pretrain"), tmp_path))
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == {name for name in base if ".1." in name or name.endswith("norm.weight")}
    assert any("model.layers.*.input_layernorm.weight" in note for note in notes)
    assert not any(p.grad is not None or not p.requires_grad for p in load(tmp_path).parameters())


@pytest.mark.parametrize("changes, message", [({"train_layers": "layerz"}, "'layerz' is found in none of"), ({"lora": {"layers": "q_prj"}}, "lora.layers: 'q_prj' is found in none"), ({"train_layers": "("}, "no regular expression")])
def test_a_pattern_that_chooses_nothing_is_refused_before_training(line, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        line.run("sft", tmp_path, **changes)
    assert not (tmp_path / "curve.jsonl").exists()


def test_lora_under_tensor_parallelism_is_refused(line, tmp_path):
    with pytest.raises(BadInput, match="lora with strategy=tensor"):
        line.run("sft", tmp_path, Context(seed=1, resources=Resources(strategy="tensor", processes=2)), **LORA)


# ---------------------------------------------------------------- mixes


def test_a_mix_changes_how_often_a_kind_is_drawn_and_the_figures_say_so(line, tmp_path):
    plain = line.run("sft", tmp_path / "plain", steps=50).figures["chats_seen_by_kind"]
    mixed = line.run("sft", tmp_path / "mixed", steps=50, mix={"twice": 0.25}).figures["chats_seen_by_kind"]
    assert plain["once"] == pytest.approx(plain["twice"], rel=0.05)
    assert mixed["once"] == pytest.approx(4 * mixed["twice"], rel=0.1)


def test_a_kind_that_no_row_has_is_refused_with_those_that_there_are(line, tmp_path):
    with pytest.raises(BadInput, match=r"mix names thrice, and no training row is of that kind.*The kinds are once, twice"):
        line.run("sft", tmp_path, mix={"thrice": 2})


# ---------------------------------------------------------------- NEFTune


def embedded(model, alpha, packed, seeds):
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(out))
    with noisy(model, alpha, packed.position_ids, seeds):
        hook.remove()
        hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(out))  # after the noise
        model(input_ids=packed.ids, position_ids=packed.position_ids, use_cache=False)
    hook.remove()
    return seen[-1] - model.get_input_embeddings()(packed.ids)


def test_noise_is_uniform_and_as_large_as_the_papers_formula_has_it_for_each_text(model):
    texts = [([7] * 4, [True] * 4), ([8] * 16, [True] * 16)]
    noise = embedded(model, 5.0, lay_out([[0, 1]] * 50, texts, 0), row_seeds(1, 2, 50))  # (50, 20, 16)
    for part, length in ((noise[:, :4], 4), (noise[:, 4:], 16)):
        size = 5.0 / math.sqrt(length * 16)
        assert part.abs().max() <= size * (1 + 1e-6) and part.abs().max() > 0.99 * size
        assert part.std().item() == pytest.approx(size / math.sqrt(3), rel=0.03) and abs(part.mean().item()) < 0.03 * size


def test_a_rows_noise_follows_from_seed_and_step_and_not_from_the_rows_beside_it(model):
    packed = lay_out([[0], [1], [2]], random_texts(3), 0)
    whole = embedded(model, 5.0, packed, row_seeds(1, 2, 3))
    part = embedded(model, 5.0, type(packed)(*(t[1:] for t in vars(packed).values())), row_seeds(1, 2, 3)[1:])
    torch.testing.assert_close(whole[1:], part)
    assert not torch.allclose(whole, embedded(model, 5.0, packed, row_seeds(1, 3, 3)))
    assert embedded(model, 0.0, packed, row_seeds(1, 2, 3)).abs().max() == 0


def test_own_lengths_by_hand():
    assert own_lengths(torch.tensor([[0, 1, 2, 0, 1, 0]])).tolist() == [[3, 3, 3, 2, 2, 1]]


def test_noise_moves_training_and_no_measurement_and_micro_batches_have_the_same(line, tmp_path):
    plain = line.run("sft", tmp_path / "plain").figures
    whole = line.run("sft", tmp_path / "whole", neftune_alpha=5).figures
    parts = line.run("sft", tmp_path / "parts", Context(seed=1, resources=Resources(micro_batch_size=1)), neftune_alpha=5).figures
    assert whole["heldout_loss_before"] == plain["heldout_loss_before"] and whole["loss_last"] != plain["loss_last"]
    assert parts["loss_last"] == pytest.approx(whole["loss_last"], rel=1e-3)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("changes", [{**LORA, "neftune_alpha": 5, "mix": {"twice": 0.3}}, {"train_layers": "mlp|norm", "optimizer": "muon", "ema_decay": 0.9}])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_killed_at_any_step_it_ends_with_the_same_bits(line, tmp_path, tmp_path_factory, monkeypatch, changes, step):
    folder = line.folder / f"sft-{'-'.join(changes)}"
    if not folder.exists():
        line.remembered = {**getattr(line, "remembered", {}), folder: line.run("sft", folder, Context(seed=5), **changes)}
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Killed):
            line.run("sft", tmp_path, Context(seed=5), **changes)
    again = line.run("sft", tmp_path, Context(seed=5), **changes)
    assert outputs(tmp_path) == outputs(folder)
    assert again.figures == line.remembered[folder].figures


def test_an_architecture_that_reads_across_packed_texts_is_refused(line, tmp_path):
    other = type(line)(tmp_path / "line", line.tokenizer, line.tokens, line.chats, line.preferences, ModelConfig(architecture="mamba2", hidden_size=32, layers=2, context_tokens=32))
    with pytest.raises(BadInput, match="packed chats see each other in architecture 'mamba2'"):
        other.run("sft", tmp_path / "sft")
