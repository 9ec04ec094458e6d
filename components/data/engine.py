"""The engine: a step's tasks, run by local processes or on an existing cluster, each finished task kept through a kill.

    results = engine.run(clean_shard, [{"shard": "a.parquet", ...}, ...], work)

`clean_shard(task, out)` gets one task (plain data) and a fresh folder of its own, and returns plain data. Task i's folder
ends as work/00000i with its result beside its files, so a step that is killed goes on with the tasks that are not done.
Tasks know nothing of each other and nothing of who runs them, which is why any engine and any number of workers
give the same bytes.

MODELYARD_ENGINE chooses: `local` (the default: one process a core), `local:4`, or the address of a Dask scheduler,
`tcp://host:8786`, whose workers see the same folders and have this project installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from components.schema.config import BadInput
from components.schema.events import say
from components.schema.records import digest, file_md5, home

Task = dict[str, Any]
Function = Callable[[Task, Path], dict[str, Any]]
SAY_EVERY_S = 2.0
CONNECT_S = 20  # how long a cluster may take to answer
SMALL_BYTES = 16 * 2**20  # files that are read sooner than processes have started


def run(function: Function, tasks: Sequence[Task], work: Path, what: str = "") -> list[dict[str, Any]]:
    """Run every task that is not done yet; results in the order of the tasks. Errors: BadInput from a task."""
    work.mkdir(parents=True, exist_ok=True)
    waiting = [i for i in range(len(tasks)) if not (_folder(work, i) / "result.json").exists()]
    began = said = time.monotonic()
    for done, _ in enumerate(_spread(function, tasks, waiting, work), start=len(tasks) - len(waiting) + 1):
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say({"event": "note", "text": f"{what or function.__name__}: {done} of {len(tasks)} parts, {said - began:.0f} s"})
    return [json.loads((_folder(work, i) / "result.json").read_text(encoding="utf-8")) for i in range(len(tasks))]


@contextlib.contextmanager
def workspace(folder: Path, *depends: Any) -> Iterator[Path]:
    """Where a step's unfinished work is kept: found again by the same step on the same inputs and code, deleted when the step is done.

    `depends`: everything the work follows from; a Path stands for the files under it, by name, size and time of change.
    """
    code = [file_md5(path) for path in sorted(Path(__file__).parent.rglob("*.py"))]
    name = digest([str(folder.absolute()), code, [_stamp(one) if isinstance(one, Path) else one for one in depends]])
    work = home() / "work" / f"{folder.parent.name}-{folder.name}-{name[:16]}"
    yield work
    shutil.rmtree(work, ignore_errors=True)


def _stamp(path: Path) -> list[list[Any]]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def outputs(work: Path, tasks: Sequence[Task], pattern: str = "*.parquet") -> list[Path]:
    """The files that the tasks left, in the order of the tasks."""
    return [path for i in range(len(tasks)) for path in sorted(_folder(work, i).glob(pattern))]


def hand_over(path: Path, to: Path) -> None:
    """Put a task's file where the step's reader looks, and leave it in the work folder too, so that a kill in between loses nothing."""
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:  # another file system
        shutil.copyfile(path, to)


def workers() -> int:
    """How many local processes work at once."""
    name, _, count = _engine().partition(":")
    if name != "local":
        return 1
    try:
        return max(1, int(count)) if count else len(os.sched_getaffinity(0))
    except ValueError:
        raise BadInput(f"engine: MODELYARD_ENGINE={_engine()!r} has no number of processes after the colon, so none could be started. Write for example local:4") from None


def _engine() -> str:
    return os.environ.get("MODELYARD_ENGINE") or "local"


def _folder(work: Path, i: int) -> Path:
    return work / f"{i:06d}"


def _spread(function: Function, tasks: Sequence[Task], waiting: list[int], work: Path) -> Iterator[int]:
    """Numbers of tasks as they are done."""
    engine = _engine()
    if engine.startswith(("tcp://", "tls://")):
        return _on_dask(engine, function, tasks, waiting, work)
    if engine.partition(":")[0] != "local":
        raise BadInput(f"engine: MODELYARD_ENGINE={engine!r} is neither local, local:N nor the address of a Dask scheduler (tcp://host:8786), so nothing can run. Correct or unset it")
    if min(workers(), len(waiting)) <= 1 or _are_small(tasks[i] for i in waiting):
        return (_one(function, tasks[i], _folder(work, i), i) for i in waiting)
    return _on_processes(function, tasks, waiting, work)


def _are_small(tasks: Iterable[Task]) -> bool:
    """Whether the files that these tasks name are few bytes together; tasks that name none may be anything."""
    seen, size = set(), 0
    for value in (one for task in tasks for many in task.values() for one in (many if isinstance(many, list) else [many])):
        if isinstance(value, str) and value not in seen:
            seen.add(value)
            size += os.path.getsize(value) if os.path.isfile(value) else 0
        if size > SMALL_BYTES:
            return False
    return size > 0


def _on_processes(function: Function, tasks: Sequence[Task], waiting: list[int], work: Path) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of Arrow's threads
    with ProcessPoolExecutor(min(workers(), len(waiting)), mp_context=context, initializer=_worker, initargs=(os.getpid(),)) as pool:
        futures = [pool.submit(_one, function, tasks[i], _folder(work, i), i) for i in waiting]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_dask(address: str, function: Function, tasks: Sequence[Task], waiting: list[int], work: Path) -> Iterator[int]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise BadInput("engine: MODELYARD_ENGINE names a Dask scheduler, and Dask is not installed here. Install it: pip install -e '.[dask]'") from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise BadInput(f"engine: the Dask scheduler at {address} does not answer ({error}), so nothing can run. Start it, or unset MODELYARD_ENGINE") from None
    with client:
        futures = [client.submit(_one, function, tasks[i], _folder(work, i).absolute(), i, pure=False) for i in waiting]
        for future in as_completed(futures, loop=client.loop):
            yield future.result()


def _worker(parent: int) -> None:
    """A worker ends with the step: Linux sends it SIGKILL when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _one(function: Function, task: Task, folder: Path, number: int) -> int:
    """Run one task into its folder: made beside it, moved into place whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    result = function(task, partial)
    (partial / "result.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return number
