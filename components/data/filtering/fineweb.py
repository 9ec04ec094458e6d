"""FineWeb's rules as a compiled loop over a batch (Penedo et al. 2024, arXiv:2406.17557, section 3.5): lines of text, not of a list or a menu.

Gives, per row, the number of the first check that fails, counted from 1 in the order of rules.FINEWEB; 0 = kept.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from components.data.filtering.characters import SPACE, TERMINAL

_NEWLINE = 0x0A


@njit(cache=True, nogil=True)
def lines(points, offsets, alive, classes, words, thresholds):  # type: ignore[no-untyped-def]
    """Rows whose lines fail; `words` of each row (rows,), `thresholds` in the order of rules.FINEWEB, then the length of a short line."""
    failed = np.zeros(len(alive), np.uint8)
    seen = np.empty(64, np.uint64)
    for row in range(len(alive)):
        if alive[row]:
            start, end = offsets[row], offsets[row + 1]
            newlines = 0
            for at in range(start, end):
                newlines += points[at] == _NEWLINE
            size = 64
            while size < 2 * newlines + 2:
                size *= 2
            if len(seen) < size:
                seen = np.empty(size, np.uint64)
            seen[:size] = 0
            failed[row] = _failed(points, start, end, classes, seen[:size], newlines, words[row], thresholds)
    return failed


@njit(cache=True)
def _failed(points, start, end, classes, seen, newlines, words, thresholds):  # type: ignore[no-untyped-def]
    count, finished, short, repeated = 0, 0, 0, 0
    at = start
    while at <= end:
        begin, hashed, blank = at, np.uint64(0), True
        while at < end and points[at] != _NEWLINE:
            kind = classes[points[at]] if points[at] < len(classes) else np.uint32(0)
            blank &= (kind & SPACE) != 0
            hashed = (hashed ^ np.uint64(points[at])) * np.uint64(0x100000001B3)
            hashed ^= hashed >> np.uint64(29)
            at += 1
        if not blank:
            count += 1
            last = points[at - 1]
            finished += last < len(classes) and (classes[last] & TERMINAL) != 0
            short += at - begin <= thresholds[5]
            repeated += at - begin if _seen(seen, hashed | np.uint64(1)) else 0
        at += 1
    if count == 0:
        return 1
    if finished / count < thresholds[1]:
        return 2
    if short / count > thresholds[2]:
        return 3
    if repeated / (end - start - newlines) > thresholds[3]:
        return 4
    return 5 if newlines / max(words, 1) > thresholds[4] else 0


@njit(cache=True)
def _seen(table, key):  # type: ignore[no-untyped-def]
    slot = np.int64(key >> np.uint64(20)) & (len(table) - 1)
    while table[slot] and table[slot] != key:
        slot = (slot + 1) & (len(table) - 1)
    before = table[slot] == key
    table[slot] = key
    return before
