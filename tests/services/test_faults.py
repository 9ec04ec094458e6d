"""Two of benchmarks/faults.py's faults, on shorter trainings: what the table of docs/FAULTS.md says is still so."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from benchmarks.faults import cancel, suffer
from tests.services.conftest import need
from tests.services.loaded import Loaded

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    need("postgres")
    with Loaded.opened(tmp_path_factory.mktemp("faults"), steps=100) as found:
        found.undisturbed()
        yield found


@pytest.mark.parametrize("fault", ["stage", "postgres"])
def test_a_fault_under_load_costs_time_and_nothing_else(yard: Loaded, fault: str) -> None:
    row = suffer(yard, fault, random.Random(5))
    assert row.ended == "Completed, Completed" and not row.problems, row


def test_a_cancelled_run_is_gone_at_once_and_the_same_recipe_goes_on_from_its_checkpoint(yard: Loaded) -> None:
    row = cancel(yard, random.Random(6), alone=False)
    assert row.ended.startswith("Cancelled") and row.ended.endswith("Completed, Completed") and not row.problems, row
