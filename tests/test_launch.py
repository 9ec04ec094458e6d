"""Ending stages: each is asked once, at once, and its last words are waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import launch

# A stage that counts how often it is asked to end, and needs a second for its checkpoint.
STAGE = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.05)
time.sleep(float(sys.argv[1]))
print(len(asked), flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_is_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", str(tmp_path))  # whoever stands still in one of these tests keeps its slot
    yield
    launch._leaving.clear()
    launch._running.clear()
    launch._asked.clear()


def a_stage(seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", STAGE, str(seconds)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    launch._running.add(process)
    return process


def test_a_stage_that_was_asked_to_end_is_not_interrupted_in_its_last_words() -> None:
    process = a_stage(2.0)
    launch.ask_to_end()
    assert process.poll() is None, "it does not wait"
    time.sleep(0.2)
    launch.leave(20.0)
    assert process.stdout is not None and process.stdout.read() == "1\n" and process.returncode == 0


def test_a_stage_that_does_not_end_is_killed_when_its_time_is_over() -> None:
    process = a_stage(60.0)
    began = time.monotonic()
    launch.leave(0.5)
    assert process.returncode == -9 and time.monotonic() - began < 30


def test_a_process_that_leaves_starts_no_stage_any_more() -> None:
    launch.ask_to_end()
    thread = threading.Thread(target=launch.call, args=("no-such-stage", {}), daemon=True)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive() and not launch._running
