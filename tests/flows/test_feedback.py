"""`modelyard feedback critic` as a user types it: an endpoint judges, DVC keeps the pairs, a recipe reads them."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
import yaml

from components.data.steps import run_step
from components.schema.data import DataConfig
from tests.feedback.conftest import make_model, rule
from tests.feedback.server import serving
from tests.flows.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("feedback") / "project")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("chat"))


def test_pairs_of_an_endpoint_become_a_version_that_a_recipe_reads(project: Project, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.folder
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tell me about {i}."}) + "\n" for i in range(12)))
    key = secrets.token_hex(16)
    project.environment = {"JUDGE_KEY": key}
    with serving(rule()) as server:
        asked = {
            "name": "judged", "policy": str(chat_model), "constitution": "recipes/feedback/constitution.yaml", "prompts": "prompts.jsonl", "max_new_tokens": 8,
            "critic": {"model": "judge", "url": server.url, "key_variable": "JUDGE_KEY"},
        }  # fmt: skip
        (folder / "feedback.yaml").write_text(yaml.safe_dump(asked))
        first = project.run("feedback", "critic", "feedback.yaml")
        requests = len(server.requests)
        again = project.run("feedback", "critic", "feedback.yaml", "--set", "critic.concurrency=1")
        assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {key}"}
        assert requests == len(server.requests) == 1 + 4 * 12, "the second time everything stands"
    assert "12 pairs of 12 prompts in data/feedback/judged" in first.stdout and "feedback: run:" in first.stdout
    assert "feedback: reuse:" in again.stdout and "12 pairs of 12 prompts" in again.stdout
    tracked = project.git("status", "--short", "-uall")
    assert "data/feedback/judged.dvc" in tracked and "pairs.jsonl" not in tracked, "git keeps the version, DVC the rows"
    left = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert not [path for path in left if key.encode() in path.read_bytes()]

    monkeypatch.chdir(folder)
    source = {"kind": "files", "path": "data/feedback/judged/preferences"}
    data = DataConfig.model_validate({"name": "next", "sources": [{"kind": "files", "path": "notes.txt"}], "preferences": [source], "heldout_fraction": 0.2})
    run_step("preferences", data, folder / "data/next/preferences")
    rows = [json.loads(line) for side in ("train", "heldout") for line in (folder / f"data/next/preferences/{side}.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and {row["chosen"] for row in rows} == {"Somebody who likes soup."} and {row["kind"] for row in rows} == {source["path"]}


def test_bad_input_ends_with_one_message_and_nothing_is_asked(project: Project, chat_model: Path) -> None:
    (project.folder / "bad.yaml").write_text(
        yaml.safe_dump(
            {"name": "bad", "policy": str(chat_model), "critic": {"model": str(chat_model)}, "constitution": "gone.yaml", "prompts": "prompts.jsonl"}
        )
    )
    for sets, words in (
        ((), "constitution names gone.yaml, which is no file here"),
        (("--set", "policy=nowhere"), "feedback: policy: 'nowhere' is no folder here"),
        (("--set", "critic.modle=x"), "Did you mean `model`"),
    ):
        done = project.run("feedback", "critic", "bad.yaml", *sets, code=2)
        assert words in done.stderr and "Traceback" not in done.stderr
