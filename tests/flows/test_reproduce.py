"""A released model made again by the command, from a whole micro line: bit-identical, and with each kind of difference named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SHORT = ("reward=null", "align=null", "evals.suites=[mini_mmlu]")  # data, pretrain, sft, evaluate, release
UNTRACKED = "SCALE = 0.5\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A release from a dirty tree: the optimizer's rate is scaled by a new file that was never committed. Its data is pushed, and then gone from here."""
    project = Project.copy_to(tmp_path_factory.mktemp("reproduce") / "project")
    (project.folder / "components/training/scale.py").write_text(UNTRACKED)
    optim = project.folder / "components/training/optim.py"
    optim.write_text(optim.read_text() + "\nfrom components.training.scale import SCALE  # noqa: E402, F401\n")
    summary = json.loads(project.run("run", *project.recipe(*SHORT), "--json", timeout_s=1500).stdout.splitlines()[-1])
    assert summary["release"]["uri"] == "models:/modelyard-tiny/1"
    project.run("data", "push", timeout_s=300)
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / "data/tiny")
    shutil.rmtree(project.folder / ".modelyard/stages")
    return project


def reproduced(project: Project, *words: str, code: int = 0) -> dict[str, Any]:
    return json.loads(project.run("reproduce", "models:/modelyard-tiny@champion", *words, "--json", code=code, timeout_s=1500).stdout.splitlines()[-1])


def test_a_model_of_a_dirty_tree_whose_data_is_in_the_remote_alone_comes_out_bit_for_bit(project: Project) -> None:
    (project.folder / "components/training/scale.py").unlink()
    project.git("checkout", "-q", "components/training/optim.py", "params.yaml", "dvc.lock")
    report = reproduced(project)
    assert report["identical"] and not report["differences"] and set(report["files"]) == {"pretrain", "sft"}
    assert report["notes"] == [] and not any(report["circumstances"].values())
    assert not list((project.folder / ".modelyard/reproductions").glob("*/code")) and project.git("worktree", "list").count("\n") == 1


def test_another_seed_is_named(project: Project) -> None:
    report = reproduced(project, "--seed", "2", code=1)
    assert not report["identical"] and report["differences"][0]["stage"] == "pretrain" and report["circumstances"]["seed"][0].startswith("2 in pretrain, was 1")


def test_other_code_is_named_with_its_files(project: Project) -> None:
    optim = project.folder / "components/training/schedules.py"
    optim.write_text(optim.read_text() + "\n# changed\n")
    report = reproduced(project, "--code", "here")
    assert report["identical"] and "components/training/schedules.py" in report["circumstances"]["code"][0]


def test_lineage_needs_nothing_but_mlflow(project: Project, tmp_path: Path) -> None:
    told = project.run("lineage", "models:/modelyard-tiny@champion", "--picture", str(tmp_path / "l.svg")).stdout
    assert "notes.txt" in told and "uncommitted changes" in told and (tmp_path / "l.svg").stat().st_size > 5000
