"""`modelyard evaluate`: any model on any suites, as a stage whose identity follows what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.schema.config import BadInput
from components.schema.jobs import Run
from components.schema.recipe import evals_from
from flows.evaluate import alone
from tests.evaluation import mirror


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A mirror, and a folder that looks like a model."""
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path / "hub"))
    mirror.save(tmp_path / "hub", "Rowan/hellaswag", None, train=[mirror.hellaswag(0)], validation=[mirror.hellaswag(1)])
    mirror.save(tmp_path / "hub", "aps/super_glue", "boolq", train=[mirror.boolq(0)], validation=[mirror.boolq(1)])
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer_config.json").write_text("{}")
    return tmp_path / "hub", model


def test_the_result_is_known_by_the_model_the_settings_and_the_data_of_its_suites(places: tuple[Path, Path]) -> None:
    hub, model = places

    def identity(*sets: str) -> str:
        return alone(evals_from(["hellaswag"], sets), str(model), Run()).identity

    first = identity()
    assert identity() == first != identity("limit=5")
    mirror.save(hub, "aps/super_glue", "boolq", train=[mirror.boolq(5)], validation=[mirror.boolq(6)])  # no suite of ours reads it
    assert identity() == first
    mirror.save(hub, "Rowan/hellaswag", None, train=[mirror.hellaswag(0)], validation=[mirror.hellaswag(2)])
    second = identity()
    assert second != first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert identity() != second


def test_a_model_with_a_template_is_asked_through_it(places: tuple[Path, Path]) -> None:
    _, model = places
    config = evals_from(["hellaswag"])
    assert "base" in alone(config, str(model), Run()).inputs
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert "policy" in alone(config, str(model), Run()).inputs


@pytest.mark.parametrize(
    ("suites", "sets", "words"),
    [
        (["hellaswg"], [], "no task, group or tag of lm-eval is called hellaswg.*Did you mean hellaswag"),
        (["hellaswag"], ["limit=0"], "limit: .*greater than 0"),
        (["hellaswag"], ["limits=5"], "limits.*Did you mean `limit`"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_starts(suites: list[str], sets: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        evals_from(suites, sets)


def test_without_a_mirror_or_a_model_it_says_what_to_do(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = places
    with pytest.raises(BadInput, match=r"evaluate: .* holds no safetensors"):
        alone(evals_from(["hellaswag"]), str(places[0]), Run())
    monkeypatch.delenv("MODELYARD_HUB_MIRROR")
    with pytest.raises(BadInput, match=r"MODELYARD_HUB_MIRROR is not set.*modelyard run RECIPE"):
        alone(evals_from(["hellaswag"]), str(model), Run())
