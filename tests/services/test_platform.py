"""A whole platform: it comes up, what is killed comes back, a killed supervisor costs nothing that runs, and `down` leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.project import Project

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

# A flow that says each second that it is alive, and where: on its standard output too, as flows do.
NAPPER = """
import os, time
from prefect import flow
@flow(name="napper")
def napper(seconds: int = 120):
    for second in range(seconds):
        print(f"nap {second}", flush=True)
        open("naps.txt", "a").write(f"{os.getpid()}\\n")
        time.sleep(1)
"""
DEPLOYED = """
name: naps
pull: [{prefect.deployments.steps.set_working_directory: {directory: FOLDER}}]
deployments: [{name: napper, entrypoint: "naps.py:napper", work_pool: {name: modelyard, job_variables: {working_dir: .}}}]
"""


class Yard:
    """A project with a platform of its own, on free ports."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (folder / "repo").mkdir()
        self.project = Project.copy_to(folder / "repo")
        ports = dict(zip(("PREFECT", "MLFLOW", "DASHBOARD", "FEEDBACK", "METRICS"), _free_ports(5), strict=True))
        self.project.environment = {**{f"MODELYARD_{name}_PORT": str(port) for name, port in ports.items()}, "OMP_NUM_THREADS": "1", **environment}
        self.api = f"http://127.0.0.1:{ports['PREFECT']}/api"
        self.home = self.project.folder / ".modelyard"

    def told(self, *words: str, code: int = 0) -> str:
        return self.project.run(*words, code=code, timeout_s=400).stdout

    def status(self) -> dict[str, Any]:
        """Whatever its exit code says."""
        done = subprocess.run([sys.executable, "-m", "flows.cli", "status", "--json"], cwd=self.project.folder, env=self.project.env(), capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout) if done.stdout else {"healthy": False, "children": {}, "said": done.stderr}

    def state(self) -> dict[str, Any]:
        return json.loads((self.home / "platform/state.json").read_text())

    def pid(self, child: str) -> int:
        return self.state()["children"][child]["process"]["pid"]

    def ask(self, path: str, question: dict[str, Any] | None = None) -> Any:
        """As clients of Prefect do: a 503 (its SQLite is busy) is asked again."""
        data = None if question is None else json.dumps(question).encode()
        for seconds in (0.5, 1, 2, 4, 8):
            try:
                with urllib.request.urlopen(urllib.request.Request(self.api + path, data, {"Content-Type": "application/json"}), timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(seconds)
        raise AssertionError(f"{path} is unavailable for a quarter of a minute")

    def marked(self) -> list[int]:
        """Processes that bear the platform's mark, found without our own code."""
        place = (self.home / "platform").resolve()
        mark = f"MODELYARD_PLATFORM={place}#{place.stat().st_ino}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def nap(self) -> str:
        """Start the napper; the flow run's id once it naps."""
        folder = self.project.folder
        (folder / "naps.py").write_text(NAPPER)
        (folder / "naps.yaml").write_text(DEPLOYED.replace("FOLDER", str(folder)))
        env = {**self.project.env(), "PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.home / "prefect")}
        subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "naps.yaml"], cwd=folder, env=env, check=True, capture_output=True, timeout=180)
        deployment = self.ask("/deployments/name/napper/napper")["id"]
        run = self.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": {}, "state": {"type": "SCHEDULED"}})["id"]
        until(lambda: len(self.naps()) > 2, "the napper naps", 120)
        return run

    def naps(self) -> list[str]:
        file = self.project.folder / "naps.txt"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """Up, and down at the end."""
    found = Yard(tmp_path)
    try:
        found.told("up")
        yield found
    finally:
        subprocess.run([sys.executable, "-m", "flows.cli", "down"], cwd=found.project.folder, env=found.project.env(), capture_output=True, timeout=300)
        assert not [os.kill(pid, signal.SIGKILL) for pid in found.marked()], "down left processes"


def test_what_is_killed_comes_back_and_down_leaves_nothing(yard: Yard) -> None:
    told = yard.status()
    assert told["healthy"], told
    assert set(told["children"]) == {"prefect", "mlflow", "worker-1", "watching", "exporter", "dashboard", "feedback"}
    assert told["workers"] and told["addresses"]["prefect"] == yard.api.removesuffix("/api")
    for address in (*told["addresses"].values(), f"{told['addresses']['dashboard']}/_stcore/health"):
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200, address

    before = {child: yard.pid(child) for child in told["children"]}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    time.sleep(1.5)
    assert yard.project.run("status", code=1).stdout.count("BAD") > 1
    until(lambda: yard.status()["healthy"], "everything is back", 400)
    assert not {child: pid for child, pid in before.items() if yard.pid(child) == pid}

    canary = yard.ask("/deployments/name/canary/canary")["id"]
    yard.ask(f"/deployments/{canary}/schedules", [{"active": True, "schedule": {"cron": "15 5 * * *", "timezone": "Europe/Berlin"}}])
    again = yard.told("up")
    assert "is up already" in again
    schedules = {schedule["slug"]: schedule for schedule in yard.ask("/deployments/name/canary/canary")["schedules"]}
    assert set(schedules) == {"daily", None} and schedules[None]["active"] and schedules[None]["schedule"]["timezone"] == "Europe/Berlin"
    assert "The platform is down" in yard.told("down")
    assert not yard.marked() and "No platform was running" in yard.told("down")
    assert "No platform is running here" in yard.project.run("status", code=1).stdout


def test_a_run_outlives_its_worker_and_the_supervisor_and_goes_on_after_down(yard: Yard) -> None:
    run = yard.nap()
    process = yard.naps()[-1]
    os.kill(yard.pid("worker-1"), signal.SIGKILL)
    os.kill(yard.state()["supervisor"]["pid"], signal.SIGKILL)
    napped = len(yard.naps())
    time.sleep(8)
    assert len(yard.naps()) > napped and yard.naps()[-1] == process  # although nobody reads its output, and no server answers
    assert len(yard.marked()) < 5  # the servers went with the supervisor

    said = yard.told("up")
    assert "1 flow runs outlived it and go on" in said
    assert yard.ask(f"/flow_runs/{run}")["state"]["type"] == "RUNNING"
    napped = len(yard.naps())
    until(lambda: len(yard.naps()) > napped + 2, "it still naps", 30)
    assert yard.naps()[-1] == process

    yard.told("down")
    assert not yard.marked()
    yard.told("up")
    state = yard.ask(f"/flow_runs/{run}")["state"]
    assert state["type"] in ("CRASHED", "SCHEDULED", "PENDING", "RUNNING"), state  # it reported its end: the watchdog takes it up from there


def test_a_port_in_use_stops_up_before_anything_starts(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    with socket.create_server(("127.0.0.1", int(yard.project.environment["MODELYARD_MLFLOW_PORT"]))):
        said = yard.project.run("up", code=2).stderr
    assert "(mlflow) is in use by another program, so nothing was started" in said
    assert not yard.marked()


def test_servers_with_accounts_let_nobody_else_in(tmp_path: Path) -> None:
    secrets = {"PREFECT_SERVER_API_AUTH_STRING": "ann:long-enough-1", "MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "long-enough-2", "MODELYARD_HOST": "0.0.0.0"}
    yard = Yard(tmp_path, **secrets)
    try:
        assert "other machines reach these servers" in yard.told("up")
        told = yard.status()
        assert told["healthy"] and told["workers"], told
        for address in (f"{yard.api}/admin/version", f"{told['addresses']['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address, timeout=30)
            assert refused.value.code == 401
        assert "long-enough" not in (yard.home / "platform/state.json").read_text()
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        assert "long-enough" not in listed
        for name in ("PREFECT_SERVER_API_AUTH_STRING",):
            del yard.project.environment[name]
        refused_here = yard.project.run("stage", "data", *yard.project.recipe(), code=2).stderr
        assert "asks for an account and refused ours" in refused_here
    finally:
        yard.project.environment |= secrets
        yard.told("down")
        assert not yard.marked()


def until(condition: Callable[[], Any], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
