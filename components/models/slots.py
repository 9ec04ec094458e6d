"""Texts that are continued together although they come and go one by one: what a server's engine steps.

    slots = slots_for(model, rows=64, context=1024, pad_id=0)
    logits = slots.join([prompt, other])          # read; they are the last rows now: (2, V) of what comes after them
    logits = slots.step(tokens)                   # (n,) -> (n, V), one token on in every row
    slots.leave(3)                                # row 3 has ended; the last row takes its place

Slots does it for Llama, Mistral and Qwen2 on a CPU (passes.py): every row has room for a whole context in one cache that is laid out once, so new rows join at any step
(Yu et al. 2022, Orca). Prompts are read side by side without padding. Together asks transformers for other models with attention: rows join only while it is
empty, so a batch is what waited when the one before it had ended. Alone reads the whole text again for each token, for models that must not see padding (state-space, linear attention).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from components.models import kernels, step_kernels
from components.models.decoding import Cached, reads_padding_right
from components.models.passes import Passes, is_plain

READ_BLOCK = 256
"""Positions whose logits are held at once where all of a prompt's are wanted."""
Readers = Mapping[int, Callable[[Tensor], None]]
"""By the prompt's place among those that join: who is given the logits after each of its tokens but the last, in order, (t, V) with t <= READ_BLOCK."""
NOBODY: Readers = {}
CACHE_BYTES = 4 * 2**30
"""Fewer rows than asked for where their caches would be larger than this."""


class Live(Protocol):
    """Rows that are continued and come and go."""

    def room(self) -> int:
        """How many rows may join now."""

    def join(self, prompts: Sequence[Sequence[int]], readers: Readers = NOBODY) -> Tensor:
        """Read prompts, which become the last rows; logits after each, (m, V)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, (n,); logits of the next, (n, V)."""

    def leave(self, row: int) -> None:
        """A row has ended; the last row takes its place."""


def slots_for(model: PreTrainedModel, rows: int, context: int, pad_id: int) -> Live:
    """The fastest that computes what the model would. `context` is the longest text in tokens."""
    if is_plain(model, context):
        return Slots(model, rows, context)
    return Together(model, rows, pad_id) if reads_padding_right(model) else Alone(model)


# ---------------------------------------------------------------- by passes of our own


class Slots:
    """One cache, a place in it for each row."""

    def __init__(self, model: PreTrainedModel, rows: int, context: int) -> None:
        self.passes = Passes(model)
        groups = model.config.num_key_value_heads
        each = 2 * groups * context * self.passes.dim  # numbers of a row in a layer
        self.capacity = max(1, min(rows, CACHE_BYTES // (4 * each * len(self.passes.blocks))))
        self.cache = [torch.empty(self.capacity, 2, groups, context, self.passes.dim) for _ in self.passes.blocks]  # L of (R, 2, K, T, D); of which the first rows are in use
        self.cos, self.sin = self.passes.turns(torch.arange(context))  # (T, D / 2)
        self.lengths = torch.zeros(self.capacity, dtype=torch.long)
        self.size = 0
        self._no_prompt = torch.empty(1, 2, groups, 0, self.passes.dim)
        self._zeros = torch.zeros(self.capacity, dtype=torch.long)

    def room(self) -> int:
        return self.capacity - self.size

    def join(self, prompts: Sequence[Sequence[int]], readers: Readers = NOBODY) -> Tensor:
        counts = [len(prompt) for prompt in prompts]
        tokens = torch.tensor([token for prompt in prompts for token in prompt])  # (sum of T): side by side
        x = self.passes.through(tokens, lambda layer, qkv: self._read(layer, qkv, counts))
        self.lengths[self.size : self.size + len(counts)] = torch.tensor(counts)
        self.size += len(counts)
        ends = torch.tensor(counts).cumsum(0)
        for place, read in readers.items():
            for block in x[ends[place] - counts[place] : ends[place] - 1].split(READ_BLOCK):
                if len(block):
                    read(self.passes.logits(block))
        return self.passes.logits(x[ends - 1])

    def step(self, tokens: Tensor) -> Tensor:
        n = self.size
        columns = self.lengths[:n].clone()
        cos, sin = self.cos[columns], self.sin[columns]  # (n, D / 2)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return step_kernels.attend(qkv, cos, sin, self.cache[layer][:n], columns, self._zeros[:n], self._zeros[:n], self._no_prompt, scale=self.passes.scale)

        x = self.passes.through(tokens, attend)
        self.lengths[:n] += 1
        return self.passes.logits(x)

    def leave(self, row: int) -> None:
        self.size -= 1
        if row < self.size:
            known = int(self.lengths[self.size])
            for cache in self.cache:
                cache[row, :, :, :known] = cache[self.size, :, :, :known]
            self.lengths[row] = known

    def _read(self, layer: int, qkv: Tensor, counts: Sequence[int]) -> Tensor:
        """Attention within each of the texts that stand side by side, (sum of T, H + 2 K, D) -> (sum of T, H, D); their keys and values are put into the cache."""
        groups = self.cache[layer].shape[2]
        heads = qkv.shape[1] - 2 * groups
        out, start = qkv.new_empty(len(qkv), heads, qkv.shape[2]), 0
        for row, count in enumerate(counts, self.size):
            text = qkv[start : start + count]
            kernels.rotate(text[None], self.cos[None, :count], self.sin[None, :count], heads + groups)
            query, key, value = text.transpose(0, 1).split([heads, groups, groups])  # (H, T, D), (K, T, D) twice
            self.cache[layer][row, 0, :, :count], self.cache[layer][row, 1, :, :count] = key, value
            seen = scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, scale=self.passes.scale, enable_gqa=heads != groups)
            out[start : start + count] = seen[0].transpose(0, 1)
            start += count
        return out


# ---------------------------------------------------------------- by transformers


class Together:
    """A batch that is begun together (decoding.py)."""

    def __init__(self, model: PreTrainedModel, rows: int, pad_id: int) -> None:
        self.model, self.rows, self.pad_id = model, rows, pad_id
        self.size = 0
        self.decoder: Cached

    def room(self) -> int:
        return 0 if self.size else self.rows

    def join(self, prompts: Sequence[Sequence[int]], readers: Readers = NOBODY) -> Tensor:
        self.size = len(prompts)
        _read_again(self.model, prompts, readers)
        self.decoder = Cached(self.model, prompts, torch.arange(self.size), self.pad_id)
        return self.decoder.logits

    def step(self, tokens: Tensor) -> Tensor:
        return self.decoder.step(tokens.to(self.model.device))

    def leave(self, row: int) -> None:
        self.size -= 1
        rows = torch.arange(self.size)
        if row < self.size:
            rows[row] = self.size
        if self.size:
            self.decoder.keep(rows.to(self.model.device))


class Alone:
    """One text, read again for each token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.text = model, []

    def room(self) -> int:
        return 0 if self.text else 1

    def join(self, prompts: Sequence[Sequence[int]], readers: Readers = NOBODY) -> Tensor:
        self.text = list(prompts[0])
        _read_again(self.model, prompts, readers)
        return self._after()

    def step(self, tokens: Tensor) -> Tensor:
        self.text += tokens.tolist()
        return self._after()

    def leave(self, row: int) -> None:
        self.text = []

    def _after(self) -> Tensor:
        return self.model(torch.tensor([self.text], device=self.model.device)).logits[:, -1]


def _read_again(model: PreTrainedModel, prompts: Sequence[Sequence[int]], readers: Readers) -> None:
    """Prompts one by one, for those who want to know every position."""
    for place, read in readers.items():
        for block in model(torch.tensor([prompts[place]], device=model.device)).logits[0, :-1].split(READ_BLOCK):
            if len(block):
                read(block)
