"""The chat in the terminal: a model of this process and an endpoint say the same; the exact prompt; old turns leave."""

import io

import pytest

from components.schema.config import BadInput
from components.schema.serving import ChatConfig
from components.serving import terminal
from components.serving.terminal import chat

QUESTIONS = "Hi\nWhat?\nTell me about soup\nWhy is that?\n"


def said(monkeypatch, capsys, text, **options):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    chat(ChatConfig(**options))
    return capsys.readouterr()


def test_a_model_and_an_endpoint_with_it_say_the_same(usual, small, monkeypatch, capsys):
    asked = {"max_new_tokens": 12, "temperature": 1.0, "seed": 6, "system": "Be brief."}
    here = said(monkeypatch, capsys, QUESTIONS, model=str(small), **asked)
    there = said(monkeypatch, capsys, QUESTIONS, model=usual.url, **asked)
    assert here.out == there.out and len(here.out.strip()) > 4


def test_the_exact_prompt_is_shown_on_request(usual, small, monkeypatch, capsys):
    for model in (str(small), usual.url):
        told = said(monkeypatch, capsys, "Hi\n", model=model, show_prompt=True, max_new_tokens=2, system="S")
        assert "<|system|>S<|end|><|user|>Hi<|end|><|assistant|>" in told.err and "the model reads 8 tokens" in told.err


def test_options_can_be_changed_while_talking(small, monkeypatch, capsys):
    told = said(monkeypatch, capsys, "/set temperature 9\n/set colour red\n/set max_new_tokens 1\nHi\n/quit\nnever read\n", model=str(small))
    assert "temperature" in told.err and "/set knows temperature, top_p" in told.err and len(told.out.splitlines()) <= 2


def test_the_oldest_turns_leave_when_the_context_is_full(small):
    speaker = terminal._Model(ChatConfig(model=str(small)))
    turns = [{"role": "system", "content": "S"}, *({"role": role, "content": f"{number:050d}"} for number in range(3) for role in ("user", "assistant")), {"role": "user", "content": "last"}]
    kept = terminal._fitting(speaker, turns, room=180, kept=1)
    assert [turn["content"].lstrip("0") for turn in kept] == ["S", "2", "2", "last"] and speaker.prompt(kept)[1] <= 180


@pytest.mark.parametrize(("model", "message"), [("nowhere", "is no checkpoint"), ("http://127.0.0.1:9", "does not answer")])
def test_who_cannot_be_talked_to_is_told_in_one_sentence(model, message):
    with pytest.raises(BadInput, match=message):
        chat(ChatConfig(model=model))


def test_an_answer_moves_no_cursor():
    assert terminal.visible("a\x1b[2Jb\n\tc\r🙂") == "a\ufffd[2Jb\n\tc\ufffd🙂"
