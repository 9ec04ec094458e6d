"""GRPO: the chat model answers each prompt several times and learns from which of its answers were better than the others.

Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and RLOO (Ahmadian et al. 2024, arXiv:2402.14740): an answer's advantage is
its reward against the other answers to the same prompt, the same for all of its tokens, so no value model is needed. Updates are PPO's, clipped. Dr.
GRPO (Liu et al. 2025, arXiv:2503.20783) is `normalise_by_std: false, length_normalisation: constant`; RLOO as published is `method: rloo,
length_normalisation: constant`.

The two differ in where the price of KL stands. grpo has it in the loss, by the k3 estimator, as published: its gradient is that of KL(chat model ||
policy). rloo takes it from the reward, so that it is KL(policy || chat model), and the best policy is the chat model's times exp(reward / kl_coef).

A round that takes one step (one epoch, one minibatch) needs no log-probabilities of its own: the ratio is 1. KL and entropy are then measured on
every eighth answer, unless something follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components.models.build import save
from components.schema.posttraining import GRPOConfig
from components.schema.records import Outcome
from components.training.align import Given
from components.training.losses import group_advantages, kl_k1, kl_k3, leave_one_out_advantages, policy_loss, weighted_sum
from components.training.online import WATCHED, Ground, Online, align, drift, prepare
from components.training.prompts import Question
from components.training.rewards import Judged
from components.training.rollouts import Rollout, answer_logprobs
from components.training.template import write_contract
from components.training.trainer import Context


@dataclass(frozen=True)
class Experience:
    """A rollout, assessed by the models as they were when it was sampled."""

    rollout: Rollout
    advantages: Tensor
    """(B,)"""
    old_logp: Tensor | None
    """(B, T); None where the ratio is 1."""
    reference: Tensor | None
    """(B, T); None where KL is not in the loss."""


class GRPO(Online):
    """Advantages from groups."""

    config: GRPOConfig

    def __init__(self, ground: Ground, config: GRPOConfig, context: Context) -> None:
        super().__init__(ground, config, context)
        self.group_size, self.mean_over = config.group_size, config.length_normalisation
        self.takes_one_step = config.epochs == 1 and config.minibatch_size == config.rollout_size

    @torch.no_grad()
    def assess(self, rollout: Rollout, judged: Judged, questions: Sequence[Question]) -> tuple[Experience, dict[str, float]]:
        config, bands = self.config, self.config.bands
        is_banded = any(band is not None for band in (bands.kl_max, bands.entropy_min, bands.entropy_max))
        kl_in_reward = config.method == "rloo" and config.kl_coef > 0
        some = range(0, len(rollout.answers), WATCHED)
        needs_policy = not self.takes_one_step or is_banded or kl_in_reward
        needs_reference = config.kl_coef > 0 or bands.kl_max is not None
        moved = drift(self.ground, rollout, config.temperature, None if needs_policy else some, None if needs_reference else some)
        reward = judged.total - config.unfinished_penalty * ~rollout.finished
        if config.method == "rloo":
            charged = reward - config.kl_coef * kl_k1(moved.logp, moved.reference).sum(1) if kl_in_reward else reward
            advantages = leave_one_out_advantages(charged, config.group_size)
        else:
            advantages = group_advantages(reward, config.group_size, config.normalise_by_std)
        groups = reward.view(-1, config.group_size)
        seen = {
            "reward": judged.total.mean().item(),
            **moved.numbers,
            "groups_alike": (groups.amax(1) - groups.amin(1) < 1e-6).float().mean().item(),  # they teach nothing: all right, or all wrong
        }
        old_logp = None if self.takes_one_step else moved.logp
        return Experience(rollout, advantages, old_logp, moved.reference if config.kl_coef and config.method == "grpo" else None), seen

    def loss(self, experience: Experience, which: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ids, counts = experience.rollout.rows(which)
        logp, _ = answer_logprobs(self.policy, ids, counts, self.config.temperature, with_entropy=False)
        old_logp = logp.detach() if experience.old_logp is None else experience.old_logp[which, : ids.shape[1]]
        loss, clipped = policy_loss(logp, old_logp, experience.advantages[which].unsqueeze(1), weights, self.config.clip_range)
        seen = {"policy_loss": loss.detach(), "clipped": clipped}
        if experience.reference is not None:
            price = self.config.kl_coef * weighted_sum(kl_k3(logp, experience.reference[which, : ids.shape[1]]), weights)
            loss, seen["kl_loss"] = loss + price, price.detach()
        return loss, seen


def run(config: GRPOConfig, given: Given, out: Path, context: Context) -> Outcome:
    """Align the chat model with the rewards and leave it in `out`. Errors: BadInput."""
    ground = prepare(config, given, context)
    aligned = align(GRPO(ground, config, context), out, context)
    save(ground.policy, given.chat, out)
    write_contract(ground.words, out)
    return Outcome(figures=aligned.figures, samples=aligned.samples, execution=aligned.execution)
