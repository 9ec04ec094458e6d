"""Toxicity by the list against a count by hand, bias pairs, and the checks on a classifier of the user's own."""

from __future__ import annotations

import codecs
import math
from pathlib import Path

import numpy as np
import pytest

from components.data.filtering import safety
from components.data.words import word_hashes
from components.schema.config import BadInput


def secret(text: str) -> str:
    """Rude words are in rot13 here as in the list."""
    return codecs.decode(text, "rot13")


def toxicity(*texts: str) -> list[float]:
    return safety.toxicity(word_hashes(texts)).tolist()


def listed() -> dict[str, float]:
    lines = [line for line in (safety.WORDLISTS / "toxicity_en.txt").read_text().splitlines() if not line.startswith("#")]
    return {secret(phrase): float(weight) for weight, _, phrase in (line.partition(" ") for line in lines)}


def test_the_score_is_the_formula_of_the_docstring() -> None:
    rude = secret("fuvg")
    assert toxicity("word " * 99 + rude) == pytest.approx([1 - math.exp(-listed()[rude])])
    assert toxicity("word " * 9 + rude) == pytest.approx([1 - math.exp(-2 * listed()[rude])])  # ten words count as fifty
    assert toxicity("word " * 1000, "", "!!!") == [0, 0, 0]


def test_every_phrase_of_the_list_is_found_and_weighs_what_it_says() -> None:
    phrases = listed()
    assert len(phrases) > 60
    scores = toxicity(*(f"well, {phrase.upper()}! " + "word " * (100 - 1 - len(phrase.split())) for phrase in phrases))
    assert scores == pytest.approx([1 - math.exp(-weight) for weight in phrases.values()])


def test_the_longest_phrase_counts_once() -> None:
    phrases = listed()
    short, long = secret("shpx"), secret("shpx lbh")
    assert toxicity("word " * 98 + long) == pytest.approx([1 - math.exp(-phrases[long])])
    assert phrases[short] != phrases[long]


@pytest.mark.parametrize(
    "text",
    [
        "The class will assess the assets of Scunthorpe, Penistone and Essex.",
        "He will kill the process and you will die of laughter; we are parasitologists.",
        "A cock crowed, the dam was a dyke, and the Maine Coon cat found a chink in the spic and span wall.",
    ],
)
def test_words_that_only_contain_or_resemble_rude_ones_are_not_toxic(text: str) -> None:
    assert toxicity(text) == [0]


def test_the_list_can_be_looked_at_without_reading_it() -> None:
    raw = (safety.WORDLISTS / "toxicity_en.txt").read_text().lower()
    assert "rot13" in raw
    assert not any(f" {secret(word)}" in raw for word in ("shpx", "fuvg", "ovgpu"))


def bias(text: str) -> int:
    return int(safety.bias_pairs(word_hashes([text]))[0])


def test_a_group_and_a_bad_word_near_it_are_a_pair() -> None:
    assert bias("They said that immigrants are lazy.") == 1
    assert bias("Lazy immigrants, dirty foreigners!") == 2
    assert bias("The lazy immigrants are lazy.") == 1  # each word is in one pair at most
    assert bias("Many women came by bus. It was dangerous weather.") == 0
    assert bias("Women one two three lazy") == 1
    assert bias("Women one two three four lazy") == 0
    assert safety.bias_pairs(word_hashes(["women", "lazy"])).tolist() == [0, 0]  # not over the end of a text


# ---------------------------------------------------------------- the classifier


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = """
        def good(texts): return ["hate" in t for t in texts]
        def short(texts): return [0.5]
        def wild(texts): return [1.5 for t in texts]
        def unsure(texts): return [float("nan") for t in texts]
        def broken(texts): raise RuntimeError("no weights")
        name = "not a function"
    """
    (tmp_path / "my_classifier_module.py").write_text("\n".join(line.strip() for line in source.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    safety.classifier.cache_clear()
    return "my_classifier_module"


def test_a_classifier_is_asked_in_groups_and_answers_for_each_text(module: str) -> None:
    safety.check_classifier(f"{module}:good")
    texts = ["I hate it" if i % 3 == 0 else "fine" for i in range(200)]
    assert np.array_equal(safety.classified(f"{module}:good", texts), np.arange(200) % 3 == 0)
    assert safety.classified(f"{module}:good", []).tolist() == []


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("my_classifier_module:short", "gave 1 numbers from 0.5 to 0.5 for 2 texts"),
        ("my_classifier_module:wild", "gave 2 numbers from 1.5 to 1.5"),
        ("my_classifier_module:unsure", "gave 2 numbers from nan"),
        ("my_classifier_module:broken", "failed on 2 texts .RuntimeError: no weights."),
        ("my_classifier_module:absent", "cannot be imported"),
        ("my_classifier_module:name", "is not the name of a function"),
        ("my_classifier_module", "is not the name of a function"),
        ("no_such_package_anywhere:f", "cannot be imported"),
        (":f", "cannot be imported"),
    ],
)
def test_a_classifier_that_cannot_work_is_refused_with_its_reason(module: str, function: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"filter.classifier: '{function}' {said}.*no document would have its toxicity measured"):
        safety.check_classifier(function)
