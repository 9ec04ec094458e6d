"""The prompts of the probes, as YAML: written for this project, in plain and safe words, and short enough to be read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def prompts(name: str) -> dict[str, Any]:
    """What stands in <name>.yaml."""
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
