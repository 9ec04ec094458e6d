"""The gate in the whole line: a second model meets the first one item by item, and the noise floor is measured and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flows.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("gate") / "project")


@pytest.fixture(scope="module")
def first(project: Project) -> dict[str, Any]:
    return project.summary()


def test_a_second_model_is_compared_item_by_item_and_waits_for_a_person(project: Project, first: dict[str, Any]) -> None:
    release = project.summary("align.kl_coef=0.5")["release"]
    items = {c["suite"]: c["items"] for c in release["comparisons"]}
    assert items == {suite: score["items"] for suite, score in first["scores"]["policy"].items()}
    assert release["action"] == "ask" and release["champion_before"] == "1"  # two items a task tell nothing
    assert "modelyard approve models:/modelyard-tiny/2" in project.run("show", "latest").stdout
    assert project.run("approve", release["uri"], "--why", "it is a test").stdout == "models:/modelyard-tiny/2 is the champion now; before it was 1\n"
    assert "was promoted already" in project.run("reject", release["uri"], code=2).stderr


def test_the_noise_floor_is_measured_once_and_named_in_the_recipe(project: Project, first: dict[str, Any]) -> None:
    said = project.run("gate", "noise", *project.recipe()).stdout
    assert "noise: run" in said and "Next: in the recipe, gate.noise: recipes/noise/tiny.json" in said
    floor = json.loads((project.folder / "recipes/noise/tiny.json").read_text())
    assert set(floor["suites"]) == set(first["scores"]["policy"]) and all(len(s["scores"]) == 9 for s in floor["suites"].values())
    assert "noise: reuse" in project.run("gate", "noise", *project.recipe()).stdout
    again = project.summary("gate.noise=recipes/noise/tiny.json")
    assert [name for name, row in again["stages"].items() if row["status"] == "ran"] == ["release"]
    assert json.loads(Path(again["stages"]["release"]["record"]).read_text())["config"]["gate"]["noise"]["suites"].keys() == floor["suites"].keys()
