"""The state of an unfinished stage on the store: its newest checkpoint and what goes with it, so that it goes on on another machine.

    unfinished/<stage>-<identity>/<md5>         each file by its content, so that an unchanged one is not sent again
    unfinished/<stage>-<identity>/state.json    which files make one state; replaced last, in one piece

Whoever reads state.json sees one moment whole. A checkpoint speaks of lines written before it, so the other files are
read after it: what they hold beyond it is cut off by the run that resumes.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.schema.config import Config, Unavailable
from components.schema.records import File, file_md5
from components.storage.results import in_parallel, is_plain
from components.storage.store import Store, configured

Say = Callable[[dict[str, Any]], None]
NOT_SENT = (".tmp", ".arriving", ".lock")


class Superseded(Exception):
    """Another machine went on with the stage; its state stays."""


class State(Config):
    """One moment of an unfinished stage."""

    identity: str
    step: int
    """Steps done at its newest checkpoint; 0 = none yet."""
    files: dict[str, File]
    host: str
    """Whose work it is."""
    saved: float
    """Seconds since the epoch."""

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, sum(file.size for file in self.files.values())


class Seen(NamedTuple):
    """What lies in a folder now."""

    checkpoints: tuple[Path, ...]
    """The newest one, and the best one where it is another."""
    others: tuple[Path, ...]
    marks: frozenset[tuple[str, int, int]]
    """Name, size and time of change of everything: differs where anything changed."""


def look(partial: Path) -> Seen:
    """Which files make a state, the newest checkpoint first."""
    found: dict[Path, tuple[str, int, int]] = {}
    for path in sorted(partial.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and not path.name.endswith(NOT_SENT):
                stat = path.stat()
                found[path] = (str(path.relative_to(partial)), stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:  # tidied away meanwhile
            continue
    steps = sorted((path for path in found if _is_checkpoint(path, "step")), key=lambda path: path.name)
    best = [path for path in found if _is_checkpoint(path, "best")]
    kept = (*steps[-1:], *best)
    others = tuple(path for path in found if not (_is_checkpoint(path, "step") or _is_checkpoint(path, "best")))
    return Seen(kept, others, frozenset(found[path] for path in (*kept, *others)))


def local_step(partial: Path) -> int:
    """Steps done at the newest checkpoint here; 0 = none."""
    return max((_step_of(path) for path in partial.rglob("step-*.ckpt") if _is_checkpoint(path, "step")), default=0)


def read(store: Store, name: str, identity: str) -> State | None:
    """The state of a stage on the store. Errors: Unavailable, BadInput."""
    text = store.read(f"{_prefix(name)}/state.json")
    try:
        state = State.model_validate_json(text) if text else None
    except ValidationError:
        return None
    return state if state and state.identity == identity and all(map(is_plain, state.files)) else None


def waiting(partial: Path, identity: str) -> str | None:
    """Where a later state than this machine's lies, in words; None where it does not. Errors: Unavailable, BadInput."""
    store = configured()
    state = read(store, _name(partial), identity) if store else None
    return f"an unfinished run of it (step {state.step}, by {state.host}) stands in {store.root}" if store and state and _is_ahead(state, partial) else None


def bring(partial: Path, identity: str, say: Say) -> None:
    """Replace the folder by the store's state, where that is further. Where it cannot be had whole, what is here goes on. Errors: BadInput."""
    store = configured()
    if store is None:
        return
    try:
        state = read(store, _name(partial), identity)
        if state is None or not _is_ahead(state, partial):
            return
        arriving = partial.with_name(f"{partial.name}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        in_parallel(lambda item: _fetch_one(store, _name(partial), arriving, *item), state.files.items())
    except FileNotFoundError as error:  # the other machine has just sent a later one, or finished
        say({"event": "note", "text": f"what {store.root} has of this stage is not whole ({error}); going on with what is here"})
        return
    except Unavailable as error:
        if not partial.exists():
            raise
        say({"event": "note", "text": f"going on with what is here: {error}"})
        return
    shutil.rmtree(partial, ignore_errors=True)
    arriving.rename(partial)
    say({"event": "note", "text": f"going on from {state.host}'s state of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(state.saved))} (step {state.step}), fetched from {store.root}"})


def send(store: Store, partial: Path, identity: str) -> State | None:
    """Copy one state there; None where the folder changed too much meanwhile. Errors: Superseded, Unavailable, BadInput."""
    name, before = _name(partial), read(store, _name(partial), identity)
    if before and before.step > local_step(partial):
        raise Superseded(f"{store.root} has a later state of this stage (step {before.step}, by {before.host}), so this one is not copied")
    known = {file.md5 for file in before.files.values()} if before else set()
    files: dict[str, File] = {}
    seen = look(partial)
    try:
        for path in (*seen.checkpoints, *seen.others):
            files[str(path.relative_to(partial))] = _send_one(store, name, path, known, path in seen.checkpoints)
    except FileNotFoundError:  # tidied away while it was read: the next look sees its successor
        return None
    step = _step_of(seen.checkpoints[0]) if seen.checkpoints and _is_checkpoint(seen.checkpoints[0], "step") else 0
    state = State(identity=identity, step=step, files=files, host=socket.gethostname(), saved=time.time())
    store.write(f"{_prefix(name)}/state.json", state.model_dump_json().encode())
    store.remove(f"{_prefix(name)}/{md5}" for md5 in known - {file.md5 for file in files.values()})
    return state


def forget(name: str, say: Say) -> None:
    """A finished stage needs no state any more; one that cannot be removed costs space only."""
    store = configured()
    if store is None:
        return
    try:
        keys = store.keys(_prefix(name))
        store.remove(sorted(keys, key=lambda key: not key.endswith("state.json")))  # the list first, then what it lists
    except Exception as error:
        say({"event": "note", "text": f"{store.url(_prefix(name))} is not needed any more and could not be removed ({error})"})


def _is_ahead(state: State, partial: Path) -> bool:
    """By steps; where a stage has no checkpoints, by how much it has written."""
    here = local_step(partial)
    if state.step or here or not partial.exists():
        return not partial.exists() or state.step > here
    return state.progress[1] > sum(path.stat().st_size for path in look(partial).others)


def _send_one(store: Store, name: str, path: Path, known: set[str], is_checkpoint: bool) -> File:
    """A checkpoint never changes and has its md5 in its name; anything else may grow while it is read, so what was read is sent."""
    if is_checkpoint:
        md5, size = path.stem.rsplit("-", 1)[-1], path.stat().st_size
        if md5 not in known:
            store.put(path, f"{_prefix(name)}/{md5}")
    else:
        copy = path.with_name(f"{path.name}.arriving")
        try:
            shutil.copyfile(path, copy)
            md5, size = file_md5(copy), copy.stat().st_size
            if md5 not in known:
                store.put(copy, f"{_prefix(name)}/{md5}")
        finally:
            copy.unlink(missing_ok=True)
    known.add(md5)
    return File(md5=md5, size=size)


def _fetch_one(store: Store, name: str, arriving: Path, file: str, expected: File) -> None:
    path = arriving / file
    store.get(f"{_prefix(name)}/{expected.md5}", path)
    if path.stat().st_size != expected.size or file_md5(path) != expected.md5:
        raise FileNotFoundError(f"{file} has other bytes than it should")


def _is_checkpoint(path: Path, kind: str) -> bool:
    return path.suffix == ".ckpt" and path.name.startswith(f"{kind}-")


def _step_of(path: Path) -> int:
    digits = path.stem.split("-")[-2:-1]
    return int(digits[0]) if digits and digits[0].isdigit() else 0


def _name(partial: Path) -> str:
    return partial.name.removesuffix(".partial")


def _prefix(name: str) -> str:
    return f"unfinished/{name}"

