"""A journal of finished rows, one JSON line each: what stands in it after a kill is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Rows by number. A last line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[int, Row] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            self.rows[row["row"]] = row
            whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows down, safe from a kill when this returns; those that stand there already stay as they are."""
        new = [row for row in rows if row["row"] not in self.rows]
        self._file.write(b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in new))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.update((row["row"], row) for row in new)

    def close(self) -> None:
        self._file.close()
