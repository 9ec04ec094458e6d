"""GGUF: one file for llama.cpp, written by the gguf library from a Llama, Mistral or Qwen2 folder.

Names follow the library's own table. Llama's queries and keys are turned from transformers' order of a head's dimensions (first halves, second halves) to
llama.cpp's (pairs), as its converter does. Everything is read back from the file and compared with the weights; where llama-cpp-python is installed,
llama.cpp itself tokenizes and computes, and must agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from components.export import gguf_tokenizer
from components.export.agreement import compare, prompts
from components.export.export import Emit, copy_plain_files
from components.export.gguf_tokenizer import Vocabulary
from components.models.build import TOKENIZER_FILES, load, load_tokenizer
from components.schema.config import BadInput
from components.schema.export import ExportConfig

FILE = "model.gguf"
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
PAIRED = ("llama", "mistral")  # whose rotary dimensions stand as pairs in llama.cpp
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
# How far llama.cpp's distributions may be from the model's, as mean KL in nats. It also rounds what the weights are multiplied with, to their type.
CLOSE = {"f32": 1e-8, "f16": 1e-4, "q8_0": 1e-2}
# Read back from the file: the largest difference of a weight over the largest weight of its tensor.
EXACT = {"f32": 0.0, "f16": 2**-11, "q8_0": 1 / 127}
BLOCK = 32
CHECK_S = 600.0


@dataclass(frozen=True)
class Tensor:
    """One matrix or vector, as the file is to hold it."""

    name: str
    values: np.ndarray
    type: gguf.GGMLQuantizationType


def refuse(config: ExportConfig, model: Path, settings: dict[str, Any]) -> None:
    """Errors: BadInput for what llama.cpp computes otherwise than transformers, or tokenizes otherwise."""
    kind = settings.get("model_type")
    if kind not in ARCHITECTURES:
        raise BadInput(f"export: architecture {kind!r} is none of those that are written to GGUF here ({', '.join(ARCHITECTURES)}), so llama.cpp could not compute it. Export it to safetensors or onnx")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    context, window = settings["max_position_embeddings"], settings.get("sliding_window")
    problems = {
        f"hidden_act={settings.get('hidden_act')!r}": settings.get("hidden_act", "silu") != "silu",
        f"rope_type={rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        f"sliding_window={window}": bool(window) and settings.get("use_sliding_window", kind == "mistral") and window < context,
    }
    if found := [name for name, is_so in problems.items() if is_so]:
        raise BadInput(f"export: {', '.join(found)} is not written to GGUF here, so llama.cpp would compute another model. Export it to safetensors or onnx")
    if config.tokenizer == "inside":
        gguf_tokenizer.read(model, settings["vocab_size"])


def write(config: ExportConfig, model: Path, out: Path, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header, the tensors, and what was read back."""
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    vocabulary = gguf_tokenizer.read(model, settings["vocab_size"]) if config.tokenizer == "inside" else None
    writer = gguf.GGUFWriter(out / FILE, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[settings["model_type"]]])
    _header(writer, settings, config)
    _tokens(writer, vocabulary)
    for tensor in _tensors(model, settings, config):
        writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.values, tensor.type), raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy_plain_files(model, out, TOKENIZER_FILES)
    emit({"event": "note", "text": "gguf: reading it back"})
    figures = {
        "tensors": _read_back(out / FILE, model, settings, config),
        "tokenizer": f"inside, as llama.cpp's {vocabulary.pre}{'; text must come as Unicode NFC' if vocabulary.composed else ''}" if vocabulary else "apart: tokenizer.json",
    }
    if find_spec("llama_cpp") is None:
        return {**figures, "llama_cpp": "llama-cpp-python is not installed, so llama.cpp did not compute it"}, {}
    emit({"event": "note", "text": "gguf: llama.cpp computes it beside the model"})
    return {**figures, **_by_llama_cpp(out / FILE, model, config, vocabulary)}, {}


# ---------------------------------------------------------------- what stands in the file


def _header(writer: gguf.GGUFWriter, settings: dict[str, Any], config: ExportConfig) -> None:
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    head = settings.get("head_dim") or width // heads
    rope = settings.get("rope_parameters") or {}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(FILE_TYPES[config.numbers])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(settings.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_vocab_size(settings["vocab_size"])


def _tokens(writer: gguf.GGUFWriter, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for role, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        if role in vocabulary.special:
            add(vocabulary.special[role])
    writer.add_add_bos_token(vocabulary.begins_with_bos)
    writer.add_add_eos_token(False)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _tensors(model: Path, settings: dict[str, Any], config: ExportConfig) -> Iterator[Tensor]:
    """Every weight under llama.cpp's name. A tied output layer is left out: llama.cpp uses the embedding then. Errors: BadInput for a weight that has no place there."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[settings["model_type"]], settings["num_hidden_layers"])
    with safe_open(model / "model.safetensors", framework="pt") as file:
        for name in file.keys():
            if name == "lm_head.weight" and settings.get("tie_word_embeddings"):
                continue
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise BadInput(f"export: the weight {name} has no place in llama.cpp's {settings['model_type']}, so the file would compute another model. Export it to safetensors or onnx")
            values = file.get_tensor(name).to(torch.float32).numpy()
            yield Tensor(known, _turned(name, values, settings), _type(values, config))


def _type(values: np.ndarray, config: ExportConfig) -> gguf.GGMLQuantizationType:
    """Vectors stay whole; a matrix whose rows are not whole blocks takes 16 bits instead of 8."""
    if values.ndim < 2:
        return TYPES["f32"]
    return TYPES["f16"] if config.numbers == "q8_0" and values.shape[-1] % BLOCK else TYPES[config.numbers]


def _turned(name: str, values: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Queries and keys with the dimensions of a head in llama.cpp's order."""
    if settings["model_type"] not in PAIRED or not ("q_proj" in name or "k_proj" in name):
        return values
    heads = settings["num_attention_heads"]
    count = heads if "q_proj" in name else settings.get("num_key_value_heads") or heads
    halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


# ---------------------------------------------------------------- whether it is right


def _read_back(file: Path, model: Path, settings: dict[str, Any], config: ExportConfig) -> int:
    """How many tensors the file holds, each compared with its weights. Errors: BadInput."""
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    wanted = 0
    for tensor in _tensors(model, settings, config):
        wanted += 1
        there = held[tensor.name]
        values = gguf.quants.dequantize(there.data, there.tensor_type).reshape(tensor.values.shape)
        apart = float(np.abs(values - tensor.values).max()) / max(float(np.abs(tensor.values).max()), 1e-30)
        if apart > EXACT[config.numbers]:
            raise BadInput(f"export: {tensor.name} in {file} is {apart:.2g} of its range away from the weight, more than {config.numbers} explains, so the file is damaged or the weight does not fit. Export with --numbers f32")
    if wanted != len(held):
        raise BadInput(f"export: {file} holds {len(held)} tensors and the model has {wanted}, so something was lost. Run the same command again")
    return wanted


def _as_it_reads(text: str, vocabulary: Vocabulary) -> str:
    return unicodedata.normalize("NFC", text) if vocabulary.composed else text


def _by_llama_cpp(file: Path, model: Path, config: ExportConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """llama.cpp's ids and logits beside transformers', in a process of its own: it ends the process where it does not like a file. Errors: BadInput."""
    network, tokenizer = load(model).eval(), load_tokenizer(model)
    asked = prompts(tokenizer, network.config.max_position_embeddings)
    texts = [] if vocabulary is None else [_as_it_reads(tokenizer.decode(ids), vocabulary) for ids in asked]
    request = json.dumps({"file": str(file), "texts": texts, "ids": asked, "context": network.config.max_position_embeddings})
    done = subprocess.run([sys.executable, "-m", "components.export.llama_cpp_check"], input=request, capture_output=True, text=True, timeout=CHECK_S)
    if done.returncode:
        raise BadInput(f"export: llama.cpp cannot read {file} (code {done.returncode}: {' '.join(done.stderr.split())[-300:]}), so the file is of no use. Export it to safetensors; this is a defect")
    told = json.loads(done.stdout.splitlines()[-1])
    for text, found in zip(texts, told["ids"], strict=True):
        if found != tokenizer(text)["input_ids"]:
            raise BadInput(f"export: llama.cpp tokenizes {text!r} as {found} and the model was trained with {tokenizer(text)['input_ids']}, so it would read other words. {gguf_tokenizer.APART}")
    with torch.no_grad():
        logits = torch.cat([network(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in asked])
    found = compare(logits, torch.cat([torch.tensor(rows) for rows in told["logits"]]))
    if found.kl > CLOSE[config.numbers]:
        raise BadInput(f"export: llama.cpp's distributions are {found.kl:.3g} nats away from the model's, more than {config.numbers} explains, so it computes another model. Export it to safetensors; this is a defect")
    return {"check_llama_cpp": found.figures(), "llama_cpp": f"llama-cpp-python {told['version']}; {len(texts)} texts tokenized alike" if texts else f"llama-cpp-python {told['version']}"}
