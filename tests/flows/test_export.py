"""`modelyard export` as a user types it: a released model becomes folders that others read, and fewer bits are measured by the same stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.schema.records import file_md5
from tests.flows.project import Project


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_release_is_exported_checked_measured_and_described(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'modelyard[quantize]'")
    project = Project.copy_to(tmp_path / "project")
    project.run("run", *project.recipe(), timeout_s=900)
    uri, out = "models:/modelyard-tiny@champion", tmp_path / "out"
    said = project.run("export", uri, "--to", "int8", "--out", str(out / "int8"), timeout_s=600).stdout
    assert "mini_mmlu" in said and "export: run" in said and said.count("evaluate: run") == 2, "both models are measured"
    told = json.loads((out / "int8/export.json").read_text())
    assert told["model"] == "models:/modelyard-tiny/1" and told["files"].keys() == {path.name for path in (out / "int8").iterdir()} - {"export.json"}
    assert all(file_md5(out / "int8" / name) == file["md5"] for name, file in told["files"].items())
    page = (out / "int8/README.md").read_text()
    assert "| suite | original | int8 | difference |" in page and "held-out perplexity" in page and "| tokens@tiny |" in page and "PSF" not in page

    again = project.run("export", uri, "--to", "int8", "--out", str(out / "int8")).stdout
    assert "export: reuse" in again and "evaluate: run" not in again and (out / "int8/README.md").read_text() == page
    assert "hello" not in project.run("chat", str(out / "int8"), "--max-new-tokens", "4", input="hello\n").stderr

    project.run("export", uri, "--to", "gguf", "--out", str(out / "gguf"))
    assert "inside, as llama.cpp's qwen2" in (out / "gguf/README.md").read_text() and (out / "gguf/model.gguf").is_file()

    refused = project.run("export", uri, "--to", "int4", "--group-size", "128", "--out", str(out / "int4"), code=2).stderr
    assert "128" in refused and not (out / "int4").exists()
    (out / "mine").mkdir()
    (out / "mine/thesis.txt").write_text("mine")
    refused = project.run("export", uri, "--to", "card", "--out", str(out / "mine"), code=2).stderr
    assert "exists and is no earlier export" in refused and [path.name for path in (out / "mine").iterdir()] == ["thesis.txt"]
