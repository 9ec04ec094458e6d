"""Two real workers of one machine and more runs than it has places: the others wait on the server, and are begun in the order submitted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.deployed import begin, deploy
from tests.services.rig import Rig

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

PLACES, RUNS = 2, 4
NAPPER = """
import time
from prefect import flow
@flow(name="napper")
def napper(number: int):
    note("begins", number)
    time.sleep(2)
    note("ends", number)
def note(what, number):
    with open("naps.txt", "a") as file:
        file.write(f"{what} {number}\\n")
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig.in_folder(tmp_path, MODELYARD_RUNS=str(PLACES))
    (rig.project.folder / "naps.py").write_text(NAPPER)
    try:
        rig.start("server")
        yield rig
    finally:
        rig.stop()


def states(rig: Rig, runs: list[str]) -> list[str]:
    return [rig.run(run)["state_type"] for run in runs]


def test_runs_beyond_the_places_wait_on_the_server_and_begin_in_the_order_submitted(rig: Rig) -> None:
    for name in ("one", "two"):
        rig.start("worker")
        rig.parts[name] = rig.parts.pop("worker")
    deployment = deploy(rig, "naps.py:napper", "naps")
    runs = [begin(rig, deployment, number=number) for number in range(RUNS)]
    rig.wait(lambda: "RUNNING" in states(rig, runs), "the first to run")
    assert states(rig, runs).count("SCHEDULED") >= len(runs) - PLACES - 1, "nothing of theirs but a line on the server"
    rig.wait(lambda: set(states(rig, runs)) == {"COMPLETED"}, "all to end")
    at_once, begun = 0, []
    for line in (rig.project.folder / "naps.txt").read_text().splitlines():
        what, number = line.split()
        at_once += 1 if what == "begins" else -1
        begun += [int(number)] if what == "begins" else []
        assert at_once <= PLACES
    assert sorted(begun) == list(range(RUNS)) and all(abs(place - number) < PLACES for place, number in enumerate(begun)), begun
