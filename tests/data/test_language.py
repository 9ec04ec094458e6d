"""Language identification: the compiled loop gives py3langid's own answers, and they are right on short real sentences."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from components.data.cleaning import language

SENTENCES = {
    "en": "The train to the coast leaves at nine and the children are already waiting.",
    "de": "Der Zug an die Küste fährt um neun, und die Kinder warten schon.",
    "fr": "Le train pour la côte part à neuf heures et les enfants attendent déjà.",
    "es": "El tren a la costa sale a las nueve y los niños ya están esperando.",
    "it": "Il treno per la costa parte alle nove e i bambini stanno già aspettando.",
    "pt": "O comboio para a costa parte às nove e as crianças já estão à espera.",
    "nl": "De trein naar de kust vertrekt om negen uur en de kinderen wachten al.",
    "ru": "Поезд к морю отправляется в девять, и дети уже ждут.",
    "zh": "开往海边的火车九点出发，孩子们已经在等了。",
    "ja": "海岸行きの電車は九時に出て、子供たちはもう待っています。",
    "ar": "يغادر القطار إلى الساحل في التاسعة والأطفال ينتظرون بالفعل.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_enough(code: str) -> None:
    [(found, probability)] = language.identify([SENTENCES[code]])
    assert found == code
    assert probability > 0.5


def test_the_compiled_loop_answers_as_py3langid_does() -> None:
    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    theirs.set_languages([code for code in set(theirs.nb_classes) if len(code) == 2 or code == language.NOTHING])
    texts = [*SENTENCES.values(), " ".join(SENTENCES.values()), "SHOUTING IN CAPITALS IS LOWERED FIRST", "x = y + 1", "Zdravo svete, kako si danas? Здраво свете!"]
    for text, (found, probability) in zip(texts, language.identify(texts), strict=True):
        expected, expected_probability = theirs.classify(text[: language.SAMPLE_CHARACTERS])
        assert found == (None if expected == language.NOTHING else expected)
        assert probability == pytest.approx(expected_probability, abs=0.01)


def test_the_answer_does_not_depend_on_the_batch() -> None:
    texts = list(SENTENCES.values())
    assert language.identify(texts) == [language.identify([text])[0] for text in texts]


def test_what_is_no_language_is_not_sure_of_one() -> None:
    for _, probability in language.identify(["", "1 2 3 4 5 6", "...", "\n\n"]):
        assert probability < 0.5
    assert language.identify([]) == []


def test_only_the_beginning_is_read() -> None:
    text = SENTENCES["de"] * 50
    assert language.identify([text + SENTENCES["en"] * 1000]) == language.identify([text])


def test_languages_are_of_iso_639_1() -> None:
    assert {"en", "de", "zh", "sw"} <= set(language.languages())
    assert all(len(code) == 2 for code in language.languages())
