"""The quality score: each part against the formula done by hand, and a reference that does not judge itself."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from components.data import shards
from components.data.filtering import quality
from components.data.words import word_hashes
from components.schema.config import BadInput
from components.schema.data import FilterConfig, QualityWeights

WORDS = [f"w{i}x" for i in range(800)]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")


def text(seed: int, length: int = 400) -> str:
    """Words of a little language: each is followed by one of four that belong to it."""
    draw, at, words = random.Random(seed), seed % 800, []
    for _ in range(length):
        at = (at * 7 + draw.randint(1, 4)) % 800
        words.append(WORDS[at])
    return " ".join(words)


def prepared(root: Path, texts: list[str], domains: tuple[str, ...] = ("reference",)) -> Path | None:
    (root / "in").mkdir(parents=True)
    for prefix, part in (("a", texts[::2]), ("b", texts[1::2])):
        with shards.Writer(root / "in", prefix) as writer:
            writer.write(shards.table_of([{"id": str(i), "text": text, "domain": "reference"} for i, text in enumerate(part)]))
    return quality.prepare(domains, sum(map(len, texts)), shards.paths(root / "in"), root / "work")


def test_diversity_is_the_mean_over_all_windows() -> None:
    draw = random.Random(0)
    rows = [[draw.choice("abcdefghijklmnop") for _ in range(length)] for length in (0, 1, 2, 99, 100, 101, 357)] + [["a"] * 500, [f"w{i}" for i in range(300)]]

    def slow(row: list[str]) -> float:
        size = min(quality.WINDOW_WORDS, len(row))
        return float(np.mean([len(set(row[i : i + size])) / size for i in range(len(row) - size + 1)])) if row else 0

    assert quality.diversity(word_hashes([" ".join(row) for row in rows])) == pytest.approx([slow(row) for row in rows])


def test_diversity_does_not_fall_with_length() -> None:
    draw = random.Random(0)
    words = [f"w{int(draw.paretovariate(1))}" for _ in range(20_000)]
    short, long = quality.diversity(word_hashes([" ".join(words[:1000]), " ".join(words)]))
    assert short == pytest.approx(long, abs=0.03)
    assert len(set(words)) / len(words) < 0.5 * len(set(words[:1000])) / 1000  # as the plain ratio does


def test_quality_is_the_weighted_mean_of_the_parts_that_are_there() -> None:
    parts = np.array([0.5, np.nan]), np.array([0.8, 0.8]), np.array([1.0, 1.0])
    assert quality.weighed(*parts, QualityWeights()) == pytest.approx([0.5 * 0.5 + 0.3 * 0.8 + 0.2, (0.3 * 0.8 + 0.2) / 0.5])
    assert quality.weighed(*parts, QualityWeights(perplexity=4, diversity=0, safety=1)) == pytest.approx([(4 * 0.5 + 1) / 5, 1])
    assert np.isnan(quality.weighed(*parts, QualityWeights(perplexity=1, diversity=0, safety=0))).tolist() == [False, True]


def test_the_perplexity_part_is_one_up_to_the_median_and_halves_with_every_width() -> None:
    scale = quality.Scale(("reference",), 100, 1000, median_bits=10, width_bits=3)
    assert scale.part(np.array([0, 10, 13, 16, 40, np.nan])) == pytest.approx([1, 1, 0.5, 0.25, 2**-10, 0])


def test_a_reference_document_is_as_surprising_as_a_new_one_of_its_kind(tmp_path: Path) -> None:
    old, new = [text(seed) for seed in range(200)], [text(seed) for seed in range(1000, 1200)]
    reference = quality.load(str(prepared(tmp_path, old)))
    halves = quality.halves(old)
    assert 70 < halves.sum() < 130
    honest = reference.bits_per_word(word_hashes(old), halves)
    fresh = reference.bits_per_word(word_hashes(new), quality.halves(new))
    vain = reference.bits_per_word(word_hashes(old), 1 - halves)  # by the half that each is in
    assert np.median(honest) == pytest.approx(np.median(fresh), abs=0.1)
    assert np.median(vain) < np.median(honest) - 0.5
    assert reference.scale.documents == 200
    assert reference.scale.median_bits == pytest.approx(np.median(honest))
    assert np.mean(reference.scale.part(honest) == 1) == pytest.approx(0.5, abs=0.01)


def test_copies_and_near_copies_lie_in_one_half() -> None:
    originals = [text(seed) for seed in range(200)]
    halves = quality.halves(originals)
    assert np.array_equal(quality.halves([original.upper() + "!" for original in originals]), halves)
    assert np.mean(quality.halves([original + " one more word" for original in originals]) == halves) > 0.95
    assert np.mean(quality.halves([text(seed + 1000) for seed in range(200)]) == halves) < 0.65
    assert quality.halves(["", "!", "a", "a"]).tolist()[2:] == [quality.halves(["a"])[0]] * 2


def test_copies_in_the_reference_do_not_make_it_look_easy(tmp_path: Path) -> None:
    once = [text(seed) for seed in range(100)]
    copied = [f"{original} copy{k}" for k in range(4) for original in once]
    plain, repeated = (quality.load(str(prepared(tmp_path / name, texts))).scale for name, texts in (("once", once), ("copied", copied)))
    assert repeated.documents == 400
    assert repeated.median_bits == pytest.approx(plain.median_bits, abs=0.5)


def test_the_sample_is_a_share_of_the_reference_chosen_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text(seed, 100) for seed in range(300)]
    monkeypatch.setattr(quality, "REFERENCE_BYTES", sum(map(len, texts)) // 3)
    sizes = [quality.load(str(prepared(tmp_path / name, order))).scale.documents for name, order in (("a", texts), ("b", texts[::-1]))]
    assert sizes[0] == sizes[1]
    assert 70 < sizes[0] < 130


def test_too_small_a_reference_measures_nothing(tmp_path: Path) -> None:
    assert prepared(tmp_path / "few", [text(seed) for seed in range(quality.LEAST_DOCUMENTS - 1)]) is None
    assert prepared(tmp_path / "none", [text(seed) for seed in range(50)], domains=()) is None
    assert prepared(tmp_path / "enough", [text(seed) for seed in range(quality.LEAST_DOCUMENTS)]) is not None


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"web": 5, "books": 5, "reference": 5}, ("reference",)),
        ({"web": 5, "papers": 5, "books": 5, "reference": 0}, ("books",)),
        ({"web": 5, "forum": 5, "code": 5, "curriculum": 5}, ("forum", "web")),
        ({"code": 5, "curriculum": 5}, ()),
        ({}, ()),
    ],
)
def test_the_reference_is_the_first_usual_domain_that_is_there_else_all_prose(there: dict, chosen: tuple) -> None:
    assert quality.reference_domains(FilterConfig(), there) == chosen


def test_a_reference_domain_without_documents_is_refused() -> None:
    assert quality.reference_domains(FilterConfig(reference_domain="web"), {"web": 1, "books": 1}) == ("web",)
    with pytest.raises(BadInput, match=r"filter.reference_domain: 'papers' has no documents after cleaning.*Name one of \['books', 'web'\]"):
        quality.reference_domains(FilterConfig(reference_domain="papers"), {"web": 1, "books": 1})
