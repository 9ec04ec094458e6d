"""Who works on a flow run: locks that say so, and an older try that makes room, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import attempts

ROOT = Path(__file__).parents[2]

# Holds a run's lock as a try does, without a server.
TRY = """
import json, os, sys, time
from flows import attempts
attempts.YIELD_S = float(sys.argv[2])
began = time.monotonic()
lock = attempts._lock_after_older(sys.argv[1])
os.pwrite(lock, json.dumps({"pid": os.getpid(), "started": attempts._started(os.getpid())}).encode(), 0)
print(round(time.monotonic() - began, 1), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", str(tmp_path))


@pytest.fixture
def tries() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def begin(tries: list[subprocess.Popen[str]], run: str, yield_s: float = 30.0) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", TRY, run, str(yield_s)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    tries.append(process)
    return process


def took(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    return float(process.stdout.readline())


def test_a_run_has_a_holder_for_as_long_as_its_process_lives(tries: list[subprocess.Popen[str]]) -> None:
    assert attempts.holder("a") is None
    first = begin(tries, "a")
    took(first)
    found = attempts.holder("a")
    assert found is not None and found.pid == first.pid
    first.kill()
    first.wait()
    assert attempts.holder("a") is None


def test_a_newer_try_waits_for_the_older_one_and_ends_it_where_it_hangs(tries: list[subprocess.Popen[str]]) -> None:
    older = begin(tries, "a")
    took(older)
    newer = begin(tries, "a", 1.0)
    assert took(newer) >= 1.0
    assert older.wait(10) == -9
    found = attempts.holder("a")
    assert found is not None and found.pid == newer.pid


def test_a_process_that_only_has_the_same_number_is_not_killed(tries: list[subprocess.Popen[str]]) -> None:
    process = begin(tries, "a")
    took(process)
    attempts.kill(attempts.Holder(process.pid, "1"))
    time.sleep(0.3)
    assert process.poll() is None


def test_old_locks_are_removed_and_held_ones_are_not(tries: list[subprocess.Popen[str]]) -> None:
    took(begin(tries, "held"))
    attempts._path("over").touch()
    for name in ("held", "over"):
        os.utime(attempts._path(name), (1, 1))
    attempts.tidy()
    assert attempts._path("held").exists() and not attempts._path("over").exists()
    assert attempts.holder("held") is not None


@pytest.mark.parametrize(("environment", "code", "said"), [({}, 1, "error: run: it was cancelled\n"), ({"PREFECT__FLOW_RUN_ID": "x"}, 0, "")])
def test_a_command_that_was_cancelled_did_not_succeed_and_a_worker_hears_of_no_crash(environment: dict[str, str], code: int, said: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"}
    done = subprocess.run([sys.executable, "-c", "import flows.attempts as a; a.end_process('it was cancelled')"], cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_flow_within_a_run_does_not_wait_for_the_end_of_heartbeats_that_nobody_reads() -> None:
    import inspect

    from prefect import flow_engine

    import flows.tasks  # noqa: F401

    engine = flow_engine.FlowRunEngine(flow=flow_engine.Flow(lambda: None, name="nothing"))
    assert engine.heartbeat_seconds is None
    assert "if heartbeat_seconds is None" in inspect.getsource(flow_engine._send_heartbeats)  # what Prefect itself does then: nothing
