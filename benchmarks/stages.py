"""Our side by stage on one core: MB of text a second, and how much of the memory's bandwidth that takes.

A stage that moves bytes half as fast as memory copies them is bound by memory. The others compute or wait for a library, and the note says what their
loops do most; it is read off the code, not off hardware counters, which virtual machines seldom have.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from components.data import shards, words
from components.data.deduplication import minhash
from components.data.filtering import rules
from components.data.tokenizing import pack
from components.schema.data import WEB_RULES

ROUNDS = 5
RULES = {
    "gopher_quality": "comparisons for each character and word",
    "gopher_repetition": "look-ups in a hash table for each word, a multiplication for two characters",
    "c4": "comparisons for each character of the lines that may stay",
    "fineweb": "a multiplication for each character",
}


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    megabytes_per_second: float
    """Of UTF-8 text that comes in"""
    bandwidth: float
    """Share of what a plain memory copy reaches"""
    bound: str


class Table:
    """Times stages; each stage's bytes moved are those of its arrays, read and written once."""

    def __init__(self) -> None:
        block = np.ones(64 * 2**20, np.uint8)
        copy = np.empty_like(block)
        self.copied = 2 * block.nbytes / _seconds(lambda: np.copyto(copy, block))[0]  # bytes a second, read and written
        self.rows: list[Stage] = []

    def time(self, name: str, function: Callable[[], Any], text_bytes: int, moved: int, bound: str) -> Any:
        seconds, result = _seconds(function)
        share = moved / seconds / self.copied
        self.rows.append(Stage(name, text_bytes / seconds / 1e6, share, "memory" if share > 0.5 else bound))
        return result


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    taken, result = [], None
    for _ in range(ROUNDS):
        began = time.perf_counter()
        result = function()
        taken.append(time.perf_counter() - began)
    return median(taken), result


def measure(shard: Path, tokenizer: Any, end: int) -> list[Stage]:
    """Every stage on one shard of documents."""
    table = Table()
    tables = list(shards.read(shard))
    size = sum(sum(shards.text_bytes(t)) for t in tables)
    texts = table.time("read: Parquet to strings", partial(_read, shard), size, 3 * size, "zstd, then a Python string for each document")
    _rules(table, texts, size)
    verdicts = rules.judge(texts, WEB_RULES)
    kept = [text for text, why in zip(verdicts.texts, verdicts.reasons, strict=True) if why is None]
    size = sum(len(text.encode("utf-8", "replace")) for text in kept)
    _minhash(table, kept, size)
    with tempfile.TemporaryDirectory() as folder:
        some = shards.table_of([{"text": text} for text in kept])
        table.time("write: strings to Parquet", lambda: _written(some, Path(folder)), size, 3 * size, "zstd level 1 and Arrow's copies")
    table.time("tokens: encode and lay out", lambda: pack.encode(tokenizer, kept, end, "uint16"), size, size, "the tokenizers library: its regular expression and BPE merges")
    return table.rows


def _read(shard: Path) -> list[str]:
    return [text for table in shards.read(shard) for text in table["text"].to_pylist()]


def _rules(table: Table, texts: Sequence[str], size: int) -> None:
    batch = table.time("rules: code points", lambda: rules._Batch(texts), size, 10 * size, "one copy by Python's UTF-32 encoder")
    points = batch.points.values.nbytes
    table.time("rules: lines", lambda: rules.segments.lines(batch.points), size, points, "a comparison for each character")
    lines = rules.Ragged(batch.points.values, batch.lines[0])
    made = 3 * (batch.by_line.hashes.nbytes + batch.by_line.lengths.nbytes)
    bound = "a multiplication for each character, and branches: words of one length go through 1.5 times as fast"
    table.time("rules: words and sentences", lambda: rules.segments.segment(lines), size, points + made, bound)
    for rule, bound in RULES.items():
        alive = int(np.diff(batch.points.offsets)[batch.alive].sum())
        batch = table.time(f"rules: {rule}", partial(_applied, batch, rule), alive, 4 * alive, bound)


def _applied(batch: Any, rule: Any) -> Any:
    """The batch after a rule; the one before stays as it is."""
    after = copy(batch)
    after.failed, after.removed = batch.failed.copy(), batch.removed.copy()
    rules._APPLY[rule](after)
    return after


def _minhash(table: Table, texts: list[str], size: int) -> None:
    hashed = table.time("MinHash: words", lambda: words.word_hashes(texts), size, 10 * size, "a multiplication for each character")
    grams = table.time("MinHash: shingles", lambda: words.ngram_hashes(hashed, 5, short_rows_whole=True), size, 2 * hashed.values.nbytes, "five multiplications for each word")
    signing = partial(minhash._signatures, grams.values, grams.offsets, *minhash._coefficients(112))
    signed = table.time("MinHash: signatures", signing, size, grams.values.nbytes, "SIMD: 112 multiplications for each word")
    table.time("MinHash: band keys", lambda: minhash.band_keys(signed, minhash.Banding(14, 8)), size, 2 * signed.nbytes, "112 multiplications for each document")


def _written(table: Any, folder: Path) -> None:
    with shards.Writer(folder) as writer:
        writer.write(table)


def tokenize_rate(shard: Path, tokenizer_path: str, end: int) -> tuple[float, float]:
    """MB a second of the step (from Parquet to .bin) and of a bare encode_batch on the same texts in the same batches, alternating."""
    from tokenizers import Tokenizer

    bare = Tokenizer.from_file(tokenizer_path)
    batches = list(pack._batches(shard))
    size = sum(batch[1] for batch in batches)
    task = {"side": "train", "shard": str(shard), "threads": 1, "tokenizer": tokenizer_path, "end": end, "dtype": "uint16"}
    step, alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for texts, _ in batches:
                bare.encode_batch(texts, add_special_tokens=False)
            alone.append(size / (time.perf_counter() - began) / 1e6)
            began = time.perf_counter()
            pack.pack_shard(task, Path(folder))
            step.append(size / (time.perf_counter() - began) / 1e6)
    return median(step), median(alone)
