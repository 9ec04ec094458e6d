"""From the tokens of a batch back to the documents they came from."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.data import shards
from components.data.tokenizing import trace
from components.schema.config import BadInput

from .test_pack import dataset, documents_of, names  # noqa: F401  a packed dataset of two domains


def place(dataset: Path, name: str, start: int, stop: int) -> dict:  # noqa: F811
    return {"domain": name.rpartition("-")[0], "shard": name, "start": start, "stop": stop}


def test_every_part_of_a_sequence_is_the_part_of_its_document_that_it_says(dataset):  # noqa: F811
    draw = np.random.default_rng(0)
    for name in names(dataset):
        offsets = np.load(dataset / f"tokens/train/{name}.offsets.npy").astype(int)
        texts = documents_of(dataset, name)
        for start in draw.integers(0, offsets[-1] - 1, 8).tolist():
            (row,) = trace.trace(dataset, [place(dataset, name, start, min(start + 65, int(offsets[-1])))])
            assert sum(d["stop"] - d["start"] for d in row["documents"]) == row["stop"] - row["start"]
            assert [d["row"] for d in row["documents"]] == list(range(row["documents"][0]["row"], row["documents"][-1]["row"] + 1))
            assert all(d["stop"] == d["tokens"] for d in row["documents"][:-1]) and all(d["start"] == 0 for d in row["documents"][1:])
            assert offsets[row["documents"][0]["row"]] + row["documents"][0]["start"] == start
            for document in row["documents"]:
                assert document["url"].split("/")[:2] == ["train", row["domain"]] and document["licence"] == "CC0-1.0"
                whole = texts[document["row"]] + "<|endoftext|>"
                if (document["start"], document["stop"]) == (0, document["tokens"]):
                    assert document["text"] == whole
                assert document["text"].strip("\ufffd") in whole or "\ufffd" in whole


def test_the_document_named_is_the_row_of_the_shard(dataset):  # noqa: F811
    name = "web-00001"
    offsets = np.load(dataset / f"tokens/train/{name}.offsets.npy").astype(int)
    rows = pq.read_table(dataset / f"documents/train/{name}.parquet").to_pylist()
    for i, wanted in enumerate(rows):
        (row,) = trace.trace(dataset, [place(dataset, name, offsets[i], offsets[i + 1])])
        (document,) = row["documents"]
        assert [document[key] for key in trace.ABOUT] == [wanted[key] for key in trace.ABOUT] and document["text"] == wanted["text"] + "<|endoftext|>" == row["text"]


def test_only_the_row_groups_that_hold_the_documents_are_read(dataset, monkeypatch):  # noqa: F811
    path = dataset / "documents/train/web-00000.parquet"
    assert pq.ParquetFile(path).num_row_groups > 1
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, **options: read.append((i, options["columns"])) or original(self, i, **options))
    trace.trace(dataset, [place(dataset, "web-00000", 0, 20)] * 3)
    assert read == [(0, list(trace.ABOUT))]  # not the texts: the tokens give them


def test_without_documents_the_tokens_are_still_shown_and_it_is_said(dataset, tmp_path):  # noqa: F811
    for step in ("tokens", "tokenizer"):
        (tmp_path / step).symlink_to(dataset / step)
    (row,) = trace.trace(tmp_path, [place(dataset, "web-00000", 0, 30)])
    assert "documents/train is not here, so ids, sources and licences are unknown. Bring it back with `dvc pull`" in row["note"]
    assert row["documents"][0]["id"] is None and row["text"].startswith(documents_of(dataset, "web-00000")[0][:10])
    assert any("(unknown)" in line for line in trace.lines([row]))


def test_a_trace_reads_well(dataset):  # noqa: F811
    first, second, *_ = trace.lines(trace.trace(dataset, [place(dataset, "web-00000", 0, 200)]), characters=20)
    assert first.startswith("sequence 0: web, web-00000 tokens 0-199, ")
    assert second.startswith("  row 0 (0000000000000000, web-source, train/web/0, CC0-1.0), its tokens 0-") and "\n" not in second


def test_tokens_that_are_not_there_are_one_clear_message(dataset, tmp_path):  # noqa: F811
    with pytest.raises(BadInput, match="lacks readable tokens or their tokenizer"):
        trace.trace(tmp_path, [])
    shutil.copytree(dataset / "tokens", tmp_path / "tokens")
    (tmp_path / "tokenizer").symlink_to(dataset / "tokenizer")
    (tmp_path / "tokens/train/web-00000.offsets.npy").unlink()
    with pytest.raises(BadInput, match=r"shard web-00000 of .* cannot be read"):
        trace.trace(tmp_path, [place(dataset, "web-00000", 0, 30)])


def test_shards_and_tokens_have_the_same_names(dataset):  # noqa: F811
    assert [path.stem for path in sorted((dataset / "tokens/train").glob("*.bin"))] == [path.stem for path in shards.paths(dataset / "documents/train")]
