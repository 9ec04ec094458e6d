"""Cleaning: what is mended and what is left alone, boilerplate lines and the sentences that look like them, the step and its poisoned documents."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import ftfy
import pytest
from ftfy.chardata import CHARMAP_ENCODINGS

from components.data import shards, tally
from components.data.cleaning import boilerplate, clean, mend
from components.schema.config import BadInput
from components.schema.data import CleanConfig, DataConfig

ENGLISH = "The committee met in the old town hall on Tuesday and decided to repair the bridge before winter. "
GERMAN = "Der Ausschuss traf sich am Dienstag im alten Rathaus und beschloss, die Brücke noch vor dem Winter zu reparieren. "
OPTIONS = CleanConfig()


def mended(text: str, code: bool = False, **options: object) -> str:
    return mend.mended(text, CleanConfig(**options), code)[0]


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("The cafÃ© is open.", "The café is open."),
        ("It doesnâ€™t matter.", "It doesn’t matter."),
        ("Спасибо за помощь".encode().decode("latin-1"), "Спасибо за помощь"),
        ("l‚Äôh√¥tel", "l’hôtel"),
        ("voilÃ le travail", "voilà le travail"),
        ("first\r\nsecond\rthird\u2028fourth\x0cfifth", "first\nsecond\nthird\nfourth\nfifth"),
        ("nu\x00ll, be\x07ll, sof\xadt, zero\u200bwidth, \ufeffmark, \u202eoverride", "null, bell, soft, zerowidth, mark, override"),
        ("cafe\u0301", "café"),
        ("\tindented\n\n  text", "\tindented\n\n  text"),
    ],
)
def test_what_is_broken_is_mended(broken: str, right: str) -> None:
    assert mended(broken) == right


@pytest.mark.parametrize(
    "text",
    [
        "“Curly quotes”, an em dash — and an ellipsis… stay as they are.",
        "Füße, naïve, señor, façade, Łódź, Ångström, Dvořák, œuvre, À la carte",
        "Привет, мир! «Кавычки» и тире — всё на месте. Ещё раз: ёж.",
        "今日は天気がいいので、公園に行きます。",
        "می‌خواهم and क्‍ष and 👩‍👩‍👧 are spelt with joiners",
        "x² + y² ≠ ½, 20 °C, ﬁ, ＡＢＣ",
        "Ελληνικά: αυτό είναι μια πρόταση.",
    ],
)
def test_what_is_right_stays_as_it_is(text: str) -> None:
    assert mended(text) == text


def test_nfkc_folds_what_nfc_keeps() -> None:
    assert mended("x² ﬁ Ａ", normalization="NFKC") == "x2 fi A"
    assert mended("cafe\u0301", normalization="none") == "cafe\u0301"


def test_encoding_is_left_alone_where_that_is_asked_for() -> None:
    assert mended("cafÃ©", repair_encoding=False) == "cafÃ©"


def test_the_cheap_sign_of_mojibake_misses_nothing_that_ftfy_would_repair() -> None:
    originals = ["naïve café", "don’t “quote” — ever…", "Größe über alles", "Привет, мир", "Ελληνικά", "日本語のテキスト", "zł ść ę", "¿Qué? ¡Sí!", "א ב ג", "100 € · 5 £", "😀 face"]
    repaired = 0
    for original in originals:
        for encoding in CHARMAP_ENCODINGS:
            broken = "See: " + original.encode().decode(encoding, "replace") + " and so on"
            if ftfy.fix_encoding(broken) != broken:
                repaired += 1
                assert mend._shows_mojibake(broken), (encoding, broken)
    assert repaired > 50
    assert not mend._shows_mojibake("Füße, naïve “quotes” — señor… 日本語, Привет")


def test_changes_are_counted_by_kind() -> None:
    text, changes = mend.mended("CafÃ© \x00\x00open.\r\nShare on Facebook\nHome | News | About us\ncafe\u0301", OPTIONS, code=False)
    assert text == "Café open.\ncafé"
    assert changes == {
        "encoding_repaired": 1,
        "line_ends_unified": 1,
        "invisible_characters_removed": 2,
        "normalized_to_NFC": 1,
        "boilerplate_lines_share_buttons": 1,
        "boilerplate_lines_navigation": 1,
    }


# ---------------------------------------------------------------- boilerplate

FURNITURE = {
    "cookie_notice": [
        "This website uses cookies to ensure you get the best experience.",
        "We use cookies to improve your experience on our website.",
        "By continuing to use this site you agree to our use of cookies.",
        "Accept all cookies",
        "Diese Website verwendet Cookies.",
    ],
    "navigation": ["Home", "Home | About | Contact", "Skip to main content", "Back to top", "Read more »", "« Older posts", "Page 3 of 12", "Home > Products > Widgets", "Home News Events Contact", "PRIVACY POLICY", "You are here: Home / Blog"],
    "share_buttons": ["Share", "Share this: Facebook Twitter", "Share on Facebook", "Facebook Twitter Pinterest", "Click to share on Twitter (Opens in new window)", "Follow us on Twitter", "12 shares"],
    "copyright_footer": ["© 2019 Acme Inc. All rights reserved.", "Copyright © 2007-2016 Acme", "(c) 2008 Foo", "Copyright 2019 Acme Ltd", "Powered by WordPress", "Acme Corp. All Rights Reserved"],
    "subscription": ["Subscribe to our newsletter", "Enter your email address"],
    "comment_form": ["Leave a Reply", "3 Comments", "Your email address will not be published. Required fields are marked *", "You must be logged in to post a comment."],
    "advertisement": ["Advertisement", "Sponsored content"],
    "browser_warning": ["Please enable JavaScript to view the comments.", "Your browser does not support the video tag.", "JavaScript is disabled in your browser."],
}  # fmt: skip
SENTENCES = [
    "We use chocolate chip cookies in this recipe.",
    "Cookies are required for a proper tea.",
    "By visiting the museum, we learnt about cookies.",
    "Home is where the heart is.",
    "About a week later we left.",
    "Contact lenses are cheap.",
    "Share your bread with the hungry, and bring the poor into your house.",
    "Share of the market",
    "Copyright 1976 was the year in which the law changed.",
    "Copyright is a type of intellectual property.",
    "Read more books and watch less television, she said.",
    "Subscribe to a theory at your own risk.",
    "Advertisement was invented long ago.",
    "Powered flight began in 1903.",
    "Your browser history is private.",
    "Twitter",
    "Events",
    "Support",
    "Next",
    "3/4",
    "",
]


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in FURNITURE.items() for line in lines])
def test_furniture_of_a_page_goes(kind: str, line: str) -> None:
    assert boilerplate.without_boilerplate(f"One.\n  {line} \nTwo.") == ("One.\nTwo.", {kind: 1})


@pytest.mark.parametrize("line", SENTENCES)
def test_a_sentence_or_heading_that_only_looks_like_furniture_stays(line: str) -> None:
    assert boilerplate.kind(line) is None


def test_every_kind_of_boilerplate_has_an_example_here() -> None:
    assert set(FURNITURE) == {kind for kind, _ in boilerplate.RULES}


@pytest.mark.parametrize("unit", ["x ", "home>", "home | ", "share on ", "facebook,", "by using agree ", "2019 - ", "e-mail ", "copyright (c) ", "   "])
def test_no_line_keeps_the_boilerplate_rules_busy(unit: str) -> None:
    line = (unit * boilerplate.LONGEST)[: boilerplate.LONGEST]
    began = time.process_time()
    for _ in range(20):
        boilerplate.kind(line)
    assert (time.process_time() - began) / 20 < 0.02


# ---------------------------------------------------------------- invariance and poison

MIXED = [text for lines in FURNITURE.values() for text in lines] + SENTENCES
ODD = ["Ã\u200b©", "\ufeffÃ©", "A\u030a\r\n\r\nShare", "Home\n\n\x0cHome\nText\n\nMenu\n", "Â\xad \x85", "e\u0301" * 40, "\u0323\u0301" * 40, "ÃƒÂ©", "\r\x0b\u2029", "&copy; 2019"]


@pytest.mark.parametrize("options", [{}, {"normalization": "NFKC"}, {"lowercase": True, "remove_stop_words": True}])
def test_cleaned_twice_is_cleaned_once(options: dict) -> None:
    documents = [f"{ENGLISH}\n{odd}\n{ENGLISH}" for odd in ODD] + ["\n".join(MIXED) + "\n" + ENGLISH, GERMAN, *ODD]
    once = [row["text"] for row in cleaned(documents, **options)]
    assert len(once) > len(ODD)
    assert [row["text"] for row in cleaned(once, **options)] == once


POISON = {
    "a line of 10 MB": "word " * 2_000_000,
    "a mojibake line of 10 MB": "cafÃ© " * 1_700_000,
    "NULs": "\x00" * 3_000_000 + "text",
    "a million combining marks in no order": "a" + "\u0301\u0323" * 500_000,
    "a million combining marks behind letters": "e\u0301\u0323" * 350_000,
    "line ends": "\r" * 3_000_000 + "text",
    "what unfolds": "\ufdfa" * 300_000,
    "noncharacters": "\uffff\ufdd0" * 500_000 + "text",
    "short lines": "x\n" * 300_000,
}


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_text_is_cleaned_in_bounded_time(name: str) -> None:
    began = time.process_time()
    cleaned([POISON[name]], normalization="NFKC" if name == "what unfolds" else "NFC")
    assert time.process_time() - began < 10


def test_stacks_of_combining_marks_are_cut_and_ordinary_ones_are_not() -> None:
    stacked, changes = mend.mended("z" + "\u0301" * 100 + " e\u0323\u0301", OPTIONS, code=False)
    assert unicodedata.normalize("NFD", stacked).count("\u0301") == 31
    assert changes["stacks_of_combining_marks_cut"] == 1


# ---------------------------------------------------------------- the table and the step


def table(texts: list[str], domain: str = "web", **more: str) -> object:
    return shards.table_of([{"id": str(i), "text": text, "source": "here", "domain": domain, **more} for i, text in enumerate(texts)])


def cleaned(texts: list[str], counts: tally.Tally | None = None, domain: str = "web", **options: object) -> list[dict]:
    return clean.clean_table(table(texts, domain), CleanConfig(**options), counts or tally.Tally()).to_pylist()


def test_language_is_told_and_what_is_not_asked_for_is_dropped_by_name() -> None:
    counts = tally.Tally()
    rows = cleaned([ENGLISH, GERMAN, "1 2 3 4 5", "Share"], counts, languages=("en",))
    assert [(row["text"], row["language"]) for row in rows] == [(ENGLISH, "en")]
    assert {reason: entry["count"] for reason, entry in counts.dropped.items()} == {"language_de": 1, "language_unknown": 1, "nothing_but_boilerplate_lines": 1}
    assert counts.dropped["language_de"]["examples"] == [f"here: {GERMAN}"]
    assert [row["language"] for row in cleaned([ENGLISH, GERMAN, "1 2 3 4 5"])] == ["en", "de", None]


def test_code_keeps_its_language_and_its_lines_and_is_not_asked_for_a_natural_one() -> None:
    code = 'MENU = """\nHome\nShare\n© 2019 Acme\n"""\n'
    done = clean.clean_table(table([code], "code", language="python"), CleanConfig(languages=("en",), remove_stop_words=True), tally.Tally()).to_pylist()
    assert [(row["text"], row["language"]) for row in done] == [(code, "python")]


def test_curriculum_passes_untouched() -> None:
    text = "cafÃ©\r\nShare"
    done = clean.clean_table(table([text], "curriculum"), CleanConfig(languages=("de",), lowercase=True), tally.Tally()).to_pylist()
    assert [(row["text"], row["language"]) for row in done] == [(text, "en")]


def test_lower_case_and_stop_words_are_for_those_who_ask() -> None:
    assert cleaned([ENGLISH])[0]["text"] == ENGLISH
    assert cleaned([ENGLISH], lowercase=True)[0]["text"] == ENGLISH.lower()
    assert cleaned([ENGLISH], remove_stop_words=True)[0]["text"] == "committee met old town hall Tuesday decided repair bridge before winter. "
    assert "Brücke" in cleaned([GERMAN], remove_stop_words=True)[0]["text"]
    assert " die " not in cleaned([GERMAN], remove_stop_words=True)[0]["text"]


def test_a_document_on_which_mending_fails_costs_that_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(text: str) -> str:
        raise RecursionError if "Ã" in text else AssertionError

    monkeypatch.setattr(mend.ftfy, "fix_encoding", fails)
    counts = tally.Tally()
    assert [row["text"] for row in cleaned([ENGLISH, "cafÃ©"], counts)] == [ENGLISH]
    assert counts.dropped["mending_failed_with_RecursionError"]["count"] == 1


def config(**options: object) -> DataConfig:
    return DataConfig.model_validate({"name": "small", "sources": [{"kind": "files", "path": "a"}], "clean": options})


def collected(root: Path) -> Path:
    for prefix, texts in (("a", [ENGLISH, GERMAN, "cafÃ© " + ENGLISH, " "]), ("b", [ENGLISH + "\nShare"]), ("c", ["Menu"])):
        with shards.Writer(root / "collect", prefix) as writer:
            writer.write(table(texts))
    return root


def test_the_step_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    found = []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        folder = collected(tmp_path / engine.replace(":", "-")) / "clean"
        folder.mkdir()
        clean.run(config(languages=("en",)), folder)
        found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert found[0] == found[1]
    assert list(found[0]) == ["00000.parquet", "00001.parquet", "counts.json"]  # of the third shard nothing is left
    counts = tally.read(folder)
    assert counts["documents"] == 3
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {"empty": 1, "language_de": 1, "nothing_but_boilerplate_lines": 1}
    assert counts["changed"] == {"boilerplate_lines_share_buttons": 1, "encoding_repaired": 1}


def test_a_language_that_cannot_be_told_is_refused_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"clean.languages: \['english'\] are no languages .* every document would be dropped. Use codes of ISO 639-1"):
        clean.run(config(languages=("en", "english")), tmp_path / "clean")
