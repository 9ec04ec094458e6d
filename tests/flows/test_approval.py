"""The form of an approval, and what it needs of the environment."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from prefect.input import keyset_from_paused_state
from prefect.states import Suspended
from pydantic import ValidationError

from components.schema.config import BadInput
from flows.approval import Answer, Question, days, resumed


def test_the_form_asks_for_a_decision_and_a_name_and_nothing_else_passes() -> None:
    schema = Answer.model_json_schema()
    assert schema["required"] == ["decision", "who"] and schema["properties"]["decision"]["enum"] == ["approve", "reject"]
    for wrong in ({"decision": "maybe", "who": "a"}, {"decision": "approve"}, {"decision": "approve", "who": ""}, {"decision": "approve", "who": "a", "more": 1}):
        with pytest.raises(ValidationError):
            Answer(**wrong)


def test_the_form_is_kept_where_prefect_looks_for_it() -> None:
    question = Question(number=2, uri="models:/mine/3", folder="", text="", until=datetime.now(UTC))
    assert question.keyset == keyset_from_paused_state(Suspended(pause_key=question.key))


@pytest.mark.parametrize("text", ["soon", "0", "-1", ""])
def test_a_waiting_time_that_never_ends_or_never_begins_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_APPROVAL_DAYS", text)
    with pytest.raises(BadInput, match="MODELYARD_APPROVAL_DAYS=30"):
        days()


def test_outside_a_deployed_run_nothing_suspends() -> None:
    assert resumed() is None
