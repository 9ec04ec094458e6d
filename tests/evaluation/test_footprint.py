"""What a model costs: counted in its files, and timed one answer at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from components.evaluation import footprint
from components.models import generate
from tests.evaluation.conftest import World


def test_size_is_what_the_files_hold_and_nothing_else_is_looked_at(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros(1, np.float32)}, tmp_path / "model-2.safetensors")
    found = footprint.measure(tmp_path, ["size.bytes", "probes.x"])
    assert found == {"size": {"parameters": 23, "bytes": sum(path.stat().st_size for path in tmp_path.iterdir())}}


def test_the_parameters_of_a_saved_model_are_those_that_transformers_counts(world: World) -> None:
    assert footprint.size(world.model)["parameters"] == AutoModelForCausalLM.from_pretrained(world.model).num_parameters()


def test_latency_is_for_each_token_of_whole_answers_one_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    official, asked, clock = generate.generate, [], iter(range(1000))

    def watched(model: Any, prompts: list[list[int]], **options: Any) -> Any:
        answers = official(model, prompts, **options)
        asked.append((len(prompts), len(prompts[0]), len(answers[0])))
        return answers

    monkeypatch.setattr(generate, "generate", watched)
    monkeypatch.setattr(footprint, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))  # one second between two looks
    assert footprint.latency(world.model) == pytest.approx(1000 / footprint.NEW_TOKENS)
    assert asked == [(1, footprint.PROMPT_TOKENS, footprint.NEW_TOKENS)] * (footprint.ROUNDS + 1)
