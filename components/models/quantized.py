"""Matrices of 8 or 4 bits (weight only, torchao), written as safetensors and read again.

    model = quantize(folder, "int8")             # a transformers model whose linear layers hold Int8Tensor
    save(model, "int8", out)                     # model.safetensors, which plain transformers with torchao reads
    with readable(out) as folder: ...            # what build.load and the evaluation read

int8 holds one scale for each row. int4 holds one scale for each group of a row; torchao keeps such weights one to a byte on a processor, so on disk they stand
two to a byte, in model-int4.safetensors, and are spread out again where the model is read. Embeddings, norms and a tied output layer stay as they are. What is
computed is the original type: weights are multiplied out at each use, which saves memory and bytes to read, not arithmetic.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from components.schema.config import BadInput

Bits = Literal["int8", "int4"]
PACKED, PLAIN = "model-int4.safetensors", "model.safetensors"
NIBBLES = "modelyard.nibbles"  # in the file's header: names of the tensors that hold two values a byte


def quantize(folder: Path, bits: Bits, group_size: int = 32) -> PreTrainedModel:
    """The model of a folder with its linear layers quantised, in eval mode. Errors: BadInput where torchao is not installed or a group does not divide a layer."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
        from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm
        from transformers import TorchAoConfig
    except ImportError as error:
        raise BadInput(f"export: {bits} is made by torchao, which is not installed ({error}), so nothing can be quantised. pip install 'modelyard[quantize]'") from None
    if bits == "int4":
        check_groups(json.loads((folder / "config.json").read_text(encoding="utf-8")), group_size)
    how = (
        Int8WeightOnlyConfig(version=2)
        if bits == "int8"
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group_size), intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY)
    )
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="auto", quantization_config=TorchAoConfig(how)).eval()


def check_groups(config: dict[str, Any], group_size: int) -> None:
    """Every matrix of a block must be cut into whole groups. `config`: config.json. Errors: BadInput, before the model is loaded."""
    widths = {name: config[name] for name in ("hidden_size", "intermediate_size") if config.get(name)}
    if uneven := {name: width for name, width in widths.items() if width % group_size}:
        fits = [size for size in (32, 64, 128) if not any(width % size for width in widths.values())]
        said = f"Use --group-size {fits[-1]}" if fits else "Export it to int8 instead"
        raise BadInput(f"export: group_size={group_size} does not divide {', '.join(f'{name}={width}' for name, width in uneven.items())}, so its rows cannot be cut into groups. {said}")


def save(model: PreTrainedModel, bits: Bits, out: Path) -> None:
    """Write config.json, generation_config.json and the weights."""
    model.save_pretrained(out)
    if bits == "int4":
        _pack(out / PLAIN, out / PACKED)
        (out / PLAIN).unlink()


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """The folder as transformers reads it: itself, or, where its weights stand two to a byte, a passing copy of them spread out."""
    if not (folder / PACKED).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="modelyard-int4-") as scratch:
        for file in folder.iterdir():
            if file.is_file() and file.name != PACKED:
                (Path(scratch) / file.name).symlink_to(file.absolute())
        _unpack(folder / PACKED, Path(scratch) / PLAIN)
        yield Path(scratch)


def _pack(source: Path, target: Path) -> None:
    """Tensors of 4-bit values two to a byte, the others as they are."""
    tensors, metadata = _read(source)
    four = sorted(name for name in tensors if name.endswith("_weight_qdata") and _is_int4(metadata, name))
    packed = {name: pack(tensor) if name in four else tensor for name, tensor in tensors.items()}
    save_file(packed, target, {**metadata, NIBBLES: json.dumps(four)})


def _unpack(source: Path, target: Path) -> None:
    tensors, metadata = _read(source)
    four = set(json.loads(metadata.pop(NIBBLES)))
    save_file({name: unpack(tensor) if name in four else tensor for name, tensor in tensors.items()}, target, metadata)


def _is_int4(metadata: dict[str, str], name: str) -> bool:
    """Whether torchao's own description of the tensor says int4."""
    described = json.loads(metadata[name.removesuffix("._weight_qdata") + ".weight"])
    return described["_data"]["target_dtype"]["_data"] == "int4"


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})


def pack(values: Tensor) -> Tensor:
    """int8 in [-8, 7], (r, c) with c even -> uint8 (r, c / 2): even columns in the low half of a byte."""
    low, high = (values[:, start::2] & 0xF for start in (0, 1))
    return (low | (high << 4)).view(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    byte = packed.view(torch.int8)
    low = (byte << 4) >> 4  # shifts of int8 keep the sign
    return torch.stack([low, byte >> 4], -1).flatten(1)
