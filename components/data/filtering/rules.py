"""The published rules for which web documents are worth learning from, over a whole batch of texts at once.

    verdicts = judge(texts, ("gopher_quality", "gopher_repetition", "c4", "fineweb"))
    verdicts.reasons[i]            # None, or what was seen: "fewer_than_50_words"
    verdicts.texts[i]              # what remains of the text: C4 takes lines away, and later rules see what it left
    verdicts.removed_lines         # {"line_without_terminal_punctuation": 20931, ...} in the documents that stay

Thresholds stand in the tables below, one row a check, in the order in which they are asked; the loops in gopher.py, c4.py and fineweb.py read them from
here. Decisions follow datatrove 0.10, whose words and sentences segments.py gives; benchmarks/data.py measures the agreement.

gopher_quality, gopher_repetition: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1. c4: Raffel et al. 2020, arXiv:1910.10683,
section 2.2. fineweb: Penedo et al. 2024, arXiv:2406.17557, section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.data.filtering import c4, characters, fineweb, gopher, segments
from components.data.words import Ragged, code_points
from components.schema.data import Rules

Checks = tuple[tuple[str, float], ...]

GOPHER_QUALITY: Checks = (
    ("fewer_than_{:g}_words", 50),
    ("more_than_{:.0f}_words", 100_000),
    ("mean_word_length_below_{:g}", 3),
    ("mean_word_length_above_{:g}", 10),
    ("number_signs_per_word_above_{:.2f}", 0.1),
    ("ellipses_per_word_above_{:.2f}", 0.1),
    ("bullet_line_fraction_above_{:.2f}", 0.9),
    ("ellipsis_line_fraction_above_{:.2f}", 0.3),
    ("alphabetic_word_fraction_below_{:.2f}", 0.8),
    ("fewer_than_{:g}_stop_words", 2),
)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
GOPHER_REPETITION: Checks = (
    ("empty", 0),
    ("duplicate_paragraph_fraction_above_{:.2f}", 0.30),
    ("duplicate_paragraph_character_fraction_above_{:.2f}", 0.20),
    ("duplicate_line_fraction_above_{:.2f}", 0.30),
    ("duplicate_line_character_fraction_above_{:.2f}", 0.20),
    ("top_2_gram_character_fraction_above_{:.2f}", 0.20),
    ("top_3_gram_character_fraction_above_{:.2f}", 0.18),
    ("top_4_gram_character_fraction_above_{:.2f}", 0.16),
    ("duplicate_5_gram_character_fraction_above_{:.2f}", 0.15),
    ("duplicate_6_gram_character_fraction_above_{:.2f}", 0.14),
    ("duplicate_7_gram_character_fraction_above_{:.2f}", 0.13),
    ("duplicate_8_gram_character_fraction_above_{:.2f}", 0.12),
    ("duplicate_9_gram_character_fraction_above_{:.2f}", 0.11),
    ("duplicate_10_gram_character_fraction_above_{:.2f}", 0.10),
)
C4: Checks = (("lorem_ipsum", 0), ("curly_bracket", 0), ("fewer_than_{:g}_sentences", 5))
C4_LINES: Checks = (
    ("line_with_word_of_more_than_{:.0f}_characters", 1000),
    ("line_without_terminal_punctuation", 0),
    ("line_of_fewer_than_{:g}_words", 3),
    ("line_with_javascript", 0),
    ("line_with_cookie_or_terms_policy", 0),
)
FINEWEB: Checks = (
    ("empty", 0),
    ("terminal_punctuation_line_fraction_below_{:.2f}", 0.12),
    ("short_line_fraction_above_{:.2f}", 0.67),
    ("duplicate_line_character_fraction_above_{:.2f}", 0.01),
    ("newlines_per_word_above_{:.2f}", 0.3),
)
SHORT_LINE_CHARACTERS = 30


@dataclass(frozen=True)
class Verdicts:
    """What the rules say of a batch of texts."""

    reasons: list[str | None]
    """Per text: None = stays, else the first check that it failed."""
    texts: list[str]
    """What remains of each text that stays; a text that goes is as it was."""
    removed_lines: dict[str, int]
    """Lines taken out of the texts that stay, by reason."""


class _Batch:
    """A batch on its way through the rules."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.failed = np.full(len(texts), None, object)  # reasons, None while a row is alive
        self.removed = np.zeros((len(texts), len(C4_LINES)), np.int64)
        self.rewritten = False
        self.set(code_points(texts))

    def set(self, points: Ragged, words: np.ndarray | None = None) -> None:
        """Go on with this text; `words`: how many each row has, where that is known."""
        self.points = _frozen(points)
        self._words, self._lines, self._segmented = words, None, None

    @property
    def alive(self) -> np.ndarray:
        return np.equal(self.failed, None)

    @property
    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """As segments.lines has them."""
        self._lines = self._lines or segments.lines(self.points)
        return self._lines

    @property
    def by_line(self) -> segments.Segmented:
        """The words and sentences of each line; a sentence does not go on over the end of its line."""
        self._segmented = self._segmented or segments.segment(Ragged(self.points.values, self.lines[0]))
        return self._segmented

    @property
    def by_row(self) -> segments.Segmented:
        return segments.regrouped(self.by_line, self.lines[1])

    @property
    def words(self) -> np.ndarray:
        """How many words each row has, (rows,)."""
        return np.diff(self.by_row.offsets) if self._words is None else self._words

    def fail(self, codes: np.ndarray, checks: Checks) -> None:
        """Note the rows that fail: codes (rows,) count checks from 1."""
        for row in np.flatnonzero(codes):
            self.failed[row] = reason(checks[codes[row] - 1])


def reason(check: tuple[str, float]) -> str:
    """How a failed check is called."""
    return check[0].format(check[1])


def judge(texts: Sequence[str], rules: Sequence[Rules]) -> Verdicts:
    """Apply the rules in the order given; a text that failed one is not shown to the next."""
    batch = _Batch(texts)
    for rule in rules:
        _APPLY[rule](batch)
    removed = batch.removed[batch.alive].sum(axis=0)
    return Verdicts(
        reasons=batch.failed.tolist(),
        texts=_remaining(texts, batch),
        removed_lines={reason(check): int(count) for check, count in zip(C4_LINES, removed, strict=True) if count},
    )


def _remaining(texts: Sequence[str], batch: _Batch) -> list[str]:
    if not batch.rewritten:
        return list(texts)
    return [
        batch.points.row(i).tobytes().decode("utf-32-le", "surrogatepass") if batch.failed[i] is None else text
        for i, text in enumerate(texts)
    ]


def _thresholds(checks: Checks, *more: float) -> np.ndarray:
    return np.array([threshold for _, threshold in checks] + list(more), np.float64)


def _gopher_quality(batch: _Batch) -> None:
    words = batch.by_row
    codes = gopher.quality(
        batch.points.values, batch.points.offsets, *batch.lines, batch.alive, characters.classes(),
        words.lengths, words.flags, words.hashes, words.offsets, segments.word_hashes(STOP_WORDS), _thresholds(GOPHER_QUALITY),
    )  # fmt: skip
    batch.fail(codes, GOPHER_QUALITY)


def _gopher_repetition(batch: _Batch) -> None:
    words = batch.by_row
    codes = gopher.repetition(
        batch.points.values, batch.points.offsets, batch.alive, characters.classes(),
        words.lengths, words.hashes, words.offsets, _thresholds(GOPHER_REPETITION),
    )  # fmt: skip
    batch.fail(codes, GOPHER_REPETITION)


def _c4(batch: _Batch) -> None:
    longest, _, least = (int(threshold) for _, threshold in C4_LINES[:3])
    points, ends, numbers, rows, removed, whole = c4.keep_lines(
        batch.points.values, *batch.lines, batch.alive, characters.classes(), *c4.phrase_table(), longest, least
    )
    words, sentences = _of_lines(batch.by_line, Ragged(points, ends), numbers)
    few = _sums(sentences, rows) < C4[2][1]
    batch.fail(np.select([~batch.alive, whole == c4.LOREM, whole == c4.CURLY, few], [0, 1, 2, 3], 0), C4)
    batch.set(Ragged(points, ends[rows]), _sums(words, rows))
    batch.removed, batch.rewritten = batch.removed + removed, True


def _of_lines(before: segments.Segmented, lines: Ragged, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words and sentences of the lines that C4 left: as they were, but for lines without their citation marks, which are cut anew."""
    words, sentences = np.diff(before.offsets)[numbers], before.sentences[numbers]
    changed = numbers < 0
    if changed.any():
        sizes = np.diff(lines.offsets)
        points = lines.values[np.repeat(changed, sizes)]
        again = segments.segment(_frozen(Ragged(points, np.concatenate([[0], np.cumsum(sizes[changed])]))))
        words[changed], sentences[changed] = np.diff(again.offsets), again.sentences
    return words, sentences


def _frozen(points: Ragged) -> Ragged:
    """Read-only, as code_points gives them: for other flags the loops would be compiled once more."""
    points.values.flags.writeable = False
    return points


def _sums(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums of values[rows[i] : rows[i + 1]]."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[rows])


def _fineweb(batch: _Batch) -> None:
    codes = fineweb.lines(
        batch.points.values, batch.points.offsets, batch.alive, characters.classes(), batch.words, _thresholds(FINEWEB, SHORT_LINE_CHARACTERS)
    )
    batch.fail(codes, FINEWEB)


_APPLY = {"gopher_quality": _gopher_quality, "gopher_repetition": _gopher_repetition, "c4": _c4, "fineweb": _fineweb}
