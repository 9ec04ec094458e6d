"""What every section of a recipe is made of: strict fields, checked names, one kind of error for a person."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]


class BadInput(Exception):
    """Something a person gave us cannot work. The message says what, where, what would follow, and what to do."""


class Config(BaseModel):
    """A section of a recipe: unknown keys are refused, values never change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
