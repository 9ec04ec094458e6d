"""Which weights train: by pattern, by low-rank adapters that merge without a trace."""

import pytest
import torch

from components.models.adapters import adapt, choose, linear_layers, only
from components.models.build import build
from components.schema.config import BadInput
from components.schema.posttraining import LoraConfig, SFTConfig

IDS = torch.tensor([[5, 9, 7, 30, 8]])


@pytest.fixture(params=["llama", "gpt2", "mixtral"])
def model(request, config, words):
    extra = {"num_local_experts": 2} if request.param == "mixtral" else {}
    return build(config.model_copy(update={"architecture": request.param, "extra": extra}), words, seed=0).eval()


def with_some_b(model):
    """B is zero at first, so that nothing shows; as if trained."""
    draw = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=draw)


@torch.no_grad()
def test_adapters_say_nothing_new_at_first_and_merge_into_the_same_model(model):
    before, names = model(IDS).logits, list(model.state_dict())
    training = adapt(model, LoraConfig(rank=2, alpha=3.0), seed=1)
    assert torch.equal(model(IDS).logits, before)
    with_some_b(model)
    trained = model(IDS).logits
    assert (trained - before).abs().max() > 0.1
    training.merge()
    torch.testing.assert_close(model(IDS).logits, trained, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert not [module for module in model.modules() if "peft" in type(module).__module__]


@torch.no_grad()
def test_a_merged_weight_is_w_plus_alpha_over_rank_times_b_a(config, words):
    model = build(config, words, seed=0)
    layer = "model.layers.0.mlp.up_proj"
    w = model.get_submodule(layer).weight.clone()
    training = adapt(model, LoraConfig(rank=2, alpha=3.0, layers=r"0\.mlp\.up_proj"), seed=1)
    with_some_b(model)
    a, b = model.get_submodule(layer).lora_A["default"].weight.clone(), model.get_submodule(layer).lora_B["default"].weight.clone()
    assert (a.shape, b.shape) == ((2, 16), (32, 2))
    training.merge()
    torch.testing.assert_close(model.get_submodule(layer).weight, w + 3.0 / 2 * b @ a)


def test_only_adapters_train_and_they_follow_the_seed(model):
    training = adapt(model, LoraConfig(rank=2), seed=1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert training.trained == sum(p.numel() for p in trained.values())
    assert training.total == sum(p.numel() for name, p in model.named_parameters() if name not in trained)
    assert training.lines()[0].startswith(f"trains {training.trained:,} of {training.total:,} parameters (")


def test_the_seed_decides_where_adapters_begin(config, words):
    def first(seed):
        model = build(config, words, seed=0)
        adapt(model, LoraConfig(rank=2), seed)
        return next(p for name, p in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_a_pattern_trains_what_it_is_found_in_and_a_new_head_in_any_case(config, words):
    model = build(config, words, seed=0)
    training = only(model, r"layers\.1\.mlp", also=("model.norm",))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {*(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")), "model.norm.weight"}
    assert training.trained == 3 * 16 * 32 + 16
    training.merge()
    assert all(p.requires_grad for p in model.parameters())


def test_all_linear_is_every_linear_layer_of_the_blocks_and_not_the_output_layer(config, words):
    model = build(config.model_copy(update={"tie_embeddings": False}), words, seed=0)
    assert len(linear_layers(model)) == 2 * 7
    assert "lm_head" not in linear_layers(model)


def test_everything_trains_where_the_recipe_says_nothing(model):
    training = choose(model, SFTConfig(steps=10, batch_size=1, learning_rate=1, warmup_steps=0), seed=0)
    assert training.trained == training.total and len(training.lines()) == 1


def test_a_layer_that_takes_no_adapter_is_refused_with_a_way_out(config, words):
    model = build(config.model_copy(update={"architecture": "mamba2", "hidden_size": 32, "heads": None, "intermediate_size": None}), words, seed=0)
    with pytest.raises(BadInput, match=r"lora: .*out_proj.*Name other layers in lora.layers"):
        adapt(model, LoraConfig(), seed=0)


def test_adapters_and_frozen_layers_at_once_contradict_each_other():
    with pytest.raises(ValueError, match="contradict"):
        SFTConfig(steps=10, batch_size=1, learning_rate=1, warmup_steps=0, lora=LoraConfig(), train_layers="norm")
