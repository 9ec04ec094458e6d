"""Measure models on benchmarks with lm-eval's own evaluator, and on held-out text.

    run(config, {"base": ..., "chat": ..., "policy": ...}, benchmarks=..., tokens=..., out=..., emit=print, seed=1234)

The base model reads plain text; every other model reads its chat template, worked examples as turns of their own (evals.chat_template decides otherwise).
Prompts, stop strings, filters, metrics and their aggregation are lm-eval's (suites.py says from where); nothing here
computes a benchmark's score. Nothing touches the network. A prompt too long for the model's context is cut from the left
by lm-eval, and counted here as truncated.

A suite's result depends on the model's files, the suite's definition, data and settings, and is kept under the md5 of these: another run that measures the same
takes it as it is. A killed evaluation goes on at the batch where it died.

Left in `out`: items/<model>/<suite>.parquet, one row for each question (items.py): what went in, what came out, what it scored.
"""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.models.huggingface
import lm_eval.utils
import numpy as np
import torch
import transformers
from tqdm import tqdm

from components.evaluation import items as rows_of
from components.evaluation import probes
from components.evaluation.batches import ONE_THREAD_BELOW, Journal
from components.evaluation.code_eval import SandboxedCodeEval, program_of, sandboxed_code_eval
from components.evaluation.items import Overlap
from components.evaluation.local_model import LocalModel, load_model
from components.evaluation.perplexity import heldout_sequences, perplexity
from components.evaluation.sandbox import require_sandbox
from components.evaluation.scores import score_of, with_overlap
from components.evaluation.suites import identity, item_ids, load_tasks, runs_code
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.records import REVISIONS, Outcome, Record, Sample, digest, file_md5

Emit = Callable[[dict[str, Any]], None]
SAMPLES_PER_MODEL = 12
BOOTSTRAP_DRAWS = 100_000  # lm-eval's default; only metrics that are no mean use it
SEEDS = (0, 1234, 1234)  # of random, numpy and torch, as lm-eval's command line sets them


def run(
    config: EvalConfig,
    models: Mapping[str, Path],
    benchmarks: Path,
    tokens: Path | None,
    out: Path,
    emit: Emit,
    seed: int,
    device: str | None = None,
    overlap: Path | None = None,
    cache: Path | None = None,
    rate_toxicity: probes.RateToxicity | None = None,
) -> Outcome:
    """Measure every model on every suite. `models` by role; the role "base" is the only one read without a chat template.

    `seed` draws worked examples. `tokens`: held-out text; None = it is not measured. `overlap`: what the data line found of each item in the training text.
    `cache`: where results are kept for other runs. `rate_toxicity`: scores texts for the probe of that name.
    Errors: BadInput, before any model is loaded, where a suite's data is absent or this host cannot isolate programs.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(offline_and_quiet())
        stack.enter_context(templates_compiled_once())
        _check_inputs(config, tokens)
        code_eval = stack.enter_context(sandboxed_code_eval())
        _seed()
        suites = load_tasks(config.suites, benchmarks, config, seed, work)
        if config.probes:
            probes.check(config.probes, suites)
        asking = _Asking(config, suites, seed, out, cache or out / "work" / "measured", Overlap.read(overlap), code_eval, emit, len(models))
        told = {role: asking.model(role, folder, tokens, device, rate_toxicity) for role, folder in models.items()}
        asking.progress.finish()
    figures = {
        "scores": {role: one.scores for role, one in told.items()},
        "perplexity": {role: one.perplexity for role, one in told.items() if tokens},
        **({"probes": {role: one.probes for role, one in told.items()}} if config.probes else {}),
        "tasks": {suite: _version(loaded) for suite, loaded in suites.items()},
        "lm_eval": lm_eval.__version__,
        "settings": _settings(config, models, suites, seed),
    }
    return Outcome(
        figures=figures,
        samples=tuple(sample for one in told.values() for sample in one.samples),
        execution={"seconds": {role: one.seconds for role, one in told.items()}},
    )


@dataclass
class _Told:
    """What came out of one model."""

    scores: dict[str, Any] = field(default_factory=dict)
    perplexity: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


class _Asking:
    """The loaded suites, and how one model after another is asked them."""

    def __init__(
        self,
        config: EvalConfig,
        suites: Mapping[str, Any],
        seed: int,
        out: Path,
        kept: Path,
        overlap: Overlap,
        code_eval: SandboxedCodeEval,
        emit: Emit,
        models: int,
    ) -> None:
        self.config, self.suites, self.seed, self.out, self.kept, self.overlap, self.code_eval, self.emit = (
            config,
            suites,
            seed,
            out,
            kept,
            overlap,
            code_eval,
            emit,
        )
        self.ids = {suite: {name: item_ids(task, config.limit) for name, task in loaded["tasks"].items()} for suite, loaded in suites.items()}
        self.counts = {suite: sum(map(len, tasks.values())) for suite, tasks in self.ids.items()}
        self.progress = Progress(emit, total=models * sum(self.counts.values()))

    def model(self, role: str, folder: Path, tokens: Path | None, device: str | None, rate_toxicity: probes.RateToxicity | None) -> _Told:
        """Every suite, held-out text and the probes. Errors: BadInput."""
        told, rows, chat = _Told(), {}, _reads_template(self.config, role)
        lm = load_model(folder, self.config.batch_size, device)
        _check_room(lm, folder, self.config, self.suites)
        if chat and not lm.tokenizer.chat_template:
            raise BadInput(
                f"evaluation: {folder} ({role}) is to be asked through its chat template, and its tokenizer has none: no prompt could be built. Set "
                f"evals.chat_template to false"
            )
        made_by = model_md5(folder)
        with threads_for(lm):
            for suite in self.suites:
                with told.timed(suite):
                    told.scores[suite], rows[suite] = self.suite(lm, role, suite, chat, made_by)
            with told.timed("perplexity"):
                if tokens:
                    told.perplexity = perplexity(lm, tokens, self.config.perplexity_sequences, self.config.batch_size)
            if self.config.probes:
                with told.timed("probes"):
                    lm.on_share, lm.journal = lambda share: None, Journal(None)
                    told.probes = probes.run(self.config.probes, probes.Room(lm, chat, self.suites, self.seed, self.out, role, self.emit, rate_toxicity))
        told.samples = _samples(role, rows)
        return told

    def suite(self, lm: LocalModel, role: str, suite: str, chat: bool, made_by: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Its score and rows, measured now or taken as they were; the rows are left in `out`."""
        loaded, lm.on_share = self.suites[suite], self.progress.within(self.counts[suite])
        settings = {"batch_size": self.config.batch_size, "device": lm.device.type, "revision": REVISIONS["evaluate"]}
        kept = self.kept / digest({"model": made_by, "suite": identity(loaded, self.config, self.seed, chat, self.ids[suite]), "settings": settings})
        if not (kept / "score.json").is_file():
            lm.journal, lm.counted = Journal(kept / "journal"), {}
            _keep(measure(lm, suite, loaded, chat, self.config.limit, self.code_eval, self.seed), kept)
        changes_rows = {name: bool(task.get_config("process_docs")) for name, task in loaded["tasks"].items()}
        rows = rows_of.with_ids(self.overlap.joined(rows_of.read(kept / "items.parquet"), changes_rows), self.ids[suite])
        rows_of.write(rows, self.out / "items" / role / f"{suite}.parquet")
        self.progress.close(self.counts[suite])
        return with_overlap(json.loads((kept / "score.json").read_text()), rows), rows


def measure(
    lm: Any, suite: str, loaded: Mapping[str, Any], chat: bool, limit: int | None, code_eval: SandboxedCodeEval, seed: int | None = None
) -> dict[str, Any]:
    """One suite on any lm-eval LM: {"score": {...}, "items": [...]}. `loaded` as from `load_tasks`; `seed` draws the worked examples anew."""
    runs = [task for task in loaded["tasks"].values() if getattr(task, "UNSAFE_CODE", False)]
    for task in runs:
        _prefetch_after_filters(task, code_eval)
    if seed is not None:
        _seed()
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed)
    results = lm_eval.evaluator.evaluate(
        lm,
        dict(loaded),
        limit=limit,
        bootstrap_iters=BOOTSTRAP_DRAWS,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=bool(runs),
    )
    score, metric = score_of(suite, loaded, results)
    items = [item for name, task in loaded["tasks"].items() for item in rows_of.from_samples(lm, task, results["samples"][name], metric)]
    return {"score": {**score, "items": len(items), "truncated": sum(item["truncated"] for item in items)}, "items": items}


def _keep(result: dict[str, Any], folder: Path) -> None:
    """A suite's result on disk, the score last: where it stands, the rest does."""
    folder.mkdir(parents=True, exist_ok=True)
    rows_of.write(result["items"], folder / "items.parquet")
    temporary = folder / "score.tmp"
    temporary.write_text(json.dumps(result["score"]))
    temporary.replace(folder / "score.json")
    for part in (folder / "journal").glob("*.jsonl"):
        part.unlink()


def model_md5(folder: Path) -> str:
    """What a model is: the md5 of its weights, configuration and tokenizer; from its record, where it is a stage's own folder."""
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt") and path.name != "record.json"
    )
    record = Record.read(folder) if (folder / "record.json").is_file() else None
    known = record.files if record and record.folder == folder.absolute() else {}  # a copy may have been changed
    return digest({name: known[name].md5 if name in known else file_md5(folder / name) for name in names})


def _samples(role: str, rows: Mapping[str, list[dict[str, Any]]]) -> list[Sample]:
    """A few answers to read, taken in turn from every suite."""
    order = [(i, suite) for i in range(SAMPLES_PER_MODEL) for suite in rows if i < len(rows[suite])]
    picked = [rows[suite][i] for i, suite in order[:SAMPLES_PER_MODEL]]
    return [Sample(prompt=f"[{role}] {item['question']}", output=item["output"]) for item in picked]


def _version(loaded: Mapping[str, Any]) -> str:
    """The version that lm-eval's definition states; a group's tasks share one."""
    return "/".join(sorted({str(task.VERSION) for task in loaded["tasks"].values()}))


def _reads_template(config: EvalConfig, role: str) -> bool:
    """Whether a model is asked through its chat template."""
    return config.chat_template if config.chat_template is not None else role != "base"


def _settings(config: EvalConfig, models: Mapping[str, Path], suites: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How it was asked: everything besides the definitions that decides a number."""
    shots = {suite: sorted({task.get_config("num_fewshot") for task in loaded["tasks"].values()}) for suite, loaded in suites.items()}
    return {
        "fewshot": {suite: counts[0] if len(counts) == 1 else counts for suite, counts in shots.items()},
        "fewshot_seed": seed,
        "chat_template": {role: _reads_template(config, role) for role in models},
        "limit": config.limit,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
    }


# ---------------------------------------------------------------- before and around it


def _check_inputs(config: EvalConfig, tokens: Path | None) -> None:
    if tokens:
        heldout_sequences(tokens, 1, 1)
    if any([runs_code(suite, config) for suite in config.suites]):  # all of them, as one may be refused
        require_sandbox()


def _check_room(lm: LocalModel, folder: Path, config: EvalConfig, suites: Mapping[str, Any]) -> None:
    """Errors: BadInput where an answer may be as long as what the model reads."""
    if config.max_new_tokens and config.max_new_tokens >= lm.max_length:
        raise BadInput(
            f"evaluation: evals.max_new_tokens={config.max_new_tokens} leaves no room for a prompt in the {lm.max_length} tokens that "
            f"{folder} reads. Use less than {lm.max_length}"
        )
    for suite, loaded in suites.items():
        for task in loaded["tasks"].values():
            room = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", lm.max_gen_toks) if task.OUTPUT_TYPE == "generate_until" else 0
            if room >= lm.max_length:
                raise BadInput(
                    f"evaluation: {suite} asks for answers of {room} tokens, which leaves no room for a prompt in the {lm.max_length} tokens that "
                    f"{folder} reads. "
                    f"Set evals.max_new_tokens to less than {lm.max_length}"
                )


def _prefetch_after_filters(task: Any, code_eval: SandboxedCodeEval) -> None:
    """lm-eval scores programs one by one; run them side by side as soon as it has them all."""
    official = type(task).apply_filters

    def apply_filters() -> Any:
        instances = official(task)
        code_eval.prefetch(
            program_of(candidate, task.doc_to_target(instance.doc))
            for instance in task.instances
            for filtered in instance.filtered_resps.values()
            for candidate in ([filtered] if isinstance(filtered, str) else filtered)
        )
        return instances

    task.apply_filters = apply_filters


def _seed() -> None:
    """lm-eval's own seeds, so that a definition that draws draws what the command line would."""
    for set_seed, seed in zip((random.seed, np.random.seed, torch.manual_seed), SEEDS, strict=True):
        set_seed(seed)


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles a prompt's template for every document, which takes longer than a small model; while this is open, each is compiled once."""
    official, compiled = lm_eval.utils.apply_template, lru_cache(maxsize=4096)(lm_eval.utils.env.from_string)
    lm_eval.utils.apply_template = lambda template, doc: compiled(template).render(**doc)
    try:
        yield
    finally:
        lm_eval.utils.apply_template = official


@contextmanager
def threads_for(lm: LocalModel) -> Iterator[None]:
    """One thread for a small model on a CPU: its steps are too short to share. On a busy 2-core machine two threads took over
    200 s where one took 16 s; and the figures no longer depend on the number of cores. Batches still go side by side (batches.py)."""
    before = torch.get_num_threads()
    if lm.device.type == "cpu" and lm.model.num_parameters() < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def offline_and_quiet() -> Iterator[None]:
    """No network and no progress bars of others while this is open; everything as before afterwards."""
    switches = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    bars = (lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface)
    environment = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    loggers = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    had_bars, verbosity = datasets.are_progress_bars_disabled(), transformers.logging.get_verbosity()
    try:
        for module, name in switches:
            setattr(module, name, True)
        for module in bars:
            module.tqdm = _silent_tqdm
        os.environ.update(dict.fromkeys(environment, "1"))
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        transformers.logging.set_verbosity_error()
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)
        for module in bars:
            module.tqdm = tqdm
        for name, value in environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        if not had_bars:
            datasets.enable_progress_bars()
        transformers.logging.set_verbosity(verbosity)


def _silent_tqdm(*args: Any, **kwargs: Any) -> Any:
    return tqdm(*args, **{**kwargs, "disable": True})


class Progress:
    """Questions answered so far, told at most five times a second and at the end."""

    def __init__(self, emit: Emit, total: int):
        self.emit, self.total, self.done, self.inside, self.told = emit, total, 0, 0.0, 0.0

    def within(self, items: int) -> Callable[[float], None]:
        """What a suite of so many items calls with each further share of it."""

        def advance(share: float) -> None:
            self.inside = min(self.inside + share * items, items)
            if time.monotonic() - self.told > 0.2:
                self._tell()

        return advance

    def close(self, items: int) -> None:
        """A suite is finished."""
        self.done, self.inside = self.done + items, 0.0
        self._tell()

    def finish(self) -> None:
        self.done, self.inside = self.total, 0.0
        self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.emit({"event": "progress", "step": self.done + int(self.inside), "total": self.total, "unit": "items"})
