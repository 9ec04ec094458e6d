"""Slots of a host, tried with real processes: what a stage holds, what a killed one gives back, and what nobody can take twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import slots
from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.slots import Need

ROOT = Path(__file__).parents[1]

# Takes slots as a launcher does, starts a child that holds them, says which, and waits.
LAUNCHER = """
import subprocess, sys, time
from components import slots
kind, count, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with slots.held(slots.Need(kind, count), lambda text: print("waits", flush=True)) as taken:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"], pass_fds=taken.files)
    print("has", ",".join(taken.taken), taken.environment.get("CUDA_VISIBLE_DEVICES", "-"), child.pid, flush=True)
    taken.close()
    child.wait()
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("MODELYARD_GPUS", "2")
    monkeypatch.setenv("MODELYARD_CPU_SLOTS", "1")


@pytest.fixture
def launchers() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(launchers: list[subprocess.Popen[str]], kind: str, count: int, seconds: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, kind, str(count), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    launchers.append(process)
    return process


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_two_stages_get_two_devices_and_the_third_waits_for_one_to_end(launchers: list[subprocess.Popen[str]]) -> None:
    first, second = start(launchers, "gpu", 1), start(launchers, "gpu", 1)
    one, two = line(first), line(second)
    assert {one[1], two[1]} == {"0", "1"} and one[1] == one[2]
    third = start(launchers, "gpu", 1)
    assert line(third) == ["waits"]
    os.kill(int(two[3]), signal.SIGKILL)
    assert line(third)[:2] == ["has", two[1]]


def test_a_stage_that_outlives_its_launcher_still_holds_its_device(launchers: list[subprocess.Popen[str]]) -> None:
    first = start(launchers, "gpu", 2)
    child = int(line(first)[3])
    first.kill()
    first.wait()
    assert slots.free("gpu") == 0
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while slots.free("gpu") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slots.free("gpu") == 2


def test_two_that_each_want_both_devices_come_one_after_the_other(launchers: list[subprocess.Popen[str]]) -> None:
    both = [start(launchers, "gpu", 2, 0.3) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.read().split()[-1] == "done"


def test_what_a_stage_takes_follows_from_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots.need("sft", Resources(processes=2)) == Need("gpu", 2)
    assert slots.need("ppo", Resources(processes=2)) == Need("gpu", 1), "a policy samples in one process"
    assert slots.need("sft", Resources(accelerator="cpu", processes=2)) == Need("cpu", 1)
    assert slots.need("data", Resources()) == Need("cpu", 1)
    assert slots.need("release", Resources()) is None
    with pytest.raises(BadInput, match=r"processes=3 takes a GPU each and this host gives 2 \(0, 1\).*--on processes=2"):
        slots.need("sft", Resources(processes=3))
    monkeypatch.setenv("MODELYARD_GPUS", "0")
    assert slots.need("sft", Resources(processes=3)) == Need("cpu", 1)


def test_the_devices_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELYARD_GPUS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    with slots.held(Need("gpu", 1)) as taken:
        assert taken.environment["CUDA_VISIBLE_DEVICES"] == "3"
        assert [row["holder"] != {} for row in slots.holders() if row["kind"] == "gpu"] == [True, False]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.gpus() == ()


def test_a_slot_of_the_processor_hides_the_devices_of_the_host() -> None:
    with slots.held(Need("cpu", 1)) as taken:
        assert taken.environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_slots_that_cannot_be_counted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_CPU_SLOTS", "0")
    with pytest.raises(BadInput, match="MODELYARD_CPU_SLOTS='0' is not a whole number from 1"):
        slots.cpu_slots()


# Gets in a line with a moment of its own, and says when it is its turn.
WAITER = """
import sys, time
from components import slots
slots.asked_at = float(sys.argv[1])
with slots.turn("test"):
    print(sys.argv[1], flush=True)
    time.sleep(float(sys.argv[2]))
"""


def waiter(launchers: list[subprocess.Popen[str]], asked_at: int, seconds: float = 0.0) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WAITER, str(asked_at), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    launchers.append(process)
    return process


def in_line() -> int:
    return len(list((slots.folder() / "test.line").glob("[0-9]*")))


def test_whoever_was_asked_for_first_has_the_next_turn_and_the_dead_have_none(launchers: list[subprocess.Popen[str]]) -> None:
    first = waiter(launchers, 1, 60)
    assert line(first) == ["1"]
    dead, late, early = (waiter(launchers, moment) for moment in (2, 9, 3))
    while in_line() < 4:
        time.sleep(0.05)
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    os.kill(first.pid, signal.SIGKILL)
    assert line(early) == ["3"]
    early.wait(30)
    assert line(late) == ["9"]
    late.wait(30)
    assert in_line() == 0
