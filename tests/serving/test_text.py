"""An answer's text while it comes: the parts make the whole, characters are whole, stop strings end it and are never shown."""

import pytest

from components.models.build import load_tokenizer
from components.serving.text import Text


@pytest.fixture(scope="module")
def words(small):
    return load_tokenizer(small)


def came(words, ids, stops=()):
    """The parts, and whether a stop string ended it."""
    text, parts = Text(words, stops), []
    for token in ids:
        part, ended = text.add(token)
        parts.append(part)
        if ended:
            return parts, True
    return [*parts, text.rest()], False


@pytest.mark.parametrize("said", ["plain words", "é à la 日本語 and 🙂 done", "ends within 🙂", " two  spaces ", ""])
def test_parts_make_the_whole_text_and_no_character_comes_in_pieces(words, said):
    ids = words(said, add_special_tokens=False)["input_ids"]
    parts, _ = came(words, ids)
    assert "".join(parts) == said and not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_text_come_as_replacement_characters_and_hold_up_nothing(words):
    broken = words("🙂", add_special_tokens=False)["input_ids"][:1] * 30
    parts, _ = came(words, [*broken, *words("ok", add_special_tokens=False)["input_ids"]])
    assert "".join(parts).endswith("ok") and any(parts[:20])


def test_special_tokens_are_not_shown(words):
    assert "".join(came(words, [4, *words("a", add_special_tokens=False)["input_ids"], 4])[0]) == "a"


@pytest.mark.parametrize(("stops", "shown", "ended"), [
    (("STOP",), "before ", True), (("zzz",), "before STOP after", False), (("after", "STOP"), "before ", True), (("r",), "befo", True), (("after!",), "before STOP after", False),
])  # fmt: skip
def test_a_stop_string_ends_the_answer_and_no_part_of_it_was_shown(words, stops, shown, ended):
    parts, stopped = came(words, words("before STOP after", add_special_tokens=False)["input_ids"], stops)
    assert ("".join(parts), stopped) == (shown, ended)
