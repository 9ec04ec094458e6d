"""Shards: documents as Parquet files that every step reads and writes, a row group at a time, so that memory stays constant.

    for table in shards.read(path): ...                      # pyarrow.Table of at most about ROW_GROUP_BYTES of text
    with shards.Writer(folder, "web-") as writer:             # web-00000.parquet, web-00001.parquet, ...
        writer.write(table)

One schema from the first step to the last: a column that no step has filled yet is null. The same rows in the same order
give the same bytes, whatever the sizes of the tables they came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHARD_BYTES = 64 * 2**20  # text in a shard, before compression
ROW_GROUP_BYTES = 8 * 2**20

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # 16 hex digits: hash of source, url and text as they were collected
        ("text", pa.string()),
        ("source", pa.string()),  # the source's label
        ("domain", pa.string()),
        ("url", pa.string()),  # where the document was found, or a path
        ("licence", pa.string()),  # SPDX where it could be told
        ("date", pa.string()),  # ISO 8601, as far as it is known
        ("language", pa.string()),  # ISO 639-1, or the programming language in domain code; null = unknown
        ("perplexity", pa.float32()),  # the three parts of the quality score, each in [0, 1]
        ("diversity", pa.float32()),
        ("safety", pa.float32()),
        ("quality", pa.float32()),
        ("contaminates", pa.list_(pa.string())),  # benchmarks of which an item stands in the text
    ]
)


def read(path: Path, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
    """The tables of a shard, one row group after another."""
    with pq.ParquetFile(path) as file:
        for i in range(file.num_row_groups):
            yield file.read_row_group(i, columns=list(columns) if columns else None)


def paths(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(folder.glob("*.parquet"))


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of our schema; what a row does not name is null."""
    return pa.table({name: pa.array([row.get(name) for row in rows], type=SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def with_columns(table: pa.Table, **columns: Any) -> pa.Table:
    """The table with these columns set, in our schema's types."""
    for name, values in columns.items():
        at, field = SCHEMA.get_field_index(name), SCHEMA.field(name)
        table = table.set_column(at, field, values if isinstance(values, pa.ChunkedArray) else pa.array(values, type=field.type))
    return table


def text_bytes(table: pa.Table) -> list[int]:
    """Bytes of UTF-8 in each row's text."""
    return pc.binary_length(table["text"]).to_pylist()


class Writer:
    """Writes rows into numbered shards; where a shard or a row group ends depends on the rows alone."""

    def __init__(self, folder: Path, prefix: str = "", shard_bytes: int = SHARD_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.prefix, self.shard_bytes = folder, prefix, shard_bytes
        self.number = 0
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._written_bytes = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._flush()
        self._close()

    def write(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        start = 0
        for i, size in enumerate(text_bytes(table)):
            self._pending_bytes += size
            if self._pending_bytes >= ROW_GROUP_BYTES:
                self._pending.append(table.slice(start, i + 1 - start))
                start = i + 1
                self._flush()
                if self._written_bytes >= self.shard_bytes:
                    self._close()
        if start < table.num_rows:
            self._pending.append(table.slice(start))

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._file is None:
            path = self.folder / f"{self.prefix}{self.number:05d}.parquet"
            self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)
        group = pa.concat_tables(self._pending).combine_chunks()
        self._file.write_table(group, row_group_size=group.num_rows)
        self._written_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._written_bytes = None, 0
            self.number += 1
