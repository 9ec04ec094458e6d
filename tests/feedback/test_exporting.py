"""What people said as training data: which pairs, what is left out and why, the same bytes again, and that the data line reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.data.dialogue.shapes import CHATS, PREFERENCES, convert
from components.feedback.people.exporting import export
from components.schema.people import Edit
from tests.feedback.people import claims, filled, person, said, say

Tell = dict[str, Any]


@pytest.fixture
def ranked(tmp_path: Path) -> Callable[..., Any]:
    """A store where people said so about the questions in turn: by name, ranks (None: all bad) or a dict with more."""

    def make(*questions: dict[str, Any], **config: Any) -> Any:
        store = filled(tmp_path, questions=len(questions), overlap=3, **config)
        for name in sorted({name for one in questions for name in one}):
            who = person(store, name)
            for claim in claims(store, who, ahead=50):
                number = int(claim.item.prompt[0]["content"].split()[1][:-1])
                told = (questions[number] if not claim.item.is_gold else {"Ada": [3, 2, 1], "Bo": [1, 2, 3]}).get(name, "nothing")
                if told != "nothing":
                    more = dict(told) if isinstance(told, dict) else {"ranks": told}
                    say(store, who, claim, submission=f"{name}-{claim.item_id:08}", **more)
        return store

    return make


def rows(folder: Path, name: str) -> list[Tell]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_pair_is_what_more_people_say_and_what_is_left_out_is_counted_by_reason(ranked: Callable[..., Any], tmp_path: Path) -> None:
    store = ranked(
        {"Ada": [1, 2, 3], "Bo": [1, 3, 2], "Cy": [1, 2, 2]},  # 0 is best by all; 1 and 2: one for each, one tie
        {"Ada": [1, 1, 2]},  # a tie, and two pairs
        {"Ada": None},  # all bad
    )
    figures = export(said(store), tmp_path / "out")
    pairs = {(row["prompt"][0]["content"], row["chosen"][7], row["rejected"][7]): row["votes"] for row in rows(tmp_path / "out", "preferences/pairs.jsonl")}
    assert pairs == {
        ("Question 0?", "0", "1"): [3, 0, 0], ("Question 0?", "0", "2"): [3, 0, 0], ("Question 1?", "0", "2"): [1, 0, 0], ("Question 1?", "1", "2"): [1, 0, 0],
    }  # fmt: skip
    assert figures["dropped"] == {"all_bad": 3, "people_disagree": 1, "tie": 1} and figures["pairs"] == 4


def test_a_majority_wins_and_those_who_find_all_bad_do_not_vote(ranked: Callable[..., Any], tmp_path: Path) -> None:
    store = ranked({"Ada": [1, 2, 3], "Bo": [2, 1, 3], "Cy": [1, 2, 3]}, {"Ada": [1, 2, 3], "Bo": None})
    export(said(store), tmp_path / "out")
    votes = {(row["prompt"][0]["content"], row["chosen"][7], row["rejected"][7]): row["votes"] for row in rows(tmp_path / "out", "preferences/pairs.jsonl")}
    assert votes["Question 0?", "0", "1"] == [2, 0, 1] and votes["Question 1?", "0", "1"] == [1, 0, 0]


def test_known_questions_and_people_who_are_often_wrong_on_them_are_left_out(ranked: Callable[..., Any], tmp_path: Path) -> None:
    store = ranked(*({"Ada": [1, 2, 3], "Bo": [3, 2, 1]} for _ in range(4)), known=1, gold_share=0.5)
    everybody, trusted = export(said(store), tmp_path / "all"), export(said(store), tmp_path / "some", min_gold=0.7)
    assert everybody["gold_rankings_left_out"] == 2 and everybody["pairs"] == 0 and everybody["dropped"] == {"people_disagree": 12}
    assert trusted["annotators_below_min_gold"] == 1 and trusted["annotators"] == 1 and trusted["pairs"] == 12
    assert "Known" not in (tmp_path / "all/preferences/pairs.jsonl").read_text() + (tmp_path / "some/preferences/pairs.jsonl").read_text()


def test_edits_become_chats_and_flags_say_what_is_unsafe(ranked: Callable[..., Any], tmp_path: Path) -> None:
    flags = ((), ("harmful", "private"), ())
    store = ranked({"Ada": {"ranks": [1, 2, 3], "flags": flags, "edit": Edit(text=" A better one. ")}, "Bo": {"ranks": [1, 2, 3], "edit": Edit(text="A better one.")}})
    figures = export(said(store), tmp_path / "out")
    assert rows(tmp_path / "out", "edits/chats.jsonl") == [
        {"messages": [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "A better one."}], "kind": "people"}
    ]
    (flagged,) = rows(tmp_path / "out", "safety/answers.jsonl")
    assert flagged["flags"] == {"harmful": 1, "private": 1} and flagged["people"] == 2 and flagged["answer"] == "answer 1 to 0"
    safety = {(row["chosen"][7], row["rejected"][7]): (row.get("safer"), row.get("safe")) for row in rows(tmp_path / "out", "preferences/pairs.jsonl")}
    assert safety == {("0", "1"): ("chosen", [True, False]), ("0", "2"): (None, None), ("1", "2"): ("rejected", [False, True])}
    assert figures["edits"] == 1 and figures["flagged_answers"] == 1


def test_the_same_opinions_give_the_same_bytes_in_whatever_order_they_came(ranked: Callable[..., Any], tmp_path: Path) -> None:
    store = ranked({"Ada": [1, 2, 3], "Bo": [2, 1, 3]}, {"Bo": [3, 2, 1], "Cy": [1, 2, 2]})
    for name, rankings in (("one", said(store)), ("two", said(store)[::-1])):
        export(rankings, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 5 and all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    whole = "".join((tmp_path / "one" / file).read_text() for file in files)
    assert not any(name in whole for name in ("Ada", "Bo", "Cy", "secret-model"))


def test_the_data_line_reads_the_pairs_with_what_they_say_about_harm(ranked: Callable[..., Any], tmp_path: Path) -> None:
    store = ranked({"Ada": {"ranks": [1, 2, 3], "flags": (("hateful",), (), ())}})
    export(said(store), tmp_path / "out")
    read = [convert(row, PREFERENCES) for row in rows(tmp_path / "out", "preferences/pairs.jsonl")]
    assert [shape for shape, _, _ in read] == ["dpo"] * 3
    assert sorted((pair["chosen"][7], pair["rejected"][7], pair.get("safer"), pair.get("safe")) for _, (pair,), _ in read) == [
        ("0", "1", "rejected", [False, True]), ("0", "2", "rejected", [False, True]), ("1", "2", None, None),
    ]  # fmt: skip


def test_the_data_line_reads_edits_as_chats(ranked: Callable[..., Any], tmp_path: Path) -> None:
    export(said(ranked({"Ada": {"ranks": [1, 2, 3], "edit": Edit(text="Better.")}})), tmp_path / "out")
    (row,) = rows(tmp_path / "out", "edits/chats.jsonl")
    assert convert(row, CHATS)[1][0]["messages"] == row["messages"]
