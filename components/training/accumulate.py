"""One optimizer step over a whole batch, however many processes and micro-batches it takes.

Lightning's `accumulate_grad_batches` makes each micro-batch a batch of its own, with one count for all steps and the mean of their means as loss.
Here a Lightning batch is always one optimizer step: its closure goes through the micro-batches. So counters, logs and checkpoints are
in steps, a batch may grow from step to step, and micro-batches weigh what they count:

    gradient = sum_i weight_i * grad(loss_i) / sum_i weight_i

over the micro-batches of all processes; weight is what `training_step` returns as "weight" (what its loss is a mean over), else "tokens".
The sum of the weights is known only at the end, so gradients are divided by the batch's size on the way, which keeps them in fp16's
range, and put right by one factor before clipping. A batch that is one part in one process takes none of this: it trains as Lightning would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch.optim import Optimizer

from components.schema.config import BadInput
from components.training import parallel


class WholeBatch(_AutomaticOptimization):
    """Lightning's automatic optimization for batches that come as `parallel.cut` makes them.

    `watch` judges each loss before weights change by it, and keeps the time.
    """

    def __init__(self, trainer: Trainer, watch: Any, share: tuple[int, int]) -> None:
        super().__init__(trainer)
        self.watch, self.share = watch, share

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: OrderedDict) -> dict[str, Any]:
        try:
            return super().run(optimizer, batch_idx, kwargs)
        except BadInput as error:  # the loss is none, or the gradient
            raise self.watch.with_batch(error, batch_idx) from None

    def _make_closure(self, kwargs: OrderedDict, optimizer: Optimizer, batch_idx: int) -> AbstractClosure:
        return _Gradients(lambda: self._gradients(kwargs, optimizer, batch_idx))

    def _gradients(self, kwargs: OrderedDict, optimizer: Optimizer, batch_idx: int) -> ClosureResult:
        """Forward and backward of all parts; leaves the whole batch's gradient. Errors: BadInput for a loss that ends the run."""
        parts, elements = kwargs["batch"]["parts"], kwargs["batch"]["elements"]
        self._make_zero_grad_fn(batch_idx, optimizer)()
        backward = self._make_backward_fn(optimizer)
        if len(parts) == 1 and self.share[1] == 1:
            seen = self._part(kwargs, parts[0], lambda result: backward(result.closure_loss))
        else:
            seen = self._parts(kwargs, parts, lambda result, weight: backward(result.closure_loss * (weight * self.share[1] / elements)))
            _scale(optimizer, elements / seen.pop("weight"))
        self.watch.judge(float(seen["loss"]), batch_idx)
        return ClosureResult(seen.pop("loss"), extra=seen)

    def _part(self, kwargs: OrderedDict, part: tuple[Any, bool], backward: Callable[[ClosureResult], None]) -> dict[str, Any]:
        """One part forward and backward; what training_step said."""
        result = self._training_step(OrderedDict({**kwargs, "batch": part[0]}))
        self.watch.clock.mark("forward")
        backward(result)
        self.watch.clock.mark("backward")
        return result.asdict()

    def _parts(self, kwargs: OrderedDict, parts: list[tuple[Any, bool]], backward: Callable[[ClosureResult, float], None]) -> dict[str, Any]:
        """All parts, of all processes: weighted means of what training_step said, and the sums of "tokens" and "weight"."""
        sums: dict[str, torch.Tensor] = {}
        for i, part in enumerate(parts):
            with _block_parallel_sync_behavior(self.trainer.strategy, block=i + 1 < len(parts)):
                seen = self._part(kwargs, part, lambda result: backward(result, _weight(result.extra) * part[1]))  # noqa: B023 (called at once)
            weight, tokens = _weight(seen) * part[1], float(seen["tokens"]) * part[1]
            seen = {name: value * weight for name, value in seen.items()} | {"tokens": tokens, "weight": weight}
            for name, value in seen.items():
                value = torch.as_tensor(value, dtype=torch.float64, device=seen["loss"].device)
                sums[name] = sums[name] + value if name in sums else value
        totals = dict(zip(sums, parallel.summed(torch.stack(list(sums.values())), self.share).unbind(), strict=True))
        weight = float(totals["weight"])
        if not weight:
            raise BadInput("training: no token of the batch counts, so it has no loss and nothing would be learnt from it. Leave such rows out of the data")
        return {name: value if name in ("tokens", "weight") else value / weight for name, value in totals.items()} | {"weight": weight}


class _Gradients(AbstractClosure[ClosureResult]):
    """What Lightning hands to the optimizer as its closure."""

    def __init__(self, make: Callable[[], ClosureResult]) -> None:
        super().__init__()
        self.make = make

    @torch.enable_grad()
    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:
        return self.make()

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        self._result = self.closure()
        return self._result.loss


def _weight(seen: dict[str, Any]) -> float:
    """What a part's loss is a mean over."""
    return float(seen.get("weight", seen["tokens"]))


@torch.no_grad()
def _scale(optimizer: Optimizer, factor: float) -> None:
    """Multiply all gradients."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if factor != 1 and gradients:
        torch._foreach_mul_(gradients, factor)
