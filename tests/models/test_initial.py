"""Training begins from weights that exist: a token keeps its row whatever its id, and what is new starts at the mean."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from components.models.build import build, load_tokenizer, save
from components.models.initial import Carried, begin, carry, rows_from
from components.schema.config import BadInput
from components.schema.training import ModelConfig
from tests.models.conftest import SPECIAL

OURS = ModelConfig(init_from="somewhere", context_tokens=32)
TEXT = "The quick brown fox jumps over 13 lazy dogs."


def tokenizer_of(folder, tokens, special=SPECIAL):
    """One token for each spelling, ids in the order given."""
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=special[0], eos_token=special[-1]).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture
def permuted(tmp_path):
    """The same tokens under other ids."""
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    random.Random(0).shuffle(tokens)
    return tokenizer_of(tmp_path / "permuted", tokens)


def weights_in(tmp_path, tokenizer_folder, words, objective="next_token", **fields):
    fields = {"hidden_size": 16, "layers": 2, "heads": 2, "context_tokens": 64} | fields
    model = build(ModelConfig(**fields), words, seed=3, objective=objective)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))  # biases too are no longer zero
    save(model, tokenizer_folder, tmp_path / "weights")
    return model.eval(), tmp_path / "weights"


@torch.no_grad()
def loss_of(model, tokenizer, text=TEXT):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return cross_entropy(model.eval()(input_ids=ids).logits[0, :-1], ids[0, 1:]).item()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "mamba2"])
def test_with_the_same_tokenizer_the_logits_are_identical(words, tokenizer_folder, tmp_path, architecture):
    heads = {"heads": None} if architecture == "mamba2" else {}
    old, folder = weights_in(tmp_path, tokenizer_folder, words, architecture=architecture, **heads)
    new = begin(OURS, words, folder)
    assert new.training
    ids = torch.tensor([words(TEXT)["input_ids"][:32]])
    assert torch.equal(new.eval()(input_ids=ids).logits, old(input_ids=ids).logits)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])  # phi's output layer has a bias for each token
def test_a_permuted_vocabulary_gives_the_same_text_the_same_loss(words, permuted, tokenizer_folder, tmp_path, architecture, tie):
    old, folder = weights_in(tmp_path, tokenizer_folder, words, architecture=architecture, tie_embeddings=tie)
    new = begin(OURS, permuted, folder)
    assert words(TEXT)["input_ids"] != permuted(TEXT)["input_ids"]
    assert loss_of(new, permuted) == pytest.approx(loss_of(old, words), abs=1e-5)
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) is tie


def test_an_encoder_keeps_what_it_says_about_a_masked_token(words, permuted, tokenizer_folder, tmp_path):
    old, folder = weights_in(tmp_path, tokenizer_folder, words, "masked", architecture="bert")
    new = begin(OURS, permuted, folder, "masked").eval()
    ids, moved = (torch.tensor([[*t("ab")["input_ids"], len(t), *t("cd")["input_ids"]]]) for t in (words, permuted))
    there = torch.tensor([permuted.get_vocab()[token] for token in words.convert_ids_to_tokens(range(len(words)))] + [len(words)])
    torch.testing.assert_close(new(input_ids=moved).logits[..., there], old(input_ids=ids).logits)


def test_new_tokens_take_only_their_share_of_the_old_distribution(words, tokenizer_folder, tmp_path, capsys):
    old, folder = weights_in(tmp_path, tokenizer_folder, words)
    tokens = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    wider = tokenizer_of(tmp_path / "wider", ["new0", "new1", *tokens, "new2", "new3"])
    new = begin(OURS, wider, folder)
    assert "261 of 265 token rows carried over by spelling, 4 new ones" in capsys.readouterr().out
    assert new.config.vocab_size == new.get_input_embeddings().weight.shape[0] == 265
    lost = loss_of(new, wider) - loss_of(old, words)
    assert 0 < lost < torch.tensor(265 / 261).log().item() + 0.01


def test_tokens_that_are_gone_leave_no_row_behind(words, tokenizer_folder, tmp_path):
    old, folder = weights_in(tmp_path, tokenizer_folder, words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smaller = tokenizer_of(tmp_path / "smaller", SPECIAL + alphabet[:100])
    new = begin(OURS, smaller, folder)
    assert new.get_input_embeddings().weight.shape[0] == 105
    a = alphabet[70]
    assert torch.equal(new.get_input_embeddings().weight[smaller.get_vocab()[a]], old.get_input_embeddings().weight[words.get_vocab()[a]])


def test_new_rows_are_the_mean_of_the_rows_that_tokens_have_and_differ_by_the_seed():
    old = torch.randn(6, 3)
    old[5] = 1e6  # padding of the matrix, which no token has
    carried = Carried(sources=torch.tensor([4, -1, -1, 0]), known=torch.arange(5))
    one, again, other = (rows_from(old, carried, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one[0], old[4]) and torch.equal(one[3], old[0])
    torch.testing.assert_close(one[1], old[:5].mean(0), atol=0.1, rtol=0)
    assert torch.equal(one, again) and not torch.equal(one[1], other[1]) and not torch.equal(one[1], one[2])


def test_rows_beyond_the_old_matrix_are_new(words, permuted):
    carried = carry(words, permuted, "next_token", rows=10)
    assert carried.kept == 10 and len(carried.known) == 10


def test_padding_end_stop_tokens_and_context_are_ours(words, permuted, tokenizer_folder, tmp_path):
    _, folder = weights_in(tmp_path, tokenizer_folder, words)
    model = begin(OURS, permuted, folder)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (permuted.pad_token_id, permuted.eos_token_id)
    assert model.generation_config.eos_token_id == [permuted.eos_token_id, permuted.pad_token_id]
    assert model.config.max_position_embeddings == 32
    save(model, tmp_path / "permuted", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vocab_size"] == len(permuted)


def test_learned_positions_bound_the_context_and_rotary_ones_do_not(words, tokenizer_folder, tmp_path, capsys):
    _, folder = weights_in(tmp_path / "gpt2", tokenizer_folder, words, architecture="gpt2")
    longer = OURS.model_copy(update={"context_tokens": 128})
    with pytest.raises(BadInput, match=r"context_tokens=128.*learned 64 positions.*Lower context_tokens"):
        begin(longer, words, folder)
    _, folder = weights_in(tmp_path / "llama", tokenizer_folder, words)
    assert begin(longer, words, folder).config.max_position_embeddings == 128
    assert "trained with up to 64" in capsys.readouterr().out


def test_dropout_is_ours_and_refused_where_there_is_none(words, tokenizer_folder, tmp_path):
    _, folder = weights_in(tmp_path / "gpt2", tokenizer_folder, words, architecture="gpt2")
    wanted = OURS.model_copy(update={"dropout": 0.25})
    assert begin(wanted, words, folder).config.resid_pdrop == 0.25
    _, folder = weights_in(tmp_path / "mamba", tokenizer_folder, words, architecture="mamba", heads=None)
    with pytest.raises(BadInput, match=r"dropout=0.25.*'mamba' has no dropout"):
        begin(wanted, words, folder)


def test_a_wrong_objective_or_field_and_a_folder_without_tokenizer_are_refused(words, tokenizer_folder, tmp_path):
    _, folder = weights_in(tmp_path, tokenizer_folder, words)
    with pytest.raises(BadInput, match="does not restore masked tokens"):
        begin(OURS, words, folder, "masked")
    with pytest.raises(BadInput, match=r"extra names \['rope_thetaa'\]"):
        begin(OURS.model_copy(update={"extra": {"rope_thetaa": 1}}), words, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer that can be read.*beside its weights"):
        begin(OURS, words, folder)
