"""The noise floor: by hand from made-up scores, and from a microscopic model that is evaluated again and again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluation import harness
from components.evaluation.noise import AS_CONFIGURED, Seen, Variant, floor_of, run, shuffled, variants_of
from components.schema.evaluation import EvalConfig
from components.schema.gate import NoiseConfig, NoiseFloor
from tests.evaluation.conftest import World

EVALS = EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), fewshot={"mini_gsm8k": 1}, max_new_tokens=4, perplexity_sequences=1, batch_size=8)


def seen(*scores: float) -> dict[str, Seen]:
    return {"a": Seen(float(np.mean(scores)), pd.Series(scores, index=pd.MultiIndex.from_tuples([("t", str(i), 0) for i in range(len(scores))])))}


def test_the_variances_of_what_was_varied_add_up() -> None:
    floor = floor_of({
        Variant(AS_CONFIGURED): seen(1, 0, 0, 1), Variant("seed", 1): seen(1, 1, 0, 1), Variant("seed", 2): seen(0, 0, 0, 1), Variant("order", 1): seen(1, 0, 0, 1),
    }).suites["a"]  # fmt: skip
    assert floor.scores == (0.5, 0.75, 0.25, 0.5)
    assert floor.by == pytest.approx({"seed": 0.25, "order": 0.0})  # by hand: the deviation of 0.5, 0.75, 0.25
    assert floor.spread == pytest.approx(0.25) and floor.repeats == 3  # all of it is the seed's, of which there were three
    assert floor.flips == 0.5  # items 0 and 1


def test_two_equal_sources_of_noise_have_both_their_degrees_of_freedom() -> None:
    floor = floor_of({Variant(AS_CONFIGURED): seen(0, 0), Variant("seed", 1): seen(0, 1), Variant("batch_size", 1): seen(1, 0)}).suites["a"]
    assert floor.spread == pytest.approx(math.sqrt(2) * 0.5 / math.sqrt(2)) and floor.repeats == 3


def test_a_value_that_is_the_configured_one_is_not_evaluated_twice() -> None:
    config = NoiseConfig(seeds=(1, 2), batch_sizes=(8, 1), orders=(5,))
    assert [v.name for v in variants_of(config, EVALS, seed=2, retrained=1)] == ["as_configured", "seed-1", "batch_size-1", "order-5", "retraining-0"]
    with pytest.raises(ValueError, match="varies nothing"):
        NoiseConfig(seeds=(), batch_sizes=(), orders=())


def test_shuffled_benchmarks_hold_the_same_rows_in_another_order(world: World, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/rows.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(20)))
    pd.DataFrame({"n": range(20)}).to_parquet(tmp_path / "given/rows.parquet")
    (tmp_path / "given/rows.parquet").chmod(0o444)
    one, two, other = (shuffled(tmp_path / "given", tmp_path / name, seed) for name, seed in (("one", 1), ("two", 1), ("other", 2)))
    for read in (lambda folder: [json.loads(line)["n"] for line in (folder / "rows.jsonl").read_text().splitlines()], lambda folder: pd.read_parquet(folder / "rows.parquet")["n"].tolist()):
        assert sorted(read(one)) == read(tmp_path / "given") == list(range(20)) and read(one) == read(two) != read(other)


def test_a_model_is_evaluated_again_and_again_and_a_killed_run_goes_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NoiseConfig(seeds=(1, 2), batch_sizes=(1,), orders=(1,))
    official, evaluated = harness.run, []

    def dies_at_the_third(evals: EvalConfig, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(evals.batch_size)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return official(evals, *args, **kwargs)

    monkeypatch.setattr(harness, "run", dies_at_the_third)
    given = (config, EVALS, "chat", world.model, world.benchmarks, world.tokens, tmp_path, lambda event: None, 7, [world.other_model])
    with pytest.raises(KeyboardInterrupt):
        run(*given)
    outcome = run(*given)
    assert evaluated == [8, 8, 8, 8, 1, 8, 8]  # two stand, the third is done again
    floor = NoiseFloor.model_validate_json((tmp_path / "noise.json").read_text())
    assert set(floor.suites) == {"mini_gsm8k", "mini_mmlu"} and floor.measured["role"] == "chat"
    assert outcome.figures["suites"]["mini_mmlu"] == floor.suites["mini_mmlu"].model_dump(mode="json")
    quiz = floor.suites["mini_mmlu"]
    assert len(quiz.scores) == 6 and set(quiz.by) == {"seed", "batch_size", "order", "retraining"}
    assert quiz.by["batch_size"] == pytest.approx(np.std([quiz.scores[0], quiz.scores[3]], ddof=1))
    assert quiz.spread == pytest.approx(math.sqrt(sum(spread**2 for spread in quiz.by.values())))
