"""Versions and arms: a new champion takes over without a dropped request, a canary has its share, a shadow only compares; keys, limits, consent, the end."""

import json
import threading
import time

import pytest

from components.registry import models
from components.schema.config import BadInput
from components.serving.collect import scrubbed
from components.serving.protocol import Refusal
from tests.serving.conftest import events, until

HOT = {"temperature": 1, "max_tokens": 30, "ignore_eos": True}


@pytest.fixture
def registry(two_models, monkeypatch):
    """Where names point at: a dictionary in place of MLflow (with MLflow: test_server.py)."""
    points = {"models:/yard@champion": "1"}

    def name_and_version(uri):
        if uri not in points:
            raise BadInput(f"registry: {uri} does not exist")
        return "yard", points[uri]

    monkeypatch.setattr(models, "name_and_version", name_and_version)
    monkeypatch.setattr(models, "fetch", lambda uri: two_models[int(uri.rpartition("/")[2]) - 1])
    return points


def slowly(endpoint, pause_s=0.01):
    """The version in service takes this long for a step."""
    engine = endpoint.arms.main.version.engine
    step = engine.live.step
    engine.live.step = lambda tokens: time.sleep(pause_s) or step(tokens)


def test_a_new_champion_takes_over_and_no_request_is_dropped(registry, served):
    there = served(model="models:/yard@champion")
    slowly(there.endpoint)
    first, statuses, versions, stop = there.endpoint.arms.main.version, [], [], threading.Event()

    def client(number):
        while not stop.is_set():
            reply = there.ask(**HOT, seed=number, stream=bool(number % 2))
            statuses.append(reply.status_code)
            told = {chunk["system_fingerprint"] for chunk in events(reply.text)} if number % 2 else {reply.json()["system_fingerprint"]}
            assert len(told) == 1  # an answer ends on the version that it began on
            versions.extend(told)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for one in clients:
        one.start()
    until(lambda: len(versions) > 8)
    registry["models:/yard@champion"] = "2"
    until(lambda: there.endpoint.arms.main.version.version == "2")
    until(lambda: versions[-16:].count("yard-2") == 16)
    stop.set()
    for one in clients:
        one.join(30)
    assert set(statuses) == {200} and versions[0] == "yard-1" and first.engine.join(10)  # the old engine is gone
    assert there.metric("model_info", model="yard", version="2", arm="main") == 1 and there.metric("model_info", model="yard", version="1", arm="main") == 0
    assert there.metric("requests_total", model="yard", version="1", arm="main", route="chat", status="200") > 0


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_in_service_and_is_told_once(registry, served, two_models, tmp_path, monkeypatch, caplog):
    there = served(model="models:/yard@champion")
    monkeypatch.setattr(models, "fetch", lambda uri: tmp_path)
    registry["models:/yard@champion"] = "2"
    until(lambda: "does not exist" in caplog.text)
    time.sleep(0.3)
    assert caplog.text.count("config.json") + caplog.text.count("tokenizer.json") == 1
    assert there.ask().json()["system_fingerprint"] == "yard-1"


def test_while_nothing_is_there_it_lives_is_not_ready_and_says_so(registry, served):
    del registry["models:/yard@champion"]
    there = served(ready=False, model="models:/yard@champion", wait=True)
    assert there.http.get("/health").status_code == 200 and there.http.get("/ready").status_code == 503
    reply = there.ask()
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "not_ready" and reply.headers["retry-after"] == "5"
    registry["models:/yard@champion"] = "1"
    until(lambda: there.http.get("/ready").status_code == 200)
    assert there.ask().status_code == 200


def test_a_canary_answers_its_share_of_users_always_the_same_ones(registry, served):
    registry["models:/yard@challenger"] = "2"
    there = served(model="models:/yard@champion", canary="models:/yard@challenger", canary_share=0.3)
    until(lambda: there.endpoint.arms.canary.version)
    by_user = {f"user {i}": there.ask(user=f"user {i}", max_tokens=1).headers["x-modelyard-arm"] for i in range(60)}
    assert 8 <= list(by_user.values()).count("canary") <= 30  # 18 expected; outside is less likely than one in a thousand
    assert all(there.ask(user=user, max_tokens=1).headers["x-modelyard-arm"] == arm for user, arm in list(by_user.items())[:10])
    assert there.ask(model="yard/2").headers["x-modelyard-arm"] == "canary" and there.ask(model="models:/yard@champion").headers["x-modelyard-arm"] == "main"
    assert there.metric("first_token_seconds_count", model="yard", arm="canary") > 0
    registry["models:/yard@champion"] = "2"  # the challenger has become champion: one arm is enough
    until(lambda: there.endpoint.arms.main.version.version == "2")
    assert {there.ask(user=f"user {i}", max_tokens=1).headers["x-modelyard-arm"] for i in range(10)} == {"main"}


def test_shares_of_users_grow_without_moving_those_who_were_in(registry, served):
    registry["models:/yard@challenger"] = "2"
    there = served(model="models:/yard@champion", canary="models:/yard@challenger")
    until(lambda: there.endpoint.arms.canary.version)
    arms, chosen = there.endpoint.arms, {}
    for share in (0.0, 0.2, 0.5, 1.0):
        object.__setattr__(arms, "config", arms.config.model_copy(update={"canary_share": share}))
        chosen[share] = {who for who in map(str, range(400)) if arms.choose(None, who)[0].name == "canary"}
    assert chosen[0.0] == set() and len(chosen[1.0]) == 400 and chosen[0.2] < chosen[0.5] and 50 < len(chosen[0.2]) < 110
    with pytest.raises(Refusal, match="There is: yard, yard/1, yard/2"):
        arms.choose("yard/3", None)


@pytest.mark.parametrize(("version", "outcome"), [("1", "same"), ("2", "different")])
def test_a_shadow_compares_and_sends_nothing(registry, served, version, outcome):
    registry["models:/yard/9"] = version
    there = served(model="models:/yard@champion", shadow="models:/yard/9")
    until(lambda: there.endpoint.arms.shadow.version)
    answers = [there.ask(**HOT, seed=seed, n=2) for seed in range(3)]
    assert {answer.json()["system_fingerprint"] for answer in answers} == {"yard-1"}
    until(lambda: there.metric("shadow_total", outcome=outcome) == 3)
    assert there.metric("tokens_total", model="yard", arm="main", kind="completion") == 180


def test_a_shadow_that_is_behind_drops_and_counts_and_the_main_arm_goes_on(registry, served):
    registry["models:/yard/9"] = "2"
    there = served(model="models:/yard@champion", shadow="models:/yard/9")
    until(lambda: there.endpoint.arms.shadow.version)
    engine = there.endpoint.arms.shadow.version.engine
    gate, step = threading.Event(), engine.live.step
    engine.live.step = lambda tokens: gate.wait(30) and step(tokens)
    for _ in range(40):
        assert there.ask(max_tokens=2, n=2, ignore_eos=True).status_code == 200
    assert there.metric("shadow_total", outcome="dropped") == 8  # 32 pairs are what may wait
    gate.set()
    until(lambda: there.metric("shadow_total", outcome="same") + there.metric("shadow_total", outcome="different") == 32)


def test_only_known_keys_are_served_each_with_its_own_limits_and_none_is_logged(small, served, monkeypatch, caplog):
    monkeypatch.setenv("MODELYARD_SERVE_KEYS", "ann:ann-has-a-long-key,bob:bob-has-a-long-key")
    there = served(requests_per_minute=3)
    for headers in (None, {"authorization": "Bearer wrong-wrong-wrong"}, {"authorization": "Basic ann-has-a-long-key"}, {"authorization": "Bearer"}, {"authorization": b"Bearer \xff\xfe"}):
        reply = there.ask(headers=headers)
        assert reply.status_code == 401 and reply.json()["error"]["type"] == "authentication_error"
    assert there.http.get("/v1/models").status_code == 401 and there.http.get("/health").status_code == 200
    ann = {"authorization": "Bearer ann-has-a-long-key"}
    assert [there.ask(headers=ann).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert there.ask(headers={"authorization": "bearer bob-has-a-long-key"}).status_code == 200
    reply = there.ask(headers=ann)
    assert reply.json()["error"]["code"] == "rate_limit_exceeded" and 1 <= int(reply.headers["retry-after"]) <= 20
    assert there.metric("refused_total", reason="rate_limit_exceeded") == 2 and there.metric("refused_total", reason="invalid_api_key") == 6
    assert "long-key" not in caplog.text and "wrong-wrong" not in caplog.text


def test_tokens_are_reserved_and_what_was_not_used_comes_back(served):
    there = served(tokens_per_minute=200)
    used = there.ask(max_tokens=100, stop=["never said"]).json()["usage"]["total_tokens"]
    left = 200 - used
    assert there.ask(max_tokens=left + 40).status_code == 429
    assert there.ask(max_tokens=left - 40).status_code == 200


def test_more_than_may_wait_is_refused_with_429_and_the_rest_is_answered(served):
    there = served(running=2, waiting=3)
    slowly(there.endpoint)
    statuses, lock = [], threading.Lock()

    def client():
        reply = there.ask(**HOT)
        with lock:
            statuses.append((reply.status_code, reply.headers.get("retry-after")))

    clients = [threading.Thread(target=client) for _ in range(12)]
    for one in clients:
        one.start()
    until(lambda: there.http.get("/metrics").text.count("modelyard_serving_waiting 3.0") or len(statuses) == 12)
    for one in clients:
        one.join(30)
    assert set(statuses) == {(200, None), (429, "1")} and statuses.count((200, None)) >= 5
    assert there.metric("refused_total", reason="queue_full") == statuses.count((429, "1"))


def test_requests_are_kept_where_their_sender_consents_and_without_personal_data(small, served, tmp_path):
    there = served(collect=tmp_path / "kept", collect_share=1.0)
    secret = [{"role": "user", "content": "Write to jane@doe.org"}]
    there.ask(messages=secret)
    there.ask(messages=secret, metadata={"consent": "no"})
    there.ask(messages=secret, metadata={"consent": "training"})
    there.ask(messages=secret, headers={"x-modelyard-consent": "training"}, stream=True)
    there.ask("/v1/completions", prompt="jane@doe.org", metadata={"consent": "training"})
    lines = until(lambda: [json.loads(line) for path in (tmp_path / "kept").glob("*.jsonl") for line in path.read_text().splitlines()])
    lines = until(lambda: len(found := [json.loads(line) for path in (tmp_path / "kept").glob("*.jsonl") for line in path.read_text().splitlines()]) == 2 and found)
    assert [line["messages"][0]["content"] for line in lines] == ["Write to <EMAIL>"] * 2 and lines[0]["placeholders"] == 1
    assert all(line["messages"][1]["role"] == "assistant" and line["kind"] == "served" for line in lines)


def test_what_is_kept_is_a_chat_as_the_data_line_reads_it():
    from components.data.dialogue.shapes import CHATS, convert

    line = scrubbed({"messages": [{"role": "user", "content": "Call (212) 555-0187."}, {"role": "assistant", "content": "No."}], "kind": "served", "model": "yard/1", "at": "x"})
    shape, items, _ = convert(line, CHATS)
    assert shape == "openai_messages" and items[0]["messages"][0]["content"] == "Call <PHONE>."


def test_at_the_end_what_is_under_way_is_finished_and_nothing_new_is_taken(served):
    import signal

    there = served()
    slowly(there.endpoint)
    done = {}
    client = threading.Thread(target=lambda: done.update(reply=there.ask(**HOT, stream=True)))
    client.start()
    until(lambda: there.endpoint.arms.main.version.engine.rows)
    # the server runs in a thread, where no signal comes (with a process: test_server.py)
    there.loop.call_soon_threadsafe(there.server.handle_exit, signal.SIGTERM, None)
    until(lambda: there.endpoint.draining)
    with there.raw(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as connection:
        assert connection.recv(4096)[9:12] == b"503"
    assert there.ask().status_code == 503
    client.join(30)
    assert done["reply"].status_code == 200 and events(done["reply"].text)[-1]["choices"][0]["finish_reason"] == "length"
