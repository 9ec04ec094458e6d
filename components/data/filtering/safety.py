"""How toxic a text is, by a weighted word list and by a classifier of the user's own; and how often it speaks badly of a group of people.

    scores = toxicity(word_hashes(texts))            # (texts,) in [0, 1]
    pairs = bias_pairs(word_hashes(texts))           # (texts,) "lazy foreigners": a group and a bad word within 4 words of each other
    scores = classifier("package.module:function")(texts)

The list's score is 1 - exp(-100 * weight / words): one word of weight 1 in a hundred gives 0.63, one in a thousand 0.10; a text of fewer
than 50 words counts as 50. The lists (wordlists/) are English and short: they find what is open and crude, and cannot tell hatred from a report about it.
Both are for measuring and for dropping the worst; who needs a judge brings a classifier, and the higher of the two scores counts.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
from numba import njit

from components.data.filtering.ngram import pair
from components.data.words import Ragged, word_hashes
from components.schema.config import BadInput

WORDLISTS = Path(__file__).parent / "wordlists"
SHORT_TEXT_WORDS = 50
NEAR_WORDS = 4
CLASSIFIED_AT_ONCE = 64
_GROUP, _NEGATIVE = 1, 2
_PLACES = 4096  # of a list's hash table; the lists have a few hundred words
_SAMPLES = ["Good morning, and welcome to the library.", "I hate you."]
Classifier = Callable[[list[str]], list[float]]


def toxicity(words: Ragged) -> np.ndarray:
    """Score of each text by the list, (rows,) float64 in [0, 1]."""
    rows, _, weights = _found(words, _toxic_phrases())
    total = np.bincount(rows, weights, minlength=len(words))
    return 1 - np.exp(-100 * total / np.maximum(np.diff(words.offsets), SHORT_TEXT_WORDS))


def bias_pairs(words: Ragged) -> np.ndarray:
    """Pairs of a group and a negative word near it, (rows,) int64; a word is in one pair at most."""
    rows, places, kinds = _found(words, _bias_terms())
    pairs, last = np.zeros(len(words), np.int64), -1
    for i in range(1, len(rows)):
        near = rows[i] == rows[i - 1] and places[i] - places[i - 1] <= NEAR_WORDS
        if near and kinds[i] != kinds[i - 1] and last != i - 1:
            pairs[rows[i]] += 1
            last = i
    return pairs


# ---------------------------------------------------------------- the lists

Phrases = tuple[np.ndarray, np.ndarray]


@lru_cache(maxsize=1)
def _toxic_phrases() -> Phrases:
    lines = (line.partition(" ") for line in _lines(WORDLISTS / "toxicity_en.txt"))
    return _table({codecs.decode(phrase, "rot13"): float(weight) for weight, _, phrase in lines})


@lru_cache(maxsize=1)
def _bias_terms() -> Phrases:
    kinds, terms, kind = {"[group]": _GROUP, "[negative]": _NEGATIVE}, {}, 0
    for line in _lines(WORDLISTS / "bias_en.txt"):
        if line in kinds:
            kind = kinds[line]
        else:
            terms[line] = kind
    return _table(terms)


def _lines(path: Path) -> Iterator[str]:
    return (line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))


def _table(phrases: Mapping[str, float]) -> Phrases:
    """Phrases as a hash table: keys (_PLACES,) of every beginning of a phrase, and values (_PLACES,), 0 where it is only a beginning."""
    keys, values = np.zeros(_PLACES, np.uint64), np.zeros(_PLACES)
    for phrase, value in phrases.items():
        hashes = word_hashes([phrase]).values
        for i, key in enumerate(_prefixes(hashes)):
            place = _place(keys, key)
            keys[place] = key
            values[place] = value if i == len(hashes) - 1 else values[place]
    return keys, values


@njit(cache=True)
def _prefixes(words):  # type: ignore[no-untyped-def]
    """The key of each beginning of a phrase: the first word, the first two, ..."""
    keys = words.copy()
    for i in range(1, len(words)):
        keys[i] = pair(keys[i - 1], words[i])
    return keys


@njit(cache=True, inline="always")
def _place(keys, key):  # type: ignore[no-untyped-def]
    place = np.int64(key & np.uint64(_PLACES - 1))
    while keys[place] != key and keys[place] != 0:
        place = (place + 1) & (_PLACES - 1)
    return place


def _found(words: Ragged, phrases: Phrases) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place and value of every phrase found, in order. Of phrases that begin together the longest counts, and they do not overlap."""
    return _find(words.values, words.offsets, *phrases)


@njit(cache=True, nogil=True)
def _find(words, offsets, keys, values):  # type: ignore[no-untyped-def]
    rows, places, found = np.empty(len(words), np.int64), np.empty(len(words), np.int64), np.empty(len(words))
    count = 0
    for row in range(len(offsets) - 1):
        at = offsets[row]
        while at < offsets[row + 1]:
            end, length, value, key = at, 0, 0.0, words[at]
            place = _place(keys, key)
            while keys[place] != 0:
                end += 1
                if values[place] > 0:
                    length, value = end - at, values[place]
                if end == offsets[row + 1]:
                    break
                key = pair(key, words[end])
                place = _place(keys, key)
            if length:
                rows[count], places[count], found[count] = row, at, value
                count += 1
            at += max(length, 1)
    return rows[:count], places[:count], found[:count]


# ---------------------------------------------------------------- the classifier


def check_classifier(name: str) -> None:
    """See that a classifier can be had and does what it should. Errors: BadInput."""
    classifier(name)(_SAMPLES)


@lru_cache(maxsize=1)
def classifier(name: str) -> Classifier:
    """The function `package.module:function`, its answers checked. Errors: BadInput, now or when it is called."""
    module, colon, function = name.partition(":")
    try:
        found = getattr(import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(_refusal(name, f"cannot be imported ({error})", "Correct the name, or install the package here")) from None
    if not callable(found):
        raise BadInput(_refusal(name, "is not the name of a function", "Write it as package.module:function"))
    return lambda texts: _answers(name, found, texts)


def classified(name: str, texts: list[str]) -> np.ndarray:
    """The classifier's scores, (texts,) float64, asked in groups of CLASSIFIED_AT_ONCE. Errors: BadInput."""
    groups = [texts[i : i + CLASSIFIED_AT_ONCE] for i in range(0, len(texts), CLASSIFIED_AT_ONCE)]
    return np.array([score for group in groups for score in classifier(name)(group)])


def _answers(name: str, function: Callable[[list[str]], object], texts: list[str]) -> list[float]:
    try:
        scores = [float(score) for score in function(texts)]  # type: ignore[attr-defined]
    except Exception as error:
        raise BadInput(_refusal(name, f"failed on {len(texts)} texts ({type(error).__name__}: {error})", "Correct the function")) from error
    if len(scores) != len(texts) or not all(0 <= score <= 1 for score in scores):
        got = f"{len(scores)} numbers from {min(scores, default=0):g} to {max(scores, default=0):g} for {len(texts)} texts"
        raise BadInput(_refusal(name, f"gave {got}", "It must give one number from 0 to 1 for each text"))
    return scores


def _refusal(name: str, what: str, fix: str) -> str:
    return f"filter.classifier: {name!r} {what}, so no document would have its toxicity measured. {fix}, or leave the classifier out"
