"""Benchmarks: a snapshot beside the training data, laid out as on the hub, so that the data version says what was measured.

The folder works as a hub mirror: benchmarks/openai/gsm8k/main/test-00000-of-00001.parquet, with the README that
`datasets.load_dataset(folder, config)` reads. Any task of lm-eval can be snapshotted by its name: its definition says which dataset and configuration it reads.
`items(folder)` reads it back as what must not be learnt; suites.json says which rows of which files are whose items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from components.data import curriculum, split
from components.data.curriculum import exams
from components.data.reading import hub
from components.schema import catalogue
from components.schema.config import BadInput
from components.schema.data import DataConfig, MiniSuite

MINI = get_args(MiniSuite)
DEFAULT = "default"  # what a configuration without a name is called


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
    measured: dict[str, list[dict[str, Any]]] = {}
    written: dict[str, dict[str, bool]] = {}
    for name in config.benchmarks:
        if name in MINI:
            splits = curriculum.benchmark(name, config.curriculum)
            _write(splits, folder / "modelyard" / name, name)
            counts[name] = sum(len(rows["test"]) for rows in splits.values())
            continue
        measured[name] = []
        for leaf in leaves(name):
            place, files = _snapshot(name, leaf, folder, written)
            measured[name].append({**asdict(leaf), "config": place.name, "files": [file.name for file in files]})
        counts[name] = sum(_rows(folder / leaf["dataset"] / leaf["config"] / file) for leaf in measured[name] for file in leaf["files"])
    for id, configs in written.items():
        _describe(folder / id, id, configs)
    if measured:
        (folder / "suites.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    split.write_counts(folder, counts)


def datasets_of(name: str) -> list[str]:
    """The hub ids that a benchmark reads. Errors: BadInput where no task has that name."""
    return [] if name in MINI else sorted({str(leaf.dataset) for leaf in leaves(name)})


def leaves(name: str) -> list[catalogue.Leaf]:
    """The tasks of a benchmark. Errors: BadInput where one does not say what it reads."""
    found = catalogue.leaves(name)
    if unknown := [leaf.task for leaf in found if not leaf.dataset]:
        raise BadInput(
            f"benchmarks: {name} has tasks whose definition is code and names no dataset ({', '.join(unknown[:3])}), so no snapshot can be made. "
            "Drop it from data.benchmarks"
        )
    return found


def _snapshot(name: str, leaf: catalogue.Leaf, folder: Path, written: dict[str, dict[str, bool]]) -> tuple[Path, list[Path]]:
    """One configuration of a dataset, every split of it, once; the folder it stands in, and the files that the task measures. Errors: BadInput.

    `written`: by dataset, the configurations that stand and whether each is the default.
    """
    splits = hub.whole(str(leaf.dataset), leaf.config)
    place = folder / str(leaf.dataset) / (leaf.config or splits.config or DEFAULT)
    if leaf.split not in splits.tables:
        raise BadInput(
            f"benchmarks: {name} measures split {leaf.split!r} of {leaf.dataset}, which has {', '.join(splits.tables)}, so it cannot be measured. Use "
            f"another copy of it"
        )
    configs = written.setdefault(str(leaf.dataset), {})
    is_new = place.name not in configs
    configs[place.name] = configs.get(place.name, False) or leaf.config is None
    if is_new:
        place.mkdir(parents=True)
        for side, table in splits.tables.items():
            table.to_parquet(place / f"{side}-00000-of-00001.parquet")
    return place, [place / f"{leaf.split}-00000-of-00001.parquet"]


def _rows(path: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def _describe(folder: Path, id: str, configs: dict[str, bool]) -> None:
    """The README, once every configuration stands that is wanted, and whether it is the default."""
    splits = {
        config: {path.name.removesuffix("-00000-of-00001.parquet"): [] for path in sorted((folder / config).glob("*.parquet"))} for config in sorted(configs)
    }
    default = next((config for config, is_default in configs.items() if is_default), None)
    (folder / "README.md").write_text("\n".join(_readme(splits, id, default)) + "\n", encoding="utf-8")


def _write(splits: exams.Splits, folder: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    for config, sides in splits.items():
        (folder / config).mkdir(parents=True)
        for side, rows in sides.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / config / f"{side}-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join(_readme(splits, name)) + "\n", encoding="utf-8")


def _readme(splits: exams.Splits, name: str, default: str | None = None) -> Iterator[str]:
    """The dataset card: what the configurations are, for `datasets`."""
    yield "---\nconfigs:"
    for config, sides in splits.items():
        yield f"- config_name: {config}\n" + ("  default: true\n" if config == default else "") + "  data_files:"
        for side in sides:
            yield f"  - split: {side}\n    path: {config}/{side}-*.parquet"
    yield f"---\n\n# {name}"


def items(folder: Path) -> Iterator[Item]:
    """Every measured item of every benchmark in a snapshot, in a fixed order. A folder that is not there has none."""
    import pyarrow.parquet

    path = folder / "suites.json"
    official = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for suite, measured in sorted(official.items()):
        for leaf in measured:
            rows = [row for file in leaf["files"] for row in pyarrow.parquet.read_table(folder / leaf["dataset"] / leaf["config"] / file).to_pylist()]
            yield from (Item(suite, leaf["task"], i, *_forms(row)) for i, row in enumerate(rows))
    for suite, task in MINI_TASKS.items():
        for path in sorted((folder / "modelyard" / suite).glob("*/test-*.parquet")):
            rows = pyarrow.parquet.read_table(path).to_pylist()
            yield from (Item(suite, task.format(subject=path.parent.name), i, *_forms(row)) for i, row in enumerate(rows))


def _forms(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The question alone, and the whole item in every form: by the columns that a row has, whatever benchmark it is of."""
    for has, forms in FORMS:
        if has <= row.keys():
            return forms(row)
    return _any(row)


def _problem(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    return row["question"], (f"{row['question']}\n{row['answer']}",)


def _choice(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The choices stand in the wild with letters as often as without."""
    lettered = (f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJ", row["choices"], strict=False))
    return row["question"], ("\n".join([row["question"], *row["choices"]]), "\n".join([row["question"], *lettered]))


def _labelled(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """ARC and CommonsenseQA: {"text": [...], "label": [...]}."""
    if not isinstance(row["choices"], dict):
        return _choice(row) if isinstance(row["choices"], list) and all(isinstance(one, str) for one in row["choices"]) else _any(row)
    return _choice({**row, "choices": list(row["choices"].get("text") or ())})


def _function(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    return row["prompt"], (row["prompt"] + row["canonical_solution"],)


def _any(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """A row of any other kind: its longest text is the question, all its texts together are the item."""
    texts = list(_texts(row))
    return max(texts, key=len, default=""), ("\n".join(texts),)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


Forms = Callable[[dict[str, Any]], tuple[str, tuple[str, ...]]]
FORMS: tuple[tuple[set[str], Forms], ...] = (  # the columns, and what a row that has them asks; the first that fits
    ({"prompt", "canonical_solution"}, _function),
    ({"question", "choices"}, _labelled),
    ({"question", "answer"}, lambda row: _problem(row) if isinstance(row["answer"], str) and isinstance(row["question"], str) else _any(row)),
)
MINI_TASKS = {"mini_gsm8k": "mini_gsm8k", "mini_mmlu": "mini_mmlu_{subject}", "mini_humaneval": "mini_humaneval"}
