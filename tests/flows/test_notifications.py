"""What is said about an event, and which addresses are refused."""

from __future__ import annotations

from typing import Any

import pytest

from components.schema.config import BadInput
from flows import announce, notifications


def event(name: str, **payload: Any) -> dict[str, Any]:
    return {"event": name, "resource": {"prefect.resource.id": "modelyard.model.mine.3", "prefect.resource.name": "models:/mine/3"}, "payload": payload}


def test_a_waiting_approval_says_where_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    message = notifications.message_of(event(announce.APPROVAL_WAITING, run="r1", text="# why"))
    assert message and message.subject == "models:/mine/3 waits for you"
    assert "http://127.0.0.1:4200/runs/flow-run/r1" in message.body and "modelyard approve models:/mine/3" in message.body and "# why" in message.body


@pytest.mark.parametrize("name", notifications.OURS)
def test_every_event_of_ours_has_words(name: str) -> None:
    message = notifications.message_of(event(name, run="r1", action="hold", reason="because", text="because"))
    assert message and "models:/mine/3" in message.subject and "because" in message.body


def test_an_event_that_nobody_waits_for_has_none() -> None:
    assert notifications.message_of(event("modelyard.something.else")) is None


@pytest.mark.parametrize(
    ("variable", "address", "says"),
    [
        ("MODELYARD_NOTIFY_WEBHOOK", "example.org/hook", "begins with http:// or https://"),
        ("MODELYARD_NOTIFY_SLACK", "ftp://hooks.slack.com/services/A/B/C", "begins with http:// or https://"),
        ("MODELYARD_NOTIFY_EMAIL", "mailto:a@example.org", "begins with smtp://"),
        ("MODELYARD_NOTIFY_EMAIL", "smtp://mail.example.org?to=b@example.org", "names no sender or no receiver"),
    ],
)
def test_an_address_that_could_reach_nobody_is_refused_with_what_to_write(variable: str, address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELYARD_NOTIFY_WEBHOOK", "MODELYARD_NOTIFY_SLACK", "MODELYARD_NOTIFY_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, address)
    with pytest.raises(BadInput, match=says) as error:
        notifications.register_blocks()
    assert variable in str(error.value) and "example" in str(error.value)


def test_a_message_of_errors_never_holds_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_NOTIFY_EMAIL", "smtp://me:secret@mail.example.org")
    with pytest.raises(BadInput) as error:
        notifications.register_blocks()
    assert "secret" not in str(error.value)
