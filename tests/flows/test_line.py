"""The whole line as a user runs it: once through, again for nothing, and after damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components import slots
from tests.flows.project import Project

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("line") / "project")


@pytest.fixture(scope="module")
def first(project: Project) -> dict[str, Any]:
    return project.summary()


def test_text_becomes_a_registered_model(first: dict[str, Any]) -> None:
    assert list(first["stages"]) == ["data", "pretrain", "sft", "reward", "ppo", "evaluate", "release"]
    assert {row["status"] for row in first["stages"].values()} == {"ran"}
    assert first["release"]["uri"] == "models:/modelyard-tiny/1" and first["release"]["action"] == "promote" and first["release"]["reason"]
    assert set(first["scores"]) == {"base", "chat", "policy"} and set(first["scores"]["policy"]) == {"mini_gsm8k", "mini_mmlu", "mini_humaneval"}


def test_every_record_stands_on_disk(first: dict[str, Any]) -> None:
    for name, row in first["stages"].items():
        record = json.loads(Path(row["record"]).read_text())
        assert record["stage"] == name and row["seconds"] >= 0


def test_the_same_recipe_again_reruns_nothing_and_waits_for_nobody(project: Project, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_SLOT_LOCKS", project.env()["MODELYARD_SLOT_LOCKS"])
    with slots.held(slots.Need("cpu", slots.cpu_slots())):  # others train on all of the host
        again = project.summary()
    assert {row["status"] for row in again["stages"].values()} == {"reused"}
    assert {n: r["hash"] for n, r in again["stages"].items()} == {n: r["hash"] for n, r in first["stages"].items()}
    assert again["release"] == first["release"]


def test_the_plan_says_what_a_change_would_rerun_and_runs_nothing(project: Project, first: dict[str, Any]) -> None:
    before = sorted((project.folder / ".modelyard" / "stages").iterdir())
    plan = json.loads(project.run("run", *project.recipe("align.kl_coef=0.5"), "--plan", "--json").stdout.splitlines()[-1])
    assert {n: r["action"] for n, r in plan["stages"].items()} == {
        "data": "reuse", "pretrain": "reuse", "sft": "reuse", "reward": "reuse", "ppo": "run", "evaluate": "run", "release": "run",
    }  # fmt: skip
    assert sorted((project.folder / ".modelyard" / "stages").iterdir()) == before


def test_mlflow_holds_one_run_per_stage_under_one_parent_with_its_lineage(project: Project, first: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(first["mlflow"])
    experiment = client.get_experiment_by_name("modelyard")
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1 and {r.data.tags["mlflow.parentRunId"] for r in children} == {parents[0].info.run_id}
    assert sorted(r.data.tags["modelyard.stage"] for r in children) == sorted(first["stages"])
    assert {r.info.status for r in runs} == {"FINISHED"}
    pretraining = next(r for r in children if r.data.tags["modelyard.stage"] == "pretrain")
    tokens = json.loads(Path(first["stages"]["pretrain"]["record"]).read_text())["inputs"]["tokens"]
    assert tokens in {i.dataset.digest for i in pretraining.inputs.dataset_inputs}


def test_the_registered_model_carries_both_aliases_and_loads_with_plain_transformers(project: Project, first: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient
    from transformers import AutoModelForCausalLM, AutoTokenizer

    client = MlflowClient(first["mlflow"], first["mlflow"])
    assert client.get_model_version_by_alias("modelyard-tiny", "champion").version == client.get_model_version_by_alias("modelyard-tiny", "challenger").version
    folder = Path(first["stages"]["ppo"]["record"]).parent
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size >= len(tokenizer) and tokenizer.chat_template


def test_prefect_kept_the_history_of_every_stage(project: Project, first: dict[str, Any]) -> None:
    import sqlite3

    with sqlite3.connect(project.folder / ".modelyard" / "prefect" / "prefect.db") as database:
        names = [row[0] for row in database.execute("select f.name from flow_run r join flow f on f.id = r.flow_id where r.state_type = 'COMPLETED'")]
        keys = {row[0] for row in database.execute("select key from artifact")}
    assert {"train-and-release", "prepare-data", "pretrain", "finetune", "fit-reward-model", "align", "evaluate", "release"} <= set(names)
    assert {"data", "scores", "release", "pretrain-progress"} <= keys


def test_show_prints_the_report_again(project: Project, first: dict[str, Any]) -> None:
    shown = project.run("show", first["run"]).stdout
    for word in ("pretrain", "mini_gsm8k", "models:/modelyard-tiny/1", "Try next"):
        assert word in shown


def test_models_are_compared_by_name_and_the_page_stands_in_mlflow(project: Project, first: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    numbers = json.loads(project.run("compare", f"{first['run']}#base", "models:/modelyard-tiny@champion", "--json").stdout)
    assert numbers["labels"] == [f"{first['run']}#base", "models:/modelyard-tiny@champion"]
    for suite, row in numbers["suites"].items():
        scores = [first["scores"][role][suite]["score"] for role in ("base", "policy")]
        assert [score["score"] for score in row["scores"]] == scores
        assert row["against"][1]["items"] == row["scores"][0]["items"]  # item by item
    assert numbers["changes"]["config"]["stages"] == ["pretrain", "pretrain, sft, reward, ppo"] and not numbers["changes"]["code"]
    (page,) = (project.folder / ".modelyard" / "comparisons").glob("*/index.html")
    run = json.loads(Path(first["stages"]["evaluate"]["record"]).read_text())["execution"]["mlflow_run_id"]
    assert MlflowClient(first["mlflow"]).list_artifacts(run, f"comparisons/{page.parent.name}")


def test_a_name_that_was_never_evaluated_is_refused_with_one_message(project: Project, first: dict[str, Any]) -> None:
    done = project.run("compare", "latest", "nobody", code=2)
    assert done.stderr.startswith("error: compare: 'nobody'") and first["run"] in done.stderr and done.stderr.count("\n") == 1


def test_the_released_model_answers_in_the_terminal(project: Project, first: dict[str, Any]) -> None:
    done = project.run("chat", "models:/modelyard-tiny@champion", "--max-new-tokens", "5", input="Tell me about the tide.\n")
    assert done.stdout.count("\n") >= 1 and "error" not in done.stderr


@pytest.mark.parametrize("model", ["models:/nobody@champion", "models:/modelyard-tiny/99", "no/such/folder"])
def test_a_model_that_does_not_exist_is_refused_with_one_message(project: Project, first: dict[str, Any], model: str) -> None:
    done = project.run("chat", model, code=2, input="hello\n")
    assert done.stderr.startswith("error:") and done.stderr.count("\n") <= 3 and "Traceback" not in done.stderr


def test_a_corrupted_checkpoint_is_noticed_and_only_its_stage_is_redone(project: Project, first: dict[str, Any]) -> None:
    weights = Path(first["stages"]["sft"]["record"]).parent / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    again = project.summary()
    assert [name for name, row in again["stages"].items() if row["status"] == "ran"] == ["sft"]
    assert again["stages"]["sft"]["hash"] == first["stages"]["sft"]["hash"]
    assert any(p.name.startswith("sft-") and "damaged" in p.name for p in (project.folder / ".modelyard" / "stages").iterdir())
