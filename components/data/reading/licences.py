"""Licences as SPDX ids (https://spdx.org/licenses): from the ways people write their names, and from the texts themselves.

    spdx("Creative Commons Attribution 4.0 International")    # "CC-BY-4.0"
    spdx("apache 2.0"), spdx("MIT License")                   # "Apache-2.0", "MIT"
    of_text(Path("COPYING").read_text())                      # "GPL-3.0"

A name that is not known is kept as it was written: it is still counted, and patterns can still match it.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache

PUBLIC_DOMAIN = "LicenseRef-Public-Domain"  # SPDX has no id for a text that never had, or no longer has, an owner
UNRECOGNISED = "LicenseRef-Unrecognised"  # there is a licence's text, and it is none that we know: no allow list should take it for another
LONGEST_NAME = 120  # characters; what is longer is a licence's text in the wrong column, or nonsense
_NOTHING = {"", "unknown", "none", "null", "nan", "n/a", "na", "other", "noassertion", "not specified", "unspecified", "no license", "?"}

_CC_BY = re.compile(r"\bcc ?by\b|\b(?:cc|creative commons)\b.{0,20}?\b(?:by|attribution)\b")
_GNU = re.compile(r"\b(?:gnu )?(a|affero |l|lesser |library )?(?:gpl|general public)(?: licen[cs]e)?(?: version)? ?v?(\d)(?: (\d))?\b(.*)")

# A whole name, lower-cased and with every mark as one space -> id.
_NAMES: dict[str, str] = {
    name: id
    for id, names in {
        "Apache-2.0": "apache 2 0|apache 2|apache license 2 0|apache license version 2 0|apache software license|apache software license 2 0|asl 2 0|al2",
        "MIT": "mit|expat|x11 mit|mit x11",
        "MIT-0": "mit 0|mit no attribution",
        "BSD-2-Clause": "bsd 2 clause|bsd 2|2 clause bsd|simplified bsd|freebsd",
        "BSD-3-Clause": "bsd 3 clause|bsd 3|3 clause bsd|new bsd|modified bsd|revised bsd|bsd 3 clause new or revised",
        "0BSD": "0bsd|bsd zero clause|zero clause bsd",
        "ISC": "isc|isc license iscl|iscl",
        "MPL-2.0": "mpl 2 0|mpl2|mozilla public 2 0|mozilla public license 2 0|mozilla public license 2 0 mpl 2 0",
        "Unlicense": "unlicense|the unlicense unlicense",
        "CC0-1.0": "cc0|cc0 1 0|cc zero|cc 0 1 0|cc0 1 0 universal|creative commons zero|creative commons zero v1 0 universal|creative commons cc0",
        "PSF-2.0": "psf|psf 2 0|python software foundation",
        "BSL-1.0": "bsl 1 0|boost|boost software 1 0|boost software license 1 0",
        "Zlib": "zlib|zlib libpng",
        "EPL-2.0": "epl 2 0|eclipse public 2 0|eclipse public license 2 0",
        "WTFPL": "wtfpl",
        "ODC-By-1.0": "odc by|odc by 1 0|open data commons attribution|open data commons attribution 1 0|open data commons attribution license v1 0",
        "ODbL-1.0": "odbl|odbl 1 0|open database|open data commons open database license v1 0",
        "PDDL-1.0": "pddl|pddl 1 0",
        "Artistic-2.0": "artistic 2 0|artistic license 2 0",
        PUBLIC_DOMAIN: "public domain|publicdomain|cc pdm|cc pdm 1 0|public domain mark|public domain mark 1 0|pd",
    }.items()
    for name in [id.lower().replace("-", " ").replace(".", " "), *names.split("|")]
}

# What a licence's text says in its title -> id; the GNU texts name each other further down.
_TITLES = (
    (r"gnu affero general public license version 3", "AGPL-3.0"),
    (r"gnu lesser general public license version 3", "LGPL-3.0"),
    (r"gnu lesser general public license version 2 1", "LGPL-2.1"),
    (r"gnu library general public license version 2", "LGPL-2.0"),
    (r"gnu general public license version 3", "GPL-3.0"),
    (r"gnu general public license version 2", "GPL-2.0"),
)
# What stands in a licence's text -> id; of two that begin at the same place the first listed.
_TEXTS = (
    (r"apache license version 2 0", "Apache-2.0"),
    (r"mozilla public license version 2 0", "MPL-2.0"),
    (r"eclipse public license v 2 0", "EPL-2.0"),
    (r"cc0 1 0 universal", "CC0-1.0"),
    (r"boost software license version 1 0", "BSL-1.0"),
    (r"free and unencumbered software released into the public domain", "Unlicense"),
    (r"mit no attribution", "MIT-0"),
    (r"permission is hereby granted free of charge to any person obtaining a copy", "MIT"),
    (r"redistribution and use in source and binary forms.*all advertising materials", "BSD-4-Clause"),
    (r"redistribution and use in source and binary forms.*neither the name", "BSD-3-Clause"),
    (r"redistribution and use in source and binary forms", "BSD-2-Clause"),
    (r"permission to use copy modify and( or)? distribute this software for any purpose with or without fee is hereby granted provided that", "ISC"),
    (r"permission to use copy modify and( or)? distribute this software for any purpose with or without fee is hereby granted", "0BSD"),
    (r"this software is provided as is without any express or implied warranty.*the origin of this software must not be misrepresented", "Zlib"),
    (r"psf license agreement|python software foundation license version 2", "PSF-2.0"),
    (r"do what the fuck you want to public license", "WTFPL"),
)


@lru_cache(maxsize=4096)
def spdx(name: str | None) -> str | None:
    """The SPDX id of a licence's name or address, the name itself where it is not known, None where there is none."""
    name = " ".join((name or "").split())
    if name.lower() in _NOTHING or len(name) > LONGEST_NAME:
        return None
    if len(parts := re.split(r" (AND|OR) ", name)) > 1:  # in capitals, as SPDX has them: in small letters they belong to names
        ids = [spdx(part) or part for part in parts[::2]]
        return (" OR " if set(parts[1::2]) == {"OR"} else " AND ").join(ids)  # a mixed expression is taken at its strictest
    plain = _plain(name.split(" :: ")[-1])  # a package's classifier: License :: OSI Approved :: MIT License
    return _NAMES.get(plain) or _NAMES.get(_bare(plain)) or _creative_commons(plain) or _gnu(plain) or name


def of_text(text: str) -> str | None:
    """The SPDX id of a licence's full text, such as a LICENSE file's. None where it is none that we know."""
    plain = _plain(text[:20_000])
    head = plain[:400]
    if title := next((id for pattern, id in _TITLES if re.search(pattern, head)), None):
        return title
    if re.match(r"(creative commons (corporation )?)?attribution\b", head):
        return _creative_commons("creative commons " + head[head.find("attribution") :][:80])
    found = [(match.start(), id) for pattern, id in _TEXTS if (match := re.search(pattern, plain)) and match.start() < 1500]
    return min(found, key=lambda one: one[0])[1] if found else None  # the first named: others may be appended for parts


def matches(licence: str, patterns: tuple[str, ...]) -> bool:
    """Whether an id is named by one of the patterns: * is any text, case is ignored, spellings are made SPDX first."""
    return any(fnmatchcase(licence.lower(), (pattern if "*" in pattern else spdx(pattern) or pattern).lower()) for pattern in patterns)


def refusal(licence: str, allow: tuple[str, ...], deny: tuple[str, ...]) -> str | None:
    """Why a licence is refused, None where it is not. Of A OR B one must pass, of A AND B both; an empty `allow` allows all."""
    if " OR " in licence:
        reasons = [refusal(one, allow, deny) for one in licence.split(" OR ")]
        return None if None in reasons else reasons[0]
    parts = licence.split(" AND ")
    if any(matches(part, deny) for part in parts):
        return "licence_denied"
    return None if not allow or all(matches(part, allow) for part in parts) else "licence_not_allowed"


def _plain(text: str) -> str:
    """Lower case, every run of marks and white space one space."""
    return re.sub(r"[^a-z0-9+]+", " ", text.lower()).strip()


def _bare(plain: str) -> str:
    """Without the words that names carry or not."""
    words = [word for word in plain.split() if word not in ("the", "osi", "approved", "license", "licence", "licenses", "international")]
    return " ".join(dict.fromkeys(words))  # once each: The MIT License (MIT)


def _creative_commons(plain: str) -> str | None:
    plain = plain.replace("creativecommons org", "creative commons").replace("_", " ")
    if "creative commons publicdomain" in plain:
        return "CC0-1.0" if "zero" in plain else PUBLIC_DOMAIN
    if not (found := _CC_BY.search(plain)):
        return None
    rest = plain[found.end() :]  # the restrictions count wherever they stand: an odd order must not lose one
    flags = [("-NC", r"\bnc\b|non ?commercial"), ("-SA", r"\bsa\b|share ?alike"), ("-ND", r"\bnd\b|no ?deriv")]
    version = re.search(r"\b([1-4])(?: (\d))?\b", rest)
    return "CC-BY" + "".join(flag for flag, words in flags if re.search(words, rest)) + (f"-{version[1]}.{version[2] or 0}" if version else "")


def _gnu(plain: str) -> str | None:
    found = _GNU.search(re.sub(r"\b(a|l)?gpl ?v?(\d)\b", lambda m: f"{m[1] or ''}gpl {m[2]}", plain))
    if not found:
        return None
    kind, major, minor, rest = found.groups()
    letter = {"a": "A", "l": "L"}.get((kind or " ")[0], "")
    choice = "-or-later" if "later" in rest or "+" in rest else "-only" if "only" in rest else ""
    return f"{letter}GPL-{major}.{minor or 0}{choice}"
