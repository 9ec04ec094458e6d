"""The door of the data steps: what `python -m components collect --config params.yaml --dataset tiny --out DIR` does.

Each step reads its inputs from the folders beside its own: data/tiny/tokens reads data/tiny/documents and data/tiny/tokenizer.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from components.data.versioning import params
from components.schema.config import BadInput
from components.schema.data import DataConfig

# In the order in which they run; each stands in dvc.yaml under the same name.
MODULES = {
    "benchmarks": "decontamination.benchmarks",
    "collect": "reading.collect",
    "clean": "cleaning.clean",
    "filter": "filtering.filter",
    "dedup": "deduplication.dedup",
    "decontaminate": "decontamination.decontaminate",
    "documents": "documents",
    "chats": "dialogue.chats",
    "preferences": "dialogue.preferences",
    "overlap": "decontamination.exposure",
    "tokenizer": "tokenizing.tokenizer",
    "tokens": "tokenizing.pack",
    "mix": "tokenizing.mix",
    "card": "datacard.card",
}


def run_step(step: str, config: DataConfig, folder: Path) -> None:
    """Run one step of a dataset into `folder`. Errors: BadInput."""
    folder.mkdir(parents=True, exist_ok=True)
    import_module(f"components.data.{MODULES[step]}").run(config, folder)


def main(step: str, config_path: Path, dataset: str, out: Path) -> None:
    """Run one step as DVC asks for it. A BadInput is also left where `versions` finds it, since DVC tells only that a command failed."""
    try:
        run_step(step, params.read(config_path, dataset), out)
    except BadInput as error:
        if told := os.environ.get("MODELYARD_STEP_ERROR"):
            Path(told).write_text(str(error), encoding="utf-8")
        raise
