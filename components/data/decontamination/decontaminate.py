"""Decontaminate: keep what will be asked out of what is learnt, and say for every benchmark item how much of it was there.

    python -m components decontaminate --config params.yaml --dataset tiny --out data/tiny/decontaminate

Two readers look at each document of dedup: the curriculum's guard, which knows a held-out sum or function in other words and other names
(where there is a curriculum; 16 MB of text a second), and the n-grams of every benchmark in the snapshot (overlap.py; 40 MB a second).
Generated documents are counted and never dropped: they were made without the items, and the guard read them then.

counts.json has besides the tally
    matrix                    {domain: {benchmark: {"documents": n, "items": n}}}: what came in with at least `min_overlap` of an item
    contaminated_documents    how many of these were left in, by `action` or as curriculum
    benchmarks                {benchmark: {"items", "cannot_be_told", "contaminated_before", "contaminated"}}

report/items.parquet is what the evaluation joins to its per-item results by (task, doc_id).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.data import curriculum, engine, shards, tally
from components.data.decontamination import benchmarks, contamination
from components.data.decontamination.contamination import Found, Matrix
from components.data.decontamination.overlap import Index, Shares
from components.schema.data import CURRICULUM, DataConfig, DecontaminateConfig


def run(config: DataConfig, folder: Path) -> None:
    """Write shards, report/items.parquet and counts.json."""
    options, source, snapshot = config.decontaminate, folder.parent / "dedup", folder.parent / "benchmarks"
    seed = config.curriculum.seed if config.curriculum else None
    items = list(benchmarks.items(snapshot))
    with engine.workspace(folder, options.model_dump(mode="json"), seed, source, snapshot) as work:
        index = Index.build(items, options.ngram_words)
        index.save(work / "index.npz")
        common = {"index": str(work / "index.npz"), "options": options.model_dump(mode="json"), "seed": seed}
        tasks = [{"shard": str(path.absolute()), **common} for path in shards.paths(source)]
        results = engine.run(decontaminate_shard, tasks, work / "shards", "decontaminate")
        found = Found(index)
        for file in engine.outputs(work / "shards", tasks, "found.npz"):
            found.merge(file)
        for i, shard in enumerate(engine.outputs(work / "shards", tasks)):
            engine.hand_over(shard, folder / f"{i:05d}.parquet")
    report = contamination.report(items, index, found, options.min_overlap)
    (folder / "report").mkdir(parents=True, exist_ok=True)
    pq.write_table(report, folder / "report/items.parquet", compression="zstd")
    told = {
        "matrix": contamination.table(r["matrix"] for r in results),
        "contaminated_documents": sum(r["contaminated_documents"] for r in results),
        "benchmarks": contamination.by_benchmark(report),
    }
    tally.write(folder, {**tally.summed(r["counts"] for r in results).plain(), **told})


def decontaminate_shard(task: engine.Task, out: Path) -> dict[str, Any]:
    """A shard without what must not be learnt; what was found of each item stands in found.npz."""
    options, index, guard = DecontaminateConfig.model_validate(task["options"]), _index(task["index"]), _guard(task["seed"])
    counts, found, matrix, left_in = tally.Tally(), Found(index), Matrix(), 0
    with shards.Writer(out) as writer:
        for table in shards.read(Path(task["shard"])):
            texts, domains = table["text"].to_pylist(), table["domain"].to_pylist()
            rows, keys = index.found(texts)
            shares = index.shares(rows, keys)
            marks = _marks(index, shares, domains, options.min_overlap, matrix)
            reasons = [_reason(guard, options, *one) for one in zip(texts, domains, marks, strict=True)]
            kept = np.array([reason is None for reason in reasons], bool)
            found.add(rows, keys, shares, table["id"].to_numpy(), kept)
            _count_drops(counts, table, reasons)
            if options.action != "report":
                table = shards.with_columns(table, contaminates=[mark or None for mark in marks])
            left_in += sum(bool(mark) for mark, stays in zip(marks, kept, strict=True) if stays)
            left = table.filter(pa.array(kept))
            counts.keep(left)
            writer.write(left)
    found.save(out / "found.npz")
    return {"counts": counts.plain(), "matrix": matrix.plain(), "contaminated_documents": left_in}


def _reason(guard: curriculum.Guard | None, options: DecontaminateConfig, text: str, domain: str, mark: Sequence[str]) -> str | None:
    """Why a document must go, or None."""
    if domain == CURRICULUM:
        return None
    if guard and (reason := guard.reason(text)):
        return reason
    return f"contaminates_{mark[0]}" if mark and options.action == "drop" else None


def _marks(index: Index, shares: Shares, domains: Sequence[str], min_overlap: float, matrix: Matrix) -> list[list[str]]:
    """The benchmarks that each text contaminates, the one it has most of first; all of it is entered in the matrix."""
    most: list[dict[str, float]] = [{} for _ in domains]
    enough = shares.share >= min_overlap
    for row, item, share in zip(*(part[enough].tolist() for part in shares), strict=True):
        benchmark = str(index.benchmarks[item])
        matrix.enter(domains[row], benchmark, item, is_new=benchmark not in most[row])
        most[row][benchmark] = max(share, most[row].get(benchmark, 0.0))
    return [sorted(met, key=lambda name: (-met[name], name)) for met in most]


def _count_drops(counts: tally.Tally, table: pa.Table, reasons: Sequence[str | None]) -> None:
    for i, reason in enumerate(reasons):
        if reason:
            text = table["text"][i].as_py()
            counts.drop(reason, f"{table['source'][i].as_py()}: {text[: tally.EXAMPLE_CHARACTERS]}", len(text.encode()))


@lru_cache(maxsize=1)
def _index(path: str) -> Index:
    return Index.load(Path(path))


@lru_cache(maxsize=1)
def _guard(seed: int | None) -> curriculum.Guard | None:
    return None if seed is None else curriculum.Guard(seed)
