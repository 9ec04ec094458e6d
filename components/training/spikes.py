"""Steps that are left out because their gradient is out of all proportion.

A step is left out where its gradient's global norm, before clipping, is more than `factor` times the median of the last
128 accepted ones, or is no finite number (which without a factor ends the run before the weights are lost). Clipping bounds such a step's length but not its direction, and AdamW's second
moment remembers it for hundreds of steps; PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1) found that going on
without the batches around a spike is enough, OLMo 2 (arXiv:2501.00656, section 3.1) that repeated n-grams in the data set spikes off.
Weights, moments and averages stay as they were; the learning-rate schedule goes on, for it follows the data.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from components.schema.config import BadInput

REMEMBERED = 128  # accepted norms
NEEDED = 32  # of them before a step is judged
PATIENCE = 25  # steps left out in a row before the run is given up


class Spikes:
    """Remembers norms and judges new ones; the same on every process, for the norm is that of the whole gradient."""

    def __init__(self, factor: float | None) -> None:
        """`factor` None: every step with a finite norm is taken, and one without ends the run."""
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=REMEMBERED)
        self.left_out = 0
        """Steps left out so far."""
        self.in_a_row = 0

    def accepts(self, norm: float) -> bool:
        """Whether a step with this gradient norm is taken; remembers or counts it. Errors: BadInput where going on is of no use."""
        if math.isfinite(norm) and not self._is_spike(norm):
            self.norms.append(norm)
            self.in_a_row = 0
            return True
        self.left_out += 1
        self.in_a_row += 1
        if self.factor is None:
            raise BadInput(
                f"training: the gradient norm is {norm}: a step along it would lose the weights. Lower learning_rate or raise warmup_steps, or set skip_spikes (such as 10) to leave such steps out"
            )
        if self.in_a_row >= PATIENCE:
            raise BadInput(self._hopeless(norm))
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers."""
        return {"norms": list(self.norms), "left_out": self.left_out, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.norms = deque(state["norms"], maxlen=REMEMBERED)
        self.left_out, self.in_a_row = state["left_out"], state["in_a_row"]

    def _is_spike(self, norm: float) -> bool:
        return self.factor is not None and len(self.norms) >= NEEDED and norm > self.factor * statistics.median(self.norms)

    def _hopeless(self, norm: float) -> str:
        usual = f"{statistics.median(self.norms):.3g}" if self.norms else "none yet"
        return (
            f"training: {self.in_a_row} steps in a row were left out (gradient norm {norm:.3g}; median of those accepted: {usual}), so nothing is learnt any more. "
            f"Lower learning_rate or raise warmup_steps; where the norm is finite and grew for good, raise skip_spikes={self.factor}"
        )
