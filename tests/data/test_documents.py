"""The final order and split of documents: they follow from each text alone, whatever else is there and however it is stored."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from components.data import documents, shards, split, tally
from components.schema.config import BadInput

from .corpus import config_of


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")


def parted(folder: Path, rows: list[dict], shard_rows: int = 70, fraction: float = 0.2) -> dict[str, dict[str, list[dict]]]:
    """Run the step over rows in shards of `shard_rows`; {side: {domain: rows in order}}."""
    counted = tally.Tally()
    for i in range(0, len(rows), shard_rows):
        table = shards.table_of([{"id": f"{i + k:016x}", "source": "s", "domain": "web", **row} for k, row in enumerate(rows[i : i + shard_rows])])
        counted.keep(table)
        with shards.Writer(folder / "decontaminate", f"{i:05d}-") as writer:
            writer.write(table)
    (folder / "decontaminate").mkdir(parents=True, exist_ok=True)
    tally.write(folder / "decontaminate", counted.plain())
    (folder / "documents").mkdir()
    documents.run(config_of(heldout_fraction=fraction), folder / "documents")
    made: dict[str, dict[str, list[dict]]] = {"train": {}, "heldout": {}}
    for side, domains in made.items():
        for path in shards.paths(folder / "documents" / side):
            domains.setdefault(path.stem.rpartition("-")[0], []).extend(row for table in shards.read(path) for row in table.to_pylist())
    return made


def texts(side: dict[str, list[dict]]) -> set[str]:
    return {row["text"] for rows in side.values() for row in rows}


def counts(folder: Path) -> dict:
    return json.loads((folder / "documents/counts.json").read_text())


def many(count: int = 400) -> list[dict]:
    return [{"text": f"document number {i} " + "and so on " * (i % 7), "domain": ("web", "books", "code")[i % 3], "quality": i / 1000} for i in range(count)]


def test_every_document_is_there_once_on_the_side_its_hash_says_in_the_order_of_hashes(tmp_path: Path) -> None:
    rows = many()
    made = parted(tmp_path, rows)
    assert sorted(row["text"] for side in made.values() for part in side.values() for row in part) == sorted(row["text"] for row in rows)
    by_text = {row["text"]: row for row in rows}
    for side, domains in made.items():
        assert set(domains) == {"web", "books", "code"}
        for domain, part in domains.items():
            keys = [hashlib.md5(row["text"].encode()).hexdigest() for row in part]
            assert keys == sorted(keys)
            assert all(row["domain"] == domain == by_text[row["text"]]["domain"] and row["quality"] == pytest.approx(by_text[row["text"]]["quality"]) for row in part)
            assert all(split.is_heldout(row["text"], 0.2) == (side == "heldout") for row in part)
    assert 50 < len(texts(made["heldout"])) < 110  # 80 expected


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.1, 1 / 3, 0.25, 0.4999])
def test_the_boundary_in_keys_is_the_rule_of_the_split(fraction: float) -> None:
    assert all((documents.key(text) < documents.first_trained(fraction)) == split.is_heldout(text, fraction) for text in map(str, range(4000)))


def test_adding_or_reordering_documents_moves_none_to_the_other_side(tmp_path: Path) -> None:
    rows = many()
    few, more = parted(tmp_path / "few", rows[:300]), parted(tmp_path / "more", rows[::-1], shard_rows=33)
    for side in ("train", "heldout"):
        assert texts(few[side]) < texts(more[side])
        for domain, part in few[side].items():
            wanted = {row["text"] for row in part}
            assert [row["text"] for row in more[side][domain] if row["text"] in wanted] == [row["text"] for row in part]


def test_a_larger_fraction_holds_out_what_a_smaller_one_does_and_more() -> None:
    of = [f"text {i}" for i in range(500)]
    small, large = ({t for t in of if split.is_heldout(t, fraction)} for fraction in (0.05, 0.2))
    assert small < large


def test_the_number_of_parts_follows_from_the_bytes_and_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many()
    whole = parted(tmp_path / "whole", rows)
    size = sum(len(row["text"]) for row in rows if row["domain"] == "web")
    monkeypatch.setattr(documents, "PART_BYTES", size * 0.8 / 5 + 1)
    cut = parted(tmp_path / "cut", rows)
    assert {side: {d: [r["text"] for r in part] for d, part in domains.items()} for side, domains in cut.items()} == {
        side: {d: [r["text"] for r in part] for d, part in domains.items()} for side, domains in whole.items()
    }
    assert [path.name for path in shards.paths(tmp_path / "cut/documents/train") if "web" in path.name] == [f"web-{i:05d}.parquet" for i in range(5)]
    assert [path.name for path in shards.paths(tmp_path / "whole/documents/train")] == ["books-00000.parquet", "code-00000.parquet", "web-00000.parquet"]
    assert {k: v for k, v in counts(tmp_path / "cut").items()} == counts(tmp_path / "whole")


def test_two_processes_give_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 2000)
    made = []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        parted(tmp_path / engine[-1], many())
        folder = tmp_path / engine[-1] / "documents"
        made.append({str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert made[0] == made[1] and len(made[0]) > 10


def test_counts_say_what_each_side_has_of_each_domain(tmp_path: Path) -> None:
    made = parted(tmp_path, many())
    told = counts(tmp_path)
    assert told["documents"] == 400 == told["train"] + told["heldout"] and told["by_source"] == {"s": {"documents": 400, "bytes": told["bytes"]}}
    for side in ("train", "heldout"):
        assert told[side] == len(texts(made[side]))
        for domain, entry in told["by_domain"].items():
            assert entry[f"{side}_documents"] == len(made[side][domain])
            assert entry[f"{side}_bytes"] == sum(len(row["text"].encode()) for row in made[side][domain])
    assert sum(entry["bytes"] for entry in told["by_domain"].values()) == told["bytes"]


@pytest.mark.parametrize("fraction", [0.0001, 0.4999])
def test_a_handful_of_documents_still_leaves_one_on_each_side(tmp_path: Path, fraction: float) -> None:
    rng = random.Random(0)
    on_one_side = [t for t in (f"{rng.random()}" for _ in range(200)) if split.is_heldout(t, fraction) == (fraction > 0.1)][:4]
    made = parted(tmp_path, [{"text": t, "domain": d} for t, d in zip(on_one_side, ("web", "books", "web", "code"), strict=True)], shard_rows=2, fraction=fraction)
    assert texts(made["heldout"]) == {min(on_one_side, key=split.order)} and texts(made["train"]) == set(on_one_side) - texts(made["heldout"])
    assert (counts(tmp_path)["train"], counts(tmp_path)["heldout"]) == (3, 1)


def test_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    made = parted(tmp_path, [{"text": t} for t in ("a", "b", "a", "a", "b")], shard_rows=2, fraction=0.0001)
    assert not texts(made["train"]) & texts(made["heldout"])
    assert sorted(row["text"] for side in made.values() for part in side.values() for row in part) == ["a", "a", "a", "b", "b"]


@pytest.mark.parametrize(("rows", "said"), [([], "no document is left"), ([{"text": "a"}, {"text": "a"}], "one document is left")])
def test_a_corpus_that_cannot_be_parted_says_what_was_dropped(tmp_path: Path, rows: list[dict], said: str) -> None:
    dropped = tally.Tally()
    dropped.drop("empty", "a.txt: ")
    dropped.drop("empty", "b.txt: ")
    (tmp_path / "clean").mkdir()
    tally.write(tmp_path / "clean", dropped.plain())
    with pytest.raises(BadInput, match=rf"{said} of dataset 'own' \(dropped: {{'empty': 2}}\), so there is nothing to train on"):
        parted(tmp_path, rows)
