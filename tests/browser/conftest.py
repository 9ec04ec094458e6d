"""A Prefect server and a worker in a small project, and Chromium to open its pages; all of it skipped where Debian's Chromium is not here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.feedback.people.in_browser import CHROMIUM, OPTIONS
from components.schema.recipe import Recipe
from tests.flows.project import MICRO, ROOT, Project
from tests.services.stack import free_port

READY_S, RUN_S = 200.0, 1500.0
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}


@dataclass
class Prefect:
    """A server of its own, workers in project folders, and the few calls that tests need."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """For the server and whatever talks to it."""
        return {
            **QUIET,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_UI_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_UI_API_URL": f"{self.url}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "MODELYARD_SLOT_LOCKS": str(self.folder / "locks"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> Prefect:
        environment = {**os.environ, **self.environment()}
        self._popen(["server", "start", "--host", "127.0.0.1", "--port", str(self.port)], ROOT, environment, "server")
        wait(lambda: self.get("/health") is True, READY_S, "the Prefect server")
        return self

    def worker(self, project: Project, name: str, *options: str, folder: Path | None = None) -> None:
        """A worker of the pool, ready: started in a project's folder, or elsewhere and told of it by MODELYARD_PROJECT."""
        told = {"MODELYARD_PROJECT": str(project.folder)} if folder else {}
        self._popen(["worker", "start", "--pool", "modelyard", "--name", name, *options], folder or project.folder, {**project.env(), **told}, name)
        wait(lambda: any(w["name"] == name and w["status"] == "ONLINE" for w in self.post("/work_pools/modelyard/workers/filter", {})), READY_S, f"worker {name}")

    def _popen(self, words: list[str], folder: Path, environment: dict[str, str], name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(subprocess.Popen([sys.executable, "-m", "prefect", *words], cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True))

    def stop(self) -> None:
        """Workers before the server; whatever a worker started is in its group or dies with its parent."""
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(f"{self.url}/api{path}"))

    def post(self, path: str, body: Any) -> Any:
        return self._ask(urllib.request.Request(f"{self.url}/api{path}", json.dumps(body).encode(), {"content-type": "application/json"}))

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                return []
            raise
        except OSError:
            return []

    def deployment(self, name: str) -> dict[str, Any]:
        """By flow/name."""
        return self.get(f"/deployments/name/{name}")

    def submit(self, name: str, **changes: Any) -> str:
        """Start a run as the form's button does; gives its id."""
        deployment = self.deployment(name)
        body = {"parameters": {**deployment["parameters"], **changes}, "state": {"type": "SCHEDULED"}}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def ended(self, run: str, within_s: float = RUN_S) -> dict[str, Any]:
        """The run's last state, once it has one."""
        states: list[dict[str, Any]] = []

        def over() -> bool:
            found = self.get(f"/flow_runs/{run}")
            states[:] = [found["state"]] if found else []
            return bool(states) and states[0]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        wait(over, within_s, f"run {run}", lambda: f"{states}\n{self.logs()}")
        return states[0]

    def artifact(self, run: str, key: str) -> str:
        """The text between the fences of a run's markdown artifact."""
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}})
        assert found, f"run {run} has no artifact {key}"
        return found[0]["data"].partition("\n")[2].removesuffix("```").strip()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.log"))


def wait(done: Callable[[], bool], within_s: float, what: str, more: Callable[[], str] = lambda: "") -> None:
    """Until it is so; fails the test where it does not become so in time."""
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s\n{more()}"
        time.sleep(0.5)



def micro(folder: Path, environment: dict[str, str]) -> Project:
    """A clone of the project with recipes that take seconds: the whole line, recipes/micro.yaml, and one that ends with the chat model, recipes/short.yaml."""
    project = Project.copy_to(folder)
    project.environment |= environment
    recipe = Recipe.load(ROOT / "recipes/tiny.yaml", [*MICRO, "name=micro", "data.name=micro", "gate.model_name=modelyard-micro"])
    short = recipe.model_copy(update={"name": "short", "reward": None, "align": None, "evals": None})
    for made in (recipe, short):
        (project.folder / f"recipes/{made.name}.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    project.commit("recipes that take seconds")
    return project


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    server = Prefect(tmp_path_factory.mktemp("prefect"), free_port())
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def project(prefect: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose deployments are registered, with a worker in it."""
    made = micro(tmp_path_factory.mktemp("one") / "project", prefect.environment())
    prefect_command(made, "work-pool", "create", "modelyard", "--type", "process")
    prefect_command(made, "--no-prompt", "deploy", "--all")
    for name in ("micro", "short"):
        made.run("deploy", f"recipes/{name}.yaml", "--threads", "1")
    prefect.worker(made, "one", "--limit", "1")
    return made


def prefect_command(project: Project, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "prefect", *words], cwd=project.folder, env=project.env(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"prefect {' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of Debian's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    if not shutil.which(CHROMIUM):
        pytest.skip("no Chromium here: infra/debian.sh browser")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser.new_page(viewport={"width": 1000, "height": 800})
        browser.close()
