"""Checkpoints of a running training: written beside it, whole, checked before use; the last few and the best are kept.

A file is `step-00000150-<digest>.ckpt`: its name carries the md5 of its bytes, so damage is seen before anything is
loaded (torch's own reader does not notice flipped bits). It is written beside, flushed and renamed: a kill at any
moment leaves either the old or the new state.

Training waits only while tensors are copied to host memory. A thread then serialises, flushes and renames; where it is not done when the
next checkpoint is due, training waits for it, and at the end of training everything stands on disk. (CheckFreq, Mohan et al. 2021,
FAST '21, splits snapshot from persisting in the same way.) It goes through Lightning's CheckpointIO, so that a strategy that shards the
model gathers the whole of it first: a file loads on any number of processes.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from components.schema.config import BudgetSpent
from components.schema.records import file_md5
from components.training import parallel

KEPT = 2
TERMINATED = 143  # 128 + SIGTERM, as a shell reports it


class Writer(CheckpointIO):
    """Writes one state at a time in a thread of its own, to `<path>-<digest>.ckpt`."""

    def __init__(self, flush_first: Sequence[Path] = ()) -> None:
        """`flush_first`: files that must be on disk as far as they go before a checkpoint that speaks of them is."""
        self.flush_first = flush_first
        self.waited_seconds = 0.0
        """How long training stood still: for copies to host memory, and for a write that was not done."""
        self.written: Callable[[Path], None] = lambda path: None
        """Called with each finished file, in the writing thread."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        began = time.monotonic()
        self.finish()
        copied, written = on_host(checkpoint), self.written
        self._thread = threading.Thread(target=self._write, args=(copied, Path(path), written), name="checkpoint")
        self._thread.start()
        self.waited_seconds += time.monotonic() - began

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink()

    def finish(self) -> None:
        """Wait until what was begun is on disk. Errors: whatever writing it met (a full disk)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: dict[str, Any], path: Path, written: Callable[[Path], None]) -> None:
        try:
            for file in self.flush_first:
                if file.exists():
                    _flush(file)
            temporary = path.with_name("checkpoint.tmp")
            digest = _save(state, temporary)
            final = path.with_name(f"{path.name}-{digest}.ckpt")
            temporary.rename(final)
            _flush(path.parent)
            written(final)
        except BaseException as error:  # told to the training thread, which stops for it
            self._error = error


class Checkpoints(Callback):
    """Saves every `every` steps, every `seconds` seconds, where validation is best so far, on SIGTERM, when the budget is spent, and after the last step or the one that ended the run.

    Must come behind the callback whose state belongs to the step, and which knows `best_step` and `ending`.
    """

    def __init__(self, folder: Path, every: int, total: int, *, watch: Any, writer: Writer, seconds: float = 0, keep: int = KEPT) -> None:
        self.folder, self.every, self.total, self.seconds, self.keep = folder, every, total, seconds, keep
        self.watch, self.writer = watch, writer

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        late = bool(self.seconds) and time.monotonic() - self._saved >= self.seconds
        is_best = self.watch.best_step == done  # which only the first process knows
        ending, over, late, is_best = parallel.any_process(self.watch.ending, bool(self.watch.over), late, is_best)  # all save together, or none
        if done % self.every == 0 or done == self.total or ending or over or late or is_best or self.watch.enough:
            self.writer.written = lambda path: self._tidy(path, is_best)
            trainer.save_checkpoint(self.folder / f"step-{done:08d}")
            self._saved = time.monotonic()
        if ending and done < self.total and not self.watch.enough:
            self.writer.finish()
            self.watch.context.note(f"asked to end (SIGTERM): a checkpoint was written after {self.watch.unit[:-1]} {done} of {self.total}. Run it again: it goes on from there")
            raise SystemExit(TERMINATED)
        if over and done < self.total and not self.watch.enough:
            self.writer.finish()
            self.watch.context.note(f"a checkpoint was written after {self.watch.unit[:-1]} {done} of {self.total}")
            raise BudgetSpent(self.watch.over or self.watch.context.stop() or "budget: it is spent")  # another process may have seen it first

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.writer.finish()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """What was begun is finished; that it failed matters less than why training ended."""
        try:
            self.writer.finish()
        except Exception as error:
            self.watch.context.note(f"the last checkpoint could not be written ({error})")

    def _tidy(self, path: Path, is_best: bool) -> None:
        if is_best:
            for old in self.folder.glob("best-*.ckpt"):
                old.unlink()
            os.link(path, self.folder / f"best-{path.name}")
        for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
            old.unlink()


def on_host(state: Any) -> Any:
    """The same structure with every tensor copied to host memory, so that training may go on changing its own."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return type(state)((key, on_host(value)) for key, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state


def newest_checkpoint(folder: Path, note: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are removed with a note."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if is_whole(path):
            return path
        note(f"{path.name} is damaged and was removed; going on from the one before it")
        path.unlink()
    return None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint whose validation loss was least, where it is whole."""
    return next((path for path in folder.glob("best-*.ckpt") if is_whole(path)), None)


def is_whole(path: Path) -> bool:
    """Whether the file has the bytes that its name says."""
    return file_md5(path) == path.stem.rsplit("-", 1)[-1]


def step_of(path: Path) -> int:
    """Steps done when it was made."""
    return int(path.stem.split("-")[-2])


def load(path: Path) -> dict[str, Any]:
    """What stands in a checkpoint: tensors (on the CPU) and plain values; anything else is refused by torch."""
    return torch.load(path, map_location="cpu", weights_only=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def _save(state: dict[str, Any], path: Path) -> str:
    """Write a state through to the disk; returns the md5 of the file's bytes."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest.hexdigest()


class _Hashing:
    """A file that is hashed as it is written: it need not be read again."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.md5(usedforsecurity=False)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
