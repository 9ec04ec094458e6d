"""A small dataset made once, by the steps themselves, for the tests that read files."""

import json
from pathlib import Path

import pytest

from components.data import engine
from components.data.steps import MODULES, run_step
from components.schema.data import DataConfig

HUB = Path(__file__).parents[2].parent / "shared/real/hub"


@pytest.fixture(scope="session")
def config() -> DataConfig:
    return DataConfig.model_validate(
        {
            "name": "small",
            "curriculum": {"documents": 5000, "chats": 3000, "preferences": 1500, "benchmark_items": 60},
            "benchmarks": ["mini_gsm8k", "mini_mmlu", "mini_humaneval"],
            "tokenizer": {"vocab_size": 700},
            "heldout_fraction": 0.1,
        }
    )


@pytest.fixture(scope="session")
def dataset(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/<name> with all six outputs."""
    root = tmp_path_factory.mktemp("data") / config.name
    for step in MODULES:
        run_step(step, config, root / step)
    return root


def documents(dataset: Path, side: str) -> list[dict]:
    """The rows of documents/train or documents/heldout."""
    from components.data import shards

    return [row for path in shards.paths(dataset / "documents" / side) for table in shards.read(path) for row in table.to_pylist()]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def _processes_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data is worked on without starting processes; tests that ask for two are to get them."""
    monkeypatch.setattr(engine, "SMALL_BYTES", 0)
