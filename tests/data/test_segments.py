"""Words and sentences as the tokenizer that the published rules are run with cuts them."""

import random
from itertools import pairwise

import numpy as np
import pytest

from components.data.filtering import contractions, segments
from components.data.words import code_points


def cut(text: str) -> list[str]:
    """The words as strings; the text without its white space is cut at the lengths."""
    bare, at, found = "".join(text.split()), 0, []
    for length in segments.segment(code_points([text])).lengths.tolist():
        found.append(bare[at : at + length])
        at += length
    assert at == len(bare)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", "The|cat|sat|."),
        ("(Hello, world!)", "(|Hello|,|world|!|)"),
        ('He said: "No..."', 'He|said|:|"|No|...|"'),
        ("don't can't I'm she'll've cannot", "do|n't|ca|n't|I|'m|she|'ll|'ve|can|not"),
        ("dont well its we’re", "do|nt|well|its|we|’re"),
        ("John's dogs' 'quoted'", "John|'s|dogs|'|'|quoted|'"),
        ("Mr. Smith, e.g. at 5 p.m. in the U.S. army", "Mr.|Smith|,|e.g.|at|5|p.m.|in|the|U.S.|army"),
        ("the USA. and NASA.", "the|USA|.|and|NASA|."),
        ("5km 10% $5 5$ +5 C$20 3+4 9am", "5|km|10|%|$|5|5|$|+5|C$|20|3|+|4|9|am"),
        ("well-known and/or either/or a--b co–op", "well|-|known|and/or|either|/|or|a|--|b|co|–|op"),
        ("one,two 1,000 end.Next v1.2", "one|,|two|1,000|end|.|Next|v1.2"),
        ("see https://a-b.org/c/d-e?f=g, me@x-y.com or example.com/a-b.", "see|https://a-b.org/c/d-e?f=g|,|me@x-y.com|or|example.com/a-b|."),
        ("wait...what…no ...", "wait|...|what|…|no|..."),
        (":) (see 8) ©2020 20°C.", ":)|(|see|8)|©|2020|20|°|C|."),
        ("naïve Łódź, Привет-мир! 漢字。かな", "naïve|Łódź|,|Привет|-|мир|!|漢字。かな"),
        ("a\0b \ud800 x\u2028y\u00a0z", "a\0b|\ud800|x|y|z"),
        ("-", "-"),
        ("", ""),
        (" \n\t ", ""),
    ],
)
def test_words_are_cut_as_the_english_tokenizer_cuts_them(text, expected):
    """The expectations were read off spaCy 3.8's blank English pipeline."""
    assert cut(text) == (expected.split("|") if expected else [])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No stop at all", 1),
        ("One. Two! Three?", 3),
        ("One. (Two.) Three", 3),
        ('He said "stop!" and left.', 2),
        ("Mr. Smith met Dr. Jones at 5 p.m. today.", 1),
        ("Wait... what? No!!! Yes.", 3),
        ("Ends here.\nand goes on", 2),
        ("Да. Нет! 是。 否。", 4),
    ],
)
def test_sentences_end_at_stops_that_are_words_of_their_own(text, count):
    assert segments.segment(code_points([text])).sentences.tolist() == [count]


def test_a_word_of_symbols_and_a_word_with_a_letter_are_told_apart():
    flags = segments.segment(code_points(["a 1 ? ½ é漢 --"])).flags.tolist()
    symbols, letter = segments.ONLY_SYMBOLS, segments.HAS_LETTER
    assert flags == [letter, 0, symbols, 0, letter, symbols]


def test_equal_words_have_equal_hashes_and_case_counts():
    the, cat, The, the_again, cat_again = segments.segment(code_points(["the cat", "The the cat"])).hashes.tolist()
    assert the == the_again and cat == cat_again and len({the, cat, The}) == 3


def test_rows_are_cut_as_each_alone_and_lines_as_splitlines():
    source = random.Random(1)
    breaks = ["\n", "\r\n", "\r", "\x1c", "\u2028", "\x85", "\v"]
    alphabet = ["word", "don't", " ", "  ", ".", ",", "(", ")", "...", *breaks, "5km", "é", "漢", "\0", "😀", "x.com/a-b", "'s", "-", "+"]
    texts = ["".join(source.choices(alphabet, k=source.randint(0, 60))) for _ in range(200)]
    points = code_points(texts)
    together = segments.segment(points)
    starts, rows = segments.lines(points)
    for i, text in enumerate(texts):
        alone = segments.segment(code_points([text]))
        here = slice(together.offsets[i], together.offsets[i + 1])
        assert np.array_equal(together.hashes[here], alone.hashes) and np.array_equal(together.lengths[here], alone.lengths)
        assert together.sentences[i] == alone.sentences[0]
        cuts = starts[rows[i] : rows[i + 1] + 1].tolist() if text else []
        whole = "".join(texts)
        assert [whole[a:b] for a, b in pairwise(cuts)] == text.splitlines(keepends=True)


def test_lines_joined_again_have_the_words_of_the_whole():
    points = code_points(["one two\nthree. four\n", "", "five"])
    starts, rows = segments.lines(points)
    by_row = segments.regrouped(segments.segment(segments.Ragged(points.values, starts)), rows)
    assert by_row.offsets.tolist() == segments.segment(points).offsets.tolist() and by_row.sentences.tolist() == [3, 0, 1]


def test_a_giant_chunk_takes_time_in_proportion():
    for giant in ("=" * 300_000, "." * 300_000, "(" * 100_000 + ")" * 100_000, "a." * 100_000, "a-" * 100_000, "5" * 300_000 + "km", "'s" * 100_000):
        assert sum(map(len, cut(giant))) == len(giant)


def test_every_listed_word_falls_into_its_pieces():
    for word, lengths in contractions.words().items():
        assert sum(lengths) == len(word) <= contractions.LONGEST
        assert tuple(map(len, cut(word))) == lengths, word
