"""Who watches a training: seeds each step, judges each loss, keeps the curve, the time and the numbers to look at, and tells them.

Two kinds of numbers. The curve (`curve.jsonl`: loss of every step, held-out losses where measured) is a function of the run alone: the
same bytes however often it was killed. Speed and time go to the loggers and to the progress shown, every so many steps.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel

from components.schema.config import BadInput
from components.training import parallel, peaks
from components.training.checkpoints import write_whole
from components.training.curve import Lines
from components.training.seeds import seed_everything

SECONDS_BETWEEN_EVENTS = 0.25
FIRST_STEPS = 8
ENDED = "ended.json"  # in the work folder of a run that its module ended before its last step
WINDOW, NATS = 32, 3.0  # a run has diverged when the median of so many losses is so far above the least such median


@dataclass
class Looks:
    """What is looked at on the way besides the loss; called in the first process, with the module's averaged weights where there are some."""

    validate: Callable[[int], dict[str, float]] | None = None
    """Held-out numbers after so many steps; the one named `best` decides which checkpoint is the best."""
    validate_every: int = 0
    sample: Callable[[int], list[Any]] | None = None
    """What is written down in samples.jsonl after so many steps."""
    sample_every: int = 0
    best: str = "heldout_loss"

    def due(self, done: int) -> tuple[bool, bool]:
        """Whether to validate and whether to sample after this step."""
        return (
            bool(self.validate and self.validate_every and done % self.validate_every == 0),
            bool(self.sample and self.sample_every and done % self.sample_every == 0),
        )


class Divergence:
    """Says when a loss will not come back.

    One high loss means little (spikes pass), so medians of the last 32 losses are compared: when the newest is more than 3 nats above the
    least one so far, the model has forgotten what it had learnt. Guessing among 20 times as many tokens costs 3 nats.
    """

    def __init__(self, forgiving: bool = False) -> None:
        """`forgiving`: a loss that is no number is let pass, because its step is left out (spikes.py)."""
        self.forgiving = forgiving
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.least = math.inf

    def sees(self, loss: float) -> str | None:
        """What is wrong with this loss, where something is."""
        if not math.isfinite(loss):
            return None if self.forgiving else f"the loss is {loss}"
        self.last.append(loss)
        if len(self.last) < WINDOW:
            return None
        median = statistics.median(self.last)
        self.least = min(self.least, median)
        if median > self.least + NATS:
            return f"the loss diverged: the median of the last {WINDOW} steps is {median:.2f}, and it had been {self.least:.2f}"
        return None

    def state(self) -> dict[str, Any]:
        return {"last": list(self.last), "least": self.least}

    def load(self, state: dict[str, Any]) -> None:
        self.last, self.least = deque(state["last"], maxlen=WINDOW), state["least"]


class Clock:
    """Where the time of a step goes. On a GPU marks are events on its stream, read when the step has ended: nothing waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        """By what was done, over all steps since `restart`."""
        self._marks: list[tuple[str, Any]] = []

    def restart(self) -> None:
        self.seconds, self._marks = {}, []
        self.mark("")

    def mark(self, what: str) -> None:
        """What went on since the last mark was this."""
        now = time.perf_counter()
        if self.on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((what, now))

    def add(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def read(self) -> None:
        """Add up the marks of a step; the last one begins the next step."""
        if self.on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        for (_, before), (what, after) in zip(self._marks, self._marks[1:], strict=False):
            self.add(what, before.elapsed_time(after) / 1000 if self.on_gpu else after - before)
        self._marks = self._marks[-1:]

    def shares(self) -> dict[str, float]:
        """Share of the time by what was done."""
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()} if total else {}


@dataclass
class Speed:
    """Tokens and time of this process's steps, as they add up."""

    tokens: float = 0.0
    seconds: float = 0.0
    first_steps: list[float] = field(default_factory=list)
    """Seconds of the first few steps; of the first one a compiler spends most."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the time by what was done."""

    def per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


class Watch(Callback):
    """Lightning's callback: one for each process; only the first one writes and speaks."""

    def __init__(self, total: int, unit: str, context: Any, work: Path, batch: Callable[[int], Any], looks: Looks, looking: Callable[[], AbstractContextManager[None]], forgiving: bool = False) -> None:
        """`looking`: inside, the caller's module has the weights that are to be measured; `forgiving`: see Divergence."""
        self.total, self.unit, self.context, self.work, self.batch, self.looks, self.looking = total, unit, context, work, batch, looks, looking
        self.first = parallel.rank() == 0
        self.curve, self.samples = Lines(work / "curve.jsonl"), Lines(work / "samples.jsonl")
        self.divergence = Divergence(forgiving)
        self.done, self.last_loss = 0, math.nan
        self.tokens = 0.0
        """Read since the first step, by all processes and starts: an axis on which runs of other batches can be compared."""
        self.best, self.best_step = math.inf, 0
        self.ending = False
        """Whether SIGTERM asked to end after this step."""
        self.over: str | None = None
        """Why the run is to end after this step, to be gone on with another time."""
        self.enough: str | None = None
        """Why the module asked to end the whole run after this step."""
        self.speed = Speed()
        self._told = 0.0
        share, _ = parallel.data_share(context.resources)
        self._stream = (share,) if share else ()  # each share of the data has dropout of its own, the first one that of a single process

    def measure_on(self, device: torch.device, precision: str, log_every: int) -> None:
        """What speed is compared with, and how often it is logged."""
        self.device, self.precision, self.log_every = device, precision, log_every
        self.clock = Clock(device)
        self.peak_share: float | None = None
        self._flops: float | None = None

    # ------------------------------------------------------------ what a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "curve": self.curve.size, "samples": self.samples.size, "last_loss": self.last_loss,
                "divergence": self.divergence.state(), "best": self.best, "best_step": self.best_step, "tokens": self.tokens}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done, self.last_loss, self.best, self.best_step = state["done"], state["last_loss"], state["best"], state["best_step"]
        self.curve.size, self.samples.size = state["curve"], state["samples"]
        self.tokens = state.get("tokens", 0.0)  # checkpoints of earlier versions do not know
        self.divergence.load(state["divergence"])

    # ------------------------------------------------------------ Lightning's hooks

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Lightning's own SIGTERM handler ends the process late and with exit code 0, which would read as success."""
        if trainer.is_global_zero:
            for lines in (self.curve, self.samples):
                lines.go_on()
        signal.signal(signal.SIGTERM, self._asked_to_end)
        self._began = self._logged = time.monotonic()
        self._logged_tokens = 0.0
        self.clock.restart()

    def _asked_to_end(self, *_: Any) -> None:
        self.ending = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.mark("rest")
        seed_everything(self.context.seed, batch_idx, *self._stream)

    def judge(self, loss: float, step: int) -> None:
        """Errors: BadInput for a loss that ends the run."""
        if wrong := self.divergence.sees(loss):
            raise BadInput(
                f"training: {wrong} at {self.unit[:-1]} {step + 1} of {self.total}: the weights are lost. Lower learning_rate or grad_clip_norm, raise warmup_steps, or set skip_spikes"
            )

    def with_batch(self, error: BadInput, step: int) -> BadInput:
        """The same message, with the file in which the step's whole batch now is."""
        path = self.work / f"bad-batch-{step + 1}.pt"
        if self.first:
            torch.save(self.batch(step), path)
        kept = sorted(self.work.glob("step-*.ckpt"))
        before = f"; the checkpoint before it is {kept[-1].name}" if kept else ""
        return BadInput(f"{error}. Its batch ({self.unit[:-1]} {step + 1}) is in {path} (torch.load){before}")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.mark("optimizer")
        shown = {name: float(value) for name, value in outputs.items()}
        if not module.automatic_optimization and not math.isfinite(shown["loss"]):
            self.judge(shown["loss"], batch_idx)
        self.done, self.last_loss = batch_idx + 1, shown["loss"]
        self._count(shown)
        seen = self._look_at(self.done)
        if self.first:
            self.curve.add({"step": self.done, "loss": self.last_loss, **seen})
            self._log(module, shown, seen)
            self._tell(trainer, shown)
        self.over = self.context.stop()
        self.enough = getattr(module, "enough", None)
        if self.enough:
            self._end_early(trainer)

    def _end_early(self, trainer: Trainer) -> None:
        """Written down before the checkpoint: a run that is killed in between comes to the same step again, and ends again."""
        trainer.should_stop = True
        if self.first:
            write_whole(self.work / ENDED, json.dumps({"step": self.done, "why": self.enough}))
            self.context.note(f"ended after {self.unit[:-1]} {self.done} of {self.total}: {self.enough}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.speed.shares = self.clock.shares()
        if self.first:
            self.peak_share = self.share_of_peak(module, self.speed.per_second())

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.curve.close()
        self.samples.close()

    # ------------------------------------------------------------ numbers

    def _count(self, shown: dict[str, float]) -> None:
        self.clock.read()
        shown.pop("weight", None)
        tokens = shown.pop("tokens")
        self.tokens += tokens
        self.speed.tokens += tokens
        before, self.speed.seconds = self.speed.seconds, time.monotonic() - self._began
        if len(self.speed.first_steps) < FIRST_STEPS:
            self.speed.first_steps.append(self.speed.seconds - before)

    def _look_at(self, done: int) -> dict[str, float]:
        """Held-out numbers and samples, where they are due; all processes come here, the first one looks."""
        validate, sample = self.looks.due(done)
        if not (validate or sample):
            return {}
        seen: dict[str, float] = {}
        with self.looking():
            if self.first and validate:
                seen = dict(self.looks.validate(done))
            if self.first and sample:
                for row in self.looks.sample(done):
                    self.samples.add({"step": done, "sample": row})
        if seen.get(self.looks.best, math.inf) < self.best:
            self.best, self.best_step = seen[self.looks.best], done
        self.clock.mark("looking")
        return seen

    def _log(self, module: LightningModule, shown: dict[str, float], seen: dict[str, float]) -> None:
        """Lightning's loggers get these with what the module logged, as one set for the step."""
        if self.done % self.log_every == 0:
            now = time.monotonic()
            speed = (self.speed.tokens - self._logged_tokens) / max(now - self._logged, 1e-9)
            self._logged, self._logged_tokens = now, self.speed.tokens
            numbers = {"loss": self.last_loss, "tokens": self.tokens, "tokens_per_s": speed, **{f"time/{name}": share for name, share in self.clock.shares().items()}}
            if (share := self.share_of_peak(module, speed)) is not None:
                numbers["share_of_peak"] = share
            module.log_dict(numbers)
        for logger in self.context.loggers if seen else ():
            logger.log_metrics(seen, step=self.done - 1)

    def _tell(self, trainer: Trainer, shown: dict[str, float]) -> None:
        if self.speed.seconds - self._told >= SECONDS_BETWEEN_EVENTS or self.done == self.total:
            self._told = self.speed.seconds
            self.context.emit({"event": "progress", "step": self.done, "total": self.total, "unit": self.unit, **shown,
                               "tokens_per_s": self.speed.per_second(), "lr": trainer.optimizers[0].param_groups[0]["lr"]})  # fmt: skip

    def share_of_peak(self, module: LightningModule, tokens_per_s: float) -> float | None:
        """Of what the devices could do at most; None where the model or the device is unknown."""
        if not module.automatic_optimization:
            return None
        if self._flops is None:
            self._flops = _flops(module)
        top = peaks.peak(self.device, self.precision)
        return tokens_per_s * self._flops / (top * parallel.world()) if top and self._flops else None


def _flops(module: LightningModule) -> float:
    """FLOPs of a token of the module's language model; 0 where it has none."""
    model = next((child for child in module.children() if isinstance(child, PreTrainedModel)), None)
    return peaks.flops_per_token(model, getattr(model.config, "max_position_embeddings", 0)) if model is not None else 0.0
