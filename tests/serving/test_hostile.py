"""What is wrong with a request is said with the right status in OpenAI's shape, and the endpoint answers the next one."""

import http.client
import json
import socket
import time

import pytest

from components.serving.replies import event
from tests.serving.conftest import until

GOOD = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True)
def lives(usual):
    """Whatever a test did, the endpoint answers afterwards, and nothing is left running."""
    yield
    assert usual.ask(max_tokens=4).status_code == 200
    until(lambda: not usual.endpoint.arms.main.version.engine.busy and usual.endpoint.under_way == 0, 10)


def error(reply, status):
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return found


def answered(connection):
    """The status of one whole answer."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    reply.read()
    return reply.status


@pytest.mark.parametrize(("body", "field"), [
    ({**GOOD, "messages": "Hi"}, "messages"), ({**GOOD, "messages": []}, "messages"), ({**GOOD, "messages": [{"role": "user"}]}, "messages.0.content"),
    ({**GOOD, "messages": [{"role": "pirate", "content": "Hi"}]}, "messages.0.role"), ({**GOOD, "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({**GOOD, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content.0.image_url"),
    ({**GOOD, "max_tokens": "10"}, "max_tokens"), ({**GOOD, "max_tokens": 0}, "max_tokens"), ({**GOOD, "max_tokens": -1}, "max_tokens"), ({**GOOD, "max_tokens": 1.5}, "max_tokens"), ({**GOOD, "max_tokens": True}, "max_tokens"),
    ({**GOOD, "temperature": 3}, "temperature"), ({**GOOD, "temperature": "hot"}, "temperature"), ({**GOOD, "top_p": 0}, "top_p"), ({**GOOD, "n": 1000}, "n"), ({**GOOD, "stream": "yes"}, "stream"),
    ({**GOOD, "stop": [1]}, "stop"), ({**GOOD, "stop": ["x"] * 99}, "stop"), ({**GOOD, "top_logprobs": 99, "logprobs": True}, "top_logprobs"), ({**GOOD, "seed": 1.5}, "seed"), ({**GOOD, "metadata": {"a": 1}}, "metadata.a"),
    ({**GOOD, "tools": []}, "tools"), ({**GOOD, "temprature": 1}, "temprature"), ({**GOOD, "presence_penalty": 0.5}, "presence_penalty"), ({**GOOD, "user": "u" * 1000}, "user"),
])  # fmt: skip
def test_a_wrong_or_unknown_field_is_named(usual, body, field):
    reply = usual.http.post("/v1/chat/completions", json=body)
    assert error(reply, 400)["param"] == field


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"messages": NaN}', b"[" * 60_000, b'{"a":' * 9_000, b'{"max_tokens": 1' + b"0" * 6_000 + b"}", b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 4}'])
def test_what_is_no_request_at_all_is_a_400(usual, raw):
    error(usual.http.post("/v1/chat/completions", content=raw), 400)


def test_an_option_at_the_value_that_means_nothing_is_let_through(usual):
    assert usual.ask(presence_penalty=0.0, frequency_penalty=0, top_k=-1, n=1, stop=None, response_format={"type": "text"}, user="u").status_code == 200


def test_text_that_no_template_foresees_is_read_as_text(usual):
    for content in ("{{ 7 * 7 }}", "\0\x1b[31m", "<|end|>" * 3, "‮txt", "🙂" * 8):
        assert usual.ask(messages=[{"role": "user", "content": content}]).status_code == 200


def test_what_some_clients_take_for_a_line_end_stays_within_an_event():
    text = "a\x85b\u2028c\u2029d\x0be\x1cf\r\n"
    sent = event({"text": text}).decode()
    assert len(sent.splitlines()) == 2 and json.loads(sent.removeprefix("data: ")) == {"text": text}


def test_prompt_and_answer_together_must_fit_the_context(usual):
    found = error(usual.ask(messages=[{"role": "user", "content": "x" * 200}], max_tokens=100), 400)
    assert found["code"] == "context_length_exceeded" and "context is 256" in found["message"]
    error(usual.ask(messages=[{"role": "user", "content": "x" * 60_000}]), 400)  # longer than any token could be: not even read
    error(usual.ask("/v1/completions", prompt=[5] * 300), 400)
    assert error(usual.ask("/v1/completions", prompt=[5, 10**9]), 400)["param"] == "prompt"
    assert error(usual.ask("/v1/completions", prompt=""), 400)["param"] == "prompt"


@pytest.mark.parametrize("prompt", [[], [[]], [[5], []], [[5, -1]], [[5, 10**9]], [[5], "text"], [[[5]]], [[True]], [5.0], {"text": "a"}, None])
def test_a_prompt_of_the_wrong_shape_is_a_400_that_names_it(usual, prompt):
    found = error(usual.ask("/v1/completions", prompt=prompt, echo=True, logprobs=1), 400)
    assert found["param"] and found["param"].startswith("prompt")


def test_unknown_models_routes_and_methods(usual):
    assert "There is: small, small/local" in error(usual.ask(model="gpt-9"), 404)["message"]
    assert error(usual.http.post("/v1/embeddings", json={}), 404)["code"] == "unknown_url"
    reply = usual.http.get("/v1/chat/completions")
    assert error(reply, 405)["code"] == "method_not_allowed" and "POST" in reply.headers["allow"]
    assert usual.metric("requests_total", model="", version="", arm="", route="other", status="404") >= 1


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_refused_and_the_client_hears_it(usual, chunked):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
    reply = usual.http.post("/v1/chat/completions", content=iter([body[i : i + 65536] for i in range(0, len(body), 65536)]) if chunked else body)
    assert error(reply, 413)["code"] == "request_too_large" and reply.headers["connection"] == "close"


def test_a_large_request_is_refused_before_it_is_sent(usual):
    with usual.raw(f"{HEAD}content-length: 10000000\r\n\r\n".encode()) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")  # and not a byte of the body was there


@pytest.mark.parametrize(("sent", "status"), [("POST /v1/chat", b"408"), (f"{HEAD}content-length: 50\r\n\r\n" + '{"mess', b"408"), (f"{HEAD}content-length: 5", b"408"), ("", b"")])
def test_who_sends_too_slowly_is_given_up(usual, sent, status):
    began = time.monotonic()
    with usual.raw(sent.encode()) as connection:
        answer = b""
        while part := connection.recv(4096):  # until it is closed
            answer += part
    assert answer[9:12] == status and 0.3 < time.monotonic() - began < 30


def test_a_slow_client_is_given_up_although_it_keeps_sending(usual):
    with usual.raw(f"{HEAD}content-length: 5000\r\n\r\n".encode()) as connection:
        connection.settimeout(0.2)
        answer, deadline = b"", time.monotonic() + 8
        while not answer and time.monotonic() < deadline:
            connection.sendall(b" ")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert answer[9:12] == b"408"


@pytest.mark.parametrize("raw", [b"\0\1\2\3\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100_000, b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", b"x: y\r\n" * 20_000])
def test_what_is_no_http_is_answered_or_closed(usual, raw):
    with usual.raw() as connection:
        try:
            connection.sendall(raw)
            answer = connection.recv(4096)
        except ConnectionError:
            return
        assert answer == b"" or answer[9:10] == b"4"


def test_half_open_connections_do_not_keep_others_out(usual):
    waiting = [usual.raw(b"POST /v1/chat/comple") for _ in range(100)]
    assert usual.ask(max_tokens=4).status_code == 200
    for connection in waiting:
        connection.close()


def test_a_request_after_a_refusal_may_use_the_same_connection(usual):
    good = json.dumps(GOOD)
    with usual.raw(f"{HEAD}content-length: 1\r\n\r\n{{".encode()) as connection:
        assert answered(connection) == 400
        connection.sendall(f"{HEAD}content-length: {len(good)}\r\nconnection: close\r\n\r\n{good}".encode())
        assert answered(connection) == 200


def test_a_reset_amid_everything_is_survived(usual):
    for cut in (10, 60, 130, len(HEAD) + 30):
        data = f"{HEAD}content-length: {len(json.dumps(GOOD))}\r\n\r\n{json.dumps(GOOD)}".encode()
        connection = usual.raw(data[:cut])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
        connection.close()
