"""How many flow runs a machine begins at once: places that a run's own process holds, whatever becomes of the worker that started it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest

from components.schema.config import BadInput
from flows.platform import places, worker
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
    for each in (one, two):
        with pytest.raises(anyio.WouldBlock):
            each.acquire_on_behalf_of_nowait(uuid4())
    one.release_on_behalf_of(run)
    two.acquire_on_behalf_of_nowait(uuid4())
    assert (one.borrowed_tokens, two.borrowed_tokens) == (0, 2)
    with pytest.raises(RuntimeError):
        one.release_on_behalf_of(run)


def test_a_run_that_outlived_its_worker_keeps_its_place_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_RUNS", "1")
    one, run = Places(), uuid4()
    one.acquire_on_behalf_of_nowait(run)
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=one.files_of(str(run)))
    one.release_on_behalf_of(run)  # what the kernel does when it is killed
    try:
        with pytest.raises(anyio.WouldBlock):
            Places().acquire_on_behalf_of_nowait(uuid4())
        assert places.free() == 0
    finally:
        process.communicate()
    assert places.free() == 1


def test_a_run_that_could_not_be_begun_gives_its_place_back_and_ends_no_worker() -> None:
    class Worker:
        _submitting_flow_run_ids: set[UUID]

        async def setup(self) -> None:
            self._submitting_flow_run_ids = set()

        async def _submit_run(self, flow_run: Any) -> None:
            raise httpx.ConnectError("refused")

        def _release_limit_slot(self, run: UUID) -> None:
            self._limiter.release_on_behalf_of(run)

    async def submit() -> Worker:
        ours, run = worker.adapted(Worker)(), SimpleNamespace(id=uuid4())
        await ours.setup()
        ours._limiter.acquire_on_behalf_of_nowait(run.id)
        ours._submitting_flow_run_ids.add(run.id)
        await ours._submit_run(run)
        return ours

    left = asyncio.run(submit())
    assert left._limiter.borrowed_tokens == 0 and not left._submitting_flow_run_ids and places.free() == 4
