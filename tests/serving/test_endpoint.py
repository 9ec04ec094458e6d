"""The endpoint as the official client sees it: chat, completions, streams, log-probabilities, models, and what operators ask."""

import json
import threading
import time

import openai
import pytest
import torch

from components.models.generate import generate
from tests.serving.conftest import events, until

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]


@pytest.fixture
def client(usual):
    with openai.OpenAI(base_url=f"{usual.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def written(network, messages, count):
    """The model's own greedy answer."""
    model, tokenizer = network
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    new = generate(model, [ids], stop_ids=[4, 0], pad_id=0, max_new_tokens=count)[0]
    return ids, new, tokenizer.decode(new, skip_special_tokens=True)


def test_a_chat_is_answered_as_the_model_would_and_counted(client, network):
    answer = client.chat.completions.create(model="small", messages=CHAT, max_tokens=12, temperature=0)
    ids, new, text = written(network, CHAT, 12)
    assert len(text) > 4 and answer.choices[0].message.content == text and answer.choices[0].message.role == "assistant"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(new))
    assert answer.choices[0].finish_reason == ("stop" if new[-1] in (4, 0) else "length")
    assert answer.model == "small" and answer.system_fingerprint == "small-local" and answer.object == "chat.completion"


def test_a_stream_s_parts_make_the_same_answer_and_the_last_part_counts(client):
    whole = client.chat.completions.create(model="small", messages=CHAT, max_tokens=24, temperature=1, seed=5, extra_body={"ignore_eos": True})
    parts = list(client.chat.completions.create(model="small", messages=CHAT, max_completion_tokens=24, temperature=1, seed=5, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant" and parts[-1].usage == whole.usage and parts[-2].choices[0].finish_reason == "length"
    assert len({part.id for part in parts}) == 1


def test_log_probabilities_are_the_model_s_and_a_stream_tells_the_same(client, network):
    asked = {"model": "small", "messages": CHAT, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3, "extra_body": {"ignore_eos": True}}
    told = client.chat.completions.create(**asked).choices[0].logprobs.content
    model, tokenizer = network
    ids = written(network, CHAT, 1)[0]
    for one in told:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = int(expected.argmax())
        assert one.token == tokenizer.decode([best]) and one.logprob == pytest.approx(float(expected[best]), abs=1e-3)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-3)
        ids = [*ids, best]
    streamed = [one for part in client.chat.completions.create(**asked, stream=True) if part.choices and part.choices[0].logprobs for one in part.choices[0].logprobs.content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in told], abs=1e-5)


def test_several_choices_differ_and_each_has_its_number(client):
    answer = client.chat.completions.create(model="small", messages=CHAT, max_tokens=16, n=3, seed=1, temperature=1.5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len({choice.message.content for choice in answer.choices}) == 3
    parts = list(client.chat.completions.create(model="small", messages=CHAT, max_tokens=16, n=3, seed=1, temperature=1.5, stream=True))
    for choice in answer.choices:
        mine = [part.choices[0] for part in parts if part.choices and part.choices[0].index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content and mine[-1].finish_reason == choice.finish_reason


def test_completions_go_on_from_a_text_from_tokens_and_from_several(client, network):
    asked = {"model": "small", "max_tokens": 8, "temperature": 0}
    ids = network[1]("Once upon", add_special_tokens=False)["input_ids"]
    one = client.completions.create(prompt="Once upon", **asked)
    assert client.completions.create(prompt=ids, **asked).choices[0].text == one.choices[0].text
    several = client.completions.create(prompt=["Once upon", "Twice"], echo=True, n=2, **asked)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3] and several.choices[1].text == "Once upon" + one.choices[0].text
    assert several.choices[2].text.startswith("Twice") and several.usage.prompt_tokens == len(ids) + 5
    told = client.completions.create(prompt="Once upon", logprobs=2, **asked, extra_body={"ignore_eos": True}).choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 8 and all(len(top) <= 2 for top in told.top_logprobs)
    streamed = "".join(part.choices[0].text for part in client.completions.create(prompt="Once upon", echo=True, stream=True, **asked))
    assert streamed == "Once upon" + one.choices[0].text


def test_the_tokens_of_an_echoed_prompt_are_told_with_their_odds(usual, client, network):
    model, tokenizer = network
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Once upon a time ü", "Twice")]
    asked = {"model": "small", "temperature": 0, "echo": True, "logprobs": 3, "max_tokens": 2, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(prompt=prompts, **asked)
    for choice, ids in zip(answer.choices, prompts, strict=True):
        told = choice.logprobs
        with torch.no_grad():
            shares = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids) + 2
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert told.token_logprobs[1 : len(ids)] == pytest.approx([float(shares[i, id]) for i, id in enumerate(ids[1:])], abs=1e-4)
        assert [max(top.values()) for top in told.top_logprobs[1 : len(ids)]] == pytest.approx(shares[:-1].max(-1).values.tolist(), abs=1e-4)
        assert told.text_offset == sorted(told.text_offset) and told.text_offset[len(ids)] == len(tokenizer.decode(ids)) and choice.text.startswith(tokenizer.decode(ids))
    refused = usual.http.post("/v1/completions", json={"model": "small", "prompt": "a", "echo": True, "logprobs": 1, "stream": True})
    assert refused.status_code == 400 and "Leave stream out" in refused.json()["error"]["message"]


def test_lm_eval_scores_the_endpoint_as_it_scores_the_folder(usual, small):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    pairs = [("Once upon a time", " there was"), ("Twice", "!"), ("What is 3 plus 4?", " 7"), ("", "a beginning")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    served = LocalCompletionsAPI(base_url=f"{usual.url}/v1/completions", model="small", tokenizer=str(small), max_length=200, batch_size=3)
    here = HFLM(pretrained=str(small), batch_size=1, device="cpu", max_length=200)
    for found, wanted in zip(served.loglikelihood(asked), here.loglikelihood(asked), strict=True):
        assert found[0] == pytest.approx(wanted[0], abs=1e-3) and found[1] == wanted[1]


def test_a_stop_string_ends_an_answer_before_it(client):
    asked = {"model": "small", "messages": CHAT, "max_tokens": 40, "temperature": 1, "seed": 11, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[10:13]
    cut = client.chat.completions.create(**asked, stop=[stop, "never said"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_models_tokenize_health_and_metrics(usual, client, network):
    assert [model.id for model in client.models.list()] == ["small", "small/local"]
    told = usual.http.post("/tokenize", json={"messages": CHAT}).json()
    ids = written(network, CHAT, 1)[0]
    assert told == {"count": len(ids), "tokens": ids, "max_model_len": 256, "prompt": network[1].apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)}
    assert usual.http.post("/tokenize", json={"prompt": "Hi"}).json()["tokens"] == network[1]("Hi", add_special_tokens=False)["input_ids"]
    assert usual.http.get("/health").json() == {"status": "ok"} and usual.http.get("/ready").json()["arms"] == {"main": "small-local"}
    before = usual.metric("tokens_total", model="small", arm="main", kind="completion")
    answer = usual.ask()
    assert answer.headers["x-modelyard-model"] == "small/local" and answer.headers["x-modelyard-arm"] == "main"
    text = usual.http.get("/metrics").text
    for line in (
        'modelyard_serving_requests_total{arm="main",model="small",route="chat",status="200",version="local"}', 'modelyard_serving_request_seconds_bucket{arm="main",le="0.01",model="small",route="chat"}',
        'modelyard_serving_first_token_seconds_count{arm="main",model="small"}', 'modelyard_serving_running{arm="main"} 0.0', "modelyard_serving_waiting 0.0",
        'modelyard_serving_model_info{arm="main",model="small",version="local"} 1.0',
    ):  # fmt: skip
        assert line in text
    assert usual.metric("tokens_total", model="small", arm="main", kind="completion") == before + answer.json()["usage"]["completion_tokens"]


def test_many_clients_at_once_get_what_each_would_get_alone(usual):
    asked = [{"messages": [{"role": "user", "content": f"Number {i}"}], "max_tokens": 5 + i, "temperature": 1, "seed": i, "stream": bool(i % 2)} for i in range(24)]

    def said(body):
        reply = usual.ask(**body)
        assert reply.status_code == 200
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(reply.text)) if body["stream"] else reply.json()["choices"][0]["message"]["content"]

    alone, together = [said(body) for body in asked], [""] * len(asked)
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, said(asked[i]))) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert together == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(usual, stream):
    engine = usual.endpoint.arms.main.version.engine
    step = engine.live.step
    engine.live.step = lambda tokens: time.sleep(0.02) or step(tokens)
    try:
        body = json.dumps({"messages": CHAT, "max_tokens": 200, "ignore_eos": True, "stream": stream})
        connection = usual.raw(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        answer = until(lambda: engine.rows)[0]
        connection.close()
        until(lambda: not engine.busy, 3.0)
        assert answer.count < 200
    finally:
        engine.live.step = step
