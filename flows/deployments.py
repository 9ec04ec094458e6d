"""What the forms begin with: values of recipe files, read when the deployments are registered.

`values` is a build step of prefect.yaml, so that `prefect deploy --all` needs nothing else:

    build: [{flows.deployments.values: {recipe: recipes/tiny.yaml, sections: [sft]}}]
    parameters: {recipe: "{{ recipe }}", sft: "{{ sft }}"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.schema.recipe import Recipe


def values(recipe: str | None = None, sections: Sequence[str] = (), renamed: dict[str, str] | None = None, **files: str) -> dict[str, Any]:
    """Parameters of a deployment. `recipe` alone: the whole recipe; with `sections`: its name and these sections of it, under their names
    or as `renamed` says. `files`: parameters that are whole files of another kind. Errors: BadInput.
    """
    parameters: dict[str, Any] = {name: yaml.safe_load(Path(path).read_text(encoding="utf-8")) for name, path in files.items()}
    if recipe:
        whole = Recipe.load(recipe).model_dump(mode="json")
        told = {(renamed or {}).get(name, name): whole[name] for name in sections}
        parameters |= {"recipe": recipe, **told} if sections else {"recipe": whole}
    return parameters
