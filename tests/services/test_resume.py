"""What becomes of real runs when their processes are killed, and of healthy ones when the server is away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.services.deployed import deploy
from tests.services.rig import Rig

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]

# A pretraining of a minute or so, with a checkpoint every three seconds.
LONG = (
    "data.mix.max_epochs=100",
    "model={architecture: llama, hidden_size: 192, layers: 2, heads: 4, intermediate_size: 512, context_tokens: 160}",
    "pretrain={steps: 120, batch_size: 16, learning_rate: 1e-3, warmup_steps: 2, heldout_sequences: 4, checkpoint_every_steps: 1000}",
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, str]]:
    rig = Rig.in_folder(tmp_path_factory.mktemp("rig"))
    try:
        rig.start("server")
        deployment = deploy(rig, "flows.pipeline.train_and_release", "rig")
        rig.start("worker")
        rig.start("watch")
        yield rig, deployment
    finally:
        rig.stop()


def training(rig: tuple[Rig, str], seed: int) -> str:
    """A run that has come to the middle of its pretraining."""
    here, deployment = rig
    for part in ("server", "worker", "watch"):
        if part not in here.parts:
            here.start(part)
    before = here.folders()
    run = here.begin(deployment, *LONG, f"seed={seed}")
    here.state(run, "RUNNING")
    here.wait(lambda: here.folders() - before and here.step() >= 10, "the tenth step")
    return run


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_run_whose_flow_process_is_killed_goes_on_from_its_last_step_under_the_same_id(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 1)
    reached = here.step()
    kill(here.flow_pid(run))
    here.wait(lambda: not here.stage_pids(), "the stage to end with its flow", 70)
    here.state(run, "COMPLETED")
    assert here.states(run).count("AwaitingRetry") == 1 and here.run(run)["run_count"] == 2
    assert here.resumed_at(run) and here.resumed_at(run)[0] >= reached
    assert {inner["state_name"] for inner in here.family(run)} == {"Completed", "Crashed"}, "nothing of the first try is left running"


def test_a_run_whose_stage_alone_is_killed_starts_it_again_and_goes_on_from_its_checkpoint(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 9)
    reached = here.step()
    kill(here.stage_pids()[0])
    here.state(run, "COMPLETED")
    assert here.run(run)["run_count"] == 1 and here.resumed_at(run)[0] >= reached, "the flow's process lived on"


def test_a_run_whose_flow_and_worker_are_killed_goes_on_when_a_worker_is_there(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 2)
    pid = here.flow_pid(run)
    here.kill("worker")
    kill(pid)
    here.wait(lambda: here.run(run)["state_name"] == "AwaitingRetry", "the watchdog", 60)
    here.start("worker")
    here.state(run, "COMPLETED")
    assert "Crashed" in here.states(run) and here.resumed_at(run)[0] >= 10


def test_a_run_whose_worker_alone_is_killed_is_not_disturbed(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 3)
    here.kill("worker")
    here.state(run, "COMPLETED")
    assert here.run(run)["run_count"] == 1 and here.resumed_at(run) == []


def test_a_cancelled_run_stops_within_ten_seconds_with_a_checkpoint_with_and_without_its_worker(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    for seed, alone in ((4, False), (5, True)):
        run = training(rig, seed)
        if alone:
            here.kill("worker")
        reached, began = here.step(), time.monotonic()
        here.api("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        here.wait(lambda run=run: not here.stage_pids() and not here.flow_pid(run), "its processes to end", 60)
        took = time.monotonic() - began
        here.state(run, "CANCELLED")
        assert here.step() > reached or here.step() >= 10
        assert took < 15, f"{took:.1f} s on a machine that others use too"


def test_a_healthy_run_survives_a_server_that_is_away_for_two_minutes(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 6)
    here.kill("server")
    time.sleep(120)
    here.start("server")
    here.state(run, "COMPLETED")
    assert here.states(run)[-2:] == ["Running", "Completed"] and here.run(run)["run_count"] == 1


def test_of_two_tries_at_one_run_the_older_one_ends_itself(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    run = training(rig, 7)
    older, stages = here.flow_pid(run), set(here.stage_pids())
    for state in ({"type": "CRASHED", "name": "Crashed"}, {"type": "SCHEDULED", "name": "AwaitingRetry"}):
        here.api("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
    most = 0
    while here.flow_pid(run) == older or stages & set(here.stage_pids()):
        most = max(most, len(here.stage_pids()))
        time.sleep(0.3)
    here.state(run, "COMPLETED")
    assert most <= 1 and here.states(run)[-1] == "Completed"


def test_a_run_that_always_dies_fails_after_its_attempts_and_says_so(rig: tuple[Rig, str]) -> None:
    here, _ = rig
    here.stop_part("watch")
    here.environment["MODELYARD_MAX_ATTEMPTS"] = "2"
    try:
        here.start("watch")
        run = training(rig, 8)
        kill(here.flow_pid(run))
        here.wait(lambda: here.run(run)["run_count"] == 2 and here.flow_pid(run), "the second try")
        kill(here.flow_pid(run))
        here.wait(lambda: here.run(run)["state_type"] == "FAILED", "the end", 90)
        assert "died 2 times" in here.run(run)["state"]["message"] and "MODELYARD_MAX_ATTEMPTS=2" in here.run(run)["state"]["message"]
    finally:
        del here.environment["MODELYARD_MAX_ATTEMPTS"]
        here.stop_part("watch")
