"""Releases, against a real MLflow registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from components.registry import models
from components.registry.ancestry import trace
from components.registry.store import client, experiment_id
from components.registry.tracking import open_stage
from components.schema.config import BadInput, Unavailable

SCORES = {"mini_gsm8k": {"metric": "exact_match,strict-match", "score": 0.5, "stderr": 0.05}}


def release(checkpoint: Path, identity: str, action: str = "promote", scores: dict[str, Any] = SCORES, evidence: Path | None = None, before: str = "none") -> str:
    run_id = open_stage(None, "release", identity, {}, {})
    tags = {"modelyard.reason": "because", "modelyard.champion_before": before}
    return models.release("tiny", checkpoint, run_id, identity, scores, action, tags, {"policy": (checkpoint, identity)}, evidence)


def test_a_release_is_a_version_with_its_files_tags_and_run(home: Path, checkpoint: Path) -> None:
    assert models.champion("tiny") is None
    version = release(checkpoint, "1" * 32)
    assert models.champion("tiny") == {"version": version, "identity": "1" * 32, "scores": SCORES}
    found = client().get_model_version_by_alias("tiny", "challenger")
    assert str(found.version) == version
    assert found.tags["modelyard.reason"] == "because" and found.tags["modelyard.action"] == "promote"
    run = client().get_run(found.run_id)
    (output,) = run.outputs.model_outputs
    assert found.source == f"models:/{output.model_id}"
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == ["1" * 32]
    folder = models.fetch("models:/tiny@champion")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    assert models.fetch(f"models:/tiny/{version}") == folder


def test_a_held_challenger_leaves_the_champion_where_it_is(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "1" * 32)
    second = release(checkpoint, "2" * 32, "hold")
    assert first != second and models.champion("tiny")["version"] == first
    assert str(client().get_model_version_by_alias("tiny", "challenger").version) == second
    assert client().get_model_version("tiny", second).tags["modelyard.action"] == "hold"
    assert release(checkpoint, "3" * 32) == models.champion("tiny")["version"] != first


def test_a_registry_that_fails_is_never_taken_for_one_without_a_champion(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the gate would promote whatever comes while the server is away."""
    release(checkpoint, "1" * 32)

    def away(*args: Any) -> None:
        raise MlflowException("API request to http://registry failed")

    monkeypatch.setattr(client(), "get_model_version_by_alias", away)
    with pytest.raises(BadInput, match="does not answer"):
        models.champion("tiny")


@pytest.mark.parametrize(
    "asked", [lambda: models.fetch("models:/tiny/1"), lambda: models.rollback("tiny", "ann"), lambda: models.settle("models:/tiny/1", True, "ann"), lambda: models.champions("tiny"), lambda: trace("models:/tiny@champion")],
    ids=["fetch", "rollback", "settle", "history", "lineage"],
)  # fmt: skip
def test_whatever_is_asked_of_a_server_that_is_away_says_so_in_a_sentence(asked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match=r"MLflow at http://127.0.0.1:9 does not answer .*Start it"):
        asked()


@pytest.mark.parametrize("step", ["log_model_artifacts", "finalize_logged_model", "log_outputs", "create_registered_model", "create_model_version", "set_registered_model_alias"])
def test_a_release_killed_at_any_step_registers_once_when_run_again(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def dies(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client(), step, dies)
        with pytest.raises(KeyboardInterrupt):
            release(checkpoint, "1" * 32)
    assert release(checkpoint, "1" * 32) == release(checkpoint, "1" * 32)
    assert len(client().search_model_versions("name = 'tiny'")) == 1
    assert len(client().search_logged_models([experiment_id()])) == 1
    assert (models.fetch("models:/tiny@champion") / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_a_name_that_does_not_exist_is_answered_with_what_there_is(home: Path, checkpoint: Path) -> None:
    with pytest.raises(BadInput, match=r"models:/tiny@champion does not exist.*No model is registered yet: `modelyard run` registers one"):
        models.fetch("models:/tiny@champion")
    release(checkpoint, "1" * 32, "hold")
    with pytest.raises(BadInput, match=r"models:/tiny@champion does not exist.*There is: models:/tiny@challenger, models:/tiny/1$"):
        models.fetch("models:/tiny@champion")
    with pytest.raises(BadInput, match=r"models:/other/1 does not exist.*Registered models: tiny$"):
        models.fetch("models:/other/1")
    with pytest.raises(BadInput, match=r"'tiny' names no model.*Write models:/NAME@ALIAS or models:/NAME/VERSION"):
        models.fetch("tiny")


def test_a_tag_too_long_for_mlflow_is_refused_before_anything_is_registered(home: Path, checkpoint: Path) -> None:
    with pytest.raises(BadInput, match=r"tag modelyard.scores of tiny has .* MLflow keeps 5000"):
        release(checkpoint, "1" * 32, scores={str(i): SCORES["mini_gsm8k"] for i in range(100)})
    assert client().search_registered_models() == []


def test_what_decided_goes_with_a_version_and_comes_back(home: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "evidence.json").write_text("{}")
    version = release(checkpoint, "1" * 32, evidence=folder)
    assert (models.evidence("tiny", version) / "evidence.json").read_text() == "{}"
    many = {str(i): SCORES["mini_gsm8k"] for i in range(100)}
    assert models.champion("tiny")["version"] == version and models.evidence("tiny", release(checkpoint, "4" * 32, scores=many, evidence=folder)) is not None
    assert models.evidence("tiny", release(checkpoint, "2" * 32)) is None and models.evidence("tiny", "99") is None
    for stored in (home / "mlflow").rglob("gate"):
        (stored / "evidence.json").unlink()
    assert models.evidence("tiny", version) is None  # gone with the store's files: an answer, not an error


def test_a_version_that_waits_is_settled_once_by_a_person(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "1" * 32)
    waiting = release(checkpoint, "2" * 32, "ask", before=first)
    assert models.champion("tiny")["version"] == first
    assert models.settle(f"models:/tiny/{waiting}", True, "ann", "looks right") == f"models:/tiny/{waiting} is the champion now; before it was {first}"
    assert models.champion("tiny")["version"] == waiting
    tags = client().get_model_version("tiny", waiting).tags
    assert (tags["modelyard.action"], tags["modelyard.settled_by"], tags["modelyard.settled_why"]) == ("promote", "ann", "looks right")
    with pytest.raises(BadInput, match=r"models:/tiny/2 was promoted already, so there is nothing to settle. Waiting: none"):
        models.settle("models:/tiny@champion", True, "ann")


def test_a_rejected_version_stays_registered_and_is_held(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "1" * 32)
    waiting = release(checkpoint, "2" * 32, "ask", before=first)
    with pytest.raises(BadInput, match=r"models:/tiny/1 was promoted already.*Waiting: models:/tiny/2"):
        models.settle("models:/tiny/1", False, "ann")
    assert models.settle("models:/tiny@challenger", False, "ann") == f"models:/tiny/2 is held; the champion stays {first}"
    assert models.champion("tiny")["version"] == first and client().get_model_version("tiny", waiting).tags["modelyard.action"] == "hold"


def test_a_champion_that_nobody_compared_with_is_not_replaced_unawares(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "1" * 32)
    waiting = release(checkpoint, "2" * 32, "ask", before=first)
    release(checkpoint, "3" * 32)
    with pytest.raises(BadInput, match=r"compared models:/tiny/2 with champion 1, and by now the champion is 3: nobody has compared these two.*--anyway"):
        models.settle(f"models:/tiny/{waiting}", True, "ann")
    models.settle(f"models:/tiny/{waiting}", True, "ann", anyway=True)
    assert models.champion("tiny")["version"] == waiting


def test_an_approval_killed_halfway_is_finished_when_given_again(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = release(checkpoint, "2" * 32, "ask", before=release(checkpoint, "1" * 32))

    def dies(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client(), "set_model_version_tag", dies)
        with pytest.raises(KeyboardInterrupt):
            models.settle(f"models:/tiny/{waiting}", True, "ann")
    models.settle(f"models:/tiny/{waiting}", True, "ann")
    assert client().get_model_version("tiny", waiting).tags["modelyard.action"] == "promote"
