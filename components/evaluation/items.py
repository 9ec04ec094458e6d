"""Per-item results: one row for each question, in one Parquet file for each model and suite.

task        lm-eval's task, such as mmlu_anatomy           id        its number there (doc_id)
item        md5 of the document: the same question in another run has the same
question    what is asked, alone                            prompt    what the model read, worked examples and template included
target      the right answer                                output    the answer: what was generated, or the likeliest choice
score       the suite's first metric on this item; null where it has none (see `value`)
truncated   whether the prompt lost its beginning to the model's context
choices     the choices and                                 logprobs  their log-likelihoods in nats (empty for generated answers)
overlap     share of the item's n-grams that stand in one training text; null = nobody looked
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.models.utils import normalize_gen_kwargs

from components.evaluation.local_model import LocalModel

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("id", pa.int64()),
        ("item", pa.string()),
        ("question", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("output", pa.string()),
        ("score", pa.float64()),
        ("truncated", pa.bool_()),
        ("choices", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float64())),
        ("overlap", pa.float64()),
    ]
)
PER_UNIT = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # lm-eval's items are (log-likelihood, words or bytes)
Row = dict[str, Any]


def write(rows: list[Row], path: Path) -> None:
    """The rows in SCHEMA, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    temporary.replace(path)


def read(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist()


def with_ids(rows: list[Row], ids: Mapping[str, list[str]]) -> list[Row]:
    """The rows with their items' md5; `ids` by task, in lm-eval's order."""
    return [{**row, "item": ids[row["task"]][row["id"]]} for row in rows]


# ---------------------------------------------------------------- from lm-eval's log


def from_samples(lm: Any, task: Any, samples: list[dict[str, Any]], metric: str) -> list[Row]:
    """lm-eval's log of a task, one row for each question. `metric`: lm-eval's key of the suite's first metric."""
    name, _, filtered = metric.partition(",")
    logged = [sample for sample in samples if sample["filter"] == filtered]
    return [{**_row(task, sample, name), "truncated": cut} for sample, cut in zip(logged, _truncated(lm, task, logged), strict=True)]


def _row(task: Any, sample: Mapping[str, Any], metric: str) -> Row:
    doc, arguments = sample["doc"], sample["arguments"]
    row = {
        "task": task.task_name,
        "id": sample["doc_id"],
        "prompt": _text(arguments[0][0]),
        "score": value(sample.get(metric), metric),
        "choices": [],
        "logprobs": [],
    }
    if task.OUTPUT_TYPE != "multiple_choice":
        question = "" if task.OUTPUT_TYPE == "loglikelihood_rolling" else _text(task.doc_to_text(doc))
        return {**row, "question": question, "target": _text(sample["target"]), "output": _output(task, sample)}
    choices = [_text(choice) for choice in task.doc_to_choice(doc)]
    logprobs = [round(float(response[0]), 6) for response in sample["filtered_resps"]][: len(choices)]
    several = getattr(task, "multiple_input", 0)  # the choices stand in the prompt, and one ending is scored after each
    right = task.doc_to_text(doc) if several else sample["target"]
    return {
        **row,
        "question": " / ".join(choices) if several else _text(task.doc_to_text(doc)),
        "target": choices[right] if isinstance(right, int) and 0 <= right < len(choices) else _text(right),
        "output": choices[int(np.argmax(logprobs))],
        "choices": choices,
        "logprobs": logprobs,
    }


def _output(task: Any, sample: Mapping[str, Any]) -> str:
    answer = sample["resps"][0][0]
    return answer if isinstance(answer, str) else _text(answer)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def value(measured: Any, metric: str) -> float | None:
    """A metric on one item as a number, greater = better: log-likelihood a word or byte for a perplexity, right or wrong for a pair of (gold, predicted)."""
    if isinstance(measured, Real):
        return float(measured)
    if isinstance(measured, tuple | list) and len(measured) == 2:
        if metric in PER_UNIT:
            return float(measured[0]) / max(1, measured[1])
        if np.ndim(measured[0]) == 0 and np.ndim(measured[1]) == 0:
            return float(measured[0] == measured[1])
    return None


def _truncated(lm: Any, task: Any, samples: list[dict[str, Any]]) -> list[bool]:
    """Whether lm-eval cut the prompt's beginning to fit the model's context."""
    if not isinstance(lm, LocalModel) or task.OUTPUT_TYPE == "loglikelihood_rolling":
        return [False] * len(samples)
    firsts = [sample["arguments"][0] for sample in samples]
    if task.OUTPUT_TYPE == "generate_until":
        lengths = lm.lengths([prompt for prompt, _ in firsts])
        return [
            length > lm.max_length - normalize_gen_kwargs(options, lm.max_gen_toks)["max_gen_toks"]
            for length, (_, options) in zip(lengths, firsts, strict=True)
        ]
    return [length > lm.max_length + 1 for length in lm.lengths([prompt + answer for prompt, answer in firsts])]


# ---------------------------------------------------------------- what stood in the training text


@dataclass(frozen=True)
class Overlap:
    """What the data line found of each item: by (task, number) the share of its n-grams, and whether that is too much."""

    found: dict[tuple[str, int], tuple[float, bool]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Items of each task that were looked for."""

    @classmethod
    def read(cls, folder: Path | None) -> Overlap:
        """overlap.parquet in a folder; nothing where there is none."""
        path = folder / "overlap.parquet" if folder else None
        if not path or not path.is_file():
            return cls()
        rows = pq.read_table(path).to_pylist()
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["task"]] = counts.get(row["task"], 0) + 1
        return cls({(row["task"], row["doc_id"]): (row["overlap"], row["contaminated"]) for row in rows if row["overlap"] is not None}, counts)

    def joined(self, rows: list[Row], changes_rows: Mapping[str, bool]) -> list[Row]:
        """The rows with their overlap. A task that may leave rows out of its data (`changes_rows`) joins only where it left out none."""
        asked: dict[str, int] = {}
        for row in rows:
            asked[row["task"]] = max(asked.get(row["task"], 0), row["id"] + 1)
        unsure = {task for task, changes in changes_rows.items() if changes and asked.get(task, 0) != self.counts.get(task)}
        return [{**row, **self._of(row, unsure)} for row in rows]

    def _of(self, row: Row, unsure: set[str]) -> Row:
        share, contaminated = (None, None) if row["task"] in unsure else self.found.get((row["task"], row["id"]), (None, None))
        return {"overlap": share, "contaminated": contaminated}
