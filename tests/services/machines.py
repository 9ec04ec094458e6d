"""Machines that share nothing but services: each a clone, a home and locks of its own, and `modelyard up` in it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
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

from tests.flows.project import Project

PATIENCE_S = 1000.0


@dataclass
class Machine:
    """One of them. Everything that runs there has its home in its environment, by which it is found and ended."""

    project: Project
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def cloned(cls, source: Project, folder: Path, **environment: str) -> Machine:
        """A clone of a project, with the compiled loops; no data, no results, no DVC cache."""
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(source.folder), str(folder / "clone")], check=True)
        for compiled in (*source.folder.rglob("*.nb[ic]"), *source.folder.rglob("code.md5")):
            copy = folder / "clone" / compiled.relative_to(source.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compiled, copy)
        own = {"MODELYARD_HOME": str(folder / "yard"), "MODELYARD_SLOT_LOCKS": str(folder / "locks"), "MODELYARD_GPUS": "0", "OMP_NUM_THREADS": "1"}
        project = Project(folder / "clone", own | environment)
        return cls(project, project.environment)

    @property
    def home(self) -> Path:
        return Path(self.environment["MODELYARD_HOME"])

    def up(self) -> str:
        return self.project.run("up", timeout_s=PATIENCE_S).stdout

    def lose(self) -> int:
        """As by a power cut: SIGKILL to everything on it, the supervisor first, so that nothing is started again. Gives how many there were."""
        lost = 0
        while found := sorted(self._pids()):  # a process may have been about to start another one
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            lost += len(found)
            time.sleep(0.2)
        return lost

    def stages(self) -> list[str]:
        """Names of the finished stages that stand here."""
        return sorted(path.parent.name for path in (self.home / "stages").glob("*/record.json"))

    def folder_of(self, stage: str) -> Path | None:
        return next((self.home / "stages" / name for name in self.stages() if name.rsplit("-", 1)[0] == stage), None)

    def _pids(self) -> list[int]:
        wanted = f"MODELYARD_HOME={self.home}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in path.read_bytes().split(b"\0") and (path.parent / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(path.parent.name))
        return found


@dataclass
class Api:
    """A server's REST interface, with an account."""

    address: str
    account: str | None = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers, parsed. Errors: urllib's; Prefect's occasional 503 is asked again."""
        headers = {"Content-Type": "application/json"}
        if self.account:
            headers["Authorization"] = "Basic " + base64.b64encode(self.account.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(5):
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{self.address}{path}", method=method, data=data, headers=headers), timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 4:
                    raise
                time.sleep(1)


def wait_for(what: str, found: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Ask until something comes. Errors: AssertionError."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(OSError):
            if answer := found():
                return answer
        assert time.monotonic() < deadline, f"after {patience_s:.0f} s still waiting for {what}"
        time.sleep(0.3)


def dvc(machine: Machine, *words: str) -> str:
    """DVC's own command in a machine's clone."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=machine.project.folder, env=machine.project.env(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
