"""Cross-entropy of a linear layer's outputs, without the outputs: logits of a few rows at a time, never of all.

The gradient of the loss with respect to a row's logits is softmax minus target, known as soon as the logits are. So the forward pass makes the logits of
`chunk` rows, turns them in place into their gradient, multiplies that into the gradients of `hidden` and `weight`, and forgets them; the backward pass only
scales (Liger, Hsu et al. 2024, arXiv:2410.10989; Cut Cross-Entropy, Wijmans et al. 2024, arXiv:2411.09009, which recomputes the logits in tiles instead).
Three matrix products as in the plain way, and memory for chunk * V numbers in place of 2 * N * V. With reduction "none" each row's gradient is scaled by
what comes back for it: up to 2^24 numbers (64 MiB) are kept for that; where there are more, the logits are made again in the backward pass: four products.

Rows that do not count are not multiplied at all. Departure from torch: the mean over no rows is 0, not NaN, so that a micro-batch without a single
counted token may be added to others.

The chunk: on the CPU 2^22 logits (16 MiB in float32). Measured with V = 4096, width 256, 4096 rows on a Xeon with 2 MiB of L2 for each core: forward and
backward 191 ms at 64 rows, 163 at 256, 156 at 1024, 165 at 2048, 174 at 4096 (all at once), against 195 for torch's cross_entropy on whole logits: fewer rows starve the matrix
product, more leave the cache.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

CHUNK_LOGITS = 2**22
KEPT_LOGITS = 2**24
SMALLEST_CHUNK = 128  # rows: below, matrix products are slower than what the cache saves


class LinearLoss(NamedTuple):
    """What a linear layer's cross-entropy came to."""

    loss: Tensor
    """Mean over the rows that count, with z-loss and smoothing; carries the gradient. 0-d."""
    nats: Tensor
    """The same mean without z-loss and smoothing: -log p(target), detached. 0-d."""
    count: Tensor
    """Rows that count: the weight of this mean among others. 0-d, int64."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy of the logits hidden @ weight.T + bias: hidden (N, D), weight (V, D), bias (V,), targets (N,) in 0 ... V - 1 or `ignore_index`.

    `z_loss` times logsumexp(logits)^2 is added for each row (PaLM, arXiv:2204.02311); `label_smoothing` of the target's probability is spread over the
    vocabulary, as in torch. `chunk` is in rows. Mean over the rows that count, or a loss for each row, (N,), with 0 where it does not count.
    Under autocast the products are in its type; logits, softmax and what is accumulated are in float32. Errors: ValueError for another reduction.
    """
    if reduction == "mean":
        return linear_loss(hidden, weight, targets, bias=bias, z_loss=z_loss, label_smoothing=label_smoothing, chunk=chunk, ignore_index=ignore_index).loss
    if reduction != "none":
        raise ValueError(f"linear_cross_entropy: reduction={reduction!r} is neither 'mean' nor 'none'. Use one of them")
    return _Each.apply(hidden, weight, bias, targets, _terms(hidden, weight, z_loss, label_smoothing, chunk, ignore_index))


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    ignore_index: int = -100,
) -> LinearLoss:
    """The mean of `linear_cross_entropy`, with its nats and the number of rows that count."""
    return LinearLoss(*_Mean.apply(hidden, weight, bias, targets, _terms(hidden, weight, z_loss, label_smoothing, chunk, ignore_index)))


def chunk_rows(vocabulary: int) -> int:
    """Rows whose logits are made at once (see the head of this file)."""
    return max(SMALLEST_CHUNK, CHUNK_LOGITS // vocabulary)


class _Terms(NamedTuple):
    """What the loss is made of."""

    z_loss: float
    label_smoothing: float
    chunk: int
    ignore_index: int
    dtype: torch.dtype
    """Of the matrix products"""
    gradient: bool
    """Whether anybody will ask for it: a Function cannot see that it runs under no_grad"""


def _terms(hidden: Tensor, weight: Tensor, z_loss: float, label_smoothing: float, chunk: int | None, ignore_index: int) -> _Terms:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _Terms(z_loss, label_smoothing, chunk or chunk_rows(weight.shape[0]), ignore_index, dtype, torch.is_grad_enabled())


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor | None = None) -> Tensor:
    """(n, D) -> (n, V), in float32 or wider. `into`: room for them that was used before and so is in the cache."""
    logits = torch.mm(hidden, weight.t(), out=None if into is None else into[: len(hidden)])
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return logits if bias is None else logits.add_(bias)


def _turn(logits: Tensor, targets: Tensor, terms: _Terms, gradient: bool) -> tuple[Tensor, Tensor]:
    """The loss and the nats of each row, (n,) and (n,); with `gradient`, `logits` (n, V) become the loss's derivative by them.

    With p = softmax(logits), L = logsumexp(logits), e the smoothing and z the z-loss:
    loss = (1 - e) (L - logits[target]) + e (L - mean(logits)) + z L^2, and its derivative is p (1 + 2 z L) - (1 - e) onehot - e / V.
    """
    at = targets[:, None]
    target, mean = logits.gather(1, at), logits.mean(1) if terms.label_smoothing else None
    log_p = torch.log_softmax(logits, 1, out=logits)
    nats = -log_p.gather(1, at)[:, 0]
    total = target[:, 0] + nats  # logsumexp
    loss = nats if mean is None else (1 - terms.label_smoothing) * nats + terms.label_smoothing * (total - mean)
    loss = loss + terms.z_loss * total.square() if terms.z_loss else loss
    if gradient:
        p = log_p.exp_()
        if terms.z_loss:
            p.mul_((1 + 2 * terms.z_loss * total)[:, None])
        if terms.label_smoothing:
            p.sub_(terms.label_smoothing / p.shape[1])
        p.scatter_add_(1, at, p.new_full((1, 1), terms.label_smoothing - 1).expand_as(at))
    return loss, nats


class _Gradients:
    """The gradients of the sum of losses, chunk by chunk; what is not needed stays None."""

    def __init__(self, needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden, dtype=wide) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None

    def add(self, rows: slice, hidden: Tensor, weight: Tensor, by_logits: Tensor, scale: Tensor | None = None) -> None:
        """`scale` (n,): what each row's loss counts; put on the narrow side of each product."""
        if self.bias is not None:
            self.bias += by_logits.sum(0) if scale is None else scale.to(by_logits.dtype) @ by_logits
        by_logits = by_logits.to(weight.dtype)
        if self.hidden is not None:
            _product(by_logits, weight, self.hidden[rows])
            if scale is not None:
                self.hidden[rows] *= scale[:, None]
        hidden = hidden if scale is None else hidden * scale[:, None].to(hidden.dtype)
        if self.weight is not None:
            if self.weight.dtype == hidden.dtype:
                self.weight.addmm_(by_logits.t(), hidden)
            else:
                self.weight += by_logits.t() @ hidden


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _counted(targets: Tensor, ignore_index: int) -> Tensor | None:
    """Indices of the rows that count; None where all do."""
    counts = targets != ignore_index
    return None if bool(counts.all()) else counts.nonzero()[:, 0]


def _spread(rows: Tensor, kept: Tensor | None, n: int) -> Tensor:
    """Rows put where they came from, zeros between them: (k, ...) -> (n, ...)."""
    return rows if kept is None else rows.new_zeros(n, *rows.shape[1:]).index_copy_(0, kept, rows)


class _Mean(torch.autograd.Function):
    """Loss, nats and count; the gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
        kept = _counted(targets, terms.ignore_index)
        rows, wanted = (hidden, targets) if kept is None else (hidden[kept], targets[kept])
        ctx.n, ctx.types = len(hidden), [None if t is None else t.dtype for t in (hidden, weight, bias)]
        rows, w = rows.to(terms.dtype), weight.to(terms.dtype)
        needed = tuple(terms.gradient and one for one in ctx.needs_input_grad[:3])
        gradients = _Gradients(needed, rows, w, bias)
        wide = torch.promote_types(terms.dtype, torch.float32)
        loss, nats = rows.new_zeros((), dtype=wide), rows.new_zeros((), dtype=wide)
        room = rows.new_empty(min(terms.chunk, len(rows)), len(w))
        for part in _parts(len(rows), terms.chunk):
            logits = _logits(rows[part], w, bias, room)
            losses, surprises = _turn(logits, wanted[part], terms, any(needed))
            loss, nats = loss + losses.sum(), nats + surprises.sum()
            if any(needed):
                gradients.add(part, rows[part], w, logits)
        ctx.count = max(1, len(rows))
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias, kept)
        count = torch.tensor(len(rows), device=hidden.device)
        nats = nats / ctx.count
        ctx.mark_non_differentiable(nats, count)
        return loss / ctx.count, nats, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias, kept = ctx.saved_tensors
        scale = by_loss / ctx.count
        made = [None if t is None else t * scale for t in (by_hidden, by_weight, by_bias)]
        made[0] = None if made[0] is None else _spread(made[0], kept, ctx.n)
        return (*(None if t is None else t.to(d) for t, d in zip(made, ctx.types, strict=True)), None, None)


class _Each(torch.autograd.Function):
    """A loss for each row. What the logits give is kept where they are few, and made again where they are many, in the backward pass, when each row's weight is known."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: _Terms) -> Tensor:
        kept = _counted(targets, terms.ignore_index)
        rows, wanted = (hidden, targets) if kept is None else (hidden[kept], targets[kept])
        rows, w = rows.to(terms.dtype), weight.to(terms.dtype)
        is_few = terms.gradient and len(rows) * len(w) <= KEPT_LOGITS
        losses, made = [rows.new_zeros(0, dtype=torch.promote_types(terms.dtype, torch.float32))], []
        for part in _parts(len(rows), terms.chunk):
            logits = _logits(rows[part], w, bias)
            losses.append(_turn(logits, wanted[part], terms, is_few)[0])
            made += [logits] if is_few else []
        ctx.terms = terms
        ctx.save_for_backward(hidden, weight, bias, targets, kept, *made)
        return _spread(torch.cat(losses), kept, len(hidden))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, kept, *made = ctx.saved_tensors
        terms = ctx.terms
        rows, wanted, scale = (hidden, targets, by_loss) if kept is None else (hidden[kept], targets[kept], by_loss[kept])
        rows, w = rows.to(terms.dtype), weight.to(terms.dtype)
        gradients = _Gradients(ctx.needs_input_grad[:3], rows, w, bias)
        for k, part in enumerate(_parts(len(rows), terms.chunk)):
            by_logits = made[k] if made else _logits(rows[part], w, bias)
            if not made:
                _turn(by_logits, wanted[part], terms, True)
            gradients.add(part, rows[part], w, by_logits, scale[part])
        by_hidden = None if gradients.hidden is None else _spread(gradients.hidden, kept, len(hidden)).to(hidden.dtype)
        by_weight = None if gradients.weight is None else gradients.weight.to(weight.dtype)
        return by_hidden, by_weight, None if gradients.bias is None else gradients.bias.to(bias.dtype), None, None


def _parts(n: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, n, chunk)]
