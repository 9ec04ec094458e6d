"""Preference pairs from the recipe's sources and the curriculum, in one form: {"prompt": [turns], "chosen", "rejected", "kind"}.

Rows are recognised by shape (`shapes.PREFERENCES` is the table); K ranked answers become pairs that say which ranking they come
from (`pairs`). The split goes by the prompt: all pairs of one prompt lie on one side. Files: see `conversations`.
"""

from __future__ import annotations

from pathlib import Path

from components.data import curriculum
from components.data.dialogue import conversations
from components.data.dialogue.shapes import PREFERENCES
from components.schema.data import DataConfig


def run(config: DataConfig, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl, dropped.jsonl, counts.json. Errors: BadInput for a source of which most rows do not convert."""
    made = curriculum.preferences(config.curriculum) if config.curriculum else ()
    conversations.run("preferences", "pairs", config.preferences, PREFERENCES, made, lambda item: item["prompt"], config, folder)
