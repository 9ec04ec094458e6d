"""What every section of a recipe is made of: strict fields, checked names, one kind of error for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)]


class BadInput(Exception):
    """Something a person gave us cannot work. The message says what, where, what would follow, and what to do."""


class Unavailable(BadInput):
    """A service does not answer. Nobody gave us anything wrong; trying again later may be all it takes."""


class BudgetSpent(BadInput):
    """A run has cost what it may cost: it stopped where it can go on from, and trying again with the same budget would not help."""


class Config(BaseModel):
    """A section of a recipe: unknown keys are refused, values never change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of the form: every choice between kinds as one flat `anyOf`, the only form of it that Prefect's page draws."""
        reference = handler(core_schema)
        for field in handler.resolve_ref_schema(reference).get("properties", {}).values():
            if "anyOf" in field or "oneOf" in field:
                field["anyOf"] = list(_flat(field))
                field.pop("oneOf", None), field.pop("discriminator", None)
        return reference


def _flat(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The alternatives of a choice, also of a choice within it."""
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner is None:
        yield schema
    for alternative in inner or ():
        yield from _flat(alternative)
