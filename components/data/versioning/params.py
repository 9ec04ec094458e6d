"""params.yaml read back: what a data step is to do.

    datasets:
      tiny:
        sources: [...]           the DataConfig, without its name; of sources only what is not the default
        curriculum: {...}        every value null where there is no curriculum, since DVC wants each parameter to exist
        pins: {documents: {installed:stdlib: python 3.11.2}, chats: {}, ...}

`pins.py` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.schema.config import BadInput
from components.schema.data import DataConfig

PATH = Path("params.yaml")


def load(path: Path | None = None) -> dict[str, Any]:
    """The datasets of params.yaml by name."""
    path = path or PATH
    return ((yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}).get("datasets") or {}


def read(path: Path, name: str) -> DataConfig:
    """One dataset of params.yaml as the config it was written from. Errors: BadInput."""
    datasets = load(path)
    if name not in datasets:
        raise BadInput(f"params: {path} holds no dataset {name!r}, so there is nothing to make. It holds: {', '.join(datasets) or 'none'}")
    raw = {key: value for key, value in datasets[name].items() if key != "pins"}
    if not any(value is not None for value in raw["curriculum"].values()):
        raw["curriculum"] = None
    return DataConfig.model_validate({"name": name, **raw})
