import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from components.data import hub, sources
from components.schema.config import BadInput
from components.schema.data import Source

from .conftest import HUB

needs_hub = pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")


def texts(**source) -> list[str]:
    return [text for text, _ in sources.documents(Source(**source))]


def refusal(**source) -> str:
    with pytest.raises(BadInput) as caught:
        list(sources.documents(Source(**source)))
    return str(caught.value)


def test_a_folder_of_texts_is_read_in_sorted_order_with_its_label(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.csv").write_text("not text")
    assert list(sources.documents(Source(kind="text", path=str(tmp_path)))) == [("first", str(tmp_path)), ("second", str(tmp_path))]


def test_a_long_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 100 for i in range(60)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    pieces = texts(kind="text", path=str(tmp_path / "book.txt"))
    assert len(pieces) > 5 and max(map(len, pieces)) <= sources.LONGEST_DOCUMENT
    assert "\n\n".join(pieces) == "\n\n".join(paragraphs)


def test_a_long_line_without_any_break_is_cut_too(tmp_path):
    (tmp_path / "line.txt").write_text("x" * 9001)
    assert "".join(texts(kind="text", path=str(tmp_path / "line.txt"))) == "x" * 9001


def test_json_lines_and_parquet_give_the_column_that_is_named(tmp_path):
    rows = [{"body": "one", "n": 1}, {"body": "two", "n": 2}, {"body": None, "n": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(kind="jsonl", path=str(tmp_path / "a.jsonl"), text_field="body") == ["one", "two", ""]
    assert texts(kind="parquet", path=str(tmp_path / "a.parquet"), text_field="body") == ["one", "two", ""]


def test_max_documents_and_max_bytes_stop_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "ten bytes!"}) for _ in range(9)))
    assert len(texts(kind="jsonl", path=str(tmp_path / "a.jsonl"), max_documents=4)) == 4
    assert len(texts(kind="jsonl", path=str(tmp_path / "a.jsonl"), max_bytes=25)) == 3


def test_installed_gives_the_same_docstrings_and_functions_each_time():
    source = Source(kind="installed", packages=("json",), max_bytes=20_000)
    first = list(sources.documents(source))
    assert first == list(sources.documents(source))
    assert any(text.startswith("def ") for text, _ in first) and any("JSON" in text and not text.startswith("def") for text, _ in first)
    assert texts(kind="installed", packages=("stdlib",), max_bytes=5_000)


def test_the_fingerprint_of_a_local_source_follows_its_content_and_of_installed_ones_their_version(tmp_path):
    source = Source(kind="text", path=str(tmp_path / "a.txt"))
    assert sources.fingerprint(source) is None
    (tmp_path / "a.txt").write_text("one")
    before = sources.fingerprint(source)
    (tmp_path / "a.txt").write_text("two")
    assert before and sources.fingerprint(source) != before
    pinned = sources.fingerprint(Source(kind="installed", packages=("stdlib", "yaml")))
    assert sys.version.split()[0] in pinned and "yaml 6" in pinned


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    message = refusal(kind="text", path=str(tmp_path / "gone.txt"))
    assert "gone.txt does not exist" in message and f"relative to {Path.cwd()}" in message


def test_an_empty_file_is_named(tmp_path):
    for kind, name in (("text", "a.txt"), ("jsonl", "a.jsonl")):
        (tmp_path / name).write_text(" \n")
        assert f"{name} is empty" in refusal(kind=kind, path=str(tmp_path / name))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert "is empty (0 rows)" in refusal(kind="parquet", path=str(tmp_path / "a.parquet"))


def test_a_folder_without_a_file_of_the_kind_is_refused(tmp_path):
    assert "holds no .jsonl file" in refusal(kind="jsonl", path=str(tmp_path))


def test_text_that_is_not_utf8_names_the_byte_and_the_way_out(tmp_path):
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin1"))
    message = refusal(kind="text", path=str(tmp_path / "latin.txt"))
    assert "latin.txt is not UTF-8: byte 0xe9 at position 1" in message and "iconv" in message


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_wrong_column_names_the_columns_there_are(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    rows = [{"title": "t", "body": "b", "n": 1}]
    file.write_text(json.dumps(rows[0])) if kind == "jsonl" else pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    message = refusal(kind=kind, path=str(file))
    assert "no column 'text'" in message and "title, body, n" in message and "text_field" in message
    assert "holds int, not text" in refusal(kind=kind, path=str(file), text_field="n")


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": broken}\n')
    assert "a.jsonl, line 2 is not JSON" in refusal(kind="jsonl", path=str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text("[1, 2]\n")
    assert "line 1 holds list" in refusal(kind="jsonl", path=str(tmp_path / "a.jsonl"))


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    assert "a.parquet is not a readable Parquet file" in refusal(kind="parquet", path=str(tmp_path / "a.parquet"))


def test_a_package_that_is_not_installed_is_named():
    assert "package 'no_such_package' is not installed" in refusal(kind="installed", packages=("no_such_package",))


def test_an_id_is_resolved_to_the_mirror_where_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    assert hub.resolve("org/name") == str(tmp_path / "org/name")
    assert hub.resolve("org/other") == "org/other"
    monkeypatch.delenv("MODELYARD_HUB_MIRROR")
    assert hub.resolve("org/name") == "org/name"


@needs_hub
def test_a_hub_dataset_is_read_from_the_mirror(monkeypatch):
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(HUB))
    assert len(texts(kind="hub", id="allenai/c4", config="en", max_documents=7)) == 7
    message = refusal(kind="hub", id="allenai/c4", config="en", split="nosuch")
    assert "split 'nosuch'" in message and "Available splits: ['train']" in message
    assert "'nosuch' not found" in refusal(kind="hub", id="allenai/c4", config="nosuch")


def test_a_hub_id_that_does_not_exist_is_told_apart_from_a_missing_network(tmp_path, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    answer = httpx.Response(401, request=httpx.Request("GET", "http://hub"))

    def fails_with(error):
        def dataset_info(self, *args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        return refusal(kind="hub", id="org/typo")

    absent = fails_with(RepositoryNotFoundError("401 Client Error. Repository Not Found", response=answer))
    assert "org/typo does not exist on the hub" in absent and f"{tmp_path / 'org/typo'} is not in the mirror" in absent
    offline = fails_with(httpx.ConnectError("Name or service not known"))
    assert "the hub cannot be reached (Name or service not known)" in offline and f"{tmp_path / 'org/typo'} is not in the mirror" in offline
