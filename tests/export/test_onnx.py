"""ONNX: a graph that onnxruntime computes as transformers does, at batches and lengths that it was not traced with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, PreTrainedConfig, Qwen2Config

from components.export import export
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from tests.export import models

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelyard[export]'")
pytestmark = pytest.mark.slow  # torch's exporter takes ten seconds and more for a graph

KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**models.SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**models.SIZES),
    "gpt2": GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_the_models_logits_for_any_batch_and_length(kind: str, tmp_path: Path) -> None:
    model, out = models.model(tmp_path / "model", KINDS[kind]), tmp_path / "out"
    figures = export.run(ExportConfig(to="onnx", onnx_int8=True), model, out, lambda event: None).figures
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    graph = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (1, 64), (5, 17)):
        ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0  # padded on the right
        (found,) = graph.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = network(input_ids=ids, attention_mask=mask).logits.numpy()
        assert np.abs(found - expected)[mask.bool().numpy()].max() < 1e-4
    assert figures["check"]["logit_difference_max"] < 1e-4 < figures["check_int8"]["logit_difference_max"]
    assert (out / "model-int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size


def test_a_model_whose_graph_fits_one_length_alone_gets_one_sentence(tmp_path: Path) -> None:
    model = models.model(tmp_path / "model", MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(BadInput, match=r"the graph that torch traced cannot read ids of shape \(4, 64\) .*Export it to safetensors"):
        export.run(ExportConfig(to="onnx"), model, tmp_path / "out", lambda event: None)
