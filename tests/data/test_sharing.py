"""Data that several machines share: what one clone made, another one fetches by what it was made from, with a small line of real DVC steps and a folder as the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.repo import Repo

from components.data.versioning import sharing, versions

STEPS = ("first", "second")
LINE = """
stages:
  first:
    cmd: cat in.txt in.txt > first.txt && echo first >> made.txt
    deps: [in.txt]
    outs: [first.txt]
  second:
    cmd: cat first.txt first.txt > second.txt && echo second >> made.txt
    deps: [first.txt]
    outs: [second.txt]
"""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "store"


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "a word\n") -> None:
    """A clone: its source, and no dvc.lock."""
    folder.mkdir()
    (folder / "dvc.yaml").write_text(LINE)
    (folder / "in.txt").write_text(text)
    Repo.init(str(folder), no_scm=True).close()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODELYARD_HOME", str(folder / "home"))


def brought(may_make: bool = True) -> list[str]:
    """What became of each step."""
    with versions._repository() as repo:
        shared = sharing.Shared(repo, lambda event: None, may_make)
        verdicts = [versions._reproduce_one(repo, step, shared) for step in STEPS]
        shared.push(STEPS)
    return verdicts


def test_a_clone_that_never_heard_of_it_fetches_what_another_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path / "one", monkeypatch)
    assert brought() == ["made", "made"] and brought() == ["current", "current"]
    enter(tmp_path / "two", monkeypatch)
    assert brought(may_make=False) == ["fetched", "fetched"]
    assert Path("second.txt").read_text() == "a word\n" * 4 and not Path("made.txt").exists()
    assert brought(may_make=False) == ["current", "current"]


def test_what_no_machine_made_is_made_only_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path / "one", monkeypatch)
    brought()
    enter(tmp_path / "two", monkeypatch, "another word\n")
    with pytest.raises(sharing.NotThere):
        brought(may_make=False)
    assert not Path("first.txt").exists() and not Path("made.txt").exists()
    assert brought() == ["made", "made"] and Path("made.txt").read_text().split() == ["first", "second"]


def test_a_store_that_is_away_costs_a_note(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_text("no folder")
    enter(tmp_path / "one", monkeypatch)
    said: list[str] = []
    with versions._repository() as repo:
        shared = sharing.Shared(repo, lambda event: said.append(event["text"]))
        assert [versions._reproduce_one(repo, step, shared) for step in STEPS] == ["made", "made"]
        shared.push(STEPS)
    assert any("this data stays on this machine for now" in line for line in said)
