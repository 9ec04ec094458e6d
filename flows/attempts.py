"""One try at a flow run: known to everybody, and ended where another one took its place.

A flow run may be tried several times under one id: after a kill, after a host went, after somebody's mistake. The process of each try

- holds a lock on this host, by which the watchdog (flows/watchdog.py) knows that it lives: no heartbeat, no clock, and right however long the server was away;
- writes its token and its host into the flow run's labels, and a number that grows, by which other hosts see that it lives;
- looks at the flow run every few seconds, and ends itself, with its stages and without a word to the server, where the token is another's or the
  server says that the run is over: two tries never both work. Where the run is being cancelled and the worker does not act, it cancels itself.

It begins when a flow's code is loaded in a process that Prefect started for a flow run (flows/__init__.py), or with the first stage of a flow that
a person started in a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from components import slots
from components.launch import ask_to_end, leave

TOKEN, HOST, BEAT = "modelyard.attempt", "modelyard.host", "modelyard.beat"  # labels of a flow run
LOOK_EVERY_S = 2.0
BEAT_EVERY_S = 20.0
OVER_FOR_S = 8.0  # so long the server must say that the run is over before this try believes it: it may be its own last word
YIELD_S = 30.0  # an older try on this host has so long to write its checkpoint
GRACE_S = 6.0  # for a stage's last checkpoint, once it was asked
KEPT_S = 3 * 86_400

logger = logging.getLogger("modelyard.attempts")
_here: Attempt | None = None


class Holder(NamedTuple):
    """The process that works on a flow run."""

    pid: int
    started: str
    """When it started, in the kernel's ticks: a pid alone may be somebody else's by now."""


class Attempt:
    """This process's try at a flow run."""

    def __init__(self, flow_run_id: str) -> None:
        self.flow_run_id, self.token = flow_run_id, uuid.uuid4().hex
        self.parent = os.getppid()
        self.lock = -1
        self._over: tuple[str, float] | None = None
        self._beats, self._beaten = 0, time.monotonic()

    def begin(self) -> None:
        """Say whose run this is now, wait for an older try here to end, and watch."""
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            self._label(client)
            run = client.read_flow_run(uuid.UUID(self.flow_run_id))
        if due := run.expected_start_time or run.created:
            slots.asked_at = due.timestamp()  # it keeps its place in the line for slots through every stage, and after a kill
        self.lock = _lock_after_older(self.flow_run_id)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, json.dumps({"pid": os.getpid(), "started": _started(os.getpid()), "token": self.token}).encode(), 0)
        threading.Thread(target=self._watch, name="attempt", daemon=True).start()

    def _label(self, client: Any) -> None:
        client.update_flow_run_labels(uuid.UUID(self.flow_run_id), {TOKEN: self.token, HOST: slots.host(), BEAT: 0})

    def _beat(self, client: Any) -> None:
        if time.monotonic() - self._beaten > BEAT_EVERY_S:
            self._beats, self._beaten = self._beats + 1, time.monotonic()
            client.update_flow_run_labels(uuid.UUID(self.flow_run_id), {BEAT: self._beats})

    def _watch(self) -> None:
        from prefect.client.orchestration import get_client

        while True:
            with suppress(Exception), get_client(sync_client=True) as client:  # the server is away: whoever is alone goes on
                while True:
                    time.sleep(LOOK_EVERY_S)
                    self._look(client)
            time.sleep(LOOK_EVERY_S)

    def _look(self, client: Any) -> None:
        """Once: is this run still ours, and is it still to be done?"""
        run = client.read_flow_run(uuid.UUID(self.flow_run_id))
        found = (run.labels or {}).get(TOKEN)
        if found is None:  # somebody wrote the labels as they had been before
            self._label(client)
        elif found != self.token:
            self._go("another try at this run took over")
        self._beat(client)
        state = run.state
        if state is None or state.is_running() or state.is_pending() or state.is_paused():
            self._over = None
            return
        if self._over is None or self._over[0] != str(state.id):
            self._over = (str(state.id), time.monotonic())
        lasted = time.monotonic() - self._over[1]
        if state.is_cancelling():
            ask_to_end()  # whoever ends this process, its stages begin with their checkpoints now
        if state.is_cancelling() and lasted >= self._wait_for_worker():
            self._cancel(client)
        elif not state.is_cancelling() and lasted > OVER_FOR_S:
            self._go(f"the server says that this run is {state.name}")

    def _wait_for_worker(self) -> float:
        """How long the worker has to do the cancelling, in seconds. It loses sight of its runs when the server was away."""
        from prefect._internal.control_listener import get_intent

        if "PREFECT__FLOW_RUN_ID" not in os.environ or os.getppid() != self.parent:
            return 0.0  # there is none
        return OVER_FOR_S * 3 if get_intent() else LOOK_EVERY_S - 0.5

    def _go(self, why: str) -> None:
        """Stop working, say nothing to the server: the run is not ours to speak of."""
        logger.warning("flow run %s: %s; this process ends", self.flow_run_id, why)
        leave(GRACE_S)
        end_process(f"{why}, so this process ended. What was done is kept")

    def _cancel(self, client: Any) -> None:
        """What the worker would do, were it there: stages end with a checkpoint, the run is Cancelled."""
        from prefect.states import Cancelled

        from flows.watchdog import settle

        leave(GRACE_S)
        with suppress(Exception):
            settle(client, client.read_flow_run(uuid.UUID(self.flow_run_id)), Cancelled(message="Its run was cancelled."))
        with suppress(Exception):
            client.set_flow_run_state(uuid.UUID(self.flow_run_id), Cancelled(message="Cancelled by the flow's own process; what was done is kept."), force=True)
        end_process("this run was cancelled. What was done is kept: the same command goes on from there")


def begin(flow_run_id: str) -> None:
    """This process tries this flow run; once."""
    global _here
    if _here is None:
        _here = Attempt(flow_run_id)
        _here.begin()


def begin_for_engine() -> None:
    """In a process that Prefect started for one flow run, before the run is Running."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name in ("prefect.engine", "prefect.flow_engine") and (flow_run_id := os.environ.get("PREFECT__FLOW_RUN_ID")):
        from flows import outages

        outages.ride()
        begin(flow_run_id)


def begin_here() -> None:
    """In a flow that a person started: the outermost flow run of this process. A server that cannot be asked costs only the watch."""
    if _here is not None:
        return
    from prefect.runtime import flow_run

    root = flow_run.root_flow_run_id or flow_run.id
    if root:
        with suppress(Exception):
            begin(str(root))


def end_process(why: str) -> NoReturn:
    """At once, past Prefect's engine, which would speak for the run. A worker reports every code but 0 as a crash; a person's command did not succeed."""
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        os._exit(0)
    print(f"error: run: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def holder(flow_run_id: str) -> Holder | None:
    """The living process on this host that works on a flow run; None = there is none here."""
    path = _path(flow_run_id)
    if not path.exists():
        return None
    file = slots.open_lock(path)
    try:
        if slots.try_lock(file):
            return None
        return _written(file)
    finally:
        os.close(file)


def tidy() -> None:
    """Remove locks that nobody has held for days; whoever comes later makes a new one."""
    for path in _folder().glob("*.lock"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < KEPT_S:
                continue
            file = slots.open_lock(path)
            if slots.try_lock(file):
                path.unlink()
            os.close(file)


def kill(found: Holder) -> None:
    """End a process surely, if it is still the one that was meant; its stages write a checkpoint and end with it."""
    if _started(found.pid) == found.started:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(found.pid, signal.SIGKILL)


def _lock_after_older(flow_run_id: str) -> int:
    """Lock this run on this host. An older try sees the new token and ends; one that hangs is ended."""
    file = slots.open_lock(_path(flow_run_id))
    deadline = time.monotonic() + YIELD_S
    while True:
        if slots.try_lock(file):
            if os.path.exists(_path(flow_run_id)) and os.path.samestat(os.fstat(file), os.stat(_path(flow_run_id))):
                return file
            os.close(file)  # somebody tidied up just now
            file = slots.open_lock(_path(flow_run_id))
            continue
        if time.monotonic() > deadline and (older := _written(file)) and older.pid != os.getpid():
            kill(older)
            deadline = time.monotonic() + YIELD_S
        time.sleep(0.2)


def _written(file: int) -> Holder | None:
    try:
        said: dict[str, Any] = json.loads(os.pread(file, 4096, 0))
        return Holder(said["pid"], said["started"])
    except (ValueError, KeyError):
        return Holder(-1, "")  # it is just being written


def _folder() -> Path:
    folder = slots.folder() / "runs"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        with suppress(OSError):
            folder.chmod(0o1777)
    return folder


def _path(flow_run_id: str) -> Path:
    return _folder() / f"{flow_run_id}.lock"


def _started(pid: int) -> str:
    """The kernel's start time of a process; empty where there is none (or only its remains)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]

