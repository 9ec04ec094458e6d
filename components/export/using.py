"""How each form is used: the words and the lines of code of the card's last section."""

from __future__ import annotations

from components.schema.export import ExportConfig

WHAT = {
    "safetensors": "The weights as they were trained, with configuration and tokenizer: what transformers, vLLM and the hubs read.",
    "gguf": "One file for llama.cpp and what is built on it, matrices as {numbers}.",
    "int8": "The matrices with 8 bits and one scale for each row (torchao, weight only); embeddings, norms and a tied output layer as they were.",
    "int4": "The matrices with 4 bits and one scale for each {group_size} weights (torchao, weight only), two to a byte in `model-int4.safetensors`; embeddings, norms and a tied output layer as they were.",
    "onnx": "The model as a graph, `model.onnx`: ids and mask in, logits out, any batch and length, no cache. Pad on the right.",
}

TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{ask}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))"""

CHAT = 'inputs = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True, return_dict=True, return_tensors="pt")'
PLAIN = 'inputs = tokenizer("...", return_tensors="pt")'

OURS = """modelyard chat FOLDER

from components.models.build import load, load_tokenizer       # Modelyard's loader spreads the packed weights out

model, tokenizer = load(folder), load_tokenizer(folder)"""

LLAMA_CPP = """from llama_cpp import Llama

model = Llama("model.gguf")
{ask}"""
APART = """from llama_cpp import Llama
from transformers import AutoTokenizer

model, tokenizer = Llama("model.gguf"), AutoTokenizer.from_pretrained(folder)      # the file has no tokenizer of its own: it reads token ids
model.eval(tokenizer("...")["input_ids"])"""

ONNX = """import numpy, onnxruntime
from transformers import AutoTokenizer

tokenizer, graph = AutoTokenizer.from_pretrained(folder), onnxruntime.InferenceSession("model.onnx")
inputs = tokenizer(["..."], return_tensors="np")
(logits,) = graph.run(None, {name: inputs[name].astype(numpy.int64) for name in ("input_ids", "attention_mask")})"""


def text(config: ExportConfig, title: str, talks: bool) -> str:
    """The section, as Markdown. `talks`: the model reads a chat template."""
    ask = CHAT if talks else PLAIN
    if config.to == "gguf":
        spoken = 'print(model.create_chat_completion([{"role": "user", "content": "..."}]))' if talks else 'print(model("..."))'
        code = APART if config.tokenizer == "apart" else LLAMA_CPP.format(ask=spoken)
    else:
        code = {"int4": OURS, "onnx": ONNX}.get(config.to, TRANSFORMERS.format(ask=ask))
    lead = "With torchao installed:\n\n" if config.to == "int8" else ""
    return f"{lead}```python\n{code}\n```"
