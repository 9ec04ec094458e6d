"""How much of each benchmark item stands in what is learnt from: documents, chats and preferences alike; and any task's items, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from components.data import shards
from components.data.decontamination import benchmarks
from components.data.steps import run_step
from components.schema.config import BadInput

from .corpus import config_of

QUESTIONS = [
    f"Which of the {word} stones that the old captain left behind on the island did the storm carry into the quiet harbour at night?"
    for word in ("red", "blue", "grey", "pale")
]


def arc(i: int) -> dict[str, Any]:
    return {"id": str(i), "question": QUESTIONS[i], "choices": {"text": ["none", "one", "two", "all"], "label": list("ABCD")}, "answerKey": "A"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    for config in ("ARC-Easy", "ARC-Challenge"):
        folder = tmp_path / "hub/allenai/ai2_arc" / config
        folder.mkdir(parents=True)
        for split, numbers in (("train", [3]), ("test", [0, 1, 2])):
            pd.DataFrame([arc(i) for i in numbers]).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "hub"


def test_any_task_is_snapshotted_by_its_name_and_read_back_as_lm_eval_numbers_it(hub: Path, tmp_path: Path) -> None:
    run_step("benchmarks", config_of(benchmarks=["arc_easy"]), tmp_path / "b")
    assert json.loads((tmp_path / "b/counts.json").read_text()) == {"arc_easy": 3}
    assert [path.name for path in (tmp_path / "b/allenai/ai2_arc").iterdir() if path.is_dir()] == ["ARC-Easy"]  # only what the task reads
    items = list(benchmarks.items(tmp_path / "b"))
    assert [(item.benchmark, item.task, item.doc_id, item.question) for item in items] == [("arc_easy", "arc_easy", i, QUESTIONS[i]) for i in range(3)]
    assert items[0].forms[1].endswith("A. none\nB. one\nC. two\nD. all")
    assert benchmarks.datasets_of("arc_easy") == ["allenai/ai2_arc"] and benchmarks.datasets_of("mini_mmlu") == []


def test_a_tag_is_snapshotted_with_all_its_tasks(hub: Path, tmp_path: Path) -> None:
    run_step("benchmarks", config_of(benchmarks=["ai2_arc"]), tmp_path / "b")
    assert {(item.benchmark, item.task) for item in benchmarks.items(tmp_path / "b")} == {("ai2_arc", "arc_easy"), ("ai2_arc", "arc_challenge")}


def test_a_dataset_without_the_measured_split_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet").unlink()
    with pytest.raises(BadInput, match="arc_easy measures split 'test' of allenai/ai2_arc, which has train"):
        run_step("benchmarks", config_of(benchmarks=["arc_easy"]), tmp_path / "b")


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"passage": "a long passage that says much", "question": "is it", "label": 1}, "a long passage that says much"),
        ({"ctx": "He walks", "endings": ["to the sea far away", "home"], "label": "0"}, "to the sea far away"),
        ({"n": 3}, ""),
    ],
)
def test_a_row_of_any_kind_is_an_item_with_all_its_texts(row: dict[str, Any], question: str) -> None:
    found, (whole,) = benchmarks._forms(row)
    assert found == question and all(text in whole for text in benchmarks._texts(row))


def test_an_item_is_found_in_documents_chats_and_preferences(hub: Path, tmp_path: Path) -> None:
    config = config_of(benchmarks=["arc_easy"], decontaminate={"action": "report", "ngram_words": 8})
    root = tmp_path / "data/own"
    run_step("benchmarks", config, root / "benchmarks")
    texts = ("A page about ships.", QUESTIONS[0] + " More words follow here.")
    with shards.Writer(root / "dedup") as writer:
        writer.write(
            shards.table_of(
                [{"id": f"{i:016x}", "text": text, "source": "s", "domain": "books", "url": str(i), "licence": "CC0-1.0"} for i, text in enumerate(texts)]
            )
        )
    run_step("decontaminate", config, root / "decontaminate")
    for kind, rows in (
        ("chats", [{"messages": [{"role": "user", "content": QUESTIONS[1]}]}]),
        ("preferences", [{"prompt": [{"role": "user", "content": "Hello"}], "chosen": "a", "rejected": "b"}]),
    ):
        (root / kind).mkdir()
        (root / kind / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_step("overlap", config, root / "overlap")
    rows = pq.read_table(root / "overlap/overlap.parquet").to_pylist()
    assert [(row["task"], row["doc_id"]) for row in rows] == [("arc_easy", i) for i in range(3)]
    assert [row["overlap"] for row in rows[:2]] == [1.0, 1.0] and [row["found_in"] for row in rows[:2]] == ["documents", "chats"]
    assert rows[2]["overlap"] > 0.5 and rows[2]["contaminated"]  # it differs in one word
    assert json.loads((root / "overlap/counts.json").read_text()) == {"items": 3, "cannot_be_told": 0, "contaminated": 3}
