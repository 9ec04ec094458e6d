"""Weights become probabilities, and the mixture says how far the data reaches."""

import json

import pytest

from components.data.tokenizing import mix
from components.schema.config import BadInput
from components.schema.data import MixConfig

TOKENS = {"web": 8_000, "books": 1_500, "code": 500}


def config(*phases: dict, max_epochs: float = 4) -> MixConfig:
    return MixConfig.model_validate({"phases": list(phases) or [{}], "max_epochs": max_epochs})


def test_without_weights_each_domain_has_its_share_of_the_tokens_and_all_reach_equally_far():
    made = mix.resolve(config(), TOKENS)
    assert made["phases"] == [{"until": 1.0, "probabilities": {"books": 0.15, "code": 0.05, "web": 0.8}}]
    assert made["holds_up_to_tokens"] == 40_000 and {d["holds_up_to_tokens"] for d in made["domains"].values()} == {40_000}


def test_weights_of_any_scale_are_normalised_and_a_domain_without_one_is_left_out():
    made = mix.resolve(config({"weights": {"web": 30, "code": 10}}), TOKENS)
    assert made["phases"][0]["probabilities"] == {"books": 0, "code": 0.25, "web": 0.75}
    assert made["domains"]["books"] == {"tokens": 1_500, "share": 0, "holds_up_to_tokens": None}
    assert made["domains"]["code"]["holds_up_to_tokens"] == 8_000 == made["holds_up_to_tokens"]  # 500 tokens, 4 times, at a quarter


def test_shares_of_an_annealed_mixture_are_weighed_by_the_length_of_its_phases():
    made = mix.resolve(config({"weights": {"web": 90, "books": 10}, "until": 0.8}, {"weights": {"web": 1, "books": 1}}), TOKENS)
    assert [phase["until"] for phase in made["phases"]] == [0.8, 1.0]
    assert made["domains"]["books"]["share"] == pytest.approx(0.8 * 0.1 + 0.2 * 0.5)
    assert made["domains"]["books"]["holds_up_to_tokens"] == pytest.approx(4 * 1_500 / 0.18, abs=1)
    assert sum(domain["share"] for domain in made["domains"].values()) == pytest.approx(1)


def test_a_phase_may_have_no_weights_beside_one_that_has():
    made = mix.resolve(config({"until": 0.5}, {"weights": {"code": 1}}), TOKENS)
    assert made["phases"][0]["probabilities"]["web"] == 0.8 and made["phases"][1]["probabilities"] == {"books": 0, "code": 1, "web": 0}


def test_a_weight_for_a_domain_of_which_nothing_is_left_is_refused():
    with pytest.raises(BadInput, match=r"weights are given to \['papers'\], of which no training document is left.*There are tokens of: \['books', 'code', 'web'\]"):
        mix.resolve(config({"weights": {"web": 1, "papers": 1}}), TOKENS)


def test_the_step_reads_tokens_json_and_leaves_out_domains_that_only_measure(tmp_path):
    from .corpus import config_of

    (tmp_path / "tokens").mkdir()
    (tmp_path / "mix").mkdir()
    domains = {name: {"train_tokens": count} for name, count in {**TOKENS, "rare": 0}.items()}
    (tmp_path / "tokens/tokens.json").write_text(json.dumps({"domains": domains}))
    mix.run(config_of(mix={"max_epochs": 2}), tmp_path / "mix")
    made = json.loads((tmp_path / "mix/mix.json").read_text())
    assert set(made["domains"]) == set(TOKENS) and made["max_epochs"] == 2 and made["holds_up_to_tokens"] == 20_000
