"""What a step of decoding does between its matrix products, each compiled to one pass: normalisation, SwiGLU over joined halves, and attention with its cache.

For float32 on the CPU. With 32 rows of a few hundred numbers a torch operation costs more to call than to compute, and attention by torch reads the prompt's keys and values
once for every row; here the rows that share a prompt read it out of the cache (decoding.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from components.models.kernels import compiled, exponentials, over_rows, sigmoids


def normalise(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x over its root mean square, times the weight: (n, C), (C) -> (n, C)."""
    out = torch.empty_like(x)
    over_rows(_normalise, x, out, whole=[weight], epsilon=np.float32(epsilon))
    return out


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) * up, where `both` is gate and up side by side: (n, 2 I) -> (n, I)."""
    out = both.new_empty(len(both), both.shape[1] // 2)
    over_rows(_swiglu, both, out)
    return out


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, own: Tensor, columns: Tensor, place: Tensor, first: Tensor, prompts: Tensor, *, scale: float) -> Tensor:
    """Attention of one new token in each row: (n, H + 2 K, D) -> (n, H, D).

    Turns query and key to their position by cos, sin (n, D / 2), as transformers lays rotary positions out; puts key and value at `columns` (n) of `own` (n, 2, K, R, D); and lets the
    query see its prompt, `prompts` (G, 2, K, P, D) at `place` (n), from column `first` (n) on, and what is its own up to its column.
    """
    heads = qkv.shape[1] - 2 * own.shape[2]
    out = qkv.new_empty(len(qkv), heads, qkv.shape[2])
    over_rows(_attend, own, qkv, cos, sin, columns, place, first, out, whole=[prompts], scale=np.float32(scale))
    return out


@compiled
def _normalise(x, out, weight, epsilon):
    n, width = x.shape
    for i in range(n):
        squares = np.float32(0)
        for j in range(width):
            squares += x[i, j] * x[i, j]
        inverse = np.float32(1) / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            out[i, j] = x[i, j] * inverse * weight[j]


@compiled
def _swiglu(both, out):
    n, width = out.shape
    bits, s = np.empty(width, np.int32), np.empty(width, np.float32)
    power = bits.view(np.float32)
    for i in range(n):
        gate, up, row = both[i, :width], both[i, width:], out[i]
        sigmoids(gate, power, bits, s)
        for j in range(width):
            row[j] = gate[j] * s[j] * up[j]


@compiled
def _turn(head, cos, sin, out):
    half = len(cos)
    for i in range(half):
        one, other = head[i], head[half + i]
        out[i] = one * cos[i] - other * sin[i]
        out[half + i] = other * cos[i] + one * sin[i]


@compiled
def _fits(query, keys, out):
    """out = keys @ query."""
    width = len(query)
    for t in range(len(keys)):
        key, total = keys[t], np.float32(0)
        for j in range(width):
            total += key[j] * query[j]
        out[t] = total


@compiled
def _mix(shares, values, out):
    """out += shares @ values."""
    width = len(out)
    for t in range(len(values)):
        share, value = shares[t], values[t]
        for j in range(width):
            out[j] += share * value[j]


@compiled
def _attend(own, qkv, cos, sin, own_columns, place, first, out, prompts, scale):
    n, heads, width = out.shape
    groups, columns = own.shape[2], prompts.shape[3]
    each = heads // groups
    query = np.empty(width, np.float32)
    room = columns + own_columns.max() + 1 if n else columns
    bits, shares = np.empty(room, np.int32), np.empty(room, np.float32)
    power = bits.view(np.float32)
    for b in range(n):
        begin, column = first[b], own_columns[b]
        known = columns - begin
        count = known + column + 1
        for g in range(groups):
            keys, values, prompt_keys, prompt_values = own[b, 0, g], own[b, 1, g], prompts[place[b], 0, g, begin:], prompts[place[b], 1, g, begin:]
            _turn(qkv[b, heads + g], cos[b], sin[b], keys[column])
            values[column] = qkv[b, heads + groups + g]
            for h in range(g * each, (g + 1) * each):
                _turn(qkv[b, h], cos[b], sin[b], query)
                _fits(query, prompt_keys, shares)
                _fits(query, keys[: column + 1], shares[known:count])
                most = np.float32(-np.inf)
                for t in range(count):
                    shares[t] *= scale
                    most = max(most, shares[t])
                exponentials(shares[:count], most, power[:count], bits[:count])
                total = np.float32(0)
                for t in range(count):
                    total += shares[t]
                row = out[b, h]
                row[:] = 0
                _mix(shares, prompt_values, row)
                _mix(shares[known:count], values[: column + 1], row)
                for j in range(width):
                    row[j] /= total
