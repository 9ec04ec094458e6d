"""A limit on the expected cost of an answer, held by a Lagrange multiplier (Safe RLHF, Dai et al. 2023, arXiv:2310.12773).

Maximise E[reward] subject to E[cost] <= limit. The multiplier is the price of a unit of cost: it rises while the mean cost is above the limit and
falls while it is below, and the policy follows the reward minus the priced cost. Where helping and doing no harm agree it falls towards nought and
the reward alone decides.

Changed: log(multiplier) moves by learning_rate * violation, not by learning_rate * multiplier * violation. That is mirror ascent on the multiplier; a
small one comes back as fast as a large one goes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.schema.posttraining import SafetyConfig

BOUND = 7.0  # of log(multiplier): from 0.001, where the cost is as good as free, to 1,100, where nothing else counts


class Multiplier(nn.Module):
    """The price of cost; its state is in a checkpoint."""

    log: Tensor
    mean_cost: Tensor
    rounds: Tensor

    def __init__(self, config: SafetyConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("log", torch.tensor(config.multiplier, dtype=torch.float64).log())
        self.register_buffer("mean_cost", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("rounds", torch.tensor(0))

    @property
    def value(self) -> float:
        return self.log.exp().item()

    @torch.no_grad()
    def follow(self, costs: Tensor) -> None:
        """One step by the running mean of the answers' costs (B,)."""
        here = costs.double().mean()
        memory = min(self.config.memory, self.rounds.item() / (1 + self.rounds.item()))  # a plain mean until there is enough to remember
        self.mean_cost.mul_(memory).add_((1 - memory) * here)
        self.rounds += 1
        self.log.add_(self.config.learning_rate * (self.mean_cost - self.config.limit)).clamp_(-BOUND, BOUND)


def constrained(of_reward: Tensor, of_cost: Tensor, multiplier: float) -> Tensor:
    """Advantages of the reward minus the priced ones of the cost, over 1 + multiplier so that their size stays (as in their code)."""
    return (of_reward - multiplier * of_cost) / (1 + multiplier)
