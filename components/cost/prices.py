"""The price table of a project: `recipes/prices/default.yaml`, or the file that `--on prices=FILE` names.

Without the default file nothing has a price: hours and energy are still told, and a budget is refused.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from components.schema.config import BadInput
from components.schema.cost import Prices
from components.schema.recipe import Resources

DEFAULT = Path("recipes/prices/default.yaml")


def load(resources: Resources) -> Prices | None:
    """The table that these resources name; None where they name none and the default file is not there. Errors: BadInput."""
    path = Path(resources.prices) if resources.prices else DEFAULT
    if not path.is_file() and not resources.prices:
        if resources.budget is None:
            return None
        raise BadInput(f"prices: {path} does not exist, so a budget of {resources.budget:g} could never be compared with anything. Write it, or name another: --on prices=FILE")
    return read(path)


def read(path: Path) -> Prices:
    """Errors: BadInput, with one sentence about the first problem."""
    try:
        return Prices.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"prices: {path} cannot be read ({error.strerror}), so nothing would have a price. Name a price table such as {DEFAULT}: --on prices=FILE") from None
    except yaml.YAMLError as error:
        raise BadInput(f"prices: {path} is not readable YAML ({str(error).splitlines()[0]}). Compare it with {DEFAULT}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise BadInput(f"prices: {path}: {where}: {first['msg']} (given: {first['input']!r}), so nothing would have a price. Compare it with {DEFAULT}") from None
