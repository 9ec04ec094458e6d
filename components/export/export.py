"""The export stage: one model in one form, checked against the model that it was made from.

    run(ExportConfig(to="gguf"), Path("model"), Path("out"), print)

Each form is a function that writes into `out` and gives figures; what it wrote is read back and compared before the record is written. What cannot be
exported is refused before anything is computed. The card is written later, beside the files, since it also says what was measured on them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from components.models.build import TOKENIZER_FILES
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from components.schema.records import Outcome

Emit = Callable[[dict[str, Any]], None]
PLAIN_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
WRITERS = {"safetensors": "weights", "int8": "fewer_bits", "int4": "fewer_bits", "gguf": "gguf_file", "onnx": "onnx_graph"}


def run(config: ExportConfig, model: Path, out: Path, emit: Emit) -> Outcome:
    """Write the form into `out`. Errors: BadInput, before work is done where it can be known then."""
    try:
        writer = import_module(f"components.export.{WRITERS[config.to]}")
    except ModuleNotFoundError as error:
        raise BadInput(f"export: {config.to} needs the package {error.name}, which is not installed, so nothing can be written. pip install 'modelyard[export]'") from None
    settings = settings_of(model, config)
    writer.refuse(config, model, settings)
    out.mkdir(parents=True, exist_ok=True)
    emit({"event": "note", "text": f"{config.to}: writing"})
    began = time.perf_counter()
    figures, execution = writer.write(config, model, out, emit)
    return Outcome(
        figures={"to": config.to, "bytes": _bytes(out), "bytes_before": _bytes(model, "*.safetensors"), **figures},
        execution={"seconds": round(time.perf_counter() - began, 2), **execution},
    )


def settings_of(model: Path, config: ExportConfig) -> dict[str, Any]:
    """config.json of a causal language model. Errors: BadInput."""
    path = model / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"export: {path} cannot be read ({str(error).splitlines()[0]}), so nobody knows what model this is. Give models:/NAME@ALIAS or a folder written by save_pretrained") from None
    if "quantization_config" in settings:
        raise BadInput(f"export: {model} holds quantised weights already, and rounding them again would cost score that nobody measured. Export the model that it was made from")
    names = settings.get("architectures") or ["none"]
    if config.to != "safetensors" and not names[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise BadInput(f"export: {model} is a {names[0]}, and {config.to} is written for models that predict the next token. Export it to safetensors, or choose the line's chat or policy model")
    return settings


def copy_plain_files(model: Path, out: Path, names: tuple[str, ...] = PLAIN_FILES) -> list[str]:
    """Configuration and tokenizer as they are. Gives the names that were there."""
    there = [name for name in names if (model / name).is_file()]
    for name in there:
        shutil.copyfile(model / name, out / name)
    return there


def _bytes(folder: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file() and not path.name.endswith(".json"))
