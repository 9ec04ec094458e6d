"""Texts cut into words and counted sentences, as the tokenizer does it that the published quality rules are run with.

The rules of Gopher, C4 and FineWeb count words and sentences, and are published as run with spaCy's rule-based English tokenizer and sentencizer
(datatrove 0.10). This is that algorithm as one compiled loop over code points: white space parts chunks; a chunk that is not in the list of
contractions loses punctuation at its front and its end, a character at a time; what is left is cut at dashes, slashes and full stops
inside, unless it is an address. A sentence begins after a full stop, `!` or `?` that stands as a word of its own, so not after `Mr.`

    segmented = segment(code_points(["Don't stop. It's 5km."]))     # Do n't stop . It 's 5 km .
    segmented.offsets[1], segmented.sentences[0]                    # 9 words, 2 sentences

On 0.7 million words of web pages, encyclopedia and documentation 1 word boundary in 20,000 differs from spaCy 3.8's: abbreviations and
emoticons that only come about when punctuation is cut off a word, a few signs and scripts, and file names that look like addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from components.data.filtering import characters, contractions
from components.data.filtering.characters import (
    ALPHABETIC,
    BREAK,
    CURRENCY,
    DECIMAL,
    DIGIT,
    ICON,
    JOINER,
    LETTER,
    LOWER,
    PLAIN_PUNCTUATION,
    PREFIX,
    PUNCTUATION,
    QUOTE,
    SPACE,
    STOP,
    SUFFIX,
    SYMBOL,
    UNLISTED,
    UPPER,
)
from components.data.filtering.contractions import LONGEST, LONGEST_UNIT, PIECE_BITS
from components.data.words import Ragged, code_points

ONLY_SYMBOLS, HAS_LETTER = 1, 2  # flags of a word
_MIX, _ALL = 0x9E3779B97F4A7C15, np.uint32(SYMBOL | PUNCTUATION)
_APOSTROPHE, _CLOSING, _DOT, _ELLIPSIS, _PLUS, _HYPHEN, _EM_DASH, _DOLLAR, _NEWLINE, _RETURN, _DEGREE = (
    0x27, 0x2019, 0x2E, 0x2026, 0x2B, 0x2D, 0x2014, 0x24, 0x0A, 0x0D, 0xB0
)  # fmt: skip
_CUTS = PREFIX | SUFFIX | JOINER  # a chunk with none of these, or not both digits and letters, is one word


@dataclass(frozen=True)
class Segmented:
    """The words of each row: row i has those from offsets[i] to offsets[i + 1]."""

    hashes: np.ndarray
    """(words,) uint64: equal for equal words, case counts"""
    lengths: np.ndarray
    """(words,) uint32: characters"""
    flags: np.ndarray
    """(words,) uint8: ONLY_SYMBOLS, HAS_LETTER"""
    offsets: np.ndarray
    """(rows + 1,) int64"""
    sentences: np.ndarray
    """(rows,) int64"""


def segment(points: Ragged) -> Segmented:
    """Cut rows of code points into words."""
    (words, pieces), (units, _) = contractions.tables()
    return Segmented(*_segment(points.values, points.offsets, characters.classes(), words, pieces, units))


def lines(points: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """The lines of each row as str.splitlines has them, what ends them included.

    Where each line begins and the last one ends (lines + 1,), and how many came before each row (rows + 1,): int64.
    """
    return _lines(points.values, points.offsets, characters.classes())


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """The hashes that these words have in a text."""
    return segment(code_points(words)).hashes


def regrouped(segmented: Segmented, rows: np.ndarray) -> Segmented:
    """Rows joined into longer ones: new row i is the old rows from rows[i] to rows[i + 1]."""
    sentences = np.concatenate([[0], np.cumsum(segmented.sentences)])[rows]
    return Segmented(segmented.hashes, segmented.lengths, segmented.flags, segmented.offsets[rows], np.diff(sentences))


@njit(cache=True, nogil=True)
def _lines(points, offsets, classes):  # type: ignore[no-untyped-def]
    starts, rows = np.empty(len(points) + 1, np.int64), np.zeros(len(offsets), np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        begins = True
        while at < end:
            if begins:
                starts[count] = at
                count += 1
            point = points[at]
            begins = (point < 0x20 or point == 0x85 or point >= 0x2028) and _class(point, classes) & BREAK != 0
            if point == _RETURN and at + 1 < end and points[at + 1] == _NEWLINE:
                at += 1
            at += 1
        rows[row + 1] = count
    starts[count] = len(points)
    return starts[: count + 1].copy(), rows


@njit(cache=True, nogil=True)
def _segment(points, offsets, classes, words, pieces, units):  # type: ignore[no-untyped-def]
    hashes, lengths, flags = np.empty(len(points), np.uint64), np.empty(len(points), np.uint32), np.empty(len(points), np.uint8)
    cuts, suffixes = np.empty(len(points) + 1, np.int64), np.empty(len(points), np.int64)
    word_ends, all_sentences = np.zeros(len(offsets), np.int64), np.zeros(len(offsets) - 1, np.int64)
    count = 0
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        sentences, stopped = 0, False
        while True:
            blanks = at
            while at < end and _class(points[at], classes) & SPACE:
                at += 1
            if at == end:
                break
            if sentences and (at - blanks > 1 or points[blanks] != 0x20):  # the sentencizer sees a word in other white space than one blank
                sentences, stopped = sentences + stopped, False
            start, seen, alone, hashed = at, np.uint32(0), _ALL, np.uint64(0)
            seen_before, hashed_before, kind_before, last = seen, hashed, seen, seen  # without the last character
            while at < end:
                kind = _class(points[at], classes)
                if kind & SPACE:
                    break
                seen_before, hashed_before, kind_before, last = seen, hashed, last, kind
                seen, alone, hashed = seen | kind, alone & kind, _hashed(hashed, points[at])
                at += 1
            cut, cuts[0] = 1, at
            slot = _slot(_finished(hashed), words) if at - start <= LONGEST else -1
            if slot >= 0:
                cut = _cut_listed(start, at, pieces[slot], cuts, 0)
            elif (
                at - start > 1
                and not seen_before & (_CUTS | DIGIT)
                and (last & SUFFIX or (points[at - 1] == _DOT and kind_before & LOWER))
                and _slot(_finished(hashed_before), words) < 0
            ):  # nothing that the next case would not find, but it is the commonest by far: one sign at the end of a plain word
                cut, cuts[0], cuts[1] = 2, at - 1, at
            elif seen & _CUTS or (seen & DIGIT and seen & LETTER):
                cut = _cut(points, start, at, seen, classes, words, pieces, units, cuts, suffixes)
            for i in range(cut):
                begin, start = start, cuts[i]
                if cut > 1:
                    seen, alone, hashed = np.uint32(0), _ALL, np.uint64(0)
                    for k in range(begin, start):
                        kind = _class(points[k], classes)
                        seen, alone, hashed = seen | kind, alone & kind, _hashed(hashed, points[k])
                stop = start - begin == 1 and seen & STOP != 0
                if sentences == 0 or (stopped and not alone & PUNCTUATION and not stop):
                    sentences, stopped = sentences + 1, False
                stopped |= stop
                hashes[count], lengths[count] = _finished(hashed) * np.uint64(_MIX), start - begin
                flags[count] = (ONLY_SYMBOLS if alone & SYMBOL else 0) | (HAS_LETTER if seen & ALPHABETIC else 0)
                count += 1
        word_ends[row + 1] = count
        all_sentences[row] = sentences
    return hashes[:count].copy(), lengths[:count].copy(), flags[:count].copy(), word_ends, all_sentences


@njit(cache=True)
def _class(point, classes):  # type: ignore[no-untyped-def]
    return classes[point] if point < len(classes) else np.uint32(UNLISTED)


@njit(cache=True)
def _hashed(hashed, point):  # type: ignore[no-untyped-def]
    return (hashed ^ np.uint64(point)) * np.uint64(0x100000001B3) + np.uint64(1)


@njit(cache=True)
def _finished(hashed):  # type: ignore[no-untyped-def]
    hashed ^= hashed >> np.uint64(32)
    return hashed if hashed else np.uint64(1)


@njit(cache=True)
def _slot(hashed, keys):  # type: ignore[no-untyped-def]
    """Where a hash stands in a table of contractions.py; -1 = nowhere."""
    slot = np.int64(hashed & np.uint64(len(keys) - 1))
    while keys[slot]:
        if keys[slot] == hashed:
            return slot
        slot = (slot + 1) & (len(keys) - 1)
    return -1


@njit(cache=True)
def _listed(points, start, end, words):  # type: ignore[no-untyped-def]
    """Where these characters stand in a table of contractions.py; -1 = nowhere."""
    if end - start > LONGEST or end <= start:
        return -1
    hashed = np.uint64(0)
    for at in range(start, end):
        hashed = _hashed(hashed, points[at])
    return _slot(_finished(hashed), words)


@njit(cache=True)
def _cut(points, start, end, seen, classes, words, pieces, units, cuts, suffixes):  # type: ignore[no-untyped-def]
    """Cut a chunk that is not listed into words: where each ends, in `cuts`; how many they are."""
    slot = -1  # where the rest of the chunk is listed
    cut, count, last = 0, 0, end  # endings cut off; words so far
    while start < end and slot < 0:
        front = _front(points, start, end, classes)
        slot = _listed(points, start + front, end, words) if front else -1
        back = _back(points, start + front, end, seen, classes, units) if slot < 0 else 0
        if back:
            suffixes[cut], cut = end - back, cut + 1
            slot = _listed(points, start, end - back, words)
            front = front if slot < 0 else 0
        if front:
            cuts[count], count = start + front, count + 1
        start, end = start + front, end - back
        if front and back and slot < 0:
            slot = _listed(points, start, end, words)
        if not front and not back:
            break
    if slot >= 0:
        count = _cut_listed(start, end, pieces[slot], cuts, count)
    elif start < end:
        count = _cut_inside(points, start, end, classes, cuts, count)
    while cut:
        cut -= 1
        if cut and _listed(points, suffixes[cut], suffixes[cut - 2] if cut > 1 else last, words) >= 0:  # such as ):
            cut -= 1
        cuts[count], count = suffixes[cut - 1] if cut else last, count + 1
    return count


@njit(cache=True)
def _cut_listed(start, end, lengths, cuts, count):  # type: ignore[no-untyped-def]
    while start < end:
        start += np.int64(lengths & np.uint64((1 << PIECE_BITS) - 1))
        lengths >>= np.uint64(PIECE_BITS)
        cuts[count], count = start, count + 1
    return count


@njit(cache=True)
def _front(points, start, end, classes):  # type: ignore[no-untyped-def]
    """How many characters are cut off the front."""
    point, after = points[start], points[start + 1] if start + 1 < end else np.uint32(0)
    if point == _DOT:
        return _run(points, start, end) if after == _DOT else 0
    if point == _PLUS:
        return 0 if 0x30 <= after <= 0x39 else 1
    if after == _DOLLAR and (point == 0x43 or point == 0x41):  # C$ A$
        return 2
    if after == 0x53 and point == 0x55 and start + 2 < end and points[start + 2] == _DOLLAR:  # US$
        return 3
    return 1 if _class(point, classes) & PREFIX else 0


@njit(cache=True)
def _run(points, start, end):  # type: ignore[no-untyped-def]
    at = start
    while at < end and points[at] == points[start]:
        at += 1
    return at - start


@njit(cache=True)
def _back(points, start, end, seen, classes, units):  # type: ignore[no-untyped-def]
    """How many characters are cut off the end: the longest of the endings that fit."""
    if start >= end:
        return 0
    point, before = points[end - 1], points[end - 2] if end - 2 >= start else np.uint32(0)
    kind, kind_before = _class(point, classes), _class(before, classes)
    if point == _DOT:
        return _dots(points, start, end, before, kind_before, classes)
    if point == _ELLIPSIS:
        return 2 if before == _ELLIPSIS else 1
    if (point == 0x73 or point == 0x53) and (before == _APOSTROPHE or before == _CLOSING):
        return 2
    if seen & DIGIT and not kind & DIGIT:
        for length in range(min(LONGEST_UNIT, end - start - 1), 0, -1):
            if _class(points[end - length - 1], classes) & DIGIT:
                if _listed(points, end - length, end, units) >= 0 or (length == 1 and kind & CURRENCY):
                    return length
    if kind & SUFFIX:
        return 1
    return 1 if point == _PLUS and kind_before & DIGIT else 0


@njit(cache=True)
def _dots(points, start, end, before, kind_before, classes):  # type: ignore[no-untyped-def]
    """A full stop is cut off after a small letter, a digit or punctuation, after two capitals and after a unit of temperature; a run of them always, whole."""
    length = 1
    while end - length - 1 >= start and points[end - length - 1] == _DOT:
        length += 1
    if length > 1:
        return length
    if kind_before & (LOWER | DIGIT | QUOTE | PLAIN_PUNCTUATION) or before == 0x25 or before == 0xB2 or before == _HYPHEN or before == _PLUS:
        return 1
    if end - 3 < start:
        return 0
    return 1 if (kind_before & UPPER and _class(points[end - 3], classes) & UPPER) or points[end - 3] == _DEGREE else 0


@njit(cache=True)
def _cut_inside(points, start, end, classes, cuts, count):  # type: ignore[no-untyped-def]
    """Cut what affixes left over at what joins words, unless it is an address."""
    first, at, asked = start, start, False
    while at < end:
        length = _joint(points, start, at, end, classes) if _class(points[at], classes) & JOINER else 0
        if length and at > start:
            if not asked and _is_address(points, start, end, classes):
                break
            asked = True
            if at > first:
                cuts[count], count = at, count + 1
            first = at + length
            cuts[count], count = first, count + 1
        at += max(length, 1)
    if first < end:
        cuts[count], count = end, count + 1
    return count


@njit(cache=True)
def _joint(points, start, at, end, classes):  # type: ignore[no-untyped-def]
    """How many characters from here part the word in two: dots, a dash between letters, a comma between letters, and so on; 0 = none."""
    point, kind = points[at], _class(points[at], classes)
    before = _class(points[at - 1], classes) if at > start else np.uint32(0)
    after = _class(points[at + 1], classes) if at + 1 < end else np.uint32(0)
    if point == _DOT and at + 1 < end and points[at + 1] == _DOT:
        return _run(points, at, end)
    if point == _ELLIPSIS or kind & ICON:
        return 1
    if point == _PLUS or point == _HYPHEN or point == 0x2A or point == 0x5E:
        if before & DIGIT and (after & DIGIT or (at + 1 < end and points[at + 1] == _HYPHEN)):
            return 1
    if point == _DOT:
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if point == 0x2C:
        return 1 if before & LETTER and after & LETTER else 0
    if not before & (LETTER | DIGIT):
        return 0
    if after & LETTER:
        return 0 if point == _PLUS or point == 0x2A or point == 0x5E else 1
    if point == _HYPHEN or point == _EM_DASH:
        length = _run(points, at, end)
        if length <= (3 if point == _HYPHEN else 2) and at + length < end and _class(points[at + length], classes) & LETTER:
            return length
    return 0


@njit(cache=True)
def _is_address(points, start, end, classes):  # type: ignore[no-untyped-def]
    """Whether a chunk is a URL, a host or an e-mail address, from a name such as example.org on to the end."""
    scheme = start
    for at in range(start, end - 2):
        point, kind = points[at], _class(points[at], classes)
        if point == 0x3A and at - start > 1 and points[at + 1] == 0x2F and points[at + 2] == 0x2F:
            scheme = at + 3
        if not (kind & (ALPHABETIC | DECIMAL) or point == 0x5F or point == _PLUS or point == _HYPHEN or point == _DOT):
            break
    if _is_host(points, scheme, end, classes):
        return True
    for at in range(scheme + 1, end):
        if points[at] == 0x40 and _is_host(points, at + 1, end, classes):
            return True
    return False


@njit(cache=True)
def _is_host(points, start, end, classes):  # type: ignore[no-untyped-def]
    """Names joined by dots, the last of two small letters or more; after them nothing, a port, a path, a query or a fragment."""
    at, dots, small = start, 0, 0  # small: letters since the last dot, -1 once there was anything else
    last = np.uint32(_DOT)
    while at < end:
        point = points[at]
        if point == _DOT:
            if last == _DOT or last == _HYPHEN or last == 0x5F:
                return False
            dots, small = dots + 1, 0
        elif 0x30 <= point <= 0x39 or 0x41 <= point <= 0x5A or 0x61 <= point <= 0x7A or 0xA1 <= point <= 0xFFFF or point == _HYPHEN or point == 0x5F:
            if last == _DOT and (point == _HYPHEN or point == 0x5F):
                return False
            small = small + 1 if small >= 0 and _class(point, classes) & LOWER else -1
        else:
            break
        last, at = point, at + 1
    if dots == 0 or small < 2:
        return False
    if at < end and points[at] == 0x3A:
        port = at + 1
        while port < end and _class(points[port], classes) & DIGIT:
            port += 1
        if not 2 <= port - at - 1 <= 5:
            return False
        at = port
    return at == end or points[at] == 0x2F or points[at] == 0x3F or points[at] == 0x23
