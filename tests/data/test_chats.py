"""The chats step: what lands in its four files."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from components.data.dialogue import conversations
from components.data.split import read_json_lines as read
from components.data.steps import run_step
from components.schema.config import BadInput

from .conftest import HUB
from .corpus import config_of

U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
STRANGE = {"question": "why \u2028\0 \ufeff é?", "answer": "so\x1c it is"}


def write_rows(path: Path, rows: list) -> dict:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "files", "path": str(path)}


def good(count: int) -> list[dict]:
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(count)]


def run(folder: Path, rows: list, **parts) -> tuple[dict, list[dict]]:
    """counts.json and all rows of a chats step."""
    run_step("chats", config_of(chats=[write_rows(folder / "c.jsonl", rows)], **parts), folder / "chats")
    return json.loads((folder / "chats/counts.json").read_text()), [row for side in ("train", "heldout") for row in read(folder / f"chats/{side}.jsonl")]


def test_a_mixed_source_is_converted_row_by_row_and_counted_by_shape(tmp_path):
    rows = [{"messages": [U, A]}, {"instruction": "Do", "output": "done"}, {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, *good(2), STRANGE]
    counts, made = run(tmp_path, rows)
    assert counts["by_shape"] == {"alpaca": 1, "openai_messages": 1, "question_answer": 3, "sharegpt": 1} and counts["dropped"] == {} == counts["matrix"]
    assert counts["chats"] == counts["train"] + counts["heldout"] == 6 == counts["by_kind"][str(tmp_path / "c.jsonl")]
    assert sorted(row["messages"][0]["content"] for row in made) == sorted(["u", "Do", "h", "q0", "q1", STRANGE["question"]])
    assert all(list(row) == ["messages", "kind"] for row in made)


def test_what_does_not_convert_is_listed_with_file_line_reason_and_excerpt(tmp_path):
    rows = [*good(6), {"messages": [U, U, A]}, {"text": "x" * 9999}, {"question": "q<|end|>", "answer": "a"}, good(1)[0], {"instruction": "\ud800", "output": "x"}]
    counts, made = run(tmp_path, rows)
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {
        "turns_do_not_alternate": 1, "no_known_shape": 1, "spells_a_special_token": 1, "duplicate": 1, "half_a_surrogate_pair": 1,
    }  # fmt: skip
    listed = {row["reason"]: row for row in read(tmp_path / "chats/dropped.jsonl")}
    where = {reason: row["where"] for reason, row in listed.items()}
    assert where == {reason: f"{tmp_path / 'c.jsonl'}, line {line}" for reason, line in zip(where, (7, 8, 9, 11, 10), strict=True)}
    assert listed["turns_do_not_alternate"]["detail"] == "turns are user, user, assistant" and "'role': 'user'" in listed["turns_do_not_alternate"]["excerpt"]
    assert listed["no_known_shape"]["detail"] == "columns are text: str" and len(listed["no_known_shape"]["excerpt"]) <= 200
    assert counts["dropped"]["no_known_shape"]["examples"] == [f"{tmp_path / 'c.jsonl'}, line 8: columns are text: str"]
    assert len(made) == counts["chats"] == 6


def test_a_line_that_is_no_json_costs_itself_alone(tmp_path):
    source = write_rows(tmp_path / "c.jsonl", good(5))
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b'{"question": "cut\n' + b'{"question": "\xff", "answer": "b"}\n' + b"[" * 5000 + b"\n[1]\n" + json.dumps({"x": "y" * 25_000_000}).encode() + b"\n")
        file.write(json.dumps({"question": "q", "answer": "y" * 6_000_000}).encode() + b"\n" + json.dumps(good(9)[8]).encode())
    run_step("chats", config_of(chats=[source]), tmp_path / "chats")
    counts = json.loads((tmp_path / "chats/counts.json").read_text())
    assert counts["chats"] == 6
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {"not_json": 1, "not_utf8": 1, "json_nested_too_deep": 1, "not_an_object": 1, "longer_than_5000000_bytes": 2}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"title": "t", "body": "b"}] * 3, r"chats: .*c\.jsonl: 3 of its first 3 rows cannot be converted: no_known_shape 3 \(such as .*line 1: columns are title: str, body: str\)\. Columns seen: title, body\."),
        ([*good(40), *[{"messages": [U]}] * 60, *good(500)], r"60 of its first 100 rows cannot be converted: no_answer_to_a_question 60 .*Columns seen: question, answer, messages"),
        ([{"prompt": "p", "chosen": "c", "rejected": "r"}], r"shapes known: openai_messages \(messages: list of \{role, content\}\); sharegpt .*; alpaca .*; transcript"),
        ([], r"0 of its first 0 rows cannot be converted: it has no rows. Columns seen: none"),
        (["no object"], r"not_an_object 1"),
    ],
)
def test_a_source_that_mostly_does_not_convert_is_a_mistake_of_the_recipe(tmp_path, rows, message):
    with pytest.raises(BadInput, match=message):
        run(tmp_path, rows)


def test_half_of_the_first_rows_may_be_bad_and_later_ones_all(tmp_path):
    counts, _ = run(tmp_path, [*good(50), *[{"messages": [U]}] * 400])
    assert counts["chats"] == 50 and counts["dropped"]["no_answer_to_a_question"]["count"] == 400
    assert len(read(tmp_path / "chats/dropped.jsonl")) == 400 and len(counts["dropped"]["no_answer_to_a_question"]["examples"]) == 3


def test_a_chat_is_there_once_whichever_source_gives_it_and_the_first_stays(tmp_path):
    sources = [write_rows(tmp_path / name, rows) for name, rows in (("b.jsonl", good(9)), ("a.jsonl", [*good(9), {"question": "new", "answer": "n"}]))]
    run_step("chats", config_of(chats=sources), tmp_path / "chats")
    counts = json.loads((tmp_path / "chats/counts.json").read_text())
    assert counts["by_kind"] == {str(tmp_path / "a.jsonl"): 1, str(tmp_path / "b.jsonl"): 9} and counts["dropped"]["duplicate"]["count"] == 9
    assert {row["where"] for row in read(tmp_path / "chats/dropped.jsonl")} == {f"{tmp_path / 'a.jsonl'}, line {i}" for i in range(1, 10)}


def test_answers_to_one_question_stay_on_one_side_and_adding_chats_moves_none(tmp_path):
    rows = [{"question": f"q{i}", "answer": answer} for i in range(300) for answer in "xy"]
    sides = {}
    for name, chosen in (("few", rows[:400]), ("more", rows[::-1])):
        (tmp_path / name).mkdir()
        run(tmp_path / name, chosen, heldout_fraction=0.2)
        sides[name] = {side: {row["messages"][0]["content"] for row in read(tmp_path / name / f"chats/{side}.jsonl")} for side in ("train", "heldout")}
        assert not sides[name]["train"] & sides[name]["heldout"]
    assert all(sides["few"][side] <= sides["more"][side] for side in ("train", "heldout"))
    assert 35 < len(sides["more"]["heldout"]) < 85  # 60 expected


def test_the_files_do_not_depend_on_the_order_of_rows_and_a_handful_is_parted(tmp_path):
    for name, rows in (("one", good(200)), ("two", good(200)[::-1])):
        (tmp_path / name).mkdir()
        run(tmp_path / name, rows)
    for side in ("train", "heldout"):
        questions = [[row["messages"] for row in read(tmp_path / name / f"chats/{side}.jsonl")] for name in ("one", "two")]
        assert questions[0] == questions[1] and questions[0] != sorted(questions[0], key=str)
    (tmp_path / "three").mkdir()
    counts, _ = run(tmp_path / "three", good(2), heldout_fraction=0.0001)
    assert (counts["train"], counts["heldout"]) == (1, 1)
    with pytest.raises(BadInput, match="chats: 1 left after cleaning"):
        run(tmp_path, good(1))


def test_nothing_asked_for_leaves_empty_files(tmp_path):
    run_step("chats", config_of(curriculum={"documents": 5, "chats": 0}), tmp_path / "chats")
    assert {path.name: path.read_text() for path in (tmp_path / "chats").glob("*.jsonl")} == dict.fromkeys(("train.jsonl", "heldout.jsonl", "dropped.jsonl"), "")
    assert json.loads((tmp_path / "chats/counts.json").read_text())["chats"] == 0


def test_a_curriculum_keeps_its_repetitions_and_guards_the_sources(dataset, tmp_path):
    import re

    rows = pyarrow.parquet.read_table(dataset / "benchmarks/modelyard/mini_gsm8k/main/test-00000-of-00001.parquet").to_pylist()
    heldout = re.findall(r"\d+ [-+] \d+ = \d+", " ".join(row["answer"] for row in rows if row["answer"].count("=") == 1))[0]
    counts, made = run(tmp_path, [*good(3), {"question": "Sum?", "answer": heldout}], curriculum={"chats": 2000, "documents": 1})
    assert counts["dropped"] == {"contains_heldout_sum": {"count": 1, "examples": [f"{tmp_path / 'c.jsonl'}, line 4: Sum?\n{heldout}"]}}
    assert counts["by_shape"] == {"curriculum": 2000, "question_answer": 3}
    assert max(Counter(json.dumps(row["messages"]) for row in made).values()) > 1


def test_every_run_gives_the_same_bytes(config, dataset, tmp_path):
    for step in ("chats", "preferences"):
        run_step(step, config, tmp_path / step)
        names = {path.name for path in (dataset / step).iterdir()}
        assert names == {"train.jsonl", "heldout.jsonl", "dropped.jsonl", "counts.json"}
        assert all((dataset / step / name).read_bytes() == (tmp_path / step / name).read_bytes() for name in names - {"counts.json"})


# ---------------------------------------------------------------- against the benchmarks

ITEM = "A baker sells 12 loaves in the morning and twice as many in the afternoon, then gives 5 away; how many loaves leave the shop today?"
OTHER = "Fourteen grey geese crossed the frozen lake at dawn while the old ferryman counted them aloud and wrote each one down in red ink. How many?"


@pytest.fixture
def benchmark(tmp_path):
    """A GSM8K of two items beside the chats."""
    folder = tmp_path / "benchmarks/openai/gsm8k/main"
    folder.mkdir(parents=True)
    rows = [{"question": ITEM, "answer": "12 + 24 + 5 = 41\n#### 41"}, {"question": OTHER, "answer": "14"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    measured = {"task": "gsm8k", "dataset": "openai/gsm8k", "config": "main", "split": "test", "files": ["test-00000-of-00001.parquet"]}
    (tmp_path / "benchmarks/suites.json").write_text(json.dumps({"gsm8k": [measured]}))
    return tmp_path


CONTAMINATED = [{"question": ITEM.upper().replace(";", " -"), "answer": "41"}, {"question": "Please solve: " + ITEM, "answer": "I think 40"}]
MATRIX = {"gsm8k": {"rows": 2, "items": 1}}


@pytest.mark.parametrize("action, rows", [("drop", 5), ("mark", 7), ("report", 7)])
def test_chats_that_hold_a_benchmark_item_are_dropped_marked_or_counted(benchmark, action, rows):
    counts, made = run(benchmark, [*good(5), *CONTAMINATED], decontaminate={"action": action})
    assert counts["matrix"] == {str(benchmark / "c.jsonl"): MATRIX} and counts["chats"] == rows
    marked = [row["messages"][0]["content"] for row in made if row.get("contaminates") == ["gsm8k"]]
    assert len(marked) == (2 if action == "mark" else 0) and sum("contaminates" in row for row in made) == len(marked)
    assert counts["dropped"].get("contaminates_gsm8k", {"count": 0})["count"] == (2 if action == "drop" else 0)
    if action == "drop":
        assert [row["where"].rpartition(" ")[2] for row in read(benchmark / "chats/dropped.jsonl")] == ["6", "7"]


def test_half_an_item_is_left_where_more_is_asked_for(benchmark):
    half = [{"question": " ".join(ITEM.split()[:17]), "answer": "no idea"}]
    assert "contaminates_gsm8k" not in run(benchmark, [*good(5), *half])[0]["dropped"]
    assert run(benchmark, [*good(5), *half], decontaminate={"min_overlap": 0.1})[0]["dropped"]["contaminates_gsm8k"]["count"] == 1


def test_curriculum_that_holds_an_item_is_counted_and_stays(benchmark, monkeypatch):
    made = [{"messages": [{"role": "user", "content": row["question"]}, A], "kind": "word_problem"} for row in [*CONTAMINATED, *good(3)]]
    monkeypatch.setattr(conversations.curriculum, "chats", lambda config: iter(made))
    run_step("chats", config_of(curriculum={"chats": 5}), benchmark / "chats")
    counts = json.loads((benchmark / "chats/counts.json").read_text())
    assert counts["chats"] == 5 and counts["matrix"] == {"word_problem": MATRIX} and counts["dropped"] == {}


@pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")
def test_of_gsm8k_s_training_split_only_copies_of_one_test_item_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(HUB))
    sources = [{"kind": "hub", "id": "openai/gsm8k", "config": "main"}, {"kind": "hub", "id": "llamafactory/alpaca_en", "config": "default"}]
    config = config_of(chats=sources, benchmarks=["gsm8k"])
    for step in ("benchmarks", "chats"):
        run_step(step, config, tmp_path / step)
    counts = json.loads((tmp_path / "chats/counts.json").read_text())
    assert counts["matrix"] == {"openai/gsm8k:main": {"gsm8k": {"rows": 2, "items": 1}}}
    assert counts["by_kind"] == {"llamafactory/alpaca_en:default": 985, "openai/gsm8k:main": 7471}
    assert all("A train travels" in row["excerpt"] for row in read(tmp_path / "chats/dropped.jsonl") if row["reason"] == "contaminates_gsm8k")
