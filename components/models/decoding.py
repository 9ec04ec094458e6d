"""Token after token with a KV cache: what a decoder keeps of a batch of prompts, and how it goes on.

    decoder = decoder_for(model, prompts, rows, pad_id, room)    # prompts are read once; row b of the batch goes on from prompts[rows[b]]
    logits = decoder.logits                                      # (B, V) of what comes after the prompts
    logits = decoder.step(tokens)                                # (B,) -> (B, V), one column on
    decoder.keep(rows)                                           # finished rows leave the batch

Blocks does it for Llama, Mistral and Qwen2 on a CPU with passes of its own, about twice as fast as transformers with 32 rows of a 5.9M model: the cache is
laid out once and written in place, rows that share a prompt share its keys and values, query, key and value are one product, so are gate and up, weights stand as a product
of few rows reads them best, and what lies between the products is one pass each (passes.py, step_kernels.py).
Cached asks transformers, for every other model with attention that reads a padded prompt right; that is tried on two tokens, not believed. For what is left
(state-space and linear attention, which cannot leave padding out) there is no decoder, and generate.py asks for prompts of one length at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from components.models import step_kernels
from components.models.passes import Passes, is_plain


class Decoder(Protocol):
    """A batch that is being continued."""

    logits: Tensor
    """(B, V) after the prompts."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, (B,); logits of the next, (B, V)."""

    def keep(self, rows: Tensor) -> None:
        """The batch becomes these of its rows, in this order: (b,) with b <= B."""


def decoder_for(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Tensor, pad_id: int, room: int) -> Decoder | None:
    """A decoder that has read `prompts`, with `room` for new tokens; None for a model that must not see padding."""
    width = max(len(prompt) for prompt in prompts) + room
    if is_plain(model, width):
        return Blocks(model, prompts, rows, pad_id, room)
    if reads_padding_right(model):
        return Cached(model, prompts, rows, pad_id)
    return None


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the left, and a mask that is True where a token is real: (B, T), (B, T)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    is_real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, is_real


# ---------------------------------------------------------------- by transformers


class Cached:
    """The model's own forward with the cache that it makes."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Tensor, pad_id: int) -> None:
        self.model = model
        ids, is_real = (one.to(model.device) for one in pad_left(prompts, pad_id))
        rows = rows.to(model.device)
        out = _read(model, ids, is_real)
        self.cache = out.past_key_values
        self.cache.batch_select_indices(rows)
        self.logits, self.is_real = out.logits[rows, -1], is_real[rows]

    def step(self, tokens: Tensor) -> Tensor:
        self.is_real = torch.cat([self.is_real, torch.ones_like(self.is_real[:, :1])], 1)
        out = _read(self.model, tokens[:, None], self.is_real, self.cache)
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.is_real = self.is_real[rows]


def _read(model: PreTrainedModel, ids: Tensor, is_real: Tensor, cache: DynamicCache | None = None) -> object:
    """ids (B, T) behind what the cache holds; is_real (B, cached + T)."""
    known = inspect.signature(model.forward).parameters
    positions = (is_real.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    inputs = {"attention_mask": is_real.long(), "position_ids": positions, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    return model(input_ids=ids, **{name: value for name, value in inputs.items() if name in known})


def reads_padding_right(model: PreTrainedModel) -> bool:
    """Whether a prompt padded on the left gives what it gives alone, with a cache whose rows can be chosen: tried once."""
    if "_reads_padding_right" not in model.__dict__:
        model.__dict__["_reads_padding_right"] = _try_padding(model)
    return model.__dict__["_reads_padding_right"]


@torch.no_grad()
def _try_padding(model: PreTrainedModel) -> bool:
    if not {"past_key_values", "attention_mask", "use_cache"} <= inspect.signature(model.forward).parameters.keys():
        return False
    ids = torch.tensor([[0, 0, 1, 2]], device=model.device).clamp(max=model.config.vocab_size - 1)
    is_real = torch.tensor([[False, False, True, True]], device=model.device)
    padded, alone = _read(model, ids, is_real), _read(model, ids[:, 2:], is_real[:, 2:])
    cache = padded.past_key_values
    if not isinstance(cache, DynamicCache) or not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return False
    there = torch.cat([is_real, is_real[:, -1:]], 1)
    on_padded = _read(model, ids[:, :1], there, cache).logits[:, -1]
    on_alone = _read(model, ids[:, :1], there[:, 2:], alone.past_key_values).logits[:, -1]
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in ((padded.logits[:, -1], alone.logits[:, -1]), (on_padded, on_alone)))


# ---------------------------------------------------------------- by passes of our own


class Blocks:
    """Llama, Mistral, Qwen2. The prompts are read by transformers' forward; from there on one token at a time is read here."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Tensor, pad_id: int, room: int) -> None:
        ids, is_real = pad_left(prompts, pad_id)
        out = _read(model, ids, is_real)
        self.logits, self.at = out.logits[rows, -1], 0
        self.passes = Passes(model)
        self.prompts = [torch.stack([layer.keys, layer.values], 1) for layer in out.past_key_values.layers]  # L of (G, 2, K, P, D)
        groups = self.prompts[0].shape[2]
        self.own = [torch.empty(len(rows), 2, groups, room, self.passes.dim) for _ in self.prompts]  # of which the first rows are in use
        lengths = is_real.sum(1)[rows]  # (B,)
        self.cos, self.sin = self.passes.turns(lengths[None, :] + torch.arange(room)[:, None])  # (room, B, D / 2)
        self.place, self.first = rows.clone(), ids.shape[1] - lengths
        self.size = len(rows)

    def step(self, tokens: Tensor) -> Tensor:
        logits = self.passes.logits(self.passes.through(tokens, self._attend))
        self.at += 1
        return logits

    def _attend(self, layer: int, qkv: Tensor) -> Tensor:
        """The keys and values of the new tokens are put into `own`."""
        n, at = self.size, self.at
        columns = torch.full((n,), at)
        seen = (self.cos[at, :n], self.sin[at, :n], self.own[layer][:n], columns, self.place[:n], self.first[:n], self.prompts[layer])
        return step_kernels.attend(qkv, *seen, scale=self.passes.scale)

    def keep(self, rows: Tensor) -> None:
        """Copies only the rows that change their place."""
        self.size = len(rows)
        moved = (rows != torch.arange(len(rows))).nonzero()[:, 0]
        if len(moved):
            origin = rows[moved]
            for own in self.own:
                own[moved, :, :, : self.at] = own[origin, :, :, : self.at]
            self.cos[:, moved], self.sin[:, moved] = self.cos[:, origin], self.sin[:, origin]
            self.place[moved], self.first[moved] = self.place[origin], self.first[origin]
