"""The passes over activations that torch has no single operation for, each compiled to one pass: SwiGLU and RMS normalisation, forward and backward.

For float32 on the CPU. A chain of torch operations writes each step's result to memory and reads it back, and at the size of activations (tens of MB) that is
what it costs. Here each number is read once and written once; numba compiles the loops on first use and keeps the machine code beside this file.
Work is split over as many threads as torch has been given; a row's result does not depend on how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from math import factorial, log
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

LEAST_NUMBERS = 2**16  # below, one thread: waking another costs more than its half of the work
BLOCKS = 64  # of rows whose sums are added at the end

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nnan", "nsz", "reassoc"})


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: (N, I), (N, I) -> (N, I)."""
    out = torch.empty_like(gate)
    over_rows(_swiglu, gate, up, out)
    return out


def swiglu_backward(gate: Tensor, up: Tensor, by_out: Tensor) -> None:
    """In place, since what is read is not needed again: gate and up become their gradients, by_out what `swiglu` gave. All (N, I)."""
    over_rows(_swiglu_backward, gate, up, by_out)


def normalise(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """x over its root mean square; that times the weight; and one over the root mean square: (N, C), (C) -> (N, C), (N, C), (N)."""
    unit, scaled, inverse = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[0])
    over_rows(_normalise, x, unit, scaled, inverse, whole=[weight.clone()], epsilon=np.float32(epsilon))
    return unit, scaled, inverse


def normalise_backward(unit: Tensor, inverse: Tensor, weight: Tensor, by_scaled: Tensor, by_x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that reaches x through `scaled`, added to the one that reaches it otherwise, and the weight's: (N, C), (N), (C), (N, C), (N, C) -> (N, C), (C)."""
    out, by_weight = torch.empty_like(unit), unit.new_zeros(BLOCKS, unit.shape[1])
    rows = -(-len(unit) // BLOCKS)
    blocks = torch.arange(len(unit)) // rows  # the weight's gradient is summed in blocks of rows, the same however many threads there are
    over_rows(_normalise_backward, unit, inverse, by_scaled.contiguous(), by_x.contiguous(), out, blocks, whole=[weight.clone(), by_weight], at=rows)
    return out, by_weight.sum(0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Turn the first `heads` heads in x (B, T, heads and more, D) to their positions, in place; cos, sin (B, T, D / 2).

    Rotary positions (Su et al. 2021, arXiv:2104.09864) as transformers lays them out: in each head number i turns with number i + D / 2.
    """
    over_rows(_rotate, x, cos, sin, heads=heads)


def rotate_back(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Query and key turned back from their positions, and value, side by side: (B, T, H, D), (B, T, K, D), (B, T, K, D) -> (B, T, H + 2 K, D)."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = q.new_empty(*q.shape[:2], q.shape[2] + 2 * k.shape[2], q.shape[3])
    over_rows(_rotate_back, q, k, v, cos, sin, out)
    return out


# ---------------------------------------------------------------- threads


def over_rows(kernel: Callable[..., None], *tensors: Tensor, whole: Sequence[Tensor] = (), **numbers: Any) -> None:
    """Call `kernel(*rows of each tensor, *whole tensors, *numbers)` in as many threads as torch has; threads get whole blocks of `at` rows, where it is given.

    Whether threads are worth it is told by the size of the first tensor.

    No parameter may come here: memory that numpy has seen cannot be resized any more, which is how FSDP frees it.
    """
    arrays = [t.detach().numpy() for t in tensors]
    n, step = len(arrays[0]), numbers.pop("at", 1)
    threads = torch.get_num_threads() if arrays[0].size >= LEAST_NUMBERS else 1
    edges = [min(n, -(-n // step) * i // threads * step) for i in range(threads + 1)]
    parts = [[a[start:end] for a in arrays] for start, end in pairwise(edges)]
    rest = (*(t.detach().numpy() for t in whole), *numbers.values())
    others = [_pool(os.getpid()).submit(kernel, *part, *rest) for part in parts[1:]]
    kernel(*parts[0], *rest)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="kernel")


# ---------------------------------------------------------------- loops

# exp(t) = 2^k 2^f with k whole and |f| <= 1/2; 2^f by its Taylor series, whose remainder is below 1e-8, 2^k by its bits. Arithmetic only: the compiler makes it SIMD.
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7 = (np.float32(log(2) ** k / factorial(k)) for k in range(8))
_LOG2_E, _HALF, _ONE, _LEAST, _MOST = (np.float32(v) for v in (1 / log(2), 0.5, 1, -126, 126))
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@compiled
def exponentials(x, most, power, bits):
    """x = exp(x - most), where nothing in x is above `most`; `bits` is `power` seen as whole numbers."""
    for j in range(len(x)):
        t = max((x[j] - most) * _LOG2_E, _LEAST)
        k = np.floor(t + _HALF)
        f = t - k
        x[j] = ((((((_P7 * f + _P6) * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _P0
        bits[j] = (np.int32(k) + _BIAS) << _MANTISSA
    for j in range(len(x)):
        x[j] *= power[j]


@compiled
def sigmoids(x, power, bits, out):
    """out = 1 / (1 + exp(-x)); `bits` is `power` seen as whole numbers."""
    for j in range(len(out)):
        t = min(max(-x[j] * _LOG2_E, _LEAST), _MOST)
        k = np.floor(t + _HALF)
        f = t - k
        out[j] = ((((((_P7 * f + _P6) * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _P0
        bits[j] = (np.int32(k) + _BIAS) << _MANTISSA
    for j in range(len(out)):
        out[j] = _ONE / (_ONE + out[j] * power[j])


@compiled
def _swiglu(gate, up, out):
    n, width = gate.shape
    bits, s = np.empty(width, np.int32), np.empty(width, np.float32)
    power = bits.view(np.float32)
    for i in range(n):
        sigmoids(gate[i], power, bits, s)
        for j in range(width):
            out[i, j] = gate[i, j] * s[j] * up[i, j]


@compiled
def _swiglu_backward(gate, up, by_out):
    n, width = gate.shape
    bits, s = np.empty(width, np.int32), np.empty(width, np.float32)
    power = bits.view(np.float32)
    for i in range(n):
        sigmoids(gate[i], power, bits, s)
        for j in range(width):
            silu, by, other = gate[i, j] * s[j], by_out[i, j], up[i, j]
            by_out[i, j] = silu * other
            up[i, j] = by * silu
            gate[i, j] = by * other * (s[j] + silu * (_ONE - s[j]))


@compiled
def _normalise(x, unit, scaled, inverse, weight, epsilon):
    n, width = x.shape
    for i in range(n):
        squares = np.float32(0)
        for j in range(width):
            squares += x[i, j] * x[i, j]
        inverse[i] = _ONE / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            one = x[i, j] * inverse[i]
            unit[i, j] = one
            scaled[i, j] = one * weight[j]


@compiled
def _normalise_backward(unit, inverse, by_scaled, by_x, out, block, weight, by_weight):
    n, width = unit.shape
    for i in range(n):
        along, total = np.float32(0), by_weight[block[i]]
        for j in range(width):
            product = by_scaled[i, j] * unit[i, j]
            total[j] += product
            along += product * weight[j]
        along /= np.float32(width)
        for j in range(width):
            out[i, j] = by_x[i, j] + inverse[i] * (by_scaled[i, j] * weight[j] - unit[i, j] * along)


@compiled
def _rotate(x, cos, sin, heads):
    n, length, _, width = x.shape
    half = width // 2
    for b in range(n):
        for t in range(length):
            c, s = cos[b, t], sin[b, t]
            for h in range(heads):
                head = x[b, t, h]
                for i in range(half):
                    one, other = head[i], head[half + i]
                    head[i] = one * c[i] - other * s[i]
                    head[half + i] = other * c[i] + one * s[i]


@compiled
def _rotate_back(q, k, v, cos, sin, out):
    n, length, heads, width = q.shape
    groups, half = k.shape[2], width // 2
    for b in range(n):
        for t in range(length):
            c, s = cos[b, t], sin[b, t]
            for h in range(heads + groups):
                x, head = q[b, t, h] if h < heads else k[b, t, h - heads], out[b, t, h]
                for i in range(half):
                    head[i] = x[i] * c[i] + x[half + i] * s[i]
                    head[half + i] = x[half + i] * c[i] - x[i] * s[i]
            for h in range(groups):
                out[b, t, heads + groups + h] = v[b, t, h]
