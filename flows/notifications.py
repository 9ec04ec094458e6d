"""Who is told what happens: a webhook, Slack, e-mail, each a Prefect block that can be changed in the UI.

    MODELYARD_NOTIFY_WEBHOOK=https://example.org/hook                 JSON: {"subject", "body", "name"}
    MODELYARD_NOTIFY_SLACK=https://hooks.slack.com/services/A/B/C     or anything that takes Slack's {"text"}
    MODELYARD_NOTIFY_EMAIL='smtp://user:password@mail.example.org:587?from=a@example.org&to=b@example.org,c@example.org'
                                                                      smtp: STARTTLS, smtps: TLS from the start, smtp+insecure: neither

`modelyard up` registers them as the blocks modelyard-webhook, modelyard-slack and modelyard-email; one that was made under such a name in the UI
serves as well. The watch (flows/watching.py) reads the server's events and sends what matters: at least once, in order, each channel
at its own pace. A listener that is away gets what happened when it is back (up to a day), which an automation's notification does not give;
the blocks are notification blocks all the same, so that automations of your own can use them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import get_client
from prefect.logging import get_logger
from prefect.variables import Variable

from components.schema.config import BadInput
from flows.announce import APPROVAL_SETTLED, APPROVAL_WAITING, BUDGET_SPENT, DATA_CHANGED, FEEDBACK_READY, GATE_DECIDED, SCORE_DROPPED

CHANNELS = {"webhook": "custom-webhook/modelyard-webhook", "slack": "slack-webhook/modelyard-slack", "slack-like": "custom-webhook/modelyard-slack", "email": "email-server-credentials/modelyard-email"}
ADDRESSES, CURSOR = "modelyard_email", "modelyard_notified_"  # Prefect variables: who writes to whom; how far each channel has come
RUN_EVENTS = tuple(f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed", "Changed"))  # events are named after a state's name, not its type; Changed: the canary's
OURS = (GATE_DECIDED, APPROVAL_WAITING, APPROVAL_SETTLED, DATA_CHANGED, FEEDBACK_READY, SCORE_DROPPED, BUDGET_SPENT)
CRASH_SETTLES_S = 90.0  # a crashed run that is not started again within this is told of
LOOK_BACK = timedelta(minutes=2)  # an event may arrive later than a younger one
LONGEST_MEMORY = 300  # events that a channel remembers as sent; a variable holds 5,000 characters
OLDEST = timedelta(days=1)  # nobody is told of what is older
PAUSES_S = (5.0, 15.0, 60.0, 300.0)  # before a channel that failed is tried again

logger = get_logger("modelyard.notifications")


class Message(NamedTuple):
    """What is sent."""

    subject: str
    body: str


# ---------------------------------------------------------------- registering


async def register(client: Any) -> str:
    """Keep a block for every channel that the environment names; gives which. Errors: BadInput."""
    import asyncio

    return await asyncio.to_thread(register_blocks)


def register_blocks() -> str:
    """The same, synchronously."""
    made = []
    for name, (variable, make) in {"webhook": ("MODELYARD_NOTIFY_WEBHOOK", _webhook), "slack": ("MODELYARD_NOTIFY_SLACK", _slack), "e-mail": ("MODELYARD_NOTIFY_EMAIL", _email)}.items():
        if url := os.environ.get(variable):
            make(url, variable)
            made.append(name)
    return ", ".join(made) or "none (MODELYARD_NOTIFY_WEBHOOK, _SLACK and _EMAIL name none)"


def _checked(url: str, variable: str, schemes: tuple[str, ...], example: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        raise BadInput(f"notifications: {variable} is no address that begins with {' or '.join(f'{s}://' for s in schemes)}, so nobody would be told. Write for example {example}")
    return parts


def _webhook(url: str, variable: str) -> None:
    _checked(url, variable, ("http", "https"), "https://example.org/hook")
    _json_block("webhook", url, {"subject": "{{subject}}", "body": "{{body}}", "name": "{{name}}"}).save("modelyard-webhook", overwrite=True)


def _slack(url: str, variable: str) -> None:
    host = _checked(url, variable, ("http", "https"), "https://hooks.slack.com/services/A/B/C").hostname
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        SlackWebhook(url=url).save("modelyard-slack", overwrite=True)
    else:  # Mattermost, Rocket.Chat and others take the same JSON
        _json_block("slack", url, {"text": "*{{subject}}*\n{{body}}"}).save("modelyard-slack", overwrite=True)


def _json_block(name: str, url: str, data: dict[str, str]) -> CustomWebhookNotificationBlock:
    """A POST of JSON. The address is kept as a secret: whoever knows a webhook's may write to it."""
    return CustomWebhookNotificationBlock(name=f"modelyard {name}", url="{{address}}", json_data=data, secrets={"address": url})


def _email(url: str, variable: str) -> None:
    parts = _checked(url, variable, ("smtp", "smtps", "smtp+insecure"), "smtp://user:password@mail.example.org:587?from=a@example.org&to=b@example.org")
    try:
        from prefect_email import EmailServerCredentials
    except ImportError:
        raise BadInput(f"notifications: {variable} is set and prefect-email is not installed, so no mail could be sent. Install it: pip install 'modelyard[services]'") from None
    asked = parse_qs(parts.query)
    sender, receivers = asked.get("from", [""])[0], [one.strip() for one in asked.get("to", [""])[0].split(",") if one.strip()]
    if not sender or not receivers:
        raise BadInput(f"notifications: {variable} names no sender or no receiver, so no mail could be sent. End it with ?from=a@example.org&to=b@example.org")
    kind = {"smtp": "STARTTLS", "smtps": "SSL", "smtp+insecure": "INSECURE"}[parts.scheme]
    user = unquote(parts.username) if parts.username else None
    EmailServerCredentials(username=user, password=unquote(parts.password or ""), smtp_server=parts.hostname, smtp_type=kind, smtp_port=parts.port).save("modelyard-email", overwrite=True)
    Variable.set(ADDRESSES, {"from": sender, "to": receivers}, overwrite=True)


# ---------------------------------------------------------------- what is said


def message_of(event: dict[str, Any]) -> Message | None:
    """An event in words; None where nobody needs to hear of it. Errors: Unsettled, where that is not known yet."""
    name, payload = event["event"], event.get("payload") or {}
    if name in RUN_EVENTS:
        return _about_run(event)
    what = event["resource"].get("prefect.resource.name") or event["resource"]["prefect.resource.id"]
    reason = str(payload.get("text") or payload.get("reason") or payload.get("message") or "")
    match name:
        case "modelyard.gate.decided":
            return Message(f"{what}: the gate says {payload.get('action')}", reason)
        case "modelyard.approval.waiting":
            return Message(f"{what} waits for you", f"Answer by Resume at {address_of(payload['run'])}, or: modelyard approve {what}\n\n{reason}")
        case "modelyard.approval.settled":
            return Message(f"{what} is settled", reason)
        case "modelyard.data.changed":
            return Message(f"New data for {what}", reason)
        case "modelyard.feedback.ready":
            return Message(f"New rankings for {what}", reason)
        case "modelyard.score.dropped":
            return Message(f"{what} scores less than at its release", reason)
        case "modelyard.budget.spent":
            return Message(f"{what}: the budget is spent", reason)
    return None


class Unsettled(Exception):
    """A run has crashed, and whether it is started again is not known yet."""


def _about_run(event: dict[str, Any]) -> Message | None:
    """A top run that ended badly, as it stands by now; a run inside another one is told of by that one."""
    run_id = event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.")
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/flow_runs/filter", json={"flow_runs": {"id": {"any_": [run_id]}}, "limit": 1}).json()
    if not answer or answer[0]["parent_task_run_id"]:
        return None
    run, told = answer[0], event["event"].rpartition(".")[2]
    if told == "Crashed":
        if run["state"]["name"] != "Crashed":
            return None  # it is running again, or ended otherwise and is told of by that
        if datetime.now(UTC) - _time(event["occurred"]) < timedelta(seconds=CRASH_SETTLES_S):
            raise Unsettled
    how = {"Failed": "failed", "TimedOut": "ran out of time", "Crashed": "crashed and was not started again", "Changed": "found a change"}[told]
    return Message(f"Run {run['name']} {how}", f"{event['resource'].get('prefect.state-message') or 'It did not say why.'}\n{address_of(run_id)}")


def address_of(run_id: str) -> str:
    """Where a run's page is."""
    base = os.environ.get("PREFECT_UI_URL") or os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    return f"{base}/runs/flow-run/{run_id}"


# ---------------------------------------------------------------- sending


_failed: dict[str, tuple[int, float]] = {}  # channel: how often in a row, and when it may be tried again


def watch() -> None:
    """A duty of the watch: send every channel what happened since it was told last."""
    for name, send in _channels().items():
        if time.monotonic() >= _failed.get(name, (0, 0.0))[1]:
            _send_new(name, send)


def _send_new(name: str, send: Callable[[Message], None]) -> None:
    """Send a channel its events, oldest first; its cursor moves with each one that was taken. A new channel hears of what happens from now on."""
    variable = CURSOR + name.replace("-", "_")
    cursor: Any = Variable.get(variable)
    if cursor is None:
        now = datetime.now(UTC).isoformat()
        cursor = {"began": now, "at": now, "sent": []}
        Variable.set(variable, cursor)
    since = max(_time(cursor["began"]), _time(cursor["at"]) - LOOK_BACK, datetime.now(UTC) - OLDEST)
    for event in _events(since):
        short = event["id"][-8:]  # ids begin with the time: events of one minute begin alike
        if short in cursor["sent"]:
            continue
        try:
            if message := message_of(event):
                send(message)
        except Unsettled:
            return
        except Exception as error:  # every kind of listener fails in its own ways
            often = _failed.get(name, (0, 0.0))[0]
            pause = PAUSES_S[min(often, len(PAUSES_S) - 1)]
            _failed[name] = (often + 1, time.monotonic() + pause)
            logger.warning("%s could not be told of %s (%s); tried again in %.0f s", name, event["event"], error, pause)
            return
        _failed.pop(name, None)
        cursor = {**cursor, "at": max(cursor["at"], event["occurred"], key=_time), "sent": [*cursor["sent"], short][-LONGEST_MEMORY:]}
        Variable.set(variable, cursor, overwrite=True)


def _events(since: datetime) -> Iterator[dict[str, Any]]:
    """What happened since, oldest first."""
    asked = {"filter": {"occurred": {"since": since.isoformat()}, "event": {"name": [*RUN_EVENTS, *OURS]}, "order": "ASC"}, "limit": 50}
    with get_client(sync_client=True) as client:
        page = client.request("POST", "/events/filter", json=asked).raise_for_status().json()
        yield from page["events"]
        while address := page.get("next_page"):
            page = client.request("GET", "/events/filter/next", params={"page-token": parse_qs(urlsplit(address).query)["page-token"][0]}).raise_for_status().json()
            yield from page["events"]


def _channels() -> dict[str, Callable[[Message], None]]:
    """Who can be told, by the blocks that there are."""
    found: dict[str, Callable[[Message], None]] = {}
    known = _blocks()
    for name, slug in CHANNELS.items():
        if slug in known:
            found[name] = _by_mail(slug) if name == "email" else _by_block(slug)
    return found


def _blocks() -> set[str]:
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/block_documents/filter", json={"block_documents": {"name": {"like_": "modelyard-"}}}).raise_for_status().json()
    return {f"{block['block_type']['slug']}/{block['name']}" for block in answer}


def _by_block(slug: str) -> Callable[[Message], None]:
    def send(message: Message) -> None:
        block: Any = Block.load(slug)
        with block.raise_on_failure():
            block.notify(body=message.body, subject=message.subject)

    return send


def _by_mail(slug: str) -> Callable[[Message], None]:
    def send(message: Message) -> None:
        import prefect_email  # noqa: F401  registers the block's class

        addresses: Any = Variable.get(ADDRESSES)
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message.subject, addresses["from"], ", ".join(addresses["to"])
        mail.set_content(message.body)
        credentials: Any = Block.load(slug)
        with credentials.get_server() as server:
            server.send_message(mail)

    return send


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
