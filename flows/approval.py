"""Where the gate asks a person: a deployed run suspends, and goes on with the answer.

    answered = approval.resumed()        # first line of a top flow: a person has answered, nothing else is done again
    return approval.settled(record)      # its last line: the record, or a state named after what a person said

Suspended, a run is no process and holds no slot; what it waits for stands in the server's database, so everything may be restarted
meanwhile. The question (which version, until when) is kept with the run before it suspends, and a run that is started again, whether by an
answer or after a kill, finds it there. It is answered by the form that `Resume` opens in the Prefect UI, by `POST
/api/flow_runs/ID/resume`, or by `modelyard approve|reject`. The watch (flows/watching.py) closes what was settled
elsewhere, and holds what nobody answered in MODELYARD_APPROVAL_DAYS (30).

From a terminal (`modelyard run`) nothing suspends: the version waits in the registry for `modelyard approve`.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, filter_flow_run_input, read_flow_run_input
from prefect.states import Completed, State

from components.registry import models
from components.schema.approval import Anyway, Decision, Who, Why
from components.schema.config import BadInput, Config
from components.schema.records import Record
from flows.announce import APPROVAL_SETTLED, APPROVAL_WAITING, of_model, try_to_announce
from flows.reports import comparison_table, decision_text

TAG = "waits-for-a-person"
QUESTION = "modelyard-question-"  # what a run waits for, by number: a refused answer makes another question
NOBODY = "nobody"  # who settles what was not answered in time


class Answer(RunInput):
    """What a person says about a version that the gate would not decide alone."""

    decision: Decision
    who: Who
    why: Why = ""
    anyway: Anyway = False

    @classmethod
    def save(cls, keyset: Any, flow_run_id: UUID | None = None) -> None:
        """Keep the form with the run, unless it is kept already: a run that was killed while it asked asks again."""
        if read_flow_run_input(keyset["schema"], flow_run_id=flow_run_id) is None:
            super().save(keyset, flow_run_id=flow_run_id)


class Question(Config):
    """What a suspended run waits for."""

    number: int
    uri: str
    """models:/NAME/VERSION"""
    folder: str
    """Folder of the release's record, on the machine that released."""
    text: str
    """What the gate said, as Markdown."""
    table: str = ""
    """What it rests on: a table that the run's page shows and the form, which is narrow, does not."""
    until: datetime
    """When nobody's answer counts as a hold."""

    @property
    def key(self) -> str:
        return f"approval-{self.number}"

    @property
    def keyset(self) -> dict[Literal["description", "response", "schema"], str]:
        """Where Prefect keeps the form of this question and its answer."""
        return {"description": f"suspended-{self.key}-description", "response": f"suspended-{self.key}-response", "schema": f"suspended-{self.key}-schema"}


def days() -> float:
    """How long an answer is waited for. Errors: BadInput."""
    text = os.environ.get("MODELYARD_APPROVAL_DAYS", "30")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise BadInput(f"approval: MODELYARD_APPROVAL_DAYS={text!r} is no number of days above 0, so no waiting would ever end. Write for example MODELYARD_APPROVAL_DAYS=30")
    return value


def settled(record: Record) -> Record | State[Any]:
    """The end of a top flow: suspends where the gate asked a person and nobody answered yet; else gives the record back."""
    if not _can_suspend() or record.stage != "release" or record.figures["action"] != "ask" or not waits(record.figures["uri"]):
        return record
    until = datetime.now(UTC) + timedelta(days=days())
    return _ask(Question(number=1, uri=record.figures["uri"], folder=str(record.folder), text=decision_text(record), table=comparison_table(record), until=until))


def resumed() -> State[Any] | None:
    """What a person said, where this run is one that had asked; None in any other run. A refused answer suspends it again."""
    question = question_of(_run().id) if _can_suspend() else None
    return _ask(question) if question else None


def waits(uri: str) -> bool:
    """Whether a version still waits for a person's word."""
    return models.look_up(uri)[2].get(models.ACTION) == "ask"


def question_of(run_id: UUID) -> Question | None:
    """What a run waits for, or waited for last."""
    kept = filter_flow_run_input(key_prefix=QUESTION, flow_run_id=run_id, limit=200)
    asked = [Question.model_validate(entry.decoded_value) for entry in kept]
    return max(asked, key=lambda question: question.number, default=None)


def _ask(question: Question) -> State[Any]:
    """Suspend with a question (this call then never returns), or go on with the answer that was given."""
    _keep(question)
    form = Answer.with_initial_data(description=_described(question))
    form.save(question.keyset)  # before the run suspends: killed in between, it could never be resumed
    answer = suspend_flow_run(wait_for_input=form, key=question.key)
    assert answer is not None
    return _settle(question, answer)


def _keep(question: Question) -> None:
    """The question with the run, its evidence as an artifact, and the word that somebody is waited for."""
    run = _run()
    if read_flow_run_input(f"{QUESTION}{question.number}", flow_run_id=run.id) is not None:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags={*run.tags, TAG, question.uri})
    create_markdown_artifact(markdown=_described(question) + question.table, key="approval", description=f"{question.uri} waits for a person")
    about = {"run": str(run.id), "run_name": run.name, "uri": question.uri, "text": question.text + question.table, "until": question.until.isoformat()}
    try_to_announce(APPROVAL_WAITING, of_model(question.uri), about, once=f"{run.id} {question.number}")
    create_flow_run_input(f"{QUESTION}{question.number}", question.model_dump(mode="json"), flow_run_id=run.id)


def _settle(question: Question, answer: Answer) -> State[Any]:
    """The registry does what the person said; what it refuses is asked anew, with the reason."""
    try:
        if waits(question.uri):
            models.settle(question.uri, answer.decision == "approve", answer.who, answer.why, answer.anyway)
    except BadInput as error:
        text = f"**The last answer ({answer.decision}, {answer.who}) could not be followed.** {error}\n\n{question.text}"
        return _ask(question.model_copy(update={"number": question.number + 1, "text": text}))
    tags = models.look_up(question.uri)[2]
    who, why, promoted = tags.get("modelyard.settled_by", answer.who), tags.get("modelyard.settled_why", ""), tags[models.ACTION] == "promote"
    said = f"{question.uri} is {'the champion' if promoted else 'held'}: {'approved' if promoted else 'rejected'} by {who}{f' ({why})' if why else ''}"
    create_markdown_artifact(markdown=f"# {said}\n\n{question.text}{question.table}", key="approval", description="What a person said")
    try_to_announce(APPROVAL_SETTLED, of_model(question.uri), {"run": str(_run().id), "uri": question.uri, "text": said}, once=f"{_run().id} {question.number} settled")
    with get_client(sync_client=True) as client:
        client.update_flow_run(_run().id, tags=set(_run().tags) - {TAG})
    return Completed(name="Approved" if promoted else "Held" if who == NOBODY else "Rejected", message=said, data=said)


def _described(question: Question) -> str:
    return (
        f"{question.text}\n\nApprove it, and it is the champion from then on; reject it, and the champion stays. "
        f"Without an answer until {question.until:%Y-%m-%d %H:%M} UTC it is held. "
        f"Suite by suite: the artifact `approval` of this run. From a terminal: `modelyard approve {question.uri} --why ...` or `modelyard reject {question.uri} --why ...`"
    )


def _run() -> FlowRun:
    context = FlowRunContext.get()
    assert context and context.flow_run
    return context.flow_run


def _can_suspend() -> bool:
    """Only a top run of a deployment: somebody has to start it again, and a run inside another one cannot be."""
    context = FlowRunContext.get()
    run = context and context.flow_run
    return bool(run and run.deployment_id and run.parent_task_run_id is None)


# ---------------------------------------------------------------- from outside: the commands and the watch


def waiting_runs(uri: str | None = None) -> list[FlowRun]:
    """Suspended runs that wait for a person; only those about one version where it is named."""
    tags = [TAG, uri] if uri else [TAG]
    asked = {"flow_runs": {"tags": {"all_": tags}, "state": {"type": {"any_": ["PAUSED"]}}}, "limit": 200, "sort": "START_TIME_ASC"}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/flow_runs/filter", json=asked).raise_for_status().json()
    return [FlowRun.model_validate(run) for run in found]


def answer(run_id: UUID, decision: str, who: str, why: str = "", anyway: bool = False) -> None:
    """Resume a suspended run with an answer, as the form in the UI does. Errors: BadInput where the server refuses it."""
    given = {"decision": decision, "who": who, "why": why, "anyway": anyway}
    with get_client(sync_client=True) as client:
        try:
            said = client.request("POST", "/flow_runs/{id}/resume", path_params={"id": run_id}, json={"run_input": given}).json()
        except PrefectHTTPStatusError as error:
            raise BadInput(f"approval: the server did not take the answer for run {run_id} ({error}), so it still waits. Answer it in the Prefect UI") from None
    if said["status"] != "ACCEPT":
        raise BadInput(f"approval: run {run_id} was not resumed ({said['details'].get('reason')}), so it still waits. Answer it in the Prefect UI")


def close_settled(uri: str) -> int:
    """Resume every run that waits about a version which is settled in the registry; gives how many."""
    tags = models.look_up(uri)[2]
    if tags.get(models.ACTION) == "ask":
        return 0
    runs = waiting_runs(uri)
    for run in runs:
        answer(run.id, "approve" if tags[models.ACTION] == "promote" else "reject", tags.get("modelyard.settled_by") or NOBODY, tags.get("modelyard.settled_why", ""))
    return len(runs)


def watch() -> None:
    """A duty of the watch: close what was settled elsewhere, and hold what nobody answered in time."""
    for run in waiting_runs():
        question = question_of(run.id)
        if question is None:
            continue
        if not close_settled(question.uri) and datetime.now(UTC) > question.until:
            answer(run.id, "reject", NOBODY, f"nobody answered until {question.until:%Y-%m-%d %H:%M} UTC")
