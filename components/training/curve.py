"""What a training writes down line by line: its curve, and samples on the way.

Lines are only ever added, so a checkpoint needs to remember no more than how long the file was: a run that resumes cuts the file there,
and every step stands in it once, whenever the one before was killed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from components.schema.config import BadInput


class Lines:
    """A JSON-lines file that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes that are valid."""
        self._file: BinaryIO | None = None

    def go_on(self) -> None:
        """Cut off what came after `size`, and open. Errors: BadInput where the file is shorter than that."""
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < self.size:
            raise BadInput(f"training: {self.path} has {there} bytes, and the checkpoint was made when it had {self.size}: steps are missing from it. Delete {self.path.parent} and begin anew")
        self._file = self.path.open("ab")
        os.truncate(self.path, self.size)

    def add(self, row: dict[str, Any]) -> None:
        """Write one row, to be seen by readers at once."""
        assert self._file is not None, "go_on() comes first"
        self.size += self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
