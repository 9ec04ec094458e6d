"""What every run here has used: of finished stages as their records say, of unfinished ones as their ledgers do."""

from __future__ import annotations

from pathlib import Path

from components.cost import ledger
from components.schema.config import BadInput
from components.schema.cost import Usage, of_record
from components.schema.records import Record, home


def accounts() -> dict[str, dict[str, Usage]]:
    """By run, and then by the stage's folder."""
    found: dict[str, dict[str, Usage]] = {}
    for name, by_run in (*_finished(), *_unfinished()):
        for run, used in by_run.items():
            known = found.setdefault(run, {})
            known[name] = known.get(name, Usage()) + used
    return found


def unfinished(run: str) -> dict[str, Usage]:
    """What a run has used for stages that are not finished, by the stage's name."""
    found: dict[str, Usage] = {}
    for name, by_run in _unfinished():
        if run in by_run:
            stage = name.rpartition("-")[0]
            found[stage] = found.get(stage, Usage()) + by_run[run]
    return found


def _finished() -> list[tuple[str, dict[str, Usage]]]:
    found = []
    for path in sorted((home() / "stages").glob("*/record.json")):
        try:
            record = Record.read(Path(path).parent)
        except BadInput:
            continue
        found.append((path.parent.name, of_record(record.execution)))
    return found


def _unfinished() -> list[tuple[str, dict[str, Usage]]]:
    folders = [*sorted((home() / "stages").glob("*.partial")), *sorted((home() / "cost").glob("data-*"))]
    return [(folder.name.removesuffix(".partial"), ledger.by_run(folder)) for folder in folders]
