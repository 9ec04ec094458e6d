"""Personal data and secrets in a text: e-mail addresses, phone numbers, IP addresses, card numbers, keys.

    replaced("Write to jane@doe.org or call (212) 555-0187.", KINDS)
    # ("Write to <EMAIL> or call <PHONE>.", {"email": 1, "phone": 1})

Placeholders are in the manner of StarCoder's data (Li et al. 2023, arXiv:2305.06161: <NAME>, <EMAIL>, <KEY>, ...): short, readable, and a
model that writes one leaks nobody. A made-up address in its place (FineWeb's choice) reads more smoothly and cannot be told from a real one.

What is found has the shape of the thing and passes its check: Luhn's sum and an issuer's prefix for cards, a public address for IPs, digits for keys.
Left alone are IP addresses of private networks and of documentation, well-known name servers, and what has the shape of a version (four parts below
100, which 2 % of addresses have) where no word says that it is an address. Not looked for: names, street addresses, phone numbers of seven
digits or without any separator that no word announces.

Patterns begin with a plain character or class, and only then look behind it: that is what Python's re searches fast. Their repetitions are bounded
or possessive, so no text takes time beyond its length. Most texts are not searched at all: `suspects` reads a batch once, compiled, and says
which kinds a text may hold.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numba import njit

from components.data.words import code_points

Kind = Literal["email", "phone", "ip", "card", "key"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PLACEHOLDERS: dict[Kind, str] = {"email": "<EMAIL>", "phone": "<PHONE>", "ip": "<IP_ADDRESS>", "card": "<CARD>", "key": "<KEY>"}
Span = tuple[int, int]


def replaced(text: str, kinds: Collection[Kind]) -> tuple[str, Counter[Kind]]:
    """The text with placeholders, and how many of each kind."""
    counts: Counter[Kind] = Counter()
    for kind, find in _FINDERS:
        if kind in kinds and (spans := list(find(text))):
            counts[kind] += len(spans)
            text = _with_placeholders(text, spans, PLACEHOLDERS[kind])
    return text, counts


def luhn(digits: str) -> bool:
    """Whether a number passes the check that card numbers are made to pass (ISO/IEC 7812-1, annex B)."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _with_placeholders(text: str, spans: list[Span], placeholder: str) -> str:
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end:start], placeholder]
        end = stop
    return "".join([*parts, text[end:]])


# ---------------------------------------------------------------- suspects

_EMAIL, _NUMBERS, _IP, _KEY = 1, 2, 4, 8  # bits of a text
_BIT: dict[Kind, int] = {"email": _EMAIL, "phone": _NUMBERS, "card": _NUMBERS, "ip": _IP, "key": _KEY}
_DIGIT, _GAP, _HEX, _TOKEN = 1, 2, 4, 8  # bits of a character
_LEAST_DIGITS, _MOST_GAP, _LEAST_TOKEN, _LEAST_DASHES = 7, 2, 20, 5


def suspects(texts: Sequence[str]) -> list[tuple[Kind, ...]]:
    """Which kinds each text may hold: it holds no others."""
    points = code_points(texts)
    bits = _suspects(points.values, points.offsets, _characters())
    return [tuple(kind for kind in KINDS if _BIT[kind] & bit) for bit in bits.tolist()]


@lru_cache(maxsize=1)
def _characters() -> np.ndarray:
    """Bits of each ASCII character, (128,) uint8."""
    table = np.zeros(128, np.uint8)
    for point in range(128):
        character = chr(point)
        table[point] |= _DIGIT * character.isdigit() | _GAP * (character in " .()/-") | _HEX * (character in "0123456789abcdefABCDEF")
        table[point] |= _TOKEN * (character.isalnum() or character in "_-/+.")
    return table


@njit(cache=True, nogil=True)
def _suspects(points, offsets, characters):  # type: ignore[no-untyped-def]
    """An @; 7 digits with gaps of at most 2; three dots between digits, or two colons with at most 4 hex digits between; 20 letters of a key, 5 dashes."""
    out = np.zeros(len(offsets) - 1, np.uint8)
    for row in range(len(out)):
        bits, digits, gap, after_digit, dots, hexes, token, dashes = 0, 0, 0, 0, 0, 9, 0, 0
        for at in range(offsets[row], offsets[row + 1]):
            point = points[at]
            kind = characters[point] if point < 128 else 0
            token = token + 1 if kind & _TOKEN else 0
            dashes = dashes + 1 if point == 0x2D else 0
            if token >= _LEAST_TOKEN or dashes >= _LEAST_DASHES:
                bits |= _KEY
            if kind & _DIGIT:
                digits, gap = digits + 1, 0
                if digits >= _LEAST_DIGITS:
                    bits |= _NUMBERS
            elif digits:
                gap += 1
                if not kind & _GAP or gap > _MOST_GAP:
                    digits = 0
            if point == 0x2E:
                dots = dots + 1 if after_digit else 0
                if dots >= 3:
                    bits |= _IP
            elif not kind & _DIGIT:
                dots = 0
            after_digit = kind & _DIGIT
            if point == 0x3A:
                if hexes <= 4:
                    bits |= _IP
                hexes = 0
            else:
                hexes = hexes + 1 if kind & _HEX else 9
            if point == 0x40:
                bits |= _EMAIL
        out[row] = bits
    return out


# ---------------------------------------------------------------- keys

# What a text must hold for it to be worth searching, and what a key looks like.
_TOKENS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (sign, re.compile(rf"{pattern}(?![\w-])"))
    for sign, pattern in (
        ("AKIA", r"AKIA(?<!\wAKIA)[A-Z0-9]{16}"),  # Amazon
        ("ASIA", r"ASIA(?<!\wASIA)[A-Z0-9]{16}"),
        ("aws_secret", r"aws_secret(?:_access)?_key\W{1,6}[A-Za-z0-9/+]{40}+"),
        ("AWS_SECRET", r"AWS_SECRET(?:_ACCESS)?_KEY\W{1,6}[A-Za-z0-9/+]{40}+"),
        ("ghp_", r"ghp_(?<!\wghp_)[A-Za-z0-9]{36,251}+"),  # GitHub: personal, OAuth, app's user, app, refresh
        ("gho_", r"gho_(?<!\wgho_)[A-Za-z0-9]{36,251}+"),
        ("ghu_", r"ghu_(?<!\wghu_)[A-Za-z0-9]{36,251}+"),
        ("ghs_", r"ghs_(?<!\wghs_)[A-Za-z0-9]{36,251}+"),
        ("ghr_", r"ghr_(?<!\wghr_)[A-Za-z0-9]{36,251}+"),
        ("github_pat_", r"github_pat_\w{40,251}+"),
        ("glpat-", r"glpat-[\w-]{20,100}+"),  # GitLab
        ("xox", r"xox[abprs]-[A-Za-z0-9-]{15,200}+"),  # Slack
        ("AIza", r"AIza(?<!\wAIza)[\w-]{35}+"),  # Google
        ("sk_live_", r"sk_live_[A-Za-z0-9]{16,200}+"),  # Stripe
        ("eyJ", r"eyJ(?<![\w-]eyJ)[\w-]{8,4000}+\.eyJ[\w-]{8,8000}+\.[\w-]{16,2000}+"),  # JSON web token
        ("sk-", r"sk-(?<![\w-]sk-)(?=(?:[A-Za-z_-]{0,60}+\d){4})[\w-]{20,250}+"),  # OpenAI, Anthropic and many more
    )
)
_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_LONGEST_BLOCK = 20_000  # characters


def _keys(text: str) -> Iterator[Span]:
    end = 0
    for span in sorted([*_private_keys(text), *(found.span() for sign, pattern in _TOKENS if sign in text for found in pattern.finditer(text))]):
        if span[0] >= end:
            yield span
            end = span[1]


def _private_keys(text: str) -> Iterator[Span]:
    """Blocks from BEGIN to END; without an END in reach, the line of BEGIN alone is no key."""
    ends = _END.finditer(text) if "PRIVATE KEY" in text else iter(())
    last = next(ends, None)
    for begin in _BEGIN.finditer(text) if last else ():
        while last and last.start() < begin.end():
            last = next(ends, None)
        if last and last.end() - begin.start() <= _LONGEST_BLOCK:
            yield begin.start(), last.end()


# ---------------------------------------------------------------- e-mail

_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+/=?^_{|}~-")
_LEADING = ".!#$%&'*+/=?^{|}~-"  # may begin an address, and is more often what stands before one
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_FILES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".css", ".js")  # logo@2x.png
_NOBODY = "git"  # git@github.com:owner/name


def _emails(text: str) -> Iterator[Span]:
    at, end = text.find("@"), 0
    while at >= 0:
        host = _HOST.match(text, at + 1, at + 256)
        if host and not host[0].lower().endswith(_FILES):
            start = at
            while start > max(end, at - 64) and text[start - 1] in _LOCAL:
                start -= 1
            local = text[start:at].lstrip(_LEADING)
            if local and not local.endswith(".") and local != _NOBODY:
                yield at - len(local), host.end()
                end = host.end()
        at = text.find("@", max(at + 1, end))


# ---------------------------------------------------------------- cards

_LONG_NUMBER = re.compile(r"\d(?<![\w.,+-]\d)(?:[ -]?\d){12,18}+(?![\w-]|[.,]\d)", re.ASCII)
_WRITTEN = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5}", re.ASCII)
_ISSUED = re.compile(r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|(?:6011|65\d\d|64[4-9]\d)\d{12}|35\d{14}|62\d{14,17}", re.ASCII)


def _cards(text: str) -> Iterator[Span]:
    for found in _LONG_NUMBER.finditer(text):
        digits = re.sub("[ -]", "", found[0])
        if digits.isascii() and _WRITTEN.fullmatch(found[0]) and _ISSUED.fullmatch(digits) and len(set(digits)) > 1 and luhn(digits):
            yield found.span()


# ---------------------------------------------------------------- IP addresses

_IPV4 = re.compile(r"\d(?<![\w.-]\d)\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}+(?!\w|\.\w)", re.ASCII)
_MAY_BE_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{4,39}+(?!\w)")
_VERSION = re.compile(r"(?:\bv|version|release|build|firmware|chapter|section|§|[^/]/)[\s.:]*\Z", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:\b(?:ip|ipv4|address|host|server|ping|gateway|proxy|client|from)|@|//)[\s:=(\[]*\Z", re.IGNORECASE)
_EVERYBODYS = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"))


def _ipv4s(text: str) -> Iterator[Span]:
    for found in _IPV4.finditer(text):
        before = text[max(0, found.start() - 16) : found.start()]
        if _is_somebodys(found[0]) and not _VERSION.search(before):
            if any(int(part) >= 100 for part in found[0].split(".")) or _ADDRESS.search(before):
                yield found.span()


def _ipv6s(text: str) -> Iterator[Span]:
    for found in _IPV6.finditer(text) if _MAY_BE_IPV6.search(text) else ():
        address = found[0] if found[0].endswith("::") else found[0].rstrip(":")
        if address[0] in "23" and _is_somebodys(address):  # 2000::/3, all that has been given out
            yield found.start(), found.start() + len(address)


def _is_somebodys(address: str) -> bool:
    """Whether it is an address at all, of the public network, and not one that everybody writes down."""
    try:
        return ipaddress.ip_address(address).is_global and address not in _EVERYBODYS
    except ValueError:
        return False


# ---------------------------------------------------------------- phone numbers

_AFTER = r"(?![\w-]|[.,/]\d)"
_INTERNATIONAL = re.compile(rf"\+(?<![\w+]\+)[1-9](?:[ .()/-]{{0,2}}\d){{7,14}}+{_AFTER}", re.ASCII)
_AMERICAN = re.compile(rf"[(2-9](?<![\w.+/][(2-9])(?:(?<=\()[2-9]\d\d\)[-. ]?|(?<=\d)\d\d[-.])[2-9]\d\d[-. ]\d{{4}}{_AFTER}", re.ASCII)
_NATIONAL = re.compile(  # nine to eleven digits from a zero on, in groups parted by one and the same sign
    rf"0(?<![\w.,+:/-]0)(?<!\d[ .-]0)(?=(?:[ /.-]?\d){{8,10}}+(?![ /.-]?\d))\d{{1,4}}(?:/\d{{5,8}}|([ .-])\d{{2,8}}(?:\1\d{{2,8}}){{0,3}}){_AFTER}",
    re.ASCII,
)
_NUMBER = re.compile(rf"[(\d](?<![\w.,+:/<-][(\d])(?:[ .()/-]{{0,2}}\d){{6,14}}+{_AFTER}", re.ASCII)
_ANNOUNCED = re.compile(
    r"\b(?:tel|telephone|phone|ph|fax|mobile|mob|cell|call|text|dial|whatsapp|hotline|telefon|téléphone|tél|teléfono|handy)s?"
    r"(?:[ .:#(-]|\b(?:us|me|him|her|at|on|is|no|nr|number|free|toll|now|today|or)\b){1,8}\Z",
    re.IGNORECASE,
)


def _international_phones(text: str) -> Iterator[Span]:
    return (found.span() for found in _INTERNATIONAL.finditer(text) if re.search(r"\d{3}|\+33", found[0]))  # not +5 10 15 20 25


def _american_phones(text: str) -> Iterator[Span]:
    for start, end in (found.span() for found in _AMERICAN.finditer(text)):
        yield (start - 2 if re.search(r"(?<![\w.,+/-])1[-. ]\Z", text[max(0, start - 3) : start]) else start), end


def _national_phones(text: str) -> Iterator[Span]:
    return (found.span() for found in _NATIONAL.finditer(text))


def _announced_phones(text: str) -> Iterator[Span]:
    for found in _NUMBER.finditer(text):
        if _ANNOUNCED.search(text, max(0, found.start() - 32), found.start()) and sum(map(str.isdigit, found[0])) <= 15:
            yield found.span()


# In this order: the surer first, so that no card is taken for a phone number.
_FINDERS: tuple[tuple[Kind, Callable[[str], Iterator[Span]]], ...] = (
    ("key", _keys), ("email", _emails), ("card", _cards), ("ip", _ipv4s), ("ip", _ipv6s), ("phone", _international_phones),
    ("phone", _american_phones), ("phone", _national_phones), ("phone", _announced_phones),
)  # fmt: skip
