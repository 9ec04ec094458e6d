"""How many flow runs a machine begins at once: places that a run's own process holds, whatever becomes of the worker that started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from components.schema.config import BadInput
from flows.platform import places
from flows.platform.places import Places


@pytest.fixture(autouse=True)
def two_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("MODELYARD_GPUS", "0")
    monkeypatch.setenv("MODELYARD_CPU_SLOTS", "2")
    monkeypatch.delenv("MODELYARD_RUNS", raising=False)


def test_there_are_a_few_more_places_than_slots_unless_it_is_said_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.count() == 4
    monkeypatch.setenv("MODELYARD_RUNS", "1")
    assert places.count() == 1
    monkeypatch.setenv("MODELYARD_RUNS", "0")
    with pytest.raises(BadInput, match="MODELYARD_RUNS='0'"):
        places.count()


def test_two_workers_share_the_places_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_RUNS", "2")
    one, two, run = Places(), Places(), uuid4()
    one.acquire_on_behalf_of_nowait(run)
    two.acquire_on_behalf_of_nowait(uuid4())
    for worker in (one, two):
        with pytest.raises(anyio.WouldBlock):
            worker.acquire_on_behalf_of_nowait(uuid4())
    one.release_on_behalf_of(run)
    two.acquire_on_behalf_of_nowait(uuid4())
    assert (one.borrowed_tokens, two.borrowed_tokens) == (0, 2)
    with pytest.raises(RuntimeError):
        one.release_on_behalf_of(run)


def test_a_run_that_outlived_its_worker_keeps_its_place_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_RUNS", "1")
    worker, run = Places(), uuid4()
    worker.acquire_on_behalf_of_nowait(run)
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=worker.file_of(str(run)))
    worker.release_on_behalf_of(run)  # what the kernel does when it is killed
    try:
        with pytest.raises(anyio.WouldBlock):
            Places().acquire_on_behalf_of_nowait(uuid4())
        assert places.free() == 0
    finally:
        process.communicate()
    assert places.free() == 1
