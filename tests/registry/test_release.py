"""The release stage: the gate with a real registry behind it, from one champion to the next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import stages
from components.registry import models
from components.registry.store import client
from components.schema import jobs
from components.schema.gate import GateConfig, Policy
from components.schema.jobs import Job
from components.schema.records import Artifact, File, Record, file_md5
from flows.gate import evidence_of

BEFORE = np.repeat([1.0, 0.0], [600, 400])
BETTER = np.repeat([1.0, 0.0], [670, 330])  # 70 items won, none lost
FEW, OTHERS = np.repeat([1.0, 0.0], [30, 10]), np.repeat([1.0, 0.0, 1.0, 0.0], [27, 3, 2, 8])  # 2 won, 3 lost


def evaluated(name: str, scores: np.ndarray) -> Artifact:
    """An evaluate stage's folder as the harness leaves it."""
    job = Job(stage="evaluate", config={"name": name})
    path = job.folder / "items/chat/quiz.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"task": "quiz", "id": range(len(scores)), "item": [f"{i:05d}" for i in range(len(scores))], "score": scores, "overlap": 0.0}).to_parquet(path)
    stderr = float(scores.std(ddof=1) / np.sqrt(len(scores)))
    figures = {"scores": {"chat": {"quiz": {"metric": "acc", "score": float(scores.mean()), "stderr": stderr, "items": len(scores), "subjects": {str(i): {"score": 0.5} for i in range(500)}}}}}
    files = {"items/chat/quiz.parquet": File(md5=file_md5(path), size=path.stat().st_size)}
    Record(stage="evaluate", identity=job.identity, revision=1, config=job.config, inputs={}, files=files, figures=figures).write(job.folder)
    return job.output


def release(checkpoint: Path, name: str, scores: np.ndarray, policy: Policy = Policy()) -> dict[str, Any]:
    """Run the whole stage; its record's figures."""
    job = jobs.release(GateConfig(model_name="tiny", policy=policy), {"chat": Artifact(path=str(checkpoint), identity=name)}, evaluated(name, scores), jobs.Run())
    stages.run("release", job)
    return Record.read(job.folder).figures


def test_a_challenger_meets_the_champion_item_by_item(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "one", BEFORE)
    assert first["action"] == "promote" and first["reason"].startswith("first release") and models.champion("tiny")["version"] == "1"
    shutil.rmtree(home / "stages")  # what goes with the version is enough
    second = release(checkpoint, "two", BETTER)
    (quiz,) = second["comparisons"]
    assert second["action"] == "promote" and (quiz["items"], quiz["won"], quiz["lost"], quiz["verdict"]) == (1000, 70, 0, "better")
    assert evidence_of("models:/tiny@champion", None).scores["quiz"]["score"] == pytest.approx(0.67)  # what `modelyard gate decide` reads
    assert models.champion("tiny") == {"version": "2", "identity": "two", "scores": models.champion("tiny")["scores"]}
    assert client().get_model_version("tiny", "2").tags["modelyard.champion_before"] == "1"
    assert release(checkpoint, "three", BEFORE)["action"] == "hold" and models.champion("tiny")["version"] == "2"


def test_a_champion_whose_items_are_gone_is_met_by_its_score_alone(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "one", BEFORE)
    for folder in (home / "mlflow").rglob("gate"):
        shutil.rmtree(folder)
    figures = release(checkpoint, "two", BETTER)
    (quiz,) = figures["comparisons"]
    assert quiz["items"] is None and "compared as independent samples, since the champion's items are gone" in figures["reason"]


def test_a_model_on_which_too_little_is_known_waits_until_a_person_speaks(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "one", FEW)
    figures = release(checkpoint, "two", OTHERS)
    assert figures["action"] == "ask" and models.champion("tiny")["version"] == "1"
    assert client().get_model_version("tiny", "2").tags["modelyard.action"] == "ask"
    models.settle(figures["uri"], True, "ann")
    assert models.champion("tiny")["version"] == "2"


def test_releasing_the_champion_again_by_another_policy_leaves_it_champion(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "one", BEFORE)
    job_again = jobs.release(GateConfig(model_name="tiny", policy=Policy(margin=0.1)), {"chat": Artifact(path=str(checkpoint), identity="one")}, Job(stage="evaluate", config={"name": "one"}).output, jobs.Run())
    stages.run("release", job_again)
    assert Record.read(job_again.folder).figures["reason"] == "it is the champion already" and models.champion("tiny")["version"] == "1"


def test_a_release_killed_after_the_alias_moved_decides_the_same_when_run_again(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(checkpoint, "one", BEFORE)

    def dies(*args: Any) -> None:
        raise KeyboardInterrupt

    report = evaluated("two", BETTER)
    job = jobs.release(GateConfig(model_name="tiny"), {"chat": Artifact(path=str(checkpoint), identity="two")}, report, jobs.Run())
    with monkeypatch.context() as patched:
        patched.setattr(client(), "set_model_version_tag", dies)
        with pytest.raises(KeyboardInterrupt):
            stages.run("release", job)
    assert models.champion("tiny")["version"] == "2"
    stages.run("release", job)
    figures = Record.read(job.folder).figures
    assert figures["champion_before"] == "1" and figures["comparisons"][0]["won"] == 70
