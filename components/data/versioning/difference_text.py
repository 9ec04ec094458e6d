"""A difference between two data versions for a terminal: short tables, the rest in --json."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from components.data.versioning.differences import Change, Difference, DocumentsChange, StepChange

SHOWN_COUNTS, SHOWN_PARAMETERS, SHOWN_CHARACTERS = 24, 60, 60


def render(difference: Difference) -> str:
    """The difference as text, as wide as the terminal; coloured where there is one."""
    out = io.StringIO()
    console = Console(file=out, width=max(80, shutil.get_terminal_size((140, 24)).columns), force_terminal=sys.stdout.isatty(), markup=False, highlight=False, soft_wrap=False)
    for part in _parts(difference):
        console.print(part)
    return out.getvalue().rstrip()


def _parts(difference: Difference) -> Iterator[RenderableType]:
    yield Text(f"Data from {difference.before} to {difference.after}", style="bold")
    if not (difference.steps or difference.parameters or difference.code):
        yield "The same data: no output, parameter or code of a data stage changed."
    if difference.parameters:
        yield _table("Parameters", ("parameter", "before", "after"), [(name, *map(_value, pair)) for name, pair in difference.parameters.items()], SHOWN_PARAMETERS)
    if difference.code:
        yield _table("Code that stages were made with", ("file", "stages"), [(path, ", ".join(stages)) for path, stages in difference.code.items()], SHOWN_PARAMETERS)
    if difference.steps:
        yield _table("Outputs", ("step", "before", "after"), [(f"{step.step}@{step.dataset}", *map(_md5, step.md5)) for step in difference.steps], len(difference.steps))
    for step in difference.steps:
        if step.counts:
            yield _counts(step)
    for name, documents in difference.documents.items():
        yield from _documents(name, documents)
    if difference.unmade:
        yield Text(f"\nNot made yet: {', '.join(difference.unmade)}. params.yaml asks for something else than what is there. Run: modelyard data repro RECIPE", style="yellow")
    if difference.missing:
        yield Text(
            f"\nNot compared: {', '.join(difference.missing)}. The files are neither in DVC's cache here nor in its remote, or the remote cannot be reached. "
            "Where they were made: modelyard data push. Here, with the remote in reach: dvc fetch --all-commits",
            style="yellow",
        )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], shown: int, numbers: bool = False) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and i else "left", overflow="fold")
    for row in rows[:shown]:
        table.add_row(*(_visible(cell) for cell in row))
    if len(rows) > shown:
        table.add_row(f"and {len(rows) - shown} more (--json shows all)")
    return table


def _counts(step: StepChange) -> Table:
    rows = [(name, *map(_number, pair), _step(pair)) for name, pair in step.counts.items()]
    return _table(f"{step.step}@{step.dataset}", ("counts", "before", "after", "change"), rows, SHOWN_COUNTS, numbers=True)


def _documents(name: str, change: DocumentsChange) -> Iterator[RenderableType]:
    moved = f" ({change.moved:,} of them moved between training and held out)" if change.moved else ""
    yield Text(f"\nDocuments of {name}: {change.added:,} added, {change.removed:,} removed, {change.kept:,} kept{moved}", style="bold")
    rows = [(what, row["id"], row["source"], row["url"], row["text"]) for what, found in change.examples.items() for row in found]
    if rows:
        yield _table("Such as", ("", "id", "source", "url", "first words"), rows, len(rows))


def _visible(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _value(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _md5(md5: str | None) -> str:
    return md5[:12] if md5 else "-"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else "-"


def _step(pair: Change) -> str:
    """Later minus earlier, with its share of the earlier."""
    old, new = (value if isinstance(value, int | float) else 0 for value in pair)
    change = f"{new - old:+,}" if isinstance(new - old, int) else f"{new - old:+.4g}"
    return f"{change} ({(new - old) / old:+.1%})" if old else change
