"""The rules decide as the papers' definitions do, at their thresholds to the very character."""

import random
import re
from collections import Counter
from itertools import product

import pytest

from components.data.filtering import rules
from components.schema.data import WEB_RULES

ALL = WEB_RULES


def reason(text: str, *names: str) -> str | None:
    return rules.judge([text], names or ALL).reasons[0]


def unique_words(count: int, length: int = 7):
    """Words that no other call of the same length repeats within a text: qaaaaaa, qaaaaab ..."""
    letters = product("abcdefghijkl", repeat=length - 1)
    return ["q" + "".join(next(letters)) for _ in range(count)]


# ---------------------------------------------------------------- Gopher quality, at each threshold


def quality_text(words: int, *, the: int = 1, extra: str = "") -> str:
    return " ".join(["the"] * the + ["and"] + ["letters"] * (words - the - 1)) + extra


def lengths_text(total: int) -> str:
    """Fifty words of `total` characters together."""
    base, more = divmod(total - 6, 48)
    return " ".join(["the", "and"] + ["x" * (base + (i < more)) for i in range(48)])


@pytest.mark.parametrize(
    ("name", "stays", "goes"),
    [
        ("fewer_than_50_words", quality_text(50), quality_text(49) + " , ; ( ) !"),
        ("more_than_100000_words", quality_text(100_000), quality_text(100_001)),
        ("mean_word_length_below_3", lengths_text(150), lengths_text(149)),
        ("mean_word_length_above_10", lengths_text(500), lengths_text(501)),
        ("number_signs_per_word_above_0.10", quality_text(54) + " #" * 6, quality_text(53) + " #" * 6),
        ("ellipses_per_word_above_0.10", quality_text(53) + " ..." * 3 + " …" * 3 + " end", quality_text(52) + " ..." * 3 + " …" * 3 + " end"),
        ("bullet_line_fraction_above_0.90", "\n".join([quality_text(50)] + ["- x", " • y"] * 4 + ["-z"]), "\n".join([quality_text(50)] + ["- x", " • y"] * 5)),
        ("ellipsis_line_fraction_above_0.30", *("\n".join([quality_text(20)] * plain + ["so on... ", "so on…", "so…"]) for plain in (7, 6))),
        ("alphabetic_word_fraction_below_0.80", quality_text(80) + " 123" * 20, quality_text(79) + " 123" * 20),
        ("fewer_than_2_stop_words", "the of " + "letters " * 50, "the the The OF " + "letters " * 50),
    ],
)
def test_gopher_quality_at_its_thresholds(name, stays, goes):
    assert reason(stays, "gopher_quality") is None
    assert reason(goes, "gopher_quality") == name


# ---------------------------------------------------------------- Gopher repetition, at each threshold


def filled(start: str, total: int) -> str:
    """`start`, and different words up to a text of `total` characters."""
    words = unique_words((total - len(start)) // 9 + 1, 8)
    text = " ".join([start, *words])[:total]
    return text[:-1] + "z" if text.endswith(" ") else text


def repeated_phrases(words: int, characters: int) -> str:
    """Ten different phrases, each there twice, each of so many words and characters (blanks aside), apart from one another by other words."""
    apart = iter(unique_words(40, 6))
    phrases = []
    for p in range(10):
        sizes = [characters // words + (i < characters % words) for i in range(words)]
        phrases.append(" ".join(f"{'abcdefghij'[p]}{'klmnopqrst'[i]}" + "x" * (size - 2) for i, size in enumerate(sizes)))
    return " ".join(f"{phrase} {next(apart)}" for phrase in phrases + phrases)


def repeated_lines(twice: int, once: int, size: int, total: int) -> str:
    """Lines of one word, some of them there twice, then one long line that fills the text up."""
    words = unique_words(twice + once, size)
    return filled("\n".join(words + words[:twice][::-1]) + "\n", total)


TOP = {2: ("abcd efghi", 20), 3: ("abcd efg hij", 15), 4: ("abc def ghi jkl1", 10)}  # phrases of 10, 12, 16 characters that take up 0.20, 0.18, 0.16 of 1000


def top_phrase(n: int, total: int) -> str:
    phrase, times = TOP[n]
    return filled(" ".join(f"{phrase} {word}" for word in unique_words(times, 5)), total)


@pytest.mark.parametrize(
    ("name", "stays", "goes"),
    [
        ("duplicate_paragraph_fraction_above_0.30", repeated_lines(3, 3, 5, 2000).replace("\n", "\n\n"), repeated_lines(3, 2, 5, 2000).replace("\n", "\n\n\n")),
        ("duplicate_paragraph_character_fraction_above_0.20", repeated_lines(10, 20, 20, 960).replace("\n", "\n\n"), repeated_lines(10, 20, 20, 959).replace("\n", "\n\n")),
        ("duplicate_line_fraction_above_0.30", repeated_lines(3, 3, 5, 2000), repeated_lines(3, 2, 5, 2000)),
        ("duplicate_line_character_fraction_above_0.20", repeated_lines(10, 20, 20, 1000), repeated_lines(10, 20, 20, 999)),
        *[(f"top_{n}_gram_character_fraction_above_{at:.2f}", top_phrase(n, 1000), top_phrase(n, 999)) for n, at in [(2, 0.2), (3, 0.18), (4, 0.16)]],
        *[
            (f"duplicate_{n}_gram_character_fraction_above_{at / 100:.2f}", filled(repeated_phrases(n, 10 * at), 10_000), filled(repeated_phrases(n, 10 * at), 9_999))
            for n, at in zip(range(5, 11), range(15, 9, -1), strict=True)
        ],
    ],
)
def test_gopher_repetition_at_its_thresholds(name, stays, goes):
    assert reason(stays, "gopher_repetition") is None
    assert reason(goes, "gopher_repetition") == name


# ---------------------------------------------------------------- C4, line by line

PROSE = ["The first line is fine.", "Is the second line fine?", "So is the third one!", 'He said "the fourth."', "And the fifth one too."]


def c4(*lines: str) -> tuple[str | None, list[str], dict[str, int]]:
    verdicts = rules.judge(["\n".join(lines)], ["c4"])
    return verdicts.reasons[0], verdicts.texts[0].split("\n"), verdicts.removed_lines


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("No stop at the end", "line_without_terminal_punctuation"),
        ("It trails off...", "line_without_terminal_punctuation"),
        ("A colon, then:", "line_without_terminal_punctuation"),
        ("Two words.", "line_of_fewer_than_3_words"),
        ("x" * 1001 + " is too long.", "line_with_word_of_more_than_1000_characters"),
        ("Please enable JavaScript to go on.", "line_with_javascript"),
        ("By going on you accept our Terms of Use.", "line_with_cookie_or_terms_policy"),
        ("This site USES COOKIES for that.", "line_with_cookie_or_terms_policy"),
        ("", "line_without_terminal_punctuation"),
        ("So it says. [12] ", "line_without_terminal_punctuation"),
    ],
)
def test_c4_takes_a_line_away_and_says_why(line, why):
    assert c4(*PROSE[:2], line, *PROSE[2:]) == (None, PROSE, {why: 1})


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Just three words.", "Just three words."),
        ("  Blanks around it go.  ", "Blanks around it go."),
        ("y" * 1000 + " is not too long.", "y" * 1000 + " is not too long."),
        ("Marks [1] are [citation needed] taken[edit] out[23].", "Marks  are  taken out."),
        ("Others [a] are [12a] not [.", "Others [a] are [12a] not [."),
        ("Cookies are good with milk, so use of cookie cutters pays.", "Cookies are good with milk, so use of cookie cutters pays."),
        ("Es endet in einem “Zitat” mit 'so'", "Es endet in einem “Zitat” mit 'so'"),
    ],
)
def test_c4_keeps_a_line_without_citation_marks_and_blanks(line, left):
    assert c4(line, *PROSE) == (None, [left, *PROSE], {})


def test_c4_drops_a_document_for_a_bracket_or_lorem_ipsum_in_a_line_that_would_stay():
    assert c4(*PROSE, "A function { that ends } so.")[0] == "curly_bracket"
    assert c4(*PROSE, "Then LOREM Ipsum dolor sit.")[0] == "lorem_ipsum"
    assert c4(*PROSE, "function() {", "lorem ipsum")[0] is None
    assert c4(*PROSE, "javascript { in one line goes alone.")[0] is None


def test_c4_asks_for_five_sentences_in_the_lines_that_stay():
    assert c4(*PROSE)[0] is None
    assert c4(*PROSE[:4], "the fifth has no stop")[0] == "fewer_than_5_sentences"
    assert c4("One is here. Two is here. Three is here! Four is here? Mr. Five is here.")[0] is None


def test_lines_end_wherever_python_says_they_do():
    for end in ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"):
        assert rules.judge([end.join(PROSE)], ["c4"]).texts == ["\n".join(PROSE)]


# ---------------------------------------------------------------- FineWeb, at each threshold

LONG = "this line is longer than thirty characters, number "


@pytest.mark.parametrize(
    ("name", "stays", "goes"),
    [
        ("terminal_punctuation_line_fraction_below_0.12", *([LONG + f"{i}." for i in range(3)] + [LONG + f"x{i}" for i in range(open)] for open in (22, 23))),
        ("short_line_fraction_above_0.67", *([f"a b c d e f g h i j k l {i:03}." for i in range(67)] + [LONG + f"{i}." for i in range(long)] for long in (33, 32))),
        ("duplicate_line_character_fraction_above_0.01", ["a b c d e.", "a b c d e.", filled("x", 979) + "."], ["a b c d e.", "a b c d e.", filled("x", 978) + "."]),
        ("newlines_per_word_above_0.30", [f"{'x' * size} yes." for size in (31, 32, 33)] + ["yes"], [f"{'x' * size} yes." for size in (31, 32)] + ["x" * 33 + ".", "yes"]),
    ],
)  # fmt: skip
def test_fineweb_at_its_thresholds(name, stays, goes):
    assert reason("\n".join(stays), "fineweb") is None
    assert reason("\n".join(goes), "fineweb") == name


def test_a_line_of_thirty_characters_is_short_and_one_of_thirty_one_is_not():
    assert reason("x" * 25 + " you.", "fineweb") == "short_line_fraction_above_0.67"
    assert reason("x" * 26 + " you.", "fineweb") is None


def test_fineweb_knows_stops_of_other_scripts():
    assert reason("这是一个很长的句子,它有三十多个字符,所以它不是短行,而且它以句号结束,这样就可以了。", "fineweb") is None
    assert reason("यह एक लंबी पंक्ति है जिसमें तीस से अधिक वर्ण हैं।", "fineweb") is None


# ---------------------------------------------------------------- against the definitions, on random texts


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+|\.\.\.|[^\w\s]", text)


def quality_by_definition(text: str) -> bool:
    words = words_of(text)
    real = [w for w in words if re.search(r"[\w•]", w)]  # the bullet is no symbol in the set that is used
    lines = text.splitlines()
    return (
        50 <= len(real) <= 100_000
        and 3 <= sum(map(len, real)) / len(real) <= 10
        and text.count("#") <= 0.1 * len(words)
        and len(re.findall(r"\.\.\.|…", text)) <= 0.1 * len(words)
        and sum(bool(re.match(r"\s*[•-]", line)) for line in lines) <= 0.9 * len(lines)
        and sum(bool(re.search(r"(\.\.\.|…)\s*$", line)) for line in lines) <= 0.3 * len(lines)
        and sum(bool(re.search(r"[^\W\d_]", w)) for w in words) >= 0.8 * len(words)
        and len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)) >= 2
    )


def repetition_by_definition(text: str) -> bool:
    words = words_of(text)
    for parts in (re.split(r"\n\n+", text.strip()), re.split(r"\n+", text)):
        copies = {part: count - 1 for part, count in Counter(parts).items()}
        if sum(copies.values()) / len(parts) > 0.3 or sum(len(part) * count for part, count in copies.items()) / len(text) > 0.2:
            return False
    for n, most in ((2, 0.2), (3, 0.18), (4, 0.16)):
        ngram, count = (Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1) or [((), 0)])[0]
        if count * len(" ".join(ngram)) / len(text) > most:
            return False
    return all(repeated_characters(words, n) / len(text) <= 0.2 - n / 100 for n in range(5, 11))


def repeated_characters(words: list[str], n: int) -> int:
    """Read from the left: an n-gram that was read before is skipped and counts, else one word is read."""
    read, at, count = [], 0, 0
    while at + n <= len(words):
        ngram = words[at : at + n]
        if ngram in read:
            count, at = count + len("".join(ngram)), at + n
        else:
            read, at = [*read, ngram], at + 1
    return count


def fineweb_by_definition(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    copies = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    return bool(lines) and (
        sum(line[-1] in ".?!" for line in lines) / len(lines) >= 0.12
        and sum(len(line) <= 30 for line in lines) / len(lines) <= 0.67
        and copies / len(text.replace("\n", "")) <= 0.01
        and text.count("\n") / len(words_of(text)) <= 0.3
    )


def c4_by_definition(text: str) -> str | None:
    """What is left of a text without abbreviations, quotes, brackets and citations."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line.endswith((".", "!", "?")) and not line.endswith("...") and len(line.split()) >= 3]
    sentences = sum(len(re.findall(r"[.!?]+(?=\s+[\w#•,;…-]|$)(?<!\.\.\.)|(?<=\.)\.\.(?!.)", line)) for line in lines)
    return "\n".join(lines) if sentences >= 5 else None


def random_text(source: random.Random) -> str:
    varied = unique_words(300, 6) + ["the", "and", "have"] * 20
    vocabulary = source.choice([["the", "of", "and", "house", "tree"], varied, ["the", "with", "naïve", "дом", "xy", "12", "#", "extraordinarily"]])
    lines: list[str] = []
    for _ in range(source.randint(1, 30)):
        if lines and source.random() < source.choice([0.02, 0.3]):
            lines.append(source.choice(lines))
        else:
            words = " ".join(source.choices(vocabulary, k=source.choice([1, 3, 8, 40])))
            lines.append(source.choice(["", "", "- ", "• "]) + words + source.choice([".", "!", "?", "", "", "...", "…"]))
    return source.choice(["\n", "\n\n", "\n \n"]).join(lines)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    source = random.Random(11)
    return [random_text(source) for _ in range(600)]


@pytest.mark.parametrize(
    ("rule", "stays"), [("gopher_quality", quality_by_definition), ("gopher_repetition", repetition_by_definition), ("fineweb", fineweb_by_definition)]
)
def test_rules_agree_with_their_definitions_on_random_texts(texts, rule, stays):
    expected = [stays(text) for text in texts]
    assert [why is None for why in rules.judge(texts, [rule]).reasons] == expected
    assert 0.05 < sum(expected) / len(expected) < 0.95


def test_c4_leaves_what_its_definition_leaves(texts):
    plain = [text.replace("...", ".").replace("…", "!") for text in texts]
    verdicts = rules.judge(plain, ["c4"])
    expected = [c4_by_definition(text) for text in plain]
    assert [None if why else text for why, text in zip(verdicts.reasons, verdicts.texts, strict=True)] == expected
    assert 0.05 < sum(e is None for e in expected) / len(expected) < 0.95


# ---------------------------------------------------------------- a batch


def test_a_batch_is_judged_as_each_text_alone_and_in_any_order(texts):
    prose = ["\n".join(PROSE * 2 + [" ".join(unique_words(60)) + " the and."]) + text for text in texts[:150]]
    some = [*prose, *texts[:100], "", "\0", "\ud800", "a" * 200_000, "the and " * 20_000, "x\0y " * 100, " \n ", "漢字。" * 500, "{" * 1000]
    together = rules.judge(some, ALL)
    alone = [rules.judge([text], ALL) for text in some]
    assert together.reasons == [one.reasons[0] for one in alone] and together.texts == [one.texts[0] for one in alone]
    assert Counter(together.removed_lines) == sum((Counter(one.removed_lines) for one in alone), Counter())
    assert rules.judge(some[::-1], ALL).reasons == together.reasons[::-1]
    assert len({why for why in together.reasons if why}) >= 5


def test_later_rules_see_what_c4_left():
    text = "\n".join([f"{LONG} {word}." for word in unique_words(6)] + ["Menu"] * 10)
    assert reason(text, "fineweb") == "duplicate_line_character_fraction_above_0.01"
    verdicts = rules.judge([text], ["c4", "fineweb"])
    assert verdicts.reasons == [None] and "Menu" not in verdicts.texts[0] and verdicts.removed_lines == {"line_without_terminal_punctuation": 10}
    assert reason(text, "c4", "gopher_quality", "gopher_repetition") == reason(verdicts.texts[0], "gopher_quality", "gopher_repetition") is not None


def test_a_dropped_text_is_as_it_was_and_its_lines_do_not_count_as_removed():
    text = "\n".join([*PROSE[:3], "no stop"])
    assert rules.judge([text], ["c4"]) == rules.Verdicts(["fewer_than_5_sentences"], [text], {})


def test_without_rules_and_without_texts_nothing_happens():
    assert rules.judge(["", "x"], []) == rules.Verdicts([None, None], ["", "x"], {})
    assert rules.judge([], ALL) == rules.Verdicts([], [], {})


def test_empty_texts_are_dropped_by_the_first_rule_that_needs_a_text():
    assert [reason("", rule) for rule in ALL] == ["fewer_than_50_words", "empty", "fewer_than_5_sentences", "empty"]


def test_giant_texts_take_time_in_proportion():
    assert reason("a" * 3_000_000) == "fewer_than_50_words"
    assert reason("word " * 600_000) == "more_than_100000_words"
    assert reason("\n" * 3_000_000, "gopher_repetition") == "duplicate_line_fraction_above_0.30"  # the two empty ends
    assert reason("word " * 600_000, "gopher_repetition").startswith("top_2_gram")
