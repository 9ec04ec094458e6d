"""The `code_eval` metric of lm-eval's humaneval, mbpp and their kin, with our sandbox under it.

The official tasks call `evaluate.load("code_eval")`, which fetches a script from the hub and runs model-written code in a
bare subprocess. Inside `sandboxed_code_eval()` that one name gives a metric of ours with the same arguments and result:
pass@k by the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374). The tests run in a process of their own (sandbox.py), so an answer
that patches the checker, or that says it equals everything, does not pass here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import comb
from typing import Any

import evaluate

from components.evaluation.sandbox import Verdict, run_code, run_codes
from components.schema.programs import joined


class SandboxedCodeEval:
    """Answers `compute` as the hub's metric does. `prefetch` runs many programs side by side before they are asked for one by one."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}

    def prefetch(self, programs: Iterable[str]) -> None:
        new = [p for p in dict.fromkeys(programs) if p not in self.verdicts]
        self.verdicts.update(zip(new, run_codes(new), strict=True))

    def verdict(self, candidate: str, reference: str) -> Verdict:
        program = program_of(candidate, reference)
        if program not in self.verdicts:
            self.verdicts[program] = run_code(program)
        return self.verdicts[program]

    def compute(self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> tuple[dict[str, float], dict]:
        outcomes = {
            task: [(i, self.verdict(candidate, reference)) for i, candidate in enumerate(candidates)]
            for task, (reference, candidates) in enumerate(zip(references, predictions, strict=True))
        }
        counts = [(len(runs), sum(verdict.passed for _, verdict in runs)) for runs in outcomes.values()]
        scores = {f"pass@{n}": sum(pass_at(n, *count) for count in counts) / len(counts) for n in k if all(runs >= n for runs, _ in counts)}
        details = {task: [(i, {"passed": v.passed, "result": v.reason}) for i, v in runs] for task, runs in outcomes.items()}
        return scores, details


def program_of(candidate: str, reference: str) -> str:
    """The program that decides: the candidate, then the tests."""
    return joined(candidate, reference)


def pass_at(k: int, runs: int, passed: int) -> float:
    """Chance that at least one of k candidates, drawn from `runs` of which `passed` pass, passes."""
    return 1.0 - comb(runs - passed, k) / comb(runs, k)


@contextmanager
def sandboxed_code_eval() -> Iterator[SandboxedCodeEval]:
    """While this is open, tasks that load `code_eval` get ours; afterwards everything is as it was.

    A task's module keeps the metric it got when it was imported, so such modules are imported anew on both sides.
    """
    metric = SandboxedCodeEval()
    official_load, allowed = evaluate.load, os.environ.get("HF_ALLOW_CODE_EVAL")

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        return metric if path == "code_eval" else official_load(path, *args, **kwargs)

    _forget_task_modules()
    evaluate.load = load
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield metric
    finally:
        evaluate.load = official_load
        _forget_task_modules()
        if allowed is None:
            del os.environ["HF_ALLOW_CODE_EVAL"]
        else:
            os.environ["HF_ALLOW_CODE_EVAL"] = allowed


def _forget_task_modules() -> None:
    """lm-eval marks what it imported for a task by __mtime__."""
    for name in [name for name, module in sys.modules.items() if "__mtime__" in getattr(module, "__dict__", {})]:
        del sys.modules[name]
