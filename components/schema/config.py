"""What every section of a recipe is made of: strict fields, checked names, one kind of error for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
            section["properties"][name] = flat(field, handler.resolve_ref_schema)
        return reference


class Choice:
    """Annotates a choice between kinds that stands outside a section, so that its form is flat too."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return flat(handler(core_schema), handler.resolve_ref_schema)


Resolve = Callable[[dict[str, Any]], dict[str, Any]]
BOUNDS = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minItems", "minLength", "maxLength", "pattern", "additionalProperties"}


def flat(schema: dict[str, Any], resolve: Resolve) -> dict[str, Any]:
    """A choice between kinds as one `anyOf`, whatever it was; anything else as it is.

    Where a field names the kind, the alternatives are for drawing alone, without bounds, and the kind that is named is checked beside them: of a
    value that fits no alternative a validator can only say that, and not which number is too small.
    """
    if "anyOf" not in schema and "oneOf" not in schema:
        return schema
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "oneOf", "discriminator")}
    alternatives, kinds = list(_alternatives(schema)), _kinds(schema)
    if kinds is None:
        return {**rest, "anyOf": alternatives}
    named = set(kinds["mapping"].values())
    return {**rest, "anyOf": [_unbounded(part, resolve) if part.get("$ref") in named else part for part in alternatives], **_checked_by_kind(kinds)}


def _alternatives(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is chosen from, also by a choice within the choice."""
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner is None:
        yield schema
    for alternative in inner or ():
        yield from _alternatives(alternative)


def _kinds(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Which field names the kind, and the alternative of each name."""
    if "discriminator" in schema:
        return schema["discriminator"]
    return next((found for part in schema.get("anyOf", ()) if (found := _kinds(part))), None)


def _checked_by_kind(kinds: dict[str, Any]) -> dict[str, Any]:
    """One `if` after the other: whoever names a kind must be of that kind."""
    checked: dict[str, Any] = {}
    for reference in reversed(list(dict.fromkeys(kinds["mapping"].values()))):
        names = [name for name, where in kinds["mapping"].items() if where == reference]
        asked = {"type": "object", "properties": {kinds["propertyName"]: {"enum": names}}, "required": [kinds["propertyName"]]}
        checked = {"if": asked, "then": {"$ref": reference}, **({"else": checked} if checked else {})}
    return checked


def _unbounded(schema: Any, resolve: Resolve) -> Any:
    """A schema with all that it refers to written out and without its bounds."""
    if isinstance(schema, list):
        return [_unbounded(part, resolve) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**resolve(schema), **{name: value for name, value in schema.items() if name != "$ref"}}
    fields = {name: _unbounded(value, resolve) for name, value in schema.get("properties", {}).items()}  # which may be called as a bound is
    kept = {name: value if name == "default" else _unbounded(value, resolve) for name, value in schema.items() if name not in BOUNDS}
    return {**kept, "properties": fields} if fields else kept
