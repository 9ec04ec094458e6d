"""From a version back to its sources, read from a real MLflow store and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from components.registry import models
from components.registry.ancestry import trace
from components.registry.tracking import close_stage, open_stage, whole_lineage
from components.schema.config import BadInput
from components.schema.records import File, Record, identity_of
from flows.lineage import notes, picture

ROOT = Path(__file__).parents[2]
TOKENS, CHATS, COLLECT = (letter * 32 + ".dir" for letter in "abc")
LOCK = f"""
schema: '2.0'
stages:
  collect@web:
    cmd: python
    deps: [{{path: components/data/reading, md5: {"d" * 32}.dir}}]
    params:
      params.yaml:
        datasets.web.pins.documents: {{'files:crawl': 0123abcd}}
        datasets.web.curriculum.seed: null
    outs: [{{path: data/web/collect, md5: {COLLECT}, size: 2500000, nfiles: 3}}]
  tokens@web:
    cmd: python
    deps: [{{path: data/web/collect/train, md5: {"e" * 32}.dir}}]
    outs: [{{path: data/web/tokens, md5: {TOKENS}, size: 10, nfiles: 2}}]
  chats@web:
    cmd: python
    params: {{params.yaml: {{datasets.web.curriculum.seed: 5}}}}
    outs: [{{path: data/web/chats, md5: {CHATS}, size: 10, nfiles: 2}}]
"""


def made(stage: str, folder: Path, commit: str | None = "1" * 40, patch: str = "", **inputs: str) -> str:
    """A finished stage's run, as the stage leaves it; gives its identity."""
    identity = identity_of(stage, {"name": stage}, inputs)
    lineage: dict[str, Any] = {
        "git_commit": commit, "git_patch": patch, "git_untracked": [], "installed": ["torch==2.13.0"], "packages": {"torch": "2.13.0"}, "pins": {"dvc.lock": LOCK}, "python": "3.11.7",
    }  # fmt: skip
    run_id = open_stage(None, stage, identity, {}, lineage)
    record = Record(stage=stage, identity=identity, revision=1, config={"seed": 7}, inputs=inputs, files={"model.safetensors": File(md5="f" * 32, size=1000)}, figures={"loss": 1.5})
    (folder / stage).mkdir(exist_ok=True)
    record.write(folder / stage)
    close_stage(run_id, "FINISHED", record.figures, folder / stage / "record.json", record)
    return identity


@pytest.fixture
def released(home: Path, checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """A base model, a chat model, an evaluation of both, and its release; identities by stage."""
    base = made("pretrain", tmp_path, patch="diff --git a/x b/x\n", tokens=TOKENS)
    chat = made("sft", tmp_path, "2" * 40, base=base, chats=CHATS)
    report = made("evaluate", tmp_path, base=base, chat=chat, benchmarks="9" * 32 + ".dir")
    final = made("release", tmp_path, model=chat, report=report)
    run_id = open_stage(None, "release", final, {}, {})
    models.release("tiny", checkpoint, run_id, chat, {}, "promote", {"modelyard.recipe": "tiny"})
    return {"pretrain": base, "sft": chat, "evaluate": report, "release": final}


def test_a_model_is_followed_to_its_raw_sources(released: dict[str, str]) -> None:
    found = trace("models:/tiny@champion")
    root = found.nodes[found.root]
    assert root.facts["uri"] == "models:/tiny/1" and root.facts["aliases"] == ["challenger", "champion"] and root.inputs == {"release": f"stage:{released['release']}"}
    base = found.nodes[f"stage:{released['pretrain']}"]
    assert base.inputs == {"tokens": f"data:{TOKENS}"} and base.facts["git_commit"] == "1" * 40 and base.facts["uncommitted_changes"] and base.facts["seed"] == 7
    assert found.nodes[f"data:{TOKENS}"].inputs == {"collect": f"data:{COLLECT}"}
    collect = found.nodes[f"data:{COLLECT}"]
    assert [found.nodes[id].facts for id in collect.inputs.values()] == [{"pin": "0123abcd"}] and collect.facts["bytes"] == 2_500_000
    assert [found.nodes[id].facts for id in found.nodes[f"data:{CHATS}"].inputs.values()] == [{"seed": 5}]


def test_the_stages_behind_a_model_come_in_the_order_in_which_they_ran(released: dict[str, str]) -> None:
    found = trace("models:/tiny/1")
    assert found.stage_of_model().name == "sft" and [node.name for node in found.behind(found.stage_of_model())] == ["pretrain", "sft"]
    assert json.loads(json.dumps(found.plain()))["root"] == "model:tiny/1"


def test_what_weakens_a_lineage_is_said(released: dict[str, str]) -> None:
    assert notes(trace("models:/tiny/1")) == [
        f"Its stages were made by 2 commits: {'1' * 10}, {'2' * 10}.",
        "Made with uncommitted changes, which are kept as a patch with the run: pretrain.",
    ]


def test_a_part_that_the_lock_does_not_name_is_shown_by_its_hash(released: dict[str, str]) -> None:
    found = trace("models:/tiny/1")
    node = found.nodes[f"data:{'9' * 32}.dir"]
    assert (node.kind, node.name, node.inputs) == ("data", "benchmarks", {})


def test_the_picture_is_whole_xml_with_a_box_for_each_node_under_all_that_it_was_made_of(released: dict[str, str]) -> None:
    found = trace("models:/tiny/1")
    drawn = ElementTree.fromstring(picture(found))
    space = "{http://www.w3.org/2000/svg}"
    rows = {group.find(f"{space}text").text: int(group.find(f"{space}rect").get("y")) for group in drawn.iter(f"{space}g")}
    assert len(rows) == len(found.nodes)
    for node in found.nodes.values():
        assert all(rows[found.nodes[other].name] < rows[node.name] for other in node.inputs.values())


def test_a_model_without_records_is_said(home: Path, checkpoint: Path) -> None:
    run_id = open_stage(None, "release", "1" * 32, {}, {})
    models.release("tiny", checkpoint, run_id, "1" * 32, {}, "promote")
    with pytest.raises(BadInput, match=r"keeps no record of the stage that made models:/tiny/1"):
        trace("models:/tiny/1").stage_of_model()


def test_a_patch_with_bytes_that_are_not_text_is_kept_as_it_was(home: Path) -> None:
    patch = "diff --git a/x b/x\n+caf\udce9\r\n"
    run_id = open_stage(None, "sft", "1" * 32, {}, {"git_commit": "1" * 40, "git_patch": patch, "git_untracked": ["n"], "installed": [], "pins": {}})
    assert whole_lineage(run_id)["git_patch"] == patch


def test_lineage_is_printed_in_the_terminal_and_drawn(released: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "lineage", "models:/tiny@champion", "--picture", str(tmp_path / "l.svg")],
        cwd=ROOT, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "files:crawl  0123abcd" in done.stdout and "model: sft" in done.stdout and done.stdout.splitlines()[-1].endswith("Next: modelyard reproduce models:/tiny/1")
    assert (tmp_path / "l.svg").read_text().startswith("<svg")
