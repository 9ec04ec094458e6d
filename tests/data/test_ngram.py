"""The n-gram model against a slow one with dictionaries; its probabilities sum to 1; real text is likelier than the same words shuffled."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.data.filtering import ngram
from components.data.words import word_hashes

HUB = Path(__file__).parents[2].parent / "shared/real/hub"
TOY = ["the cat sat on the mat", "the cat sat on the hat", "the dog sat on the mat", "a cat", "the dog ran", "", "the cat sat"] * 2 + ["a hat on a cat ran", "dog"]


class Slow:
    """Interpolated Kneser-Ney by the book, with dictionaries of strings."""

    def __init__(self, texts: list[str]) -> None:
        rows = [("<", "<", *text.split()) for text in texts]
        trigrams = Counter(row[i - 2 : i + 1] for row in rows for i in range(2, len(row)))
        bigrams = Counter(gram[1:] for gram in trigrams)
        unigrams = Counter(gram[1:] for gram in bigrams)
        self.orders = [self.order(unigrams, 1), self.order(bigrams, 1), self.order(trigrams, ngram.LEAST_TRIGRAM)]

    @staticmethod
    def order(counts: Counter, least: int) -> tuple[dict, dict]:
        once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        totals: Counter = Counter()
        for gram, count in counts.items():
            totals[gram[:-1]] += count
        terms = {gram: (count - discount) / totals[gram[:-1]] for gram, count in counts.items() if count >= least}
        left = {context: 1 - sum(term for gram, term in terms.items() if gram[:-1] == context) for context in totals}
        return terms, left

    def probability(self, *gram: str) -> float:
        if not gram:
            return 1 / ngram.VOCABULARY
        terms, left = self.orders[len(gram) - 1]
        return terms.get(gram, 0) + left.get(gram[:-1], 1) * self.probability(*gram[1:])

    def bits(self, text: str) -> float:
        row = ("<", "<", *text.split())
        return -sum(math.log2(self.probability(*row[i - 2 : i + 1])) for i in range(2, len(row))) / (len(row) - 2)


def test_the_model_agrees_with_a_slow_one() -> None:
    model, slow = ngram.train(word_hashes(TOY)), Slow(TOY)
    asked = [text for text in TOY if text] + ["mat the on sat cat the", "unseen words only", "the unseen cat sat", "a", "ran ran ran"]
    assert model.bits_per_word(word_hashes(asked)) == pytest.approx([slow.bits(text) for text in asked], rel=1e-5)


def test_it_also_agrees_on_random_text() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghijkl", weights=range(1, 13), k=draw.randint(0, 30))) for _ in range(200)]
    model, slow = ngram.train(word_hashes(texts[:150])), Slow(texts[:150])
    asked = [text for text in texts[100:] if text]
    assert model.bits_per_word(word_hashes(asked)) == pytest.approx([slow.bits(text) for text in asked], rel=1e-5)


@pytest.mark.parametrize("context", ["the cat", "sat on", "the", "", "unseen context", "unseen cat", "a hat"])
def test_probabilities_sum_to_one(context: str) -> None:
    model = ngram.train(word_hashes(TOY))
    known = sorted({word for text in TOY for word in text.split()})
    length = len(context.split())
    before = np.nan_to_num(model.bits_per_word(word_hashes([context])))[0] * length
    bits = model.bits_per_word(word_hashes([f"{context} {word}" for word in [*known, "neverseen"]])) * (length + 1) - before
    *seen, unseen = np.exp2(-bits)
    assert sum(seen) + (ngram.VOCABULARY - len(known)) * unseen == pytest.approx(1, rel=1e-4)


def test_texts_do_not_flow_into_each_other_and_empty_ones_are_nan() -> None:
    model = ngram.train(word_hashes(TOY))
    alone = [model.bits_per_word(word_hashes([text]))[0] for text in TOY]
    assert np.array_equal(model.bits_per_word(word_hashes(TOY)), alone, equal_nan=True)
    assert np.flatnonzero(np.isnan(alone)).tolist() == [i for i, text in enumerate(TOY) if not text]
    assert np.array_equal(model.bits_per_word(word_hashes(TOY), np.array([3, 1])), [alone[3], alone[1]])


def test_a_saved_model_is_the_same_and_needs_no_pickle(tmp_path: Path) -> None:
    model = ngram.train(word_hashes(TOY))
    model.save(tmp_path / "model.npz")
    loaded = ngram.load(tmp_path / "model.npz")
    assert np.array_equal(loaded.bits_per_word(word_hashes(TOY)), model.bits_per_word(word_hashes(TOY)), equal_nan=True)
    assert loaded.words == sum(len(text.split()) for text in TOY)


def test_a_model_of_nothing_knows_no_word() -> None:
    model = ngram.train(word_hashes([""]))
    assert model.bits_per_word(word_hashes(["any word"])).tolist() == [20.0]


# ---------------------------------------------------------------- real text


def articles() -> list[str]:
    """WikiText's articles: its lines, cut at the titles; those of some length."""
    lines = [line for path in sorted((HUB / "Salesforce/wikitext").rglob("*.parquet")) for line in pq.read_table(path)["text"].to_pylist()]
    found: list[list[str]] = []
    for line in lines:
        if line.startswith(" = ") and not line.startswith(" = = "):
            found.append([])
        if found:
            found[-1].append(line)
    return [text for text in map("".join, found) if len(text) > 1000]


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(0).shuffle(words)
    return " ".join(words)


@pytest.mark.skipif(not (HUB / "Salesforce/wikitext").exists(), reason="the shared hub with wikitext and c4 is not here")
def test_real_text_is_likelier_than_its_words_shuffled_and_than_another_kind_of_text() -> None:
    found = articles()
    model = ngram.train(word_hashes(found[::2]))
    web = [text for path in sorted((HUB / "allenai/c4").rglob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    real, mixed, other, seen = (model.bits_per_word(word_hashes(texts)) for texts in (found[1::2], [*map(shuffled, found[1::2])], web, found[::2]))
    assert np.all(mixed > real + 0.5)
    assert np.median(other) > np.median(real) + 1
    assert np.median(seen) < np.median(real) - 2  # why quality.py never scores a text by counts that it is in
