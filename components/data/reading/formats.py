"""Local files as streams: text, JSON lines, JSON arrays, CSV and Parquet, plain or compressed, in constant memory.

    for row in rows(Path("chats.jsonl.zst"), longest=5_000_000): row.values, row.where, row.problem
    for text in text_pieces(Path("book.txt"), longest=5_000_000, cut_at=4000): ...

What cannot be read costs what it spoils and no more: a line, a row, or from the damage on the rest of a file. It comes as
a Row with a `problem`, or as Refused, in its place in the stream; nothing here raises for what a file holds.

Files are opened by Arrow, which reads gzip and Zstandard several members long, says so where they end too early (Python's
zstandard does not), and never holds more than a block, however small a bomb was packed.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 1 << 20  # bytes read at once
LINE_PER_TEXT = 4  # a JSON line may be this many times longer than its text may be: escapes, and other columns
EXAMPLE_CHARACTERS = 200
TABLES = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
TEXTS = ("txt", "md")
PACKED = ("gz", "zst")


@dataclass(frozen=True, slots=True)
class Collected:
    """One document as it was found."""

    text: str
    url: str | None = None
    licence: str | None = None
    date: str | None = None
    """ISO 8601, as far as it is known."""
    language: str | None = None
    where: str = ""
    """File and line, for messages."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that gives no document, and why."""

    reason: str
    example: str
    where: str
    size: int | None = None
    """Bytes, where they are not the example's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table and where it stands. A row with a problem has no values."""

    values: dict[str, Any]
    where: str
    problem: str | None = None
    """Why the row could not be read: not_json, not_utf8, ..."""
    example: str = ""
    """The beginning of what stands there, or the reader's own words."""


_DECODER = json.JSONDecoder()


class Damaged(Exception):
    """A file that cannot be read any further; its text is the reason."""


def ending(path: Path) -> str:
    """What a file is, by its name, compression aside: jsonl for a.jsonl.gz."""
    parts = path.name.lower().split(".")
    return parts[-2] if len(parts) > 2 and parts[-1] in PACKED else parts[-1]


def too_long(longest: int) -> str:
    """The reason of what is longer than a document may be."""
    return f"longer_than_{longest}_bytes"


class Bytes:
    """The bytes of a file, decompressed as they are read. Raises Damaged once everything before the damage was given."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self._stream = self._opened()
        self._damage: Exception | None = None

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def tell(self) -> int:
        """Bytes given so far."""
        return self.at

    def read(self, size: int = BLOCK) -> bytes:
        """The next bytes, `size` of them unless the file ends; b"" at its end."""
        if self._damage:
            raise Damaged(self._reason(self._damage))
        try:
            block = self._stream.read(size)
        except (OSError, pa.ArrowException) as error:
            self._damage = error
            block = self._up_to_the_damage(size) or self.read()
        self.at += len(block)
        return block

    def blocks(self) -> Iterator[bytes]:
        """All that is left, block by block."""
        return iter(self.read, b"")

    def _opened(self) -> pa.NativeFile:
        return pa.input_stream(str(self.path), compression={"gz": "gzip", "zst": "zstd"}.get(self.path.suffix[1:].lower()))

    def _up_to_the_damage(self, size: int) -> bytes:
        """What a failed read had decompressed already is lost in Arrow; so read again, byte by byte where it failed."""
        self._stream.close()
        self._stream = self._opened()
        found = bytearray()
        try:
            left = self.at
            while left:
                left -= len(self._stream.read(min(left, BLOCK)))
            while len(found) < size and (byte := self._stream.read(1)):
                found += byte
        except (OSError, pa.ArrowException):
            pass
        return bytes(found)

    def _reason(self, error: Exception) -> str:
        what = "truncated" if "Truncated" in str(error) else "damaged"
        return f"{what}_{self.path.suffix[1:].lower()}"


# ---------------------------------------------------------------- text


def text_pieces(path: Path, longest: int, cut_at: int | None) -> Iterator[str | Refused]:
    """The text of a UTF-8 file: whole, and refused where it has over `longest` bytes; or in pieces of `cut_at` characters, however long it is."""
    with Bytes(path) as data:
        try:
            yield from cut(_characters(data), cut_at) if cut_at else [_whole(data, longest)]
        except Damaged as damage:
            yield Refused(str(damage), str(path), str(path))
        except UnicodeDecodeError as error:
            yield Refused("not_utf8", f"{path}: byte {error.object[error.start]:#04x} starts no character", str(path), data.at)


def cut(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """A text, given in blocks, in pieces of at most `longest` characters, cut at blank lines, else at line ends, else anywhere."""
    held = ""
    for block in blocks:
        held, start = (held + block).lstrip("\n"), 0
        while len(held) - start > longest:
            end = _break(held, start, start + longest)
            yield held[start:end]
            start = end
            while held[start : start + 1] == "\n":
                start += 1
        held = held[start:]
    if held:
        yield held


def _break(text: str, start: int, end: int) -> int:
    for mark in ("\n\n", "\r\n\r\n", "\n"):
        if (at := text.rfind(mark, start + 1, end)) > 0:
            return at
    return end


def _characters(data: Bytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for block in data.blocks():
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _whole(data: Bytes, longest: int) -> str | Refused:
    held = contents(data, longest)
    return Refused(too_long(longest), str(data.path), str(data.path), data.path.stat().st_size) if held is None else held.decode("utf-8-sig")


def contents(data: Bytes, longest: int) -> bytes | None:
    """All bytes of a file; None where they are more than `longest`. Raises Damaged."""
    held = b""
    while len(held) <= longest:
        if not (block := data.read()):
            return held
        held += block
    return None


# ---------------------------------------------------------------- tables


def rows(path: Path, longest: int, columns: Iterable[str] | None = None) -> Iterator[Row]:
    """The rows of a table by its ending. `longest`: bytes a document may have; `columns`: all that is needed, where not all are (Parquet)."""
    kind = ending(path)
    if kind == "parquet":
        yield from _parquet_rows(path, columns)
        return
    try:
        with Bytes(path) as data:
            yield from _csv_rows(data, longest, "\t" if kind == "tsv" else ",") if kind in ("csv", "tsv") else _json_rows(data, longest)
    except Damaged as damage:
        yield Row({}, f"{path}, after byte {data.at}", str(damage), str(path))


def lines(blocks: Iterable[bytes], longest: int) -> Iterator[bytes | None]:
    """Lines without their ends; None for a line over `longest` bytes, of which no more than that is held."""
    held, skipping = b"", False
    for block in blocks:
        *whole, held = (held + block).split(b"\n")  # not splitlines(): U+2028 and others may stand inside a text
        for line in whole:
            yield None if skipping or len(line) > longest else line
            skipping = False
        if skipping or len(held) > longest:
            held, skipping = b"", True
    if held or skipping:
        yield None if skipping else held


def _json_rows(data: Bytes, longest: int) -> Iterator[Row]:
    first = data.read().removeprefix(codecs.BOM_UTF8)
    if ending(data.path) == "json" and first.lstrip().startswith(b"["):
        yield from _array_rows(data, first, longest * LINE_PER_TEXT)
        return
    for number, line in enumerate(lines(chain([first], data.blocks()), longest * LINE_PER_TEXT), start=1):
        where = f"{data.path}, line {number}"
        if line is None:
            yield Row({}, where, too_long(longest), where)
        elif line.strip():
            yield _json_row(line, where)


def _json_row(line: bytes, where: str) -> Row:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError:
        return Row({}, where, "not_utf8", _shown(line))
    except RecursionError:
        return Row({}, where, "json_nested_too_deep", _shown(line))
    except ValueError as error:
        return Row({}, where, "not_json", f"{error}: {_shown(line)}")
    return _object_row(values, where)


def _object_row(values: Any, where: str) -> Row:
    return Row(values, where) if isinstance(values, dict) else Row({}, where, "not_an_object", str(values)[:EXAMPLE_CHARACTERS])


def _array_rows(data: Bytes, first: bytes, longest: int) -> Iterator[Row]:
    """The items of one JSON array, each as soon as it is whole. After a fault there is no telling where the next one begins."""
    characters, number = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        text, at = characters.decode(first).lstrip(), 1
        while True:
            at = _after_white_space(text, at)
            if text.startswith("]", at):
                return
            try:
                values, at = _DECODER.raw_decode(text, at)
            except ValueError:  # or not whole yet; each try has twice the text of the last, so that no long item is read often
                if len(text) - at > longest or not (more := data.read(max(BLOCK, len(text)))):
                    raise
                text, at = text[at:] + characters.decode(more), 0
            else:
                number += 1
                yield _object_row(values, f"{data.path}, item {number}")
    except UnicodeDecodeError:
        yield Row({}, f"{data.path}, after item {number}", "not_utf8", str(data.path))
    except RecursionError:
        yield Row({}, f"{data.path}, after item {number}", "json_nested_too_deep", str(data.path))
    except ValueError as error:
        yield Row({}, f"{data.path}, after item {number}", "not_json", str(error))


def _after_white_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


class _Records:
    """The records of a CSV file, each with its first line's number. After a broken one it goes on with the next line."""

    def __init__(self, source: Iterator[bytes | None], delimiter: str) -> None:
        self.source, self.line = source, 0
        self.waiting: list[bytes | None] = []  # lines that a broken record had swallowed, last first
        self.held: list[bytes | None] = []  # lines of the record that is being read
        self.reader = csv.reader(self, delimiter=delimiter, strict=True)

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> str:
        """The next line, for the reader."""
        line = self.waiting.pop() if self.waiting else next(self.source)
        self.held.append(line)
        if line is None:
            raise csv.Error("field larger than field limit")
        return line.decode("utf-8", "surrogateescape") + "\n"

    def records(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """Line number and fields, or what is wrong."""
        while True:
            self.held = []
            try:
                fields = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self.line + 1, error
                self.waiting += reversed(self.held[1:])
                self.line += 1
            else:
                yield self.line + 1, fields
                self.line += len(self.held)


def _csv_rows(data: Bytes, longest: int, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(longest)
    names: list[str] | None = None
    for number, fields in _Records(lines(data.blocks(), longest * LINE_PER_TEXT), delimiter).records():
        where = f"{data.path}, line {number}"
        if isinstance(fields, csv.Error):
            yield Row({}, where, too_long(longest) if "limit" in str(fields) else "csv_quoting_broken", str(fields))
        elif names is None:
            names = [name.removeprefix("\ufeff").strip() for name in fields]
        elif fields:
            yield _csv_row(names, fields, where)


def _csv_row(names: list[str], fields: list[str], where: str) -> Row:
    shown = " | ".join(fields)
    if len(fields) != len(names):
        return Row({}, where, "csv_row_without_the_headers_number_of_fields", f"{len(fields)} fields, {len(names)} in the header: {shown[:EXAMPLE_CHARACTERS]}")
    try:
        shown.encode()
    except UnicodeEncodeError:  # the surrogates that stand for bytes of no character
        return Row({}, where, "not_utf8", shown[:EXAMPLE_CHARACTERS])
    return Row(dict(zip(names, fields, strict=True)), where)


def _parquet_rows(path: Path, columns: Iterable[str] | None) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BLOCK) as file:
            wanted = [name for name in file.schema_arrow.names if columns is None or name in set(columns)] or file.schema_arrow.names
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), columns=wanted):
                for values in _python_rows(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    yield Row({}, where, "parquet_row_unreadable", where) if values is None else Row(values, where)
    except (pa.ArrowException, OSError) as error:
        yield Row({}, f"{path}, after row {number}", "damaged_parquet", (str(error).splitlines() or [""])[0][:EXAMPLE_CHARACTERS])


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows of about 8 MiB together, by the row group with the longest."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1)
    return max(1, min(1024, int((8 << 20) / max(longest, 1))))


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    """None for a row with a value that Python cannot hold, such as a date after the year 9999 or text that is not UTF-8."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [None] if len(batch) == 1 else [row for i in range(len(batch)) for row in _python_rows(batch.slice(i, 1))]


def _shown(line: bytes) -> str:
    return line[:EXAMPLE_CHARACTERS].decode("utf-8", "replace")
