"""From what a person calls a model to its evaluation, its code, and the page in MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.evaluation import evidence
from components.evaluation.comparison.reports import Report
from components.registry import models, tracking
from components.registry.store import client
from components.schema.config import BadInput
from components.schema.recipe import Recipe
from components.schema.records import Record, digest
from flows import compare
from tests.evaluation.evaluated import answers, evaluation, stage
from tests.registry.conftest import checkpoint, empty_database, home  # noqa: F401

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


@pytest.fixture
def world(home: Path) -> dict[str, Any]:  # noqa: F811
    """Two models, each measured once, in a project whose MLflow holds a run for each."""
    made = {}
    for name, scores in (("old", [1, 0] * 10), ("new", [1] * 15 + [0] * 5)):
        commit = {"old": "a", "new": "b"}[name] * 40
        parent = tracking.open_pipeline(
            name,
            digest(name),
            "recipe",
            {"git_commit": commit, "git_patch": "", "git_untracked": [], "installed": [], "python": "3.11.7", "packages": {"torch": "2.13.0"}},
        )
        run = tracking.open_stage(parent, "sft", digest(name), {}, {})
        base = stage(home, "pretrain", {"pretrain": {"steps": len(name), "name": name}, "seed": 0}, {"tokens": "t.dir"})
        model = stage(home, "sft", {"sft": {"steps": 5}, "seed": 0}, {"base": base}, {"mlflow_run_id": run})
        measured = tracking.open_stage(parent, "evaluate", digest(name + "!"), {}, {})
        suites = {"base": {"sums": answers("sums", [0] * 20)}, "chat": {"sums": answers("sums", scores)}}
        folder = evaluation(home, suites, {"base": base, "chat": model}, execution={"mlflow_run_id": measured})
        release = stage(home, "release", {"gate": {}, "role": "chat"}, {"model": model, "report": Record.read(folder).identity})
        made[name] = {"model": model, "base": base, "folder": folder, "release": release, "run": measured}
    return made


def test_a_stages_folder_leads_to_the_evaluation_of_its_model(world: dict[str, Any]) -> None:
    new = world["new"]
    for name in (str(new["folder"]), new["folder"].name, f"{new['folder']}/record.json", f"release-{new['release'][:16]}"):
        assert compare.find(name).folder == new["folder"]
    assert compare.find(f"sft-{new['model'][:16]}") == compare.Found(new["folder"], "chat")
    assert compare.find(f"pretrain-{new['base'][:16]}") == compare.Found(new["folder"], "base")
    assert compare.find(f"{new['folder'].name}#base") == compare.Found(new["folder"], "base")


def test_a_model_that_was_measured_twice_is_taken_from_the_latest(home: Path, world: dict[str, Any]) -> None:  # noqa: F811
    again = evaluation(home, {"chat": {"sums": answers("sums", [1] * 20)}}, {"chat": world["old"]["model"]}, evals={"limit": 20})
    os.utime(again / "record.json", (time.time() + 10, time.time() + 10))
    assert compare.find(f"sft-{world['old']['model'][:16]}").folder == again


def test_a_registered_model_leads_to_the_evaluation_of_its_identity(world: dict[str, Any], checkpoint: Path) -> None:  # noqa: F811
    run = tracking.open_stage(None, "release", "r" * 32, {}, {})
    models.register("tiny", checkpoint, run, {models.IDENTITY: world["old"]["model"]})
    models.set_alias("tiny", "champion", "1")
    assert compare.find("models:/tiny@champion") == compare.find("models:/tiny/1") == compare.Found(world["old"]["folder"], "chat")
    with pytest.raises(BadInput, match=r"models:/tiny/7 does not exist.*models:/tiny@champion"):
        compare.find("models:/tiny/7")


def test_a_registered_model_that_was_measured_elsewhere_is_compared_by_what_went_with_it(world: dict[str, Any], checkpoint: Path) -> None:  # noqa: F811
    old = world["old"]
    run = tracking.open_stage(None, "release", "r" * 32, {}, {})
    evidence.keep(evidence.read(old["folder"], "chat"), checkpoint.parent / "gate")
    models.release("tiny", checkpoint, run, old["model"], {}, "promote", evidence=checkpoint.parent / "gate")
    names = ["models:/tiny@champion", world["new"]["folder"].name]
    here = compare.compare(names, Console(file=StringIO()))
    (old["folder"] / "record.json").unlink()
    elsewhere = compare.compare(names, Console(file=StringIO()))
    suites = [json.loads((folder / "comparison.json").read_text())["suites"] for folder in (here, elsewhere)]
    assert suites[0] == suites[1] and here != elsewhere
    with pytest.raises(BadInput, match="no evaluation in"):
        compare.find("models:/tiny@champion#base")


def test_a_run_and_a_recipe_lead_to_their_evaluation(home: Path, world: dict[str, Any]) -> None:  # noqa: F811
    recipe = Recipe.load(RECIPE, [])
    run = f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}"
    with pytest.raises(BadInput, match=r"was not run here.*Run it first: modelyard run .*tiny.yaml"):
        compare.find(str(RECIPE))
    (home / "runs").mkdir()
    (home / "runs" / f"{run}.json").write_text(json.dumps({"stages": {"evaluate": {"record": str(world["new"]["folder"] / "record.json")}}}))
    for name in (str(RECIPE), run, recipe.name, "latest"):
        assert compare.find(name).folder == world["new"]["folder"]


def test_what_was_never_evaluated_is_refused_with_what_could_be_meant(home: Path, world: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(BadInput, match=r"'nobody' is nothing that was evaluated here. Give a registered model .*Runs here: none yet"):
        compare.find("nobody")
    lonely = stage(home, "sft", {"sft": {"steps": 99}}, {})
    with pytest.raises(BadInput, match=r"no evaluation in .* has measured sft-"):
        compare.find(f"sft-{lonely[:16]}")


def test_a_comparison_says_what_changed_in_the_code_and_stands_in_mlflow(world: dict[str, Any]) -> None:
    out = StringIO()
    folder = compare.compare([world["old"]["folder"].name, world["new"]["folder"].name], Console(file=out, width=200))
    numbers = json.loads((folder / "comparison.json").read_text())
    assert numbers["changes"]["config"] == {"pretrain.name": ["old", "new"]}
    assert numbers["changes"]["code"] == {"git_commit": ["a" * 40, "b" * 40]}
    assert "Git here does not know aaaaaaaaaa and bbbbbbbbbb" in numbers["changes"]["history"][0]
    kept = client().list_artifacts(world["new"]["run"], f"comparisons/{folder.name}")
    assert f"comparisons/{folder.name}/index.html" in {file.path for file in kept}
    assert not client().list_artifacts(world["old"]["run"], "comparisons")
    assert f"{folder}/index.html" in out.getvalue() and "+0.250" in out.getvalue()


def test_the_same_comparison_again_is_the_same_bytes(world: dict[str, Any]) -> None:
    names = [world["old"]["folder"].name, f"{world['new']['folder'].name}#base"]
    first, again = ({path.name: path.read_bytes() for path in compare.compare(names, Console(file=StringIO())).iterdir()} for _ in range(2))
    assert first == again


def test_commits_between_two_models_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def git(*words: str) -> str:
        return subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    commits = []
    for text in ("first", "second", "third"):
        Path("file").write_text(text)
        git("add", "file")
        git("commit", "-q", "-m", text)
        commits.append(git("rev-parse", "HEAD"))
    reports = [_with_code(label, commit) for label, commit in (("old", commits[0]), ("new", commits[2]))]
    lines = list(compare.history(reports))
    assert lines[0] == "new: 2 commits more and 0 fewer than old; 1 files differ"
    assert [line.split()[-1] for line in lines[1:]] == ["third", "second"]
    assert [line.split()[-1] for line in list(compare.history(reports[::-1]))[1:]] == ["third", "second"]


def _with_code(label: str, commit: str) -> Report:
    return Report(label, "chat", Path(), None, None, {"git_commit": commit})  # type: ignore[arg-type]


def test_names_are_short_and_never_the_same() -> None:
    assert compare._labels(["models:/tiny@champion", "/a/b/stages/evaluate-1/", "tiny", "tiny"]) == [
        "models:/tiny@champion",
        "evaluate-1",
        "tiny (1)",
        "tiny (2)",
    ]


def test_a_file_that_is_no_noise_floor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_text('{"suites": 3}')
    with pytest.raises(BadInput, match=r"is no noise floor .*modelyard gate noise"):
        compare._noise(tmp_path / "noise.json")
