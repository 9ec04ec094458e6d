"""Finished stages on the store: one prefix a stage, named as its folder here, with record.json written last.

    stages/<stage>-<identity>/model.safetensors ... record.json

A record that can be read there means that everything it names is there. What is fetched is checked file by file
against it, in a folder beside, and moved into place whole. The first result of an identity stays: another machine's
is the same one made again.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from components.schema.config import BadInput, Unavailable
from components.schema.jobs import Job
from components.schema.records import Artifact, Record, file_md5, home
from components.storage.store import Store, configured

Say = Callable[[dict[str, Any]], None]
AT_ONCE = 4  # files on their way together


def standing(name: str, identity: str) -> Record | None:
    """The record of a finished stage on the store, by its folder's name; None where there is none, or no store. Errors: Unavailable, BadInput."""
    store = configured()
    text = store.read(f"{_prefix(name)}/record.json") if store else None
    if text is None:
        return None
    try:
        record = Record.model_validate_json(text)
    except ValueError:
        return None  # half of something: the stage is done again and this written anew
    return record if record.identity == identity and all(map(is_plain, record.files)) else None


def fetch(folder: Path, identity: str, say: Say) -> bool:
    """Bring a finished stage here. False where the store has none. Errors: Unavailable, BadInput where its bytes are not what its record says."""
    store, record = configured(), standing(folder.name, identity)
    if store is None or record is None:
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _stands(folder):
            _fetch_whole(store, record, folder, say)
    return True


def _fetch_whole(store: Store, record: Record, folder: Path, say: Say) -> None:
    arriving = folder.with_name(f"{folder.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)  # of a copy that was cut off
    say({"event": "note", "text": f"fetching {folder.name} from {store.root} ({_size(record)})"})
    try:
        in_parallel(lambda item: _fetch_one(store, folder.name, arriving, *item), record.files.items())
        arriving.mkdir(parents=True, exist_ok=True)
        record.write(arriving)
        if folder.exists():  # damaged, or it would have been reused
            folder.rename(_free_name(folder, "damaged"))
        arriving.rename(folder)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _stands(folder: Path) -> bool:
    """Whether a whole result is here."""
    try:
        return Record.read(folder).damage() is None
    except BadInput:
        return False


def fetch_inputs(inputs: Iterable[Artifact], say: Say) -> None:
    """Bring those inputs here that an earlier stage made on another machine."""
    if configured() is None:
        return
    for part in inputs:
        folder = Path(part.path)
        if not folder.exists() and folder.parent == home() / "stages":
            fetch(folder, part.identity, say)


def push(folder: Path, record: Record, say: Say) -> None:
    """Copy a finished stage there. A store that is away costs a note: it is tried again after the next stage."""
    store = configured()
    if store is None:
        return
    waiting = _waiting(folder.name)
    waiting.parent.mkdir(parents=True, exist_ok=True)
    waiting.write_text(json.dumps({"identity": record.identity}), encoding="utf-8")
    for name in [folder.name, *(path.stem for path in sorted(waiting.parent.glob("*.json")) if path != waiting)]:
        try:
            _push_one(store, folder.with_name(name), say)
        except BadInput as error:  # Unavailable too
            say({"event": "note", "text": f"{name} stands on this machine only, and is copied to {store.root} after the next stage: {error}"})
            if isinstance(error, Unavailable):
                return


def job_standing(job: Job) -> str | None:
    """Where a job's result stands on the store, in words; None where it does not."""
    record = standing(job.folder.name, job.identity)
    store = configured()
    return f"its result stands in {store.url(_prefix(job.folder.name))}" if record and store else None


def _push_one(store: Store, folder: Path, say: Say) -> None:
    if not (folder / "record.json").is_file():  # thrown away since
        _waiting(folder.name).unlink(missing_ok=True)
        return
    record = Record.read(folder)
    there = standing(folder.name, record.identity)
    if there is None:
        in_parallel(lambda name: store.put(folder / name, f"{_prefix(folder.name)}/{name}"), record.files)
        store.write(f"{_prefix(folder.name)}/record.json", (folder / "record.json").read_bytes())
        say({"event": "note", "text": f"copied to {store.url(_prefix(folder.name))} ({_size(record)})"})
    elif there.hash != record.hash:
        say({"event": "note", "text": f"another machine's {folder.name} stays in the store; ours came out with other bytes, as other hardware or threads may"})
    _waiting(folder.name).unlink(missing_ok=True)


def _fetch_one(store: Store, stage: str, arriving: Path, name: str, file: Any) -> None:
    path = arriving / name
    try:
        store.get(f"{_prefix(stage)}/{name}", path)
    except FileNotFoundError:
        raise BadInput(f"storage: {store.url(_prefix(stage))} lacks {name}, which its record names, so it cannot be used. Delete that prefix: the stage is then done anew") from None
    if path.stat().st_size != file.size or file_md5(path) != file.md5:
        raise BadInput(f"storage: {store.url(_prefix(stage))}/{name} has other bytes than its record says, so it cannot be used. Delete that prefix: the stage is then done anew")


def in_parallel(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, items))


def _prefix(name: str) -> str:
    return f"stages/{name}"


def _waiting(name: str) -> Path:
    """A note that a result is not on the store yet."""
    return home() / "storage" / "waiting" / f"{name}.json"


def _free_name(folder: Path, why: str) -> Path:
    number = 1
    while (path := folder.with_name(f"{folder.name}.{why}-{number}")).exists():
        number += 1
    return path


def is_plain(name: str) -> bool:
    """A name that stays inside its folder: a record from elsewhere must not write elsewhere."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and bool(path.parts)


def _size(record: Record) -> str:
    return f"{len(record.files)} files, {sum(file.size for file in record.files.values()) / 1e6:.1f} MB"
