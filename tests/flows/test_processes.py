"""Several training processes as a user starts them: the same record as one, one message where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.copy_to(tmp_path_factory.mktemp("processes") / "project")
    made.run("stage", "data", *made.recipe())
    return made


def curve(project: Project) -> list[float]:
    (folder,) = (path for path in (project.folder / ".modelyard/stages").glob("pretrain-*") if path.is_dir())
    losses = [json.loads(line)["loss"] for line in (folder / "curve.jsonl").read_text().splitlines()]
    record = json.loads((folder / "record.json").read_text())
    assert set(record["files"]) >= {"model.safetensors", "curve.jsonl"} and not (folder / "work").exists()
    folder.rename(folder.with_name(f"kept-{len(list(folder.parent.iterdir()))}"))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_make_the_record_of_one(project: Project, strategy: str) -> None:
    project.run("stage", "pretrain", *project.recipe())
    alone = curve(project)
    done = project.run("stage", "pretrain", *project.recipe(), "--on", "processes=2", "--on", f"strategy={strategy}", "--on", "micro_batch_size=1")
    together = curve(project)
    assert together == pytest.approx(alone, rel=1e-3) and "bits/byte" in done.stdout


@pytest.mark.slow
def test_what_the_processes_refuse_is_said_once_by_the_stage(project: Project) -> None:
    done = project.run("stage", "pretrain", *project.recipe("pretrain.precision=fp16"), "--on", "processes=2", "--on", "accelerator=cpu", code=2)
    assert done.stderr.count("precision=fp16 needs a GPU") == 1 and "Traceback" not in done.stderr
    assert not list((project.folder / ".modelyard/stages").glob("pretrain-*/record.json"))
    assert Path(project.folder / "dvc.lock").exists()
