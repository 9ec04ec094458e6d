"""An existing server behind ours: requests and streams pass through, with our names, limits, keys and counts."""

import json

import httpx
import openai
import pytest

from components.schema.config import BadInput, Unavailable
from components.schema.serving import ServeConfig
from components.serving.upstream import Upstream, Vllm
from tests.serving.conftest import events, until


@pytest.fixture
def behind(usual, served):
    """Ours before another of ours."""
    return served(engine=usual.url, name="front")


def test_answers_are_the_server_s_under_our_name(behind, usual):
    direct, through = usual.ask(seed=3), behind.ask(seed=3)
    assert through.json()["choices"] == direct.json()["choices"] and through.json()["usage"] == direct.json()["usage"]
    assert through.json()["model"] == "front" and through.headers["x-modelyard-model"] == "front/external"
    assert behind.metric("tokens_total", model="front", arm="main", kind="completion") == direct.json()["usage"]["completion_tokens"]


def test_streams_pass_through_and_are_counted_whether_the_client_asks_or_not(behind, usual):
    with openai.OpenAI(base_url=f"{behind.url}/v1", api_key="x", max_retries=0) as client:
        asked = {"model": "front", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0, "extra_body": {"ignore_eos": True}}
        parts = list(client.chat.completions.create(**asked, stream=True))
        counted = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        whole = client.chat.completions.create(**asked)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert all(part.choices for part in parts) and counted[-1].usage == whole.usage
    assert behind.metric("tokens_total", model="front", arm="main", kind="completion") == 27
    assert behind.metric("first_token_seconds_count", model="front", arm="main") == 3


def test_refusals_are_the_server_s_own_and_ours_come_first(behind):
    assert behind.ask(messages=[{"role": "user", "content": "x" * 300}]).json()["error"]["code"] == "context_length_exceeded"
    assert behind.ask(temprature=1).json()["error"]["param"] == "temprature"
    assert behind.ask(model="small").status_code == 404  # the name behind is nobody's business
    assert behind.http.post("/tokenize", json={"prompt": "Hi"}).json()["count"] == 2
    assert [model["id"] for model in behind.http.get("/v1/models").json()["data"]] == ["front", "front/external"]


def test_a_server_that_has_gone_is_a_502_and_one_that_comes_back_answers(small, served):
    from tests.serving.conftest import serving

    with serving(ServeConfig(model=str(small), port=0)) as first:
        behind = served(engine=first.url, name="front")
        assert behind.ask().status_code == 200
    assert behind.ask().status_code == 502 and behind.ask(stream=True).json()["error"]["code"] == "upstream_unavailable"
    with serving(ServeConfig(model=str(small), port=first.port)):
        assert behind.ask().status_code == 200


def test_a_stream_that_breaks_off_is_told_within_the_stream(served, small, monkeypatch):
    behind = served()

    async def broken(request):
        async def parts():
            yield b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
            raise httpx.ReadError("gone")

        return httpx.Response(200, content=parts())

    upstream = Upstream("http://nowhere.invalid", "front", rows=1, transport=httpx.MockTransport(broken))
    behind.endpoint.arms.main.version = upstream
    text = behind.ask(stream=True).text
    assert '"content":"a"' in text and '"code":"upstream_unavailable"' in text and "[DONE]" not in text
    until(lambda: upstream.busy_rows == 0)


def test_a_line_separator_within_an_answer_passes_through_however_the_stream_is_cut(served):
    text = "a\u2028b\x85c ü"
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False)
    sent = f"data: {chunk}\r\n\r\ndata: [DONE]\n\n".encode()

    async def server(request):
        async def parts():
            for k in range(len(sent)):
                yield sent[k : k + 1]

        return httpx.Response(200, content=parts())

    behind = served()
    behind.endpoint.arms.main.version = Upstream("http://nowhere.invalid", "front", rows=1, transport=httpx.MockTransport(server))
    (found,) = events(behind.ask(stream=True).text)
    assert found["choices"][0]["delta"]["content"] == text


def test_what_is_no_server_is_told(usual):
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9/v1 does not answer"):
        Upstream("http://127.0.0.1:9", "x", 1).warm()
    with pytest.raises(BadInput, match="names no model"):
        Upstream(f"{usual.url}/nothing", "x", 1).warm()


def test_without_vllm_installed_one_error_says_so(small, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match="no program `vllm` is installed here"):
        Vllm(small, "x", "1", None, 1)


def test_a_wrong_engine_is_refused_before_anything_starts():
    with pytest.raises(BadInput, match=r"serve: options: engine='tgi' is none of auto, own, vllm and no URL"):
        ServeConfig.asked("serve", model="x", engine="tgi")
