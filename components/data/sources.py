"""Sources: local text, JSON lines and Parquet, hub datasets, and what is installed beside us, all read as streams.

    for text, label in documents(Source(kind="text", path="notes")): ...
    for row in rows(Source(kind="jsonl", path="chats.jsonl")): row.values, row.where

A folder is read file by file in sorted order. Texts over LONGEST_DOCUMENT characters are cut at blank lines, so that a
book in one file can still be split into training and held-out documents.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from components.data import hub
from components.schema.config import BadInput
from components.schema.data import Source
from components.schema.records import digest, file_md5

LONGEST_DOCUMENT = 4_000  # characters
LONGEST_FUNCTION = 30  # lines
SHORTEST_DOCSTRING = 60  # characters
_ENDINGS = {"text": (".txt", ".md"), "jsonl": (".jsonl",), "parquet": (".parquet",)}


@dataclass(frozen=True)
class Row:
    """One row of a table and where it stands, for messages."""

    values: dict[str, Any]
    where: str


def documents(source: Source) -> Iterator[tuple[str, str]]:
    """Texts with their source's label, up to the source's limits. Errors: BadInput."""
    taken_bytes = 0
    for text in islice(_texts(source), source.max_documents):
        taken_bytes += len(text.encode())
        yield text, source.label
        if source.max_bytes and taken_bytes >= source.max_bytes:
            return


def rows(source: Source) -> Iterator[Row]:
    """Rows of a table source, up to max_documents. Errors: BadInput."""
    return islice(_rows(source), source.max_documents)


def fingerprint(source: Source) -> str | None:
    """What a source is at this moment, as a string that changes when it changes. None: a local path that is not here."""
    if source.kind == "hub":
        return hub.fingerprint(source.id, source.config)
    if source.kind == "installed":
        return f"python {sys.version.split()[0]}" + "".join(f", {p} {_version(p)}" for p in source.packages if p != "stdlib")
    if not Path(source.path).exists():
        return None
    return digest({str(file): file_md5(file) for file in _files(source)})


def _texts(source: Source) -> Iterator[str]:
    if source.kind == "installed":
        for package in source.packages:
            yield from _installed(package)
    elif source.kind == "text":
        for file in _files(source):
            yield from _cut(_read(file))
    else:
        for row in _rows(source):
            yield from _cut(_text_of(row, source))


def _text_of(row: Row, source: Source) -> str:
    if source.text_field not in row.values:
        raise BadInput(f"source: {row.where} has no column {source.text_field!r}, so there is no text to read. Its columns: {', '.join(row.values)}. Set `text_field`")
    text = row.values[source.text_field]
    if text is not None and not isinstance(text, str):
        raise BadInput(f"source: {row.where}: column {source.text_field!r} holds {type(text).__name__}, not text. Its columns: {', '.join(row.values)}. Set `text_field`")
    return text or ""


def _cut(text: str) -> Iterator[str]:
    """A text whole, or in pieces of at most LONGEST_DOCUMENT, cut at blank lines, else at line ends, else anywhere."""
    while len(text) > LONGEST_DOCUMENT:
        at = max(text.rfind("\n\n", 0, LONGEST_DOCUMENT), 0) or max(text.rfind("\n", 0, LONGEST_DOCUMENT), 0) or LONGEST_DOCUMENT
        yield text[:at]
        text = text[at:].lstrip("\n")
    yield text


# ---------------------------------------------------------------- local files


def _files(source: Source) -> list[Path]:
    path = Path(source.path)
    if not path.exists():
        raise BadInput(f"source: {path} does not exist, so there is nothing to read. The path is relative to {Path.cwd()}; correct it in the recipe")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in _ENDINGS[source.kind] and file.is_file())
    if not found:
        raise BadInput(f"source: folder {path} holds no {' or '.join(_ENDINGS[source.kind])} file, so kind {source.kind!r} reads nothing. Correct `path` or `kind`")
    return found


def _read(file: Path) -> str:
    data = file.read_bytes()
    if not data.strip():
        raise BadInput(f"source: {file} is empty, so it adds nothing. Fill it or drop the source")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"source: {file} is not UTF-8: byte {error.object[error.start]:#04x} at position {error.start} starts no character, so its text would be garbled. "
            f"Convert it, for example: iconv -f latin1 -t utf-8 {file.name}"
        ) from None


def _rows(source: Source) -> Iterator[Row]:
    if source.kind == "hub":
        for i, values in enumerate(hub.stream(source.id, source.config, source.split), start=1):
            yield Row(values, f"{source.id}, row {i}")
    elif source.kind == "jsonl":
        for file in _files(source):
            yield from _json_rows(file)
    elif source.kind == "parquet":
        for file in _files(source):
            yield from _parquet_rows(file)
    else:
        raise BadInput(f"source: kind {source.kind!r} ({source.label}) gives plain text, and here rows with columns are needed. Use jsonl, parquet or hub")


def _json_rows(file: Path) -> Iterator[Row]:
    for i, line in enumerate(_read(file).split("\n"), start=1):  # not splitlines(): U+2028 and others may stand inside a text
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise BadInput(f"source: {file}, line {i} is not JSON ({error}), so the row cannot be read. Correct the line or remove it") from None
        if not isinstance(values, dict):
            raise BadInput(f"source: {file}, line {i} holds {type(values).__name__}, not an object with columns. Write each line as {{\"text\": ...}}")
        yield Row(values, f"{file}, line {i}")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"source: {file} is not a readable Parquet file ({str(error).splitlines()[0]}), so it adds nothing. Write it again or correct `kind`") from None
    if not table.metadata.num_rows:
        raise BadInput(f"source: {file} is empty (0 rows), so it adds nothing. Fill it or drop the source")
    i = 0
    for batch in table.iter_batches(batch_size=1024):
        for values in batch.to_pylist():
            i += 1
            yield Row(values, f"{file}, row {i}")


# ---------------------------------------------------------------- what is installed


def _installed(package: str) -> Iterator[str]:
    """Docstrings as English, short functions as code, module by module in sorted order."""
    folder = Path(sysconfig.get_paths()["stdlib"]) if package == "stdlib" else _package_folder(package)
    skipped = {"site-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3"}
    for file in sorted(folder.rglob("*.py")):
        if not skipped & set(file.relative_to(folder).parts):
            yield from _from_module(file)


def _from_module(file: Path) -> Iterator[str]:
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):  # test data that is broken on purpose
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False) or ""
        if len(docstring) >= SHORTEST_DOCSTRING:
            yield from _cut(inspect.cleandoc(docstring))
        if isinstance(node, ast.FunctionDef) and 2 <= node.end_lineno - node.lineno < LONGEST_FUNCTION:
            yield textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


def _package_folder(package: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(package)
    if not spec or not spec.submodule_search_locations:
        raise BadInput(f"source: package {package!r} is not installed here, so its docstrings cannot be read. Install it, or correct `packages` (`stdlib` is Python's own library)")
    return Path(next(iter(spec.submodule_search_locations)))


def _version(package: str) -> str:
    from importlib import metadata

    _package_folder(package)
    try:
        return metadata.version(metadata.packages_distributions().get(package, [package])[0])
    except metadata.PackageNotFoundError:
        return "unversioned"
