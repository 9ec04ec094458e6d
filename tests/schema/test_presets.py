"""One dial: a size fills a recipe that validation accepts, within 10 % of what was asked, and says why for each value."""

from __future__ import annotations

import math

import pytest
import yaml

from components.schema.config import BadInput
from components.schema.presets import FAMILIES, best_batch, best_learning_rate, fill, natural_heads, natural_intermediate, parse
from components.schema.recipe import Recipe
from tests.schema.test_recipe import TINY

SIZES = {"2m": 2e6, "10m": 1e7, "60m": 6e7, "125m": 1.25e8, "350m": 3.5e8, "1b": 1e9}


def filled(vocab_size: int | None = None, pretrain: dict | None = None, **model):
    raw, lines = fill({"model": model, "pretrain": pretrain or {}}, vocab_size)
    return raw["model"], raw["pretrain"], lines


def llama(width: int, layers: int, intermediate: int, vocabulary: int) -> int:
    """Every parameter of transformers' Llama with tied embeddings, counted by hand."""
    return vocabulary * width + layers * (4 * width**2 + 3 * width * intermediate + 2 * width) + width


@pytest.mark.parametrize("vocabulary", [None, 1024, 4096, 32000])
@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_come_within_a_tenth_of_the_dial(size: str, vocabulary: int | None) -> None:
    model, _, lines = filled(vocabulary, size=size)
    count = llama(model["hidden_size"], model["layers"], model["intermediate_size"], vocabulary or 0)
    assert abs(count / SIZES[size] - 1) < 0.1
    assert ("without embeddings" in lines[0]) is (vocabulary is None)
    assert model["hidden_size"] % 64 == 0 and model["hidden_size"] == 64 * model["heads"]


@pytest.mark.parametrize("size", ["60m", "125m", "350m", "1b"])
def test_models_are_about_as_wide_for_their_depth_as_published_ones(size: str) -> None:
    model, _, _ = filled(4096, size=size)
    assert 40 <= model["hidden_size"] / model["layers"] <= 130


def test_everything_that_is_filled_passes_validation_and_the_size_stays_as_a_record() -> None:
    raw = yaml.safe_load(TINY.read_text())
    raw["model"] = {"size": "2m", "context_tokens": 160}
    raw["pretrain"] = {}
    done, lines = fill(raw, 1024)
    recipe = Recipe.parse(done, where="a test")
    assert recipe.model.size == "2m" and recipe.model.hidden_size and recipe.pretrain.steps > recipe.pretrain.warmup_steps
    for line in lines[1:6]:
        section, field = line.split(" = ")[0].split(".")
        assert f"{getattr(getattr(recipe, section), field)}" in line.replace(",", "") and "(" in line
    assert raw["pretrain"] == {} and "layers" not in raw["model"]  # what was read is as it was


@pytest.mark.parametrize("given", [{"hidden_size": 256}, {"layers": 3}, {"heads": 5}, {"intermediate_size": 640}, {"hidden_size": 192, "layers": 2}])
def test_what_is_given_wins_and_is_not_told_as_derived(given: dict) -> None:
    model, _, lines = filled(1024, size="10m", **given)
    assert given.items() <= model.items()
    assert not any(line.startswith(f"model.{name} =") for name in given for line in lines)


def test_a_given_width_is_met_by_depth_and_a_given_depth_by_width() -> None:
    wide, _, _ = filled(1024, size="10m", hidden_size=256)
    deep, _, _ = filled(1024, size="10m", layers=8)
    for model in (wide, deep):
        assert abs(llama(model["hidden_size"], model["layers"], model["intermediate_size"], 1024) / 1e7 - 1) < 0.1


def test_given_dimensions_that_miss_the_size_are_kept_and_the_miss_is_told() -> None:
    _, _, lines = filled(1024, size="10m", hidden_size=128, layers=2)
    assert lines[0].startswith("model.size = 10m: 0.5") and "-9" in lines[0]


def test_given_training_fields_win_and_the_others_follow_from_them() -> None:
    _, plain, _ = filled(1024, size="2m")
    model, pretrain, _ = filled(1024, {"batch_size": 16}, size="2m")
    count = llama(model["hidden_size"], model["layers"], model["intermediate_size"], 1024)
    assert pretrain["batch_size"] == 16
    assert pretrain["steps"] * 16 * 256 == pytest.approx(20 * count, rel=0.01)
    _, short, _ = filled(1024, {"steps": 100, "learning_rate": 1e-3, "warmup_steps": 5}, size="2m")
    assert (short["steps"], short["learning_rate"], short["warmup_steps"]) == (100, 1e-3, 5)
    assert short["batch_size"] != plain["batch_size"]


def test_the_horizon_is_chinchillas_twenty_tokens_for_each_parameter() -> None:
    model, pretrain, lines = filled(4096, size="60m", context_tokens=512)
    count = llama(model["hidden_size"], model["layers"], model["intermediate_size"], 4096)
    assert pretrain["steps"] * pretrain["batch_size"] * 512 / count == pytest.approx(20, rel=0.01)
    assert any("2203.15556" in line for line in lines)


def test_batch_and_learning_rate_are_deepseeks_laws() -> None:
    """At C = 1e18 by logarithms: 0.2920 x 10^(18 x 0.3271), 0.3118 x 10^(-18 x 0.125)."""
    assert best_batch(10**9, tokens=1e18 / 6e9) == pytest.approx(0.2920 * 10**5.8878, rel=1e-6)
    assert best_learning_rate(1e18) == pytest.approx(0.3118 * 10**-2.25, rel=0.05)
    assert best_learning_rate(1e15) > best_learning_rate(1e20)


def test_the_batch_for_given_steps_solves_the_law_with_the_tokens_that_it_makes() -> None:
    batch = best_batch(10**7, steps=5000)
    assert best_batch(10**7, tokens=5000 * batch) == pytest.approx(batch)


def test_a_start_outside_what_the_laws_were_fitted_on_is_said() -> None:
    assert any("outside" in line for line in filled(1024, size="2m")[2])
    assert not any("outside" in line for line in filled(32000, size="125m")[2])


def test_a_mixture_counts_all_experts_in_its_size_and_only_those_that_read_a_token_in_its_horizon() -> None:
    extra = {"num_local_experts": 8, "num_experts_per_tok": 2}
    model, pretrain, lines = filled(4096, size="60m", architecture="mixtral", extra=extra)
    width, layers, expert = model["hidden_size"], model["layers"], model["intermediate_size"]
    total, active = (4096 * width + layers * (4 * width**2 + n * 3 * width * expert) for n in (8, 2))
    assert abs(total / 6e7 - 1) < 0.1
    assert pretrain["steps"] * pretrain["batch_size"] * 256 == pytest.approx(20 * active, rel=0.02)
    assert "for each token" in lines[0]


def test_a_recurrent_model_gets_no_heads() -> None:
    model, _, _ = filled(1024, size="10m", architecture="mamba2")
    assert "heads" not in model and "intermediate_size" not in model


@pytest.mark.parametrize(("size", "count"), [("2m", 2_000_000), ("1.5B", 1_500_000_000), ("350M", 350_000_000), (" 10 m ", 10_000_000)])
def test_a_size_is_a_number_of_millions_or_billions(size: str, count: int) -> None:
    assert parse(size) == count


@pytest.mark.parametrize("size", ["big", "10", "0m", "-3m", "10k", 10])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(BadInput, match=r"is no size.*such as 10m"):
        fill({"model": {"size": size}})


def test_a_vocabulary_larger_than_the_model_is_refused_with_both_numbers() -> None:
    with pytest.raises(BadInput, match=r"size=2m cannot be had.*embedding of 100000 tokens.*smaller data.tokenizer.vocab_size"):
        filled(100_000, size="2m")


@pytest.mark.parametrize("raw", [{}, {"model": {"hidden_size": 64, "layers": 2}}, {"model": {"size": "2m", "init_from": "x"}}, {"model": {"size": "2m", "layers": "many"}}, {"model": "llama"}])
def test_where_no_size_is_given_or_a_value_is_malformed_the_recipe_is_left_to_validation(raw: dict) -> None:
    assert fill(raw, 1024) == (raw, [])


@pytest.mark.parametrize("width", [16, 64, 96, 160, 192, 320, 1000])
def test_heads_divide_the_width_evenly_and_are_as_near_to_64_as_they_can(width: int) -> None:
    heads = natural_heads(width)
    assert width % heads == 0 and (width // heads) % 2 == 0
    assert width % 64 or width // heads == 64


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "modernbert"])
def test_a_feed_forward_layer_has_about_eight_squares_of_the_width(architecture: str) -> None:
    width = natural_intermediate(architecture, 768)
    assert width % 64 == 0
    assert FAMILIES[architecture].matrices * width * 768 == pytest.approx(8 * 768**2, rel=0.03)


def test_the_warm_up_is_forty_steps_at_the_default_beta_and_never_more_than_a_tenth() -> None:
    assert filled(1024, size="2m")[1]["warmup_steps"] == 40 == round(2 / (1 - 0.95))
    assert filled(1024, {"steps": 100}, size="2m")[1]["warmup_steps"] == 10
    assert filled(1024, {"betas": [0.9, 0.99]}, size="2m")[1]["warmup_steps"] == 200
    assert math.isclose(filled(32000, size="1b")[1]["warmup_steps"], filled(32000, size="1b")[1]["steps"] / 100, rel_tol=0.01)
