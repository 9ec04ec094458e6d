"""The client against a real server: what it asks, what it does without, when it waits, when it gives up, and that the key stays where it is."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from components.feedback.critic import EndpointCritic
from components.feedback.endpoint import Endpoint, Refused
from components.feedback.feedback import run
from components.schema.config import BadInput
from components.schema.feedback import CriticConfig

from .conftest import rule

CHAT = [{"role": "user", "content": "Answer A: x\n\nAnswer B: likes soup\n\nReply with one letter, A or B."}]
SECRET = "sk-not-to-be-seen"


def error(status: int, message: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    return status, json.dumps({"error": {"message": message}}), headers


def test_the_key_goes_into_the_header_and_nowhere_else(configured, given, served, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    server = served(rule())
    config = configured({"url": server.url, "key_variable": "JUDGE_KEY"})
    run(config, replace(given, critic=None), tmp_path / "out")
    assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {SECRET}"}
    assert not any(SECRET in json.dumps(body) for _, _, body in server.requests)
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 5 and not any(SECRET in text for text in (*written, config.model_dump_json(), *capfd.readouterr(), caplog.text))
    server.before = lambda body, number: error(401, "wrong key")
    with pytest.raises(
        BadInput, match=r"answers 401 for model 'x' \(wrong key\), so nothing can be judged: it wants a key, or another one.*key_variable"
    ) as caught:
        run(config, replace(given, critic=None), tmp_path / "again")
    assert SECRET not in str(caught.value)


def test_without_a_key_no_header_is_sent(served, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = served(rule())
    EndpointCritic(CriticConfig(model="x", url=server.url))
    assert "Authorization" not in server.requests[0][1]


def test_a_key_is_not_sent_where_others_can_read_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(BadInput, match=r"critic: http://judge.example/v1 is not encrypted and OPENAI_API_KEY holds a key.*Use https") as caught:
        EndpointCritic(CriticConfig(model="x", url="http://judge.example/v1"))
    assert SECRET not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key(served):
    other, server = served(rule()), served(rule())
    server.before = lambda body, number: (302, "", {"Location": other.url + "/chat/completions"})
    with pytest.raises(BadInput, match=r"answers 302 for model 'x' \(no text\).*it has moved. Correct critic.url"):
        Endpoint(server.url, "x", SECRET).chat(CHAT)
    assert len(server.requests) == 1 and not other.requests


@pytest.mark.parametrize("status, words", [(404, "no such model"), (403, "may not use this model"), (405, "no OpenAI-compatible endpoint")])
def test_what_cannot_pass_is_not_tried_again(served, status, words):
    server = served(rule())
    server.before = lambda body, number: error(status, "no")
    with pytest.raises(BadInput, match=words):
        Endpoint(server.url, "x").chat(CHAT)
    assert len(server.requests) == 1


def test_what_may_pass_is_tried_again_after_the_pause_that_the_endpoint_asks_for(served):
    server, pauses = served(rule()), []
    answers = {
        1: error(429, "slow down", **{"Retry-After": "7"}),
        2: error(500, "oops"),
        3: (200, "<html>", {}),
        4: error(503, "soon", **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    }
    server.before = lambda body, number: answers.get(number)
    choice = Endpoint(server.url, "x", pause=pauses.append).chat(CHAT)
    assert choice["message"]["content"] == "B" and len(server.requests) == 5 and pauses == [7.0, 1.0, 2.0, 4.0]


def test_an_endpoint_that_never_recovers_is_given_up_with_its_last_words(served):
    server, pauses = served(rule()), []
    server.before = lambda body, number: error(500, f"oops {number}")
    with pytest.raises(BadInput, match=r"answers 500 \(oops 3\) after 3 attempts"):
        Endpoint(server.url, "x", retries=2, pause=pauses.append).chat(CHAT)
    assert pauses == [0.5, 1.0]


def test_an_endpoint_that_does_not_answer_in_time_counts_as_lost(served):
    server = served(lambda messages, body: (__import__("time").sleep(1), ("A", None))[1])
    with pytest.raises(BadInput, match=r"cannot be reached \(timed out\) after 2 attempts"):
        Endpoint(server.url, "x", timeout_s=0.1, retries=1, pause=lambda seconds: None).chat(CHAT)


def test_options_that_the_endpoint_does_not_know_are_left_out_from_then_on(served):
    def before(body, number):
        if "top_logprobs" in body:
            return error(400, "Unrecognized request argument supplied: top_logprobs")
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
        return error(422, "temperature: extra fields not permitted") if "temperature" in body else None

    server = served(rule())
    server.before = before
    endpoint = Endpoint(server.url, "x")
    for _ in range(2):
        assert endpoint.chat(CHAT, max_tokens=8, temperature=0.0, logprobs=True, top_logprobs=20, seed=1)["message"]["content"] == "B"
    sent = [set(body) - {"model", "messages"} for _, _, body in server.requests]
    assert len(sent) == 5 and sent[3] == sent[4] == {"max_completion_tokens", "seed"} and server.requests[-1][2]["max_completion_tokens"] == 8


def test_a_request_that_is_refused_for_what_it_says_is_not_repeated(served):
    server = served(rule())
    server.before = lambda body, number: error(400, "This model's maximum context length is 512 tokens. Shorten messages or max_tokens")
    with pytest.raises(Refused, match="maximum context length is 512"):
        Endpoint(server.url, "x").chat(CHAT, max_tokens=8, temperature=0.0)
    assert len(server.requests) == 1
    with pytest.raises(BadInput, match=r"refuses the simplest request \(This model's maximum"):
        EndpointCritic(CriticConfig(model="x", url=server.url))


@pytest.mark.parametrize("logprobs, wanted", [(True, 1 / (1 + 2.718281828459045**2)), (False, 0.0)])
def test_a_preference_is_the_probability_of_the_label_where_it_is_given_and_the_word_where_not(served, logprobs, wanted):
    server = served(rule(logprobs=logprobs))
    assert EndpointCritic(CriticConfig(model="x", url=server.url)).prefer([CHAT]) == [pytest.approx(wanted)]


def test_the_label_is_found_behind_other_tokens_and_its_spellings_count_together(served):
    def token(text, *top):
        return {"token": text, "logprob": -0.1, "top_logprobs": [{"token": name, "logprob": logprob} for name, logprob in top]}

    served_tokens = [token("Answer", ("Answer", -0.1), ("A", -3.0)), token(" B", (" B", -0.7), ("B", -2.0), (" A", -1.2), (" C", -1.0))]
    server = served(rule())
    reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Answer B"}, "logprobs": {"content": served_tokens}}]})
    server.before = lambda body, number: (200, reply, {})
    e = 2.718281828459045
    assert EndpointCritic(CriticConfig(model="x", url=server.url)).prefer([CHAT]) == [pytest.approx(e**-1.2 / (e**-1.2 + e**-0.7 + e**-2.0))]
