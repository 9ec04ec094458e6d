"""What is mended in a text: mojibake, Unicode form, line ends, invisible characters, boilerplate lines.

    text, changes = mended("The cafÃ© is open.\r\nShare on Facebook", CleanConfig(), code=False)
    text                     # "The café is open."
    changes                  # {"encoding_repaired": 1, "line_ends_unified": 1, "boilerplate_lines_share_buttons": 1}

One mending may uncover work for another (a byte order mark in the middle of mojibake), so a text is mended until nothing changes: mended twice is
mended once. Most texts need nothing, so each mending begins with a search that costs little.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import groupby

import ftfy
from ftfy.chardata import CHARMAP_ENCODINGS
from ftfy.fixes import fix_c1_controls

from components.data.cleaning.boilerplate import without_boilerplate
from components.schema.data import CleanConfig

MOST_ROUNDS = 4
MOST_MARKS = 30  # combining marks on one letter, as in Unicode's stream-safe format (UAX 15, section 13); sorting a million of them would take hours
LONGEST_REPAIRED_LINE = 1_000_000  # characters; ftfy's own limit
_LINE_END = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
# Controls, soft hyphens, zero-width spaces, marks and overrides of direction, byte order marks, noncharacters, tags. Joiners (U+200C, U+200D) stay:
# Persian, Indic scripts and emoji are spelt with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
_MAY_BE_MARKS = re.compile("[\u0300-\u1fff\u20d0-\u20ff\u2c00-\U0001ffff]" * (MOST_MARKS + 1))  # costs less than the set of marks itself


def mended(text: str, config: CleanConfig, code: bool) -> tuple[str, Counter[str]]:
    """The text as it should have been, and what was done to it. `code`: it is source code, which has no boilerplate lines."""
    changes: Counter[str] = Counter()
    for _ in range(MOST_ROUNDS):
        before = text
        text = _characters_mended(text, config, changes)
        if config.boilerplate_lines and not code:
            text, removed = without_boilerplate(text)
            changes.update({f"boilerplate_lines_{kind}": count for kind, count in removed.items()})
            text = text.strip("\n") if removed else text
        if text == before:
            break
    return text, changes


def normalized(text: str, form: str) -> str:
    """The text in a Unicode normal form; `none` leaves it as it is."""
    return text if form == "none" or unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def _characters_mended(text: str, config: CleanConfig, changes: Counter[str]) -> str:
    plain = text.isascii()  # then nothing to repair and nothing to normalise
    if config.repair_encoding and not plain:
        text = _noted(text, _repaired(text), "encoding_repaired", changes)
    if _LINE_END.search(text):
        text = _noted(text, _LINE_END.sub("\n", text.replace("\r\n", "\n")), "line_ends_unified", changes)
    if _INVISIBLE.search(text):
        text, count = _INVISIBLE.subn("", text)
        changes["invisible_characters_removed"] += count
    if not plain:
        if _MAY_BE_MARKS.search(text):
            text, count = _too_many_marks().subn(lambda run: run[0][:MOST_MARKS], text)
            changes["stacks_of_combining_marks_cut"] += count
        text = _noted(text, normalized(text, config.normalization), f"normalized_to_{config.normalization}", changes)
    return text


def _noted(before: str, after: str, what: str, changes: Counter[str]) -> str:
    if after != before:
        changes[what] = 1
    return after


def _repaired(text: str) -> str:
    """Lines that show signs of mojibake, repaired: a page may be broken in one line and right in the next."""
    if not _shows_mojibake(text):
        return text
    return "\n".join(_repaired_line(line) if _shows_mojibake(line) else line for line in text.split("\n"))


def _repaired_line(line: str) -> str:
    if len(line) > LONGEST_REPAIRED_LINE:
        return line
    return fix_c1_controls(ftfy.fix_encoding(line))  # of ftfy only this: its fix_text would also uncurl quotes


def _shows_mojibake(text: str) -> bool:
    """Whether ftfy need be asked: its own test reads 4 MB/s, this one some hundred."""
    pattern, pairs = _signs()
    return any(found[1] is None or found[0] + found[1] in pairs for found in pattern.finditer(text))


@lru_cache(maxsize=1)
def _signs() -> tuple[re.Pattern[str], frozenset[str]]:
    """What mojibake has: the first and second byte of a UTF-8 sequence, each read as a character of one of the encodings that ftfy can undo.

    Or, where ftfy mends it too: a first byte before a lost one, or before a no-break space that became a space; a C1 control.
    """
    pairs: set[str] = set()
    for name in CHARMAP_ENCODINGS:
        firsts, seconds = (bytes(span).decode(name, "replace") for span in (range(0xC2, 0xF5), range(0x80, 0xC0)))
        pairs |= {first + second for first in firsts for second in seconds + "\ufffd"}
    first, second = (re.escape("".join(sorted({pair[i] for pair in pairs}))) for i in (0, 1))
    return re.compile(f"[\x80-\uffff](?:(?<=[{first}])(?=([{second}]))|(?<=[ÂÃ]) |(?<=[\x80-\x9f]))"), frozenset(pairs)  # one range first: searched fast


@lru_cache(maxsize=1)
def _too_many_marks() -> re.Pattern[str]:
    points = [point for point in range(0x300, 0x1F000) if unicodedata.combining(chr(point))]
    runs = [list(run) for _, run in groupby(enumerate(points), lambda pair: pair[1] - pair[0])]
    marks = "".join(f"{chr(run[0][1])}-{chr(run[-1][1])}" for run in runs)
    return re.compile(f"[{marks}][{marks}]{{{MOST_MARKS},}}")
