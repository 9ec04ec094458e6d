"""Evaluate folders made by hand: records and per-item files as the harness writes them, for models that never were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.schema.records import File, Record, digest, file_md5, folder_of, identity_of

TEXTS = {name: pa.string() for name in ("question", "prompt", "target", "output")}
ANSWER = {"score": pa.float64(), "truncated": pa.bool_(), "choices": pa.list_(pa.string()), "logprobs": pa.list_(pa.float64()), "overlap": pa.float64()}
ITEM = pa.schema({"task": pa.string(), "id": pa.int64(), "item": pa.string(), **TEXTS, **ANSWER})


def item(task: str, number: int, score: float, **other: Any) -> dict[str, Any]:
    """One generated answer; what is not told follows from the task and the number."""
    question = f"{task}: what is {number} + 1?"
    made = {"task": task, "id": number, "item": digest({"q": question}), "question": question, "prompt": f"Q: {question}\nA:", "target": str(number + 1)}
    made |= {"output": str(number + 1) if score == 1 else "a pony", "score": float(score), "truncated": False, "choices": [], "logprobs": [], "overlap": None}
    return made | other


def choice(task: str, number: int, pick: int, **other: Any) -> dict[str, Any]:
    """One multiple choice of four, of which the second is right and `pick` is taken."""
    logprobs = [-3.0 - 0.25 * i + (2.0 if i == pick else 0.0) for i in range(4)]
    texts = [f"{number + i} apples" for i in range(4)]
    return item(task, number, float(pick == 1), choices=texts, logprobs=logprobs, output=texts[pick], target=texts[1], **other)


def answers(task: str, scores: Sequence[float]) -> list[dict[str, Any]]:
    return [item(task, number, score) for number, score in enumerate(scores)]


def evaluation(
    home: Path,
    suites: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    models: Mapping[str, str] | None = None,
    evals: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    keep_items: bool = True,
) -> Path:
    """An evaluate folder under home/stages: {role: {suite: items}}. `models`: identity by role. MODELYARD_HOME must be `home`."""
    config = {"evals": {"suites": list(next(iter(suites.values()))), "fewshot": {}, "limit": None, **(evals or {})}, "seed": 0}
    inputs = {**(models or {role: digest(role) for role in suites}), "benchmarks": "b.dir", "tokens": "t.dir"}
    identity = identity_of("evaluate", config, inputs)
    folder = folder_of("evaluate", identity)
    assert folder.is_relative_to(home)
    scores: dict[str, Any] = {}
    for role, by_suite in suites.items():
        for suite, items in by_suite.items():
            if keep_items:
                path = folder / "items" / role / f"{suite}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(list(items), ITEM), path)
            got = np.array([one["score"] for one in items])
            spread = float(got.std(ddof=1) / np.sqrt(len(got))) if len(got) > 1 else 0.0
            scores.setdefault(role, {})[suite] = {"metric": "acc", "score": float(got.mean()), "stderr": spread, "items": len(items), "truncated": 0}
    folder.mkdir(parents=True, exist_ok=True)
    written = {str(path.relative_to(folder)): File(md5=file_md5(path), size=path.stat().st_size) for path in folder.rglob("*.parquet")}
    told = {"scores": scores, "perplexity": {}, "tasks": dict.fromkeys(next(iter(suites.values())), "1.0"), "lm_eval": "0.4.13", **(figures or {})}
    Record(stage="evaluate", identity=identity, revision=1, config=config, inputs=inputs, files=written, figures=told, execution=dict(execution or {})).write(
        folder
    )
    return folder


def stage(
    home: Path,
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    execution: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> str:
    """The record of another stage; gives its identity."""
    identity = identity_of(name, config, inputs)
    folder = folder_of(name, identity)
    assert folder.is_relative_to(home)
    folder.mkdir(parents=True, exist_ok=True)
    Record(
        stage=name,
        identity=identity,
        revision=1,
        config=json.loads(json.dumps(config)),
        inputs=dict(inputs),
        files={},
        figures=dict(figures or {}),
        execution=dict(execution or {}),
    ).write(folder)
    return identity
