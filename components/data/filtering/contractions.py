"""English words that are not cut where others are: contractions, abbreviations that keep their full stop, times of day, emoticons.

The English tokenizer of spaCy 3 has such a list, and the published quality rules are run with that tokenizer; this is the same list (MIT licence) said in rules.
A contraction counts with either apostrophe and without it (don't, don’t, dont).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from string import ascii_lowercase

import numpy as np

Table = tuple[np.ndarray, np.ndarray]  # open addressing: hashes (SLOTS,) uint64, 0 where free; the lengths of pieces, PIECE_BITS each (SLOTS,) uint64

LONGEST = 12  # characters in the longest of these
SLOTS = 1 << 12
PIECE_BITS = 4
_UNITS = (  # cut off a number that they follow
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % "
    "км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тб كم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ "
    "غرام جرام جم كغ ملغ كوب اكواب US$ C$ A$"
)
LONGEST_UNIT = 5

_NOT_SPLIT = "ill its hell shell shed were well whore".split()
_SUBJECTS = {  # word: endings it takes, without apostrophes
    "i": "m ll ll+ve d d+ve ve", "you": "ll ll+ve d d+ve ve re", "he": "ll ll+ve d d+ve s", "she": "ll ll+ve d d+ve s",
    "it": "ll ll+ve d d+ve s", "we": "ll ll+ve d d+ve ve re", "they": "ll ll+ve d d+ve ve re",
    **dict.fromkeys("who what when where why how there".split(), "s ll ll+ve re ve d d+ve"),
    **dict.fromkeys(("that", "this"), "s ll ll+ve d d+ve"), **dict.fromkeys(("these", "those"), "ll ll+ve re ve d d+ve"),
}  # fmt: skip
_VERBS = {  # the same of verbs; n't is one piece
    **dict.fromkeys("ca do does did had may need ought sha wo".split(), "n't n't+ve"),
    **dict.fromkeys("could might must should would".split(), "n't n't+ve ve"),
    **dict.fromkeys("ai are is was were have has dare".split(), "n't"),
}
_PARTS = (
    "y'+all y+all how+'d+'y How+'d+'y not+'ve not+ve Not+'ve Not+ve can+not Can+not gon+na Gon+na got+ta Got+ta let+'s Let+'s c'm+on C'm+on "
    "°+c+. °+f+. °+k+. °+C+. °+F+. °+K+."
)
_WHOLE = (
    "doin goin nothin nuthin ol somethin Doin Goin Nothin Nuthin Ol Somethin doin' goin' nothin' nuthin' ol' somethin' Doin' Goin' Nothin' Nuthin' Ol' Somethin' "
    "em ll nuff 'em 'll 'nuff 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout 'd ma'am Ma'am o'clock O'clock "
    "lovin' Lovin' lovin Lovin havin' Havin' havin Havin "
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. "
    "N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. "
    "a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. "
    "Rep. Rev. Sen. St. vs. v.s. ' \\\") <space> '' C++ ä. ö. ü. \\t \\n — "
    ":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( "
    ":') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D "
    "xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 "
    "(^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"
)


@lru_cache(maxsize=1)
def words() -> dict[str, tuple[int, ...]]:
    """Each word of the list and the lengths of the pieces it falls into."""
    found = {"".join(parts): tuple(map(len, parts)) for parts in _contracted()}
    found = {word: lengths for word, lengths in found.items() if word.lower() not in _NOT_SPLIT}
    found |= {f"{hour}{half}": (len(str(hour)), len(half)) for hour, half in product(range(1, 13), ("a.m.", "am", "p.m.", "pm"))}
    found |= {f"{letter}.": (2,) for letter in ascii_lowercase}
    found |= {word: (len(word),) for word in _WHOLE.split()}
    found |= {word.replace("+", ""): tuple(map(len, word.split("+"))) for word in _PARTS.split()}
    return found | {word.replace("'", "’"): lengths for word, lengths in found.items()}


def _contracted() -> Iterator[list[str]]:
    for word, endings in (_SUBJECTS | _VERBS).items():
        for start, ending, mark in product((word, word.title()), endings.split(), ("'", "")):
            yield [start, *(piece.replace("'", mark) if "'" in piece else mark + piece for piece in ending.split("+"))]


@lru_cache(maxsize=1)
def tables() -> tuple[Table, Table]:
    """The words and the units, to be looked up by the hash that segments.py gives a word."""
    return _table(words()), _table({unit: (len(unit),) for unit in _UNITS.split()})


def _table(entries: dict[str, tuple[int, ...]]) -> Table:
    keys, values = np.zeros(SLOTS, np.uint64), np.zeros(SLOTS, np.uint64)
    for word, lengths in entries.items():
        key = hash_of(word)
        slot = key % SLOTS
        while keys[slot]:
            slot = (slot + 1) % SLOTS
        keys[slot], values[slot] = key, sum(length << PIECE_BITS * i for i, length in enumerate(lengths))
    return keys, values


def hash_of(word: str) -> int:
    """The hash of a word, never 0."""
    hashed = 0
    for character in word:
        hashed = ((hashed ^ ord(character)) * 0x100000001B3 + 1) % 2**64
    return (hashed ^ hashed >> 32) or 1
