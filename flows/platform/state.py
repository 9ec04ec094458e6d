"""What is known about a platform on disk, and which processes are really its own.

A process is named by its pid and the moment it started, since pids come round again; and everything that a platform starts carries
its id in the environment, so that what outlives a killed supervisor is found too. Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from components.schema.records import home

MARK = "MODELYARD_PLATFORM_ID"


class Process(BaseModel):
    """One process, told apart from a later one with the same pid."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    boot: str
    """The kernel's id of this boot: after a restart of the machine every pid is another's."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """None where there is no such process, or only its zombie."""
        started = _started(pid)
        return None if started is None else cls(pid=pid, started=started, boot=_boot())

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and _started(self.pid) == self.started

    def signal(self, number: int, group: bool = False) -> None:
        """Only if it still is the same process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)


class ChildState(BaseModel):
    """One child as its supervisor last saw it."""

    process: Process | None = None
    """None while it waits to be started again."""
    address: str | None = None
    """Where a person or a client reaches it."""
    health: str | None = None
    """Address that answers 200 while it is well."""
    ready: bool = False
    """Whether it has answered, or lived for some seconds, since it was last started."""
    starts: int = 0
    ended: str | None = None
    """How it ended the last time it did so by itself."""
    log: str = ""


class State(BaseModel):
    """A platform."""

    id: str
    supervisor: Process
    project: str
    began: float = Field(default_factory=time.time)
    """Seconds since 1970."""
    prefect_url: str
    mlflow_url: str
    dashboard_url: str | None = None
    metrics_url: str | None = None
    accounts: bool = False
    """Whether servers ask for a user and a password (which are not kept here)."""
    children: dict[str, ChildState] = {}

    @classmethod
    def read(cls) -> State | None:
        """The last platform of this home, running or not; None where there was none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return cls.model_validate_json(path().read_text())
        return None

    @classmethod
    def running(cls) -> State | None:
        """The platform whose supervisor lives now."""
        found = cls.read()
        return found if found and found.supervisor.alive else None

    def write(self) -> None:
        """Whole or not at all."""
        arriving = path().with_suffix(f".{os.getpid()}")
        arriving.write_text(self.model_dump_json(indent=2))
        arriving.replace(path())


def folder() -> Path:
    """Where a platform keeps its state and logs."""
    return home() / "platform"


def path() -> Path:
    return folder() / "state.json"


def log_of(name: str) -> Path:
    return folder() / "logs" / f"{name}.log"


def marked(platform_id: str) -> list[Process]:
    """Every process of this user that was started by that platform, at whatever depth; never this one."""
    needle = f"{MARK}={platform_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in (entry / "environ").read_bytes().split(b"\0") and (process := Process.of(int(entry.name))):
                    found.append(process)
    return found


def end(processes: Iterable[Process], grace_s: float) -> list[Process]:
    """SIGTERM, then SIGKILL after `grace_s` seconds; those that had to be killed."""
    waiting = [process for process in processes if process.alive]
    for process in waiting:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (waiting := [process for process in waiting if process.alive]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in waiting:
        process.signal(signal.SIGKILL)
    return waiting


def _started(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces and brackets
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def as_dict(state: State) -> dict[str, Any]:
    return json.loads(state.model_dump_json())
