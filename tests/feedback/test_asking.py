"""Questions: answers of several models made different and blind, rows that have answers, what is left out and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components.feedback.people import asking
from components.feedback.people.asking import answered, ask, configured, read_rows, writers
from components.feedback.people.store import Store
from components.schema.config import BadInput
from components.schema.people import AskConfig

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]


def parrot(*says: str | None) -> Any:
    """A model that gives these answers in turn, whatever it is asked; it counts how often it was loaded."""

    def load() -> Any:
        load.loaded += 1

        def write(chats: Sequence[object], seed: int) -> list[str | None]:
            return [says[seed % len(says)] for _ in chats]

        return write

    load.loaded = 0
    return load


def test_answers_are_of_all_models_in_turn_different_and_no_more_than_asked_for() -> None:
    models = {"first": parrot("a", "b", "c"), "second": parrot("b", "d", "e")}
    rows = list(answered(PROMPTS, models, answers=4, seed=0, left_out=Counter()))
    assert [(one["text"], one["model"]) for one in rows[0]["answers"]] == [("a", "first"), ("b", ""), ("d", "second")], "both said b"
    assert len(rows) == 3 and [model.loaded for model in models.values()] == [1, 1]
    (row, *_) = answered(PROMPTS, {"first": parrot("a", "b", "c")}, answers=2, seed=0, left_out=Counter())
    assert [one["text"] for one in row["answers"]] == ["a", "b"]


def test_a_model_that_repeats_itself_is_asked_again_and_left_out_where_that_does_not_help() -> None:
    left_out: Counter[str] = Counter()
    (row, *_) = answered(PROMPTS, {"m": parrot("a", "a", "b")}, answers=2, seed=0, left_out=left_out)
    assert [one["text"] for one in row["answers"]] == ["a", "b"]
    assert list(answered(PROMPTS, {"m": parrot("a")}, answers=2, seed=0, left_out=left_out)) == []
    assert list(answered(PROMPTS, {"m": parrot("a", "b"), "n": parrot(None)}, answers=4, seed=0, left_out=left_out)) == []
    assert left_out == {"fewer_than_two_different_answers": 3, "question_longer_than_a_model_can_read": 3}


def test_an_answer_that_says_nothing_is_none() -> None:
    (row, *_) = answered(PROMPTS, {"m": parrot("", " \n", "a", "b")}, answers=2, seed=0, left_out=Counter())
    assert [one["text"] for one in row["answers"]] == ["a", "b"]


def test_rows_with_answers_are_taken_as_they_are(tmp_path: Path) -> None:
    given = [{"prompt": "q", "answers": ["x", {"text": "y", "model": "m"}]}, {"prompt": "q", "chosen": "good", "rejected": "bad"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    plain, pair = read_rows(tmp_path / "rows.jsonl", known=False)
    assert plain == {"prompt": [{"role": "user", "content": "q"}], "answers": [{"text": "x", "model": ""}, {"text": "y", "model": "m"}], "gold": None}
    assert [one["text"] for one in pair["answers"]] == ["good", "bad"] and pair["gold"] is None
    (tmp_path / "odd.jsonl").write_text(json.dumps({"prompt": "q\u2028r", "answers": ["x", "y\x85"]}, ensure_ascii=False) + "\n", encoding="utf-8")  # no end of a line
    assert read_rows(tmp_path / "odd.jsonl", known=False)[0]["prompt"][0]["content"] == "q\u2028r"
    (tmp_path / "gold.jsonl").write_text(json.dumps({"prompt": "q", "answers": ["x", "y", "z"], "ranks": [5, 2, 2]}) + "\n" + json.dumps(given[1]) + "\n")
    assert [row["gold"] for row in read_rows(tmp_path / "gold.jsonl", known=True)] == [[2, 1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("row", "known", "reason"),
    [
        ({"prompt": "q", "answers": ["x"]}, False, "row 1: `answers` must be 2 to 9 different texts"),
        ({"prompt": "q", "answers": ["x", "x"]}, False, "must be 2 to 9 different texts"),
        ({"prompt": "q", "answers": ["x", " "]}, False, "must be 2 to 9 different texts"),
        ({"prompt": "q", "answers": [str(i) for i in range(10)]}, False, "must be 2 to 9 different texts"),
        ({"answers": ["x", "y"]}, False, "row 1 has no question"),
        ({"prompt": "q", "answers": ["x", "y"]}, True, "`ranks` must give each of the 2 answers its right rank"),
        ({"prompt": "q", "answers": ["x", "y"], "ranks": [1, 1]}, True, "not all alike"),
        ([], False, "must be 2 to 9 different texts"),
    ],
)
def test_a_row_that_is_no_question_is_refused_with_its_number_and_the_reason(tmp_path: Path, row: object, known: bool, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match=reason):
        read_rows(tmp_path / "rows.jsonl", known)


def test_what_was_told_once_counts_until_it_is_told_otherwise(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/people.db")
    first = configured(store, "mine", {"overlap": 3, "guide": "Be fair."})
    ask(store, first, [])
    assert configured(store, "mine", {"gold_share": 0.2}) == first.model_copy(update={"gold_share": 0.2})
    assert configured(store, "other", {}) == AskConfig(name="other")
    with pytest.raises(BadInput, match=r"overlap: Input should be greater than 0.*; name: String should match|name: .*; overlap"):
        configured(store, "No Name", {"overlap": 0})
    assert [one["name"] for one in store.read(asking.summary)] == ["mine"]


def test_an_endpoint_without_a_model_s_name_is_refused() -> None:
    with pytest.raises(BadInput, match=r"Write http://127\.0\.0\.1:1/v1#NAME"):
        writers({"http://127.0.0.1:1/v1": None}, 8, 1.0)
