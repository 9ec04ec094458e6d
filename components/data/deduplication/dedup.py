"""Deduplicate: exact copies of documents, near copies, paragraphs that stood before.

    python -m components dedup --config params.yaml --dataset tiny --out data/tiny/dedup

Rounds over the shards of filter, each a map or a reduce of the engine, equal keys brought together by shuffle.py:

1. sign      map       a fingerprint of each document, its MinHash signature, the keys of its bands
2. copies    by hash   of documents with equal fingerprints the first in shard order stays
3. meet      by band   two documents that share a band are candidates; in a bucket each meets the WINDOW before it, not all
   confirm   by shard  candidates whose whole signatures agree to `threshold` are near copies (`verify`); connected ones are one cluster,
                       of which the highest quality stays, and of equals the first (clusters.py)
4. list_paragraphs, copies     of what is left, where `paragraphs` is on: of equal paragraphs the first stays
5. write     map       shards without all these; report/clusters.parquet; counts.json

Fingerprints have 64 bits: among 100 million different documents the chance that any two are taken for copies is 1 in 3,700.
Generated text repeats on purpose: only its exact copies go. Code keeps its paragraphs: licences and imports belong to it.

Memory, for 10 GB of text in 3.5 million documents and 50 million paragraphs: signatures (112 x 4 bytes a document, 1.6 GB) and keys (16 bands x
12 bytes a document, 0.7 GB; 12 bytes a paragraph, 0.6 GB) lie on disk. A map holds a row group of 8 MB and one shard's signatures and keys,
15 MB; a reduce holds 4 million keys at a time, 160 MB; the step itself holds 9 bytes a document (who stays, why, quality), 32 MB, and while it
connects near copies some 50 bytes for each that there is. With 150 MB of libraries in each of three processes that is below 1 GB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.data import engine, shards, shuffle, tally
from components.data.deduplication import clusters, minhash
from components.data.deduplication.fingerprints import fingerprints
from components.data.engine import Task
from components.schema.data import CODE, CURRICULUM, DataConfig, DedupConfig

WINDOW = 8  # of a bucket's earlier members each is compared with this many; for confirmed pairs only, else one is enough
WEIGHT_OF_MISSES = 0.9  # where wrong candidates cost a comparison and no document, bands are chosen to miss little
REASONS = {clusters.EXACT: "exact_duplicate", clusters.NEAR: "near_duplicate"}
CURVE = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")


def run(config: DataConfig, folder: Path) -> None:
    """Write shards, report/clusters.parquet and counts.json."""
    options, source = config.dedup, folder.parent / "filter"
    with engine.workspace(folder, options.model_dump(mode="json"), source) as work:
        signed = _sign(options, [path.absolute() for path in shards.paths(source)], work)
        state, keeper = np.zeros(signed.documents, np.uint8), np.arange(signed.documents, dtype=np.uint32)
        if options.documents:
            _leave_copies(signed, state, keeper, work)
        if options.near:
            _leave_near_copies(options, signed, state, keeper, work)
        repeats = Repeats(options, signed, state, work) if options.paragraphs else None
        report, told = clusters.shown(keeper)
        results = _write(signed, state, keeper, report, repeats, work, folder)
    counts = tally.summed(results)
    tally.write(folder, {**counts.plain(), "banding": _told(options) if options.near else None, "clusters": told})


# ---------------------------------------------------------------- 1. sign


class Signed:
    """What the first map left: where each shard's files lie and which numbers its documents have."""

    def __init__(self, paths: list[Path], results: list[dict[str, Any]], work: Path, near: bool) -> None:
        self.paths = [str(path) for path in paths]
        self.folders = [str(work / f"{i:06d}") for i in range(len(paths))]
        self.starts = [0, *np.cumsum([r["documents"] for r in results]).tolist()]
        self.documents = self.starts[-1]
        self.band_keys = sum(r["band_keys"] for r in results)
        self.near = near

    def files(self, name: str) -> list[str]:
        return [f"{folder}/{name}" for folder in self.folders]

    @property
    def place(self) -> Task:
        """What a task needs to find signatures by document."""
        return {"signatures": self.files("signatures.npy") if self.near else [], "starts": self.starts[:-1]}


def _sign(options: DedupConfig, paths: list[Path], work: Path) -> Signed:
    tasks = [{"shard": str(path), "options": options.model_dump(mode="json")} for path in paths]
    results = engine.run(sign, tasks, work / "sign", "dedup: signatures")
    return Signed(paths, results, work / "sign", options.near)


def sign(task: Task, out: Path) -> dict[str, int]:
    """Hashes, signatures, band keys and qualities of a shard's documents."""
    options = DedupConfig.model_validate(task["options"])
    hashes, signatures, bands, owners, quality = [], [], [], [], []
    documents = 0
    for rows, table in _numbered(task["shard"], ("text", "domain", "quality")):
        texts, documents = table["text"].to_pylist(), documents + table.num_rows
        hashes.append(fingerprints(texts))
        quality.append(table["quality"].fill_null(-1.0).to_numpy().astype(np.float32))
        if options.near:
            signatures.append(minhash.signatures(texts, options.permutations, options.shingle_words))
            keys = minhash.band_keys(signatures[-1], banding(options))
            counts = (keys != minhash.NO_KEY) & (np.array(table["domain"].to_pylist()) != CURRICULUM)[:, None]
            bands.append(keys[counts])
            owners.append(np.broadcast_to(rows[:, None], keys.shape)[counts])
    shuffle.save(out / "copies", _joined(hashes, np.uint64), np.arange(documents))
    np.save(out / "quality.npy", _joined(quality, np.float32))
    if options.near:
        shuffle.save(out / "bands", _joined(bands, np.uint64), _joined(owners, np.uint32))
        np.save(out / "signatures.npy", np.concatenate(signatures) if signatures else np.zeros((0, options.permutations), np.uint32))
    return {"documents": documents, "band_keys": sum(map(len, bands))}


def banding(options: DedupConfig) -> minhash.Banding:
    """How signatures are cut."""
    return minhash.bands(options.threshold, options.permutations, WEIGHT_OF_MISSES if options.verify else 0.5)


def _told(options: DedupConfig) -> dict[str, Any]:
    """The banding as counts.json reports it, with its chance of finding a pair of each similarity."""
    chosen = banding(options)
    curve = {f"{s:g}": round(float(p), 6) for s, p in zip(CURVE, chosen.curve(np.array(CURVE)), strict=True)}
    return {"threshold": options.threshold, "bands": chosen.bands, "rows": chosen.rows, "permutations": options.permutations, "verify": options.verify, "curve": curve}


def _joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


# ---------------------------------------------------------------- 2. exact copies


def _leave_copies(signed: Signed, state: np.ndarray, keeper: np.ndarray, work: Path) -> None:
    tasks = [{"runs": signed.files("copies"), "starts": signed.starts[:-1], "range": r} for r in shuffle.ranges(signed.documents)]
    engine.run(copies, tasks, work / "copies", "dedup: exact copies")
    for file in engine.outputs(work / "copies", tasks, "copies.npy"):
        copy, first = shuffle.unpack(np.load(file))
        state[copy], keeper[copy] = clusters.EXACT, first


def copies(task: Task, out: Path) -> dict[str, int]:
    """Pairs (id, the first id with an equal key), sorted: everything that stood before, of one range of keys."""
    keys, ids = shuffle.between(task["runs"], task["starts"], *task["range"])
    again = np.zeros(len(keys), bool)
    again[1:] = keys[1:] == keys[:-1]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    pairs = np.sort(shuffle.pack(ids[again], ids[first[again]]))
    np.save(out / "copies.npy", pairs)
    return {"copies": len(pairs)}


# ---------------------------------------------------------------- 3. near copies


def _leave_near_copies(options: DedupConfig, signed: Signed, state: np.ndarray, keeper: np.ndarray, work: Path) -> None:
    left_out = _saved(state, work / "state-exact.npy")
    window = WINDOW if options.verify else 1
    tasks = [{"runs": signed.files("bands"), "starts": signed.starts[:-1], "range": r, "state": left_out, "window": window} for r in shuffle.ranges(signed.band_keys)]
    engine.run(meet, tasks, work / "meet", "dedup: candidates")
    candidates = [str(file) for file in engine.outputs(work / "meet", tasks, "pairs.npy")]
    threshold = options.threshold if options.verify else 0.0
    tasks = [{"pairs": candidates, "ids": signed.starts[i : i + 2], "threshold": threshold, **signed.place} for i in range(len(signed.paths))]
    engine.run(confirm, tasks, work / "confirm", "dedup: near copies")
    pairs = _joined([np.load(file) for file in engine.outputs(work / "confirm", tasks, "pairs.npy")], np.uint64)
    quality = _joined([np.load(file) for file in signed.files("quality.npy")], np.float32)
    clusters.keepers(pairs, quality, keeper)
    state[(keeper != np.arange(len(keeper))) & (state == 0)] = clusters.NEAR
    keeper[:] = keeper[keeper]  # the first of exact copies may itself have gone to a better near copy


def meet(task: Task, out: Path) -> dict[str, int]:
    """Candidate pairs of one range of band keys, each once, sorted."""
    keys, ids = shuffle.between(task["runs"], task["starts"], *task["range"])
    alive = np.load(task["state"], mmap_mode="r")[ids] == 0
    keys, ids = keys[alive], ids[alive]
    pairs = [np.zeros(0, np.uint64)]
    for apart in range(1, task["window"] + 1):
        same = keys[apart:] == keys[:-apart]
        pairs.append(np.unique(shuffle.pack(ids[:-apart][same], ids[apart:][same])))
    found = np.unique(np.concatenate(pairs))
    np.save(out / "pairs.npy", found)
    return {"pairs": len(found)}


def confirm(task: Task, out: Path) -> dict[str, int]:
    """Of the candidates whose first document is in one shard: enough of those that are near copies to connect them."""
    pairs = shuffle.pairs_from(task["pairs"], *task["ids"])
    near = clusters.similarities(*shuffle.unpack(pairs), task["signatures"], task["starts"]) >= task["threshold"] if task["threshold"] else slice(None)
    np.save(out / "pairs.npy", clusters.forest(pairs[near]))
    return {"candidates": len(pairs), "near": len(pairs[near])}


# ---------------------------------------------------------------- 4. paragraphs


class Repeats:
    """Which paragraphs stood before: files of sorted pairs of paragraph numbers, and the numbers at which shards start."""

    def __init__(self, options: DedupConfig, signed: Signed, state: np.ndarray, work: Path) -> None:
        self.least = options.min_paragraph_characters
        common = {"state": _saved(state, work / "state-near.npy"), "least": self.least}
        tasks = [{"shard": path, "ids": signed.starts[i : i + 2], **common} for i, path in enumerate(signed.paths)]
        listed = engine.run(list_paragraphs, tasks, work / "listed", "dedup: paragraphs")
        self.starts = [0, *np.cumsum([r["paragraphs"] for r in listed]).tolist()]
        runs = [str(work / "listed" / f"{i:06d}" / "paragraphs") for i in range(len(tasks))]
        tasks = [{"runs": runs, "starts": self.starts[:-1], "range": r} for r in shuffle.ranges(self.starts[-1])]
        engine.run(copies, tasks, work / "repeated", "dedup: repeated paragraphs")
        self.files = [str(file) for file in engine.outputs(work / "repeated", tasks, "copies.npy")]

    def of(self, shard: int) -> Task:
        return {"least": self.least, "repeats": self.files, "paragraphs": self.starts[shard : shard + 2]}


def list_paragraphs(task: Task, out: Path) -> dict[str, int]:
    """Hashes of the paragraphs of a shard's documents that are still there, numbered in order."""
    state = _slice(task["state"], task["ids"])
    hashes = [np.zeros(0, np.uint64)]
    for rows, table in _numbered(task["shard"], ("text", "domain")):
        texts, domains = _lists(table.filter(pa.array(state[rows] == 0)), "text", "domain")
        compared = (text for text, domain in zip(texts, domains, strict=True) if _is_compared(domain))
        hashes.append(fingerprints([p for text in compared for p in paragraphs(text) if len(p) >= task["least"]]))
    found = np.concatenate(hashes)
    shuffle.save(out / "paragraphs", found, np.arange(len(found)))
    return {"paragraphs": len(found)}


def paragraphs(text: str) -> list[str]:
    """What blank lines part."""
    return _BLANK.split(text)


def without_repeats(texts: list[str], domains: list[str], least: int, repeats: Iterator[bool]) -> list[tuple[str, int]]:
    """Each text without its repeated paragraphs, and how many those were. `repeats` goes on by one for each paragraph of `list_paragraphs`."""
    done = []
    for text, domain in zip(texts, domains, strict=True):
        parts = paragraphs(text) if _is_compared(domain) else []
        kept = [p for p in parts if len(p) < least or not next(repeats)]
        done.append(("\n\n".join(kept) if len(kept) < len(parts) else text, len(parts) - len(kept)))
    return done


def _is_compared(domain: str) -> bool:
    return domain not in (CURRICULUM, CODE)


# ---------------------------------------------------------------- 5. write


def _write(
    signed: Signed, state: np.ndarray, keeper: np.ndarray, report: np.ndarray, repeats: Repeats | None, work: Path, folder: Path
) -> list[dict[str, Any]]:
    decided = {"state": _saved(state, work / "state.npy"), "keeper": _saved(keeper, work / "keeper.npy"), "report": _saved(report, work / "report.npy")}
    tasks = [
        {"shard": path, "ids": signed.starts[i : i + 2], **decided, **signed.place, **(repeats.of(i) if repeats else {})} for i, path in enumerate(signed.paths)
    ]
    results = engine.run(write, tasks, work / "write", "dedup: shards")
    clusters.write(engine.outputs(work / "write", tasks, "report/*.parquet"), folder)
    for i, shard in enumerate(engine.outputs(work / "write", tasks)):
        engine.hand_over(shard, folder / f"{i:05d}.parquet")
    return results


def write(task: Task, out: Path) -> dict[str, Any]:
    """A shard without what was decided against, its part of the report, and its tally."""
    state, counts = _slice(task["state"], task["ids"]), tally.Tally()
    repeats = _flags(task)
    shown, parts = np.load(task["report"]), []
    with shards.Writer(out) as writer:
        for rows, table in _numbered(task["shard"]):
            parts.append(_reported(table, rows + task["ids"][0], shown, task))
            here = state[rows]
            for i in np.flatnonzero(here):
                _drop(counts, table, int(i), REASONS[int(here[i])])
            left = table.filter(pa.array(here == 0))
            if repeats is not None:
                left = _shortened(left, task["least"], repeats, counts)
            counts.keep(left)
            writer.write(left)
    (out / "report").mkdir()
    pq.write_table(pa.concat_tables(parts) if parts else clusters.SCHEMA.empty_table(), out / "report/part.parquet")
    return counts.plain()


def _reported(table: pa.Table, ids: np.ndarray, shown: np.ndarray, task: Task) -> pa.Table:
    """Rows of the report for those of the table's documents that it shows. ids: (rows,); shown: as `clusters.shown` gives it."""
    found = shown[np.isin(shown[:, 0], ids)]
    members, keeper = found[:, 0], _slice(task["keeper"], task["ids"])[found[:, 0] - task["ids"][0]]
    state = _slice(task["state"], task["ids"])[members - task["ids"][0]]
    similarity = np.ones(len(found))
    if task["signatures"]:
        similarity[state != 0] = clusters.similarities(members[state != 0], keeper[state != 0], task["signatures"], task["starts"])
        similarity[(state == clusters.EXACT) & (similarity == 0)] = 1  # without words: such signatures match nothing
    return clusters.rows_of(table.take(pa.array(members - ids[0] if len(ids) else members)), found[:, 1:], state, similarity)


def _shortened(table: pa.Table, least: int, repeats: Iterator[bool], counts: tally.Tally) -> pa.Table:
    """The documents without repeated paragraphs; those of which nothing is left are dropped."""
    done = without_repeats(*_lists(table, "text", "domain"), least, repeats)
    emptied = [bool(removed) and not text.strip() for text, removed in done]
    for i in np.flatnonzero(emptied):
        _drop(counts, table, int(i), "duplicate_paragraphs_only")
    counts.change("repeated_paragraphs_removed", sum(removed for _, removed in done))
    counts.change("documents_shortened", sum(bool(removed) and not gone for (_, removed), gone in zip(done, emptied, strict=True)))
    return shards.with_columns(table, text=[text for text, _ in done]).filter(pa.array([not gone for gone in emptied], pa.bool_()))


def _drop(counts: tally.Tally, table: pa.Table, i: int, reason: str) -> None:
    text = table["text"][i].as_py()
    counts.drop(reason, f"{table['source'][i].as_py()}: {text[: tally.EXAMPLE_CHARACTERS]}", len(text.encode()))


def _flags(task: Task) -> Iterator[bool] | None:
    """For each paragraph of a shard, whether it stood before; None where paragraphs are not compared."""
    if "paragraphs" not in task:
        return None
    low, high = task["paragraphs"]
    flags = np.zeros(high - low, bool)
    flags[shuffle.unpack(shuffle.pairs_from(task["repeats"], low, high))[0] - low] = True
    return iter(flags.tolist())


def _numbered(shard: str, columns: tuple[str, ...] | None = None) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """The tables of a shard with the numbers of their rows."""
    row = 0
    for table in shards.read(Path(shard), columns):
        yield np.arange(row, row + table.num_rows), table
        row += table.num_rows


def _slice(file: str, ids: list[int]) -> np.ndarray:
    """A shard's part of an array of all documents."""
    return np.array(np.load(file, mmap_mode="r")[slice(*ids)]) if ids[0] < ids[1] else np.load(file)[:0]


def _lists(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _saved(array: np.ndarray, path: Path) -> str:
    """Leave an array where tasks find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return str(path)
