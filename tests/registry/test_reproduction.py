"""Making a model again: the place it is done in, what is compared, and what is named where something differs. The whole line: tests/flows/test_reproduce.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.registry import judgement, reproduction
from components.registry.installing import without_build
from components.registry.judgement import ORDER, Report
from components.registry.lineage import PINS, lineage
from components.registry.reproduction import Place, Plan, Request
from components.registry.working_tree import working_tree
from components.schema import storage
from components.schema.config import BadInput
from components.schema.records import File, Record, file_md5

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    return subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, a change and a new file; the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("rate = 1\n")
    (folder / "dvc.lock").write_text("old\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "train.py").write_text("rate = 2\n")
    (folder / "new.py").write_text("new\n")
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    return folder


def record(stage: str, seed: int = 1, **md5: str) -> Record:
    files = {name.replace("__", "."): File(md5=value, size=1) for name, value in md5.items()}
    return Record(stage=stage, identity=stage, revision=1, config={"seed": seed}, inputs={}, files=files, figures={})


def plan(project: Path, request: Request = Request(model="models:/tiny/1"), **records: Record) -> Plan:
    """A plan as if every stage had been made by the project as it stands now."""
    then = json.loads(json.dumps({**lineage(project), "threads": 1, "resources": {"threads": 0, "processes": 1, "budget": 5.0}}))
    records = records or {"sft": record("sft", model__safetensors="a", config__json="b")}
    return Plan(request, "models:/tiny/1", "run", records, dict.fromkeys(records, then), list(records)[-1])


def judged(made: Plan, place: Place, tmp_path: Path, **records: Record) -> Report:
    folders = {}
    for stage, one in records.items():
        (tmp_path / "made" / stage).mkdir(parents=True, exist_ok=True)
        one.write(tmp_path / "made" / stage)
        folders[stage] = tmp_path / "made" / stage
    return judgement.judged(made, place, folders, (), 1.0)


# ---------------------------------------------------------------- the place


def test_the_checkout_holds_the_recorded_code_and_pins_and_not_what_stands_here_now(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    for name in ("train.py", "new.py", "dvc.lock"):
        (project / name).write_text("something else by now\n")
    place = reproduction.prepared(made, tmp_path / "again")
    assert ((place.code / "train.py").read_text(), (place.code / "new.py").read_text(), (place.code / "dvc.lock").read_text()) == ("rate = 2\n", "new\n", "schema: '2.0'\n")
    assert working_tree(place.code, PINS).patch == made.made["git_patch"] and place.python == sys.executable
    reproduction.remove(tmp_path / "again")
    assert not (tmp_path / "again").exists() and git(project, "worktree", "list").count("\n") == 1


def test_one_that_was_cut_off_goes_on_and_one_of_another_request_begins_anew(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    place = reproduction.prepared(made, tmp_path / "again")
    (place.folder / "home").mkdir()
    (place.folder / "home" / "half-done").touch()
    reproduction.prepared(made, tmp_path / "again")
    assert (place.folder / "home" / "half-done").exists()
    reproduction.prepared(plan(project, Request(model="models:/tiny/1", seed=2)), tmp_path / "again")
    assert not (place.folder / "home" / "half-done").exists()


def test_a_removal_that_was_cut_off_is_finished_by_the_next_one(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(project)
    (reproduction.prepared(made, tmp_path / "again").folder / "venv/lib").mkdir(parents=True)

    def killed(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        reproduction.remove(tmp_path / "again")
    place = reproduction.prepared(made, tmp_path / "again")
    assert (place.code / "train.py").read_text() == "rate = 2\n" and not (place.folder / "venv").exists()
    (place.folder / "reproduction").replace(place.folder / "kept aside")
    assert reproduction.remove(place.folder) is None and (place.code / "train.py").exists()  # without its mark it is not ours


def test_a_folder_with_somebody_elses_files_is_not_touched(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds something that is no reproduction, so it was not touched"):
        reproduction.prepared(plan(project), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_commit_that_git_does_not_have_is_said_with_what_to_do(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    made.made["git_commit"] = "0" * 40
    with pytest.raises(BadInput, match=r"does not have commit 000000000000, which made models:/tiny/1.*git fetch --all"):
        reproduction.prepared(made, tmp_path / "again")


def test_the_processes_there_get_the_recorded_variables_and_none_of_this_projects_services(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    made = plan(project)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ours")
    monkeypatch.setenv("MODELYARD_STORE", "s3://ours")
    environment = reproduction.prepared(made, tmp_path / "again").environment
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and environment["MODELYARD_HOME"] == str(tmp_path / "again/home")
    assert "MLFLOW_TRACKING_URI" not in environment and "MODELYARD_STORE" not in environment


def test_a_stage_gets_the_threads_it_really_had_and_no_budget(project: Path) -> None:
    assert reproduction.resources(plan(project), "sft") == {"threads": 1, "processes": 1}
    assert reproduction.resources(plan(project, Request(model="models:/tiny/1", threads=3)), "sft")["threads"] == 3


def test_a_folders_content_is_hashed_as_dvc_does_it(project: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=project, check=True)
    folder = project / "data/tiny/tokens"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "naïve.txt").write_text("ü")
    (folder / "a.bin").write_bytes(bytes(range(256)))
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", str(folder)], cwd=project, check=True)
    md5 = next(line.split()[-1] for line in (folder.parent / "tokens.dvc").read_text().splitlines() if "md5:" in line and ".dir" in line)
    place = Place(tmp_path, project, sys.executable)
    assert reproduction.content(place, "tokens@tiny", md5) is None
    (folder / "a.bin").write_bytes(b"flipped")
    assert reproduction.content(place, "tokens@tiny", md5).endswith(f"and was {md5[:12]}")
    assert file_md5(folder / "a.bin")


# ---------------------------------------------------------------- the verdict


def test_the_same_files_are_reproduced(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    report = judged(made, reproduction.prepared(made, tmp_path / "again"), tmp_path, **made.records)
    assert report.identical and report.first is None and report.verdict == "models:/tiny/1 is reproduced: 2 files of 1 stages are bit-identical."
    assert tuple(report.circumstances) == ORDER


def test_another_file_is_named_with_its_stage_and_weights_first(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    report = judged(made, reproduction.prepared(made, tmp_path / "again"), tmp_path, sft=record("sft", model__safetensors="z", config__json="y", extra="x"))
    assert not report.identical and [(one.file, one.why) for one in report.differences] == [
        ("model.safetensors", "md5 z, was a"), ("config.json", "md5 y, was b"), ("extra", "was not there"),
    ]  # fmt: skip
    assert "Nothing else differs that was recorded" in report.verdict


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"git_commit": "3" * 40}, "code: commit"),
        ({"git_patch": "diff --git a/train.py b/train.py\n-rate = 1\n+rate = 9\n"}, "code: uncommitted changes in other files: new.py"),
        ({"git_left_out": [{"path": "big.bin", "bytes": 5_000_000, "why": "larger than 2097152 bytes"}]}, "code: big.bin (5,000,000 bytes) was there and was not kept (larger than 2097152 bytes)"),
        ({"python": "3.12.1"}, "environment: Python 3.11"),
        ({"environment": {"MKL_CBWR": "AVX2"}}, "environment: MKL_CBWR=(unset), was AVX2"),
        ({"cpu": "Another CPU"}, "hardware: CPU"),
        ({"gpus": ["NVIDIA H200"]}, "hardware: GPUs none, was ['NVIDIA H200']"),
    ],
)
def test_what_is_not_as_it_was_is_named(project: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    made = plan(project)
    place = reproduction.prepared(made, tmp_path / "again")
    made.made.update(change)
    report = judged(made, place, tmp_path, **made.records)
    assert report.first.startswith(said) and report.identical and f"although {said}" in report.verdict


def test_a_package_of_another_version_is_named_with_both(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    place = reproduction.prepared(made, tmp_path / "again")
    made.made["installed"] = [line.replace("torch==2.13", "torch==2.12") for line in made.made["installed"]]
    report = judged(made, place, tmp_path, **made.records)
    assert report.first.startswith("environment: packages: torch 2.13") and "was torch" not in report.first and ", was 2.12" in report.first


def test_packages_that_are_gone_are_counted_and_those_of_another_version_named_before_them(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    place = reproduction.prepared(made, tmp_path / "again")
    made.made["installed"] = [*(line.replace("torch==2.13", "torch==2.12") for line in made.made["installed"]), "yak==6.3.0", "zoo==1.0"]
    told = judged(made, place, tmp_path, **made.records).circumstances["environment"]
    assert told[0].startswith("packages: torch 2.13") and told[1] == "2 packages that were there are not installed: yak 6.3.0, zoo 1.0"
    fresh = made._replace(request=Request(model="models:/tiny/1", fresh_environment=True))
    assert "since the project itself does not ask for them: yak" in judged(fresh, place, tmp_path, **made.records).circumstances["environment"][1]


def test_another_seed_and_number_of_threads_are_named_and_data_comes_first(project: Path, tmp_path: Path) -> None:
    made = plan(project, Request(model="models:/tiny/1", seed=2, threads=4))
    report = judged(made, reproduction.prepared(made, tmp_path / "again"), tmp_path, sft=record("sft", 2, model__safetensors="z", config__json="b"))
    assert report.circumstances["environment"] == ("4 threads in sft, was 1",) and report.circumstances["seed"] == ("2 in sft, was 1",)
    assert report.first == "environment: 4 threads in sft, was 1"
    with_data = report.model_copy(update={"circumstances": {**report.circumstances, "data": ("tokens@tiny is 1, and was 2",)}})
    assert with_data.first.startswith("data: ")


def test_local_builds_are_asked_for_by_their_version_alone() -> None:
    assert without_build("torch==2.13.0+cpu") == "torch==2.13.0" and without_build("numpy==2.4.6") == "numpy==2.4.6"


def test_a_program_that_a_killed_reproduction_waited_for_ends_with_it(tmp_path: Path) -> None:
    """An orphan of dvc would hold the lock of the folder in which the next start goes on."""
    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    waiting = subprocess.Popen([sys.executable, "-c", f"import sys; from components.registry import children; children.run([sys.executable, '-c', {program!r}])"], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    waiting.kill()
    waiting.wait()
    while _alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_nothing_is_left_of_a_worktree_whose_folder_was_deleted_by_hand(project: Path, tmp_path: Path) -> None:
    made = plan(project)
    shutil.rmtree(reproduction.prepared(made, tmp_path / "again").folder)
    assert (reproduction.prepared(made, tmp_path / "again").code / "train.py").read_text() == "rate = 2\n"


@pytest.mark.slow
def test_data_that_lies_only_in_the_store_that_machines_share_is_brought_from_there(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELYARD_STORE", str(tmp_path / "store"))
    (project / "dvc.lock").unlink()
    (project / "dvc.yaml").write_text("stages:\n  tokens:\n    foreach: [x]\n    do:\n      cmd: mkdir -p data/x/tokens && echo 1 2 3 > data/x/tokens/all.txt\n      outs: [data/x/tokens]\n")
    Repo.init().close()
    git(project, "add", ".")
    git(project, "commit", "-qm", "with data")
    with closing(Repo(".", config=storage.dvc_options())) as repo:
        repo.reproduce("tokens@x")
        repo.push()
    (out,) = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["tokens@x"]["outs"]
    read = Record(stage="sft", identity="sft", revision=1, config={}, inputs={"tokens": out["md5"]}, files={}, figures={})
    made = plan(project, sft=read)
    shutil.rmtree(project / ".dvc" / "cache")
    place = reproduction.prepared(made, tmp_path / "again")
    assert reproduction.fetched(made, place) == ()
    assert (place.code / "data/x/tokens/all.txt").read_text() == "1 2 3\n"
