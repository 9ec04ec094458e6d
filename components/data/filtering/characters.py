"""What kind of character each code point is, as bits in one table, so that loops over code points need no strings.

A set is taken from Unicode's categories as Python knows them, or written out where it is a choice: the sets of the English tokenizer that the
published rules are run with (spaCy 3: prefixes, suffixes, letters of both cases, currency), and what ends a sentence (Unicode's Sentence_Terminal).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np

# Compiled loops keep these numbers with the code that numba caches per file: after a change here, delete __pycache__.
KNOWN = 0x20000  # the code points in the table; those above are rare ideographs

SPACE = 1  # str.isspace
BREAK = 2  # ends a line for str.splitlines
ALPHABETIC = 4  # str.isalpha
DECIMAL = 8  # str.isdecimal
DIGIT = 16  # 0 to 9
SYMBOL = 32  # a word of nothing but these is no word
PUNCTUATION = 64  # Unicode category P
STOP = 128  # alone, ends a sentence
TERMINAL = 256  # ends a line that ends as prose does
LETTER = 512
LOWER = 1024
UPPER = 2048
PREFIX = 4096  # cut off the front of a word
SUFFIX = 8192  # cut off the end of a word
ICON = 16384  # stands alone, wherever it stands
QUOTE = 32768
JOINER = 65536  # may part a word in the middle
CURRENCY = 131072
PLAIN_PUNCTUATION = 262144  # a full stop after it is a word of its own
UNLISTED = LETTER | LOWER | UPPER | ALPHABETIC  # above KNOWN

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿﷼" + "".join(map(chr, range(0x20A0, 0x20C0)))
_SYMBOLS = "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"  # besides ASCII's; the full-width 1 stands there too
_UNCASED = (  # scripts without case, with their marks and, in the CJK blocks, their punctuation
    "591-5F4 620-64A 66E-6D5 6E5-6FF 750-77F 8A0-8BD 900-97F 980-9FF B80-BFF C00-C7F C80-CFF D80-DFF 1100-137F 2E80-2FDF 2FF0-309F 30A0-30FF "
    "31C0-31EF 3200-4DBF 4E00-9FFF AC00-D7AF F900-FAFF FB1D-FBB1 FBD3-FD3D FD50-FDC7 FDF0-FDFB FE30-FE4F FE70-FEFC 1F200-1F2FF"
)
_CASED = (
    "41-5A 61-7A C0-D6 D8-F6 F8-24F 250-2AF 386-3CE 400-45F 490-491 496-497 4A2-4A3 4AE-4AF 4BA-4BB 4D8-4D9 4E8-4E9 1D00-1D25 1D6B-1D77 "
    "1D79-1D9A 1E00-1EFF 2C60-2C7F A722-A7B9 AB30-AB64 FF21-FF3A FF41-FF5A"
)
_STOPS = (
    "21 2E 3F 589 61F 6D4 700-702 7F9 964-965 104A-104B 1362 1367-1368 166E 1735-1736 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1C3B-1C3C "
    "1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 "
    "FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 "
    "1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11A42-11A43 11A9B-11A9C 11C41-11C42 16A6E-16A6F 16AF5 16B37-16B38 16B44 1BC9F 1DA88"
)
_TERMINALS = (  # Sentence_Terminal of a later Unicode than the above
    "61D-61E 837 839 83D-83E 17D4-17D6 17D9-17DA 1B7D-1B7E 2E53-2E54 10F55-10F59 10F86-10F89 11944 11946 11EF7-11EF8 11F43-11F44 16E98"
)
_BREAKS = "A-D 1C-1E 85 2028-2029"
_CONTROLS = "0-8 B-1F 7F-9F"


@lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """The bits of each code point, (KNOWN,) uint32."""
    table = _by_category()
    for ranges, bits in [
        ("30-39", DIGIT),
        (_BREAKS, BREAK),
        (_UNCASED, LETTER | LOWER | UPPER),
        (_STOPS, STOP | TERMINAL | SYMBOL),
        (_TERMINALS, TERMINAL | SYMBOL),
        (_CONTROLS, SYMBOL),
        ("21-2F 3A-40 5B-60 7B-7E", SYMBOL),
    ]:
        for first, last in _pairs(ranges):
            table[first : last + 1] |= bits
    for characters, bits in [
        (_SYMBOLS, SYMBOL),
        (_PUNCTUATION, PREFIX | SUFFIX | PLAIN_PUNCTUATION),
        (_QUOTES, PREFIX | SUFFIX | QUOTE),
        (_CURRENCY, PREFIX | CURRENCY),
        ("§%=—–", PREFIX),
        ("—–", SUFFIX),
        ("+-*^.,–—~:<>=/…", JOINER),
        ("|", PLAIN_PUNCTUATION),
    ]:
        table[[ord(c) for c in characters]] |= bits
    return table


def _by_category() -> np.ndarray:
    table = np.zeros(KNOWN, np.uint32)
    cased = {point for first, last in _pairs(_CASED) for point in range(first, last + 1)}
    for point in range(KNOWN):
        character = chr(point)
        category = unicodedata.category(character)
        bits = PUNCTUATION if category[0] == "P" else 0
        if character.isspace():
            bits |= SPACE
        if category[0] == "L":
            bits |= ALPHABETIC
            if point in cased:
                bits |= LETTER | {"Ll": LOWER, "Lu": UPPER}.get(category, 0)
        elif category == "Nd":
            bits |= DECIMAL
        elif category == "So":
            bits |= ICON | PREFIX | SUFFIX | JOINER
        table[point] = bits
    return table


def _pairs(ranges: str) -> list[tuple[int, int]]:
    """Ranges of code points in hex, both ends included."""
    ends = [part.partition("-") for part in ranges.split()]
    return [(int(first, 16), int(last or first, 16)) for first, _, last in ends]
