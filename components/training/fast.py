"""The forward and backward pass of a causal model, faster: the same numbers within rounding, the same state_dict.

    prepare(model)                                         # once; says how many blocks it took over
    loss = next_token_loss(model, ids, targets).loss  # (B, T), (B, T) -> mean over the targets that count; works for every causal model

Where a plain step of transformers spends its time on a CPU, and what is done about it, is in benchmarks/RESULTS.md (section Pretraining). In short:

- Page faults. glibc gives every large tensor back to the kernel when it is freed and faults it in anew, zeroed, in the next operation: 8 % of a step.
  `keep_freed_memory` has it kept.
- The logits. They stand never whole (cross_entropy.py). The head is asked for the loss in place of logits while the model runs as ever, so its hooks
  (FSDP, DDP, adapters) see what they are used to.
- Passes over activations. In the blocks of Llama, Mistral and Qwen2 on a CPU in float32: the norm's weight is folded into the matrix that follows, query,
  key and value (gate and up) are one product, residuals are added by the matrix product, rotary positions are one complex multiplication in place.

- What is left of them (kernels.py): SwiGLU and normalisation in one pass each.

A block does this only where it computes what transformers would: causal attention by SDPA, no mask, no cache, no autocast, plain linear layers
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
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from components.training import kernels
from components.training.cross_entropy import LinearLoss, linear_cross_entropy, linear_loss

BLOCKS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
SILU = type(ACT2FN["silu"])
NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)

# ---------------------------------------------------------------- the model


def prepare(model: nn.Module) -> int:
    """Make `model` train faster; returns the number of blocks that were taken over, 0 for an architecture that stays as it is.

    Weights, state_dict and what `model` computes stay. To be called once the model is built and before it is compiled or sharded; again changes nothing.
    """
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

    loss = _asked(model, ask, input_ids=input_ids, **inputs)
    if loss is not None:
        return found[0]._replace(loss=loss)
    return _plain_loss(_wide(_logits(model, input_ids=input_ids, **inputs)).flatten(0, -2), targets.flatten(), z_loss, label_smoothing, ignore_index)


def next_token_losses(model: nn.Module, input_ids: Tensor, targets: Tensor, *, ignore_index: int = -100, **inputs: Any) -> Tensor:
    """Nats of every token: (B, T), (B, T) -> (B, T), 0 where nothing counts. Its gradient costs a fourth matrix product: for training on a mean use next_token_loss."""

    def ask(hidden: Tensor, head: nn.Linear) -> Tensor:
        return linear_cross_entropy(hidden.flatten(0, -2), head.weight, targets.flatten(), bias=head.bias, ignore_index=ignore_index, reduction="none").view(targets.shape)

    losses = _asked(model, ask, input_ids=input_ids, **inputs)
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


def _asked(model: nn.Module, ask: Callable[[Tensor, nn.Linear], Tensor], **inputs: Any) -> Tensor | None:
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


@cache
def _faster(module: type[nn.Module]) -> type[nn.Module]:
    """The class of a block or norm with a forward from below. Same name: transformers and FSDP find blocks by the names of their classes."""

    def block_forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        positions = kwargs.get("position_embeddings")
        if args or attention_mask is not None or kwargs.get("past_key_values") is not None or not _may(self, hidden_states, positions):
            return module.forward(self, hidden_states, attention_mask, *args, **kwargs)
        return _feed_forward(self, _attend(self, hidden_states, *positions))

    def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
        if not _plain_numbers(hidden_states):
            return module.forward(self, hidden_states)
        return _Normalised.apply(hidden_states.flatten(0, -2), self.variance_epsilon)[1].view(hidden_states.shape) * self.weight

    return type(module.__name__, (module,), {"forward": block_forward if module in BLOCKS else norm_forward, "__module__": module.__module__, "__doc__": module.__doc__})


def _plain_numbers(x: Tensor) -> bool:
    """Whether kernels.py may work on x."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _may(block: Any, x: Tensor, positions: tuple[Tensor, Tensor] | None) -> bool:
    """Whether the functions below compute what the block would."""
    if not _plain_numbers(x):
        return False
    attention, mlp, norms = block.self_attn, block.mlp, (block.input_layernorm, block.post_attention_layernorm)
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        positions is not None
        and positions[0].shape[0] == 1  # every sequence counts from the same position
        and positions[0].shape[-1] == attention.head_dim
        and attention.config._attn_implementation == "sdpa"
        and isinstance(mlp.act_fn, SILU)
        and mlp.gate_proj.bias is None
        and all(type(one) is nn.Linear for one in linear)
        and not any(one._forward_hooks or one._forward_pre_hooks for one in (*linear, *norms, attention, mlp, mlp.act_fn))
    )


def _attend(block: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x + attention(norm(x)): (B, T, C) -> (B, T, C); cos, sin (1, T, D)."""
    attention, norm = block.self_attn, block.input_layernorm
    B, T, C = x.shape
    D, q, k, v = attention.head_dim, attention.q_proj, attention.k_proj, attention.v_proj
    sizes = [one.out_features for one in (q, k, v)]
    weight = torch.cat((_pairs(q.weight, D), _pairs(k.weight, D), v.weight))
    bias = None if q.bias is None else torch.cat((_pairs(q.bias, D), _pairs(k.bias, D), v.bias))
    x, unit = _Normalised.apply(x.view(-1, C), norm.variance_epsilon)
    qkv = _Rotated.apply(_linear(unit, weight * norm.weight, bias), _turns(cos, sin, (sizes[0] + sizes[1]) // D)).view(B, T, -1)
    query, key, value = (part.unflatten(-1, (-1, D)).transpose(1, 2) for part in qkv.split(sizes, -1))  # (B, heads, T, D)
    dropout = attention.attention_dropout if block.training else 0.0
    grouped = attention.num_key_value_groups > 1
    mixed = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=T > 1, scale=attention.scaling, enable_gqa=grouped)
    return _added(x, mixed.transpose(1, 2).reshape(-1, sizes[0]), attention.o_proj).view(B, T, C)


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    """x + swiglu(norm(x)): (B, T, C) -> (B, T, C)."""
    mlp, norm = block.mlp, block.post_attention_layernorm
    shape = x.shape
    x, unit = _Normalised.apply(x.view(-1, shape[-1]), norm.variance_epsilon)
    both = _linear(unit, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)) * norm.weight, None)
    return _added(x, _SwiGLU.apply(both), mlp.down_proj).view(shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, C), weight (O, C) -> (N, O). The weight is laid out as (C, O), for which the product of its gradient is a sixth faster in MKL."""
    weight = weight.t().contiguous()
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _added(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(y), the sum made by the matrix product."""
    out = torch.addmm(x, y, linear.weight.t())
    return out if linear.bias is None else out + linear.bias


class _Normalised(torch.autograd.Function):
    """x, and x over its root mean square (RMSNorm without weight; Zhang and Sennrich 2019, arXiv:1910.07467): (N, C) -> (N, C), (N, C).

    x is handed on so that the backward pass can add the residual's gradient where it makes its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        unit, inverse = kernels.normalise(x, epsilon)
        ctx.save_for_backward(unit, inverse)
        return x, unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_x: Tensor, by_unit: Tensor) -> tuple[Tensor, None]:
        return kernels.normalise_backward(*ctx.saved_tensors, by_unit, by_x), None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202) of gate and up side by side: (N, 2 I) -> (N, I)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return kernels.swiglu(both)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> Tensor:
        return kernels.swiglu_backward(*ctx.saved_tensors, by_out)


class _Rotated(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of the first 2 * turns.shape[-1] numbers of x (B * T, W), in place; turns (T, pairs), complex."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        ctx.mark_dirty(x)
        return _turned(x, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        return _turned(by_x.contiguous(), turns.conj().resolve_conj()), None  # in place: only `split` before it holds this gradient


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    torch.view_as_complex(x[:, : 2 * turns.shape[-1]].unflatten(-1, (-1, 2)).unflatten(0, (-1, len(turns)))).mul_(turns)
    return x


def _turns(cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """cos and sin as transformers lays them out, (1, T, D) with halves alike -> cos + i sin for `heads` heads side by side, (T, heads * D / 2)."""
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half], sin[0, :, :half]).repeat(1, heads)


def _pairs(weight: Tensor, D: int) -> Tensor:
    """Rows of each head reordered so that what rotates together, i and i + D / 2, stands together; query and key alike, so their products stay. (heads * D, ...)."""
    return weight.unflatten(0, (-1, 2, D // 2)).transpose(1, 2).reshape(weight.shape)
