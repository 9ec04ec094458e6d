"""The only tasks: each body is one call to `components.launch`.

A stage whose process was lost (killed, out of memory) is started again and goes on from its last checkpoint, and so is one for which a service
(MLflow, a store) did not answer; each time a little later. Bad input is never retried, since it would fail the same way.

The stage's output is read whatever becomes of Prefect's server: what people see of it is sent from a thread, and what cannot be sent is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger
from prefect.states import State

from components.launch import StageDied, Verdict, launch
from components.schema.config import Unavailable
from components.schema.jobs import Job
from components.schema.records import Record
from flows import attempts, outages
from flows.budget import charged, paid
from flows.slots import queued

ARTIFACT_EVERY_S = 5.0
DELAYS_S = (2, 10, 30, 60, 120, *(300,) * 7)  # about 40 minutes for a service to come back
DEATHS = 5  # so often a stage is started again whose process died

outages.without_heartbeats()  # every flow imports this module before it runs

# Whoever started the flow in this process may watch its stages live; the terminal's screen does.
watcher: ContextVar[Callable[[dict[str, Any]], None] | None] = ContextVar("watcher", default=None)


def _may_mend_itself(task: Any, run: TaskRun, state: State) -> bool:
    """Retry only what a retry can mend; says so."""
    try:
        state.result()
    except StageDied as error:
        again = run.run_count <= DEATHS
        problem = error
    except Unavailable as error:
        again = run.run_count <= len(DELAYS_S)
        problem = error
    except BaseException:
        return False
    else:
        return False
    if again:
        delay = DELAYS_S[min(run.run_count, len(DELAYS_S)) - 1]
        said = str(problem).splitlines()[0].removesuffix(" Its last lines:").rstrip(".")
        text = f"{said}. Trying again in {delay} s ({run.run_count} of {DEATHS if isinstance(problem, StageDied) else len(DELAYS_S)})"
        get_run_logger().warning(text)
        (watcher.get() or (lambda event: None))({"event": "note", "stage": run.name, "text": text})
    return again


@task(name="stage", task_run_name="{job.stage}", retries=len(DELAYS_S), retry_delay_seconds=list(DELAYS_S), retry_condition_fn=_may_mend_itself, persist_result=False)
def run_stage(job: Job) -> Record:
    """One stage in a process of its own: reused where its record stands, resumed where it was cut off."""
    attempts.begin_here()
    logger, watch = get_run_logger(), watcher.get() or (lambda event: None)
    job = charged(job)
    progress = Progress(job.stage)
    watch({"event": "started", "stage": job.stage})
    began = time.time()

    def listen(event: dict[str, Any]) -> None:
        watch(event)
        if event["event"] == "progress":
            progress.show(event)
        elif text := event.get("text"):
            logger.info(text)
            if event.get("waiting"):
                progress.wait(text)

    def say(text: str) -> None:
        listen({"event": "note", "stage": job.stage, "text": text, "waiting": True})

    try:
        record, found = launch(job, listen, lambda: queued(job, say))
    except BaseException as error:
        progress.close()
        watch({"event": "failed", "stage": job.stage, "text": str(error)})
        raise
    progress.done()
    paid(job, record)
    logger.info("%s: %s (%s)", job.stage, found.action, found.reason)
    watch({"event": "ended", "stage": job.stage, "record": record, "verdict": Verdict(*found), "seconds": time.time() - began})
    return record


class Progress:
    """A progress artifact in the Prefect UI, updated every few seconds from a thread of its own: nothing waits for the server."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.id: Any = None
        self._newest: tuple[float, str] | None = None
        self._wake, self._closed = threading.Event(), False
        self._thread: threading.Thread | None = None

    def show(self, event: dict[str, Any]) -> None:
        percent = 100.0 * event["step"] / max(event["total"], 1)
        numbers = ", ".join(f"{k} {event[k]:.4g}" for k in ("loss", "reward", "kl", "tokens_per_s") if event.get(k) is not None)
        self._put(percent, f"{self.stage}: {event['step']} of {event['total']} {event.get('unit', 'steps')}. {numbers}")

    def wait(self, text: str) -> None:
        """Why nothing goes on yet."""
        self._put(0.0, f"{self.stage}: {text}")

    def done(self) -> None:
        if self._thread is not None:
            self._put(100.0, f"{self.stage}: done")
        self.close()

    def close(self) -> None:
        """Send what is still to be sent, but wait only a little for it."""
        if self._thread is not None:
            self._closed = True
            self._wake.set()
            self._thread.join(timeout=5)

    def _put(self, percent: float, text: str) -> None:
        self._newest = (percent, text)
        if self._thread is None:
            self._thread = threading.Thread(target=copy_context().run, args=(self._send_on,), name="progress", daemon=True)
            self._thread.start()
        self._wake.set()

    def _send_on(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            newest, self._newest = self._newest, None
            if newest:
                self._send(*newest)
            if self._closed and self._newest is None:
                return
            deadline = time.monotonic() + ARTIFACT_EVERY_S
            while not self._closed and time.monotonic() < deadline:
                time.sleep(0.1)

    def _send(self, percent: float, text: str) -> None:
        try:
            if self.id is None:
                self.id = create_progress_artifact(progress=percent, key=f"{self.stage}-progress".replace("_", "-"), description=text)
            else:
                update_progress_artifact(artifact_id=self.id, progress=percent, description=text)
        except Exception:  # only what people see of it; the next one may go through
            return
