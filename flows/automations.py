"""Prefect's automations as data, and `register`, which tells them to a server.

An automation of ours is known by its name: registered again it is brought up to date, and one that a person switched off stays off. Events
that start a retraining name their deployment as a related resource, so that one automation serves every recipe's.
"""

from __future__ import annotations

from typing import Any

from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.announce import DATA_CHANGED, FEEDBACK_READY, SCORE_DROPPED


def _retrain_on(event: str, name: str, description: str, **parameters: Any) -> AutomationCore:
    because = {"__prefect_kind": "jinja", "template": "{{ event.payload.reason }}"}
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1),
        actions=[RunDeployment(source="inferred", parameters={"because": because, **parameters})],
    )


AUTOMATIONS = [
    _retrain_on(DATA_CHANGED, "modelyard: retrain on new data", "What a recipe reads is not what it was when its retraining looked last."),
    _retrain_on(FEEDBACK_READY, "modelyard: retrain on new rankings", "People have ranked enough that a recipe's preferences are worth learning from again."),
    _retrain_on(SCORE_DROPPED, "modelyard: retrain on a drop of scores", "A champion was measured anew and is worse than at its release, beyond the noise.", unchanged="new_seed"),
]


async def register(client: Any) -> str:
    """Bring every automation up to date; gives what stands, in a few words."""
    for wanted in AUTOMATIONS:
        known = await client.read_automations_by_name(wanted.name)
        if known:
            await client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
        else:
            await client.create_automation(wanted)
    return f"{len(AUTOMATIONS)} ({', '.join(automation.name for automation in AUTOMATIONS)})"
