"""Measure models on benchmarks with lm-eval's own evaluator, and on held-out text.

    run(config, {"base": ..., "chat": ..., "policy": ...}, benchmarks=..., tokens=..., out=..., emit=print, seed=0)

The base model reads plain text; every other model reads its chat template, worked examples as turns of their own.
Prompts, stop strings, filters, metrics and their aggregation are lm-eval's (suites.py says from where); nothing here
computes a benchmark's score. Nothing touches the network. A prompt too long for the model's context is cut from the left
by lm-eval, and counted here as truncated. A killed evaluation goes on at the suite where it died.

Left in `out`: items/<model>/<suite>.jsonl, one line for each question: what went in, what came out, what it scored.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.models.huggingface
import torch
import transformers
from tqdm import tqdm

from components.evaluation.code_eval import SandboxedCodeEval, program_of, sandboxed_code_eval
from components.evaluation.local_model import LocalModel, load_model
from components.evaluation.perplexity import heldout_sequences, perplexity
from components.evaluation.sandbox import require_sandbox
from components.evaluation.suites import SUITES, data_files, load_tasks, runs_code
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.records import Outcome, Sample

Emit = Callable[[dict[str, Any]], None]
SAMPLES_PER_MODEL = 3
ONE_THREAD_BELOW = 30_000_000  # parameters; see `threads_for`


def run(
    config: EvalConfig,
    models: Mapping[str, Path],
    benchmarks: Path,
    tokens: Path,
    out: Path,
    emit: Emit,
    seed: int,
    device: str | None = None,
) -> Outcome:
    """Measure every model on every suite. `models` by role; the role "base" is the only one read without a chat template.

    Errors: BadInput, before any model is loaded, where a suite's data is absent or this host cannot isolate programs.
    """
    _check_inputs(config, benchmarks, tokens)
    scores: dict[str, dict[str, Any]] = {}
    texts: dict[str, Any] = {}
    samples: list[Sample] = []
    seconds: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(offline_and_quiet())
        code_eval = stack.enter_context(sandboxed_code_eval())
        suites = load_tasks(config.suites, benchmarks, config, seed, work)
        items_per_model = sum(_rows(loaded, config.limit) for loaded in suites.values())
        progress = Progress(emit, total=len(models) * items_per_model)
        for index, (role, folder) in enumerate(models.items()):
            lm = load_model(folder, config.batch_size, device, progress.advance)
            _check_room(lm, folder, config)
            stack.enter_context(threads_for(lm))
            scores[role], seconds[role], rows = {}, {}, {}
            for suite, loaded in suites.items():
                start = time.perf_counter()
                result = _measure_once(lm, role, suite, loaded, config, seed, out, code_eval)
                scores[role][suite], rows[suite] = result["score"], result["items"]
                seconds[role][suite] = time.perf_counter() - start
                progress.reach(index * items_per_model + sum(map(len, rows.values())))
            start = time.perf_counter()
            texts[role] = perplexity(lm, tokens, config.perplexity_sequences, config.batch_size)
            seconds[role]["perplexity"] = time.perf_counter() - start
            samples += _samples(role, rows)
    progress.finish()
    versions = {suite: _version(loaded) for suite, loaded in suites.items()}
    figures = {"scores": scores, "perplexity": texts, "tasks": versions, "lm_eval": lm_eval.__version__}
    return Outcome(figures=figures, samples=tuple(samples), execution={"seconds": seconds})


def measure(
    lm: Any, suite: str, loaded: Mapping[str, Any], chat: bool, limit: int | None, code_eval: SandboxedCodeEval, seed: int = 0
) -> dict[str, Any]:
    """One suite on any lm-eval LM: {"score": {...}, "items": [...]}. `loaded` as from `load_tasks`."""
    for task in loaded["tasks"].values():
        if runs_code(suite):
            _prefetch_after_filters(task, code_eval)
    results = lm_eval.evaluator.evaluate(
        lm,
        dict(loaded),
        limit=limit,
        bootstrap_iters=1000,  # used by none of our metrics, but 0 would drop the standard errors
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=runs_code(suite),
    )
    items = [item for name, task in loaded["tasks"].items() for item in _items(lm, suite, task, results["samples"][name])]
    return {"score": _score(suite, results["results"][suite], items), "items": items}


def _measure_once(
    lm: LocalModel, role: str, suite: str, loaded: Mapping[str, Any], config: EvalConfig, seed: int, out: Path, code_eval: SandboxedCodeEval
) -> dict[str, Any]:
    """`measure`, kept on disk: a run that was killed finds what it had measured."""
    kept = out / "work" / role / f"{suite}.json"
    listing = out / "items" / role / f"{suite}.jsonl"
    if kept.is_file():
        return {"score": json.loads(kept.read_text()), "items": [json.loads(line) for line in listing.read_text().removesuffix("\n").split("\n")]}
    result = measure(lm, suite, loaded, chat=role != "base", limit=config.limit, code_eval=code_eval, seed=seed)
    for path in (kept, listing):
        path.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in result["items"]))
    temporary = kept.with_suffix(".tmp")
    temporary.write_text(json.dumps(result["score"]))
    temporary.replace(kept)
    return result


# ---------------------------------------------------------------- what comes out of lm-eval


def _score(suite: str, results: Mapping[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """The suite's number with its standard error, as lm-eval computed both."""
    definition = SUITES[suite]
    score = {**_metric(definition.metric, results, len(items)), "items": len(items), "truncated": sum(i["truncated"] for i in items)}
    if definition.second_metric:
        score["second"] = _metric(definition.second_metric, results, len(items))
    return score


def _metric(key: str, results: Mapping[str, Any], count: int) -> dict[str, Any]:
    name, _, filtered = key.partition(",")
    value = float(results[key])
    stderr = results.get(f"{name}_stderr,{filtered}")
    if not isinstance(stderr, float | int) or math.isnan(stderr):
        stderr = math.sqrt(value * (1 - value) / count)  # binomial, where lm-eval gives none (one item)
    return {"metric": name if filtered in ("none", "create_test") else key, "score": value, "stderr": float(stderr)}


def _items(lm: Any, suite: str, task: Any, logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's sample log as readable lines, one for each question."""
    metric, _, filtered = SUITES[suite].metric.partition(",")
    return [_item(lm, task, sample, metric) for sample in logged if sample["filter"] == filtered]


def _item(lm: Any, task: Any, sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    arguments = sample["arguments"]
    item = {"task": task.task_name, "id": sample["doc_id"], "question": task.doc_to_text(sample["doc"]), "prompt": arguments[0][0]}
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(sample["doc"])
        logprobs = [round(float(response[0]), 6) for response in sample["filtered_resps"]]
        answer = {"output": choices[max(range(len(choices)), key=logprobs.__getitem__)], "logprobs": dict(zip(choices, logprobs, strict=True))}
        target = choices[sample["target"]]
    else:
        answer, target = {"output": sample["resps"][0][0]}, sample["target"]
    return {**item, **answer, "target": target, "score": float(sample[metric]), "truncated": _is_truncated(lm, task, arguments)}


def _is_truncated(lm: Any, task: Any, arguments: list[Any]) -> bool:
    """Whether lm-eval cut the prompt's beginning to fit the model's context."""
    if not isinstance(lm, LocalModel):
        return False
    prompt, answer = arguments[0]
    if task.OUTPUT_TYPE == "generate_until":
        return len(lm.tok_encode(prompt)) > lm.max_length - answer["max_gen_toks"]
    return len(lm.tok_encode(prompt + answer)) > lm.max_length + 1


def _samples(role: str, rows: Mapping[str, list[dict[str, Any]]]) -> list[Sample]:
    """A few answers to read, taken in turn from every suite."""
    order = [(i, suite) for i in range(SAMPLES_PER_MODEL) for suite in rows if i < len(rows[suite])]
    picked = [rows[suite][i] for i, suite in order[:SAMPLES_PER_MODEL]]
    return [Sample(prompt=f"[{role}] {item['question']}", output=item["output"]) for item in picked]


def _version(loaded: Mapping[str, Any]) -> str:
    """The version that lm-eval's definition states; a group's tasks share one."""
    return "/".join(sorted({str(task.VERSION) for task in loaded["tasks"].values()}))


# ---------------------------------------------------------------- before and around it


def _check_inputs(config: EvalConfig, benchmarks: Path, tokens: Path) -> None:
    for suite in config.suites:
        data_files(suite, benchmarks)
    heldout_sequences(tokens, 1, 1)
    if any(runs_code(suite) for suite in config.suites):
        require_sandbox()


def _check_room(lm: LocalModel, folder: Path, config: EvalConfig) -> None:
    if config.max_new_tokens >= lm.max_length:
        raise BadInput(
            f"evaluation: evals.max_new_tokens={config.max_new_tokens} leaves no room for a prompt in the {lm.max_length} tokens that "
            f"{folder} reads. Use less than {lm.max_length}"
        )


def _prefetch_after_filters(task: Any, code_eval: SandboxedCodeEval) -> None:
    """lm-eval scores programs one by one; run them side by side as soon as it has them all."""
    official = type(task).apply_filters

    def apply_filters() -> Any:
        instances = official(task)
        code_eval.prefetch(
            program_of(candidate, task.doc_to_target(instance.doc))
            for instance in task.instances
            for candidate in instance.filtered_resps["create_test"]
        )
        return instances

    task.apply_filters = apply_filters


def _rows(loaded: Mapping[str, Any], limit: int | None) -> int:
    return sum(min(len(task.eval_docs), limit or len(task.eval_docs)) for task in loaded["tasks"].values())


@contextmanager
def threads_for(lm: LocalModel) -> Iterator[None]:
    """One thread for a small model on a CPU: its steps are too short to share. On a busy 2-core machine two threads took over
    200 s where one took 16 s; and the figures no longer depend on the number of cores."""
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
        self.emit, self.total, self.step, self.told = emit, total, 0, 0.0

    def advance(self, rows: int) -> None:
        self.reach(self.step + rows)

    def reach(self, step: int) -> None:
        self.step = min(step, self.total)
        if time.monotonic() - self.told > 0.2:
            self._tell()

    def finish(self) -> None:
        self.step = self.total
        self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.emit({"event": "progress", "step": self.step, "total": self.total, "unit": "items"})
