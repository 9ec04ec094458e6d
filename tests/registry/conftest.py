"""An embedded store of its own for each test session: made once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.registry import store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store._make_database(path)
    return path


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MODELYARD_HOME whose database is there already."""
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home/mlflow").mkdir(parents=True)
    shutil.copyfile(empty_database, tmp_path / "home/mlflow/mlflow.db")
    return tmp_path / "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A transformers folder as far as the registry looks: files."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder
