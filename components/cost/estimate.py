"""What a stage will use, from what earlier stages of its kind used: their loop's time scaled by tokens times parameters, the rest as it was.

Training is 6 FLOPs for each parameter and token (Kaplan et al. 2020, arXiv:2001.08361), sampling and scoring 2, so between two runs of one stage
on one device time follows tokens times parameters as long as the device is as busy. That fails between a model too small to fill a
device and one that fills it, so every estimate names the run that it is from and how much more work is asked; nothing to go by is said too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.schema import presets
from components.schema.config import BadInput, Config
from components.schema.cost import Prices, Usage, of_record, total
from components.schema.jobs import SCORERS, Job
from components.schema.records import Record, home

EXAMPLES = ("sft", *SCORERS, "dpo")  # steps of so many sequences or pairs
SAMPLED = ("ppo", "grpo")


class Estimate(Config):
    """What a stage is expected to use, and why."""

    used: Usage | None
    """None = nothing is known."""
    source: str
    """Which earlier run it is from, or why nothing is known."""

    def amount(self, prices: Prices | None) -> float | None:
        return self.used.amount(prices) if self.used and prices else None


class Earlier(NamedTuple):
    """A stage that was run, with what it used and how much work it was."""

    record: Record
    used: Usage
    work: float

    @property
    def name(self) -> str:
        return self.record.folder.name

    @property
    def device(self) -> str:
        return str(self.record.execution["cost"].get("device", "another machine"))


def estimate(job: Job, parameters: int | None, device: str) -> Estimate:
    """What is left of a job. `parameters` of the line's model, where they are known; `device`: where the job will run."""
    earlier = [(record, total(used)) for record in _records(job.stage) if (used := of_record(record.execution))]
    if not earlier:
        return Estimate(used=None, source=f"no earlier {job.stage} here whose cost was kept")
    if job.stage == "data":
        return _of_data(job, earlier)
    done = [Earlier(record, used, work) for record, used in earlier if (work := _work_of(record))]
    wanted = {one.record.identity: _work(job, parameters, one.record) for one in done}
    comparable = [one for one in done if wanted[one.record.identity] and _kind(one.device) == _kind(device)]
    if not comparable:
        return Estimate(used=None, source=_why_not(job, parameters, done, device))
    ratios = {one.record.identity: wanted[one.record.identity] / one.work for one in comparable}  # type: ignore[operator]
    best = min(comparable, key=lambda one: (one.device != device, abs(math.log(ratios[one.record.identity]))))
    ratio = ratios[best.record.identity]
    other = "" if best.device == device else f", on another device ({best.device})"
    left, done_already = _left(job)
    return Estimate(used=best.used.scaled(_longer(best, ratio * left)), source=f"{best.name}: {ratio:.3g} times its work{other}{done_already}")


def nothing(source: str) -> Estimate:
    """For a stage whose result stands."""
    return Estimate(used=Usage(), source=source)


def _left(job: Job) -> tuple[float, str]:
    """Which share of a job is still to do, as its newest checkpoint says, and that in words."""
    names = [path.stem.split("-") for path in (job.folder.with_name(job.folder.name + ".partial") / "work").glob("step-*.ckpt")]
    done = max((int(parts[1]) for parts in names if len(parts) == 3 and parts[1].isdigit()), default=0)
    asked = _steps(job.config)
    return (1 - min(done, asked) / asked, f"; goes on after {done} of {asked}") if done and asked else (1.0, "")


def parameters_of(jobs: Mapping[str, Job], vocabulary: int | None) -> int | None:
    """Of the model that a line trains: those that read a token."""
    job = jobs["pretrain"]
    try:
        return _parameters(Record.read(job.folder))
    except BadInput:
        known = job.config["model"].get("layers") and vocabulary
        counted = presets.shape_of(job.config["model"], vocabulary).parameters(active=True) if known else None
        like = [_parameters(record) or 0 for record in _records("pretrain") if record.config["model"] == job.config["model"]]
        return next((exact for exact in reversed(like) if counted is None or 0.95 < exact / counted < 1.05), counted)


# ---------------------------------------------------------------- how much work a stage is


def _work(job: Job | Record, parameters: int | None, like: Record) -> float | None:
    """Tokens times parameters, in units that compare within one stage; None where it cannot be told. `like`: the run that it is compared with."""
    stage, config = job.stage, job.config
    if stage == "release":
        return 1.0
    if not parameters:
        return None
    if stage == "pretrain":
        section = config["pretrain"]
        return _sequences(section) * config["model"]["context_tokens"] * parameters
    if stage in EXAMPLES or stage == "best_of_n":
        section = config[next(name for name in ("sft", "reward", "align") if name in config)]
        sampled = section.get("prompts_sampled", 0) * section.get("n", 0)
        return (section["steps"] * section["batch_size"] + sampled) * parameters
    if stage in SAMPLED:
        section = config["align"]
        return section["iterations"] * section["rollout_size"] * section["max_new_tokens"] * (1 + section["epochs"]) * parameters
    if stage == "evaluate":
        items = _items(config["evals"], like)
        return items * sum(role in job.inputs for role in ("base", "chat", "policy")) * parameters if items else None
    return None


def _work_of(record: Record) -> float | None:
    """Of a stage that was run."""
    return _work(record, _parameters(record), record)


def _sequences(section: Mapping[str, Any]) -> int:
    """Sequences that pretraining reads, with its growing batches."""
    steps, ramp, read = section["steps"], section.get("batch_ramp"), 0
    size = ramp["base"] if ramp else section["batch_size"]
    while size < section["batch_size"] and steps > 0:
        read += size * min(steps, ramp["interval_steps"])
        steps, size = steps - ramp["interval_steps"], size * 2
    return read + max(0, steps) * section["batch_size"]


def _items(evals: Mapping[str, Any], like: Record) -> float | None:
    """Items of the suites, as the compared run counted them; None where it did not measure them all, or stopped at a limit that is gone."""
    counted = next(iter(like.figures.get("scores", {}).values()), {})
    limit, cut = evals.get("limit"), like.config["evals"].get("limit")
    if not counted or any(suite not in counted for suite in evals["suites"]) or (cut and not limit):
        return None
    asked = [counted[suite]["items"] for suite in evals["suites"]]
    if cut:
        return sum(asked) * limit / cut  # both limits are for each task, and a suite may hold many
    return float(sum(min(limit or math.inf, items) for items in asked))


def _steps(config: Mapping[str, Any]) -> int:
    """Optimizer steps or iterations that a training job asks for; 0 where it does not train."""
    return next((section.get("steps") or section.get("iterations") or 0 for section in config.values() if isinstance(section, Mapping) and ({"steps", "iterations"} & set(section))), 0)


def _parameters(record: Record) -> int | None:
    """Of the model behind a record: its own, or that of the pretraining at the end of its inputs."""
    if record.stage == "pretrain" and "parameters" in record.figures:
        whole, model = record.figures["parameters"], record.config["model"]
        if not model.get("layers"):
            return whole
        shape = presets.shape_of(model, None)
        return round(whole * shape.parameters(active=True) / shape.parameters())
    for name in ("base", "chat", "policy", "model"):
        for folder in (home() / "stages").glob(f"*-{record.inputs[name][:16]}") if name in record.inputs else ():
            if (folder / "record.json").is_file():
                return _parameters(Record.read(folder))
    return None


# ---------------------------------------------------------------- what earlier runs say


def _records(stage: str) -> list[Record]:
    """Of a stage, the oldest first; those that cannot be read are left out."""
    found = []
    for path in sorted((home() / "stages").glob(f"{stage}-*/record.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(Record.read(Path(path).parent))
        except BadInput:
            continue
    return found


def _longer(one: Earlier, ratio: float) -> float:
    """How much longer than an earlier run: its loop takes `ratio` times as long, its start and its end as long as they did."""
    if one.record.execution["cost"].get("attempts", 1) > 1 or not one.used.seconds:
        return ratio  # the loop's seconds are the last attempt's
    share = min(1.0, _summed(one.record.execution.get("seconds", one.used.seconds)) / one.used.seconds)
    return 1 - share + share * ratio


def _summed(seconds: Any) -> float:
    """A loop's seconds, or those of its parts."""
    return sum(map(_summed, seconds.values())) if isinstance(seconds, Mapping) else float(seconds)


def _of_data(job: Job, earlier: list[tuple[Record, Usage]]) -> Estimate:
    """Data is not scaled: DVC keeps what is current, and nobody knows beforehand what a source holds."""
    same = [(record, used) for record, used in earlier if record.config.get("name") == job.config["data"]["name"]]
    if not same:
        return Estimate(used=None, source="no earlier dataset of this name whose cost was kept")
    record, used = same[-1]
    return Estimate(used=used, source=f"{record.folder.name}: as that cost, at most")


def _why_not(job: Job, parameters: int | None, done: list[Earlier], device: str) -> str:
    if not parameters:
        return "the model's size is not known before its weights are here"
    if elsewhere := sorted({one.device for one in done if _kind(one.device) != _kind(device)}):
        return f"it ran on {', '.join(elsewhere)} only, and this is {device}"
    return f"no earlier {job.stage} with the same suites" if job.stage == "evaluate" else f"no earlier {job.stage} of known work"


def _kind(device: str) -> str:
    """GPUs and processors do not tell of each other."""
    return "gpu" if " x " in device else "cpu"
