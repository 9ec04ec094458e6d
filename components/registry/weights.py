"""Weights to begin from: a local folder, the hub or its mirror, or the registry, as a folder with an identity.

    locate("models:/modelyard-tiny@champion")       # Artifact(path="/.../artifacts", identity="models:/modelyard-tiny/3 9a0c...")

The identity is of the files' content, so that an alias that moved, or a folder that was written anew, makes another job.
"""

from __future__ import annotations

import os
from pathlib import Path

from components.schema.config import BadInput
from components.schema.records import Artifact, digest, file_md5

READ = ("*.safetensors", "*.json", "*.jinja")  # of a folder: weights, configuration, tokenizer; never a pickle


def located(name: str, field: str) -> Artifact:
    """The same for another field that names weights. Errors: BadInput, which names that field."""
    try:
        found = locate(name)
    except BadInput as error:
        raise BadInput(str(error).replace("model.init_from", field, 1)) from None
    assert found is not None
    return found


def locate(name: str | None) -> Artifact | None:
    """The folder that a recipe's model.init_from names. None for None. Errors: BadInput where there is none, or it holds no safetensors."""
    if name is None:
        return None
    folder = _folder(name)
    files = sorted({path for pattern in READ for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        hint = f"It holds {pickles[0]}, a pickle, which is never loaded: convert it to safetensors" if pickles else "Name a folder that save_pretrained wrote"
        raise BadInput(f"model.init_from: {folder} holds no safetensors, so there are no weights to begin from. {hint}")
    return Artifact(path=str(folder), identity=digest({path.name: file_md5(path) for path in files}))


def _folder(name: str) -> Path:
    if name.startswith("models:/"):
        from components.registry import models

        return models.fetch(name)
    mirror = os.environ.get("MODELYARD_HUB_MIRROR")
    for folder in (Path(name), *([Path(mirror) / name] if mirror else [])):
        if folder.is_dir():
            return folder.absolute()
    return _downloaded(name, mirror)


def _downloaded(name: str, mirror: str | None) -> Path:
    """A snapshot of a hub repository in the hub's own cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(READ)))
    except Exception as error:  # the network, the hub and its client fail in a dozen ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
        looked = f"{Path(mirror) / name} is not in the mirror" if mirror else "MODELYARD_HUB_MIRROR is not set"
        raise BadInput(
            f"model.init_from: {name!r} is no folder here ({looked}), and the hub does not give it ({reason}), so there are no weights to begin from. "
            "Write a folder, a hub id, or models:/NAME@ALIAS"
        ) from None
