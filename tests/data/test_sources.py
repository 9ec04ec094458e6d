"""Sources: what a kind gives, what a row says of itself, and mistakes that are told before anything is read."""

import gzip
import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from components.data.reading import formats, hub, sources
from components.data.reading.dates import iso_date
from components.data.reading.formats import Collected, Refused
from components.schema.config import BadInput
from components.schema.data import CollectConfig, Source

from .conftest import HUB

needs_hub = pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")


def found(**source) -> list[Collected | Refused]:
    return list(sources.documents(Source(**source), CollectConfig()))


def texts(**source) -> list[str]:
    return [one.reason if isinstance(one, Refused) else one.text for one in found(**source)]


def refusal(**source) -> str:
    with pytest.raises(BadInput) as caught:
        sources.check(Source(**source))
    return str(caught.value)


def json_lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_folder_is_read_in_sorted_order_each_file_as_what_it_is(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b/c.html").write_text("<p>page")
    (tmp_path / "b/d.csv.gz").write_bytes(gzip.compress(b"text\nrow\n"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["column"]}), tmp_path / "b/e.parquet")
    json_lines(tmp_path / "c.jsonl", {"text": "line"})
    (tmp_path / "d.md").write_text("mark")
    (tmp_path / "picture.png").write_bytes(b"not text")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert texts(kind="files", path=str(tmp_path)) == ["text", "page", "row", "column", "line", "mark"]
    assert [one.url for one in found(kind="files", path=str(tmp_path))] == [str(tmp_path / name) for name in ("a.txt", "b/c.html", "b/d.csv.gz", "b/e.parquet", "c.jsonl", "d.md")]


def test_a_row_brings_its_address_licence_and_date_along(tmp_path):
    stamp = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = json_lines(
        tmp_path / "a.jsonl",
        {"text": "a", "url": "http://a.org/", "license": "mit", "date": "2020-01-02"},
        {"text": "b", "meta": {"url": "http://b.org/", "licence": "CC0", "timestamp": stamp.timestamp()}},
        {"text": "c", "url": "http://c.org/", "metadata": {"url": "http://other.org/", "created": "Thu, 02 Jan 2020 03:04:05 GMT"}, "license": ["mit", "apache-2.0"]},
        {"text": "d", "url": 7, "license": None, "date": "yesterday"},
    )
    assert [(one.url, one.licence, one.date) for one in found(kind="files", path=path)] == [
        ("http://a.org/", "mit", "2020-01-02"),
        ("http://b.org/", "CC0", "2020-01-02T03:04:05+00:00"),
        ("http://c.org/", "apache-2.0 AND mit", "2020-01-02T03:04:05+00:00"),
        (path, None, None),
    ]


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        (date(1999, 12, 31), "1999-12-31"), (datetime(2020, 1, 2, 3), "2020-01-02T03:00:00"), ("2019-04-25T12:57:54Z", "2019-04-25T12:57:54Z"), ("1987", "1987"), (1987, "1987"),
        (1_577_934_245_000, "2020-01-02T03:04:05+00:00"), (True, None), (-5, None), (1e300, None), (float("nan"), None), ("soon", None), ("x" * 10_000_000, None), ({}, None), (None, None),
    ],
)  # fmt: skip
def test_dates_become_iso_8601_or_nothing(value, iso):
    assert iso_date(value) == iso


def test_rows_without_text_cost_one_refusal_each(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "good"}, {"title": "no text"}, {"text": 5}, {"text": ["x"]}, {"text": None}, "no object", {"text": "last"})
    assert texts(kind="files", path=path) == ["good", "without_column_text", "column_text_holds_int", "column_text_holds_list", "", "not_an_object", "last"]
    assert found(kind="files", path=path)[1].example == f"{path}, line 2: columns title"


def test_rows_for_chats_keep_what_is_wrong_with_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": 1}\nbroken\n[]\n{"q": 2}\n{"q": 3}\n')
    rows = list(sources.rows(Source(kind="files", path=str(tmp_path), max_documents=2)))
    assert [(row.values, row.problem, row.where[-6:]) for row in rows] == [({"q": 1}, None, "line 1"), ({}, "not_json", "line 2"), ({}, "not_an_object", "line 3"), ({"q": 2}, None, "line 4")]
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(BadInput, match="gives plain text, and here rows with columns are needed"):
        list(sources.rows(Source(kind="files", path=str(tmp_path))))


def test_reading_is_lazy(tmp_path, monkeypatch):
    blocks, read = [], formats.Bytes.read
    monkeypatch.setattr(formats.Bytes, "read", lambda self, *size: blocks.append(read(self, *size)) or blocks[-1])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "all alike"}\n' * 400_000))
    stream = sources.documents(Source(kind="files", path=str(tmp_path)), CollectConfig())
    assert next(stream).text == "all alike" and len(blocks) == 1
    assert sum(1 for _ in stream) == 399_999 and len(blocks) > 8


def test_installed_gives_the_same_docstrings_and_functions_each_time():
    first = found(kind="installed", packages=("json", "yaml"), domain="code")
    assert first == found(kind="installed", packages=("json", "yaml"), domain="code")
    functions, docstrings = ([one for one in first if one.text.startswith("def ") is want] for want in (True, False))
    assert all(one.language == "python" for one in functions) and any("JSON" in one.text for one in docstrings)
    assert {one.licence for one in first} == {None, "MIT"}, "of a part of Python's library there is no metadata; PyYAML is MIT"
    assert all(one.language is None for one in found(kind="installed", packages=("json",), domain="reference"))


def test_the_fingerprint_of_a_local_source_follows_its_content_and_of_installed_ones_their_version(tmp_path):
    source = Source(kind="files", path=str(tmp_path / "a.txt"))
    assert sources.fingerprint(source) is None
    (tmp_path / "a.txt").write_text("one")
    before = sources.fingerprint(source)
    (tmp_path / "a.txt").write_text("two")
    assert before and sources.fingerprint(source) != before
    pinned = sources.fingerprint(Source(kind="installed", packages=("stdlib", "yaml")))
    assert sys.version.split()[0] in pinned and "yaml 6" in pinned


def test_a_missing_path_says_where_it_was_looked_for(tmp_path):
    message = refusal(kind="files", path=str(tmp_path / "gone.txt"))
    assert "gone.txt does not exist" in message and f"relative to {Path.cwd()}" in message
    assert "holds no file that can be read" in refusal(kind="files", path=str(tmp_path)) and "jsonl" in refusal(kind="files", path=str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"x")
    assert "an ending that says nothing" in refusal(kind="files", path=str(tmp_path / "a.png"))
    assert "cannot be read as a Git repository" in refusal(kind="git", path=str(tmp_path))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_wrong_column_names_the_columns_there_are(tmp_path, kind):
    file, rows = tmp_path / f"a.{kind}", [{"title": "t", "body": "b", "n": 1}] * 3
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("title,body,n\nt,b,1\n") if kind == "csv" else json_lines(file, *rows)
    message = refusal(kind="files", path=str(file))
    assert "no column 'text'" in message and "title, body, n" in message and "text_field" in message
    sources.check(Source(kind="files", path=str(file), text_field="body"))
    if kind != "csv":
        assert "holds int, not text" in refusal(kind="files", path=str(file), text_field="n")


def test_one_row_with_the_column_is_enough_and_a_file_that_cannot_be_read_is_no_mistake_of_the_configuration(tmp_path):
    json_lines(tmp_path / "a.jsonl", {"title": "t"}, "x", {"text": "t"})
    (tmp_path / "b.parquet").write_bytes(b"not parquet at all")
    sources.check(Source(kind="files", path=str(tmp_path)))
    assert texts(kind="files", path=str(tmp_path))[-1] == "damaged_parquet"


def test_a_package_that_is_not_installed_is_named():
    assert "package 'no_such_package' is not installed" in refusal(kind="installed", packages=("no_such_package",))
    assert "package 'no.such' is not installed" in refusal(kind="installed", packages=("no.such",))


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
    sources.check(Source(kind="hub", id="allenai/c4", config="en"))
    assert len(texts(kind="hub", id="allenai/c4", config="en")) == 300
    theirs = datasets.load_dataset(str(HUB / "llamafactory/DPO-En-Zh-20k"), "en", split="train", streaming=True)
    assert list(hub.stream("llamafactory/DPO-En-Zh-20k", "en", "train")) == list(theirs), "read by us and by `datasets` it is the same"
    assert len([row for row in sources.rows(Source(kind="hub", id="openai/gsm8k", config="main", max_documents=7)) if row.values["question"]]) == 7
    message = refusal(kind="hub", id="allenai/c4", config="en", split="nosuch")
    assert "split 'nosuch'" in message and "Available splits: ['train']" in message
    assert "'nosuch' not found" in refusal(kind="hub", id="allenai/c4", config="nosuch")
    assert "no column 'text'" in refusal(kind="hub", id="openai/gsm8k", config="main")


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
