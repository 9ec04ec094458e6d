"""The estimate under a plan, as lines of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.cost.estimate import Estimate
from components.schema.cost import Usage
from components.schema.jobs import Run, line
from components.schema.recipe import Recipe, Resources
from flows import forecast

ROOT = Path(__file__).parents[2]
WORK = Usage(seconds=7200, cpu_seconds=3600, kwh=0.5, kwh_estimated=0.5)


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resources:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    (tmp_path / "prices.yaml").write_text("{currency: EUR, source: by hand, per_cpu_hour: 2.0}")
    return Resources(prices=str(tmp_path / "prices.yaml"), budget=3.0, accelerator="cpu")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load(ROOT / "recipes/tiny.yaml")


def test_a_plan_whose_data_is_not_made_yet_still_has_jobs_to_estimate(recipe: Recipe, resources: Resources) -> None:
    jobs = line(recipe, forecast.placeholder(), Run())
    rows = {name: {"action": "run"} for name in ("data", *jobs)}
    found = forecast.forecast(recipe, resources, rows, jobs)
    assert list(found) == ["data", *jobs]
    assert all(one.used is None for one in found.values())
    assert found["sft"].source == "no earlier sft here whose cost was kept"


def test_what_is_known_is_summed_and_what_is_not_is_named(recipe: Recipe, resources: Resources) -> None:
    found = {"data": forecast.estimate.nothing("its result stands"), "pretrain": Estimate(used=WORK, source="pretrain-a: 2 times its work"), "sft": Estimate(used=None, source="no earlier sft")}
    text = forecast.lines(recipe, resources, found)
    assert text[0].split() == ["Estimate", "hours", "CPU-h", "kWh", "EUR", "from"]
    assert text[2].split() == ["pretrain", "2", "1", "0.5", "2", "pretrain-a:", "2", "times", "its", "work"]
    assert text[3].split() == ["sft", "?", "?", "?", "?", "no", "earlier", "sft"]
    assert text[4].split() == ["in", "all", "2", "1", "0.5", "2", "and", "sft,", "of", "which", "nothing", "is", "known"]
    assert text[-1] == "  Budget: 3.00 EUR, of which 0 EUR is spent and 2.00 EUR is expected: enough for it"


def test_a_budget_that_will_not_do_is_told_before_anything_runs(recipe: Recipe, resources: Resources) -> None:
    found = {"pretrain": Estimate(used=WORK.scaled(2), source="pretrain-a: 4 times its work")}
    assert forecast.lines(recipe, resources, found)[-1].endswith("4.00 EUR is expected: not enough for it: the run would stop on the way, with a checkpoint")


def test_where_everything_stands_there_is_nothing_to_pay(recipe: Recipe, resources: Resources) -> None:
    assert forecast.lines(recipe, resources, {"sft": forecast.estimate.nothing("its result stands")}) == ["Estimate: nothing is left to run, so nothing is to be paid"]
