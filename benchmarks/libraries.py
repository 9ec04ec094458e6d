"""Libraries that could carry the filters and MinHash instead of our compiled loops: the same work for one core, in MB of text a second.

    .venv-bench/bin/python -m benchmarks.libraries [--megabytes 30]

Ours stands in the stages table of the section Data; here are Polars and DuckDB on Gopher's simplest measures (words taken as what stands between white
space, which is not what the thresholds were set with), then on one of its repetition rules, and rensa's signatures of 112 hashes over 5-grams that Python
makes. Writes the section Libraries of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

os.environ |= {"POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import duckdb
import polars as pl
import rensa

from benchmarks.corpus import corpus
from benchmarks.results import machine, write_section

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=30, help="text to work on")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = [document.text for document in corpus(None, options.megabytes)]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    frame = pl.DataFrame({"id": range(len(texts)), "text": texts})
    database = duckdb.connect(config={"threads": 1})
    database.register("documents", frame.to_arrow())
    work: dict[str, Callable[[], object]] = {
        f"Polars {pl.__version__}: words, mean length, share of letters, bullets": lambda: polars_quality(frame),
        f"DuckDB {duckdb.__version__}: the same": lambda: database.execute(QUALITY).fetchall(),
        f"Polars {pl.__version__}: commonest pair of words": lambda: polars_pairs(frame),
        f"rensa {version('rensa')}: signatures": lambda: signatures(texts),
    }
    lines = [f"{machine()}; one core and one thread; {len(texts)} documents, {size / 1e6:.1f} MB; medians of {ROUNDS}.", "", "| library and work | MB/s |", "|---|---|"]
    for name, function in work.items():
        lines.append(f"| {name} | {size / 1e6 / median(seconds(function) for _ in range(ROUNDS)):.1f} |")
        print(lines[-1], flush=True)
    write_section("Libraries", "\n".join(lines))


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def polars_quality(frame: pl.DataFrame) -> pl.DataFrame:
    words = pl.col("text").str.extract_all(r"\S+")
    return frame.select(
        words.list.len().alias("words"),
        words.list.eval(pl.element().str.len_chars()).list.mean().alias("mean_length"),
        words.list.eval(pl.element().str.contains(r"\p{L}")).list.mean().alias("with_letter"),
        pl.col("text").str.count_matches(r"(?m)^\s*[•‣-]").alias("bullets"),
    )


QUALITY = """
select len(words), list_avg(list_transform(words, lambda word: length(word))), list_avg(list_transform(words, lambda word: regexp_matches(word, '[\\p{L}]')::int)),
       len(regexp_extract_all(text, '(?m)^\\s*[•‣-]'))
from (select text, regexp_extract_all(text, '\\S+') as words from documents)
"""


def polars_pairs(frame: pl.DataFrame) -> pl.DataFrame:
    words = frame.lazy().select("id", pl.col("text").str.extract_all(r"\S+").alias("word")).explode("word")
    pairs = words.with_columns(pl.col("word").shift(-1).over("id").alias("following")).drop_nulls()
    return pairs.group_by("id", "word", "following").len().group_by("id").agg(pl.col("len").max()).collect()


def signatures(texts: list[str]) -> list[list[int]]:
    made = []
    for text in texts:
        words = text.split()
        one = rensa.RMinHash(num_perm=112, seed=1)
        one.update([" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))])
        made.append(one.digest())
    return made


if __name__ == "__main__":
    main()
