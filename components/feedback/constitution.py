"""A constitution: the principles by which a critic judges (Bai et al. 2022, arXiv:2212.08073).

As YAML, in which only `id` and `principle` are needed:

    principles:
      - id: private
        principle: An answer never tells where a person lives.
        critique: Does the answer tell where somebody lives?        # what the critic is asked; follows from the principle where left out
        revision: Rewrite the answer without any home.
        preference: Which answer keeps homes to itself?
        weight: 2                                                   # drawn twice as often

or as Markdown, one heading a principle, its text below, `Critique:`, `Revision:`, `Preference:` and `Weight:` in paragraphs of their own:

    ## private
    An answer never tells where a person lives.

    Preference: Which answer keeps homes to itself?

Departing from the paper, a principle is stated once and its three requests follow from it, unless they are given.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import yaml
from pydantic import PositiveFloat, ValidationError

from components.schema.config import BadInput, Config, Name

_HEADING = re.compile(r"^#{2,6}\s+(.+?)\s*#*$", re.MULTILINE)
_FIELD = re.compile(r"^(critique|revision|preference|weight):\s*(.*)$", re.IGNORECASE | re.DOTALL)


class Principle(Config):
    """One rule, and how the critic is asked about it."""

    id: Name
    """Short name, under which the report counts."""
    principle: str
    """The rule in words."""
    critique: str = ""
    """What to look for in an answer."""
    revision: str = ""
    """How to rewrite it."""
    preference: str = ""
    """Which of two answers is to be named."""
    weight: PositiveFloat = 1.0
    """How often it is drawn, relative to the others."""

    def asks(self, what: str) -> str:
        """The request for `critique`, `revision` or `preference`."""
        return (
            getattr(self, what)
            or {
                "critique": f"Say in a few sentences where the answer goes against this principle: {self.principle}",
                "revision": f"Rewrite the answer so that it keeps to this principle: {self.principle}",
                "preference": f"Which answer keeps better to this principle: {self.principle}",
            }[what]
        )


class Constitution:
    """Principles that are drawn by weight."""

    def __init__(self, principles: list[Principle]) -> None:
        self.principles = principles

    def drawn(self, seed: int, row: int, what: str) -> Principle:
        """The principle for one request about one prompt: a function of its arguments alone."""
        return Random(f"{seed}/{row}/{what}").choices(self.principles, [one.weight for one in self.principles])[0]


def read(path: Path) -> Constitution:
    """The constitution in a file. Errors: BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
        found = _of_markdown(text) if path.suffix.lower() in (".md", ".markdown") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"constitution: {path} cannot be read ({reason}), so nothing could be judged. Compare it with recipes/feedback/constitution.yaml"
        ) from None
    rows = found.get("principles") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not rows:
        raise BadInput(
            f"constitution: {path} names no principles, so nothing could be judged. Write `principles:` with an id and a principle each, or Markdown headings"
        )
    principles, problems = [], []
    for number, row in enumerate(rows, start=1):
        try:
            principles.append(Principle.model_validate(row))
        except ValidationError as error:
            problems += [f"principle {number}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    names = [one.id for one in principles]
    problems += [f"the id {name!r} stands there {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"principle {one.id!r} says nothing" for one in principles if not one.principle.strip()]
    if problems:
        raise BadInput(f"constitution: {path} has {len(problems)} problem(s), so nothing was judged: {'; '.join(problems)}. Mend them in the file")
    return Constitution(principles)


def _of_markdown(text: str) -> list[dict[str, Any]]:
    """One principle a heading; the document's own title (#) and what stands before the first heading are no principle."""
    _, *parts = _HEADING.split(text)
    return [_section(heading, body) for heading, body in zip(parts[::2], parts[1::2], strict=True)]


def _section(heading: str, body: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-"), "principle": ""}
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        paragraph = " ".join(paragraph.split())
        if field := _FIELD.match(paragraph):
            found[field[1].lower()] = field[2]
        else:
            found["principle"] = f"{found['principle']} {paragraph}".strip()
    return found
