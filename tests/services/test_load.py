"""Eight runs at once on the whole platform while three of its parts are killed: all Completed, in order, none twice. The large one is benchmarks/load.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import load
from tests.services.conftest import need
from tests.services.loaded import Loaded

pytestmark = [pytest.mark.services, pytest.mark.timeout(2400)]

SLOTS = 2


def test_eight_runs_at_once_are_done_once_each_and_in_order_although_three_processes_are_killed(tmp_path: Path) -> None:
    need("postgres")
    with Loaded.opened(tmp_path, slots=SLOTS) as yard:
        seeds = range(1, 9)
        load.prepare(yard, seeds)
        batch = load.run_batch(yard, seeds, kills=3, seed=1, slots=SLOTS)
    assert batch.problems == []
    assert len(batch.kills) == 3 and batch.tries >= len(batch.runs)
    assert len(batch.hashes) == 8 and len(set(batch.hashes.values())) == 8
    assert batch.seen and batch.seen.most["stages"] <= SLOTS and batch.seen.most["flows"] <= SLOTS + 2
