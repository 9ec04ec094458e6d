"""Rows with one right answer: labels for texts, and places of answers in contexts."""

import json

import pytest

from components.data.dialogue.shapes import CHATS, convert
from components.data.dialogue.turns import Unfit
from components.data.split import read_json_lines as read
from components.data.steps import run_step

from .corpus import config_of

SQUAD = {"id": "1", "title": "t", "context": "Ann lives in Ulm. Ulm is old.", "question": "Where does Ann live?"}


def item_of(row):
    _, (item,), _ = convert(row, CHATS)
    return item


@pytest.mark.parametrize(
    "row, label",
    [({"text": "t", "label": "spam"}, "spam"), ({"sentence": "t", "label": 0, "idx": 4}, "0"), ({"sentence1": "a", "sentence2": "b", "label": True}, "True"), ({"text": "t", "label": 3, "label_text": "joy"}, "joy")],
)
def test_a_label_is_kept_and_is_the_answer_too(row, label):
    item = item_of(row)
    assert item["label"] == label == item["messages"][-1]["content"]


def test_the_span_of_an_answer_is_where_the_context_says_it_and_all_answers_are_kept():
    item = item_of({**SQUAD, "answers": {"text": ["Ulm", "in Ulm", "Ulm"], "answer_start": [13, 10, 18]}})
    start, end = item["span"]
    assert (start, end) == (13, 16) and item["context"][start:end] == "Ulm"
    assert item["answers"] == ["Ulm", "in Ulm"]
    assert item["messages"][0]["content"].endswith(item["context"])  # the question stands before it


def test_a_question_without_an_answer_has_no_span():
    item = item_of({**SQUAD, "answers": {"text": [], "answer_start": []}})
    assert item["span"] is None and item["answers"] == [""]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"sentence": "t", "label": -1}, "label_unknown"),
        ({"text": "", "label": "x"}, "empty_question"),
        ({**SQUAD, "answers": {"text": ["Ulm"], "answer_start": [12]}}, "answer_not_at_its_place"),
        ({**SQUAD, "answers": {"text": ["Ulm"], "answer_start": []}}, "answers_without_places"),
        ({"text": "t", "label": [1]}, "no_known_shape"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "context": "abc", "span": [2, 9]}, "span_outside_its_context"),
    ],
)
def test_a_row_that_names_no_right_answer_is_refused_with_its_reason(row, reason):
    with pytest.raises(Unfit) as caught:
        convert(row, CHATS)
    assert caught.value.reason == reason


def test_what_the_step_writes_it_reads_back_the_same(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(20)] + [{**SQUAD, "context": f"{i} is it.", "answers": {"text": [str(i)], "answer_start": [0]}} for i in range(20)]
    first = made(tmp_path, "one", rows)
    assert sum("label" in row for row in first) == sum("span" in row for row in first) == 20
    again = made(tmp_path, "two", first)
    assert [{**row, "kind": 0} for row in again] == [{**row, "kind": 0} for row in first]


def test_questions_about_one_context_stay_on_one_side(tmp_path):
    rows = [{**SQUAD, "context": f"Ann lives in Ulm {i}.", "question": f"Where {j}?", "answers": {"text": ["Ulm"], "answer_start": [13]}} for i in range(40) for j in range(3)]
    made(tmp_path, "one", rows, heldout_fraction=0.3)
    sides = [{row["context"] for row in read(tmp_path / f"one/chats/{side}.jsonl")} for side in ("train", "heldout")]
    assert not sides[0] & sides[1] and min(map(len, sides)) > 3


def made(folder, name, rows, **parts):
    """All rows that the step makes of these."""
    (folder / name).mkdir()
    (folder / f"{name}/c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_step("chats", config_of(chats=[{"kind": "files", "path": str(folder / f"{name}/c.jsonl")}], **parts), folder / f"{name}/chats")
    return sorted((row for side in ("train", "heldout") for row in read(folder / f"{name}/chats/{side}.jsonl")), key=lambda row: row["messages"][0]["content"])
