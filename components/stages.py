"""The wiring: the only place where data, models, training, evaluation and the registry meet.

One short function per stage says who gets which folder and logger. Around each of them `run` holds the stage contract:
inputs are verified, work happens in a `.partial` sibling that survives a kill, the record is written last, and the
folder is renamed into place whole.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from components import data_stages, processes
from components.cost import budget
from components.launch import verdict
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.events import say
from components.schema.export import ExportConfig
from components.schema.gate import GateConfig, NoiseConfig
from components.schema.jobs import SCORERS, TRAINING, Job
from components.schema.posttraining import AlignConfig, RewardConfig, SFTConfig
from components.schema.records import REVISIONS, File, Outcome, Record, file_md5, home
from components.schema.training import ModelConfig, PretrainConfig
from components.storage import results, unfinished
from components.storage.mirror import mirrored
from components.surroundings import UNSENT, alone, check_disk, check_inputs, launched, mlflow_run


def run(stage: str, job: Job) -> None:
    """Run one stage to its record and say where that stands. Errors: BadInput before compute is spent."""
    if stage in data_stages.RUN:
        return data_stages.RUN[stage](job)
    folder = job.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        found = verdict(job)
        if found.action == "fetched" and not results.fetch(folder, job.identity, say):
            found = verdict(job)  # it was taken away meanwhile
        if found.action not in ("reuse", "fetched"):  # another process may have finished it while we waited
            _produce(job, folder)
    say({"event": "result", "folder": str(folder), **({"action": found.action, "reason": found.reason} if found.action == "fetched" else {})})


def _produce(job: Job, folder: Path) -> None:
    """Inputs checked, work done in the `.partial` folder, record written, folder moved into place."""
    results.fetch_inputs(job.inputs.values(), say)
    check_inputs(job)
    check_disk(job)
    partial = folder.with_name(folder.name + ".partial")
    unfinished.bring(partial, job.identity, say)
    partial.mkdir(exist_ok=True)
    with budget.Bill(job, partial) as bill, mlflow_run(job) as tracked, mirrored(partial, job.identity, say):
        import_module(WORKS_WITH[job.stage])
        began = time.time()
        outcome = _done(job, partial, tracked.run_id)
        record = Record(
            stage=job.stage,
            identity=job.identity,
            revision=REVISIONS[job.stage],
            config=job.config,
            inputs={name: part.identity for name, part in job.inputs.items()},
            files={str(p.relative_to(partial)): File(md5=file_md5(p), size=p.stat().st_size) for p in _files(partial)},
            figures=outcome.figures,
            samples=outcome.samples,
            execution={
                **outcome.execution,
                "work_seconds": round(time.time() - began, 2),
                "start_seconds": round(began - launched(), 2),
                "mlflow_run_id": tracked.run_id,
                "cost": bill.closed(),
            },
        )
        record.write(partial)
        tracked.finish(record, partial)  # before the folder stands: a record that is reused has a finished run
        shutil.rmtree(partial / "work", ignore_errors=True)
        if folder.exists():  # damaged, or it would have been reused: kept aside, never deleted
            folder.rename(folder.with_name(f"{folder.name}.damaged-{int(time.time())}"))
        partial.rename(folder)
    results.push(folder, record, say)
    unfinished.forget(folder.name, say)


def _done(job: Job, out: Path, run_id: str) -> Outcome:
    """The stage's work: here, or in as many processes as it is given."""
    if job.stage in TRAINING and job.run.resources.processes * job.run.resources.nodes > 1:
        return processes.run(job, out, run_id)
    return RUN[job.stage](job, out, run_id)


def work(job: Job, out: Path, run_id: str) -> None:
    """What each training process of a stage does; the first one hands over what came out."""
    outcome = RUN[job.stage](job, out, run_id)
    if processes.rank() == 0:
        processes.hand_over(outcome, out)


def _files(folder: Path) -> list[Path]:
    """What the record names: every file but the record itself and what only a resume needs."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("record.json") and p.relative_to(folder).parts[0] != "work")


# ---------------------------------------------------------------- one function per stage


def _pretrain(job: Job, out: Path, run_id: str) -> Outcome:
    from components.training import pretrain

    return pretrain.run(
        PretrainConfig.model_validate(job.config["pretrain"]),
        ModelConfig.model_validate(job.config["model"]),
        _path(job, "tokens"),
        _path(job, "mix"),
        _path(job, "tokenizer"),
        out,
        _context(job, out, run_id),
        _path(job, "weights") if "weights" in job.inputs else None,
    )


def _sft(job: Job, out: Path, run_id: str) -> Outcome:
    from components.training import sft

    return sft.run(SFTConfig.model_validate(job.config["sft"]), _path(job, "base"), _path(job, "chats"), out, _context(job, out, run_id))


def _reward(job: Job, out: Path, run_id: str) -> Outcome:
    from components.training import reward

    return reward.run(RewardConfig.model_validate(job.config["reward"]), _path(job, "chat"), _path(job, "preferences"), out, _context(job, out, run_id))


def _align(job: Job, out: Path, run_id: str) -> Outcome:
    """PPO, GRPO, DPO or best-of-N; what runs model-written code comes from here, since training does not know evaluation."""
    from pydantic import TypeAdapter

    from components.evaluation.sandbox import run_codes
    from components.training.align import Given

    config = TypeAdapter(AlignConfig).validate_python(job.config["align"])
    scorers = {name: _path(job, name) for name in SCORERS if name in job.inputs}
    given = Given(_path(job, "chat"), scorers, _path(job, "preferences"), _path(job, "chats"), lambda programs: [verdict.passed for verdict in run_codes(programs)])
    return import_module(WORKS_WITH[job.stage]).run(config, given, out, _context(job, out, run_id))


def _feedback(job: Job, out: Path, run_id: str) -> Outcome:
    """A critic's preferences between a policy's answers and their revisions. Where the critic is reached stands beside the job, since it changes no result."""
    from components.feedback import feedback
    from components.schema.feedback import FeedbackConfig

    _use_threads(job)
    config = FeedbackConfig.joined(job.config["feedback"], job.run.options)
    given = feedback.Given(_path(job, "policy"), _path(job, "critic") if "critic" in job.inputs else None, _path(job, "constitution"), _path(job, "prompts"))
    return feedback.run(config, given, out, budget.ending(out, say))


def _rate(job: Job, out: Path, run_id: str) -> Outcome:
    """Models answer the same prompts; a reward model, a critic or people say whose answers are better. Where things lie stands beside the job."""
    from components.evaluation import rate
    from components.feedback import critic, prompts
    from components.feedback.local import LocalModel
    from components.models import scoring
    from components.schema.rating import RatingConfig

    _use_threads(job)
    config = RatingConfig.joined(job.config["rating"], job.run.options)
    asked, inputs = config.judge.critic, {name: Path(part.path) for name, part in job.inputs.items()}
    given = rate.Given(
        prompts=prompts.read(inputs["prompts"], config.max_prompts),
        writers={name: lambda folder=inputs[f"model_{name}"]: LocalModel(folder, config.max_new_tokens, config.temperature).write for name in config.models},
        score=scoring.reward_model(inputs["reward"]) if config.judge.reward else None,
        prefer=critic.made(asked, inputs.get("critic")).prefer if asked else None,
        batched=not (asked and asked.url),
        rankings=inputs.get("rankings"),
    )
    return rate.run(config, given, out, budget.ending(out, say))


def _rater(config: EvalConfig) -> Callable[[list[str]], list[float]] | None:
    """What rates a model's completions: the data engine's word list, and a classifier where one is named; the higher score counts. None where nobody asks."""
    if not (config.probes and config.probes.toxicity):
        return None
    import numpy as np

    from components.data.filtering import safety
    from components.data.words import word_hashes

    if name := config.probes.toxicity.classifier:
        try:
            safety.check_classifier(name)
        except BadInput as error:
            raise BadInput(str(error).replace("filter.classifier", "evals.probes.toxicity.classifier", 1)) from None

    def rate(texts: list[str]) -> list[float]:
        listed = safety.toxicity(word_hashes(texts))
        return (np.maximum(listed, safety.classified(name, texts)) if name else listed).tolist()

    return rate


def _evaluate(job: Job, out: Path, run_id: str) -> Outcome:
    from components.evaluation import harness

    _use_threads(job)
    models = {name: _path(job, name) for name in ("base", "chat", "policy") if name in job.inputs}
    config = EvalConfig.model_validate(job.config["evals"])
    tokens, overlap = (_path(job, name) if name in job.inputs else None for name in ("tokens", "overlap"))  # a model alone has no line
    return harness.run(
        config, models, _path(job, "benchmarks"), tokens, out, budget.ending(out, say), config.fewshot_seed, overlap=overlap, cache=home() / "measured", rate_toxicity=_rater(config)
    )


def _noise(job: Job, out: Path, run_id: str) -> Outcome:
    """One model evaluated again and again, with nothing changed that should matter."""
    from components.evaluation import noise

    _use_threads(job)
    evals, config = EvalConfig.model_validate(job.config["evals"]), NoiseConfig.model_validate(job.config["noise"])
    retrained = [_path(job, name) for name in sorted(job.inputs) if name.startswith("retrained_")]
    return noise.run(config, evals, job.config["role"], _path(job, "model"), _path(job, "benchmarks"), _path(job, "tokens"), out, budget.ending(out, say), job.config["seed"], retrained)


def _export(job: Job, out: Path, run_id: str) -> Outcome:
    """One model in a form that other programs read."""
    from components.export import export

    _use_threads(job)
    return export.run(ExportConfig.model_validate(job.config["export"]), _path(job, "model"), out, say)


def _release(job: Job, out: Path, run_id: str) -> Outcome:
    """The gate compares with the champion as it stands now; the registry does what it decided. What it saw goes with the version."""
    from components.evaluation import evidence, footprint, gate
    from components.registry import models

    config, identity = GateConfig.model_validate(job.config["gate"]), job.inputs["model"].identity
    found = evidence.read(_path(job, "report"), job.config["role"])
    kept = out / "work" / "decision.json"  # decided once: after a kill the champion may already be this very policy
    if not kept.exists():
        champion = models.champion(config.model_name)
        measured = footprint.measure(_path(job, "model"), config.policy.limits)
        if champion and champion["identity"] == identity:
            decision = gate.Decision(action="promote", reason="it is the champion already")
        else:
            folder = champion and models.evidence(config.model_name, champion["version"])
            before = evidence.restore(folder) if folder and (folder / "evidence.json").is_file() else champion and evidence.Evidence(champion["scores"])
            decision = gate.decide(found.with_figures(**measured), before, config.policy, config.noise)
        kept.parent.mkdir(exist_ok=True)
        temporary = kept.with_suffix(".tmp")
        temporary.write_text(json.dumps({**decision.model_dump(mode="json"), "champion_before": champion and champion["version"]}))
        temporary.replace(kept)
    decided = json.loads(kept.read_text())
    timed = {path: decided["limits"].pop(path) for path in list(decided["limits"]) if path.startswith("latency")}  # never the same twice
    evidence.keep(found, out / "gate")
    (out / "gate" / "decision.json").write_text(json.dumps(decided, indent=1, sort_keys=True))
    version = models.release(
        name=config.model_name,
        checkpoint=_path(job, "model"),
        run_id=run_id,
        identity=identity,
        scores={suite: {name: score[name] for name in ("metric", "score", "stderr", "items") if name in score} for suite, score in found.scores.items()},
        action=decided["action"],
        tags={
            "modelyard.reason": decided["reason"][: models.LONGEST_TAG],
            "modelyard.recipe_hash": job.run.recipe_hash,
            "modelyard.recipe": job.run.recipe_name,
            "modelyard.champion_before": decided["champion_before"] or "none",
        },
        evidence=out / "gate",
    )
    figures = {
        "model": config.model_name,
        "version": version,
        "uri": f"models:/{config.model_name}/{version}",
        **decided,
    }
    (out / "release.json").write_text(json.dumps(figures, indent=2, sort_keys=True))
    return Outcome(figures=figures, execution=timed)


RUN: dict[str, Callable[[Job, Path, str], Outcome]] = {
    "pretrain": _pretrain,
    "sft": _sft,
    **dict.fromkeys(SCORERS, _reward),
    **dict.fromkeys(("ppo", "grpo", "dpo", "best_of_n"), _align),
    "feedback": _feedback,
    "rate": _rate,
    "evaluate": _evaluate,
    "noise": _noise,
    "export": _export,
    "release": _release,
}

# What a stage spends its start on importing; apart from its work, so that the two can be told.
WORKS_WITH = {
    "pretrain": "components.training.pretrain",
    "sft": "components.training.sft",
    **dict.fromkeys(SCORERS, "components.training.reward"),
    "ppo": "components.training.ppo",
    "grpo": "components.training.grpo",
    "dpo": "components.training.dpo",
    "best_of_n": "components.training.best_of_n",
    "feedback": "components.feedback.feedback",
    "rate": "components.evaluation.rate",
    "evaluate": "components.evaluation.harness",
    "noise": "components.evaluation.harness",
    "export": "components.export.export",
    "release": "components.registry.models",
}


def print_batch(job: Job, step: int) -> None:
    """The batch that a pretraining job reads at a step, with the documents it comes from. Errors: BadInput."""
    from components.data.tokenizing import trace
    from components.training import tokens
    from components.training.schedules import batch_sizes

    config, model = PretrainConfig.model_validate(job.config["pretrain"]), ModelConfig.model_validate(job.config["model"])
    places = tokens.places(
        _path(job, "tokens"), _path(job, "mix"), length=model.context_tokens, steps=config.steps, batch_size=batch_sizes(config), seed=job.config["seed"], step=step
    )
    print("\n".join(trace.lines(trace.trace(_path(job, "tokens").parent, places))))


# ---------------------------------------------------------------- what a stage is handed


def _path(job: Job, name: str) -> Path:
    return Path(job.inputs[name].path)


def _context(job: Job, out: Path, run_id: str) -> Any:
    """What a training loop is handed: seed, logger, voice, what the machine gives. Of several processes only the first one speaks and logs."""
    _use_threads(job)
    from components.registry import tracking
    from components.stage_logger import StageLogger
    from components.training.trainer import Context

    single = {} if job.stage in TRAINING else {"processes": 1, "nodes": 1, "strategy": "auto"}
    first = processes.rank() == 0
    loggers = [StageLogger(tracking.MetricSink(run_id, out / "work" / UNSENT))] if first else []
    return Context(seed=job.config["seed"], loggers=loggers, emit=say if first else lambda event: None, resources=job.run.resources.model_copy(update=single), stop=lambda: budget.told(out))


def _use_threads(job: Job) -> None:
    import torch

    torch.set_num_threads(job.run.resources.threads or max(1, (os.cpu_count() or 1) // job.run.resources.processes))
