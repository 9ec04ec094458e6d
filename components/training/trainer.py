"""One way to train, around Lightning's Trainer: exact resume, several processes, quiet, watched.

How resume is exact. One Lightning epoch is the whole run, and batch i is a pure function of (seed, i), so a run that
goes on only has to know i. Before each step every random generator is seeded from (seed, i), so there is no random
state to lose either (dropout, sampling). What remains, weights, optimizer moments, averages, schedule, loss scale and loop counters, is in
Lightning's checkpoint (`checkpoints.py`); the losses so far stand in a file that only grows (`curve.py`). Killed at any step and started again with the
same `out`, a run therefore ends with the same bits and the same figures, on the same machine, thread and process count. With another
process count or micro-batch size it goes on with the same batches, and ends with the same figures but for rounding.

Several processes (`parallel.py`) run the same program; `fit` returns in the first one alone. The others end there, with exit code 0:
what a stage does after training it does once.

Departure from Lightning's habits: no loader or sampler state. Its own mid-epoch resume needs a stateful loader, and a
plain one repeats samples; here the loader's sampler simply starts at the restored step. And a batch is an optimizer step (`accumulate.py`).
"""

from __future__ import annotations

import copy
import json
import logging
import resource
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel

from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.training import checkpoints, parallel
from components.training.accumulate import WholeBatch
from components.training.checkpoints import KEPT, Checkpoints, Writer, newest_checkpoint, write_whole
from components.training.parallel import device_of
from components.training.seeds import mixed_seed, seed_everything
from components.training.watch import ENDED, Looks, Watch

__all__ = ["Context", "Course", "Looks", "device_of", "fit", "mixed_seed", "peak_memory_mb", "remembered", "seed_everything"]

LOG_EVERY_STEPS = 10
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Context:
    """What a training stage is given besides its config and inputs: never part of the result, but for the seed."""

    seed: int
    loggers: Sequence[Logger] = ()
    """Lightning loggers; `components.stages` hands in MLflow's."""
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    """Takes live progress and notes."""
    resources: Resources = field(default_factory=Resources)
    """Where and how: threads, processes, micro-batches."""
    stop: Callable[[], str | None] = lambda: None
    """Asked after every step: why training is to write a checkpoint and end there, where it is (a budget that is spent)."""

    @property
    def accelerator(self) -> str:
        return self.resources.accelerator

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
    best: dict[str, float] | None = None
    """{"step", "value"} of the best validation, where there was one."""
    ended: dict[str, Any] | None = None
    """{"step", "why"} where the module ended the run before its last step."""
    speed: dict[str, float] = field(default_factory=dict)
    """Shares of the time, share of peak, seconds spent compiling and waiting for checkpoints."""

    def execution(self) -> dict[str, float]:
        """What belongs in a record's `execution`."""
        return {"seconds": round(self.seconds, 3), "tokens_per_s": round(self.tokens_per_s, 1), "peak_memory_mb": round(peak_memory_mb(), 1), **self.speed}


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
    looks: Looks | None = None,
) -> Course:
    """Train `module` on batch(0) ... batch(total - 1), going on from the newest whole checkpoint under `out/work`.

    `batch(i)` is the whole batch of step i: tensors, in tuples, lists or dicts, with rows first. `module.training_step` gets some of the rows and
    returns {"loss": a mean over them, "tokens": how many were read}, "weight" where the mean is over another number than tokens, and, if it
    likes, more numbers to show. Where its attribute `enough` says why after a step (in each process alike), the run ends with that step.
    `identity` is what the run is made of: a work folder left by another run is refused.

    Returns in the first process only. Errors: BadInput (also for a loss that is no number, and for one that diverged).
    """
    work = out / "work"
    _refuse_impossible(module, context)
    if parallel.rank() == 0:
        work.mkdir(parents=True, exist_ok=True)
        _refuse_foreign_work(work, {"seed": context.seed, "total": total, **identity})
    parallel.join(context.resources)
    checkpoint = parallel.from_first(newest_checkpoint(work, context.note) if parallel.rank() == 0 else None)
    run = _Run(module, batch, total, every, work, context, unit, log_every, looks or Looks())
    start = checkpoints.step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        context.note(f"resumed after {unit[:-1]} {start} of {total}")
    went_on = start < total and start != (_ended(work) or {}).get("step")
    if went_on:
        _run_trainer(run, start, checkpoint)
    parallel.leave()
    if not went_on or run.is_cut:  # killed after the last step, while measuring or saving; or trained as a copy in parts
        _take_over(module, run.watch, checkpoints.load(newest_checkpoint(work, context.note)))
    module.to(device_of(context.accelerator))  # Lightning leaves it on the CPU
    losses = _keep_lines(work, out, run.watch)
    best = {"step": run.watch.best_step, "value": run.watch.best} if run.watch.best_step else None
    return Course(losses, run.watch.speed.seconds, run.watch.speed.per_second(), best, _ended(work), run.speed())


class _Run:
    """The parts of one fit, put together."""

    def __init__(self, module: LightningModule, batch: Callable[[int], Any], total: int, every: int, work: Path, context: Context, unit: str, log_every: int, looks: Looks) -> None:
        self.module, self.total, self.context, self.work, self.log_every = module, total, context, work, log_every
        resources = context.resources
        self.is_cut = parallel.is_cut(resources)
        self.share = parallel.data_share(resources)
        self.precision = getattr(getattr(module, "config", None), "precision", "fp32")
        forgiving = bool(getattr(getattr(module, "config", None), "skip_spikes", None))
        self.watch = Watch(total, unit, context, work, batch, looks, self.looking, forgiving)
        self.watch.measure_on(device_of(context.accelerator), self.precision, log_every)
        self.writer = Writer(flush_first=[self.watch.curve.path, self.watch.samples.path])
        keep = getattr(getattr(module, "config", None), "keep_checkpoints", KEPT)
        self.checkpoints = Checkpoints(work, every, total, watch=self.watch, writer=self.writer, seconds=resources.checkpoint_every_seconds, keep=keep)
        self.trained = module

    def loader(self, start: int) -> DataLoader:
        micro = self.context.resources.micro_batch_size
        cut = (lambda whole: parallel.cut(whole, self.share, micro)) if self.module.automatic_optimization else (lambda whole: whole)
        return DataLoader(_Batches(self.watch, cut, self.total), sampler=_From(start, self.total), batch_size=None)

    def trainer(self) -> Trainer:
        resources = self.context.resources
        return Trainer(
            accelerator="gpu" if device_of(resources.accelerator).type == "cuda" else "cpu",
            devices=resources.processes,
            num_nodes=resources.nodes,
            strategy=parallel.strategy_for(resources),
            precision=PRECISIONS[self.precision],
            plugins=[self.writer],
            max_epochs=1,
            logger=list(self.context.loggers) or False,
            log_every_n_steps=self.log_every,
            callbacks=[self.watch, self.checkpoints],  # in this order: the checkpoint holds what the watch knows of the step it follows
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.work,
        )

    @contextmanager
    def looking(self) -> Iterator[None]:
        """The caller's module holds the weights as they are to be measured: whole, and averaged where they are averaged."""
        modes = [(part, part.training) for part in self.module.modules()]
        averaged = getattr(self.trained, "averaged_weights", nullcontext)
        if self.is_cut:
            with averaged():
                parallel.weights_into(self.module, self.trained.trainer.strategy.lightning_module_state_dict)
            if self.watch.first:
                self.module.to(self.watch.device)
            yield
            self.module.to("cpu")
        else:
            with averaged():
                yield
        for part, mode in modes:
            part.training = mode

    def speed(self) -> dict[str, float]:
        """What Course tells of speed."""
        watch = self.watch
        told = {f"time_share_{name}": round(share, 4) for name, share in watch.speed.shares.items()}
        if watch.peak_share is not None:
            told["share_of_peak"] = round(watch.peak_share, 4)
        if self.context.resources.compile and watch.speed.first_steps:
            first, *others = watch.speed.first_steps
            told["compile_seconds"] = round(first - (statistics.median(others) if others else 0.0), 2)
        return {**told, "checkpoint_wait_seconds": round(self.writer.waited_seconds, 3)}


def _run_trainer(run: _Run, start: int, checkpoint: Path | None) -> None:
    """Call Lightning, without its console noise and its handling of SIGTERM."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sigterm = signal.getsignal(signal.SIGTERM)
    if run.is_cut:
        run.trained = copy.deepcopy(run.module.to("cpu"))
        parallel.prepare_cut(run.trained, run.context.resources)
    try:
        with warnings.catch_warnings(), _dressed(run.trained, run.context.resources):
            warnings.filterwarnings("ignore", module=r"lightning\..*")  # few workers, mid-epoch resume: both are meant here
            trainer = run.trainer()
            if run.module.automatic_optimization:
                trainer.fit_loop.epoch_loop.automatic_optimization = WholeBatch(trainer, run.watch, run.share)
            trainer.fit(run.trained, run.loader(start), ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    finally:
        signal.signal(signal.SIGTERM, sigterm or signal.SIG_DFL)
    if run.watch.done != run.total and not run.watch.enough:
        raise RuntimeError(f"training: it ended after {run.watch.done} of {run.total} {run.watch.unit} without an error, so nothing of it is saved. Run it again: it goes on")


def _refuse_impossible(module: LightningModule, context: Context) -> None:
    """What these resources cannot do. Errors: BadInput."""
    resources, config = context.resources, getattr(module, "config", None)
    parallel.check(resources)
    precision = getattr(config, "precision", "fp32")
    if precision == "fp16" and device_of(resources.accelerator).type == "cpu":
        raise BadInput("training: precision=fp16 needs a GPU: a CPU has no fast fp16, and its loss scaler would only hide that. Use precision=fp32 (the fast one on a CPU) or bf16")
    if precision == "fp16" and parallel.is_cut(resources):
        raise BadInput(f"training: precision=fp16 with strategy={resources.strategy}: its loss scaler would judge each part of the model alone. Use bf16, or strategy=ddp")
    if parallel.world() > 1 and not module.automatic_optimization:
        raise BadInput(f"training: {type(module).__name__} takes its own steps, and only in one process: {parallel.world()} would each train a model of its own. Use processes=1")


@contextmanager
def _dressed(module: LightningModule, resources: Resources) -> Iterator[None]:
    """Activation checkpointing and compilation, of the training alone: names and weights stay as they are, and afterwards the model is plain."""
    models = [child for child in module.children() if isinstance(child, PreTrainedModel)]
    compiled = [block for model in models for block in parallel.blocks(model)] if resources.compile else []
    for model in models if resources.activation_checkpointing else ():
        if not model.supports_gradient_checkpointing:
            raise BadInput(f"training: activation_checkpointing is not known to {type(model).__name__}, so it would do nothing. Set it to false")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for block in compiled:
        block.compile()
    try:
        yield
    finally:
        for block in compiled:
            block._compiled_call_impl = None
        for model in models if resources.activation_checkpointing else ():
            model.gradient_checkpointing_disable()


def _take_over(module: LightningModule, watch: Watch, state: dict[str, Any]) -> None:
    """The state of the last checkpoint, where this process has not trained to it."""
    watch.load_state_dict(state["callbacks"][watch.state_key])
    if hasattr(module, "take_over"):
        module.take_over(state)
    else:
        module.load_state_dict(state["state_dict"])


def _ended(work: Path) -> dict[str, Any] | None:
    """Where and why the run ended before its last step, if it did."""
    return json.loads((work / ENDED).read_text(encoding="utf-8")) if (work / ENDED).exists() else None


def _keep_lines(work: Path, out: Path, watch: Watch) -> list[float]:
    """The curve, and samples where there are some, go from the work folder to the result; returns the losses."""
    text = (work / "curve.jsonl").read_bytes()[: watch.curve.size]
    (out / "curve.jsonl").write_bytes(text)
    if watch.samples.size:
        (out / "samples.jsonl").write_bytes((work / "samples.jsonl").read_bytes()[: watch.samples.size])
    return [json.loads(line)["loss"] for line in text.splitlines()]


def _refuse_foreign_work(work: Path, identity: dict[str, Any]) -> None:
    path = work / "run.json"
    mine = json.loads(json.dumps(identity))
    if not path.exists():
        write_whole(path, json.dumps(mine, indent=2))
    theirs = json.loads(path.read_text(encoding="utf-8"))
    if differing := sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k)):
        raise BadInput(f"training: {work} was left by a run with other {', '.join(differing)}: going on from it would mix two experiments. Delete {work.parent} or give another --out")


def remembered(out: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before training: made once, kept in the work folder, and read back by a run that resumes.

    Of several processes the first one measures; the others, which end with the training, get nothing.
    """
    if parallel.rank():
        return {}
    path = out / "work" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def peak_memory_mb() -> float:
    """The most memory this process has held: on the GPU where it used one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class _Batches(Dataset):
    """Batch i, computed when asked for, in the parts that this process reads."""

    def __init__(self, watch: Watch, cut: Callable[[Any], Any], total: int) -> None:
        self.watch, self.cut, self.total = watch, cut, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, i: int) -> Any:
        self.watch.clock.mark("rest")
        batch = self.cut(self.watch.batch(i))
        self.watch.clock.mark("data")
        return batch


class _From(Sampler):
    """The steps from `start` on. Its length is the whole run's, since Lightning counts from the run's beginning."""

    def __init__(self, start: int, total: int) -> None:
        self.total, self.start = total, start

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))
