"""PPO: the chat model learns to write answers that are rewarded, and is charged for drifting from itself.

Schulman et al. 2017 (arXiv:1707.06347), as used on language models by Ziegler et al. 2019 (arXiv:1909.08593) and Ouyang et al. 2022
(arXiv:2203.02155). One iteration (online.py): sample answers; score them; turn scores and KL into a reward per token; estimate advantages; take
`epochs` passes of clipped updates.

Choices. The value function is a model of its own that starts as the reward model read at every token (as in Ouyang et al.): it begins with a sensible
estimate, and its errors do not pull on the policy's small trunk. Without a reward model it starts as the chat model with a head of noughts, which
expects nothing. `value_function: head` has a layer on the policy's trunk instead, begun with noughts: half the time and memory. Policy and value share one optimizer and one clipped gradient norm, so `value_coef` decides how much of that norm the value may take.
A model's scores are on the scale of its own held-out answers (`scale.json`).

With `safety` an answer's cost is limited (lagrange.py): a second value function estimates costs, and the advantages of reward and cost are weighed by
the multiplier before they are whitened (Safe RLHF, Dai et al. 2023, arXiv:2310.12773). Changed: KL is charged to the reward alone, not half of it to
the cost.

    python -m components ppo --config recipe.yaml --out DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.models.build import save
from components.models.heads import scalar_model_from, values
from components.schema.posttraining import PPOConfig, RewardTerm
from components.schema.records import Outcome
from components.training import fast
from components.training.align import Given
from components.training.lagrange import Multiplier, constrained
from components.training.losses import gae, kl_k1, kl_k3, policy_loss, token_rewards, value_loss, whiten
from components.training.online import Ground, Online, align, drift, in_chunks, prepare
from components.training.prompts import Question
from components.training.rewards import Judged
from components.training.rollouts import Rollout, answer_logprobs, answer_logprobs_and_values
from components.training.template import write_contract
from components.training.trainer import Context, device_of

KL_STEP = 0.2  # the adaptive coefficient answers to at most this relative error (Ziegler et al. 2019, section 2.2)


@dataclass(frozen=True)
class Critic:
    """A scalar model and how to read it: (what it says - mean) / std."""

    model: PreTrainedModel
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, ids: Tensor, counts: Tensor) -> Tensor:
        """What is still to come before each answer token is chosen: (B, T); 0 elsewhere.

        The value before token t is read at token t - 1, which is the last one that the choice could know.
        """
        before = values(self.model, ids).roll(1, dims=1)  # column 0 is never an answer, so what wraps round is not read
        return torch.where(counts, (before - self.mean) / self.std, 0.0)


@dataclass(frozen=True)
class Stream:
    """What a critic has to learn from a rollout. All (B, T)."""

    old_values: Tensor
    returns: Tensor


@dataclass(frozen=True)
class Experience:
    """A rollout, assessed by the models as they were when it was sampled. All (B, T)."""

    rollout: Rollout
    old_logp: Tensor
    advantages: Tensor
    streams: dict[str, Stream]
    """By what is estimated: reward and, where it is limited, cost."""


class PPO(Online):
    """Advantages per token, from value functions."""

    config: PPOConfig

    def __init__(self, ground: Ground, critics: dict[str, Critic], config: PPOConfig, context: Context) -> None:
        """`critics`: of the reward and, with config.safety, of the cost; none where the policy's own trunk says what it expects."""
        super().__init__(ground, config, context)
        self.critics, self.streams = critics, ("reward", "cost") if config.safety else ("reward",)
        if config.value_function == "head":
            self.value_head = nn.Linear(ground.policy.config.hidden_size, len(self.streams), device=ground.policy.device)
            for parameter in self.value_head.parameters():
                nn.init.zeros_(parameter)
        else:
            self.critic = critics["reward"].model.eval()
        self.price = KlPrice(config)
        if config.reward_scale == "running":
            self.scale = RunningScale()
        if "cost" in critics:
            self.cost_critic = critics["cost"].model.eval()
        if config.safety:
            self.multiplier = Multiplier(config.safety)

    @torch.no_grad()
    def assess(self, rollout: Rollout, judged: Judged, questions: Sequence[Question]) -> tuple[Experience, dict[str, float]]:
        counts, config = rollout.counts, self.config
        moved = drift(self.ground, rollout, config.temperature)
        reward = judged.total - config.unfinished_penalty * ~rollout.finished
        if config.reward_scale == "running":
            reward = self.scale(reward)
        kl = {"k1": kl_k1, "k3": kl_k3}[config.kl_estimator](moved.logp, moved.reference)
        seen = {"reward": judged.total.mean().item(), **moved.numbers, "kl_coef": self.price.value}
        rewards = {"reward": token_rewards(reward, kl, counts, self.price.value)}
        if config.safety:
            cost = self.ground.costs(rollout, questions).total
            self.multiplier.follow(cost)
            rewards["cost"] = token_rewards(cost, kl, counts, 0.0)
            seen |= {"cost": cost.mean().item(), "mean_cost": self.multiplier.mean_cost.item(), "multiplier": self.multiplier.value}
        expected = in_chunks(lambda ids, answers: tuple(self.expected(ids, answers)), rollout)  # (B, T) each
        streams, advantages = {}, {}
        for name, old_values in zip(self.streams, expected, strict=True):
            advantages[name], returns = gae(rewards[name], old_values, counts, config.gamma, config.gae_lambda)
            streams[name] = Stream(old_values, returns)
            seen["value_explained" if name == "reward" else f"{name}_value_explained"] = explained(old_values[counts], returns[counts])
        both = constrained(advantages["reward"], advantages["cost"], self.multiplier.value) if config.safety else advantages["reward"]
        self.price.follow(moved.numbers["kl"], len(rollout.answers))
        return Experience(rollout, moved.logp, whiten(both, counts), streams), seen

    def loss(self, experience: Experience, which: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        ids, counts = experience.rollout.rows(which)
        T = ids.shape[1]
        logp, values = self.said_and_expected(ids, counts)
        loss, clipped = policy_loss(logp, experience.old_logp[which, :T], experience.advantages[which, :T], weights, config.clip_range)
        seen = {"policy_loss": loss.detach(), "clipped": clipped}
        for name, value in zip(self.streams, values, strict=False):  # none where value_coef is 0
            stream = experience.streams[name]
            error = value_loss(value, stream.old_values[which, :T], stream.returns[which, :T], weights, config.value_clip_range)
            loss, seen["value_loss" if name == "reward" else f"{name}_value_loss"] = loss + config.value_coef * error, error.detach()
        return loss, seen


    def said_and_expected(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities of the answers, and what is expected before each token, by stream: (B, T), (B, T) each; no values where nobody learns from them."""
        config = self.config
        if config.value_function == "head" and config.value_coef:
            logp, values = answer_logprobs_and_values(self.policy, ids, counts, config.temperature, self.value_head)
            return logp, list(values.unbind(-1))
        logp, _ = answer_logprobs(self.policy, ids, counts, config.temperature, with_entropy=False)
        return logp, self.expected(ids, counts) if config.value_coef else []

    def expected(self, ids: Tensor, counts: Tensor) -> list[Tensor]:
        """What is expected before each token, by stream: (B, T) each."""
        if self.config.value_function == "head":
            return list(answer_logprobs_and_values(self.policy, ids, counts, self.config.temperature, self.value_head)[1].unbind(-1))
        return [self.critics[name](ids, counts) for name in self.streams]


class KlPrice(nn.Module):
    """What a nat of KL costs: fixed, or a proportional controller towards `kl_target` (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""

    coef: Tensor

    def __init__(self, config: PPOConfig) -> None:
        super().__init__()
        self.target, self.horizon = config.kl_target, config.kl_horizon
        self.register_buffer("coef", torch.tensor(config.kl_coef, dtype=torch.float64))

    @property
    def value(self) -> float:
        return self.coef.item()

    def follow(self, kl: float, answers: int) -> None:
        """Rise where the KL of so many answers is above the target, fall where it is below."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -KL_STEP), KL_STEP)
            self.coef.mul_(1 + error * answers / self.horizon)


class RunningScale(nn.Module):
    """Divides rewards by the standard deviation of all rewards so far (Chan et al. 1979 for adding batches). They keep their sign: nothing is subtracted."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.tensor(0.0, dtype=torch.float64))

    def forward(self, rewards: Tensor) -> Tensor:
        """Take in (B,) rewards and scale them."""
        new, n = rewards.double(), len(rewards)
        apart, total = new.mean() - self.mean, self.count + n
        self.squares += ((new - new.mean()) ** 2).sum() + apart**2 * self.count * n / total
        self.mean += apart * n / total
        self.count.copy_(total)
        deviation = (self.squares / self.count).sqrt().item()
        return rewards / deviation if deviation > 1e-8 else rewards


def explained(estimates: Tensor, truth: Tensor) -> float:
    """Share of the returns' variance that the values explain; 0 where there is none."""
    variance = truth.var().item() if len(truth) > 1 else 0.0
    return 1 - (truth - estimates).var().item() / variance if variance > 0 else 0.0


# ---------------------------------------------------------------- the stage


def run(config: PPOConfig, given: Given, out: Path, context: Context) -> Outcome:
    """Align the chat model with the rewards and leave it in `out`. Errors: BadInput."""
    costs = config.safety.cost if config.safety else ()
    ground = prepare(config, given, context, costs)
    of = (("reward", config.rewards), ("cost", costs)) if config.value_function == "model" else ()
    critics = {name: critic_for(name, terms, ground, given, context) for name, terms in of if terms}
    module = PPO(ground, critics, config, context)
    aligned = align(module, out, context)
    save(ground.policy, given.chat, out)
    write_contract(ground.words, out)
    figures: dict[str, Any] = {**aligned.figures, "kl_coef": module.price.value}
    if config.safety:
        figures |= {"cost_limit": config.safety.limit, "multiplier": module.multiplier.value}
    return Outcome(figures=figures, samples=aligned.samples, execution=aligned.execution)


def critic_for(role: str, terms: Sequence[RewardTerm], ground: Ground, given: Given, context: Context) -> Critic:
    """A value function that expects what the scalar model of this role says of an answer so far; where none is asked, nothing."""
    weight = sum(term.weight for term in terms if term.kind == "model")
    scorer = (ground.scorers or {}).get(role)
    model = scalar_model_from(given.scorers[role] if scorer else given.chat, context.seed).to(device_of(context.accelerator))
    fast.prepare(model)
    if scorer and weight:
        return Critic(model, scorer.mean, scorer.std / weight)
    nn.init.zeros_(model.score.weight)
    return Critic(model)
