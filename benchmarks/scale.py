"""Constant memory: gigabytes of text through every step of the data line, with the memory of the whole process tree watched.

    .venv/bin/python -m benchmarks.scale --gigabytes 10 --folder /tmp/scale

The corpus is made first, as .jsonl.zst files: documents of some 3 KB put together from the paragraphs of installed packages' texts
and, where MODELYARD_HUB_MIRROR names a mirror, of its C4, Wikipedia and WikiText samples; one document in fifty is an exact copy of an earlier one, one
in thirty a copy with a few words changed. Then each step runs as DVC would run it. Memory is the summed PSS of a step's processes
(pages shared between them counted once), read twice a second. Prints a table and writes it to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
import zstandard

from benchmarks.results import machine, write_section
from components.data.reading.sources import documents
from components.data.versioning import pins
from components.schema.data import DataConfig, Source

STEPS = ("collect", "clean", "filter", "dedup", "decontaminate", "documents", "tokenizer", "tokens", "mix", "card")
FILE_BYTES = 256 * 10**6
SAMPLES = (("allenai/c4", "en", "train"), ("wikimedia/wikipedia", "20231101.en", "train"), ("Salesforce/wikitext", "wikitext-2-v1", "validation"))


def paragraphs() -> list[str]:
    """Paragraphs of real text, from what is here."""
    sources = [Source(kind="installed", packages=("stdlib",), domain="reference")]
    if os.environ.get("MODELYARD_HUB_MIRROR"):
        sources += [Source(kind="hub", id=id, config=config, split=split) for id, config, split in SAMPLES]
    pool = {p.strip() for source in sources for one in documents(source) if (text := getattr(one, "text", "")) for p in text.split("\n")}
    return sorted(p for p in pool if len(p) > 120)


def corpus(folder: Path, size: int, seed: int = 0) -> None:
    """Write about `size` bytes of text; the same seed writes the same documents."""
    folder.mkdir(parents=True)
    stream = _documents(random.Random(seed), paragraphs())
    written = number = 0
    while written < size:
        in_file = 0
        with zstandard.open(folder / f"part-{number:03d}.jsonl.zst", "wt", encoding="utf-8", cctx=zstandard.ZstdCompressor(1)) as file:
            while in_file < min(FILE_BYTES, size - written):
                text = next(stream)
                file.write(json.dumps({"text": text, "url": f"https://site{len(text) % 97}.example/{number}/{in_file}"}) + "\n")
                in_file += len(text.encode())
        written += in_file
        number += 1
        print(f"corpus: {written / 1e9:.1f} of {size / 1e9:.1f} GB", flush=True)


def _documents(rng: random.Random, pool: list[str]) -> Iterator[str]:
    earlier: list[str] = []
    while True:
        kind = rng.random()
        if earlier and kind < 0.02:
            yield rng.choice(earlier)
            continue
        if earlier and kind < 0.053:
            words = rng.choice(earlier).split(" ")
            for _ in range(max(1, len(words) // 200)):
                words[rng.randrange(len(words))] = rng.choice(pool).split(" ")[0]
            yield " ".join(words)
            continue
        chosen = [rng.choice(pool) for _ in range(rng.randint(4, 12))]
        # a sentence of each paragraph is exchanged for another's, so that two documents with a paragraph in common are not copies
        text = "\n\n".join(" ".join([p, *rng.choice(pool).split(". ")[:1]]) + "." for p in chosen)
        if len(earlier) < 20_000:
            earlier.append(text)
        else:
            earlier[rng.randrange(20_000)] = text
        yield text


def tree_pss(pid: int) -> int:
    """Bytes of memory of a process and all below it, shared pages in proportion."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            total += next(int(line.split()[1]) * 1024 for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def run_step(step: str, folder: Path, dataset: str) -> tuple[float, int]:
    """Seconds and peak bytes of one step."""
    began, peak = time.time(), 0
    command = [sys.executable, "-m", "components", step, "--config", str(folder / "params.yaml"), "--dataset", dataset, "--out", str(folder / "data" / dataset / step)]
    process = subprocess.Popen(command, env={**os.environ, "MODELYARD_HOME": str(folder / "home")}, stdout=(folder / f"{step}.log").open("w"), stderr=subprocess.STDOUT)
    while process.poll() is None:
        peak = max(peak, tree_pss(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"scale: step {step} ended with {process.returncode}:\n{(folder / f'{step}.log').read_text()[-3000:]}")
    return time.time() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="text to make and push through (10^9 bytes)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/modelyard-scale"), help="where everything goes; needs about 3.5 times the text, and is kept")
    parser.add_argument("--paragraphs", action="store_true", help="also deduplicate paragraphs")
    args = parser.parse_args()
    text = args.folder / f"corpus-{args.gigabytes:g}"
    if not text.exists():
        corpus(text, int(args.gigabytes * 1e9))
    config = DataConfig.model_validate(
        {
            "name": "scale",
            "sources": [{"kind": "files", "path": str(text)}],
            "dedup": {"paragraphs": args.paragraphs},
            "heldout_fraction": 0.01,
            "tokenizer": {"vocab_size": 8192, "max_training_bytes": 20_000_000},
        }
    )
    entry = pins.entry(config)
    (args.folder / "params.yaml").write_text(yaml.safe_dump({"datasets": {"scale": entry}}))
    for step in ("benchmarks", "chats", "preferences"):  # what the others read beside them
        run_step(step, args.folder, "scale")
    rows = []
    for step in STEPS:
        seconds, peak = run_step(step, args.folder, "scale")
        counts = args.folder / "data/scale" / step / "counts.json"
        left = json.loads(counts.read_text()).get("documents", "") if counts.exists() else ""
        rows.append((step, seconds, args.gigabytes * 1e3 / seconds, peak / 2**20, left))
        print(f"{step:<14}{seconds:8.0f} s {args.gigabytes * 1e3 / seconds:8.1f} MB/s {peak / 2**20:8.0f} MiB {left:>12}", flush=True)
    seconds, peak = sum(row[1] for row in rows), max(row[3] for row in rows)
    lines = [f"{args.gigabytes:g} GB of text through every step, {len(os.sched_getaffinity(0))} cores, MODELYARD_ENGINE={os.environ.get('MODELYARD_ENGINE', 'local')}. {machine()}", ""]
    lines += ["| step | seconds | MB/s of collected text, all cores | peak memory, MiB (PSS of the tree) | documents left |", "|---|---|---|---|---|"]
    lines += [f"| {step} | {s:.0f} | {rate:.1f} | {mib:.0f} | {left} |" for step, s, rate, mib, left in rows]
    lines += [f"| together | {seconds:.0f} | {args.gigabytes * 1e3 / seconds:.1f} | {peak:.0f} | |", ""]
    print("\n".join(lines))
    print(f"ratio data_memory_2GiB {2048 / peak:.2f} 1")
    write_section("Data at scale", "\n".join(lines))


if __name__ == "__main__":
    main()
