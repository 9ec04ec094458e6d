"""Logits where they are wanted, scores that padding cannot move, values at every token."""

import pytest
import torch

from components.models.build import build, save
from components.models.heads import logits_at, scalar_model_from, scores, values


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2"])
def test_picked_logits_equal_the_whole_ones_even_where_the_architecture_works_on_them(config, words, architecture):
    model = build(config.model_copy(update={"architecture": architecture}), words, seed=0).eval()
    ids = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(3, 7, dtype=torch.bool)
    counts[0, 2] = counts[2, 5] = counts[2, 6] = True
    torch.testing.assert_close(logits_at(model, counts, input_ids=ids), model(input_ids=ids, use_cache=False).logits[counts])
    assert model(input_ids=ids).logits.shape == (3, 7, len(words))  # the hook is gone


@pytest.fixture
def folder(config, words, tokenizer_folder, tmp_path):
    save(build(config, words, seed=0), tokenizer_folder, tmp_path / "model")
    return tmp_path / "model"


def test_a_scalar_model_keeps_the_trunk_and_its_new_head_follows_the_seed(folder, config, words):
    one, same, other = scalar_model_from(folder, 1), scalar_model_from(folder, 1), scalar_model_from(folder, 2)
    trunk = dict(build(config, words, seed=0).model.named_parameters())
    assert all(torch.equal(p, trunk[name]) for name, p in one.model.named_parameters())
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)


def test_a_trained_head_is_read_back_and_not_made_anew(folder, tokenizer_folder, tmp_path):
    model = scalar_model_from(folder, 1)
    save(model, tokenizer_folder, tmp_path / "scorer")
    assert torch.equal(scalar_model_from(tmp_path / "scorer", 2).score.weight, model.score.weight)


def test_more_padding_changes_no_score(folder):
    model = scalar_model_from(folder, 1).eval()
    ids = torch.tensor([[2, 9, 10, 4]])
    padded = torch.nn.functional.pad(ids, (0, 5), value=0)
    torch.testing.assert_close(scores(model, padded), scores(model, ids), rtol=0, atol=1e-6)


def test_the_score_is_the_value_at_the_last_real_token(folder):
    model = scalar_model_from(folder, 1).eval()
    ids = torch.tensor([[2, 9, 10, 4, 0, 0], [2, 9, 10, 11, 12, 4]])
    every = values(model, ids)
    assert every.shape == (2, 6)
    torch.testing.assert_close(scores(model, ids), torch.stack([every[0, 3], every[1, 5]]))
