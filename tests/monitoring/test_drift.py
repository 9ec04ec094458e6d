"""Drift: the divergence against scipy's, bands that training's own windows keep to, and changes that leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from components.schema.config import BadInput
from components.serving.drift import SIZES, Drift, Profile, profile_of_prompts

WORDS = 50


def prompts(seed: int, count: int, words: int = WORDS, longest: int = 20) -> list[list[int]]:
    """Prompts of a made-up language: Zipf's law, lengths of 5 to `longest`."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(1, words + 1)
    return [generator.choice(words, size=generator.integers(5, longest), p=share / share.sum()).tolist() for _ in range(count)]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_of_prompts(prompts(0, 2000))


def served(profile: Profile, asked: list[list[int]], window: int = 512) -> dict[str, float]:
    drift = Drift(profile, window)
    for ids in asked:
        drift.add(ids)
    return drift.measures()


def test_the_divergence_is_that_of_scipy_also_for_tokens_that_only_one_side_has(profile: Profile) -> None:
    asked = prompts(1, 40, words=70)
    there, here = np.zeros(70), np.zeros(70)
    there[list(profile.tokens)] = profile.counts
    for ids in asked:
        np.add.at(here, ids, 1)
    expected = jensenshannon(here, there, base=2) ** 2
    assert served(profile, asked)["jensen_shannon"] == pytest.approx(expected, rel=1e-9)
    assert served(profile, [[1000 + n] * 9 for n in range(20)])["jensen_shannon"] == pytest.approx(1.0), "nothing in common"


def test_prompts_like_those_of_training_stay_inside_nearly_always(profile: Profile) -> None:
    outside = {name: 0 for name in ("jensen_shannon", "rare_share", "unseen_share")}
    for seed in range(100):
        found = served(profile, prompts(100 + seed, 64))
        for name in outside:
            outside[name] += found[name] > found[f"{name}_limit"]
    assert max(outside.values()) <= 6, f"one look in a hundred is meant to be outside: {outside}"


@pytest.mark.parametrize(("asked", "what"), [
    (prompts(7, 200, words=10), "jensen_shannon"),  # a few words only
    (prompts(7, 200, words=80), "unseen_share"),  # words that training never had
    ([[*profile_of_prompts(prompts(0, 2000)).tokens[-2:], 1, 2, 3, 4, 5]] * 200, "rare_share"),  # rare words, often
])  # fmt: skip
def test_another_mixture_of_words_leaves_its_band(profile: Profile, asked: list[list[int]], what: str) -> None:
    found = served(profile, asked)
    assert found[what] > found[f"{what}_limit"] and found["outside"] >= 1


def test_longer_prompts_leave_the_band_of_lengths_on_its_upper_side(profile: Profile) -> None:
    found = served(profile, prompts(8, 200, longest=60))
    assert found["length_p95"] > found["length_p95_most"] > found["length_p95_least"]


def test_bands_narrow_as_windows_grow(profile: Profile) -> None:
    limits = [profile.bands[size]["jensen_shannon"][1] for size in SIZES]
    assert limits == sorted(limits, reverse=True) and limits[0] > 5 * limits[-1]


def test_a_window_forgets_what_has_left_it(profile: Profile) -> None:
    drift = Drift(profile, window=64)
    for ids in [*prompts(3, 500, words=200), *prompts(4, 64)]:
        drift.add(ids)
    assert drift.measures() == pytest.approx(served(profile, prompts(4, 64), window=64), rel=1e-9)


def test_a_few_prompts_are_counted_and_not_judged(profile: Profile) -> None:
    assert served(profile, prompts(5, 15)) == {"window": 15.0}
    assert "jensen_shannon" in served(profile, prompts(5, 16))


def test_a_profile_is_the_same_every_time_and_survives_a_file(profile: Profile) -> None:
    assert profile_of_prompts(prompts(0, 2000)) == profile == Profile.model_validate_json(profile.model_dump_json())


def test_too_few_training_prompts_are_refused_with_the_number() -> None:
    with pytest.raises(BadInput, match="12 different training prompts are fewer than 100"):
        profile_of_prompts(prompts(0, 12) * 50)


# ---------------------------------------------------------------- from a model's record


def checkpoint(folder: Path, inputs: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"stage": "sft", "identity": "0" * 32, "revision": 1, "config": {}, "inputs": inputs, "files": {}, "figures": {}, "samples": [], "execution": {}}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_a_model_without_a_record_or_without_chats_has_no_profile_and_says_why(tmp_path: Path) -> None:
    from components.serving.reference import profile_of

    with pytest.raises(BadInput, match=r"has no record\.json"):
        profile_of(tmp_path)
    with pytest.raises(BadInput, match="names neither chats nor preferences"):
        profile_of(checkpoint(tmp_path / "base", {"tokens": "1" * 32 + ".dir"}))


def test_a_profile_is_made_of_the_very_data_version_that_the_record_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a project of its own: chats are given to DVC, changed afterwards, and the profile is of what was given."""
    from dvc.repo import Repo

    from components.schema.records import home
    from components.serving.reference import profile_of
    from tests.evaluation.conftest import make_tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    turns = [{"role": "user", "content": "one NUMBER"}, {"role": "assistant", "content": "three"}, {"role": "user", "content": "four"}, {"role": "assistant", "content": "five"}]
    (folder / "train.jsonl").write_text("".join(json.dumps({"messages": turns}).replace("NUMBER", str(number)) + "\n" for number in range(60)))
    with Repo.init(".", no_scm=True) as repo:
        (stage,) = repo.add("data")
    shutil.rmtree(folder)
    model = checkpoint(tmp_path / "model", {"chats": stage.outs[0].hash_info.value, "base": "2" * 32})
    make_tokenizer().save_pretrained(model)
    found = profile_of(model)
    assert found.prompts == 96, "60 chats ask twice each, and a fifth is held back"
    kept = list((home() / "profiles").iterdir())
    shutil.rmtree(tmp_path / ".dvc")
    assert profile_of(model) == found and len(kept) == 1, "made once"
