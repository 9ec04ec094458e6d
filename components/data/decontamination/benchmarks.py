"""Benchmarks: a snapshot beside the training data, laid out as on the hub, so that the data version says what was measured.

The folder works as a hub mirror: benchmarks/openai/gsm8k/main/test-00000-of-00001.parquet, with the README that
`datasets.load_dataset(folder, config)` reads. `items(folder)` reads it back as what must not be learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data import curriculum, split
from components.data.curriculum import exams
from components.data.reading import hub
from components.schema.data import DataConfig

OFFICIAL = {"gsm8k": "openai/gsm8k", "mmlu": "cais/mmlu", "humaneval": "openai/openai_humaneval"}


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, in every form in which it may stand in a text.

    `task` and `doc_id` are lm-eval's: the name of its task, and the row of the split that it measures.
    """

    benchmark: str
    task: str
    doc_id: int
    question: str
    """The question alone."""
    forms: tuple[str, ...]
    """The whole item: with its choices or its solution."""


def run(config: DataConfig, folder: Path) -> None:
    """Write every benchmark the recipe names. Errors: BadInput where an official one cannot be had."""
    counts: dict[str, int] = {}
    for name in config.benchmarks:
        splits = _official(name) if name in OFFICIAL else curriculum.benchmark(name, config.curriculum)
        _write(splits, folder / OFFICIAL.get(name, f"modelyard/{name}"), name)
        counts[name] = sum(len(rows["test"]) for rows in splits.values())
    split.write_counts(folder, counts)


def _official(name: str) -> exams.Splits:
    """The whole of an official benchmark: test, and what few-shot examples are taken from."""
    id = OFFICIAL[name]
    if name == "gsm8k":
        return {"main": {side: list(hub.stream(id, "main", side)) for side in ("train", "test")}}
    if name == "humaneval":
        return {"openai_humaneval": {"test": list(hub.stream(id, "openai_humaneval", "test"))}}
    subjects: exams.Splits = {}
    for side in ("test", "dev", "validation"):
        for row in hub.stream(id, "all", side):
            subjects.setdefault(row["subject"], {}).setdefault(side, []).append(row)
    return dict(sorted(subjects.items()))


def _write(splits: exams.Splits, folder: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    for config, sides in splits.items():
        (folder / config).mkdir(parents=True)
        for side, rows in sides.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / config / f"{side}-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join(_readme(splits, name)) + "\n", encoding="utf-8")


def _readme(splits: exams.Splits, name: str) -> Iterator[str]:
    """The dataset card: what the configurations are, for `datasets`."""
    yield "---\nconfigs:"
    for config, sides in splits.items():
        yield f"- config_name: {config}\n  data_files:"
        for side in sides:
            yield f"  - split: {side}\n    path: {config}/{side}-*.parquet"
    yield f"---\n\n# {name}"


def items(folder: Path) -> Iterator[Item]:
    """Every measured item of every benchmark in a snapshot, in a fixed order. A folder that is not there has none."""
    import pyarrow.parquet

    for benchmark, (id, task, forms) in LAYOUT.items():
        for path in sorted((folder / id).glob("*/test-*.parquet")):
            rows = pyarrow.parquet.read_table(path).to_pylist()
            yield from (Item(benchmark, task.format(subject=path.parent.name), i, *forms(row)) for i, row in enumerate(rows))


def _problem(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    return row["question"], (f"{row['question']}\n{row['answer']}",)


def _choice(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The choices stand in the wild with letters as often as without."""
    lettered = (f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=False))
    return row["question"], ("\n".join([row["question"], *row["choices"]]), "\n".join([row["question"], *lettered]))


def _function(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    return row["prompt"], (row["prompt"] + row["canonical_solution"],)


Forms = Callable[[dict[str, Any]], tuple[str, tuple[str, ...]]]
LAYOUT: dict[str, tuple[str, str, Forms]] = {  # benchmark: folder, lm-eval's task, what its rows ask
    "gsm8k": (OFFICIAL["gsm8k"], "gsm8k", _problem),
    "mmlu": (OFFICIAL["mmlu"], "mmlu_{subject}", _choice),
    "humaneval": (OFFICIAL["humaneval"], "humaneval", _function),
    "mini_gsm8k": ("modelyard/mini_gsm8k", "mini_gsm8k", _problem),
    "mini_mmlu": ("modelyard/mini_mmlu", "mini_mmlu_{subject}", _choice),
    "mini_humaneval": ("modelyard/mini_humaneval", "mini_humaneval", _function),
}
