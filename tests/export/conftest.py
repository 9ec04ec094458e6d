"""One thread, and one small Llama for all that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export import models


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model(tmp_path_factory.mktemp("llama"))
