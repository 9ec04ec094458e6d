"""Who is champion, given back: against a real MLflow registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.registry import models
from components.registry.store import client
from components.schema.config import BadInput
from tests.registry.test_models import release


def champion() -> str:
    return models.champion("tiny")["version"]


def test_the_champion_before_comes_back_with_who_and_why(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "1" * 32)
    release(checkpoint, "2" * 32)
    assert models.rollback("tiny", "ann", "it swears") == "models:/tiny/1 is the champion again; models:/tiny/2 was rolled back"
    assert champion() == "1" and models.fetch("models:/tiny@champion").is_dir()
    tags = client().get_model_version("tiny", "2").tags
    assert (tags["modelyard.action"], tags["modelyard.rolled_back_by"], tags["modelyard.rolled_back_why"]) == ("rolled_back", "ann", "it swears")
    assert [(move["version"], move["how"], move["who"]) for move in models.champions("tiny")] == [("1", "gate", "the gate"), ("2", "gate", "the gate"), ("1", "rollback", "ann")]


def test_rolled_back_twice_goes_back_two_steps_and_not_to_and_fro(home: Path, checkpoint: Path) -> None:
    for number in "123":
        release(checkpoint, number * 32)
    models.rollback("tiny", "ann")
    models.rollback("tiny", "ann")
    assert champion() == "1"
    with pytest.raises(BadInput, match=r"models:/tiny/1 is the first champion that is known, so the champion stays 1\..*--to VERSION, one of 1, 2, 3$"):
        models.rollback("tiny", "ann")
    release(checkpoint, "4" * 32)
    assert champion() == "4"
    models.rollback("tiny", "ann")
    assert champion() == "1"


def test_a_version_can_be_named_and_brought_back_forward(home: Path, checkpoint: Path) -> None:
    for number in "123":
        release(checkpoint, number * 32)
    models.rollback("tiny", "ann", to="1")
    models.rollback("tiny", "ann", "it was right after all", to="3")
    assert champion() == "3" and client().get_model_version("tiny", "3").tags["modelyard.action"] == "promote"
    with pytest.raises(BadInput, match=r"models:/tiny/3 is the champion already"):
        models.rollback("tiny", "ann", to="3")
    with pytest.raises(BadInput, match=r"models:/tiny/9 does not exist, so the champion stays 3"):
        models.rollback("tiny", "ann", to="9")


def test_a_model_without_a_champion_is_said(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "1" * 32, "hold")
    with pytest.raises(BadInput, match=r"tiny has no champion, so there is nothing to roll back.*models:/tiny/1"):
        models.rollback("tiny", "ann")


def test_a_model_from_before_moves_were_kept_goes_back_by_its_own_tag(home: Path, checkpoint: Path) -> None:
    first = release(checkpoint, "1" * 32)
    release(checkpoint, "2" * 32, before=first)
    for move in list(client().get_registered_model("tiny").tags):
        client().delete_registered_model_tag("tiny", move)
    models.rollback("tiny", "ann")
    assert champion() == first


@pytest.mark.parametrize("step", ["set_model_version_tag", "set_registered_model_tag", "set_registered_model_alias"])
def test_a_rollback_killed_at_any_step_is_finished_when_given_again(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    release(checkpoint, "1" * 32)
    release(checkpoint, "2" * 32)

    def dies(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client(), step, dies)
        with pytest.raises(KeyboardInterrupt):
            models.rollback("tiny", "ann")
    models.rollback("tiny", "ann")
    assert champion() == "1" and len(models.champions("tiny")) == 3
    with pytest.raises(BadInput, match="first champion that is known"):
        models.rollback("tiny", "ann")


def test_what_was_rolled_back_is_nothing_to_settle(home: Path, checkpoint: Path) -> None:
    release(checkpoint, "1" * 32)
    release(checkpoint, "2" * 32)
    models.rollback("tiny", "ann")
    with pytest.raises(BadInput, match=r"models:/tiny/2 was champion and was rolled back, so there is nothing to settle"):
        models.settle("models:/tiny/2", True, "ann")
