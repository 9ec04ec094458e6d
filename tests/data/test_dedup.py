"""Deduplication: what is a copy of what, by comparison with all pairs; who of the copies stays; paragraphs; the report."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.data import shards, shuffle
from components.data.deduplication import clusters, dedup
from components.data.deduplication.fingerprints import fingerprints

from .corpus import config_of

WORDS = [f"{a}{b}" for a in ("har", "bo", "ti", "ro", "sal", "win", "cap", "sto", "is", "ma", "le", "mor") for b in ("bour", "at", "de", "pe", "d", "tain", "rm", "land", "p", "ter", "ning")]


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")


def deduplicated(folder: Path, rows: list[dict], shard_rows: int = 100, **options) -> list[dict]:
    """Run the step over rows in shards of `shard_rows`; what is left, in order."""
    for i in range(0, len(rows), shard_rows):
        numbered = [{"id": f"{i + k:016x}", "source": "s", "domain": "web", **row} for k, row in enumerate(rows[i : i + shard_rows])]
        with shards.Writer(folder / "filter", f"{i:05d}-") as writer:
            writer.write(shards.table_of(numbered))
    (folder / "dedup").mkdir(parents=True)
    dedup.run(config_of(dedup=options), folder / "dedup")
    return [row for path in shards.paths(folder / "dedup") for table in shards.read(path) for row in table.to_pylist()]


def counts(folder: Path) -> dict:
    return json.loads((folder / "dedup/counts.json").read_text())


def report(folder: Path) -> list[dict]:
    return pq.read_table(folder / "dedup/report/clusters.parquet").to_pylist()


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def jaccard(a: str, b: str, n: int = 5) -> float:
    """The definition, over strings."""
    first, second = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (re.findall(r"\w+", text.lower()) for text in (a, b)))
    return len(first & second) / len(first | second)


def families(rng: random.Random, count: int) -> list[str]:
    """Texts of which some are copies of others with more or fewer words changed."""
    texts: list[str] = []
    for _ in range(count):
        base = prose(rng, rng.randint(60, 300)).split(" ")
        for _ in range(rng.choice((1, 2, 3))):
            changed = list(base)
            for _ in range(rng.choice((0, 1, 1, 2, len(base) // 30, len(base) // 15))):
                changed[rng.randrange(len(base))] = rng.choice(WORDS) + "x"
            texts.append(" ".join(changed))
    rng.shuffle(texts)
    return texts


# ---------------------------------------------------------------- against all pairs


def components_of(pairs: list[tuple[int, int]], count: int) -> list[int]:
    """Union-find, by the book: the smallest member of each one's set."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        x, y = sorted((root(a), root(b)))
        parent[y] = x
    return [root(i) for i in range(count)]


def test_near_copies_are_those_that_comparing_all_pairs_finds(tmp_path: Path) -> None:
    texts = families(random.Random(1), 160)
    similar = {pair: jaccard(texts[pair[0]], texts[pair[1]]) for pair in itertools.combinations(range(len(texts)), 2)}
    left = deduplicated(tmp_path, [{"text": t} for t in texts], documents=False, threshold=0.75)
    cluster = {int(row["id"], 16): row["cluster"] for row in report(tmp_path)}
    found = [(a, b) for a, b in similar if cluster.get(a, -1) == cluster.get(b, -2)]
    sure, possible = ([pair for pair, s in similar.items() if s >= limit] for limit in (0.88, 0.62))
    assert len(sure) > 40 and sum(0.3 < s < 0.62 for s in similar.values()) > 20
    assert not set(sure) - set(found), "pairs far above the threshold were missed"
    allowed = components_of(possible, len(texts))
    assert all(allowed[a] == allowed[b] for a, b in found), "pairs far below the threshold were taken for copies"
    assert len(left) == len(texts) - counts(tmp_path)["dropped"]["near_duplicate"]["count"]
    assert {int(row["id"], 16) for row in left} == set(range(len(texts))) - {int(row["id"], 16) for row in report(tmp_path) if not row["kept"]}


def test_bands_alone_find_what_their_curve_promises(tmp_path: Path) -> None:
    texts = families(random.Random(2), 60)
    deduplicated(tmp_path, [{"text": t} for t in texts], verify=False)
    told = counts(tmp_path)["banding"]
    assert told["bands"] * told["rows"] <= told["permutations"] == 112 and told["threshold"] == 0.75 and not told["verify"]
    for s, p in told["curve"].items():
        assert p == pytest.approx(1 - (1 - float(s) ** told["rows"]) ** told["bands"], abs=1e-6)
    assert counts(tmp_path)["dropped"]["near_duplicate"]["count"] > 5


def test_connected_components_are_those_of_union_find() -> None:
    rng = random.Random(3)
    for _ in range(20):
        count = rng.randint(2, 60)
        pairs = [tuple(sorted(rng.sample(range(count), 2))) for _ in range(rng.randint(0, count))]
        packed = shuffle.pack(np.array([a for a, _ in pairs], np.uint32), np.array([b for _, b in pairs], np.uint32))
        for given in (packed, clusters.forest(packed), np.concatenate([clusters.forest(packed[::2]), clusters.forest(packed[1::2])])):
            keeper = np.arange(count, dtype=np.uint32)
            clusters.keepers(given, np.zeros(count, np.float32), keeper)
            assert keeper.tolist() == components_of(pairs, count)
        assert len(clusters.forest(packed)) == sum(k != i for i, k in enumerate(components_of(pairs, count)))


def test_a_bucket_larger_than_the_window_is_still_one_cluster(tmp_path: Path) -> None:
    base = prose(random.Random(4), 200)
    left = deduplicated(tmp_path, [{"text": f"{base} {word}"} for word in WORDS[:60]], shard_rows=25)
    assert len(left) == 1 and counts(tmp_path)["clusters"] == {"count": 1, "documents": 60, "largest": 60, "sizes": {"32": 1}}
    shown = report(tmp_path)
    assert len(shown) == clusters.SHOWN_MEMBERS and {row["size"] for row in shown} == {60}


# ---------------------------------------------------------------- who stays


def test_the_best_of_near_copies_stays_and_of_equals_the_first(tmp_path: Path) -> None:
    rng = random.Random(5)
    one, two = prose(rng, 150), prose(rng, 150)
    rows = [
        {"text": one + " first", "quality": 0.3},
        {"text": one + " second", "quality": 0.9},
        {"text": one + " third", "quality": 0.9},
        {"text": two + " first"},
        {"text": two + " second"},
    ]
    left = deduplicated(tmp_path, rows, shard_rows=2)
    assert [row["text"].split()[-1] for row in left] == ["second", "first"]
    shown = report(tmp_path)
    assert [(row["cluster"], row["kept"], row["kind"]) for row in shown] == [(0, True, None), (0, False, "near"), (0, False, "near"), (1, True, None), (1, False, "near")]
    assert all(row["similarity"] == 1 if row["kept"] else 0.9 < row["similarity"] <= 1 for row in shown)
    assert shown[0]["excerpt"] == (one + " second")[:300] and shown[0]["size"] == 3


def test_the_order_of_documents_decides_among_equals_only(tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [{"text": text, "quality": (i + 1) / 1000} for i, text in enumerate(families(rng, 60))]
    kept = {row["text"] for row in deduplicated(tmp_path / "a", rows, shard_rows=40)}
    rng.shuffle(rows)
    assert {row["text"] for row in deduplicated(tmp_path / "b", rows, shard_rows=30)} == kept
    assert len(kept) < len(rows) - 20


def test_of_exact_copies_the_first_stays_white_space_and_case_aside(tmp_path: Path) -> None:
    rows = [{"text": t} for t in ("One fish.\n\nTwo fish.", "other", "  one   FISH. two\tfish. ", "One fish, two fish", "one fish. two fish.", "OTHER\n")]
    left = deduplicated(tmp_path, rows, shard_rows=4, near=False)
    assert [row["text"] for row in left] == ["One fish.\n\nTwo fish.", "other", "One fish, two fish"]
    dropped = counts(tmp_path)["dropped"]
    assert dropped["exact_duplicate"]["count"] == 3 and dropped["exact_duplicate"]["examples"][0].startswith("s:   one   FISH")
    assert counts(tmp_path)["banding"] is None and {row["similarity"] for row in report(tmp_path)} == {1.0}


def test_an_exact_copy_of_a_near_copy_is_of_the_same_cluster(tmp_path: Path) -> None:
    base = prose(random.Random(7), 150)
    rows = [{"text": base, "quality": 0.1}, {"text": base.upper(), "quality": 0.1}, {"text": base + " and more" * 4, "quality": 0.8}]
    assert [row["quality"] for row in deduplicated(tmp_path, rows)] == pytest.approx([0.8])
    assert [(row["cluster"], row["kind"], int(row["id"], 16)) for row in report(tmp_path)] == [(0, None, 2), (0, "near", 0), (0, "exact", 1)]
    assert report(tmp_path)[2]["similarity"] == report(tmp_path)[1]["similarity"] < 1


def test_each_kind_of_deduplication_can_be_left_out(tmp_path: Path) -> None:
    base = prose(random.Random(8), 150)
    rows = [{"text": t} for t in (base, base, base + " more")]
    for i, (documents, near, left) in enumerate(((True, True, 1), (True, False, 2), (False, False, 3), (False, True, 1))):
        assert len(deduplicated(tmp_path / str(i), rows, documents=documents, near=near)) == left


def test_generated_text_loses_its_exact_copies_only(tmp_path: Path) -> None:
    base = prose(random.Random(9), 100)
    rows = [{"text": t, "domain": "curriculum"} for t in (base, base + " more", base.upper(), f"{base}\n\n{base}")]
    left = deduplicated(tmp_path, rows, paragraphs=True)
    assert [row["text"] for row in left] == [base, base + " more", f"{base}\n\n{base}"]


def test_texts_without_words_and_odd_characters_pass(tmp_path: Path) -> None:
    rows = [{"text": t} for t in ("", "...", "?!", "a\0b", "...", "\U0001f600 \ufffd", "漢字かな交じり文", "\u2028", "word")]
    assert len(deduplicated(tmp_path, rows)) == 7  # ... is there twice, and "" is \u2028
    assert deduplicated(tmp_path / "none", []) == [] and report(tmp_path / "none") == []


# ---------------------------------------------------------------- paragraphs


def test_paragraphs_that_stood_before_are_removed_and_what_is_emptied_is_dropped(tmp_path: Path) -> None:
    rng = random.Random(10)
    p, q, r = (prose(rng, 30) for _ in range(3))
    rows = [{"text": f"{p}\n\n{q}"}, {"text": f"Title\n \n  {p.upper()}\n\n\n{r}"}, {"text": f"{q}\n\n{p}"}, {"text": f"Title\n\n{r}", "domain": "code"}]
    left = deduplicated(tmp_path, rows, shard_rows=2, paragraphs=True, near=False)
    assert [row["text"] for row in left] == [f"{p}\n\n{q}", f"Title\n\n{r}", f"Title\n\n{r}"]
    told = counts(tmp_path)
    assert told["dropped"]["duplicate_paragraphs_only"]["count"] == 1
    assert told["changed"] == {"documents_shortened": 1, "repeated_paragraphs_removed": 3}


def test_a_paragraph_is_not_lost_with_the_near_copy_that_had_it_first(tmp_path: Path) -> None:
    rng = random.Random(11)
    shared, base = prose(rng, 20), prose(rng, 300)
    rows = [{"text": f"{base}\n\n{shared}", "quality": 0.1}, {"text": f"{base}\n\nx", "quality": 0.9}, {"text": f"{prose(rng, 50)}\n\n{shared}"}]
    left = deduplicated(tmp_path, rows, paragraphs=True)
    assert len(left) == 2 and sum(shared in row["text"] for row in left) == 1


def test_short_paragraphs_and_documents_without_repeats_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"See also\n \nthis {i}\n\n\n\nSee also"} for i in range(5)]
    assert [row["text"] for row in deduplicated(tmp_path, rows, paragraphs=True, near=False)] == [row["text"] for row in rows]


# ---------------------------------------------------------------- how it is done does not show


def mixed(count: int = 250) -> list[dict]:
    rng = random.Random(12)
    texts = families(rng, count // 2)[: count - 20] + [prose(rng, 5)] * 20
    return [{"text": f"{texts[i]}\n\n{texts[i // 3 * 3]}", "quality": rng.random()} for i in range(len(texts))]


def file_hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_processes_give_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        deduplicated(tmp_path / engine[-1], mixed(), shard_rows=60, paragraphs=True)
        made.append(file_hashes(tmp_path / engine[-1] / "dedup"))
    assert made[0] == made[1] and "report/clusters.parquet" in made[0]


def test_the_size_of_a_reduce_task_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixed()
    deduplicated(tmp_path / "a", rows, shard_rows=60, paragraphs=True)
    monkeypatch.setattr(shuffle, "ENTRIES", 37)
    deduplicated(tmp_path / "b", rows, shard_rows=60, paragraphs=True)
    assert file_hashes(tmp_path / "a/dedup") == file_hashes(tmp_path / "b/dedup")


def test_a_shuffle_brings_equal_keys_together_in_the_order_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "ENTRIES", 50)
    rng = np.random.default_rng(0)
    keys = [rng.integers(0, 2**64, size=size, dtype=np.uint64) // np.uint64(2**57) * np.uint64(2**57) for size in (90, 0, 70)]
    keys[0][:2] = 0, 2**64 - 1
    for i, one in enumerate(keys):
        shuffle.save(tmp_path / f"run{i}", one, np.arange(len(one)))
    ranges = shuffle.ranges(160)
    assert len(ranges) == 4 and ranges[0][0] == 0 and ranges[-1][1] == 2**64 - 1
    met = [shuffle.between([tmp_path / f"run{i}" for i in range(3)], [0, 90, 90], *r) for r in ranges]
    everything = np.concatenate(keys)
    order = np.lexsort((np.arange(160), everything))
    assert np.array_equal(np.concatenate([k for k, _ in met]), everything[order])
    assert np.array_equal(np.concatenate([i for _, i in met]), order)


def test_a_fingerprint_is_equal_exactly_where_the_folded_texts_are() -> None:
    texts = ["A  b", " a B ", "ab", "a\u00a0b\n", "a b.", "", " \n", "ÀÉ", "àé", "ß", "ss", "日 本", "日本", "\U00020000a", "\U00020001a", *map(str, range(5000))]
    hashed = fingerprints(texts).tolist()
    folded = [" ".join(text.lower().split()) for text in texts]
    assert len(set(hashed)) == len(set(folded)) and len(set(zip(hashed, folded, strict=True))) == len(set(folded))
    assert Counter(folded)["a b"] == 3
