"""The forward and backward pass of a causal model, faster: the same numbers within rounding, the same state_dict.

    prepare(model)                                         # once; says how many blocks it took over
    loss = next_token_loss(model, ids, targets).loss  # (B, T), (B, T) -> mean over the targets that count; works for every causal model

Where a plain step of transformers spends its time on a CPU, and what is done about it, is in benchmarks/RESULTS.md (section Pretraining). In short:

- Page faults. glibc gives every large tensor back to the kernel when it is freed and faults it in anew, zeroed, in the next operation: 8 % of a step.
  `keep_freed_memory` has it kept.
- The logits. They stand never whole (cross_entropy.py). The head is asked for the loss in place of logits while the model runs as ever, so its hooks
  (FSDP, DDP, adapters) see what they are used to.
- Passes over activations, in the blocks of Llama, Mistral and Qwen2 on a CPU in float32. Normalisation, SwiGLU and rotary positions are one pass each
  (kernels.py); query, key and value are one product; residuals are added by the matrix product or in the pass that reads them anyway. What a
  layer reads is not kept for its gradient where that follows from what is kept already, and temporary results are written over: memory that
  was just used is in the cache, fresh memory is not.

A block does this only where it computes what transformers would: attention by SDPA (causal, or with a mask, as packed texts have it), no cache, no autocast, plain linear layers
without hooks. In every other case, and for every other architecture, transformers' own forward runs; also under torch.compile, which fuses these passes itself.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from components.models import kernels
from components.training import shared_prompts
from components.training.cross_entropy import LinearLoss, linear_cross_entropy, linear_loss
from components.training.shared_prompts import SharedPrompts

BLOCKS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
SILU = type(ACT2FN["silu"])
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)

# ---------------------------------------------------------------- the model


def prepare(model: nn.Module) -> int:
    """Make `model` train faster; returns the number of blocks that were taken over, 0 for an architecture that stays as it is.

    Weights, state_dict and what `model` computes stay. To be called once the model is built and before it is compiled or sharded; again changes nothing.
    What the head does is found out here, not in the first step: a model in shards is called by all processes or by none.
    """
    if (head := _head(model)) is not None:
        _logits_are_the_heads(model, head)
    if any(p.device.type == "cpu" for p in model.parameters()):
        keep_freed_memory()
    blocks = [module for module in model.modules() if type(module) in BLOCKS]
    for module in [*blocks, *(module for module in model.modules() if type(module) in NORMS)]:
        module.__class__ = _faster(type(module))
    return len(blocks)


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; True where that could be said. Holds for the whole process.

    Large blocks otherwise come from mmap and go back with munmap, and each page costs a fault when it is touched again. The price: memory once used stays
    with the process.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # of malloc.h
    return all(mallopt(name, value) for name, value in ((trim_threshold, 2**31 - 1), (top_pad, 64 << 20), (mmap_max, 0), (arena_max, 1)))


# ---------------------------------------------------------------- the loss


def next_token_loss(
    model: nn.Module, input_ids: Tensor, targets: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0, ignore_index: int = -100, **inputs: Any
) -> LinearLoss:
    """Mean cross-entropy of what the model says after each token: input_ids (B, T), targets (B, T) with `ignore_index` where nothing counts.

    Targets are not shifted here: targets[b, t] is what the model should say at input_ids[b, t], so an encoder's masked tokens may be asked for as well; rows
    that do not count are never multiplied by the head. More `inputs` go to the model (attention_mask, position_ids, ...).
    """
    found: list[LinearLoss] = []

    def ask(hidden: Tensor, head: nn.Linear) -> Tensor:
        terms = {"z_loss": z_loss, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
        found.append(linear_loss(hidden.flatten(0, -2), head.weight, targets.flatten(), bias=head.bias, **terms))
        return found[0].loss

    loss = at_head(model, ask, input_ids=input_ids, **inputs)
    if loss is not None:
        return found[0]._replace(loss=loss)
    return _plain_loss(_wide(_logits(model, input_ids=input_ids, **inputs)).flatten(0, -2), targets.flatten(), z_loss, label_smoothing, ignore_index)


def next_token_losses(model: nn.Module, input_ids: Tensor, targets: Tensor, *, ignore_index: int = -100, **inputs: Any) -> Tensor:
    """Nats of every token: (B, T), (B, T) -> (B, T), 0 where nothing counts. Its gradient costs a fourth matrix product: for training on a mean use next_token_loss."""

    def ask(hidden: Tensor, head: nn.Linear) -> Tensor:
        return linear_cross_entropy(hidden.flatten(0, -2), head.weight, targets.flatten(), bias=head.bias, ignore_index=ignore_index, reduction="none").view(targets.shape)

    losses = at_head(model, ask, input_ids=input_ids, **inputs)
    if losses is not None:
        return losses
    logits = _wide(_logits(model, input_ids=input_ids, **inputs)).flatten(0, -2)
    return cross_entropy(logits, targets.flatten(), ignore_index=ignore_index, reduction="none").view(targets.shape)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _plain_loss(logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float, ignore_index: int) -> LinearLoss:
    """The same from whole logits (N, V), for models that do more with them than a linear layer."""
    count = (targets != ignore_index).sum()
    some = count.clamp(min=1)
    loss = cross_entropy(logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum") / some
    if z_loss:
        loss = loss + z_loss * (logits.logsumexp(-1).square() * (targets != ignore_index)).sum() / some
    nats = cross_entropy(logits.detach(), targets, ignore_index=ignore_index, reduction="sum") / some if z_loss or label_smoothing else loss.detach()
    return LinearLoss(loss, nats, count)


def at_head(model: nn.Module, ask: Callable[[Tensor, nn.Linear], Tensor], **inputs: Any) -> Tensor | None:
    """What `ask` makes of the last hidden states (B, T, D) and the head, run inside the head's own call; None for a model whose logits are more than the head's output."""
    head = _head(model)
    if head is None or not _logits_are_the_heads(model, head):
        return None
    return _with_head(model, head, lambda hidden: ask(hidden, head), **inputs)


def _with_head(model: nn.Module, head: nn.Linear, forward: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
    head.forward = forward
    try:
        return _logits(model, **inputs)
    finally:
        del head.forward


def _logits(model: nn.Module, **inputs: Any) -> Tensor:
    knows_cache = "use_cache" in inspect.signature(_own(model).forward).parameters  # an encoder does not
    return model(**inputs, **({"use_cache": False} if knows_cache else {})).logits


def _own(model: nn.Module) -> nn.Module:
    """The model inside DDP and its like."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module
    return model


def _head(model: nn.Module) -> nn.Linear | None:
    model = _own(model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward else None


def _logits_are_the_heads(model: nn.Module, head: nn.Linear) -> bool:
    """Whether the model hands on its head's output as it is (Gemma 2 and Cohere, for example, scale or cap it): tried once with marked numbers on two tokens."""
    if "_hands_on" not in head.__dict__:
        ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
        marks = torch.linspace(-40.0, 60.0, 4, device=head.weight.device).view(1, 2, 2)
        training = model.training
        with torch.no_grad():
            model.eval()  # no dropout, no running statistics
            try:
                head.__dict__["_hands_on"] = torch.equal(_with_head(model, head, lambda hidden: marks, input_ids=ids).float(), marks)
            finally:
                model.train(training)
    return head.__dict__["_hands_on"]


# ---------------------------------------------------------------- the blocks


def can_share(model: nn.Module, columns: int) -> bool:
    """Whether a layout of shared prompts (shared_prompts.py) may be given to `model`, as `shared_prompts`: every block is one of ours and sees all of so many columns."""
    blocks = [module for module in model.modules() if type(module).__bases__[0] in BLOCKS]
    config = model.config
    if not blocks or len(blocks) != config.num_hidden_layers or (getattr(config, "sliding_window", None) or columns) < columns:
        return False
    quiet = all(not (block.training and block.self_attn.attention_dropout) for block in blocks)
    return quiet and all(_may(block, block.mlp.gate_proj.weight, block.self_attn.head_dim) for block in blocks)


@cache
def _faster(module: type[nn.Module]) -> type[nn.Module]:
    """The class of a block or norm with a forward from below. Same name: transformers and FSDP find blocks by the names of their classes."""

    def block_forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        positions = kwargs.get("position_embeddings")
        if args or positions is None or kwargs.get("past_key_values") is not None or not _may(self, hidden_states, positions[0].shape[-1]):
            return module.forward(self, hidden_states, attention_mask, *args, **kwargs)
        return _feed_forward(self, _attend(self, hidden_states, attention_mask, *_halves(positions, len(hidden_states)), kwargs.get("shared_prompts")))

    def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
        if not _plain_numbers(hidden_states):
            return module.forward(self, hidden_states)
        return _Norm.apply(hidden_states.flatten(0, -2), self.weight, self.variance_epsilon).view(hidden_states.shape)

    return type(module.__name__, (module,), {"forward": block_forward if module in BLOCKS else norm_forward, "__module__": module.__module__, "__doc__": module.__doc__})


def _plain_numbers(x: Tensor) -> bool:
    """Whether kernels.py may work on x."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _may(block: Any, x: Tensor, positions: int) -> bool:
    """Whether the functions below compute what the block would; `positions` is the width of its rotary embedding."""
    if not _plain_numbers(x):
        return False
    attention, mlp, norms = block.self_attn, block.mlp, (block.input_layernorm, block.post_attention_layernorm)
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        positions == attention.head_dim
        and attention.config._attn_implementation == "sdpa"
        and isinstance(mlp.act_fn, SILU)
        and mlp.gate_proj.bias is None
        and all(type(one) is nn.Linear for one in linear)
        and not any(one._forward_hooks or one._forward_pre_hooks for one in (*linear, *norms, attention, mlp, mlp.act_fn))
    )


def _attend(block: Any, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor, shared: SharedPrompts | None) -> Tensor:
    """x + attention(norm(x)): (B, T, C) -> (B, T, C); cos, sin (B, T, D / 2); mask as torch's attention takes it, None = causal; `shared` goes before it."""
    attention, norm = block.self_attn, block.input_layernorm
    B, T, C = x.shape
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = None if layers[0].bias is None else torch.cat([one.bias for one in layers])
    weight, heads = torch.cat([one.weight for one in layers]), layers[0].out_features // attention.head_dim
    x, *qkv = _Projected.apply(x.view(-1, C), norm.weight, norm.variance_epsilon, weight, biases, cos, sin, heads)
    query, key, value = (part.transpose(1, 2) for part in qkv)  # (B, heads, T, D)
    if shared is not None:
        mixed = shared_prompts.attend(query, key, value, shared, attention.scaling)
    else:
        dropout = attention.attention_dropout if block.training else 0.0
        grouped = attention.num_key_value_groups > 1
        causal = mask is None and T > 1
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=attention.scaling, enable_gqa=grouped)
    return _added(x, mixed.transpose(1, 2).reshape(B * T, -1), attention.o_proj).view(B, T, C)


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    """x + swiglu(norm(x)): (B, T, C) -> (B, T, C)."""
    mlp, norm = block.mlp, block.post_attention_layernorm
    out = _FeedForward.apply(x.flatten(0, -2), norm.weight, norm.variance_epsilon, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    return (out if mlp.down_proj.bias is None else out + mlp.down_proj.bias).view(x.shape)


def _added(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(y), the sum made by the matrix product."""
    out = torch.addmm(x, y, linear.weight.t())
    return out if linear.bias is None else out + linear.bias


def _halves(positions: tuple[Tensor, Tensor], B: int) -> tuple[Tensor, Tensor]:
    """cos and sin as transformers gives them, (1 or B, T, D) with halves alike -> (B, T, D / 2); made once for all blocks of a forward pass."""
    cos, sin = positions
    if not hasattr(cos, "_halves") or len(cos._halves[0]) != B:
        cos._halves = tuple(one[..., : one.shape[-1] // 2].expand(B, -1, -1).contiguous() for one in (cos, sin))
    return cos._halves


def _weight_gradient(x: Tensor, by_out: Tensor) -> Tensor:
    """Of the weight (O, C) of a linear layer: x (N, C), by_out (N, O). This way round the product is an eighth faster in MKL."""
    return (x.t() @ by_out).t()


class _Norm(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): (N, C) -> (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        unit, scaled, inverse = kernels.normalise(x, weight, epsilon)
        ctx.save_for_backward(unit, inverse, weight)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_scaled: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, weight = ctx.saved_tensors
        return *kernels.normalise_backward(unit, inverse, weight, by_scaled, torch.zeros_like(unit)), None


class _Projected(torch.autograd.Function):
    """x, and query, key and value of norm(x), the first two turned to their positions: (N, C) -> (N, C), (B, T, H, D), (B, T, K, D), (B, T, K, D).

    x is handed on so that the backward pass can add the residual's gradient where it makes its own. What the layers read is not kept: their
    gradients follow from x over its root mean square as well. weight: of the three layers, (W, C); cos, sin (B, T, D / 2) with B * T = N.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, epsilon: float, weight: Tensor, biases: Tensor | None, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, ...]:
        unit, scaled, inverse = kernels.normalise(x, norm, epsilon)
        qkv = scaled @ weight.t() if biases is None else torch.addmm(biases, scaled, weight.t())
        qkv = qkv.view(*cos.shape[:2], -1, 2 * cos.shape[2])  # (B, T, H + 2 K, D)
        groups = (qkv.shape[2] - heads) // 2
        kernels.rotate(qkv, cos, sin, heads + groups)
        ctx.save_for_backward(unit, inverse, norm, weight, cos, sin)
        return x, *qkv.split([heads, groups, groups], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_x: Tensor, *by_qkv: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, norm, weight, cos, sin = ctx.saved_tensors
        by_qkv = kernels.rotate_back(*by_qkv, cos, sin).view(len(unit), -1)
        by_x, by_norm = kernels.normalise_backward(unit, inverse, norm, by_qkv @ weight, by_x)
        by_weight = _weight_gradient(unit, by_qkv) * norm if ctx.needs_input_grad[3] else None
        return by_x, by_norm, None, by_weight, by_qkv.sum(0) if ctx.needs_input_grad[4] else None, None, None, None


class _FeedForward(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) * up(norm(x))): (N, C) -> (N, C) (SwiGLU: Shazeer 2020, arXiv:2002.05202).

    The backward pass writes over what the forward pass kept, so it can be taken once: torch refuses a second time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, epsilon: float, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        unit, scaled, inverse = kernels.normalise(x, norm, epsilon)
        gated, upped = scaled @ gate.t(), scaled @ up.t()
        ctx.save_for_backward(unit, inverse, gated, upped, norm, gate, up, down)
        return torch.addmm(x, kernels.swiglu(gated, upped), down.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        unit, inverse, gated, upped, norm, gate, up, down = ctx.saved_tensors
        hidden = by_out @ down
        kernels.swiglu_backward(gated, upped, hidden)
        increment_version((gated, upped))
        by_scaled = (gated @ gate).addmm_(upped, up)
        by_x, by_norm = kernels.normalise_backward(unit, inverse, norm, by_scaled, by_out)
        by_gate, by_up = (_weight_gradient(unit, by) * norm if asked else None for by, asked in zip((gated, upped), ctx.needs_input_grad[3:5], strict=True))
        return by_x, by_norm, None, by_gate, by_up, by_out.t() @ hidden if ctx.needs_input_grad[5] else None
