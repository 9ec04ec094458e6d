"""What a probe saw, one row an item: items/<role>/probe_<name>.parquet. Its figures follow from these rows alone.

The columns that every suite's items have come first, with their types; a probe adds its own behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

COLUMNS = {
    "suite": pa.string(), "task": pa.string(), "id": pa.int64(), "item": pa.string(), "question": pa.string(), "prompt": pa.string(), "target": pa.string(),
    "output": pa.string(), "score": pa.float64(), "truncated": pa.bool_(), "choices": pa.list_(pa.string()), "logprobs": pa.list_(pa.float64()),
}  # fmt: skip
KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def path_of(out: Path, role: str, probe: str) -> Path:
    """Where a probe's rows are kept."""
    return out / "items" / role / f"probe_{probe}.parquet"


def write(rows: Sequence[Row], path: Path) -> None:
    """Whole or not at all."""
    names = dict.fromkeys(name for row in rows for name in row)
    schema = pa.schema([(name, COLUMNS.get(name) or _kind(rows, name)) for name in dict.fromkeys((*COLUMNS, *names)) if name in names])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")
    temporary.replace(path)


def read(path: Path) -> list[Row]:
    """The rows of a file, in order."""
    return pq.read_table(path).to_pylist()


def _kind(rows: Sequence[Row], name: str) -> pa.DataType:
    value = next((row[name] for row in rows if row.get(name) is not None), "")
    return KINDS[type(value)]
