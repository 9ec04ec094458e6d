"""The stage contract around a stage's work: what is refused before it, and what a launcher hears."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from components import launch, surroundings
from components.schema.config import BadInput
from components.schema.jobs import Job
from components.schema.records import Artifact, File, Record, file_md5


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def a_job(inputs: dict[str, Artifact]) -> Job:
    return Job(stage="sft", config={"sft": {}, "seed": 0}, inputs=inputs)


def test_a_full_disk_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(BadInput, match=r"disk: .* has 0\.00 GiB free and sft may write .*MODELYARD_HOME"):
        surroundings.check_disk(a_job({}))


def test_an_input_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"sft: its input `base` \(.*nowhere\) does not exist.*modelyard run"):
        surroundings.check_inputs(a_job({"base": Artifact(path=str(tmp_path / "nowhere"), identity="x")}))


def test_a_corrupted_input_never_trains_on() -> None:
    base = Job(stage="pretrain", config={}, inputs={})
    base.folder.mkdir(parents=True)
    weights = base.folder / "model.safetensors"
    weights.write_bytes(b"weights")
    files = {weights.name: File(md5=file_md5(weights), size=7)}
    Record(stage="pretrain", identity=base.identity, revision=1, config={}, inputs={}, files=files, figures={}).write(base.folder)
    weights.write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"`base` is damaged: .*model\.safetensors has other bytes.*the damaged stage is redone"):
        surroundings.check_inputs(a_job({"base": base.output}))


def test_a_stage_that_refuses_its_job_tells_the_launcher_one_message() -> None:
    heard: list[dict[str, Any]] = []
    job = Job(stage="sft", config={"sft": {}, "seed": 0}, inputs={"base": Artifact(path="/nowhere/at/all", identity="x")})
    with pytest.raises(BadInput, match=r"its input `base` \(/nowhere/at/all\) does not exist"):
        launch.launch(job, heard.append)


def test_a_stage_that_dies_without_a_word_is_reported_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(launch.StageDied, match=r"no-such-stage ended with code 2[\s\S]*invalid choice"):
        launch.call("no-such-stage", {})


def test_data_of_one_project_is_made_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    entered = threading.Event()

    def second() -> None:
        with surroundings.data_alone():
            entered.set()

    with surroundings.data_alone():
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        assert not entered.wait(0.5)
    assert entered.wait(10)
    thread.join()
    assert "another run is making data" in capsys.readouterr().out
