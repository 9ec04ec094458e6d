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
        section = handler.resolve_ref_schema(reference)
        section["title"] = section.get("title", cls.__name__).removesuffix("Config")  # the words on a choice's buttons
        for name, field in section.get("properties", {}).items():
            section["properties"][name] = flat(field)
        return reference


class Choice:
    """Annotates a choice between kinds that stands outside a section, so that its form is flat too."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return flat(handler(core_schema))


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """A choice between kinds as one `anyOf`, whatever it was; anything else as it is."""
    if "anyOf" not in schema and "oneOf" not in schema:
        return schema
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "oneOf", "discriminator")}
    return {**rest, "anyOf": list(_alternatives(schema))}


def _alternatives(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is chosen from, also by a choice within the choice."""
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner is None:
        yield schema
    for alternative in inner or ():
        yield from _alternatives(alternative)
