"""Start a stage as a process of its own, stream what it says, and return its record.

A process of its own gives its memory back when it ends, dies without taking the flow along, and is the same command
that DVC, torchrun or a person would type. Whether it has to run at all is decided here first: a record that stands
(files present, sizes and hashes right) is reused. One that has to run waits for a slot of this host (components/slots.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components import slots
from components.cost import budget
from components.schema.config import BadInput, BudgetSpent, Unavailable
from components.schema.events import EVENT
from components.schema.jobs import Job
from components.schema.recipe import Resources
from components.schema.records import Record, home

# Neither changes a result (docs/LOG.md). A thread that waits for its siblings sleeps instead of spinning: beside other work on the same cores a
# training step was 3.4 times faster for it (two threads on two busy cores: 2,890 tokens/s against 850). And glibc asks for huge pages where the
# kernel leaves that to programs: a step was 1 to 2 % faster.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

KINDS = {"unavailable": Unavailable, "budget spent": BudgetSpent}  # of a stage's errors, as __main__ names them; any other is BadInput

Listener = Callable[[dict[str, Any]], None]

_running: set[subprocess.Popen[str]] = set()
_asked: set[int] = set()  # pids of stages that know that they are to end; a second SIGTERM would cut their last words off
_leaving = threading.Event()


class StageDied(Exception):
    """A stage's process ended without a record and without saying why: killed, out of memory, or a defect."""


class Verdict(NamedTuple):
    """Whether a job has to run."""

    action: str
    """run, resume, reuse or fetched (from MODELYARD_STORE)"""
    reason: str


def verdict(job: Job) -> Verdict:
    """Look at what stands on disk; nothing is changed."""
    if not (job.folder / "record.json").exists():
        if stored := _stored(job):
            return stored
        if job.folder.with_name(job.folder.name + ".partial").exists():
            return Verdict("resume", "an unfinished run of it stands; it goes on from its last checkpoint")
        return Verdict("run", "no result of this configuration and these inputs yet")
    try:
        damage = Record.read(job.folder).damage()
    except BadInput as error:
        return Verdict("run", str(error))
    if damage:
        return _stored(job) or Verdict("run", f"its result is damaged: {damage}")
    return Verdict("reuse", "same configuration, inputs and revision; every file has its md5")


def _stored(job: Job) -> Verdict | None:
    """What a store that several machines share has of it, where there is one. Errors: Unavailable, where nothing of it is here to go on with."""
    if not os.environ.get("MODELYARD_STORE") or job.stage == "data":  # data is shared by DVC
        return None
    from components.storage import results, unfinished

    partial = job.folder.with_name(job.folder.name + ".partial")
    try:
        if where := results.job_standing(job):
            return Verdict("fetched", where)
        if where := unfinished.waiting(partial, job.identity):
            return Verdict("resume", where)
    except Unavailable:
        if not partial.exists():
            raise
    return None


def _fetched(job: Job, listen: Listener) -> bool:
    """Bring a finished result here: no process, no slot. False where the store does not have it any more."""
    from components.storage import results

    return results.fetch(job.folder, job.identity, lambda event: listen({**event, "stage": job.stage}))


def launch(job: Job, listen: Listener = lambda event: None, queue: Callable[[], AbstractContextManager[None]] = nullcontext) -> tuple[Record, Verdict]:
    """Run one job unless its record stands; inside `queue()`, where it runs. Errors: BadInput (a person can mend it; BudgetSpent is one), Unavailable (trying again may), StageDied (the process was lost)."""
    found = verdict(job)
    if found.action == "fetched" and _fetched(job, listen):
        return Record.read(job.folder), found
    if found.action == "reuse" and job.stage != "data":  # only DVC can say whether data is current
        return Record.read(job.folder), found
    budget.refuse(job, job.run.spent)
    asked = job.model_dump(mode="json")
    if job.stage != "data" or not (answer := call("current-data", asked, lambda event: listen({**event, "stage": "data"})))["folder"]:
        with queue():
            answer = call(job.stage, asked, listen)
    return Record.read(Path(answer["folder"])), Verdict(answer.get("action", found.action), answer.get("reason", found.reason))


class Elsewhere(NamedTuple):
    """Another checkout for a stage to run in (flows/reproduce.py), with an interpreter and an environment of its own."""

    python: str
    folder: Path
    environment: dict[str, str]


def call(stage: str, job: dict[str, Any], listen: Listener = lambda event: None, elsewhere: Elsewhere | None = None) -> dict[str, Any]:
    """Run `python -m components STAGE` on a job, pass its events on, and return its last word (the `result` event)."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"{stage}-") as file, _slots(stage, job, listen) as taken:
        yaml.safe_dump(job, file)
        file.flush()
        _stand_still_if_leaving()
        process = subprocess.Popen(
            [elsewhere.python if elsewhere else sys.executable, "-m", "components", stage, "--config", file.name],
            cwd=elsewhere.folder if elsewhere else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, **(elsewhere.environment if elsewhere else os.environ), "MODELYARD_EVENTS": "1", "MODELYARD_PARENT": str(os.getpid()), "MODELYARD_LAUNCHED": str(time.time()), "PYTHONUNBUFFERED": "1", **taken.environment},
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=taken.files,
        )
        try:
            _running.add(process)
            taken.describe(pid=process.pid, stage=stage, launcher=os.getpid(), home=str(home()))
            taken.close()  # from here on the stage's own process holds them, whatever becomes of us
            return _follow(stage, process, listen)
        finally:
            end(process)
            _running.discard(process)
            _asked.discard(process.pid)


@contextmanager
def _slots(stage: str, job: dict[str, Any], listen: Listener) -> Iterator[slots.Slots]:
    """The slots that a job takes on this host, waited for."""
    wanted = slots.need(stage, Resources.model_validate(job.get("run", {}).get("resources", {})))
    with slots.held(wanted, lambda text: listen({"event": "note", "stage": stage, "text": text, "waiting": True})) as taken:
        yield taken


def ask_to_end() -> None:
    """Have every stage that this process started write its checkpoint and end, and start none any more; returns at once."""
    _leaving.set()
    for process in list(_running):
        _ask(process)


def leave(grace_s: float = 8.0) -> None:
    """End every stage that this process started, and start none any more: for a process that must not go on (flows/attempts.py)."""
    _leaving.set()
    ends = [threading.Thread(target=end, args=(process, grace_s)) for process in list(_running)]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join()


def _stand_still_if_leaving() -> None:
    """Whoever runs the stages says and starts nothing any more; the process is about to be gone."""
    if _leaving.is_set():
        threading.Event().wait()


def show(stage: str, job: dict[str, Any], *options: str) -> int:
    """Run `python -m components STAGE` on a job in this terminal; gives its exit code."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"{stage}-") as file:
        yaml.safe_dump(job, file)
        file.flush()
        return subprocess.run([sys.executable, "-m", "components", stage, "--config", file.name, *options]).returncode


def _follow(stage: str, process: subprocess.Popen[str], listen: Listener) -> dict[str, Any]:
    """Read a stage's output until it ends."""
    result: dict[str, Any] | None = None
    error: BadInput | None = None
    tail: deque[str] = deque(maxlen=30)
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith(EVENT):
            tail.append(line.rstrip())
            listen({"event": "log", "stage": stage, "text": line.rstrip()})
            continue
        event = json.loads(line.removeprefix(EVENT))
        if event["event"] == "result":
            result = event
        elif event["event"] == "error":
            error = KINDS.get(event.get("kind", ""), BadInput)(event["text"])
        else:
            listen({**event, "stage": stage})
    code = process.wait()
    _stand_still_if_leaving()
    if error is not None:
        raise error
    if code or result is None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = "\n".join(f"  | {line}" for line in tail)
        raise StageDied(f"{stage} {how} before it finished. What was done is kept: run the same command again and it goes on. Its last lines:\n{last}")
    return result


def end(process: subprocess.Popen[str], grace_s: float = 8.0) -> None:
    """End a stage's whole process group: politely, then surely."""
    for tell, wait_s in ((_ask, grace_s), (_kill, 5.0)):
        if process.poll() is not None:
            return
        tell(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)


def _ask(process: subprocess.Popen[str]) -> None:
    """Once."""
    if process.pid not in _asked and process.poll() is None:
        _asked.add(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
