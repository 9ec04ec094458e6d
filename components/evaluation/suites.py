"""What each suite is: an official lm-eval definition, and the local files it reads.

A suite's task is lm-eval's own YAML, taken by `include:` and changed in nothing but the data's place and the answer's
greatest length. The mini suites lay a few lines of ours over it (tasks/*.yaml): a name, and zero worked examples. mini_mmlu is
lm-eval's mmlu_continuation, which compares the likelihood of the four answers in words: models of a few million parameters
know answers long before they can point at them by letter (Gu et al. 2024, OLMES, arXiv:2406.08446).
lm-eval builds its index from the few files written here, as its own index of 15,000 files takes ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks import TaskManager

from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig

OFFICIAL = Path(lm_eval.__file__).parent / "tasks"
OURS = Path(__file__).parent / "tasks"
SUBJECT_SENTENCE = "The following are questions (with answers) about {}.\n\n"  # the official mmlu_continuation tasks' own


@dataclass(frozen=True)
class SuiteDefinition:
    """Where a suite's definition and data lie, and which of lm-eval's numbers is its score."""

    official: str
    """YAML below lm_eval/tasks; for groups of subjects, the folder of the official group."""
    data: str
    """Folder below the benchmarks folder."""
    config: str | None
    """The data's configuration; None = one configuration for each subject."""
    splits: tuple[str, ...]
    """Splits that the task reads, the measured one first."""
    metric: str
    """lm-eval's key: metric,filter."""
    second_metric: str | None = None


SUITES: Mapping[str, SuiteDefinition] = {
    "gsm8k": SuiteDefinition(
        "gsm8k/gsm8k.yaml", "openai/gsm8k", "main", ("test", "train"), "exact_match,strict-match", "exact_match,flexible-extract"
    ),
    "mini_gsm8k": SuiteDefinition(
        "gsm8k/gsm8k.yaml", "modelyard/mini_gsm8k", "main", ("test", "train"), "exact_match,strict-match", "exact_match,flexible-extract"
    ),
    "mmlu": SuiteDefinition("mmlu/default", "cais/mmlu", None, ("test", "dev"), "acc,none"),
    "mini_mmlu": SuiteDefinition("mmlu/continuation", "modelyard/mini_mmlu", None, ("test", "dev"), "acc,none"),
    "humaneval": SuiteDefinition("humaneval/humaneval.yaml", "openai/openai_humaneval", "openai_humaneval", ("test",), "pass@1,create_test"),
    "mini_humaneval": SuiteDefinition("humaneval/humaneval.yaml", "modelyard/mini_humaneval", "default", ("test",), "pass@1,create_test"),
}


def runs_code(suite: str) -> bool:
    return SUITES[suite].metric.startswith("pass@")


def load_tasks(suites: Iterable[str], benchmarks: Path, config: EvalConfig, seed: int, work: Path) -> dict[str, dict[str, Any]]:
    """Each suite as lm-eval's own {"tasks", "groups", "group_map"}, ready for `evaluate`. Errors: BadInput where data is absent.

    `work` holds the written YAML and the dataset library's cache.
    """
    suites = tuple(suites)
    files = {suite: data_files(suite, benchmarks) for suite in suites}
    definitions = work / "tasks"
    for suite in suites:
        _write_definitions(suite, files[suite], definitions / suite, work / "cache")
    manager = TaskManager(include_path=[definitions / suite for suite in suites], include_defaults=False)
    loaded = {suite: dict(manager.load(suite)) for suite in suites}
    for suite in suites:
        for task in loaded[suite]["tasks"].values():
            _configure(task, suite, config, seed)
    return loaded


def data_files(suite: str, benchmarks: Path) -> dict[str, dict[str, list[str]]]:
    """Parquet files by subject (or configuration) and split. Errors: BadInput where something the suite reads is absent."""
    definition = SUITES[suite]
    root = benchmarks / definition.data
    names = [definition.config] if definition.config else subjects(suite, root)
    found = {name: {split: sorted(map(str, (root / name).glob(f"{split}-*.parquet"))) for split in definition.splits} for name in names}
    missing = [f"{name}/{split}" for name, splits in found.items() for split, paths in splits.items() if not paths]
    if missing or not found:
        lacks = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "") or "any subject"
        raise BadInput(
            f"evaluation: suite {suite} reads {root}, which lacks {lacks}: it cannot be measured. "
            f"Add {suite} to data.benchmarks and run the data stages again, or drop it from evals.suites"
        )
    return found


def subjects(suite: str, root: Path) -> list[str]:
    """mmlu always has its 57 official subjects; mini_mmlu those that the curriculum made."""
    if suite == "mini_mmlu":
        return sorted(path.name for path in root.iterdir() if any(path.glob("test-*.parquet"))) if root.is_dir() else []
    return sorted(path.stem.removeprefix("mmlu_") for path in (OFFICIAL / "mmlu/default").glob("mmlu_*.yaml"))


def _write_definitions(suite: str, files: Mapping[str, Mapping[str, list[str]]], folder: Path, cache: Path) -> None:
    definition = SUITES[suite]
    folder.mkdir(parents=True, exist_ok=True)
    for name, splits in files.items():
        data = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": dict(splits), "cache_dir": str(cache)}}
        task = name if definition.config is None else suite
        (folder / f"{task}.yaml").write_text(yaml.safe_dump({"include": _includes(suite, name), **_naming(suite, name), **data}))
    if suite == "mmlu":
        for group in (OFFICIAL / definition.official).glob("_mmlu*.yaml"):
            (folder / group.name).write_text(yaml.safe_dump({"include": str(group)}))
    if suite == "mini_mmlu":
        group = {"include": str(OURS / "mini_mmlu.yaml"), "task": [f"mini_mmlu_{name}" for name in files]}
        (folder / "_mini_mmlu.yaml").write_text(yaml.safe_dump(group))


def _includes(suite: str, name: str) -> list[str]:
    """The official definition first; what follows overrides it."""
    official = OFFICIAL / SUITES[suite].official
    if suite == "mmlu":
        return [str(official / f"mmlu_{name}.yaml")]
    if suite == "mini_mmlu":
        return [str(official / "_continuation_template_yaml")]
    return [str(official)] + ([str(OURS / f"{suite}.yaml")] if suite.startswith("mini_") else [])


def _naming(suite: str, name: str) -> dict[str, str]:
    if suite != "mini_mmlu":
        return {}
    words = name.replace("_", " ")
    return {"task": f"mini_mmlu_{name}", "task_alias": words, "description": SUBJECT_SENTENCE.format(words)}


def _configure(task: Any, suite: str, config: EvalConfig, seed: int) -> None:
    """Worked examples and answer length; everything else stays as lm-eval defines it."""
    shots = config.fewshot.get(suite, task.get_config("num_fewshot") or 0)  # type: ignore[call-overload]
    available = len(task.fewshot_docs()) if task.fewshot_cfg.split else 0
    if shots > available:
        raise BadInput(
            f"evaluation: fewshot.{suite}={shots} asks for more worked examples than {task.task_name} has ({available}), so its prompt "
            f"cannot be built. Use at most {available}"
        )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    if task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": config.max_new_tokens}, update=True)
