"""What an unfinished stage has used so far: one small file for each attempt, written anew every few seconds.

It lies under `work/cost` of the stage's `.partial` folder, so a killed attempt is not forgotten: at most the seconds since the
last write are. When the stage ends, the sum goes into its record and the files go with the work folder.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from components.schema.cost import Usage

FOLDER = Path("work/cost")
WIDTH = 512  # bytes; files of one size, so that how much a folder holds says how much work it holds


def write(out: Path, attempt: str, run: str, used: Usage) -> None:
    """Leave what an attempt has used, whole or not at all. `run`: who pays."""
    path = out / FOLDER / f"{attempt}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"run": run, "used": used.model_dump(mode="json")}).ljust(WIDTH), encoding="utf-8")
    temporary.replace(path)


def by_run(out: Path, but: str | None = None) -> dict[str, Usage]:
    """What each run has used on this stage, over all attempts, or all but one of them. A file that cannot be read counts nothing."""
    found: dict[str, Usage] = {}
    for path in sorted((out / FOLDER).glob("*.json")):
        if path.stem != but:
            with contextlib.suppress(OSError, ValueError, KeyError):
                kept = json.loads(path.read_text(encoding="utf-8"))
                found[kept["run"]] = found.get(kept["run"], Usage()) + Usage.model_validate(kept["used"])
    return found


def attempts(out: Path) -> int:
    """How often the stage was begun."""
    return len(list((out / FOLDER).glob("*.json")))
