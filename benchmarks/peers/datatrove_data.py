"""datatrove's side of benchmarks/data.py, run by a Python that has datatrove: filters, MinHash deduplication, tokenization, in its own pipeline.

    python datatrove_data.py DOCUMENTS.jsonl TOKENIZER.json OUT [--reasons]

Prints one line of JSON: seconds by stage, ids kept by the filters and to the end. With --reasons the filters alone, and each document's reason and text.
One task at a time in this process; no compression, no exclusion files, no log on the screen: nothing is asked of it that the other side does not do.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
END = "<|endoftext|>"


def filters() -> list:
    return [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]


def noted(into: list[str]):
    """A step that writes down the ids that pass."""

    def step(data, rank: int = 0, world_size: int = 1):
        for document in data:
            into.append(document.id)
            yield document

    return step


def run(documents: Path, tokenizer: str, out: Path) -> dict:
    filtered, kept = [], []
    writer = JsonlWriter(f"{out}/filtered", compression=None)
    tokens = DocumentTokenizer(f"{out}/tokens", tokenizer, eos_token=END, shuffle_documents=False)
    stages = {
        "filters, signatures": [
            JsonlReader(str(documents.parent), glob_pattern=documents.name), *filters(), noted(filtered), writer, MinhashDedupSignature(f"{out}/signatures", MINHASH),
        ],
        "buckets": [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=MINHASH)],
        "clusters": [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", MINHASH)],
        "tokens": [JsonlReader(f"{out}/filtered"), MinhashDedupFilter(f"{out}/remove"), noted(kept), tokens],
    }  # fmt: skip
    seconds = {}
    for name, pipeline in stages.items():
        began = time.perf_counter()
        tasks = MINHASH.num_buckets if name == "buckets" else 1
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{out}/log-{name.split(',')[0]}").run()
        seconds[name] = time.perf_counter() - began
    return {"seconds": seconds, "filtered": filtered, "kept": kept, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def reasons(documents: Path) -> dict:
    """Each document's reason (null = stays) and what is left of its text."""
    steps, found = filters(), {}
    for line in documents.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        document, why = Document(text=row["text"], id=row["id"]), None
        for step in steps:
            said = step.filter(document)
            if said is not True:
                why = said[1] if isinstance(said, tuple) else step.name
                break
        found[document.id] = [why, document.text if why is None else ""]
    return {"reasons": found}


def main() -> None:
    documents, tokenizer, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    logger.remove()
    if "--reasons" in sys.argv:
        print(json.dumps(reasons(documents)))
        return
    warm = out / "warm"  # spaCy, regular expressions and the tokenizer are loaded before the clock starts
    warm.mkdir(parents=True)
    lines = documents.read_text(encoding="utf-8").splitlines(keepends=True)
    (warm / "documents.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    run(warm / "documents.jsonl", tokenizer, warm / "out")
    print(json.dumps(run(documents, tokenizer, out / "run")))


if __name__ == "__main__":
    main()
