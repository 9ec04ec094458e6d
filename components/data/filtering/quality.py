"""The quality score of a text: `quality = w1 * perplexity + w2 * diversity + w3 * safety`, each part in [0, 1], the weights normalised.

perplexity   2 ** -(max(0, bits - median) / width): 1 for a text that surprises the n-gram model of the reference no more than half of the
             reference's own documents do, 1/2 at `width` bits a word more, going to 0. width is what lies between the reference's median and its
             95th percentile, and at least 2 bits. A text in another language than the reference is nothing like it.
diversity    moving-average type-token ratio (Covington and McFall 2010): different words in a window of 100 words, over 100, averaged over all
             windows, so it does not fall with length as the plain ratio does; a text shorter than the window is judged whole.
safety       1 - toxicity (safety.py)

The reference is a sample of about REFERENCE_BYTES of the reference domain, chosen by hash. No document is scored by counts that it is in: each
text belongs by hash to one of two halves, two models learn a half of the sample each, and a text is scored by the model of the other half. So a
reference document is as surprising as a new one of its kind. The hash is the smallest of those of the text's 5-grams (MinHash with one
permutation, Broder 1997), so copies lie in one half, and near copies as probably as they are similar: what is there twice must not look
easy. Where the sample has fewer than LEAST_DOCUMENTS documents, and in source code, there is no perplexity part, and the others count alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numba import njit

from components.data import engine, shards
from components.data.filtering import ngram
from components.data.words import Ragged, ngram_hashes, word_hashes
from components.schema.config import BadInput
from components.schema.data import CODE, CURRICULUM, FilterConfig, QualityWeights

REFERENCE_DOMAINS = ("reference", "books", "papers")  # the first that is there
REFERENCE_BYTES = 40_000_000
LEAST_DOCUMENTS = 20
HALF_AT, LEAST_WIDTH_BITS = 0.95, 2.0
WINDOW_WORDS = 100
SHINGLE_WORDS = 5


@dataclass(frozen=True)
class Scale:
    """How bits a word become the perplexity part."""

    domains: tuple[str, ...]
    documents: int
    words: int
    median_bits: float
    width_bits: float

    def told(self) -> dict[str, Any]:
        """For counts.json."""
        return {"domains": list(self.domains), "documents": self.documents, "words": self.words, "median_bits": round(self.median_bits, 4), "width_bits": round(self.width_bits, 4)}

    def part(self, bits: np.ndarray) -> np.ndarray:
        """The perplexity part of each text, (rows,) in [0, 1]; 0 for a text without words."""
        return np.exp2(-np.maximum(0, np.nan_to_num(bits, nan=1e6) - self.median_bits) / self.width_bits)


@dataclass(frozen=True)
class Reference:
    """What texts are compared with."""

    scale: Scale
    models: tuple[ngram.Model, ngram.Model]
    """By half, the model that has not seen it."""

    def bits_per_word(self, words: Ragged, halves: np.ndarray) -> np.ndarray:
        """Bits a word of each text, by the model of the other half. halves: (rows,) 0 or 1"""
        bits = np.empty(len(words))
        for half, model in enumerate(self.models):
            rows = np.flatnonzero(halves == half)
            bits[rows] = model.bits_per_word(words, rows)
        return bits


def halves(texts: Sequence[str]) -> np.ndarray:
    """Which half each text belongs to, (texts,) uint8."""
    return (_draws(texts) & np.uint64(1)).astype(np.uint8)


def diversity(words: Ragged) -> np.ndarray:
    """Moving-average type-token ratio of each text, (rows,) float64; 0 for a text without words."""
    return _diversity(words.values, words.offsets, WINDOW_WORDS)


def weighed(perplexity: np.ndarray, diversity: np.ndarray, safety: np.ndarray, weights: QualityWeights) -> np.ndarray:
    """The quality of each text, (rows,); a part that is nan leaves its weight to the others, and nan where no weight is left."""
    parts = np.stack([perplexity, diversity, safety])  # (3, rows)
    weight = np.where(np.isnan(parts), 0, np.array([[weights.perplexity], [weights.diversity], [weights.safety]]))
    total = weight.sum(axis=0)
    return np.divide((weight * np.nan_to_num(parts)).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)


# ---------------------------------------------------------------- the reference


def reference_domains(options: FilterConfig, bytes_of: dict[str, int]) -> tuple[str, ...]:
    """Domains that teach the n-gram model. bytes_of: text by domain. Errors: BadInput where the one that was asked for is not there."""
    if options.reference_domain:
        if not bytes_of.get(options.reference_domain):
            raise BadInput(
                f"filter.reference_domain: {options.reference_domain!r} has no documents after cleaning, so nothing could be compared with it. "
                f"Name one of {sorted(bytes_of)}, or leave it empty"
            )
        return (options.reference_domain,)
    there = [domain for domain in REFERENCE_DOMAINS if bytes_of.get(domain)]
    return tuple(there[:1] or sorted(domain for domain in bytes_of if domain not in (CODE, CURRICULUM)))


def prepare(domains: tuple[str, ...], total_bytes: int, paths: list[Path], work: Path) -> Path | None:
    """The folder of the reference, made if it is not there; None where there is too little to learn from."""
    folder = (work / "reference").absolute()
    if not (folder / "scale.json").exists():
        share = min(1.0, REFERENCE_BYTES / max(total_bytes, 1))
        tasks = [{"shard": str(path.absolute()), "domains": list(domains), "share": share} for path in paths] if domains else []
        engine.run(sample, tasks, work / "sample", "filter: reference")
        folder.mkdir(parents=True, exist_ok=True)
        scale = _learn([_loaded(engine.outputs(work / "sample", tasks, f"half-{half}.npz")) for half in (0, 1)], domains, folder)
        (folder / "scale.json").write_text(json.dumps(scale and asdict(scale)), encoding="utf-8")  # last: the rest is whole
    return folder if json.loads((folder / "scale.json").read_text(encoding="utf-8")) else None


@lru_cache(maxsize=1)
def load(folder: str) -> Reference:
    """The reference that `prepare` made."""
    path = Path(folder)
    return Reference(Scale(**json.loads((path / "scale.json").read_text(encoding="utf-8"))), (ngram.load(path / "model-0.npz"), ngram.load(path / "model-1.npz")))


def sample(task: engine.Task, out: Path) -> dict[str, Any]:
    """One task: the words of the shard's part of the sample, by half."""
    parts: list[list[Ragged]] = [[], []]
    path, wanted = Path(task["shard"]), set(task["domains"])
    there = {domain for table in shards.read(path, ["domain"]) for domain in table["domain"].unique().to_pylist()}
    for table in shards.read(path, ["text", "domain"]) if there & wanted else ():
        for half, texts in enumerate(_sampled(table, wanted, task["share"])):
            parts[half].append(word_hashes(texts))
    for half in (0, 1):
        joined = _joined(parts[half])
        np.savez(out / f"half-{half}.npz", values=joined.values, offsets=joined.offsets)
    return {}


def _sampled(table: pa.Table, wanted: Collection[str], share: float) -> tuple[list[str], list[str]]:
    """The sampled texts of each half."""
    there = [text for text, domain in zip(table["text"].to_pylist(), table["domain"].to_pylist(), strict=True) if domain in wanted]
    sampled: tuple[list[str], list[str]] = ([], [])
    for text, draw in zip(there, _draws(there).tolist(), strict=True):
        if draw >> 1 < share * 2**63:
            sampled[draw & 1].append(text)
    return sampled


def _draws(texts: Sequence[str]) -> np.ndarray:
    """64 bits that decide about each text, (texts,) uint64: the lowest its half, the others whether it is sampled."""
    grams = ngram_hashes(word_hashes(texts), SHINGLE_WORDS, short_rows_whole=True)
    smallest = np.zeros(len(texts), np.uint64)  # of a text without words: 0
    filled = np.flatnonzero(np.diff(grams.offsets))
    if len(filled):
        smallest[filled] = np.minimum.reduceat(grams.values, grams.offsets[filled])
    return np.array([xxhash.xxh64_intdigest(value.tobytes()) for value in smallest], np.uint64)


def _learn(samples: list[Ragged], domains: tuple[str, ...], folder: Path) -> Scale | None:
    documents = sum(map(len, samples))
    if documents < LEAST_DOCUMENTS or not all(len(half.values) for half in samples):
        return None
    bits = []
    for half in (0, 1):
        model = ngram.train(samples[1 - half])
        model.save(folder / f"model-{half}.npz")
        bits.append(model.bits_per_word(samples[half]))
    median, tail = np.nanquantile(np.concatenate(bits), [0.5, HALF_AT])
    return Scale(domains, documents, sum(len(half.values) for half in samples), float(median), max(float(tail - median), LEAST_WIDTH_BITS))


def _loaded(paths: list[Path]) -> Ragged:
    return _joined([Ragged(file["values"], file["offsets"]) for file in map(np.load, paths)])


def _joined(parts: list[Ragged]) -> Ragged:
    lengths = [np.diff(part.offsets) for part in parts]
    offsets = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
    return Ragged(np.concatenate([np.zeros(0, np.uint64), *(part.values for part in parts)]), offsets)


# ---------------------------------------------------------------- diversity


@njit(cache=True, nogil=True)
def _diversity(words, offsets, window):  # type: ignore[no-untyped-def]
    """A word at i is new in the windows that hold it and not the same word before it (at `before`): in those that begin after `before`."""
    longest = 1
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    places = 2
    while places < 2 * longest:
        places *= 2
    keys, last, owner = np.empty(places, np.uint64), np.empty(places, np.int64), np.full(places, -1, np.int64)
    out = np.zeros(len(offsets) - 1)
    for row in range(len(out)):
        begin, count = offsets[row], offsets[row + 1] - offsets[row]
        mask = 1
        while mask < 2 * count:
            mask *= 2
        mask -= 1
        size = min(window, count)
        new = 0
        for i in range(count):
            word = words[begin + i]
            place = np.int64(word & np.uint64(mask))
            while owner[place] == row and keys[place] != word:
                place = (place + 1) & mask
            before = last[place] if owner[place] == row else -1
            new += max(0, min(i, count - size) - max(0, i - size + 1, before + 1) + 1)
            keys[place], last[place], owner[place] = word, i, row
        if count:
            out[row] = new / (size * (count - size + 1))
    return out
