"""The passes over activations that torch has no single operation for, each compiled to one pass: SwiGLU and RMS normalisation, forward and backward.

For float32 on the CPU. A chain of torch operations writes each step's result to memory and reads it back, and at the size of activations (tens of MB) that is
what it costs. Here each number is read once and written once; numba compiles the loops on first use and keeps the machine code beside this file.
Work is split over as many threads as torch has been given; a row's result does not depend on how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from math import factorial, log
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

LEAST_NUMBERS = 2**16  # below, one thread: waking another costs more than its half of the work

_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nnan", "nsz", "reassoc"})


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) * up of gate and up side by side: (N, 2 I) -> (N, I)."""
    out = both.new_empty(both.shape[0], both.shape[1] // 2)
    _over_rows(_swiglu, both, out)
    return out


def swiglu_backward(both: Tensor, by_out: Tensor) -> Tensor:
    """(N, 2 I), (N, I) -> (N, 2 I)."""
    out = torch.empty_like(both)
    _over_rows(_swiglu_backward, both, by_out.contiguous(), out)
    return out


def normalise(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square, and one over that: (N, C) -> (N, C), (N)."""
    unit, inverse = torch.empty_like(x), x.new_empty(x.shape[0])
    _over_rows(_normalise, x, unit, inverse, epsilon=np.float32(epsilon))
    return unit, inverse


def normalise_backward(unit: Tensor, inverse: Tensor, by_unit: Tensor, by_x: Tensor) -> Tensor:
    """The gradient that reaches x through `unit`, added to the one that reaches it otherwise: (N, C), (N), (N, C), (N, C) -> (N, C)."""
    out = torch.empty_like(unit)
    _over_rows(_normalise_backward, unit, inverse, by_unit.contiguous(), by_x.contiguous(), out)
    return out


# ---------------------------------------------------------------- threads


def _over_rows(kernel: Callable[..., None], *tensors: Tensor, **numbers: Any) -> None:
    arrays = [t.detach().numpy() for t in tensors]
    n = len(arrays[0])
    threads = torch.get_num_threads() if arrays[0].size >= LEAST_NUMBERS else 1
    edges = [n * i // threads for i in range(threads + 1)]
    parts = [[a[start:end] for a in arrays] for start, end in pairwise(edges)]
    others = [_pool(os.getpid()).submit(kernel, *part, *numbers.values()) for part in parts[1:]]
    kernel(*parts[0], *numbers.values())
    wait(others)
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


@_compiled
def _sigmoids(x, power, bits, out):
    """out = 1 / (1 + exp(-x)); `bits` is `power` seen as whole numbers."""
    for j in range(len(out)):
        t = min(max(-x[j] * _LOG2_E, _LEAST), _MOST)
        k = np.floor(t + _HALF)
        f = t - k
        out[j] = ((((((_P7 * f + _P6) * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _P0
        bits[j] = (np.int32(k) + _BIAS) << _MANTISSA
    for j in range(len(out)):
        out[j] = _ONE / (_ONE + out[j] * power[j])


@_compiled
def _swiglu(both, out):
    n, width = out.shape
    bits, s = np.empty(width, np.int32), np.empty(width, np.float32)
    power = bits.view(np.float32)
    for i in range(n):
        _sigmoids(both[i, :width], power, bits, s)
        for j in range(width):
            out[i, j] = both[i, j] * s[j] * both[i, width + j]


@_compiled
def _swiglu_backward(both, by_out, out):
    n, width = by_out.shape
    bits, s = np.empty(width, np.int32), np.empty(width, np.float32)
    power = bits.view(np.float32)
    for i in range(n):
        _sigmoids(both[i, :width], power, bits, s)
        for j in range(width):
            silu = both[i, j] * s[j]
            out[i, width + j] = by_out[i, j] * silu
            out[i, j] = by_out[i, j] * both[i, width + j] * (s[j] + silu * (_ONE - s[j]))


@_compiled
def _normalise(x, unit, inverse, epsilon):
    n, width = x.shape
    for i in range(n):
        squares = np.float32(0)
        for j in range(width):
            squares += x[i, j] * x[i, j]
        inverse[i] = _ONE / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            unit[i, j] = x[i, j] * inverse[i]


@_compiled
def _normalise_backward(unit, inverse, by_unit, by_x, out):
    n, width = unit.shape
    for i in range(n):
        along = np.float32(0)
        for j in range(width):
            along += by_unit[i, j] * unit[i, j]
        along /= np.float32(width)
        for j in range(width):
            out[i, j] = by_x[i, j] + inverse[i] * (by_unit[i, j] - unit[i, j] * along)
