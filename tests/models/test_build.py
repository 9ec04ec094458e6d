"""A model is built from a recipe, saved as plain transformers reads it, and loaded again."""

import re
import resource

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from components.models.architectures import mask_id
from components.models.build import build, count_parameters, load, load_tokenizer, save
from components.schema.config import BadInput


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_seed_decides_the_weights_and_nothing_else_does(config, words):
    torch.manual_seed(1)
    first = weights(build(config, words, seed=7))
    torch.manual_seed(2)
    assert same(first, weights(build(config, words, seed=7)))
    assert not same(first, weights(build(config, words, seed=8)))


def test_building_leaves_the_global_generator_alone(config, words):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(config, words, seed=0)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2"])
def test_any_decoder_takes_every_dimension_of_the_recipe(config, words, architecture):
    model = build(config.model_copy(update={"architecture": architecture, "tie_embeddings": True}), words, seed=0)
    got = model.config
    assert (got.hidden_size, got.num_hidden_layers, got.num_attention_heads) == (16, 2, 2)
    assert (got.max_position_embeddings, got.vocab_size, got.pad_token_id, got.eos_token_id) == (32, len(words), 0, 4)
    assert (getattr(got, "intermediate_size", None) or got.n_inner) == 32
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, len(words))


def test_a_tied_model_counts_the_shared_matrix_once(config, words):
    tied, apart = (build(config.model_copy(update={"tie_embeddings": tie}), words, seed=0) for tie in (True, False))
    assert count_parameters(apart) - count_parameters(tied) == len(words) * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "lama"}, "architecture='lama' is unknown to transformers"),
        ({"architecture": "bert"}, "architecture='bert' reads in both directions"),
        ({"extra": {"rope_thetaa": 3}}, r"extra names \['rope_thetaa'\].*ignored"),
        ({"extra": {"num_key_value_heads": "many"}}, "transformers cannot build"),
        ({"extra": {"hidden_act": "no_such_function"}}, "transformers cannot build.*no_such_function"),
    ],
)
def test_a_config_that_transformers_would_refuse_or_ignore_is_bad_input(config, words, change, message):
    with pytest.raises(BadInput, match=message):
        build(config.model_copy(update=change), words, seed=0)


def test_an_impossible_size_is_refused_without_a_byte_allocated_and_says_what_to_lower(config, words):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match=r"parameters need .* GiB to train.*Lower hidden_size=65536, layers=500"):
        build(config.model_copy(update={"hidden_size": 65536, "layers": 500}), words, seed=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; one matrix of this model is 16 GiB


def test_plain_transformers_loads_what_was_saved_to_the_same_logits(config, words, tokenizer_folder, tmp_path):
    model = build(config, words, seed=0).eval()
    save(model, tokenizer_folder, tmp_path)
    ids = torch.tensor([[2, 9, 10, 3]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert plain.generation_config.eos_token_id == [4, 0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("añ 1")["input_ids"]) == "añ 1"
    assert tokenizer.chat_template == words.chat_template


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
def test_a_saved_model_reads_text_with_the_tokenizer_that_it_was_made_with(config, words, tokenizer_folder, tmp_path, architecture):
    save(build(config.model_copy(update={"architecture": architecture}), words, seed=0), tokenizer_folder, tmp_path)
    text = "12 + 30 = 42  the  tide: it's 7."
    assert load_tokenizer(tmp_path)(text)["input_ids"] == load_tokenizer(tokenizer_folder)(text)["input_ids"]


def test_an_encoder_is_saved_with_a_mask_token_that_plain_transformers_finds(config, words, tokenizer_folder, tmp_path):
    model = build(config.model_copy(update={"architecture": "bert"}), words, seed=0, objective="masked").eval()
    save(model, tokenizer_folder, tmp_path)
    plain, tokenizer = AutoModelForMaskedLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.mask_token_id == mask_id(words) == len(words)
    assert tokenizer("a<|mask|>b")["input_ids"] == [*words("a")["input_ids"], len(words), *words("b")["input_ids"]]
    ids = torch.tensor([[9, tokenizer.mask_token_id, 10]])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert words.mask_token_id is None  # the tokenizer that everything else uses is as it was


def test_an_encoder_is_loaded_with_its_objective(config, words, tokenizer_folder, tmp_path):
    model = build(config.model_copy(update={"architecture": "modernbert"}), words, seed=0, objective="masked")
    save(model, tokenizer_folder, tmp_path)
    assert same(weights(model), weights(load(tmp_path, "masked")))


def test_saving_twice_gives_the_same_bytes(config, words, tokenizer_folder, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        save(build(config, words, seed=0), tokenizer_folder, folder)
    save(load(folders[0]), folders[0], tmp_path / "again")
    for folder in (folders[1], tmp_path / "again"):
        names = sorted(p.name for p in folder.iterdir())
        assert names == sorted(p.name for p in folders[0].iterdir())
        assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(names)
        assert all((folder / n).read_bytes() == (folders[0] / n).read_bytes() for n in names)
        assert not re.search(str(tmp_path), "".join((folder / n).read_text() for n in names if n.endswith(".json")))


def test_loading_gives_train_mode_so_that_dropout_is_on_in_training(config, words, tokenizer_folder, tmp_path):
    save(build(config, words, seed=0), tokenizer_folder, tmp_path)
    assert load(tmp_path).training


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path):
    path.write_bytes(b"not what it was")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", truncate, "model.safetensors cannot be read.*run the stage that made it again"),
        ("model.safetensors", overwrite, "model.safetensors cannot be read"),
        ("config.json", overwrite, "config.json cannot be read"),
        ("model.safetensors", lambda p: p.unlink(), "model.safetensors does not exist"),
        ("config.json", lambda p: p.unlink(), "config.json does not exist"),
    ],
)
def test_a_damaged_folder_says_which_file_and_what_to_do(config, words, tokenizer_folder, tmp_path, name, damage, message):
    save(build(config, words, seed=0), tokenizer_folder, tmp_path)
    damage(tmp_path / name)
    with pytest.raises(BadInput, match=message):
        load(tmp_path)


def test_a_pickle_is_never_loaded_even_where_it_is_all_there_is(config, words, tokenizer_folder, tmp_path):
    model = build(config, words, seed=0)
    save(model, tokenizer_folder, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin, a pickle, which is never loaded"):
        load(tmp_path)


def test_weights_that_are_absent_are_not_made_up(config, words, tokenizer_folder, tmp_path):
    save(build(config, words, seed=0), tokenizer_folder, tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"lacks \d+ weights, such as model.layers.2"):
        load(tmp_path)


def test_a_damaged_tokenizer_is_bad_input(tokenizer_folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
