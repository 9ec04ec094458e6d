"""Events of ours, told to the Prefect server: what automations and notifications act on.

    announce("modelyard.data.changed", {"prefect.resource.id": "modelyard.recipe.tiny"}, {"reason": "..."})

They are sent in one request that the server has answered, not left to a thread that a kill takes along. Whoever passes `once`, any text
that names the occasion, may announce it again and again: the event's id follows from it, and the server keeps one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from prefect.client.orchestration import get_client

DATA_CHANGED = "modelyard.data.changed"
SCORE_DROPPED = "modelyard.score.dropped"
FEEDBACK_READY = "modelyard.feedback.ready"
GATE_DECIDED = "modelyard.gate.decided"
APPROVAL_WAITING = "modelyard.approval.waiting"
APPROVAL_SETTLED = "modelyard.approval.settled"
BUDGET_SPENT = "modelyard.budget.spent"


def announce(name: str, resource: dict[str, str], payload: dict[str, Any], *, once: str | None = None, related: Sequence[dict[str, str]] = ()) -> UUID:
    """Hand one event to the server and give its id. Errors: those of the client, where the server does not answer."""
    event_id = uuid5(NAMESPACE_URL, f"{name} {once}") if once else uuid4()
    event = {
        "id": str(event_id),
        "event": name,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": resource,
        "related": list(related),
        "payload": payload,
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event]).raise_for_status()
    return event_id


def try_to_announce(name: str, resource: dict[str, str], payload: dict[str, Any], **more: Any) -> None:
    """The same for where the work matters more than the word about it: a server that is away is not told, and nothing fails."""
    with contextlib.suppress(Exception):
        announce(name, resource, payload, **more)


def is_known(event_id: UUID) -> bool:
    """Whether the server keeps an event of this id: it has been through its messaging, and automations have seen it."""
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": {"id": {"id": [str(event_id)]}}, "limit": 1})
    return bool(answer.raise_for_status().json()["events"])


def of_model(uri: str) -> dict[str, str]:
    """A version of a model as an event's resource."""
    return {"prefect.resource.id": f"modelyard.model.{uri.removeprefix('models:/').replace('/', '.')}", "prefect.resource.name": uri}


def of_recipe(name: str, path: str) -> dict[str, str]:
    """A recipe as an event's resource."""
    return {"prefect.resource.id": f"modelyard.recipe.{name}", "prefect.resource.name": name, "modelyard.recipe": path}
