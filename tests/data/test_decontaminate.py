"""Decontamination: which items stand in which texts, what is done about it, and what is said of each item afterwards."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.data import curriculum, shards
from components.data.decontamination import benchmarks, decontaminate
from components.data.decontamination.benchmarks import Item
from components.data.decontamination.overlap import Index
from components.data.steps import run_step
from components.schema.data import CurriculumConfig, DataConfig

from .conftest import HUB
from .corpus import config_of

VOCABULARY = "a on the boat tide rope sail wind captain storm island map letter morning quiet market bread fish lamp road hill stone".split()


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")


def item(question: str, *forms: str, task: str = "quiz", doc_id: int = 0, benchmark: str = "quiz") -> Item:
    return Item(benchmark, task, doc_id, question, forms or (question,))


def quiz(count: int, words: int = 30, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [item(" ".join(f"{rng.choice(VOCABULARY)}{i}" for _ in range(words)), doc_id=i) for i in range(count)]


def most(index: Index, text: str) -> dict[int, float]:
    return dict(index.hits([text])[0])


# ---------------------------------------------------------------- the index


def shares_by_hand(items: list[Item], text: str, n: int) -> dict[int, float]:
    """The definition, over strings."""

    def ngrams(of: str, size: int) -> set[tuple[str, ...]]:
        spoken = re.findall(r"[a-z0-9]+", of.lower())
        return {tuple(spoken[i : i + size]) for i in range(len(spoken) - size + 1)}

    found = {}
    for number, one in enumerate(items):
        asked = len(re.findall(r"[a-z0-9]+", one.question.lower()))
        for form in ((one.question,) if asked >= n else ()) + one.forms:
            size = min(n, len(re.findall(r"[a-z0-9]+", form.lower())))
            wanted = ngrams(form, size)
            share = len(wanted & ngrams(text, size)) / len(wanted) if size >= min(5, n) else 0
            found[number] = max(share, found.get(number, 0))
    return {number: share for number, share in found.items() if share}


@pytest.mark.parametrize("n", [3, 5, 8, 13])
def test_shares_are_those_of_comparing_every_item_with_every_text(n: int) -> None:
    rng = random.Random(n)
    items, texts = [], []
    for i in range(60):
        question = " ".join(rng.choice(VOCABULARY[:6]) for _ in range(rng.randint(1, 20)))
        items.append(item(question, f"{question}? {' '.join(rng.choice(VOCABULARY) for _ in range(rng.randint(1, 20)))}", task=f"task{i}", doc_id=i))
    for _ in range(80):
        pieces = [rng.choice(items) for _ in range(3)]
        words = " ".join(rng.choice((p.question, *p.forms)) for p in pieces).split()
        start = rng.randrange(len(words))
        texts.append(" ".join(words[start:] + [rng.choice(VOCABULARY)] * 3 + words[:start]))
    hits = Index.build(items, n).hits(texts)
    assert sum(map(len, hits)) > 80
    for text, found in zip(texts, hits, strict=True):
        assert dict(found) == pytest.approx(shares_by_hand(items, text, n))


def test_an_item_is_found_whole_in_other_case_and_punctuation_and_inside_long_texts() -> None:
    items = quiz(40)
    index = Index.build(items, 13)
    filler = " ".join(random.Random(1).choice(VOCABULARY) for _ in range(3000))
    for changed in (str.upper, str.title, lambda t: t.replace(" ", " -- "), lambda t: ", ".join(t.split()) + "!", lambda t: f"{filler}\n{t}. {filler}", lambda t: t.replace(" ", "\n")):
        for i, one in enumerate(items):
            assert most(index, changed(one.question)) == {i: 1.0}
    assert not any(index.hits([filler, "", "one", " ".join(VOCABULARY)]))


def test_part_of_an_item_counts_for_its_share() -> None:
    (one,) = items = quiz(1, words=32)  # 20 n-grams of 13 words
    index = Index.build(items, 13)
    words = one.question.split()
    assert most(index, " ".join(words[:22])) == {0: pytest.approx(10 / 20)}
    assert most(index, " ".join(words[:12])) == {}
    assert most(index, " ".join([*words[:22], "else", *words[10:]])) == {0: 1.0}
    assert index.ngrams.tolist() == [20]


def test_a_choice_is_found_with_letters_and_without_and_a_long_question_alone() -> None:
    question = "Which of these three harbours lies on the western shore of the quiet island at the end of the road?"
    choices = ["The old one", "The new one", "The stone one", "None of them"]
    lettered = "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))])
    long, short = item(question, "\n".join([question, *choices]), lettered), item("Which is true?", "Which is true?\n" + "\n".join(choices), doc_id=1)
    index = Index.build([long, short], 13)
    assert most(index, lettered)[0] == most(index, long.forms[0])[0] == most(index, f"{question} Nobody knows.")[0] == 1
    assert 1 not in most(index, "Which is true? Nobody knows what is true.")
    assert most(index, "Which is true? The old one, the new one; the stone one. None of them!")[1] == 1


def test_items_of_a_few_words_are_compared_whole_or_cannot_be_told() -> None:
    index = Index.build([item("What is 12 + 5?", "What is 12 + 5?\n17\n18", doc_id=0), item("Why?", "Why?\nNo", doc_id=1)], 13)
    assert index.ngrams.tolist() == [1, 0]
    assert most(index, "So what is 12 + 5? 17, 18 or 19") == {0: 1.0} and most(index, "What is 12 + 5? 18, 17") == {} == most(index, "Why? No")


def test_the_manner_of_speaking_of_a_task_does_not_count() -> None:
    template = "For which of these two scenarios does the main character do something that is clearly morally wrong according to ordinary standards"
    items = [item(f"{template}? {one.question}", doc_id=i) for i, one in enumerate(quiz(12, words=14))]
    assert most(Index.build(items, 13), template) == {}
    assert most(Index.build(items, 13), items[3].question)[3] == 1
    assert len(most(Index.build(items[:10], 13), template)) == 10  # ten items may well share a passage
    many = [item(one.question, task="large", doc_id=i) for i, one in enumerate(quiz(2000, words=14, seed=1))]
    spread = [item(f"{template}? {one.question}", task="large", doc_id=2000 + i) for i, one in enumerate(quiz(12, words=14))]
    assert len(most(Index.build(many + spread, 13), template)) == 12  # 12 of 2,012 are too few to be a manner of speaking


def test_an_index_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    items = quiz(5)
    Index.build(items, 13).save(tmp_path / "index.npz")
    assert most(Index.load(tmp_path / "index.npz"), items[2].question) == {2: 1.0}
    assert Index.build([], 13).hits(["a text", ""]) == [[], []]


@pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")
def test_real_text_holds_no_official_item_and_every_item_holds_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(HUB))
    run_step("benchmarks", config_of(benchmarks=("gsm8k", "mmlu", "humaneval")), tmp_path / "benchmarks")
    items = list(benchmarks.items(tmp_path / "benchmarks"))
    assert len(items) == 1319 + 14042 + 164
    index = Index.build(items, 13)
    assert (index.ngrams > 0).all()
    texts = [t for name in ("allenai/c4/en", "wikimedia/wikipedia/20231101.en") for t in pq.read_table(HUB / name, columns=["text"])["text"].to_pylist()]
    assert len(texts) > 300 and not any(share >= 0.2 for hits in index.hits(texts) for _, share in hits)
    sample = random.Random(0).sample(range(len(items)), 500)
    assert all(dict(hits)[i] == 1 for i, hits in zip(sample, index.hits([items[i].forms[-1] for i in sample]), strict=True))


# ---------------------------------------------------------------- the step


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return DataConfig.model_validate(
        {"name": "own", "curriculum": {"seed": 5, "documents": 300, "benchmark_items": 40}, "sources": [{"kind": "files", "path": "x"}], "benchmarks": ["mini_gsm8k", "mini_mmlu"]}
    )


@pytest.fixture(scope="module")
def snapshot(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "benchmarks"
    folder.mkdir()
    benchmarks.run(config, folder)
    return folder


def decontaminated(folder: Path, snapshot: Path, rows: list[dict], config: DataConfig, shard_rows: int = 3, with_guard: bool = False, **options) -> list[dict]:
    """Run the step over rows in shards of `shard_rows`; what is left, in order."""
    for i in range(0, len(rows), shard_rows):
        numbered = [{"id": f"{i + k:016x}", "source": "s", "domain": "web", **row} for k, row in enumerate(rows[i : i + shard_rows])]
        with shards.Writer(folder / "dedup", f"{i:05d}-") as writer:
            writer.write(shards.table_of(numbered))
    (folder / "decontaminate").mkdir(parents=True)
    (folder / "benchmarks").symlink_to(snapshot)
    config = config.model_copy(update={"decontaminate": config.decontaminate.model_copy(update=options), **({} if with_guard else {"curriculum": None})})
    decontaminate.run(config, folder / "decontaminate")
    return [row for path in shards.paths(folder / "decontaminate") for table in shards.read(path) for row in table.to_pylist()]


def counts(folder: Path) -> dict:
    return json.loads((folder / "decontaminate/counts.json").read_text())


def report(folder: Path) -> dict[tuple[str, int], dict]:
    rows = pq.read_table(folder / "decontaminate/report/items.parquet").to_pylist()
    return {(row["task"], row["doc_id"]): row for row in rows}


def planted(snapshot: Path) -> tuple[list[Item], list[dict]]:
    """Some items, and rows of which some hold them."""
    items = [one for one in benchmarks.items(snapshot) if one.benchmark == "mini_gsm8k"][:3] + [one for one in benchmarks.items(snapshot) if one.benchmark == "mini_mmlu"][:1]
    rows = [
        {"text": f"Long ago.\n{items[0].forms[0].upper()}\nThat was it.", "domain": "books"},
        {"text": "Nothing of the kind stands here."},
        {"text": f"{items[0].forms[0]} and {items[1].forms[0]}"},
        {"text": f"{items[2].question} {items[2].forms[0]}", "domain": "curriculum"},
        {"text": f"{items[3].forms[1]}, and {items[1].question}"},
        {"text": items[3].forms[0].title()},
    ]
    return items, rows


def test_documents_that_hold_an_item_are_dropped_and_generated_ones_stay(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    _, rows = planted(snapshot)
    left = decontaminated(tmp_path, snapshot, rows, config)
    assert [row["text"] for row in left] == [rows[1]["text"], rows[3]["text"]]
    assert [row["contaminates"] for row in left] == [None, ["mini_gsm8k"]]
    told = counts(tmp_path)
    assert sum(entry["count"] for entry in told["dropped"].values()) == 4 and told["dropped"]["contaminates_mini_mmlu"]["count"] == 1
    assert told["matrix"] == {
        "books": {"mini_gsm8k": {"documents": 1, "items": 1}},
        "curriculum": {"mini_gsm8k": {"documents": 1, "items": 1}},
        "web": {"mini_gsm8k": {"documents": 2, "items": 2}, "mini_mmlu": {"documents": 2, "items": 1}},
    }
    assert told["contaminated_documents"] == 1
    assert told["benchmarks"]["mini_gsm8k"] == {"items": 40, "cannot_be_told": 0, "contaminated_before": 3, "contaminated": 1}
    assert told["benchmarks"]["mini_mmlu"] == {"items": 40, "cannot_be_told": 0, "contaminated_before": 1, "contaminated": 0}


def test_the_report_says_of_each_item_what_was_there_and_what_is_left(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    items, rows = planted(snapshot)
    decontaminated(tmp_path, snapshot, rows, config)
    told = report(tmp_path)
    assert set(told) == {(one.task, one.doc_id) for one in benchmarks.items(snapshot)}
    first = told[items[0].task, items[0].doc_id]
    assert (first["contaminated_before"], first["best_overlap_before"], first["contaminated"], first["best_overlap"], first["total_overlap"]) == (True, 1, False, 0, 0)
    assert [(d["id"], d["overlap"], d["kept"]) for d in first["documents"]] == [(f"{i:016x}", 1, False) for i in (0, 2)]
    stays = told[items[2].task, items[2].doc_id]
    assert stays["contaminated"] and stays["best_overlap"] == stays["total_overlap"] == 1 and stays["documents"][0]["kept"]
    clean = told["mini_gsm8k", 30]
    assert not clean["contaminated_before"] and clean["ngrams"] > 1 and clean["documents"] == []


def test_documents_may_be_marked_or_only_counted(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    items, rows = planted(snapshot)
    marked = decontaminated(tmp_path / "mark", snapshot, rows, config, action="mark")
    assert [row["contaminates"] for row in marked] == [["mini_gsm8k"], None, ["mini_gsm8k"], ["mini_gsm8k"], ["mini_gsm8k", "mini_mmlu"], ["mini_mmlu"]]
    counted = decontaminated(tmp_path / "report", snapshot, rows, config, action="report")
    assert [row["text"] for row in counted] == [row["text"] for row in rows] and not any(row["contaminates"] for row in counted)
    assert counts(tmp_path / "report")["matrix"] == counts(tmp_path / "mark")["matrix"] and counts(tmp_path / "mark")["contaminated_documents"] == 5
    assert report(tmp_path / "report")[items[0].task, items[0].doc_id]["contaminated"]


def test_an_item_may_stand_in_pieces_in_several_documents(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    one = max((one for one in benchmarks.items(snapshot) if one.benchmark == "mini_gsm8k"), key=lambda one: len(one.forms[0].split()))
    words = re.findall(r"\w+", one.forms[0])
    middle = len(words) // 2
    rows = [{"text": " ".join(words[: middle + 6])}, {"text": " ".join(words[middle - 6 :])}]
    decontaminated(tmp_path, snapshot, rows, config, min_overlap=0.95)
    found = report(tmp_path)[one.task, one.doc_id]
    assert 0.2 < found["best_overlap"] < 0.95 and found["total_overlap"] == 1 and not found["contaminated"] and len(found["documents"]) == 2


def test_the_guard_drops_what_no_ngram_shows(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    answers = [row["answer"] for row in pq.read_table(snapshot / "modelyard/mini_gsm8k/main/test-00000-of-00001.parquet").to_pylist()]
    sums = re.findall(r"\d+ [-+] \d+ = \d+", next(answer for answer in answers if answer.count("=") == 1))
    rows = [{"text": f"By the way, {sums[0]}."}, {"text": "Nothing of the kind."}, {"text": f"Again {sums[0]}.", "domain": "curriculum"}]
    left = decontaminated(tmp_path, snapshot, rows, config, with_guard=True)
    assert [row["text"] for row in left] == [rows[1]["text"], rows[2]["text"]]
    assert counts(tmp_path)["dropped"]["contains_heldout_sum"]["count"] == 1 and counts(tmp_path)["matrix"] == {}


def test_what_the_curriculum_generates_holds_hardly_any_of_its_own_items(snapshot: Path) -> None:
    made = CurriculumConfig(seed=5, documents=1500, chats=600, preferences=10)
    texts = [text for text, _ in curriculum.documents(made)] + [curriculum.as_text(chat) for chat in curriculum.chats(made)]
    hits = Index.build(benchmarks.items(snapshot), 13).hits(texts)
    assert sum(any(share >= 0.5 for _, share in found) for found in hits) <= 2


def test_without_benchmarks_everything_passes(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    rows = [{"text": f"text {i}"} for i in range(5)]
    assert [row["text"] for row in decontaminated(tmp_path / "a", tmp_path / "nothing", rows, config)] == [row["text"] for row in rows]
    assert report(tmp_path / "a") == {} and counts(tmp_path / "a")["matrix"] == {}
    assert decontaminated(tmp_path / "b", tmp_path / "nothing", [], config) == []


def file_hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_processes_give_the_same_bytes_as_one(snapshot: Path, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, made = planted(snapshot)[1] * 2, []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        decontaminated(tmp_path / engine[-1], snapshot, rows, config, with_guard=True)
        made.append(file_hashes(tmp_path / engine[-1] / "decontaminate"))
    assert made[0] == made[1] and "report/items.parquet" in made[0]


def test_the_cut_into_shards_changes_no_figure(snapshot: Path, config: DataConfig, tmp_path: Path) -> None:
    rows = planted(snapshot)[1] * 3
    for name, size in (("a", 2), ("b", 100)):
        decontaminated(tmp_path / name, snapshot, rows, config, shard_rows=size)
    assert report(tmp_path / "a") == report(tmp_path / "b") and counts(tmp_path / "a")["matrix"] == counts(tmp_path / "b")["matrix"]
    assert all(len(row["documents"]) <= 5 for row in report(tmp_path / "a").values())
