"""Server, worker and watch as processes that a test kills, with a project of their own: real runs of a real line, and what becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.flows.project import MICRO, Project
from tests.services.stack import free_port

PATIENCE_S = 400.0
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")
# The line ends behind pretraining; its steps take so long that a run can be hit in the middle of it.
SHORT = ("sft=null", "reward=null", "align=null", "evals=null")


@dataclass
class Rig:
    """A small platform whose parts are started and killed one by one."""

    project: Project
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def in_folder(cls, folder: Path, **environment: str) -> Rig:
        """A project copied there, with locks of its own, its data made and a deployment to run."""
        project = Project.copy_to(folder / "project")
        told = {"MODELYARD_SLOT_LOCKS": str(folder / "locks"), "MODELYARD_HOME": str(folder / "yard"), "OMP_NUM_THREADS": "1", "MODELYARD_GPUS": "0", **environment}
        project.environment = told
        return cls(project, environment=told)

    # ------------------------------------------------------------ parts

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "MODELYARD_"))}
        quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore"}
        ours = {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.project.folder.parent / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "2", "MODELYARD_PROJECT": str(self.project.folder)}
        leases = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
        return {**kept, **quiet, **ours, **leases, **self.environment}

    def start(self, name: str) -> None:
        """server, worker or watch"""
        command = {
            "server": ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            "worker": ["flows.platform.worker", "--name", "rig"],
            "watch": ["flows.watching"],
        }[name]
        with (self.project.folder.parent / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.project.folder, env=self.env(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip
        if name == "server":
            self.wait(lambda: self.healthy(), "the server to come up")

    def kill(self, name: str) -> None:
        """SIGKILL to the process alone, as the kernel does it when memory runs out."""
        os.kill(self.parts[name].pid, signal.SIGKILL)
        self.parts.pop(name).wait()

    def stop(self) -> None:
        """End everything that was started here, flow runs included."""
        for process in (*(_pids_in(self.project.folder)), *(part.pid for part in reversed(self.parts.values()))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        time.sleep(3)
        for pid in (*(_pids_in(self.project.folder)), *(part.pid for part in self.parts.values())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for part in self.parts.values():
            part.wait()

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=3) as answer:
            return answer.status == 200
        return False

    # ------------------------------------------------------------ runs

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call; a server that says 503 is asked again."""
        request = urllib.request.Request(self.url + path, method=method, data=None if body is None else json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        for attempt in range(5):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 4:
                    raise AssertionError(f"{method} {path}: {error.code} {error.read()[:2000]!r}") from error
            except OSError:  # a busy server answers late
                if attempt == 4:
                    raise
            time.sleep(2)
        return None

    def parameters(self, *sets: str) -> dict[str, Any]:
        """The micro recipe up to pretraining, as JSON."""
        code = "import sys, json; from components.schema.recipe import Recipe; print(json.dumps(Recipe.load('recipes/tiny.yaml', sys.argv[1:]).model_dump(mode='json')))"
        done = subprocess.run([sys.executable, "-c", code, *MICRO, *SHORT, *sets], cwd=self.project.folder, env=self.env(), capture_output=True, text=True, check=True)
        return {"recipe": json.loads(done.stdout.splitlines()[-1]), "resources": {"threads": 1, "checkpoint_every_seconds": 3}}

    def begin(self, deployment: str, *sets: str) -> str:
        """What the button of the form does; gives the run's id."""
        return self.api("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": self.parameters(*sets), "state": {"type": "SCHEDULED"}})["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.api("GET", f"/flow_runs/{run_id}")

    def states(self, run_id: str) -> list[str]:
        """The names of all its states, in order."""
        return [state["name"] for state in self.api("GET", f"/flow_run_states/?flow_run_id={run_id}")]

    def wait(self, what: Callable[[], Any], name: str, patience_s: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(1.0)
        raise AssertionError(f"waited {patience_s:.0f} s in vain for {name}")

    def state(self, run_id: str, *names: str, patience_s: float = PATIENCE_S) -> str:
        """Wait for a state of one of these names or types."""

        def found() -> str | None:
            run = self.run(run_id)
            if run["state_name"] in names or run["state_type"] in names:
                return run["state_name"]
            assert run["state_type"] not in TERMINAL, f"the run ended {run['state_name']}: {run['state'].get('message')}; states {self.states(run_id)}"
            return None

        return self.wait(found, f"state {' or '.join(names)} of {run_id} (is {self.run(run_id)['state_name']})", patience_s)

    # ------------------------------------------------------------ processes

    def flow_pid(self, run_id: str) -> int | None:
        """The process of a flow run."""
        return next((pid for pid in _pids_in(self.project.folder, "prefect.engine") if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in _environ(pid)), None)

    def stage_pids(self, stage: str = "pretrain") -> list[int]:
        return [pid for pid in _pids_in(self.project.folder, "components") if stage in _words(pid)]

    def step(self) -> int:
        """The newest checkpoint of the pretraining that was begun last."""
        partials = sorted(self._partials(), key=lambda path: path.stat().st_mtime)
        return _newest_step(partials[-1]) if partials else 0

    def _partials(self) -> list[Path]:
        return [path for path in (Path(self.environment["MODELYARD_HOME"]) / "stages").glob("pretrain-*") if path.is_dir()]

    def folders(self) -> set[Path]:
        """Every pretraining that was ever begun here."""
        return {path.with_name(path.name.removesuffix(".partial")) for path in self._partials()}

    def stop_part(self, name: str) -> None:
        """Politely."""
        if name in self.parts:
            part = self.parts.pop(name)
            part.terminate()
            part.wait(60)

    def resumed_at(self, run_id: str) -> list[int]:
        """From which step its pretraining went on, each time."""
        logs = self.api("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"] for run in self.family(run_id)]}}, "limit": 200, "sort": "TIMESTAMP_ASC"})
        return [int(log["message"].split()[3]) for log in logs if log["message"].startswith("resumed after step")]

    def family(self, run_id: str) -> list[dict[str, Any]]:
        """A run and the flow runs within it."""
        below = self.api("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}})
        return [self.run(run_id), *below]


def _newest_step(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in folder.glob("work/step-*.ckpt")), default=0)



def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "environ").read_bytes()
    return b""


def _pids_in(folder: Path, module: str = "") -> list[int]:
    """Python processes whose working directory is this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.readlink(entry / "cwd") == str(folder) and (not module or module in _words(int(entry.name))):
                found.append(int(entry.name))
    return found
