"""Gopher's rules of quality and of repetition, as compiled loops over a batch (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 and table A1).

Each loop gives, per row, the number of the first check that fails, counted from 1 in the order of its table in rules.py; 0 = kept.
Departures from the paper are those of datatrove 0.10, the implementation that FineWeb was made with: words of nothing but symbols do not count
for the number and the mean length of words; of a duplicate n-gram all but the first are counted, without overlap.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from components.data.filtering.characters import SPACE

_HASH, _DOT, _ELLIPSIS, _BULLET, _HYPHEN, _NEWLINE = 0x23, 0x2E, 0x2026, 0x2022, 0x2D, 0x0A
_MIX = 0x9E3779B97F4A7C15


@njit(cache=True, nogil=True)
def quality(points, offsets, line_offsets, row_lines, alive, classes, lengths, flags, hashes, word_offsets, stop_words, thresholds):  # type: ignore[no-untyped-def]
    """Rows that fail a rule of quality; `thresholds` in the order of rules.GOPHER_QUALITY."""
    failed = np.zeros(len(alive), np.uint8)
    for row in range(len(alive)):
        if alive[row]:
            first, last = word_offsets[row], word_offsets[row + 1]
            signs = _signs(points, offsets[row], offsets[row + 1], classes, line_offsets[row_lines[row] : row_lines[row + 1] + 1])
            failed[row] = _quality(lengths[first:last], flags[first:last], hashes[first:last], signs, stop_words, thresholds)
    return failed


@njit(cache=True)
def _quality(lengths, flags, hashes, signs, stop_words, thresholds):  # type: ignore[no-untyped-def]
    words, characters, letters = 0, 0, 0
    for i in range(len(lengths)):
        if not flags[i] & 1:
            words += 1
            characters += lengths[i]
        letters += (flags[i] >> 1) & 1
    if words < thresholds[0]:
        return 1
    if words > thresholds[1]:
        return 2
    hash_signs, ellipses, lines, bullets, unfinished = signs
    if characters / words < thresholds[2]:
        return 3
    if characters / words > thresholds[3]:
        return 4
    if hash_signs / len(lengths) > thresholds[4]:
        return 5
    if ellipses / len(lengths) > thresholds[5]:
        return 6
    if bullets / lines > thresholds[6]:
        return 7
    if unfinished / lines > thresholds[7]:
        return 8
    if letters / len(lengths) < thresholds[8]:
        return 9
    found = 0
    for stop_word in stop_words:
        for i in range(len(hashes)):
            if hashes[i] == stop_word:
                found += 1
                break
        if found >= thresholds[9]:
            return 0
    return 10


@njit(cache=True)
def _signs(points, start, end, classes, line_offsets):  # type: ignore[no-untyped-def]
    """Number signs; ellipses; lines; lines that begin with a bullet; lines that end with an ellipsis."""
    hash_signs, ellipses, dots = 0, 0, 0
    for at in range(start, end):
        hash_signs += points[at] == _HASH
        ellipses += points[at] == _ELLIPSIS
        dots = dots + 1 if points[at] == _DOT else 0
        if dots == 3:
            ellipses, dots = ellipses + 1, 0
    bullets, unfinished = 0, 0
    for line in range(len(line_offsets) - 1):
        first, last = _stripped(points, line_offsets[line], line_offsets[line + 1], classes)
        if first < last:
            bullets += points[first] == _BULLET or points[first] == _HYPHEN
            dots = 0
            while dots < 3 and last - dots > first and points[last - dots - 1] == _DOT:
                dots += 1
            unfinished += dots == 3 or points[last - 1] == _ELLIPSIS
    return hash_signs, ellipses, len(line_offsets) - 1, bullets, unfinished


@njit(cache=True, nogil=True)
def repetition(points, offsets, alive, classes, lengths, hashes, word_offsets, thresholds):  # type: ignore[no-untyped-def]
    """Rows that repeat themselves; `thresholds` in the order of rules.GOPHER_REPETITION."""
    failed = np.zeros(len(alive), np.uint8)
    table, counts, slots = np.empty(64, np.uint64), np.empty(64, np.int32), np.empty(64, np.int64)
    for row in range(len(alive)):
        if not alive[row]:
            continue
        start, end = offsets[row], offsets[row + 1]
        first, last = word_offsets[row], word_offsets[row + 1]
        if len(table) < 4 * (end - start + 2):
            size = 4 * (end - start + 2)
            table, counts, slots = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(size, np.int64)
        failed[row] = 1 if start == end else _repeated_lines(points, start, end, classes, table, thresholds)
        if not failed[row]:
            failed[row] = _repeated_ngrams(lengths[first:last], hashes[first:last], end - start, table, counts, slots, thresholds)
    return failed


@njit(cache=True)
def _repeated_lines(points, start, end, classes, table, thresholds):  # type: ignore[no-untyped-def]
    first, last = _stripped(points, start, end, classes)
    parts, again, characters = _duplicates(points, first, last, 2, table)
    if again / parts > thresholds[1]:
        return 2
    if characters / (end - start) > thresholds[2]:
        return 3
    parts, again, characters = _duplicates(points, start, end, 1, table)
    if again / parts > thresholds[3]:
        return 4
    return 5 if characters / (end - start) > thresholds[4] else 0


@njit(cache=True)
def _stripped(points, first, last, classes):  # type: ignore[no-untyped-def]
    while first < last and points[first] < len(classes) and classes[points[first]] & SPACE:
        first += 1
    while last > first and points[last - 1] < len(classes) and classes[points[last - 1]] & SPACE:
        last -= 1
    return first, last


@njit(cache=True)
def _duplicates(points, start, end, newlines, table):  # type: ignore[no-untyped-def]
    """Parts between runs of so many newlines or more; how many of them were there before; their characters."""
    size = _cleared(table, _newlines(points, start, end) + 1)
    parts, again, characters = 0, 0, 0
    at = start
    while True:
        begin, run = at, 0
        while at < end and run < newlines:
            at += run
            while at < end and points[at] != _NEWLINE:
                at += 1
            run = _run(points, at, end)
        parts += 1
        if _seen(table, size, _hash(points, begin, at)):
            again += 1
            characters += at - begin
        if at >= end:
            return parts, again, characters
        at += run


@njit(cache=True)
def _hash(points, start, end):  # type: ignore[no-untyped-def]
    """Two characters a step: a step's multiplication must wait for the last one's."""
    hashed = np.uint64(end - start)
    for at in range(start, end - 1, 2):
        hashed = (hashed ^ (np.uint64(points[at]) | np.uint64(points[at + 1]) << np.uint64(32))) * np.uint64(_MIX)
        hashed ^= hashed >> np.uint64(32)
    if (end - start) & 1:
        hashed = (hashed ^ np.uint64(points[end - 1])) * np.uint64(_MIX)
    return (hashed ^ hashed >> np.uint64(32)) | np.uint64(1)


@njit(cache=True)
def _newlines(points, start, end):  # type: ignore[no-untyped-def]
    count = 0
    for at in range(start, end):
        count += points[at] == _NEWLINE
    return count


@njit(cache=True)
def _run(points, start, end):  # type: ignore[no-untyped-def]
    at = start
    while at < end and points[at] == points[start]:
        at += 1
    return at - start


@njit(cache=True)
def _repeated_ngrams(lengths, hashes, characters, table, counts, slots, thresholds):  # type: ignore[no-untyped-def]
    most = len(hashes)  # a longer n-gram is no commoner than a shorter one, and no longer than the longest
    for n in range(2, 5):
        if len(hashes) >= n and most * _longest(lengths, n) / characters > thresholds[3 + n]:
            most, taken = _top(lengths, hashes, n, table, counts, slots)
            if taken / characters > thresholds[3 + n]:
                return 4 + n
    least = thresholds[8]
    for threshold in thresholds[9:14]:
        least = min(least, threshold)
    if _covered(lengths, hashes, 5, table) / characters <= least:
        return 0  # what repeats as 5-grams bounds what repeats as longer ones, so nothing more to count: nearly every text ends here
    for n in range(5, 11):
        if _repeated(lengths, hashes, n, table) / characters > thresholds[3 + n]:
            return 4 + n
    return 0


@njit(cache=True)
def _top(lengths, hashes, n, table, counts, slots):  # type: ignore[no-untyped-def]
    """How often the commonest n-gram stands here, the first of equally common ones, and the characters of that, blanks between words included."""
    grams = len(hashes) - n + 1
    size = _cleared(table, grams)
    counts[:size] = 0
    most = 0
    for i in range(grams):
        slot = _slot(table, size, _gram(hashes, i, n))
        counts[slot] += 1
        slots[i] = slot
        most = max(most, counts[slot])
    for i in range(grams):
        if counts[slots[i]] == most:
            return most, most * (_total(lengths, i, n) + n - 1)
    return 0, 0


@njit(cache=True)
def _longest(lengths, n):  # type: ignore[no-untyped-def]
    """Characters of the longest n-gram, blanks between words included."""
    length = _total(lengths, 0, n)
    longest = length
    for i in range(n, len(lengths)):
        length += np.int64(lengths[i]) - np.int64(lengths[i - n])
        longest = max(longest, length)
    return longest + n - 1


@njit(cache=True)
def _covered(lengths, hashes, n, table):  # type: ignore[no-untyped-def]
    """Characters of the words that stand in an n-gram that was there before."""
    size = _cleared(table, len(hashes))
    characters, until = 0, 0
    for i in range(len(hashes) - n + 1):
        if _seen(table, size, _gram(hashes, i, n)):
            fresh = max(i, until)
            characters += _total(lengths, fresh, i + n - fresh)
            until = i + n
    return characters


@njit(cache=True)
def _repeated(lengths, hashes, n, table):  # type: ignore[no-untyped-def]
    """Characters of n-grams that were there before, each word counted once."""
    size = _cleared(table, len(hashes))
    characters, i = 0, 0
    while i < len(hashes) - n + 1:
        if _seen(table, size, _gram(hashes, i, n)):
            characters += _total(lengths, i, n)
            i += n
        else:
            i += 1
    return characters


@njit(cache=True)
def _total(lengths, i, n):  # type: ignore[no-untyped-def]
    total = 0
    for k in range(i, i + n):
        total += lengths[k]
    return total


@njit(cache=True)
def _gram(hashes, i, n):  # type: ignore[no-untyped-def]
    hashed = np.uint64(n)
    for k in range(i, i + n):
        hashed = (hashed ^ hashes[k]) * np.uint64(_MIX)
    return (hashed ^ hashed >> np.uint64(32)) | np.uint64(1)


@njit(cache=True)
def _cleared(table, entries):  # type: ignore[no-untyped-def]
    """Empty as much of a table as so many entries need; its size, a power of two."""
    size = 4
    while size < 2 * entries:
        size *= 2
    table[:size] = 0
    return size


@njit(cache=True)
def _slot(table, size, key):  # type: ignore[no-untyped-def]
    """Where a key stands, put there if it was not."""
    slot = np.int64(key >> np.uint64(20)) & (size - 1)
    while table[slot] and table[slot] != key:
        slot = (slot + 1) & (size - 1)
    table[slot] = key
    return slot


@njit(cache=True)
def _seen(table, size, key):  # type: ignore[no-untyped-def]
    """Whether a key was there before; it is now."""
    slot = np.int64(key >> np.uint64(20)) & (size - 1)
    while table[slot] and table[slot] != key:
        slot = (slot + 1) & (size - 1)
    before = table[slot] == key
    table[slot] = key
    return before
