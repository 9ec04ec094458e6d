"""Checkpoints of a running training: written whole, checked before use, two kept.

A file is `step-00000150-<digest>.ckpt`: its name carries the md5 of its bytes, so damage is seen before anything is
loaded (torch's own reader does not notice flipped bits). It is written beside, flushed and renamed: a kill at any
moment leaves either the old or the new state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from components.schema.records import file_md5

KEPT = 2


class Checkpoints(Callback):
    """Saves every `every` steps and after the last."""

    def __init__(self, folder: Path, every: int, total: int) -> None:
        self.folder, self.every, self.total = folder, every, total

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        if done % self.every and done != self.total:
            return
        temporary = self.folder / "checkpoint.tmp"
        trainer.save_checkpoint(temporary)
        _flush(temporary)
        temporary.rename(self.folder / f"step-{done:08d}-{file_md5(temporary)}.ckpt")
        for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
            old.unlink()


def newest_checkpoint(folder: Path, note: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are removed with a note."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if file_md5(path) == path.stem.rsplit("-", 1)[-1]:
            return path
        note(f"{path.name} is damaged and was removed; going on from the one before it")
        path.unlink()
    return None


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
