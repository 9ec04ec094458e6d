"""The data line side by side with datatrove: filters, MinHash deduplication, tokenization, on the same documents, core and rules.

    make bench                                                            # sets up .venv-bench, then:
    .venv/bin/python -m benchmarks.data --peer-python .venv-bench/bin/python [--megabytes 30] [--corpus crawl.jsonl] [--rounds 3]

Each side is one process on one core with one thread, run in turns; its clock starts when it has loaded and compiled what it needs. Both read
documents from disk (ours Parquet, theirs JSONL, what each is made for) and write token ids. Rules: Gopher quality, Gopher repetition, C4, FineWeb;
MinHash of 112 hashes in 14 bands of 8 over 5-grams, every meeting in a band a near copy; one byte-level BPE. Prints `ratio NAME VALUE BAR` for what
has a bar to reach, and writes the section Data of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import near, stages
from benchmarks.corpus import Document, corpus
from benchmarks.results import machine, write_section
from components.data import shards
from components.data.deduplication import minhash
from components.data.filtering import rules
from components.schema.data import WEB_RULES, DedupConfig

PEERS = Path(__file__).parent / "peers"
END = "<|endoftext|>"
VOCABULARY = 16_000
BANDING = minhash.Banding(14, 8)
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
BARS = {"data_throughput": 10, "filter_agreement": 0.99, "end_to_end_agreement": 0.99, "tokenize_rate": 1}


def main() -> None:
    options = _options()
    os.environ.update(ONE_THREAD)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        documents = corpus(options.corpus, options.megabytes)
        tokenizer = _prepare(documents, work)
        rounds = _rounds(options, work, tokenizer)
        lines = [f"{machine()}; one core and one thread each; load {load:.1f} when begun. {_versions(options.peer_python)}", _about(documents), ""]
        ratios = {}
        for part in (_throughput(rounds, documents), _agreement(options, documents, rounds, work), _stages(work, tokenizer)):
            ratios |= part[0]
            lines += part[1]
    told = [f"ratio {name} {value:.4g} {BARS[name]}" for name, value in ratios.items()]
    print("\n".join([*lines, "", *told]))
    write_section("Data", "\n".join([*lines, "", "```", *told, "```"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=".venv-bench/bin/python", help="a Python that has datatrove")
    parser.add_argument("--corpus", type=Path, help="jsonl, parquet or txt: a file or a folder; without it, what is installed here")
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not shutil.which(options.peer_python):
        sys.exit(f"error: {options.peer_python} is not there, so there is nothing to compare with. Run `make bench`, or name a Python that has datatrove: --peer-python PATH")
    return options


def _prepare(documents: list[Document], work: Path) -> str:
    """Write the documents as both sides read them, and the tokenizer of both."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    with (work / "documents.jsonl").open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"id": document.id, "text": document.text}) + "\n")
    with shards.Writer(work / "shards") as writer:
        for start in range(0, len(documents), 1000):
            writer.write(shards.table_of([{"id": d.id, "text": d.text, "source": "benchmark", "domain": "web"} for d in documents[start : start + 1000]]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((d.text for d in documents[:4000]), trainer)
    tokenizer.save(str(work / "tokenizer.json"))
    return str(work / "tokenizer.json")


# ---------------------------------------------------------------- throughput

SIDES = ("ours", "datatrove")


def _rounds(options: argparse.Namespace, work: Path, tokenizer: str) -> dict[str, list[dict[str, Any]]]:
    """Both sides in turns; what each printed."""
    commands = {
        "ours": [sys.executable, "-m", "benchmarks.peers.modelyard_data", str(work / "shards")],
        "datatrove": [options.peer_python, str(PEERS / "datatrove_data.py"), str(work / "documents.jsonl")],
    }
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for i in range(options.rounds):
        for side in SIDES if i % 2 == 0 else SIDES[::-1]:
            out = work / f"{side}-{i}"
            out.mkdir()
            results[side].append(_told([*commands[side], tokenizer, str(out)]))
            print(f"round {i + 1}, {side}: {sum(results[side][-1]['seconds'].values()):.1f} s", file=sys.stderr, flush=True)
            if i:
                shutil.rmtree(out)
    return results


def _told(command: list[str]) -> dict[str, Any]:
    """The JSON in the last line that a side prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command[:3])} ended with {done.returncode}, so there is nothing to compare. It said:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _throughput(rounds: dict[str, list[dict[str, Any]]], documents: list[Document]) -> tuple[dict[str, float], list[str]]:
    size = _megabytes(d.text for d in documents)
    lines = ["### Throughput, end to end", "", "| side | MB/s: median (slowest to fastest) | seconds by stage, medians | peak memory |", "|---|---|---|---|"]
    medians = {}
    for side, results in rounds.items():
        speeds = sorted(size / sum(result["seconds"].values()) for result in results)
        medians[side] = median(speeds)
        parts = ", ".join(f"{stage} {median(result['seconds'][stage] for result in results):.2f}" for stage in results[0]["seconds"])
        lines.append(f"| {side} | {medians[side]:.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f}) | {parts} | {max(r['peak_bytes'] for r in results) / 2**20:.0f} MiB |")
    return {"data_throughput": medians["ours"] / medians["datatrove"]}, [*lines, ""]


# ---------------------------------------------------------------- agreement


def _agreement(options: argparse.Namespace, documents: list[Document], rounds: dict[str, list[dict[str, Any]]], work: Path) -> tuple[dict[str, float], list[str]]:
    verdicts = rules.judge([d.text for d in documents], WEB_RULES)
    theirs = _told([options.peer_python, str(PEERS / "datatrove_data.py"), str(work / "documents.jsonl"), "-", "-", "--reasons"])["reasons"]
    same_filter, lines = _filter_agreement(documents, verdicts, theirs)
    kept = {side: set(rounds[side][0]["kept"]) for side in SIDES}
    both = [i for i, d in enumerate(documents) if verdicts.reasons[i] is None and theirs[d.id][0] is None]
    truth = near.exact_pairs([verdicts.texts[i] for i in both])
    same = 1 - len(kept["ours"] ^ kept["datatrove"]) / len(documents)
    lines += _differences(documents, both, truth, kept, same)
    lines += _near_quality(verdicts, both, truth, _their_pairs(rounds["datatrove"][0]["filtered"], documents, both, work))
    return {"filter_agreement": same_filter, "end_to_end_agreement": same}, lines


def _filter_agreement(documents: list[Document], verdicts: rules.Verdicts, theirs: dict[str, list[Any]]) -> tuple[float, list[str]]:
    differ, texts = Counter(), 0
    for document, ours, text in zip(documents, verdicts.reasons, verdicts.texts, strict=True):
        why, left = theirs[document.id]
        if (ours is None) != (why is None):
            differ[f"theirs {why or 'stays'}, ours {ours or 'stays'}"] += 1
        elif ours is None:
            texts += text != left
    same = 1 - sum(differ.values()) / len(documents)
    stay = sum(why is None for why in verdicts.reasons)
    return same, [
        "### Agreement with datatrove's decisions",
        "",
        f"Filters: the same on {100 * same:.3f} % of {len(documents)} documents, of which {stay} stay; {texts} of those have different text left.",
        *[f"- {count} documents: {what}" for what, count in differ.most_common(10)],
        "",
    ]


def _differences(documents: list[Document], both: list[int], truth: dict[near.Pair, float], kept: dict[str, set[str]], same: float) -> list[str]:
    """What the documents that only one side keeps have in common."""
    likest: dict[str, tuple[float, list[str]]] = {}
    for (a, b), similarity in truth.items():
        for one, other in ((a, b), (b, a)):
            best, others = likest.get(documents[both[one]].id, (0.0, []))
            likest[documents[both[one]].id] = (max(best, similarity), [*others, documents[both[other]].id])
    passed, bins = {documents[i].id for i in both}, Counter()
    for id in kept["ours"] ^ kept["datatrove"]:
        side = kept["ours"] if id in kept["ours"] else kept["datatrove"]
        other = kept["datatrove"] if side is kept["ours"] else kept["ours"]
        best, others = likest.get(id, (0.0, []))
        if id not in passed:
            bins["the filters differ"] += 1
        elif any(o in other and o not in side for o in others):
            bins["each side keeps another of two near copies"] += 1
        else:
            bins[f"most similar other document: {_bin(best)}"] += 1
    chance = sum(2 * p * (1 - p) for p in BANDING.curve(np.array(list(truth.values()))).tolist())
    return [
        f"End to end: the same on {100 * same:.3f} % of the documents. The {sum(bins.values())} that only one side keeps:",
        *[f"- {count}: {what}" for what, count in sorted(bins.items())],
        f"- by the curve of these bands, two honest draws of hash functions would disagree on about {chance:.0f} of the {len(truth)} pairs of similarity 0.2 and more",
        "",
    ]


def _bin(similarity: float) -> str:
    edges = (0.2, 0.5, 0.6, 0.7, 0.8, 0.9)
    low = max((edge for edge in edges if similarity >= edge), default=0.0)
    return f"{low} to {min((edge for edge in edges if edge > low), default=1.0)}"


def _their_pairs(filtered: list[str], documents: list[Document], both: list[int], work: Path) -> set[near.Pair]:
    """Pairs that meet in their signatures, by their place in `both`."""
    place = {documents[i].id: at for at, i in enumerate(both)}
    known = {at: place[id] for at, id in enumerate(filtered) if id in place}
    pairs = near.datatrove_pairs(work / "datatrove-0/run/signatures", BANDING.rows)
    return {tuple(sorted((known[a], known[b]))) for a, b in pairs if a in known and b in known}


def _near_quality(verdicts: rules.Verdicts, both: list[int], truth: dict[near.Pair, float], theirs: set[near.Pair]) -> list[str]:
    signed = minhash.signatures([verdicts.texts[i] for i in both], 112, near.SHINGLE_WORDS)
    lines = ["### Near copies against exact Jaccard similarity", "", f"All pairs of the {len(both)} documents that pass the filters; near = similarity from the threshold on.", ""]
    lines += ["| found by | threshold | near pairs | recall | precision | recall expected of the bands |", "|---|---|---|---|---|---|"]
    default = DedupConfig()
    ours, careful = _meeting(signed, BANDING), _meeting(signed, minhash.bands(default.threshold, default.permutations, 0.9))
    confirmed = {(a, b) for a, b in careful if minhash.similarity(signed[a], signed[b]) >= default.threshold}
    expected = BANDING.curve(np.array(list(truth.values())))
    for threshold in (round(BANDING.steepest, 2), 0.8):
        near_ones = np.array([similarity >= threshold for similarity in truth.values()], bool)
        for name, pairs in (("ours, 14 x 8", ours), ("datatrove, 14 x 8", theirs)):
            lines.append(_row(name, near.quality(pairs, truth, threshold), threshold, f"{expected[near_ones].mean():.3f}"))
    for threshold in (default.threshold, 0.8):
        lines.append(_row("ours as configured by default, confirmed", near.quality(confirmed, truth, threshold), threshold, ""))
    return [*lines, ""]


def _meeting(signed: np.ndarray, banding: minhash.Banding) -> set[near.Pair]:
    keys = minhash.band_keys(signed, banding)
    alive = [np.flatnonzero(column != minhash.NO_KEY) for column in keys.T]
    return near.meeting([column[there] for column, there in zip(keys.T, alive, strict=True)], alive)


def _row(name: str, quality: near.Quality, threshold: float, expected: str) -> str:
    return f"| {name} | {threshold} | {quality.pairs} | {quality.recall:.3f} | {quality.precision:.3f} | {expected} |"


# ---------------------------------------------------------------- stages


def _stages(work: Path, tokenizer_path: str) -> tuple[dict[str, float], list[str]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id(END)
    rows = stages.measure(shards.paths(work / "shards")[0], tokenizer, end)
    step, bare = stages.tokenize_rate(shards.paths(work / "ours-0/run/dedup")[0], tokenizer_path, end)
    lines = ["### Ours by stage, one core", "", "| stage | MB/s of text that comes in | of the memory's bandwidth | bound by |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.megabytes_per_second:.0f} | {100 * row.bandwidth:.1f} % | {row.bound} |" for row in rows]
    lines += ["", f"Tokenization from Parquet to .bin: {step:.2f} MB/s; `tokenizers.encode_batch` alone on the same texts: {bare:.2f} MB/s."]
    return {"tokenize_rate": step / bare}, lines


# ---------------------------------------------------------------- about


def _about(documents: list[Document]) -> str:
    sizes = np.array([len(d.text) for d in documents])
    copies = sum(d.copy_of is not None for d in documents)
    quartiles = ", ".join(f"{q:.0f}" for q in np.percentile(sizes, [25, 50, 75]))
    size = _megabytes(d.text for d in documents)
    return f"{len(documents)} documents, {size:.1f} MB (quartiles {quartiles} characters), {copies} of them near-copies with 0.5 to 40 % of the words changed."


def _megabytes(texts: Iterable[str]) -> float:
    return sum(len(text.encode("utf-8", "replace")) for text in texts) / 1e6


def _versions(peer_python: str) -> str:
    asked = "import json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in ('datatrove', 'spacy', 'tokenizers', 'numpy')}))"
    theirs = _told([peer_python, "-c", asked])
    ours = {package: version(package) for package in ("numba", "numpy", "pyarrow", "tokenizers")}
    return f"Ours: {_listed(ours)}. Theirs: {_listed(theirs)}."


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


if __name__ == "__main__":
    main()
