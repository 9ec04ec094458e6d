"""Bad input ends before compute is spent, with one message that says what, where and what to do.

Recipes that cannot be are in tests/schema/test_recipe.py, sources that cannot be read in tests/data; these are the ones
that only show when the command runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("bad") / "project")


# What was tried: (arguments after `modelyard`, words of the one message)
TRIED: dict[str, tuple[list[str], list[str]]] = {
    "a recipe that does not exist": (["run", "recipes/none.yaml"], ["recipes/none.yaml does not exist", "recipes/tiny.yaml"]),
    "an unknown key": (["run", "recipes/tiny.yaml", "--set", "sft.stepz=3"], ["sft.stepz", "Did you mean `steps`"]),
    "a stage that does not exist": (["stage", "finetune", "recipes/tiny.yaml"], ["'finetune' is not a stage", "sft"]),
    "a stage before its inputs": (["stage", "sft", "recipes/tiny.yaml"], ["sft", "modelyard stage data"]),
    "a run that was never made": (["show", "nothing"], ["no run called 'nothing'"]),
    "a source file that is missing": (["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.sources=[{kind: files, path: gone.txt}]"], ["gone.txt"]),
    "text that is not UTF-8": (["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.sources=[{kind: files, path: latin1.txt}]"], ["latin1.txt", "not_utf8"]),
    "an empty corpus": (
        ["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.curriculum=null", "--set", "data.benchmarks=[]", "--set", "evals.suites=[]",
         "--set", "data.sources=[{kind: files, path: empty.txt}]", "--set", "data.chats=[{kind: files, path: chats.jsonl}]", "--set", "data.preferences=[{kind: files, path: equal.jsonl}]"],
        ["empty"],
    ),
    "a pair whose sides are equal": (["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.preferences=[{kind: files, path: equal.jsonl}]"], ["equal.jsonl", "1", "equal"]),
    "a hub id that does not exist": (["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.sources=[{kind: hub, id: nobody/nothing}]"], ["nobody/nothing"]),
    "a package that is not installed": (["run", "recipes/tiny.yaml", "--set", "data.name=x", "--set", "data.sources=[{kind: installed, packages: [nopackage]}]"], ["nopackage"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TRIED, ids=lambda c: c)
def test_bad_input_ends_with_one_message_before_any_training(project: Project, case: str) -> None:
    (project.folder / "latin1.txt").write_bytes("café".encode("latin-1") * 10)
    (project.folder / "empty.txt").write_text("")
    (project.folder / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    (project.folder / "equal.jsonl").write_text('{"prompt": "a", "chosen": "same", "rejected": "same"}\n')
    project.environment = {"MODELYARD_HUB_MIRROR": str(project.folder / "mirror")}
    (project.folder / "mirror").mkdir(exist_ok=True)
    words, expected = TRIED[case]
    done = project.run(*words, code=2)
    message = done.stderr[done.stderr.index("error:") :]
    for word in expected:
        assert word in message, message
    assert "Traceback" not in done.stderr
    assert not list((project.folder / ".modelyard" / "stages").glob("pretrain*")) if (project.folder / ".modelyard" / "stages").exists() else True


def test_outside_a_project_the_command_says_where_to_go(project: Project, tmp_path: Path) -> None:
    recipe = project.folder / "recipes" / "tiny.yaml"
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "flows.cli", "run", str(recipe)], cwd=tmp_path, env={**project.env(), "PYTHONPATH": str(project.folder)}, capture_output=True, text=True)
    assert done.returncode == 2 and "no dvc.yaml" in done.stderr
