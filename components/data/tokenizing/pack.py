"""Tokens: every document's ids one after another, each followed by the token that ends a document, a file for each shard.

    train/web-00000.bin               uint16 or uint32 ids (tokens.json: dtype)
    train/web-00000.offsets.npy       uint64, documents + 1: document i is ids[offsets[i]:offsets[i+1]], its end token included,
                                      and stands in row i of documents/train/web-00000.parquet
    heldout/...                       the same
    heldout.bin                       all of heldout/, shard after shard: what bits per byte are measured on
    tokens.json                       how many tokens, bytes and documents, by side and domain

Text that happens to spell a special token is encoded as plain text, so no document can forge a turn.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from components.data import engine, shards
from components.schema.config import BadInput
from components.schema.data import DataConfig

SIDES = ("train", "heldout")
BATCH_BYTES = 2**20  # enough for every thread to have work, little enough to hold
LARGEST_UINT16_VOCABULARY = 65_535


def run(config: DataConfig, folder: Path) -> None:
    """Encode the documents beside `folder` with the tokenizer beside it. Errors: BadInput where there is nothing to encode."""
    documents, tokenizer = folder.parent / "documents", folder.parent / "tokenizer"
    shared = {"tokenizer": str(tokenizer / "tokenizer.json"), **_ids(tokenizer)}
    paths = [(side, path) for side in SIDES for path in shards.paths(documents / side)]
    if not all(any(side == there for there, _ in paths) for side in SIDES):
        raise BadInput(f"tokens: {documents} lacks train or held-out shards, so there is nothing to learn from or to measure on. Run the documents step again")
    threads = _threads(len(paths))
    tasks = [{"side": side, "shard": str(path), "threads": threads, **shared} for side, path in paths]
    with engine.workspace(folder, documents, tokenizer) as work:
        results = engine.run(pack_shard, tasks, work, "tokens")
        for side in SIDES:
            shutil.rmtree(folder / side, ignore_errors=True)
            (folder / side).mkdir(parents=True)
        for pattern in ("*.bin", "*.npy"):
            for task, path in zip(tasks, engine.outputs(work, tasks, pattern), strict=True):
                engine.hand_over(path, folder / task["side"] / path.name)
        _join(sorted((folder / "heldout").glob("*.bin")), folder / "heldout.bin")
        report = {"dtype": shared["dtype"], "vocab_size": shared["vocab_size"], **_totals(results)}
        (folder / "tokens.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _ids(tokenizer: Path) -> dict[str, Any]:
    """The id that ends a document, the size of the vocabulary, and the smallest type that holds every id."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    name = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    size = loaded.get_vocab_size()
    end = loaded.token_to_id(name if isinstance(name, str) else name["content"])
    return {"end": end, "vocab_size": size, "dtype": "uint16" if size <= LARGEST_UINT16_VOCABULARY else "uint32"}


def _threads(tasks: int) -> int | None:
    """Threads for each worker's tokenizer, so that together they fill the cores; None = as many as the library likes."""
    at_once = min(engine.workers(), tasks)
    return max(1, len(os.sched_getaffinity(0)) // at_once) if at_once > 1 else None


def pack_shard(task: dict[str, Any], out: Path) -> dict[str, Any]:
    """Encode one shard into ids and offsets."""
    if task["threads"]:  # read when the library first starts its threads, in a worker of its own
        os.environ.setdefault("RAYON_NUM_THREADS", str(task["threads"]))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(task["tokenizer"])
    tokenizer.encode_special_tokens = True
    shard = Path(task["shard"])
    lengths, text_bytes = [np.zeros(1, np.uint64)], 0
    with (out / f"{shard.stem}.bin").open("wb") as file:
        for texts, size in _batches(shard):
            ids, counts = encode(tokenizer, texts, task["end"], task["dtype"])
            ids.tofile(file)
            lengths.append(counts)
            text_bytes += size
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.uint64)
    np.save(out / f"{shard.stem}.offsets.npy", offsets)
    return {"name": shard.stem, "side": task["side"], "tokens": int(offsets[-1]), "bytes": text_bytes, "documents": len(offsets) - 1, "document_tokens": _histogram(np.diff(offsets))}


def encode(tokenizer: Any, texts: list[str], end: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, each text followed by `end`; and the ids of each text, `end` included (uint64)."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    lengths = np.fromiter(map(len, encoded), np.uint64, len(encoded)) + np.uint64(1)
    ids = np.empty(int(lengths.sum()), dtype)
    at = 0
    for one, length in zip(encoded, lengths.tolist(), strict=True):
        ids[at : at + length - 1] = one.ids
        ids[at + length - 1] = end
        at += length
    return ids, lengths


def _batches(shard: Path) -> Iterator[tuple[list[str], int]]:
    """The shard's texts in runs of about BATCH_BYTES, each with its size in bytes."""
    batch: list[str] = []
    held = 0
    for table in shards.read(shard, ["text"]):
        for text, size in zip(table["text"].to_pylist(), shards.text_bytes(table), strict=True):
            batch.append(text)
            held += size
            if held >= BATCH_BYTES:
                yield batch, held
                batch, held = [], 0
    if batch:
        yield batch, held


def _histogram(lengths: np.ndarray) -> dict[str, int]:
    """Documents by length in tokens; a bin goes from its power of two to the next."""
    bins = np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1) if len(lengths) else []
    return {str(1 << i): int(count) for i, count in enumerate(bins) if count}


def _join(paths: list[Path], to: Path) -> None:
    with to.open("wb") as out:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, out, BATCH_BYTES)


def _totals(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all shards, and over each domain's."""
    domains: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        domains.setdefault(result["name"].rpartition("-")[0], []).append(result)
    return {**_sums(results), "domains": {name: {**_sums(members), **_shards_of(members)} for name, members in sorted(domains.items())}}


def _sums(results: list[dict[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {f"{side}_{what}": sum(r[what] for r in results if r["side"] == side) for side in SIDES for what in ("tokens", "bytes", "documents")}
    lengths: Counter[str] = Counter()
    for result in results:
        if result["side"] == "train":
            lengths.update(result["document_tokens"])
    return {**sums, "document_tokens": {edge: lengths[edge] for edge in sorted(lengths, key=int)}}


def _shards_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    keep = ("name", "tokens", "documents")
    return {f"{prefix}shards": [{key: r[key] for key in keep} for r in results if r["side"] == side] for side, prefix in (("train", ""), ("heldout", "heldout_"))}
