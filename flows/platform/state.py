"""What is known on disk about a platform: MODELYARD_HOME/platform/state.json, written by its supervisor.

A process is named by its pid and the moment it started, since pids come round again. Accounts are not kept here.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from components.schema.config import Config
from components.schema.records import home


class Process(Config):
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

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, only if it still is the same process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ChildState(Config):
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
    began: float | None = None
    """When it was last started, in seconds since 1970."""
    ended: str | None = None
    """How it ended the last time it did so by itself."""
    log: str


class State(Config):
    """A platform, running or killed."""

    supervisor: Process
    project: str
    began: float
    """Seconds since 1970."""
    prefect_url: str
    """Prefect's API, with /api."""
    mlflow_url: str
    dashboard_url: str | None = None
    feedback_url: str | None = None
    metrics_url: str | None = None
    serving_url: str | None = None
    children: dict[str, ChildState] = {}

    @classmethod
    def read(cls) -> State | None:
        """The last platform of this home that was not ended by `modelyard down`."""
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
        arriving = path().with_suffix(".arriving")
        arriving.write_text(self.model_dump_json(indent=2))
        arriving.replace(path())


def folder() -> Path:
    """Where a platform keeps its state and logs."""
    return home() / "platform"


def path() -> Path:
    return folder() / "state.json"


def log_of(name: str) -> Path:
    return folder() / "logs" / f"{name}.log"


def _started(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces and brackets
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
