"""The queue of a host's slots on a real Prefect server, and the locks behind it: two stages, one device, whatever becomes of the queue."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.rig import Rig

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

# A stage's place in the queue and its slot, as a flow takes them; the work is to note when it began and ended.
WORK = """
import sys, time
from components import slots
from components.schema.jobs import Job, Run
from components.schema.recipe import Resources
from flows import slots as queue
queue.STALE_S, queue.TRY_S = float(sys.argv[3]), 3.0
job = Job(stage="ppo", config={}, run=Run(resources=Resources()))
with queue.queued(job, lambda text: print(text, flush=True)), slots.held(slots.need(job.stage, job.run.resources), lambda text: print(text, flush=True)) as taken:
    print("begins", time.time(), *taken.taken, flush=True)
    time.sleep(float(sys.argv[2]))
    print("ends", time.time(), flush=True)
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig.in_folder(tmp_path_factory.mktemp("slots"), MODELYARD_GPUS="1")
    try:
        rig.start("server")
        yield rig
    finally:
        rig.stop()


def work(rig: Rig, name: str, seconds: float, stale_s: float = 90.0) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORK, name, str(seconds), str(stale_s)], cwd=rig.project.folder, env=rig.env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def times(text: str) -> tuple[float, float]:
    begins, ends = (next(line for line in text.splitlines() if line.startswith(word)) for word in ("begins", "ends"))
    return float(begins.split()[1]), float(ends.split()[1])


def limit(rig: Rig) -> dict[str, object]:
    return next(found for found in rig.api("POST", "/v2/concurrency_limits/filter", {}) if found["name"].startswith("gpu slots of"))


def test_two_at_once_come_one_after_the_other_and_the_queue_shows_it(rig: Rig) -> None:
    both = [work(rig, name, 6) for name in ("a", "b")]
    rig.wait(lambda: any(found["active_slots"] for found in rig.api("POST", "/v2/concurrency_limits/filter", {})), "the queue to show a holder", 60)
    said = [process.communicate(timeout=200)[0] for process in both]
    (a_begins, a_ends), (b_begins, b_ends) = map(times, said)
    assert a_ends <= b_begins or b_ends <= a_begins
    assert "waiting for gpu slot" in "".join(said)
    assert limit(rig)["limit"] == 1


def test_a_place_in_the_queue_that_nobody_gives_back_holds_nobody_up_for_ever(rig: Rig) -> None:
    """A stolen limit: its slot is taken and no lease will ever free it, while the device is free."""
    work(rig, "first", 0).communicate(timeout=100)  # makes the limit
    rig.api("PATCH", f"/v2/concurrency_limits/{limit(rig)['id']}", {"active_slots": 1})
    said, _ = work(rig, "late", 0, stale_s=5.0).communicate(timeout=200)
    rig.api("PATCH", f"/v2/concurrency_limits/{limit(rig)['id']}", {"active_slots": 0})
    assert "stands still although this host has free ones" in said and "begins" in said


def test_a_limit_that_somebody_raised_hands_no_device_out_twice(rig: Rig) -> None:
    work(rig, "first", 0).communicate(timeout=100)
    rig.api("PATCH", f"/v2/concurrency_limits/{limit(rig)['id']}", {"limit": 5})
    holder = work(rig, "holder", 8)
    time.sleep(0.5)
    said = [process.communicate(timeout=200)[0] for process in (holder, work(rig, "other", 0))]
    (a_begins, a_ends), (b_begins, b_ends) = map(times, said)
    assert a_ends <= b_begins or b_ends <= a_begins


def test_without_a_server_the_locks_alone_decide(rig: Rig, tmp_path: Path) -> None:
    rig.kill("server")
    try:
        said, _ = work(rig, "alone", 0).communicate(timeout=300)
        assert "could not be asked" in said and "begins" in said
    finally:
        rig.start("server")
