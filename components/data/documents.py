"""Documents: the order in which they are learnt, and which are kept aside to measure with. Both follow from a document's own text.

    python -m components documents --config params.yaml --dataset tiny --out data/tiny/documents

A document's place is its key, the first 64 bits of the md5 of its text: a shuffle that adding, removing or moving other documents does not
change. The keys below `heldout_fraction` of their range are held out (`split.is_heldout`), so what is held out comes first in that order.

The shuffle is external. A map cuts each shard of decontaminate into parts by domain and range of keys; a reduce gathers one part from all
shards, sorts it and writes train/DOMAIN-00000.parquet or heldout/DOMAIN-00000.parquet. How many parts a domain has follows from its bytes,
PART_BYTES each, and a task holds one shard or one part, about 200 MB with its copies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.data import engine, shards, split, tally
from components.schema.config import BadInput
from components.schema.data import DataConfig

PART_BYTES = shards.SHARD_BYTES
SIDES = ("train", "heldout")
LARGEST = 2**64 - 1


def run(config: DataConfig, folder: Path) -> None:
    """Write train/, heldout/ and counts.json. Errors: BadInput where there are not two different documents."""
    source, fraction = folder.parent / "decontaminate", config.heldout_fraction
    with engine.workspace(folder, fraction, PART_BYTES, source) as work:
        plan = _plan(source, fraction)
        tasks = [{"shard": str(path.absolute()), "plan": plan} for path in shards.paths(source)]
        cuts = engine.run(cut_shard, tasks, work / "cut", "documents: parts")
        boundary = _boundary(cuts, fraction, config.name, folder.parent)
        files = [str(path.absolute()) for path in engine.outputs(work / "cut", tasks, "parts.arrow")]
        tasks = [{"parts": files, "number": i, "boundary": boundary} for i in range(sum(len(edges) for edges in plan.values()))]
        counts = engine.run(join_part, tasks, work / "join", "documents: shuffle")
        for path, to in _named(engine.outputs(work / "join", tasks, "*/*.parquet"), folder):
            engine.hand_over(path, to)
    tally.write(folder, _counts(counts))


def key(text: str) -> int:
    """A document's place among all there are, in [0, 2^64)."""
    return int(split.order(text)[:16], 16)


def first_trained(fraction: float) -> int:
    """The smallest key that is not held out: key(text) is below it exactly where `split.is_heldout(text, fraction)`."""
    return math.ceil(fraction * 2**32) << 32


# ---------------------------------------------------------------- into parts


def _plan(source: Path, fraction: float) -> dict[str, list[int]]:
    """Where each domain's parts begin: keys, ascending from 0. The held-out keys have parts of their own."""
    by_domain = tally.read(source)["by_domain"]
    boundary = first_trained(fraction)
    return {
        domain: _edges(0, boundary, entry["bytes"] * fraction) + _edges(boundary, LARGEST + 1, entry["bytes"] * (1 - fraction))
        for domain, entry in sorted(by_domain.items())
    }


def _edges(low: int, high: int, size: float) -> list[int]:
    count = max(1, math.ceil(size / PART_BYTES))
    return [low + i * (high - low) // count for i in range(count)]


def cut_shard(task: engine.Task, out: Path) -> dict[str, Any]:
    """A shard as one Arrow file with a batch for each part, empty or not."""
    table = pa.concat_tables([shards.SCHEMA.empty_table(), *shards.read(Path(task["shard"]))]).combine_chunks()
    keys = _keys(table)
    part = _parts(table["domain"].to_pylist(), keys, task["plan"])
    table = table.take(pa.array(np.argsort(part, kind="stable"))).combine_chunks()
    ends = np.cumsum(np.bincount(part, minlength=sum(map(len, task["plan"].values()))))
    with pa.ipc.new_file(out / "parts.arrow", shards.SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        for start, end in zip(np.r_[0, ends], ends, strict=False):
            file.write_batch(_batch(table.slice(start, end - start)))
    return {"documents": len(keys), "smallest": int(keys.min(initial=LARGEST)), "largest": int(keys.max(initial=0))}


def _keys(table: pa.Table) -> np.ndarray:
    """The key of each document, (documents,) uint64."""
    batches = table.select(["text"]).to_batches(max_chunksize=1000)  # few Python strings at a time
    return np.array([key(text) for batch in batches for text in batch["text"].to_pylist()], np.uint64)


def _batch(table: pa.Table) -> pa.RecordBatch:
    return next(iter(table.to_batches()), pa.RecordBatch.from_pylist([], schema=shards.SCHEMA))


def _parts(domains: Sequence[str], keys: np.ndarray, plan: dict[str, list[int]]) -> np.ndarray:
    """The number of each document's part, (documents,); parts are numbered domain by domain."""
    of, first = np.array(domains, dtype=np.str_), 0
    part = np.full(len(keys), -1)
    for domain, edges in plan.items():
        here = of == domain
        part[here] = first + np.searchsorted(np.array(edges, np.uint64), keys[here], side="right") - 1
        first += len(edges)
    return part


def _boundary(cuts: Sequence[dict[str, Any]], fraction: float, name: str, dataset: Path) -> int:
    """The smallest key to train on; where chance would leave a side empty, only the smallest key of all is held out. Errors: BadInput."""
    smallest = min((cut["smallest"] for cut in cuts), default=LARGEST)
    largest = max((cut["largest"] for cut in cuts), default=0)
    if smallest >= largest:
        left = "one document is" if smallest == largest else "no document is"
        raise BadInput(
            f"documents: {left} left of dataset {name!r} (dropped: {_dropped(dataset) or 'nothing'}), so there is nothing to train on beside what is "
            "held out. Add sources or a curriculum, or loosen what drops them; counts.json of each step has examples"
        )
    boundary = first_trained(fraction)
    return boundary if smallest < boundary <= largest else smallest + 1


def _dropped(dataset: Path) -> dict[str, int]:
    """What the steps before this one dropped, by reason."""
    reasons: Counter[str] = Counter()
    for step in ("collect", "clean", "filter", "dedup", "decontaminate"):
        if (dataset / step / "counts.json").is_file():
            reasons.update({reason: entry["count"] for reason, entry in tally.read(dataset / step)["dropped"].items()})
    return dict(reasons)


# ---------------------------------------------------------------- together again


def join_part(task: engine.Task, out: Path) -> dict[str, Any]:
    """One part from all shards, in order of keys: a file for each side that it has. Texts that are the same stay in shard order."""
    batches = []
    for path in task["parts"]:
        with pa.memory_map(path) as mapped:
            batches.append(pa.ipc.open_file(mapped).get_batch(task["number"]))
    table = pa.Table.from_batches(batches, shards.SCHEMA).combine_chunks()
    keys = _keys(table)
    order = np.argsort(keys, kind="stable")
    heldout = int(np.searchsorted(keys[order], np.uint64(task["boundary"])))
    return {
        side: _written(table.take(pa.array(rows)), out / side) for side, rows in (("train", order[heldout:]), ("heldout", order[:heldout]))
    }


def _written(table: pa.Table, folder: Path) -> dict[str, Any]:
    counts = tally.Tally()
    if table.num_rows:
        counts.keep(table)
        with shards.Writer(folder, f"{table['domain'][0].as_py()}-", shard_bytes=LARGEST) as writer:  # a part is one shard
            writer.write(table)
    return counts.plain()


def _named(files: Sequence[Path], folder: Path) -> Iterator[tuple[Path, Path]]:
    """Where each file goes: numbered within its side and domain."""
    numbers: Counter[tuple[str, str]] = Counter()
    for path in files:
        side, domain = path.parent.name, path.stem.rpartition("-")[0]
        (folder / side).mkdir(parents=True, exist_ok=True)
        yield path, folder / side / f"{domain}-{numbers[side, domain]:05d}.parquet"
        numbers[side, domain] += 1


def _counts(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tally of both sides, with what each has in all and of each domain."""
    whole = tally.summed(result[side] for result in results for side in SIDES).plain()
    for side in SIDES:
        one = tally.summed(result[side] for result in results)
        whole[side] = one.documents
        for domain, entry in whole["by_domain"].items():
            here = one.groups["domain"].get(domain, {})
            entry.update({f"{side}_documents": here.get("documents", 0), f"{side}_bytes": here.get("bytes", 0)})
    return whole
