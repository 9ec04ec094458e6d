"""safetensors: the folder as transformers, vLLM and the hubs read it; nothing of ours in it but the card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from components.export.agreement import side_by_side
from components.export.export import Emit, copy_plain_files
from components.models.build import load, load_tokenizer
from components.schema.config import BadInput
from components.schema.export import ExportConfig


def refuse(config: ExportConfig, model: Path, settings: dict[str, Any]) -> None:
    """Errors: BadInput where there are no weights as safetensors, or no tokenizer."""
    for name in ("model.safetensors", "tokenizer.json"):
        if not (model / name).is_file():
            raise BadInput(f"export: {model / name} does not exist, so the folder would be none that others can load. Give a model that the line made, or one saved with its tokenizer as safetensors")


def write(config: ExportConfig, model: Path, out: Path, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copy what a hub needs; read it back and compare every tensor and the answers."""
    shutil.copyfile(model / "model.safetensors", out / "model.safetensors")
    copied = copy_plain_files(model, out)
    tensors, parameters = _same_tensors(model, out)
    figures = {"tensors": tensors, "parameters": parameters, "files_copied": len(copied) + 1}
    if (settings_name := _causal(out)) is None:
        return figures, {}
    emit({"event": "note", "text": f"{config.to}: reading it back as {settings_name}"})
    back = load(out).eval()
    found = side_by_side(load(model), load_tokenizer(model), lambda ids: back(input_ids=ids, use_cache=False).logits)
    if found.largest:
        raise BadInput(f"export: the copy in {out} answers differently ({found.largest:.3g} in one logit), so it is damaged. Run the same command again; if it stays so, the disk is to be doubted")
    return {**figures, "check": found.figures()}, {}


def _causal(folder: Path) -> str | None:
    from transformers import AutoConfig

    name = (AutoConfig.from_pretrained(folder, local_files_only=True).architectures or ["none"])[0]
    return name if name.endswith(("ForCausalLM", "LMHeadModel")) else None


def _same_tensors(model: Path, out: Path) -> tuple[int, int]:
    """(tensors, numbers in them), each compared bit by bit. Errors: BadInput."""
    count = 0
    with safe_open(model / "model.safetensors", framework="pt") as before, safe_open(out / "model.safetensors", framework="pt") as after:
        names = list(before.keys())
        for name in names:
            tensor = before.get_tensor(name)
            if not torch.equal(tensor, after.get_tensor(name)):
                raise BadInput(f"export: the tensor {name} in {out} is not the one in {model}, so the copy is damaged. Run the same command again")
            count += tensor.numel()
    return len(names), count
