"""int8 and int4: the matrices with fewer bits, as safetensors that our own loader reads, with what it costs in logits and in time.

What it costs in score is measured afterwards by the evaluation stage, on both models alike (flows/export.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.evaluation.footprint import latency
from components.export.agreement import side_by_side
from components.export.export import Emit, copy_plain_files
from components.models.build import TOKENIZER_FILES, load, load_tokenizer
from components.models.quantized import check_groups, quantize, save
from components.schema.config import BadInput
from components.schema.export import ExportConfig


def refuse(config: ExportConfig, model: Path, settings: dict[str, Any]) -> None:
    """Errors: BadInput where groups do not divide the matrices."""
    if config.to == "int4":
        check_groups(settings, config.group_size)


def write(config: ExportConfig, model: Path, out: Path, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantise, write, read back with our loader; the copy must answer exactly as what was written, and near the original."""
    small = quantize(model, config.to, config.group_size)
    save(small, config.to, out)
    copy_plain_files(model, out, TOKENIZER_FILES)
    emit({"event": "note", "text": f"{config.to}: reading it back and comparing"})
    tokenizer, back = load_tokenizer(out), load(out).eval()
    again = side_by_side(small, tokenizer, lambda ids: back(input_ids=ids, use_cache=False).logits)
    if again.largest:
        raise BadInput(f"export: what was read back from {out} differs from what was written by {again.largest:.3g} in one logit, so the file is damaged. Run the same command again")
    against = side_by_side(load(model), tokenizer, lambda ids: back(input_ids=ids, use_cache=False).logits)
    emit({"event": "note", "text": f"{config.to}: timing both"})
    return {"check": against.figures()}, {"ms_per_token": {"original": latency(model), "exported": latency(out)}}
