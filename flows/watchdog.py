"""Runs whose process is gone go on: called every few seconds by `python -m flows.watching`, on every host that has workers.

What is known, and not guessed: each try at a run holds a lock on its host (flows/attempts.py). A lock that nobody holds is a process that is gone, at once
and for sure; a lock that is held is a healthy run, whether or not Prefect's server, its events or this watchdog were away for an hour. A host that is
gone cannot be asked: each try also raises a number on the server every 20 seconds, and one whose number stood still for two minutes *while the watchdog
of another host could see it all the time* is taken for dead. No clock is compared with another.

- Running, and its process is gone: Crashed.
- Crashed, and it has a deployment: scheduled again under the same id (AwaitingRetry), at most MODELYARD_MAX_ATTEMPTS times (20), a little later each
  time; then Failed. Its stages that stand are reused, the one that was cut off goes on from its checkpoint.
- Pending, and nobody began it for three minutes (MODELYARD_PENDING_S): scheduled again.
- Cancelling, and its process is gone: Cancelled. Cancelling, and its process hangs: ended.

One watchdog acts on a run: its host's; for a run of a dead host, or of none, one that has claimed it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
import uuid
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed
from prefect.types._datetime import now

from components import slots
from flows import attempts

logger = logging.getLogger("modelyard.watchdog")

GONE_FOR_S = 4.0  # a process that is gone may have said its last word a moment ago: it is looked at again before anything is done
HOST_DEAD_S = float(os.environ.get("MODELYARD_HOST_DEAD_S", 120))
PENDING_S = float(os.environ.get("MODELYARD_PENDING_S", 180))
HANGS_S = 60.0
TIDY_EVERY_S = 3600.0
LONGEST_DELAY_S = 300.0
RESUMED_WITHIN = timedelta(days=7)  # a crash that is older was left alone by people too
OTHERS_FIRST_S = 20.0
BLIND_S = 20.0  # looks that took so long, or lay so far apart: the server was away
CLAIM = "modelyard.claim"  # label of a flow run
CLAIMED_S = 60.0  # a claim that nothing came of within this time is anybody's
OPEN = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
AT_ONCE = 200


def max_attempts() -> int:
    """How often a run is tried before it fails."""
    return int(os.environ.get("MODELYARD_MAX_ATTEMPTS", 20))


class Watchdog:
    """What one host's watchdog has seen so far; everything is forgotten when the server could not be asked."""

    def __init__(self) -> None:
        self.host = slots.host()
        self.beats: dict[str, tuple[Any, float]] = {}
        """By run: its token and number, and since when they are these."""
        self.since: dict[tuple[str, str, bool], float] = {}
        """By (run, state, whether its process lives): since when."""
        self.claims: dict[str, float] = {}
        """Others' claims, and since when we have seen them."""
        self.looked = self.tidied = -1e9
        self._lock: int | None = None

    def look(self) -> list[str]:
        """Look at every open run once; what was done about them, a sentence each. Errors: whatever the server's client raises."""
        if not self._is_the_one():
            return []
        try:
            with get_client(sync_client=True) as client:
                done = self._look(client)
            if time.monotonic() - self.tidied > TIDY_EVERY_S:
                attempts.tidy()
                self.tidied = time.monotonic()
            return done
        except BaseException:
            self.beats, self.since = {}, {}  # what stood still while we could not see it proves nothing
            raise

    def _is_the_one(self) -> bool:
        """One watchdog for a host and a server, however many platforms run here."""
        if self._lock is None:
            server = hashlib.md5(str(PREFECT_API_URL.value()).encode()).hexdigest()[:12]
            self._lock = slots.open_lock(slots.folder() / f"watchdog-{server}.lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _look(self, client: SyncPrefectClient) -> list[str]:
        began = time.monotonic()
        runs = _open_runs(client)
        if began - self.looked > BLIND_S or time.monotonic() - began > BLIND_S:
            self.beats = {}  # other hosts' numbers may have moved meanwhile; what this host's locks say holds
        self.looked = time.monotonic()
        self._hear(runs)
        done, seen = [], {}
        for run in runs:
            lives = self._lives(run)
            key = (str(run.id), str(run.state_id), lives is not False)
            seen[key] = self.since.get(key, time.monotonic())
            if what := self._act(client, run, lives, time.monotonic() - seen[key]):
                done.append(f"{run.name}: {what}")
        self.since = seen
        return done

    # ------------------------------------------------------------ hosts

    def _hear(self, runs: list[FlowRun]) -> None:
        """Note since when each run's number has stood still, as far as we could see."""
        told = {}
        for run in runs:
            key = (run.labels or {}).get(attempts.TOKEN), (run.labels or {}).get(attempts.BEAT)
            before = self.beats.get(str(run.id))
            told[str(run.id)] = before if before and before[0] == key else (key, time.monotonic())
        self.beats = told

    def _lives(self, run: FlowRun) -> bool | None:
        """Whether the run's process lives; None = cannot be known."""
        host = (run.labels or {}).get(attempts.HOST)
        if host is None or host == self.host:
            here = attempts.holder(str(run.id)) is not None
            return here or (False if host else None)
        return time.monotonic() - self.beats[str(run.id)][1] < HOST_DEAD_S

    def _may_act(self, client: SyncPrefectClient, run: FlowRun, lasted_s: float) -> bool:
        """Whether it is for us to act on a run: our host's at once, another's or nobody's after a while and when no other watchdog claims it."""
        labels = run.labels or {}
        if labels.get(attempts.HOST) == self.host:
            return True
        if lasted_s < OTHERS_FIRST_S:
            return False
        standing = str(labels.get(CLAIM, ""))
        if standing == f"{self.host} {run.state_id}":
            return True
        if standing.endswith(f" {run.state_id}") and time.monotonic() - self.claims.setdefault(standing, time.monotonic()) < CLAIMED_S:
            return False  # another watchdog's, which has its time: two that take it from each other would go on for ever
        client.update_flow_run_labels(run.id, {CLAIM: f"{self.host} {run.state_id}"})  # of two claims the later one stands, and is seen at the next look
        return False

    # ------------------------------------------------------------ runs

    def _act(self, client: SyncPrefectClient, run: FlowRun, lives: bool | None, lasted_s: float) -> str | None:
        """Do what a run needs that has been in this state, with this process, for so long."""
        state = run.state
        assert state is not None
        if lives and state.is_cancelling() and lasted_s > HANGS_S and (found := attempts.holder(str(run.id))):
            attempts.kill(found)
            return "its process did not end when it was cancelled, and was killed"
        patience_s = PENDING_S if state.is_pending() else GONE_FOR_S
        if lasted_s < patience_s or lives or (lives is None and not state.is_crashed() and not state.is_pending()) or not self._may_act(client, run, lasted_s):
            return None
        if state.is_crashed():
            return self._resume(client, run, lasted_s)
        if state.is_pending():
            return self._begin_anew(client, run)
        if state.is_cancelling():
            settle(client, run, Cancelled(message="Its parent run was cancelled."))
            return _set(client, run, Cancelled(message="Cancelled; its process had ended before it could say so. What was done is kept."), force=True)
        settle(client, run, Crashed(message="The process that ran it is gone."))
        return _set(client, run, Crashed(message="The process that ran it is gone (killed, or its host went)."))

    def _begin_anew(self, client: SyncPrefectClient, run: FlowRun) -> str | None:
        """A worker took the run and was gone before it began."""
        message = f"No process began it within {PENDING_S:.0f} s: its worker is gone."
        return _set(client, run, _again(run, message) if run.deployment_id else Crashed(message=message))

    def _resume(self, client: SyncPrefectClient, run: FlowRun, lasted_s: float) -> str | None:
        """Schedule a crashed run again, or say that it was tried often enough."""
        if run.deployment_id is None or run.state is None or now("UTC") - run.state.timestamp > RESUMED_WITHIN:
            return None
        crashes = sum(state.is_crashed() for state in client.read_flow_run_states(run.id))
        if crashes > 1 and lasted_s < min(5.0 * 2 ** (crashes - 1), LONGEST_DELAY_S):
            return None
        settle(client, run, Crashed(message="The process that ran it is gone."))
        most = max_attempts()
        if crashes >= most:
            message = f"Its process died {crashes} times ({str(run.state.message)[:200]}), so it is not tried again. What was done is kept: look at its logs, mend the cause, and press Retry (MODELYARD_MAX_ATTEMPTS={most})"
            return _set(client, run, Failed(message=message), force=True)
        return _set(client, run, _again(run, f"Try {crashes + 1} of {most}: it goes on from what stands and from its last checkpoint. Before: {str(run.state.message)[:200]}"))


def look() -> None:
    """The duty of flows/watching.py: one look by this process's watchdog."""
    global _watchdog
    _watchdog = _watchdog or Watchdog()
    for line in _watchdog.look():
        logger.info(line)


_watchdog: Watchdog | None = None


def _open_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs with a process of their own that somebody works on, or that crashed and could go on."""
    outermost = {"parent_task_run_id": FlowRunFilterParentTaskRunId(is_null_=True)}
    deployed = {"deployment_id": FlowRunFilterDeploymentId(is_null_=False)}
    found: dict[uuid.UUID, FlowRun] = {}
    for which, types in ((outermost, OPEN), (deployed, OPEN), (deployed, (StateType.CRASHED,))):
        wanted = FlowRunFilter(**which, state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
        for run in client.read_flow_runs(flow_run_filter=wanted, limit=AT_ONCE, sort=FlowRunSort.START_TIME_DESC):
            found[run.id] = run
    return [run for run in found.values() if run.state is not None]


def _again(run: FlowRun, message: str) -> State:
    """Scheduled for when it was due first: it keeps its place in front of what was asked for later."""
    return AwaitingRetry(scheduled_time=run.expected_start_time, message=message)


def _set(client: SyncPrefectClient, run: FlowRun, state: State, force: bool = False) -> str | None:
    """Set a state, if the run is still in the one that was judged."""
    if client.read_flow_run(run.id).state_id != run.state_id:
        return None
    answer = client.set_flow_run_state(run.id, state, force=force)
    return f"{state.name}: {state.message}" if answer.status.value == "ACCEPT" else None


def settle(client: SyncPrefectClient, run: FlowRun, state: State) -> None:
    """What belonged to a process that is gone does not run either: its tasks and the flows within it."""
    running = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task in client.read_task_runs(flow_run_filter=mine, task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=running))), limit=AT_ONCE):
        client.set_task_run_state(task.id, state, force=True)
    below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]), state=FlowRunFilterState(type=FlowRunFilterStateType(any_=running)))
    for inner in client.read_flow_runs(flow_run_filter=below, limit=AT_ONCE):
        settle(client, inner, state)
        client.set_flow_run_state(inner.id, state, force=True)
