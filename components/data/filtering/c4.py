"""C4's rules as a compiled loop over the lines of a batch (Raffel et al. 2020, arXiv:1910.10683, section 2.2).

A line stays if it ends as a sentence does, has three words and none of a thousand characters, and speaks of neither JavaScript nor cookie
policies; Wikipedia's citation marks are taken out of it. A document with a curly bracket or "lorem ipsum" in a line that would have stayed goes
whole. Whether what remains has five sentences is asked in rules.py, when it has been cut into words. The list of bad words is not part of it.
The phrases and the thousand characters stand in the authors' code (tensorflow_datasets, c4_utils.py), not in the paper; the order is datatrove's.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from components.data.filtering.characters import DECIMAL, SPACE

PHRASES = (  # those with the same first letter stand together
    "lorem ipsum", "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)
LOREM, JAVASCRIPT, POLICY, CURLY = 1, 2, 4, 8
CITATIONS = ("[edit]", "[citation needed]")  # and [12] and []
_NEWLINE, _DOT, _OPEN, _CLOSE, _BRACE, _KELVIN = 0x0A, 0x2E, 0x5B, 0x5D, 0x7B, 0x212A
_LONG, _UNFINISHED, _FEW, _SCRIPT, _RULES = 0, 1, 2, 3, 4  # columns of what is removed, as in rules.C4_LINES


def phrase_table() -> tuple[np.ndarray, np.ndarray]:
    """PHRASES, then CITATIONS, as (phrases, longest + 1) uint32 filled with 0; and the first and one past the last phrase that a letter begins, (128, 2)."""
    table = np.zeros((len(PHRASES + CITATIONS), max(map(len, PHRASES + CITATIONS)) + 1), np.uint32)
    begun = np.zeros((128, 2), np.int64)
    for i, phrase in enumerate(PHRASES + CITATIONS):
        table[i, : len(phrase)] = [ord(c) for c in phrase]
    for i, phrase in enumerate(PHRASES):
        begun[ord(phrase[0])] = min(begun[ord(phrase[0]), 0] or i, i), i + 1
    return table, begun


@njit(cache=True, nogil=True)
def keep_lines(points, line_offsets, row_lines, alive, classes, phrases, begun, longest_word, least_words):  # type: ignore[no-untyped-def]
    """The lines that stay, written one after another with a newline before each but a row's first.

    Row i has the lines from row_lines[i] to row_lines[i + 1]. Gives the points of what stays; where each line ends there (kept + 1,); the number that
    each line had (kept,), as -1 - number where a citation mark was taken out; how many kept lines came before each row (rows + 1,); lines
    removed (rows, 5) int64 by reason; and per row LOREM or CURLY where the row goes whole, which then has no lines.
    """
    out, ends, numbers = np.empty(len(points), np.uint32), np.zeros(len(line_offsets), np.int64), np.empty(len(line_offsets), np.int64)
    rows, removed, failed = np.zeros(len(alive) + 1, np.int64), np.zeros((len(alive), 5), np.int64), np.zeros(len(alive), np.uint8)
    lines, size = 0, 0
    for row in range(len(alive)):
        for line in range(row_lines[row], row_lines[row + 1] if alive[row] else row_lines[row]):
            first, last = _stripped(points, line_offsets[line], line_offsets[line + 1], classes)
            begin = size
            if lines > rows[row]:
                out[size] = _NEWLINE
                size += 1
            written = _without_citations(points, first, last, classes, phrases, out, size, lines == rows[row])
            column, failed[row] = _verdict(points, first, last, classes, out, size, written, phrases, begun, longest_word, least_words)
            if failed[row]:
                break
            if column >= 0:
                removed[row, column] += 1
                size = begin
            else:
                numbers[lines] = line if written - size == last - first else -1 - line
                lines, size = lines + 1, written
                ends[lines] = size
        if failed[row]:
            lines, size = rows[row], ends[rows[row]]
        rows[row + 1] = lines
    return out[:size].copy(), ends[: lines + 1].copy(), numbers[:lines].copy(), rows, removed, failed


@njit(cache=True)
def _verdict(points, first, last, classes, out, start, end, phrases, begun, longest_word, least_words):  # type: ignore[no-untyped-def]
    """The column that a line is removed for (-1 = stays), and what its whole row goes for (0 = stays)."""
    if last - first > longest_word and _has_longer_word(points, first, last, classes, longest_word):
        return _LONG, 0
    if not _ends_as_sentence(out, start, end):
        return _UNFINISHED, 0
    if not _has_words(points, first, last, classes, least_words):
        return _FEW, 0
    found = _found(out, start, end, phrases, begun)
    if found & LOREM:
        return -1, LOREM
    if found & JAVASCRIPT:
        return _SCRIPT, 0
    if found & CURLY:
        return -1, CURLY
    return (_RULES, 0) if found & POLICY else (-1, 0)


@njit(cache=True)
def _stripped(points, first, last, classes):  # type: ignore[no-untyped-def]
    while first < last and points[first] < len(classes) and classes[points[first]] & SPACE:
        first += 1
    while last > first and points[last - 1] < len(classes) and classes[points[last - 1]] & SPACE:
        last -= 1
    return first, last


@njit(cache=True)
def _has_longer_word(points, first, last, classes, longest):  # type: ignore[no-untyped-def]
    length = 0
    for at in range(first, last):
        length = 0 if points[at] < len(classes) and classes[points[at]] & SPACE else length + 1
        if length > longest:
            return True
    return False


@njit(cache=True)
def _has_words(points, first, last, classes, least):  # type: ignore[no-untyped-def]
    """Whether a stripped line has so many words between white space."""
    words, inside = 0, False
    for at in range(first, last):
        space = points[at] < len(classes) and classes[points[at]] & SPACE != 0
        words += not space and not inside
        inside = not space
        if words >= least:
            return True
    return False


@njit(cache=True)
def _without_citations(points, first, last, classes, phrases, out, size, strip):  # type: ignore[no-untyped-def]
    """Copy a line, leaving citation marks out, and with `strip` the white space that one left in front; where the copy ends."""
    at = first
    start = size
    while at < last:
        if points[at] == _OPEN:
            mark = _citation(points, at, last, classes, phrases)
            if mark:
                at += mark
                continue
        if not (strip and size == start and points[at] < len(classes) and classes[points[at]] & SPACE):
            out[size] = points[at]
            size += 1
        at += 1
    return size


@njit(cache=True)
def _citation(points, at, end, classes, phrases):  # type: ignore[no-untyped-def]
    """Length of the citation mark that begins here; 0 = none."""
    stop = at + 1
    while stop < end and points[stop] < len(classes) and classes[points[stop]] & DECIMAL:
        stop += 1
    if stop < end and points[stop] == _CLOSE:
        return stop + 1 - at
    for i in range(len(PHRASES), len(phrases)):
        k = 0
        while phrases[i, k] and at + k < end and points[at + k] == phrases[i, k]:
            k += 1
        if not phrases[i, k]:
            return k
    return 0


@njit(cache=True)
def _ends_as_sentence(out, start, end):  # type: ignore[no-untyped-def]
    if start == end:
        return False
    point = out[end - 1]
    if point == _DOT:
        return not (end - start >= 3 and out[end - 2] == _DOT and out[end - 3] == _DOT)
    return point == 0x3F or point == 0x21 or point == 0x22 or point == 0x27  # ? ! " '


@njit(cache=True)
def _found(out, start, end, phrases, begun):  # type: ignore[no-untyped-def]
    """Which phrases stand in a line, case aside, and whether a curly bracket does."""
    found = 0
    for at in range(start, end):
        lower = _lower(out[at])
        if lower < 128:
            if lower == _BRACE:
                found |= CURLY
            for i in range(begun[lower, 0], begun[lower, 1]):
                k = 1
                while phrases[i, k] and at + k < end and _lower(out[at + k]) == phrases[i, k]:
                    k += 1
                if not phrases[i, k]:
                    found |= LOREM if i == 0 else (JAVASCRIPT if i == 1 else POLICY)
    return found


@njit(cache=True)
def _lower(point):  # type: ignore[no-untyped-def]
    if 0x41 <= point <= 0x5A:
        return point + np.uint32(32)
    return np.uint32(0x6B) if point == _KELVIN else point
