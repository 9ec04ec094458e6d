"""Which of several hosts' watchdogs acts on a run whose own host is gone: one, soon, and once. Real watchdogs; the server is a small model of Prefect's, and the clock is ours.

What a real server does with what they send is shown in tests/services (test_resume.py, test_stack.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Crashed, Running
from prefect.types._datetime import now

from flows import attempts, watchdog
from flows.watchdog import CLAIM, CLAIMED_S, HOST_DEAD_S, OTHERS_FIRST_S, Watchdog

LOOK_EVERY_S = 5.0
SILENT_S = HOST_DEAD_S + OTHERS_FIRST_S  # how long a host must be silent before another one's watchdog acts


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Server:
    """Flow runs with their states, as several clients see them."""

    def __init__(self, run: FlowRun) -> None:
        self.run, self.history = run, [run.state]
        self.seen: FlowRun | None = None
        """What the next looks read: two clients may have asked before either wrote."""
        self.claims: list[str] = []

    def put(self, state: State) -> None:
        state = state.model_copy(update={"id": uuid4(), "timestamp": now("UTC")})
        self.run = self.run.model_copy(update={"state": state, "state_id": state.id})
        self.history.append(state)

    # ------------------------------------------------------------ what a watchdog's client asks

    def read_flow_runs(self, flow_run_filter: FlowRunFilter, **_: Any) -> list[FlowRun]:
        run = self.seen or self.run
        assert flow_run_filter.state and flow_run_filter.state.type and run.state
        return [run] if flow_run_filter.parent_flow_run_id is None and run.state.type in (flow_run_filter.state.type.any_ or ()) else []

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        return self.run

    def read_flow_run_states(self, run_id: UUID) -> list[State]:
        return [state for state in self.history if state]

    def read_task_runs(self, **_: Any) -> list[Any]:
        return []

    def update_flow_run_labels(self, run_id: UUID, labels: dict[str, Any]) -> None:
        self.run = self.run.model_copy(update={"labels": {**(self.run.labels or {}), **labels}})
        self.claims.append(labels[CLAIM])

    def set_flow_run_state(self, run_id: UUID, state: State, force: bool = False) -> Any:
        self.put(state)
        return SimpleNamespace(status=SimpleNamespace(value="ACCEPT"))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", str(tmp_path))
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def server(state: State) -> Server:
    """With one deployed run of a host that is gone."""
    labels = {attempts.TOKEN: "token", attempts.HOST: "lost", attempts.BEAT: 7}
    state = state.model_copy(update={"id": uuid4(), "timestamp": now("UTC")})
    return Server(FlowRun(flow_id=uuid4(), deployment_id=uuid4(), state=state, state_id=state.id, labels=labels))


def dogs(*hosts: str) -> list[Watchdog]:
    found = [Watchdog() for _ in hosts]
    for dog, host in zip(found, hosts, strict=True):
        dog.host = host
    return found


def watch(clock: Clock, at: Server, watching: Sequence[Watchdog], seconds: float, together: bool = False) -> float:
    """Let them look in turn, each every five seconds; `together`: all have read before any writes. Gives when the run was scheduled again, in seconds from now."""
    began = clock.now_s
    while clock.now_s - began < seconds:
        at.seen = at.run if together else None
        for dog in watching:
            dog._look(at)  # type: ignore[arg-type]
            clock.now_s += 0.0 if together else LOOK_EVERY_S / len(watching)
        clock.now_s += LOOK_EVERY_S if together else 0.0
        if at.run.state and at.run.state.type is StateType.SCHEDULED:
            return clock.now_s - began
    return float("inf")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("hosts", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_crashed_run_of_a_lost_host_is_scheduled_again_by_one_of_the_others(clock: Clock, hosts: tuple[str, ...], together: bool) -> None:
    at = server(Crashed())
    watching = dogs(*hosts)
    assert SILENT_S <= watch(clock, at, watching, 300, together) <= SILENT_S + 3 * LOOK_EVERY_S
    watch(clock, at, watching, 60, together)
    assert [state.name for state in at.history if state] == ["Crashed", "AwaitingRetry"], "once"
    assert len(at.claims) <= len(hosts), "nobody takes it from another who has just claimed it"


def test_a_running_one_is_crashed_when_its_host_was_silent_long_enough_and_then_scheduled_again(clock: Clock) -> None:
    at, watching = server(Running()), dogs("a", "b")
    assert watch(clock, at, watching, HOST_DEAD_S) == float("inf") and len(at.history) == 1
    assert watch(clock, at, watching, 300) <= 2 * (OTHERS_FIRST_S + 4 * LOOK_EVERY_S)
    assert [state.name for state in at.history if state] == ["Running", "Crashed", "AwaitingRetry"]


def test_a_host_that_still_beats_is_left_alone(clock: Clock) -> None:
    at, watching = server(Running()), dogs("a", "b")
    for beat in range(40):
        at.run = at.run.model_copy(update={"labels": {**(at.run.labels or {}), attempts.BEAT: beat}})
        watch(clock, at, watching, 20)
    assert len(at.history) == 1 and not at.claims


def test_a_claim_whose_watchdog_died_is_taken_over_after_its_time(clock: Clock) -> None:
    at, watching = server(Crashed()), dogs("a", "b")
    at.run = at.run.model_copy(update={"labels": {**(at.run.labels or {}), CLAIM: f"dead {at.run.state_id}"}})
    took = watch(clock, at, watching, 300)
    assert SILENT_S + CLAIMED_S <= took <= SILENT_S + CLAIMED_S + 4 * LOOK_EVERY_S


def test_a_claim_on_an_earlier_state_binds_nobody(clock: Clock) -> None:
    at = server(Crashed())
    at.run = at.run.model_copy(update={"labels": {**(at.run.labels or {}), CLAIM: f"dead {uuid4()}"}})
    assert watch(clock, at, dogs("a", "b"), 300) <= SILENT_S + 3 * LOOK_EVERY_S


def test_a_host_so_busy_that_its_looks_lie_far_apart_still_sees_that_its_own_process_is_gone(clock: Clock) -> None:
    at, (dog,) = server(Running()), dogs("lost")
    for _ in range(4):
        dog._look(at)  # type: ignore[arg-type]
        clock.now_s += 2 * watchdog.BLIND_S
    assert [state.name for state in at.history if state] == ["Running", "Crashed", "AwaitingRetry"]
