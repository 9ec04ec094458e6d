"""The page's server: who comes in, what is told and what never, what is kept, and what hostile input does to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from components.feedback.people import routes, server, signing
from components.feedback.people.store import Store
from tests.feedback.people import MODELS, filled, person, said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path, questions=3, known=1, gold_share=0.5, overlap=2, guide="Be fair.")


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(server.app(store)) as made:
        yield made


@pytest.fixture
def signed_in(client: TestClient) -> TestClient:
    assert client.post("/api/sign-in", json={"name": "Ada"}).status_code == 200
    return client


def following(client: TestClient, ahead: int = 3) -> list[dict[str, Any]]:
    return client.post("/api/next", json={"dataset": "people", "ahead": ahead}).json()["items"]


def sent(item: dict[str, Any], submission: str = "sent-000001", **more: Any) -> dict[str, Any]:
    return {"submission": submission, "item": item["id"], "opinion": {"ranks": list(range(1, len(item["answers"]) + 1))}, **more}


def test_what_is_ranked_is_kept_and_told_back(signed_in: TestClient, store: Store) -> None:
    item = following(signed_in)[0]
    assert signed_in.post("/api/submit", json=sent(item)).json() == {"revision": 1}
    assert signed_in.post("/api/submit", json=sent(item)).json() == {"revision": 1}, "sent again, kept once"
    assert signed_in.post("/api/next", json={"dataset": "people"}).json()["progress"]["done"] == 1
    (mine,) = signed_in.get("/api/mine", params={"dataset": "people"}).json()
    assert mine["opinion"]["ranks"] == [1, 2, 3] and mine["answers"] == item["answers"] and len(said(store)) == 1


def test_nothing_that_is_told_says_whose_answers_they_are_or_which_order_is_known(signed_in: TestClient) -> None:
    told = [signed_in.get("/api/start").text]
    while items := following(signed_in):
        told.append(json.dumps(items))
        told.append(signed_in.post("/api/submit", json=sent(items[0], f"sent-{items[0]['id']:06}")).text)
    told += [signed_in.get(path, params={"dataset": "people"}).text for path in ("/api/mine", "/api/agreement")] + [signed_in.get("/metrics").text]
    whole = " ".join(told)
    assert "answer 1 to 0" in whole and "Known 0?" in whole
    assert not any(word in whole for word in (*MODELS, '"gold": [', "is_gold", "shown"))


def test_a_name_is_enough_until_somebody_has_a_code(client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "GUESSED_WRONG_S", 0.0)
    assert client.get("/api/start").json() == {"name": "", "codes": False}
    client.post("/api/sign-in", json={"name": "  Zoë   O’Neil "})
    assert client.get("/api/start").json()["name"] == "Zoë O’Neil"
    code = store.write(lambda session: signing.invite(session, "Ada"))
    assert client.get("/api/start").json() == {"name": "", "codes": True}, "who came in by name alone is out"
    for given in ({"name": "Ada"}, {"name": "Ada", "code": "aaaa-bbbb-cccc"}, {"name": "Zoë O’Neil", "code": ""}, {"name": "nobody", "code": code}):
        assert client.post("/api/sign-in", json=given).status_code == 401
    answer = client.post("/api/sign-in", json={"name": "Ada", "code": code.upper()})
    assert answer.status_code == 200 and {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    again = store.write(lambda session: signing.invite(session, "Ada"))
    assert client.post("/api/sign-in", json={"name": "Ada", "code": code}).status_code == 401
    assert client.post("/api/sign-in", json={"name": "Ada", "code": again}).status_code == 200


def test_a_cookie_that_we_did_not_sign_or_that_ran_out_is_nobody(client: TestClient, store: Store) -> None:
    key, signer = client.app.state.key, lambda token: store.read(lambda session: signing.signer(session, client.app.state.key, token))
    client.post("/api/sign-in", json={"name": "Ada"})
    mine, ada = client.cookies[routes.COOKIE], person(store, "Ada")
    assert signer(mine).name == "Ada"
    person(store, "Bo")
    for bad in ("", "1", "1.2", "..", "2" + mine[1:], mine[:-1] + ("0" if mine[-1] != "0" else "1"), mine + "\n", signing.signed(key, ada, now=0.0), signing.signed(b"other", ada)):
        assert signer(bad) is None, bad
    store.write(lambda session: signing.invite(session, "Ada"))
    assert signer(mine) is None, "who signed in before there was this code signs in again"


@pytest.mark.parametrize("path", ["/api/next", "/api/submit", "/api/mine?dataset=people", "/api/agreement?dataset=people"])
def test_nobody_does_anything_without_signing_in(client: TestClient, path: str) -> None:
    answer = client.get(path) if "?" in path else client.post(path, json={"dataset": "people", "submission": "x" * 10, "item": 1, "kind": "undo"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422), (b"[]", 422), (b"\xff\xfe", 400), (b'{"submission": "abcdefgh", "item": 1, "kind": "undo", "more": 1}', 422), (b'{"submission": "a/../b!", "item": 1, "kind": "undo"}', 422),
        (b'{"submission": "abcdefgh", "item": 99999999999999999999, "kind": "undo"}', 422), (b'{"submission": "abcdefgh", "item": 77, "kind": "undo"}', 422),
        (b'{"submission": "abcdefgh", "item": 1, "opinion": {"ranks": [1, 2, 3], "note": "\\u0000"}}', 422), (b'{"submission": "abcdefgh", "item": 1, "opinion": {"ranks": [1, 2, 3], "note": "\\ud800"}}', 422),
        (b'{"submission": "abcdefgh", "item": 1, "opinion": {"ranks": [1, 2, 3], "seconds": NaN}}', 422), (b"[" * 100_000, 422), (b" " * (600 * 1024), 413),
    ],
)  # fmt: skip
def test_hostile_bodies_get_an_error_of_their_own_and_nothing_is_kept(signed_in: TestClient, store: Store, body: bytes, status: int) -> None:
    following(signed_in)
    answer = signed_in.post("/api/submit", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in ({status} | ({400, 422} if status != 413 else set())), answer.text[:300]
    assert answer.json()["detail"] and said(store) == [] and signed_in.get("/health").status_code == 200


def test_a_body_of_unknown_length_is_cut_off_where_it_is_too_long(signed_in: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 65_536

    assert signed_in.post("/api/submit", content=endless(), headers={"content-type": "application/json"}).status_code == 413


def test_every_page_forbids_scripts_from_elsewhere_and_names_no_other_host(client: TestClient) -> None:
    for path in (f"/{name}" for name in server.FILES):
        answer = client.get(path)
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"] and answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|outerHTML|document\.write|eval\(", answer.text), path
    assert "<script>" not in client.get("/").text and not re.search(r"\son\w+=", client.get("/").text)


def test_metrics_are_there_for_each_dataset_without_names(signed_in: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    while items := following(signed_in):
        signed_in.post("/api/submit", json=sent(items[0], f"sent-{items[0]['id']:06}"))
    text = signed_in.get("/metrics").text
    for name in ("rankings_total", "items", "items_open", "annotators", "gold_accuracy"):
        assert re.search(rf'^modelyard_feedback_{name}{{dataset="people"}} [\d.]+$', text, re.MULTILINE), name
    assert "Ada" not in text


@pytest.mark.parametrize(("host", "account", "codes"), [("127.0.0.1", "", False), ("localhost", "", False), ("::1", "", False), ("0.0.0.0", "", True), ("yard.example.org", "", True), ("127.0.0.1", "a:b", True)])
def test_codes_are_needed_where_others_reach_the_server_or_accounts_are_set(monkeypatch: pytest.MonkeyPatch, host: str, account: str, codes: bool) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", account)
    assert server.needs_codes(host) is codes


def test_a_name_that_nobody_could_read_is_refused_with_the_reason(client: TestClient) -> None:
    sign: Callable[[str], Any] = lambda name: client.post("/api/sign-in", json={"name": name})  # noqa: E731
    for name in ("", "   ", "<b>", "x" * 61, "a\x00b", "\u202eevil"):
        answer = sign(name)
        assert answer.status_code == 400 and "the name must be" in answer.json()["detail"]
