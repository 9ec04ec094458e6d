"""Weights to begin from: where they are looked for, and when they count as the same."""

from pathlib import Path

import pytest

from components.registry import models
from components.registry.tracking import open_stage
from components.registry.weights import locate
from components.schema.config import BadInput


def folder_with(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_the_identity_follows_content_and_not_place_or_what_is_not_read(tmp_path):
    one = locate(str(folder_with(tmp_path / "a", model__safetensors=b"weights", config__json=b"{}")))
    same = locate(str(folder_with(tmp_path / "b", model__safetensors=b"weights", config__json=b"{}", notes__md=b"anything")))
    other = locate(str(folder_with(tmp_path / "c", model__safetensors=b"weightz", config__json=b"{}")))
    assert one.identity == same.identity != other.identity and one.path == str(tmp_path / "a")
    assert locate(None) is None


def test_a_hub_id_is_looked_for_in_the_mirror(tmp_path, monkeypatch):
    folder_with(tmp_path / "mirror/org/model", model__safetensors=b"w", config__json=b"{}")
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path / "mirror"))
    assert locate("org/model").path == str(tmp_path / "mirror/org/model")


def test_a_pickle_is_never_taken(tmp_path):
    folder_with(tmp_path / "a", pytorch_model__bin=b"pickle", config__json=b"{}")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin, a pickle, which is never loaded"):
        locate(str(tmp_path / "a"))


def test_what_is_nowhere_is_said_with_the_places_that_were_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"'nobody/nothing' is no folder here .*nobody/nothing is not in the mirror.*models:/NAME@ALIAS"):
        locate("nobody/nothing")


def test_a_released_model_is_found_by_its_alias(home: Path, checkpoint: Path):
    run_id = open_stage(None, "release", "1" * 32, {}, {})
    models.release("tiny", checkpoint, run_id, "1" * 32, {}, "promote")
    assert locate("models:/tiny@champion").identity == locate(str(checkpoint)).identity
    with pytest.raises(BadInput, match="models:/nothing@champion does not exist"):
        locate("models:/nothing@champion")
