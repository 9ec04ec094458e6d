"""The only tasks: each body is one call to `components.launch`.

A stage whose process was lost (killed, out of memory) is started again and goes on from its last checkpoint; bad input
is never retried, since it would fail the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger
from prefect.states import State

from components.launch import StageDied, Verdict, launch
from components.schema.jobs import Job
from components.schema.records import Record

ARTIFACT_EVERY_S = 5.0

# Whoever started the flow in this process may watch its stages live; the terminal's screen does.
watcher: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar("watcher", default=None)


def _was_lost(task: Any, run: TaskRun, state: State) -> bool:
    """Retry only what a retry can mend."""
    try:
        state.result()
    except StageDied:
        return True
    except BaseException:
        return False
    return False


@task(name="stage", task_run_name="{job.stage}", retries=1, retry_delay_seconds=1, retry_condition_fn=_was_lost, persist_result=False)
def run_stage(job: Job) -> Record:
    """One stage in a process of its own: reused where its record stands, resumed where it was cut off."""
    logger, watch = get_run_logger(), watcher.get() or (lambda event: None)
    progress = Progress(job.stage)
    watch({"event": "started", "stage": job.stage})
    began = time.time()

    def listen(event: dict[str, Any]) -> None:
        watch(event)
        if event["event"] == "progress":
            progress.show(event)
        elif text := event.get("text"):
            logger.info(text)

    try:
        record, found = launch(job, listen)
    except BaseException as error:
        watch({"event": "failed", "stage": job.stage, "text": str(error)})
        raise
    progress.done()
    logger.info("%s: %s (%s)", job.stage, found.action, found.reason)
    watch({"event": "ended", "stage": job.stage, "record": record, "verdict": Verdict(*found), "seconds": time.time() - began})
    return record


class Progress:
    """A progress artifact in the Prefect UI, updated every few seconds."""

    def __init__(self, stage: str) -> None:
        self.stage, self.id, self.last = stage, None, 0.0

    def show(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last < ARTIFACT_EVERY_S:
            return
        self.last = now
        percent = 100.0 * event["step"] / max(event["total"], 1)
        numbers = ", ".join(f"{k} {event[k]:.4g}" for k in ("loss", "reward", "kl", "tokens_per_s") if event.get(k) is not None)
        text = f"{self.stage}: {event['step']} of {event['total']} {event.get('unit', 'steps')}. {numbers}"
        if self.id is None:
            self.id = create_progress_artifact(progress=percent, key=f"{self.stage}-progress", description=text)
        else:
            update_progress_artifact(artifact_id=self.id, progress=percent, description=text)

    def done(self) -> None:
        if self.id is not None:
            update_progress_artifact(artifact_id=self.id, progress=100.0)
