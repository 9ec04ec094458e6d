"""A YAML file that is one thing: feedback, a rating, an endpoint. Read with overrides, and every problem told at once.

    read_file(RatingConfig, "rating.yaml", ["judge.critic.model=NAME"], "rating", example=..., compare="recipes/rating/tiny.yaml")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from components.schema.config import BadInput, Config
from components.schema.recipe import _assign, _explain

C = TypeVar("C", bound=Config)


def read_file(kind: type[C], path: str | Path, sets: Sequence[str], name: str, example: str, compare: str) -> C:
    """A YAML file as `kind`, with `a.b=value` overrides. Errors: BadInput with every problem; `name` begins it, `example` and `compare` show how it is done."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: {path} cannot be read ({str(error).splitlines()[0]}), so there is nothing to do. Compare it with {compare}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{name}: {path} holds {type(raw).__name__}, not a mapping, so it says nothing. Compare it with {compare}")
    for assignment in sets:
        _assign(raw, assignment, example=example)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors()]
        raise BadInput(f"{name}: {path} has {len(lines)} problem(s); nothing was started:\n" + "\n".join(f"  - {line}" for line in lines)) from None
