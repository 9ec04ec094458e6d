"""Killed during any stage and started again, the line ends with the same record hashes as an unbroken run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STAGES = ("pretrain", "sft", "reward", "ppo", "evaluate", "release")


def start(project: Project) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", *project.recipe()], cwd=project.folder, env=project.env(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def processes_of(project: Project, stage: str) -> list[int]:
    """Ids of this project's processes that run `python -m components STAGE`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"components" in words and stage.encode() in words and os.readlink(entry / "cwd") == str(project.folder):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def wait_for(project: Project, stage: str, flow: subprocess.Popen[bytes]) -> list[int]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if found := processes_of(project, stage):
            return found
        assert flow.poll() is None, f"the run ended before {stage} began"
        time.sleep(0.02)
    raise AssertionError(f"{stage} never began")


def hashes(project: Project) -> dict[str, str]:
    return {name: row["hash"] for name, row in project.summary()["stages"].items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return hashes(Project.copy_to(tmp_path_factory.mktemp("unbroken") / "project"))


def test_a_run_whose_flow_is_killed_in_every_stage_ends_with_the_same_hashes(unbroken: dict[str, str], tmp_path: Path) -> None:
    project = Project.copy_to(tmp_path / "project")
    rng = random.Random(time.time_ns())
    for stage in ("data", *STAGES):
        flow = start(project)
        found = wait_for(project, stage, flow)
        delay = rng.uniform(0.2, 4.0)
        print(f"killing the flow {delay:.2f} s into {stage}")
        time.sleep(delay)
        if flow.poll() is None:
            os.kill(flow.pid, signal.SIGKILL)
        flow.wait()
        deadline = time.monotonic() + 30  # it writes a checkpoint first
        while left := [pid for pid in found if pid in processes_of(project, stage)]:
            assert time.monotonic() < deadline, f"{stage} went on as an orphan: {left}"
            time.sleep(0.1)
    assert hashes(project) == unbroken


def test_a_run_whose_stages_are_killed_mends_itself(unbroken: dict[str, str], tmp_path: Path) -> None:
    """Only the stage's process dies; the flow is alive, starts it again, and it goes on from its checkpoint."""
    project = Project.copy_to(tmp_path / "project")
    flow = start(project)
    for stage in STAGES:
        for pid in wait_for(project, stage, flow):
            time.sleep(2.0)
            if pid in processes_of(project, stage):
                os.kill(pid, signal.SIGKILL)
    assert flow.wait(400) == 0
    assert hashes(project) == unbroken
