"""Our side of benchmarks/data.py: the same rules, MinHash deduplication and tokenization, as tasks and steps of the data line.

    python -m benchmarks.peers.modelyard_data SHARDS TOKENIZER.json OUT

Prints one line of JSON: seconds by stage, ids kept by the rules and to the end. One process; the clock starts when the loops are compiled.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.data import engine, shards
from components.data.deduplication import dedup, minhash
from components.data.filtering import rules
from components.data.tally import Tally
from components.data.tokenizing import pack
from components.schema.data import WEB_RULES, DataConfig

END = "<|endoftext|>"
CONFIG = DataConfig.model_validate(
    {
        "name": "benchmark",
        "sources": [{"kind": "files", "path": "."}],
        "dedup": {"documents": False, "near": True, "threshold": 0.67, "permutations": 112, "shingle_words": 5, "verify": False},
    }
)
BANDING = minhash.Banding(14, 8)


def judge_shard(task: dict[str, Any], out: Path) -> dict[str, Any]:
    """A shard without the documents that fail a rule, with the tally that a step writes."""
    counts = Tally()
    with shards.Writer(out) as writer:
        for table in shards.read(Path(task["shard"])):
            texts = table["text"].to_pylist()
            verdicts = rules.judge(texts, WEB_RULES)
            for text, why in zip(texts, verdicts.reasons, strict=True):
                if why:
                    counts.drop(why, text)
            table = shards.with_columns(table, text=verdicts.texts).filter(pa.array([why is None for why in verdicts.reasons]))
            counts.keep(table)
            writer.write(table)
    return counts.plain()


def run(source: Path, tokenizer: str, out: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    assert dedup.banding(CONFIG.dedup) == BANDING, "the threshold must give datatrove's 14 bands of 8 rows"
    seconds, began = {}, time.perf_counter()
    tasks = [{"shard": str(path)} for path in shards.paths(source)]
    engine.run(judge_shard, tasks, out / "work/rules")
    (out / "filter").mkdir()
    for i, path in enumerate(engine.outputs(out / "work/rules", tasks)):
        path.rename(out / f"filter/web-{i:05d}.parquet")
    seconds["filters"], began = time.perf_counter() - began, time.perf_counter()
    (out / "dedup").mkdir()
    dedup.run(CONFIG, out / "dedup")
    seconds["dedup"], began = time.perf_counter() - began, time.perf_counter()
    end = Tokenizer.from_file(tokenizer).token_to_id(END)
    tasks = [{"side": "train", "shard": str(path), "threads": 1, "tokenizer": tokenizer, "end": end, "dtype": "uint16"} for path in shards.paths(out / "dedup")]
    engine.run(pack.pack_shard, tasks, out / "work/tokens")
    seconds["tokens"] = time.perf_counter() - began
    kept = {name: [id for path in shards.paths(out / name) for table in shards.read(path, ["id"]) for id in table["id"].to_pylist()] for name in ("filter", "dedup")}
    return {"seconds": seconds, "filtered": kept["filter"], "kept": kept["dedup"], "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    source, tokenizer, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ.update(MODELYARD_ENGINE="local:1", MODELYARD_HOME=str(out / "home"))
    warm = out / "warm"
    (warm / "source").mkdir(parents=True)
    few = next(shards.read(shards.paths(source)[0])).slice(0, 20)
    with shards.Writer(warm / "source") as writer:
        writer.write(few)
    run(warm / "source", tokenizer, warm)
    shutil.rmtree(warm)
    (out / "run").mkdir()
    print(json.dumps(run(source, tokenizer, out / "run")))


if __name__ == "__main__":
    main()
