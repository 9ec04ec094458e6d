"""MinHash: signatures estimate Jaccard similarity as the theory says, and bands meet as their curve says."""

import random

import numpy as np
import pytest

from components.data.deduplication import minhash
from components.data.deduplication.minhash import EMPTY, NO_KEY, Banding

VOCABULARY = [f"{a}{b}{c}" for a in "bdfghklmnprstvz" for b in "aeiou" for c in "bdgklmnprst"]


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    split = text.split()
    return {tuple(split[i : i + n]) for i in range(max(1, len(split) - n + 1))}


def jaccard(a: str, b: str, n: int = 5) -> float:
    one, two = shingles(a, n), shingles(b, n)
    return len(one & two) / len(one | two)


def edited(text: str, share: float, source: random.Random) -> str:
    return " ".join(source.choice(VOCABULARY) if source.random() < share else word for word in text.split())


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, float]]:
    """1,200 pairs of texts with their exact similarities, from 0 to 1."""
    source = random.Random(3)
    found = []
    for _ in range(1200):
        text = " ".join(source.choices(VOCABULARY, k=source.randint(60, 300)))
        other = edited(text, source.choice([0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.2, 1]), source)
        found.append((text, other, jaccard(text, other)))
    return found


@pytest.mark.parametrize("permutations", [16, 112, 256])
def test_the_estimate_is_unbiased_and_as_precise_as_binomial_sampling(pairs, permutations):
    exact = np.array([similarity for *_, similarity in pairs])
    a, b = (minhash.signatures([pair[i] for pair in pairs], permutations, 5) for i in (0, 1))
    assert a.shape == (len(pairs), permutations) and a.dtype == np.uint32
    error = minhash.similarity(a, b) - exact
    deviation = np.sqrt(exact * (1 - exact) / permutations)
    assert abs(error.mean()) < 4 * deviation.mean() / np.sqrt(len(pairs)) + 0.002
    inner = deviation > 0
    assert 0.85 < (error[inner] / deviation[inner]).std() < 1.15
    assert (error[exact == 1] == 0).all()


def test_pairs_become_candidates_as_often_as_the_curve_says(pairs):
    banding = Banding(14, 8)
    exact = np.array([similarity for *_, similarity in pairs])
    keys = [minhash.band_keys(minhash.signatures([pair[i] for pair in pairs], 112, 5), banding) for i in (0, 1)]
    met = (keys[0] == keys[1]).any(axis=1)
    expected = banding.curve(exact)
    assert abs(met.sum() - expected.sum()) < 4 * np.sqrt((expected * (1 - expected)).sum()) + 1


def test_the_curve_is_that_of_a_hand_worked_banding():
    assert Banding(2, 3).curve(np.array([0, 0.5, 1])).tolist() == [0, 1 - (1 - 1 / 8) ** 2, 1]
    assert Banding(14, 8).steepest == pytest.approx(0.719, abs=1e-3)


@pytest.mark.parametrize(("threshold", "permutations"), [(0.5, 128), (0.7, 112), (0.75, 112), (0.9, 256), (0.3, 16)])
def test_bands_have_the_least_area_of_error_by_numerical_integration(threshold, permutations):
    from scipy.integrate import quad

    def cost(bands: int, rows: int) -> float:
        def meets(s: float) -> float:
            return 1 - (1 - s**rows) ** bands

        return quad(meets, 0, threshold)[0] + quad(lambda s: 1 - meets(s), threshold, 1)[0]

    chosen = minhash.bands(threshold, permutations)
    assert chosen.bands * chosen.rows <= permutations
    best = min(cost(b, r) for b in range(1, permutations + 1) for r in {permutations // b, max(1, permutations // b - 1), max(1, permutations // b - 2)} if b * r <= permutations)
    assert cost(chosen.bands, chosen.rows) <= best + 2e-4


def test_more_weight_on_misses_finds_more():
    even, careful = minhash.bands(0.75, 112), minhash.bands(0.75, 112, 0.9)
    assert careful.curve(np.array(0.8)) > 0.95 > even.curve(np.array(0.8))


def test_a_text_without_words_matches_nothing_not_even_itself():
    signed = minhash.signatures(["", " \0 ... ", "word"], 32, 5)
    assert (signed[:2] == EMPTY).all() and (minhash.similarity(signed, signed) == [0, 0, 1]).all()
    keys = minhash.band_keys(signed, Banding(8, 4))
    assert (keys[:2] == NO_KEY).all() and (keys[2] != NO_KEY).all()


def test_a_text_shorter_than_a_shingle_is_one_shingle():
    signed = minhash.signatures(["The cat", "the, CAT!", "the dog", "the cat sat"], 64, 5)
    assert minhash.similarity(signed[:1], signed).tolist() == [1, 1, 0, 0]


def test_equal_bands_in_different_places_have_different_keys():
    signed = np.tile(np.arange(4, dtype=np.uint32), (1, 3))
    assert len(set(minhash.band_keys(signed, Banding(3, 4)).ravel().tolist())) == 3


def test_signatures_of_a_batch_are_those_of_each_text_alone():
    texts = ["", "a b c d e f", "Привет мир, как дела сегодня?", "漢字" * 50, "nul\0nul", "one giant line " * 3000, "\ud800"]
    together = minhash.signatures(texts, 48, 3)
    assert all(np.array_equal(together[i : i + 1], minhash.signatures([text], 48, 3)) for i, text in enumerate(texts))


def test_signatures_do_not_change_from_version_to_version():
    """They lie on disk between processes, which must agree on them."""
    assert minhash.signatures(["the quick brown fox jumps over the lazy dog"], 16, 5)[0, :4].tolist() == [787569703, 344947925, 1425441507, 313732651]


def test_too_few_permutations_for_a_banding_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"16 permutations cannot be cut into 14 bands of 8 rows.*Use at least 112"):
        minhash.band_keys(np.zeros((1, 16), np.uint32), Banding(14, 8))
