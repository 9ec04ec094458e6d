"""The benchmarks' snapshot: whole, readable like the hub, and read back item by item as lm-eval numbers them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.data.decontamination import benchmarks
from components.data.steps import run_step
from components.schema.config import BadInput
from components.schema.data import DataConfig

from .conftest import HUB
from .corpus import config_of

MINI = ("mini_gsm8k", "mini_mmlu", "mini_humaneval")
OFFICIAL = ("gsm8k", "mmlu", "humaneval")
needs_hub = pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    config = DataConfig.model_validate({"name": "own", "curriculum": {"seed": 3, "benchmark_items": 60}, "benchmarks": MINI})
    run_step("benchmarks", config, folder)
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_HUB_MIRROR", str(HUB))
        run_step("benchmarks", config_of(benchmarks=OFFICIAL), folder)
    return folder


def check_join(folder: Path, suites: tuple[str, ...], tmp_path: Path) -> None:
    """Every question that the evaluation asks is the item of that task and number, and there are no others."""
    from components.evaluation.code_eval import sandboxed_code_eval
    from components.evaluation.harness import offline_and_quiet, templates_compiled_once
    from components.evaluation.suites import load_tasks
    from components.schema.evaluation import EvalConfig

    items = {(item.task, item.doc_id): item for item in benchmarks.items(folder)}
    with offline_and_quiet(), templates_compiled_once(), sandboxed_code_eval():
        for suite, loaded in load_tasks(suites, folder, EvalConfig(suites=suites), 0, tmp_path).items():
            for task in loaded["tasks"].values():
                for doc_id, doc in enumerate(task.eval_docs):
                    item = items.pop((task.task_name, doc_id))
                    assert (item.benchmark, item.question) == (suite, doc["prompt" if "prompt" in doc else "question"])
                    assert item.question.strip() in task.doc_to_text(doc)
    assert not items


def test_items_are_numbered_as_the_evaluation_numbers_them(mini: Path, tmp_path: Path) -> None:
    check_join(mini, MINI, tmp_path)


@needs_hub
def test_items_of_official_benchmarks_are_numbered_as_the_evaluation_numbers_them(official: Path, tmp_path: Path) -> None:
    check_join(official, OFFICIAL, tmp_path)


def test_an_item_stands_with_its_solution_or_its_choices(mini: Path) -> None:
    by_benchmark = {item.benchmark: item for item in benchmarks.items(mini)}
    assert set(by_benchmark) == set(MINI)
    assert by_benchmark["mini_gsm8k"].forms[0].startswith(by_benchmark["mini_gsm8k"].question + "\n") and "####" in by_benchmark["mini_gsm8k"].forms[0]
    plain, lettered = by_benchmark["mini_mmlu"].forms
    assert lettered.replace("\nA. ", "\n").replace("\nB. ", "\n").replace("\nC. ", "\n").replace("\nD. ", "\n") == plain and "\nD. " in lettered
    assert "return" in by_benchmark["mini_humaneval"].forms[0]


def test_a_folder_without_benchmarks_has_no_items(tmp_path: Path) -> None:
    assert list(benchmarks.items(tmp_path / "absent")) == []


def test_a_snapshot_loads_like_the_hub(mini: Path) -> None:
    from datasets import load_dataset

    test = load_dataset(str(mini / "modelyard/mini_mmlu"), "people", split="test", streaming=True)
    assert next(iter(test))["subject"] == "people"


@needs_hub
def test_official_benchmarks_are_snapshotted_whole(official: Path) -> None:
    assert json.loads((official / "counts.json").read_text()) == {"gsm8k": 1319, "mmlu": 14042, "humaneval": 164}
    assert sum(entry.is_dir() for entry in os.scandir(official / "cais/mmlu")) == 57
    for name in ("cais/mmlu/anatomy/dev", "openai/gsm8k/main/test", "openai/openai_humaneval/openai_humaneval/test"):
        ours, theirs = (pq.read_table(root / f"{name}-00000-of-00001.parquet").to_pylist() for root in (official, HUB))
        assert ours == theirs


def test_a_benchmark_that_cannot_be_had_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def dataset_info(self, *args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    with pytest.raises(BadInput, match=r"openai/gsm8k: the hub cannot be reached \(no route to host\) and .*openai/gsm8k is not in the mirror"):
        run_step("benchmarks", config_of(benchmarks=["gsm8k"]), tmp_path / "out")
