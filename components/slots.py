"""Slots of this host: which GPU, or which share of the processor, a stage may use.

A slot is a lock on a file in a folder that everybody on this host shares, whatever project, server or account started the stage. The stage's own
process inherits the open file, so the slot is taken exactly as long as that process lives: a launcher that is killed leaves nothing behind, and a
stage that outlived its launcher still holds its device. Nothing here needs a server; the queue that people see (flows/slots.py) stands in front.

    MODELYARD_GPUS=2             how many GPUs may be used (default: what CUDA_VISIBLE_DEVICES or the driver names); 1,3 = these
    MODELYARD_CPU_SLOTS=1        stages at once on the processor (default: one for every two cores)
    MODELYARD_SLOT_LOCKS=DIR     the folder of locks (default: /run/lock/modelyard)
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from components.schema.config import BadInput
from components.schema.jobs import TRAINING
from components.schema.recipe import Resources

WITHOUT = ("current-data", "plan-data", "fetch-data", "pin-data", "look-at-data", "release")  # seconds of work; a release must not queue behind somebody's training
POLL_S = 0.5

asked_at: float | None = None
"""When the run was asked for that this process works on, in seconds since 1970: its place in every line here. None = it stands behind whoever is there."""


class Need(NamedTuple):
    """How many slots of which kind."""

    kind: str
    """gpu or cpu"""
    count: int


class Slots:
    """Slots that are held: open, locked files, to be inherited by the process that uses them."""

    def __init__(self, kind: str, taken: dict[str, int]) -> None:
        self.kind, self.taken = kind, taken
        """`taken`: descriptor by the slot's name"""

    @property
    def files(self) -> tuple[int, ...]:
        return tuple(self.taken.values())

    @property
    def environment(self) -> dict[str, str]:
        """What the stage is told: its devices, and on a host with GPUs that a slot of the processor has none."""
        if self.kind == "gpu":
            return {"CUDA_VISIBLE_DEVICES": ",".join(self.taken), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return {"CUDA_VISIBLE_DEVICES": ""} if self.kind == "cpu" and gpus() else {}

    def describe(self, **who: Any) -> None:
        """Leave in the locks who holds them, for people who look (`holders`)."""
        for file in self.taken.values():
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps({**who, "since": time.time()}).encode(), 0)

    def close(self) -> None:
        """Our own copies; a process that inherited them goes on holding."""
        for file in self.taken.values():
            os.close(file)
        self.taken = {}


def need(stage: str, resources: Resources) -> Need | None:
    """What a stage takes; None = nothing. Errors: BadInput where this host could never give it."""
    if stage in WITHOUT:
        return None
    there = gpus()
    if resources.accelerator == "cpu" or not there or stage == "data":
        return Need("cpu", 1)
    count = resources.processes if stage in TRAINING else 1
    if count > len(there):
        raise BadInput(
            f"{stage}: processes={count} takes a GPU each and this host gives {len(there)} ({', '.join(there)}), so it would wait for ever. "
            f"Use --on processes={len(there)}, or --on accelerator=cpu"
        )
    return Need("gpu", count)


@contextmanager
def held(wanted: Need | None, waiting: Callable[[str], None] = lambda text: None) -> Iterator[Slots]:
    """Take slots, waiting as long as it takes; `waiting` hears once that it has to. Inside, start the process with `pass_fds=slots.files`."""
    slots = Slots(wanted.kind, _take(wanted, waiting)) if wanted else Slots("", {})
    try:
        yield slots
    finally:
        slots.close()


def names(kind: str) -> tuple[str, ...]:
    """This host's slots of a kind."""
    return gpus() if kind == "gpu" else tuple(str(number) for number in range(cpu_slots()))


def gpus() -> tuple[str, ...]:
    """The devices that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (asked := os.environ.get("MODELYARD_GPUS", "").strip()) != "":
        return tuple(str(number) for number in range(int(asked))) if asked.isdigit() else tuple(_listed(asked))
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(_listed(visible))
    return _devices()


def cpu_slots() -> int:
    """How many stages may use the processor at once."""
    asked = os.environ.get("MODELYARD_CPU_SLOTS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    if not asked.isdigit() or not int(asked):
        raise BadInput(f"slots: MODELYARD_CPU_SLOTS={asked!r} is not a whole number from 1, so no stage could ever start. Correct or unset it")
    return int(asked)


def free(kind: str) -> int:
    """How many slots of a kind nobody holds now."""
    return sum(is_free(_path(kind, name)) for name in names(kind))


def holders() -> list[dict[str, Any]]:
    """Every slot of this host: kind, name, and who holds it ({} = nobody)."""
    rows = []
    for kind in ("gpu", "cpu"):
        for name in names(kind):
            path = _path(kind, name)
            who: dict[str, Any] = {}
            if not is_free(path):
                with suppress(OSError, ValueError):
                    who = json.loads(path.read_text(encoding="utf-8"))
                who = who or {"pid": None}
            rows.append({"kind": kind, "name": name, "holder": who})
    return rows


def folder() -> Path:
    """Where the locks are: one place for the whole host, writable for every account."""
    given = os.environ.get("MODELYARD_SLOT_LOCKS")
    shared = Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path(tempfile.gettempdir())
    return _shared(Path(given) if given else shared / "modelyard")


def _shared(path: Path) -> Path:
    """A folder in which every account may make files, each its own."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            path.chmod(0o1777)
    return path


@cache
def host() -> str:
    """An id of the place that shares these locks: two containers of one name are two hosts, and so is a machine that lost its locks."""
    path = folder() / "host"
    for _ in range(50):
        with suppress(FileNotFoundError):
            return path.read_text(encoding="utf-8")
        made = path.with_name(f"host.{os.getpid()}")
        made.write_text(f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}", encoding="utf-8")
        with suppress(FileExistsError):
            os.link(made, path)  # whole or not at all
        made.unlink()
    raise BadInput(f"slots: {path} cannot be read, so this host has no name among others. Make {path.parent} readable, or set MODELYARD_SLOT_LOCKS to a folder that is")


def open_lock(path: Path) -> int:
    """A file to be locked. It may belong to another account: it is only made where it is not there yet."""
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o666)
    with suppress(OSError):
        os.fchmod(file, 0o666)
    return file


def try_lock(file: int) -> bool:
    """Whether it is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def turn(name: str, wait: Callable[[], None] = lambda: time.sleep(POLL_S)) -> Iterator[None]:
    """Be first in one of this host's lines, for as long as it takes; `wait` is called until then. Whoever was asked for earlier goes first; the dead stand in no line."""
    line = _shared(folder() / f"{name}.line")
    ticket = line / f"{round((asked_at or time.time()) * 1e6):017d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    arriving = line / f".{ticket.name}"
    file = open_lock(arriving)
    try:
        try_lock(file)
        arriving.rename(ticket)  # nobody sees it unlocked
        while _is_behind(ticket):
            wait()
        yield
    finally:
        for path in (arriving, ticket):
            path.unlink(missing_ok=True)
        os.close(file)


def _is_behind(ticket: Path) -> bool:
    """Whether a living process stands before this one; the tickets of dead ones go."""
    for other in sorted(ticket.parent.iterdir()):
        if other.name >= ticket.name:
            return False
        if other.name.startswith("."):
            continue
        if not is_free(other):
            return True
        with suppress(OSError):
            other.unlink()
    return False


def _take(wanted: Need, waiting: Callable[[str], None]) -> dict[str, int]:
    """Lock so many slots. One waiter at a time collects, so that two who want several never hold what the other lacks."""
    told = False

    def wait() -> None:
        nonlocal told
        if not told:
            told = True
            total = len(names(wanted.kind))
            waiting(f"waiting for {wanted.kind} slot{'s' if wanted.count > 1 else ''}: {wanted.count} of {total} wanted, {free(wanted.kind)} free on this host")
        time.sleep(POLL_S)

    taken: dict[str, int] = {}
    try:
        with turn(wanted.kind, wait):
            while not _collect(wanted, taken):
                wait()
    except BaseException:
        for file in taken.values():
            os.close(file)
        raise
    return taken


def _collect(wanted: Need, taken: dict[str, int]) -> bool:
    """Lock what is free of what is still missing; whether that is enough."""
    for name in names(wanted.kind):
        if len(taken) < wanted.count and name not in taken:
            file = open_lock(_path(wanted.kind, name))
            if try_lock(file):
                taken[name] = file
            else:
                os.close(file)
    return len(taken) == wanted.count


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock on a file, or there is no such file."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _path(kind: str, name: str) -> Path:
    return folder() / f"{kind}-{''.join(c if c.isalnum() or c == '-' else '_' for c in name)}.lock"


def _listed(text: str) -> Iterator[str]:
    """Devices of a list, as CUDA reads it: what stands behind -1 does not count."""
    for name in text.split(","):
        if name.strip() in ("-1", "NoDevFiles"):
            return
        if name.strip():
            yield name.strip()


@cache
def _devices() -> tuple[str, ...]:
    """GPUs that the driver names, without loading torch."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True)
        return tuple(line.strip() for line in told.stdout.splitlines() if line.strip().isdigit())
    with suppress(OSError):
        return tuple(str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").iterdir())))
    return ()
