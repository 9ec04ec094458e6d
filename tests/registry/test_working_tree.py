"""The code beside the commit, as a patch: what is in it, what is left out, and that nothing is touched."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from components.registry import working_tree as module
from components.registry.working_tree import git, working_tree


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A checkout with one commit of two files."""
    folder = tmp_path / "code"
    folder.mkdir()
    run(folder, "init", "-q")
    (folder / "a.py").write_text("one\n")
    (folder / "dvc.lock").write_text("pins\n")
    run(folder, "add", ".")
    run(folder, "commit", "-qm", "first")
    return folder


def run(folder: Path, *arguments: str, **options: Any) -> bytes:
    named = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    return subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, **options).stdout


def restored(code: Path, patch: str) -> Path:
    """The commit in another clone, with the patch on it."""
    copy = code.parent / "copy"
    run(code.parent, "clone", "-q", str(code), str(copy))
    assert git(copy, "apply", "--binary", "--whitespace=nowarn", "-", feed=patch) is not None
    return copy


def test_new_files_binary_files_and_odd_names_come_back_byte_for_byte(code: Path) -> None:
    (code / "a.py").write_bytes(b"two \t\r\n\xff\xe9 not UTF-8\n")
    (code / "new folder").mkdir()
    (code / "new folder" / "naïve *.py").write_text("new, no newline at the end")
    (code / "model.bin").write_bytes(bytes(range(256)) * 8)
    found = working_tree(code)
    copy = restored(code, found.patch)
    for name in ("a.py", "new folder/naïve *.py", "model.bin"):
        assert (copy / name).read_bytes() == (code / name).read_bytes()
    assert found.left_out == [] and set(found.untracked) == {"new folder/naïve *.py", "model.bin"}


def test_looking_changes_nothing_in_the_repository(code: Path) -> None:
    (code / "new.py").write_text("x")
    (code / "a.py").write_text("staged\n")
    run(code, "add", "a.py")
    before = (run(code, "status", "--porcelain"), run(code, "count-objects"), (code / ".git/index").read_bytes())
    assert "new.py" in working_tree(code).patch
    assert (run(code, "status", "--porcelain"), run(code, "count-objects"), (code / ".git/index").read_bytes()) == before


def test_what_is_large_or_looks_like_a_secret_is_named_and_left_out(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_FILE_BYTES", 100)
    (code / ".env").write_text("PASSWORD=hunter2")
    (code / "corpus.txt").write_text("x" * 101)
    (code / "small.py").write_text("x")
    found = working_tree(code)
    assert {one["path"]: (one["bytes"], one["why"]) for one in found.left_out} == {".env": (16, "looks like a secret"), "corpus.txt": (101, "larger than 100 bytes")}
    assert "hunter2" not in found.patch and "xxx" not in found.patch and "small.py" in found.patch


def test_new_files_that_are_too_much_together_are_left_out_and_changes_stay(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_PATCH_BYTES", 1000)
    (code / "a.py").write_text("two\n")
    (code / "b.py").write_text("y" * 900)
    (code / "c.py").write_text("z" * 900)
    found = working_tree(code)
    assert [one["path"] for one in found.left_out] == ["b.py", "c.py"] and "+two" in found.patch and "yyy" not in found.patch


def test_files_that_are_kept_in_another_way_stay_out_of_the_patch(code: Path) -> None:
    (code / "dvc.lock").write_text("other pins\n")
    (code / "params.yaml").write_text("new\n")
    assert working_tree(code, ("dvc.lock", "params.yaml")).patch == "" and "other pins" in working_tree(code).patch


def test_a_folder_within_a_repository_is_told_and_the_patch_covers_the_whole(code: Path) -> None:
    inner = code / "inner"
    inner.mkdir()
    (inner / "b.py").write_text("b\n")
    (code / "a.py").write_text("two\n")
    found = working_tree(inner)
    assert found.prefix == "inner/"
    copy = restored(code, found.patch)
    assert (copy / "inner/b.py").read_text() == "b\n" and (copy / "a.py").read_text() == "two\n"


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_tree(tmp_path).commit is None
