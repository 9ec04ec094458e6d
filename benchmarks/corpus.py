"""Documents to measure with: real text that is here, cut and combined to the sizes of web documents, and controlled near-copies of some.

    documents = corpus(None, megabytes=30)             # [Document(id, text, copy_of, edited)]
    documents = corpus(Path("crawl.parquet"), 100)     # from a file or folder of jsonl, parquet or txt

Without a path: the C4, Wikipedia and WikiText samples of a hub mirror (MODELYARD_HUB_MIRROR, or shared/real/hub beside the project) as they are; doc
strings, READMEs and licences of the installed packages, some as they are and most as their paragraphs of prose put together, so that about
as many pass the rules as of a crawl. The same installation gives the same documents.
"""

from __future__ import annotations

import json
import os
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from textwrap import dedent

import pyarrow.parquet as pq

EDITS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)  # shares of words that a near-copy has changed
COPIES = 0.08  # share of documents that are near-copies of an earlier one
SAMPLES = ("allenai/c4/en/train*", "wikimedia/wikipedia/20231101.en/train*", "Salesforce/wikitext/wikitext-2-v1/*")
MEDIAN_CHARACTERS, SPREAD = 1800, 0.9  # of a document put together: lognormal, as crawled pages are
LONGEST = 40_000
AS_THEY_ARE = 0.05  # of doc strings and files of some length; the paragraphs of prose in all of them are put together


@dataclass(frozen=True)
class Document:
    """A document, and what it was copied from."""

    id: str
    text: str
    copy_of: str | None = None
    edited: float = 0.0
    """Share of its words that were changed"""


def corpus(path: Path | None, megabytes: float, seed: int = 0) -> list[Document]:
    """About so many megabytes of documents, shuffled, near-copies after what they were copied from."""
    source, texts, size = random.Random(seed), [], 0
    for text in _read(path) if path else _gathered(source):
        texts.append(text)
        size += len(text.encode("utf-8", "replace"))
        if size >= megabytes * 1e6 * (1 - COPIES):
            break
    source.shuffle(texts)
    return _with_copies(texts, source)


def _with_copies(texts: list[str], source: random.Random) -> list[Document]:
    documents: list[Document] = []
    for text in texts:
        documents.append(Document(f"d{len(documents):06d}", text))
        if source.random() < COPIES / (1 - COPIES):
            original, share = source.choice(documents), source.choice(EDITS)
            documents.append(Document(f"d{len(documents):06d}", edited(original.text, share, source), original.copy_of or original.id, share))
    return documents


def edited(text: str, share: float, source: random.Random) -> str:
    """The text with a share of its words replaced by others of it, white space as it was."""
    parts = re.split(r"(\s+)", text)
    words = parts[::2]
    return "".join(source.choice(words) if i % 2 == 0 and source.random() < share else part for i, part in enumerate(parts))


def _read(path: Path) -> Iterator[str]:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(1024, columns=["text"]):
                yield from batch["text"].to_pylist()
        elif file.suffix == ".jsonl":
            with file.open(encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)
        elif file.suffix in (".txt", ".md"):
            yield from _cut(file.read_text(encoding="utf-8", errors="replace"))


def _gathered(source: random.Random) -> Iterator[str]:
    yield from _sampled()
    files = sorted(path for key in ("purelib", "stdlib") for path in Path(sysconfig.get_paths()[key]).rglob("*") if path.is_file() and _is_text(path))
    source.shuffle(files)
    prose: list[str] = []
    seen: set[str] = set()
    for file in files:
        for text in _texts(file):
            fresh = [p for p in _prose(text) if p not in seen]
            seen.update(fresh)
            prose += fresh
            if len(text) > 700 and source.random() < AS_THEY_ARE and text not in seen:
                seen.add(text)
                yield from _cut(text)
        wanted = _size(source)
        while sum(map(len, prose)) > wanted:
            taken: list[str] = []
            while sum(map(len, taken)) < wanted:
                taken.append(prose.pop(0))
            yield "\n".join(taken)
            wanted = _size(source)


def _size(source: random.Random) -> float:
    return min(source.lognormvariate(log(MEDIAN_CHARACTERS), SPREAD), LONGEST)


def _prose(text: str) -> list[str]:
    """Paragraphs of whole sentences and mostly letters."""
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    return [p for p in paragraphs if len(p) > 60 and p[-1] in ".!?" and len(re.findall(r"[A-Za-z ,.'-]", p)) > 0.96 * len(p)]


def _sampled() -> Iterator[str]:
    hub = Path(os.environ.get("MODELYARD_HUB_MIRROR") or Path(__file__).parents[2] / "shared/real/hub")
    for pattern in SAMPLES:
        for file in sorted(hub.glob(pattern)):
            texts = pq.read_table(file, columns=["text"])["text"].to_pylist()
            yield from _cut("".join(texts)) if "wikitext" in pattern else texts


def _is_text(path: Path) -> bool:
    return path.suffix in (".py", ".md", ".rst", ".txt") or path.name == "METADATA" or path.name.startswith(("LICENSE", "NOTICE"))


def _texts(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [dedent(found) for found in re.findall(r'"""(.{200,}?)"""', text, re.S)] if file.suffix == ".py" else [text]


def _cut(text: str) -> Iterator[str]:
    """A long text in parts, cut at blank lines."""
    part: list[str] = []
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        part.append(paragraph)
        if sum(map(len, part)) > 4 * MEDIAN_CHARACTERS:
            yield "\n".join(part)
            part = []
    if part:
        yield "\n".join(part)
