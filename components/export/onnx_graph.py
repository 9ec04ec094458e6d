"""ONNX: the model as one graph for onnxruntime, made by torch's exporter; ids and mask in, logits out, any batch and length.

Without a cache: each call reads the whole text, which is for scoring and for embedding in other programs, not for long answers. Pad on the right.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.export.agreement import context_of, side_by_side
from components.export.export import Emit, copy_plain_files
from components.models.build import load, load_tokenizer
from components.schema.config import BadInput
from components.schema.export import ExportConfig

GRAPH, GRAPH_INT8 = "model.onnx", "model-int8.onnx"
CLOSE = 1e-3  # of one logit; the graph computes the same sums in another order
LARGEST_BATCH = 1024


class Reader(nn.Module):
    """The model as the graph has it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, T, V)"""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def refuse(config: ExportConfig, model: Path, settings: dict[str, Any]) -> None:
    """Errors: BadInput where the exporter or onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"export: onnx needs onnxscript and onnxruntime, and one is not installed ({error}), so no graph can be made or checked. pip install 'modelyard[export]'") from None


def write(config: ExportConfig, model: Path, out: Path, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trace, write, and run it beside the model. Errors: BadInput where torch's exporter cannot trace the architecture."""
    network, tokenizer = load(model).eval(), load_tokenizer(model)
    _trace(network, out / GRAPH)
    copy_plain_files(model, out)
    emit({"event": "note", "text": "onnx: running it beside the model"})
    found = side_by_side(network, tokenizer, _runner(out / GRAPH))
    if found.largest > CLOSE:
        raise BadInput(f"export: the graph differs from the model by {found.largest:.3g} in one logit, more than rounding explains ({CLOSE}), so it computes something else. Export it to gguf or safetensors instead")
    figures = {"check": found.figures()}
    if config.onnx_int8:
        _quantize(out)
        figures["check_int8"] = side_by_side(network, tokenizer, _runner(out / GRAPH_INT8)).figures()
    return figures, {}


def _trace(network: Any, file: Path) -> None:
    batch, length = torch.export.Dim("batch", min=1, max=LARGEST_BATCH), torch.export.Dim("length", min=2, max=context_of(network.config))
    ids = torch.ones((2, min(8, context_of(network.config))), dtype=torch.int64)
    with _quiet():
        try:
            made = torch.onnx.export(
                Reader(network).eval(),
                (ids, torch.ones_like(ids)),
                dynamo=True,
                dynamic_shapes={name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                verbose=False,
            )
            made.save(str(file))
        except Exception as error:  # the tracer raises whatever a model's code trips over
            line = " ".join(str(error).split())[:200]
            raise BadInput(f"export: torch cannot trace {type(network).__name__} to ONNX ({line}), so there is no graph of it. Export it to safetensors, or to gguf where llama.cpp has it") from None


def _runner(file: Path) -> Any:
    """(B, T) ids -> (B, T, V) logits, by onnxruntime on the processor."""
    import onnxruntime

    graph = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(ids: Tensor) -> Tensor:
        try:
            return torch.from_numpy(graph.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})[0])
        except Exception as error:  # onnxruntime's own kinds, which share no name
            line = " ".join(str(error).split())[:200]
            raise BadInput(f"export: the graph that torch traced cannot read ids of shape {tuple(ids.shape)} ({line}), so it is of no use. Export it to safetensors, or to gguf where llama.cpp has it") from None

    return run


def _quantize(out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(out / GRAPH, out / GRAPH_INT8, weight_type=QuantType.QInt8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its steps to whoever listens, in several ways."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
