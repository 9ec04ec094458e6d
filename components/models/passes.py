"""One token of each row through Llama, Mistral or Qwen2 on a CPU, by passes of our own: everything but attention, which depends on how a cache is laid out.

    passes = Passes(model)                     # its weights, laid out as products of few rows read them best
    x = passes.through(tokens, attend)         # (n,) -> (n, C); attend(layer, qkv) gives what the rows see there
    logits = passes.logits(x)                  # (n, C) -> (n, V)

A row knows nothing of the others but through `attend`, so rows may be tokens of different texts or of one. decoding.py goes on with a batch that was begun together,
slots.py with rows that come and go.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.activations import ACT2FN

from components.models import step_kernels

OWN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
SILU = type(ACT2FN["silu"])

Attend = Callable[[int, Tensor], Tensor]
"""The number of a layer and its query, key and value, (n, H + 2 K, D) -> (n, H, D)."""


class Passes:
    """A model's weights as its steps read them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.embedding, self.norm = model.model.embed_tokens.weight, _norm(model.model.norm)
        self.head, self.head_bias = _joined(model.lm_head)
        self.blocks = [_Block(block) for block in model.model.layers]
        self.dim, self.scale = self.blocks[0].dim, self.blocks[0].scale
        self.rotary = model.model.rotary_emb

    def through(self, tokens: Tensor, attend: Attend) -> Tensor:
        """All layers: (n,) -> (n, C)."""
        x = embedding(tokens, self.embedding)  # (n, C)
        for layer, block in enumerate(self.blocks):
            qkv = _product(step_kernels.normalise(x, *block.before_attention), block.qkv, block.qkv_bias).view(len(x), -1, block.dim)  # (n, H + 2 K, D)
            x = _added(x, attend(layer, qkv).view(len(x), -1), block.out, block.out_bias)
            gate_up = _product(step_kernels.normalise(x, *block.before_mlp), block.gate_up, block.gate_up_bias)
            x = _added(x, step_kernels.swiglu(gate_up), block.down, block.down_bias)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """What comes next: (n, C) -> (n, V)."""
        return _product(step_kernels.normalise(x, *self.norm), self.head, self.head_bias)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of rotary positions: (...) -> (..., D / 2) twice."""
        cos, sin = self.rotary(self.embedding, positions.view(1, -1))
        return tuple(one[0, :, : self.dim // 2].reshape(*positions.shape, -1).contiguous() for one in (cos, sin))


def is_plain(model: PreTrainedModel, width: int) -> bool:
    """Whether Passes computes what the model would on `width` columns: no adapters, no hooks, no quantised weights, every layer sees all of them, positions as they are."""
    if type(model) not in OWN or model.device.type != "cpu" or model.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    rope, head = model.model.rotary_emb, model.lm_head
    if "dynamic" in rope.rope_type or rope.rope_type == "longrope" or type(head) is not nn.Linear or "forward" in head.__dict__:
        return False
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        window = model.config.sliding_window if isinstance(model, MistralForCausalLM) else getattr(attention, "sliding_window", None)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        parts = (block, attention, mlp, block.input_layernorm, block.post_attention_layernorm, *layers)
        if (window and width > window) or not isinstance(mlp.act_fn, SILU):
            return False
        if any(type(one) is not nn.Linear or type(one.weight) is not nn.Parameter for one in layers) or any(one._forward_hooks or one._forward_pre_hooks for one in parts):
            return False
    return True


class _Block:
    """A block's weights as its step reads them."""

    def __init__(self, block: nn.Module) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.before_attention, self.before_mlp = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        self.qkv, self.qkv_bias = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up, self.gate_up_bias = _joined(mlp.gate_proj, mlp.up_proj)
        self.out, self.out_bias = _joined(attention.o_proj)
        self.down, self.down_bias = _joined(mlp.down_proj)
        self.dim, self.scale = attention.head_dim, attention.scaling


def _norm(norm: nn.Module) -> tuple[Tensor, float]:
    return norm.weight.detach().clone(), norm.variance_epsilon


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The weights of layers that read the same, as one and as a product of a few rows reads them best: (inputs, sum of outputs)."""
    return torch.cat([one.weight.t() for one in layers], 1), None if layers[0].bias is None else torch.cat([one.bias for one in layers])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _added(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x + y @ weight + bias, the first sum made by the matrix product."""
    out = torch.addmm(x, y, weight)
    return out if bias is None else out.add_(bias)
