"""Packed tokens are the documents, in order, with their boundaries; and the counts beside them are true."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from components.data import shards
from components.data.tokenizing import pack, tokenizer
from components.schema.config import BadInput

from .corpus import POEM, STRANGE, config_of, write_documents


def texts_of(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices([*POEM.split(), "naïve", "漢字", "🙂"], k=draw.randint(1, 40))) for _ in range(count)]


TRAIN = {"web": texts_of(300, 0), "my-own_books": [*STRANGE, "long " * 4000, *texts_of(30, 1)]}
HELDOUT = {"web": texts_of(30, 2), "my-own_books": texts_of(5, 3)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two domains, web in several shards, with a tokenizer, packed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(shards, "ROW_GROUP_BYTES", 5_000)
    root = write_documents(tmp_path_factory.mktemp("own"), TRAIN, HELDOUT, shard_bytes=15_000)
    for step, run in (("tokenizer", tokenizer.run), ("tokens", pack.run)):
        (root / step).mkdir()
        run(config_of(tokenizer={"vocab_size": 400}), root / step)
    patch.undo()
    return root


def report_of(dataset: Path) -> dict:
    return json.loads((dataset / "tokens/tokens.json").read_text())


def ids_of(dataset: Path, name: str, side: str = "train") -> np.ndarray:
    return np.fromfile(dataset / f"tokens/{side}/{name}.bin", report_of(dataset)["dtype"])


def documents_of(dataset: Path, name: str, side: str = "train") -> list[str]:
    return [text for table in shards.read(dataset / f"documents/{side}/{name}.parquet") for text in table["text"].to_pylist()]


def names(dataset: Path, side: str = "train") -> list[str]:
    return [path.stem for path in shards.paths(dataset / "documents" / side)]


@pytest.mark.parametrize("side", ["train", "heldout"])
def test_ids_are_the_single_encodings_one_after_another_each_with_its_end(dataset, side):
    loaded = Tokenizer.from_file(str(dataset / "tokenizer/tokenizer.json"))
    loaded.encode_special_tokens = True
    assert len(names(dataset)) > 3  # several shards, or this shows little
    for name in names(dataset, side):
        single = [[*loaded.encode(text, add_special_tokens=False).ids, 0] for text in documents_of(dataset, name, side)]
        assert ids_of(dataset, name, side).tolist() == [id for ids in single for id in ids]
        offsets = np.load(dataset / f"tokens/{side}/{name}.offsets.npy")
        assert offsets.dtype == np.uint64 and offsets.tolist() == np.cumsum([0, *map(len, single)]).tolist()


def test_offsets_lead_back_to_the_exact_texts(dataset):
    loaded = Tokenizer.from_file(str(dataset / "tokenizer/tokenizer.json"))
    found = []
    for name in names(dataset):
        ids, offsets = ids_of(dataset, name), np.load(dataset / f"tokens/train/{name}.offsets.npy").astype(int)
        texts = [loaded.decode(ids[start : end - 1].tolist(), skip_special_tokens=False) for start, end in itertools.pairwise(offsets)]
        assert texts == documents_of(dataset, name) and (ids[offsets[1:] - 1] == 0).all()
        found += texts
    assert sorted(found) == sorted(text for texts in TRAIN.values() for text in texts)


def test_a_document_that_spells_special_tokens_cannot_forge_a_turn(dataset):
    assert any("<|assistant|>" in text for name in names(dataset) for text in documents_of(dataset, name))
    for name in names(dataset):
        ids = ids_of(dataset, name)
        assert set(ids[ids < 5]) == {0} and (ids == 0).sum() == len(documents_of(dataset, name))


def test_heldout_bin_is_all_held_out_shards_in_their_order(dataset):
    joined = np.fromfile(dataset / "tokens/heldout.bin", np.uint16)
    assert joined.tolist() == np.concatenate([ids_of(dataset, name, "heldout") for name in sorted(names(dataset, "heldout"))]).tolist()


def test_counts_are_those_of_the_files_in_all_and_by_domain(dataset):
    report = report_of(dataset)
    assert (report["dtype"], report["vocab_size"]) == ("uint16", 400) and set(report["domains"]) == set(TRAIN)
    for side, texts in (("train", TRAIN), ("heldout", HELDOUT)):
        shown = {name: report["domains"][name][f"{side}_documents"] for name in TRAIN}
        assert shown == {name: len(texts[name]) for name in TRAIN} and report[f"{side}_documents"] == sum(shown.values())
        sizes = {name: report["domains"][name][f"{side}_bytes"] for name in TRAIN}
        assert sizes == {name: sum(len(t.encode()) for t in texts[name]) for name in TRAIN} and report[f"{side}_bytes"] == sum(sizes.values())
        for name, domain in report["domains"].items():
            listed = domain["shards" if side == "train" else "heldout_shards"]
            assert [s["name"] for s in listed] == [n for n in names(dataset, side) if n.startswith(name)]
            assert all(s["tokens"] == len(ids_of(dataset, s["name"], side)) for s in listed)
            assert sum(s["tokens"] for s in listed) == domain[f"{side}_tokens"] and sum(s["documents"] for s in listed) == domain[f"{side}_documents"]
    lengths = [length for name in names(dataset) for length in np.diff(np.load(dataset / f"tokens/train/{name}.offsets.npy").astype(int))]
    expected = {str(edge): sum(edge <= n < 2 * edge for n in lengths) for edge in (1 << i for i in range(20))}
    assert report["document_tokens"] == {edge: count for edge, count in expected.items() if count}


def test_the_bytes_are_the_same_with_any_number_of_workers_and_after_a_kill(dataset, tmp_path, monkeypatch):
    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    again = dataset / "again"
    again.mkdir()
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setenv("MODELYARD_ENGINE", "local:1")
        patch.setattr(pack, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # after the shards were put into place
        with pytest.raises(KeyboardInterrupt):
            pack.run(config_of(), again)
    for path in (again / "train").iterdir():
        path.unlink()  # DVC empties the folder of a stage that runs again
    monkeypatch.setattr(pack, "pack_shard", lambda *_: pytest.fail("encoded again"))
    pack.run(config_of(), again)
    assert files(again) == files(dataset / "tokens") and not list((tmp_path / "work").iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    monkeypatch.setenv("MODELYARD_ENGINE", "local:2")
    pack.run(config_of(), again)
    assert files(again) == files(dataset / "tokens")


def test_a_vocabulary_beyond_sixteen_bits_takes_thirty_two(dataset, tmp_path):
    from tokenizers import models

    (tmp_path / "documents").symlink_to(dataset / "documents")
    (tmp_path / "tokenizer").mkdir()
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {f"w{i}": i for i in range(256, 65_600)} | {"<|endoftext|>": 65_600}
    Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True)).save(str(tmp_path / "tokenizer/tokenizer.json"))
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    (tmp_path / "tokens").mkdir()
    pack.run(config_of(), tmp_path / "tokens")
    assert report_of(tmp_path)["dtype"] == "uint32"
    ids = ids_of(tmp_path, "web-00000")
    assert ids.max() == 65_600 and bytes(ids[: np.flatnonzero(ids == 65_600)[0]].astype(np.uint8)).decode() == documents_of(dataset, "web-00000")[0]


def test_documents_without_a_held_out_side_are_refused(dataset, tmp_path):
    (tmp_path / "tokenizer").symlink_to(dataset / "tokenizer")
    write_documents(tmp_path, {"web": ["a"]}, {})
    with pytest.raises(BadInput, match="lacks train or held-out shards"):
        pack.run(config_of(), tmp_path / "tokens")
