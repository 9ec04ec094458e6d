"""One way to train, around Lightning's Trainer: exact resume, quiet, watched.

How resume is exact. One Lightning epoch is the whole run, and batch i is a pure function of (seed, i), so a run that
goes on only has to know i. Before each step every random generator is seeded from (seed, i), so there is no random
state to lose either (dropout, sampling). What remains, weights, optimizer moments, schedule and loop counters, is in
Lightning's checkpoint (`checkpoints.py`), the losses so far with it. Killed at any step and started again with the
same `out`, a run therefore ends with the same bits and the same figures, on the same machine and thread count.

Departure from Lightning's habits: no loader or sampler state. Its own mid-epoch resume needs a stateful loader, and a
plain one repeats samples; here the loader's sampler simply starts at the restored step.
"""

from __future__ import annotations

import json
import logging
import math
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Dataset, Sampler

from components.schema.config import BadInput
from components.training.checkpoints import Checkpoints, newest_checkpoint, write_whole

SECONDS_BETWEEN_EVENTS = 0.25
LOG_EVERY_STEPS = 10


@dataclass(frozen=True)
class Context:
    """What a training stage is given besides its config and inputs: never part of the result, but for the seed."""

    seed: int
    loggers: Sequence[Logger] = ()
    """Lightning loggers; `components.stages` hands in MLflow's."""
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    """Takes live progress and notes."""
    accelerator: Literal["auto", "cpu", "cuda"] = "cpu"

    def note(self, text: str) -> None:
        """One line for the person who watches."""
        self.emit({"event": "note", "text": text})


@dataclass(frozen=True)
class Course:
    """How a fit went."""

    losses: list[float]
    """Loss of every step, those before an interruption included."""
    seconds: float
    """Wall clock of this process's share of the steps."""
    tokens_per_s: float

    def execution(self) -> dict[str, float]:
        """What belongs in a record's `execution`."""
        return {"seconds": round(self.seconds, 3), "tokens_per_s": round(self.tokens_per_s, 1), "peak_memory_mb": round(peak_memory_mb(), 1)}


def fit(
    module: LightningModule,
    batch: Callable[[int], Any],
    total: int,
    *,
    every: int,
    out: Path,
    context: Context,
    identity: dict[str, Any],
    unit: str = "steps",
    log_every: int = LOG_EVERY_STEPS,
) -> Course:
    """Train `module` on batch(0) ... batch(total - 1), going on from the newest whole checkpoint under `out/work`.

    `module.training_step` returns {"loss": ..., "tokens": int} and, if it likes, more numbers to show. `identity` is
    what the run is made of: a work folder left by another run is refused. Errors: BadInput (also for a loss that is no number).
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    _refuse_foreign_work(work, {"seed": context.seed, "total": total, **identity})
    watch = _Watch(total, unit, context)
    sampler = _From(total)
    checkpoint = newest_checkpoint(work, context.note)
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        sampler.start = watch.resume(state)
        context.note(f"resumed after {unit[:-1]} {sampler.start} of {total}")
    if sampler.start == total:  # killed after the last step, while measuring or saving: nothing is left to train
        module.load_state_dict(state["state_dict"])
    else:
        _run_trainer(module, DataLoader(_Batches(batch, total), sampler=sampler, batch_size=None), watch, Checkpoints(work, every, total), checkpoint, log_every)
    module.to(device_of(context.accelerator))  # Lightning leaves it on the CPU
    (out / "curve.jsonl").write_text("".join(json.dumps({"step": i + 1, "loss": loss}) + "\n" for i, loss in enumerate(watch.losses)), encoding="utf-8")
    return Course(list(watch.losses), watch.seconds, watch.tokens / max(watch.seconds, 1e-9))


def _run_trainer(module: LightningModule, loader: DataLoader, watch: _Watch, keep: Checkpoints, checkpoint: Path | None, log_every: int) -> None:
    """Call Lightning, without its console noise and its handling of SIGTERM."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    accelerator = watch.context.accelerator
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")  # few workers, mid-epoch resume: both are meant here
        trainer = Trainer(
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=1,
            max_epochs=1,
            logger=list(watch.context.loggers) or False,
            log_every_n_steps=log_every,
            callbacks=[watch, keep],  # in this order: the checkpoint holds the loss of the step it follows
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=keep.folder,
        )
        trainer.fit(module, loader, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    if len(watch.losses) != watch.total:
        raise RuntimeError(f"training: it ended after {len(watch.losses)} of {watch.total} {watch.unit} without an error, so nothing of it is saved. Run it again: it goes on")


def _refuse_foreign_work(work: Path, identity: dict[str, Any]) -> None:
    path = work / "run.json"
    mine = json.loads(json.dumps(identity))
    if not path.exists():
        write_whole(path, json.dumps(mine, indent=2))
    theirs = json.loads(path.read_text(encoding="utf-8"))
    if differing := sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k)):
        raise BadInput(f"training: {work} was left by a run with other {', '.join(differing)}: going on from it would mix two experiments. Delete {work.parent} or give another --out")


def remembered(out: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before training: made once, kept in the work folder, and read back by a run that resumes."""
    path = out / "work" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def mixed_seed(*parts: int) -> int:
    """One seed from a few whole numbers, such as (seed, step); near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def seed_everything(*parts: int) -> None:
    """Seed torch, numpy and python from a few whole numbers, such as (seed, step)."""
    state = mixed_seed(*parts)
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning will choose for this accelerator."""
    wants_gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if wants_gpu else "cpu")


def peak_memory_mb() -> float:
    """The most memory this process has held: on the GPU where it used one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class _Batches(Dataset):
    """Batch i, computed when asked for."""

    def __init__(self, batch: Callable[[int], Any], total: int) -> None:
        self.batch, self.total = batch, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, i: int) -> Any:
        return self.batch(i)


class _From(Sampler):
    """The steps from `start` on. Its length is the whole run's, since Lightning counts from the run's beginning."""

    def __init__(self, total: int) -> None:
        self.total, self.start = total, 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class _Watch(Callback):
    """Seeds each step, keeps the losses, stops at one that is no number, and tells how it goes."""

    def __init__(self, total: int, unit: str, context: Context) -> None:
        self.total, self.unit, self.context = total, unit, context
        self.losses: list[float] = []
        self.tokens, self.seconds = 0, 0.0
        self._started = self._told = 0.0
        self._sigterm = signal.getsignal(signal.SIGTERM)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])

    def resume(self, checkpoint: dict[str, Any]) -> int:
        """Take over a checkpoint's losses; returns the number of steps done."""
        self.load_state_dict(checkpoint["callbacks"][self.state_key])
        return len(self.losses)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Undo Lightning's SIGTERM handler: it ends the process late and with exit code 0, which would read as success."""
        if signal.getsignal(signal.SIGTERM) is not self._sigterm:
            signal.signal(signal.SIGTERM, self._sigterm or signal.SIG_DFL)
        self._started = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_everything(self.context.seed, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        shown = {name: float(value) for name, value in outputs.items()}
        if not math.isfinite(shown["loss"]):
            raise BadInput(f"training: the loss is {shown['loss']} at {self.unit[:-1]} {batch_idx + 1} of {self.total}: the weights are lost. Lower learning_rate or grad_clip_norm, or raise warmup_steps")
        self.losses.append(shown["loss"])
        self.tokens += int(shown.pop("tokens"))
        self.seconds = time.monotonic() - self._started
        if self.seconds - self._told >= SECONDS_BETWEEN_EVENTS or batch_idx + 1 == self.total:
            self._told = self.seconds
            self.context.emit({"event": "progress", "step": batch_idx + 1, "total": self.total, "unit": self.unit, **shown,
                               "tokens_per_s": self.tokens / self.seconds, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
