"""The collect step: shards and counts from every kind of source, whoever runs it."""

import gzip
import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from components.data import shards
from components.data.reading import collect
from components.schema.config import BadInput
from components.schema.data import CollectConfig, CurriculumConfig, DataConfig, Source

from .test_webpages import record


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")


def run(folder: Path, *sources: Source, curriculum: CurriculumConfig | None = None, **config) -> tuple[list[dict], dict]:
    """The documents and the counts."""
    out = folder / "made/collect"
    collect.run(DataConfig(name="made", sources=sources, curriculum=curriculum, collect=CollectConfig(**config)), out)
    rows = [row for path in shards.paths(out) for table in shards.read(path) for row in table.to_pylist()]
    return rows, json.loads((out / "counts.json").read_text())


def dropped(counts: dict) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in counts["dropped"].items()}


def json_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_document_keeps_where_it_came_from_and_its_licence_becomes_an_spdx_id(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "  one\n", "url": "http://a.org/1", "license": "cc by 4.0", "date": 1987}, {"text": "two", "license": "other"})
    rows, counts = run(tmp_path, Source(kind="files", path=str(path), domain="books", licence="mit license"))
    kept = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert [len(row.pop("id")) for row in kept] == [16, 16]
    assert kept == [
        {"text": "one", "source": str(path), "domain": "books", "url": "http://a.org/1", "licence": "CC-BY-4.0", "date": "1987"},
        {"text": "two", "source": str(path), "domain": "books", "url": str(path), "licence": "MIT"},
    ]
    assert counts["documents"] == 2 and counts["bytes"] == 6 and set(counts["by_licence"]) == {"CC-BY-4.0", "MIT"}


def test_an_id_stays_when_data_is_added_and_tells_texts_addresses_and_sources_apart(tmp_path):
    path = tmp_path / "a.jsonl"

    def ids(*rows: dict) -> list[str]:
        return [row["id"] for row in run(tmp_path, Source(kind="files", path=str(json_lines(path, *rows))))[0]]

    one = ids({"text": "one"})
    assert ids({"text": "zero"}, {"text": "one"})[1:] == one
    assert len({*one, *ids({"text": "two"}), *ids({"text": "one", "url": "u"})}) == 3


def test_what_may_not_be_taken_is_counted_under_its_reason(tmp_path):
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots/b.org.txt").write_text("User-agent: GPTBot\nDisallow: /private\n")
    rows = [
        {"url": "http://sub.a.org/1", "license": "mit"}, {"url": "http://b.org/private/2", "license": "mit"}, {"url": "http://b.org/3", "license": "cc-by-nc-4.0"},
        {"url": "http://b.org/4", "license": "gpl-3.0"}, {"url": "http://b.org/5"}, {"url": "http://b.org/6", "license": "mit"},
    ]  # fmt: skip
    path = json_lines(tmp_path / "a.jsonl", *({"text": f"text {i}", **row} for i, row in enumerate(rows, start=1)))
    (tmp_path / "a.warc").write_bytes(record("http://c.org/", b"<p>no</p>", more="X-Robots-Tag: noai\r\n") + record("http://d.org/", b"<p>yes</p>"))
    rules = dict(opt_out_domains=("a.org",), robots=str(tmp_path / "robots"), allow_licences=("MIT", "CC-*"), deny_licences=("*-NC-*",), unknown_licence="drop")
    kept, counts = run(tmp_path, Source(kind="files", path=str(path)), Source(kind="files", path=str(tmp_path / "a.warc"), licence="MIT"), **rules)
    assert [row["text"] for row in kept] == ["text 6", "yes"]
    assert dropped(counts) == dict.fromkeys(["opted_out_domain", "robots_txt_forbids", "licence_denied", "licence_not_allowed", "licence_unknown", "noai_in_page"], 1)
    assert counts["dropped"]["licence_denied"] == {"count": 1, "bytes": 6, "examples": [f"{path}: http://b.org/3 (CC-BY-NC-4.0) text 3"]}


def test_every_poisoned_document_costs_one_counted_drop_and_never_the_run(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [b'{"text": "fine"}', b'{"text": "nul \\u0000"}', b'{"text": "\xff"}', b'{"text": "' + b"x" * 10_000_000 + b'"}', b"[" * 100_000, b"[]", b'{"t": 1}', b'{"text": 1}', b'{"text": " \\n"}']
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "before the end"}\n')[:-5])
    (folder / "c.html").write_text("<div>" * 300_000)
    (folder / "d.csv").write_text('text\nfine too\n"broken')
    (folder / "e.parquet").write_bytes(b"PAR1 not parquet PAR1")
    (folder / "f.txt").write_bytes("déjà".encode("latin1"))
    (folder / "g.txt").write_bytes("UTF-16 without a mark".encode("utf-16-le"))
    (folder / "h.txt").write_bytes(b"")
    (folder / "i.warc.gz").write_bytes(gzip.compress(record("http://a.org/", b"<p>page"))[:-9])
    (folder / "j.jsonl").write_text('{"text": "half a \\ud83d pair"}')
    kept, counts = run(tmp_path, Source(kind="files", path=str(folder)))
    assert [row["text"] for row in kept] == ["fine", "before the end", "fine too", "page", "half a \ufffd pair"]
    assert dropped(counts) == {
        "holds_nul_characters": 2, "not_utf8": 2, "longer_than_5000000_bytes": 1, "json_nested_too_deep": 1, "not_an_object": 1, "without_column_text": 1, "column_text_holds_int": 1,
        "empty_text": 2, "truncated_gz": 2, "html_nested_deeper_than_1000": 1, "csv_quoting_broken": 1, "damaged_parquet": 1,
    }  # fmt: skip
    assert counts["changed"] == {"lone_surrogates_replaced": 1}
    assert all(1 <= len(entry["examples"]) <= 3 for entry in counts["dropped"].values())


def test_a_source_that_gives_nothing_is_named_even_beside_others_that_do(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("déjà".encode("latin1"))
    fine = json_lines(tmp_path / "a.jsonl", {"text": "fine"})
    with pytest.raises(BadInput, match=r"^collect: \S*latin1\.txt: no document is left.*not_utf8 1"):
        run(tmp_path, Source(kind="files", path=str(fine)), Source(kind="files", path=str(tmp_path / "latin1.txt")))


def test_limits_hold_for_a_source_as_a_whole(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        json_lines(folder / f"{name}.jsonl", *({"text": f"{name}{i} is ten b" if i else ""} for i in range(5)))
    texts = [f"{name}{i} is ten b" for name in "abc" for i in range(1, 5)]
    assert [row["text"] for row in run(tmp_path, Source(kind="files", path=str(folder), max_documents=6))[0]] == texts[:6]
    assert [row["text"] for row in run(tmp_path, Source(kind="files", path=str(folder), max_bytes=50))[0]] == texts[:5]
    assert [row["text"] for row in run(tmp_path, Source(kind="files", path=str(folder)))[0]] == texts


def test_long_texts_are_cut_and_every_piece_is_a_document(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 50 for i in range(40)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    path = json_lines(tmp_path / "a.jsonl", {"text": "\n\n".join(paragraphs), "license": "mit"})
    for file in (tmp_path / "book.txt", path):
        rows, _ = run(tmp_path, Source(kind="files", path=str(file), max_characters=1000))
        assert len(rows) > 9 and max(len(row["text"]) for row in rows) <= 1000
        assert " ".join(" ".join(row["text"] for row in rows).split()) == " ".join(" ".join(paragraphs).split())


def test_code_has_its_programming_language_in_domain_code_only(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    (tmp_path / "a.py").write_text("print(1)")
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    assert [row["language"] for row in run(tmp_path, Source(kind="git", path=str(tmp_path), domain="code"))[0]] == ["python"]
    assert [row["language"] for row in run(tmp_path, Source(kind="git", path=str(tmp_path), domain="reference"))[0]] == [None]


def test_the_curriculum_is_a_domain_of_its_own_that_no_rule_of_taking_touches(tmp_path):
    rows, counts = run(tmp_path, curriculum=CurriculumConfig(documents=50), allow_licences=("MIT",), unknown_licence="drop")
    assert len(rows) == 50 and {(row["domain"], row["licence"]) for row in rows} == {("curriculum", "CC0-1.0")}
    assert all(name.startswith("curriculum/") for name in counts["by_source"])


def test_mistakes_of_the_configuration_are_told_before_anything_is_read(tmp_path):
    good = Source(kind="files", path=str(json_lines(tmp_path / "a.jsonl", {"text": "x"})))
    with pytest.raises(BadInput, match="does not exist"):
        run(tmp_path, good, Source(kind="files", path=str(tmp_path / "gone")))
    with pytest.raises(BadInput, match="nothing would be forbidden"):
        run(tmp_path, good, robots=str(tmp_path / "gone"))
    assert not (tmp_path / "made").exists()


def test_where_nothing_is_left_the_message_says_what_became_of_it(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "x", "license": "mit"}, {"text": ""})
    with pytest.raises(BadInput, match=r"no document is left.*empty_text 1, licence_denied 1"):
        run(tmp_path, Source(kind="files", path=str(path)), deny_licences=("MIT",))


def test_one_process_and_two_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "GROUP_BYTES", 1000)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        json_lines(folder / f"{i}.jsonl", *({"text": f"{i} {j} " * 20} for j in range(20)), "poison")
    sums = []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        run(tmp_path / engine, Source(kind="files", path=str(folder)), Source(kind="installed", packages=("json",)), curriculum=CurriculumConfig(documents=20))
        files = sorted((tmp_path / engine / "made/collect").iterdir())
        sums.append({file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files})
    assert sums[0] == sums[1] and len(sums[0]) == 8 + 1 + 1 + 1
