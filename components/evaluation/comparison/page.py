"""The comparison page: one HTML file that needs nothing else, with its numbers and pictures as files beside it.

    index.html            tables, pictures, items won and lost with their text, what changed
    comparison.json       the numbers
    items.parquet         every item whose text the page shows
    scores.svg, radar.svg, subjects-<suite>.svg

No script, no font, no request to anywhere: a policy in the page forbids the browser all of them. Questions and answers are somebody else's
text: they are escaped, and shown without control characters. The same comparison gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.evaluation.comparison import pictures, words
from components.evaluation.comparison.compare import Comparison, Flip, Row

PROMPT_CHARACTERS, TEXT_CHARACTERS = 3000, 2000  # of one item, on the page
KINDS = {
    "config": "Options of training",
    "settings": "Options of the evaluation",
    "data": "Data (identities)",
    "counts": "Data (counts)",
    "code": "Code and packages",
}
PAGE, NUMBERS, ITEMS = "index.html", "comparison.json", "items.parquet"


def write(comparison: Comparison, folder: Path) -> None:
    """Write the page and what stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page(comparison), encoding="utf-8", newline="\n")
    (folder / NUMBERS).write_text(json.dumps(comparison.plain(), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
    for name, picture in drawn(comparison).items():
        (folder / f"{name}.svg").write_text(pictures.alone(picture, comparison.labels).translate(words.CONTROL), encoding="utf-8")
    flips = [{**asdict(flip), "models": comparison.labels} for found in comparison.flips.values() for flip in found]
    if flips:
        pq.write_table(pa.Table.from_pylist(flips), folder / ITEMS)


def page(comparison: Comparison) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("comparison.html").render(
        comparison=comparison,
        labels=comparison.labels,
        style=Markup(pictures.STYLE),
        pictures=drawn(comparison),
        subjects={name: (row, _prefix(row)) for name, row in comparison.suites.items() if row.subjects},
        counts={suite: _counts(row) for suite, row in comparison.suites.items()},
        kinds=KINDS,
        words=words,
        summary=words.summary(comparison),
        choices=lambda flip: list(_choices(flip)),
        prompts=_prompts,
        cut=_cut,
        longest=TEXT_CHARACTERS,
    )
    return text.lstrip().translate(words.CONTROL)


def drawn(comparison: Comparison) -> dict[str, Markup]:
    """Every picture, by the name of its file."""
    rows, labels = [row for row in comparison.suites.values() if _is_share(row)], comparison.labels
    made = {"scores": pictures.bars("Suites", rows, labels) if rows else None, "radar": pictures.radar(rows, labels)}
    made |= {
        f"subjects-{row.name}": pictures.bars(f"Subjects of {row.name}", sorted_subjects(row), labels, _prefix(row))
        for row in rows
        if row.subjects and all(map(_is_share, row.subjects))
    }
    return {name: picture for name, picture in made.items() if picture is not None}


def _is_share(row: Row) -> bool:
    """Whether its scores go from 0 to 1, so that bars can stand side by side: a perplexity's do not."""
    return all(0 <= score.score <= 1 for score in row.scores if score)


def sorted_subjects(row: Row) -> list[Row]:
    """The subjects, from the greatest gain of the last model to its greatest loss."""

    def gain(subject: Row) -> tuple[float, str]:
        last = subject.against[-1]
        return (-last.difference.difference if last else 0.0, subject.name)

    return sorted(row.subjects, key=gain)


def _prefix(row: Row) -> str:
    """What all subjects' names begin with: the suite's own name."""
    prefix = f"{row.name}_"
    return prefix if all(subject.name.startswith(prefix) for subject in row.subjects) else ""


def _counts(row: Row) -> list[tuple[int, int]]:
    return [(one.won, one.lost) if one else (0, 0) for one in row.against[1:]]


def _choices(flip: Flip) -> Iterator[dict[str, Any]]:
    """A row for each choice: its text, whether it is right, every model's log-likelihood and whether that is its pick."""
    for i, choice in enumerate(flip.choices):
        said = [(logprobs[i], logprobs[i] == max(logprobs)) if i < len(logprobs) else None for logprobs in flip.logprobs]
        yield {"text": choice, "right": choice == flip.target, "said": said}


def _prompts(flip: Flip, labels: list[str]) -> list[tuple[str, str]]:
    """(whose, text) of each prompt; one where all are the same."""
    told = [(label, prompt) for label, prompt in zip(labels, flip.prompts, strict=True) if prompt is not None]
    if len({prompt for _, prompt in told}) == 1:
        told = [("all", told[0][1])]
    return [(label, _cut(prompt, PROMPT_CHARACTERS, end=True)) for label, prompt in told]


def _cut(text: str | None, longest: int, end: bool = False) -> str:
    """Text without its middle of nothing: the beginning, or the end, of what is longer than `longest` characters, and how much is left out."""
    if text is None or len(text) <= longest:
        return words.visible(text or "")
    left = f"[{len(text) - longest:,} characters are left out]"
    return words.visible(f"{left}…{text[-longest:]}" if end else f"{text[:longest]}…{left}")
