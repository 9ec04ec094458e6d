"""Words and n-grams as hashes: equal where the words are equal, and only there."""

import unicodedata

import numpy as np

from components.data import words

STRANGE = ["", " ", "\0", "a", "a\0b", "Ünïcödé words, naïve!", "漢字 かな", "\ud800 lone", "x" * 5000, "𐐷𐐷 \U0002a6df end", "don't-stop.now", "ΑΒΓ αβγ"]


def plain_words(text: str) -> list[str]:
    """The definition, said with strings."""
    spelt = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return ["".join(c.lower() if len(c.lower()) == 1 else c for c in word) for word in spelt.split(" ") if word]


def test_a_word_is_a_run_of_letters_marks_and_digits_lower_cased():
    hashed = words.word_hashes(["The cat's tail, the CAT 3rd."])
    the, cat, s, tail, again, same, third = hashed.row(0).tolist()
    assert (the, cat) == (again, same) and len({the, cat, s, tail, third}) == 5


def test_hashes_agree_with_words_as_strings_on_any_text():
    expected = [plain_words(text) for text in STRANGE]
    hashed = words.word_hashes(STRANGE)
    assert np.diff(hashed.offsets).tolist() == [len(row) for row in expected]
    by_word: dict[str, set[int]] = {}
    for i, row in enumerate(expected):
        for word, value in zip(row, hashed.row(i).tolist(), strict=True):
            by_word.setdefault(word, set()).add(value)
    assert all(len(values) == 1 for values in by_word.values())
    assert len({min(values) for values in by_word.values()}) == len(by_word)


def test_n_grams_are_equal_where_their_words_are_and_order_counts():
    ngrams = words.ngram_hashes(words.word_hashes(["a b c a b", "b a", "c A, B"]), 2)
    assert [ngrams.row(i).tolist() for i in range(3)] == [
        [ab := ngrams.values[0], ngrams.values[1], ca := ngrams.values[2], ab],
        [ngrams.row(1)[0]],
        [ca, ab],
    ]
    assert len(set(ngrams.values.tolist())) == 4  # ab bc ca ba


def test_a_row_shorter_than_an_n_gram_has_none_or_is_one():
    short = words.word_hashes(["a b", "", "a b c"])
    assert np.diff(words.ngram_hashes(short, 3).offsets).tolist() == [0, 0, 1]
    whole = words.ngram_hashes(short, 3, short_rows_whole=True)
    assert np.diff(whole.offsets).tolist() == [1, 0, 1] and whole.values[0] != whole.values[1]


def test_a_row_does_not_depend_on_the_rows_beside_it():
    together = words.word_hashes(STRANGE)
    assert all(np.array_equal(together.row(i), words.word_hashes([text]).row(0)) for i, text in enumerate(STRANGE))


def test_a_hundred_thousand_different_words_have_different_hashes_in_both_halves():
    many = words.word_hashes([" ".join(f"w{i}" for i in range(100_000))]).values
    assert len(np.unique(many)) == 100_000
    assert len(np.unique(many >> np.uint64(32))) > 99_990 and len(np.unique(many << np.uint64(32))) > 99_990  # chance: about one equal pair


def test_code_points_are_those_of_the_texts():
    points = words.code_points(STRANGE)
    assert [[ord(c) for c in text] for text in STRANGE] == [points.row(i).tolist() for i in range(len(STRANGE))]
    assert len(points) == len(STRANGE)
