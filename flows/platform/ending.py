"""Ending processes: those of a platform, at whatever depth, and no others.

Everything that a platform starts carries a mark in its environment, so what outlived a killed supervisor or worker is found too.
Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from signal import SIGKILL, SIGTERM

from flows.platform import state as states
from flows.platform.state import Process

MARK = "MODELYARD_PLATFORM"
RUNS_GRACE_S = 60.0
"""What a flow run is given to have its stage write a checkpoint, and to report."""


def mark() -> str:
    """This home's mark: its folder and what the file system calls it, so that a copy of the folder is another one."""
    folder = states.folder()
    folder.mkdir(parents=True, exist_ok=True)
    return f"{folder.resolve()}#{folder.stat().st_ino}"


def marked() -> list[Process]:
    """Every process of this user that this home's platform started, now or earlier; never this one."""
    needle = f"{MARK}={mark()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in (entry / "environ").read_bytes().split(b"\0") and (process := Process.of(int(entry.name))):
                    found.append(process)
    return found


def runs(children: Iterable[Process]) -> list[Process]:
    """Flow runs: marked, not one of the children or in the group of one, and not started by another run."""
    known = {child.pid for child in children}
    others = [process for process in marked() if process.pid not in known and _group(process) not in known]
    pids = {process.pid for process in others}
    return [process for process in others if _parent(process) not in pids]


def end_runs(workers: Iterable[Process], children: Iterable[Process], grace_s: float = RUNS_GRACE_S) -> int:
    """Stop flow runs so that they go on later; how many there were. The servers must still be up: a run reports its own end.

    Workers first, and at once: one that is asked to end kills its runs without a word, and one that lives on would start them again.
    """
    for worker in workers:
        worker.tell(SIGKILL)
    under_way = runs(children)
    end(under_way, grace_s)
    return len(under_way)


def end(processes: Iterable[Process], grace_s: float) -> list[Process]:
    """SIGTERM, then SIGKILL after `grace_s` seconds; those that had to be killed."""
    waiting = [process for process in processes if process.alive]
    for process in waiting:
        process.tell(SIGTERM)
    deadline = time.monotonic() + grace_s
    while (waiting := [process for process in waiting if process.alive]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in waiting:
        process.tell(SIGKILL)
    return waiting


def kill_group(group: int) -> None:
    """What is left of a group whose first process is gone and reaped; by mark, since its number may be another's by now."""
    for process in marked():
        if _group(process) == group:
            process.tell(SIGKILL)


def _group(process: Process) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return 0


def _parent(process: Process) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
