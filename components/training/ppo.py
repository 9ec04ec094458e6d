"""PPO: the chat model learns to write answers that the reward model likes, and is charged for drifting from itself.

Schulman et al. 2017 (arXiv:1707.06347), as used on language models by Ziegler et al. 2019 (arXiv:1909.08593) and Ouyang
et al. 2022 (arXiv:2203.02155). One iteration: sample answers; score them; turn scores and KL into a reward per token;
estimate advantages; take `epochs` passes of clipped updates. An iteration is a function of (seed, iteration, weights and
optimizer state), so a killed run resumes exactly (trainer.py).

Choices. The value function is a model of its own that starts as the reward model read at every token (as in Ouyang et
al.): it begins with a sensible estimate, and its errors do not pull on the policy's small trunk. Policy and value share
one optimizer and one clipped gradient norm, so `value_coef` decides how much of that norm the value may take. Scores
are normalised with the reward model's own held-out mean and standard deviation (`scale.json`). Dropout is off, so
that the first ratio of an iteration is exactly 1.

    python -m components ppo --config recipe.yaml --out DIR
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load, load_tokenizer, save, stop_ids
from components.models.heads import scalar_model_from, values
from components.schema.config import BadInput
from components.schema.records import Outcome, Sample
from components.schema.training import PPOConfig
from components.training.batches import read_rows, visits
from components.training.losses import gae, kl_k1, kl_k3, masked_mean, ppo_policy_loss, ppo_value_loss, whiten
from components.training.reward import SCALE, score_texts
from components.training.rollouts import Rollout, answer_logprobs, sample
from components.training.template import encode_prompts, require_contract, write_contract
from components.training.trainer import Context, device_of, fit, mixed_seed, remembered

SAMPLES, ANSWERS_PER_HELDOUT_PROMPT = 3, 2
FORWARD_ROWS = 64


@dataclass(frozen=True)
class Scorer:
    """A frozen reward model with its scale."""

    model: PreTrainedModel
    mean: float
    std: float

    def __call__(self, rollout: Rollout, pad_id: int) -> Tensor:
        """Normalised score of each answer: (B,)."""
        texts = [p + a for p, a in zip(rollout.prompts, rollout.answers, strict=True)]
        return ((score_texts(self.model, texts, FORWARD_ROWS, pad_id) - self.mean) / self.std).float().to(rollout.ids.device)


@dataclass(frozen=True)
class Experience:
    """A rollout, assessed by the models as they were when it was sampled. All (B, T)."""

    rollout: Rollout
    old_logp: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class PPO(LightningModule):
    """One training_step is one iteration: a rollout and `epochs` passes of updates over it."""

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel, reference: PreTrainedModel, scorer: Scorer,
                 prompts: list[list[int]], config: PPOConfig, stops: list[int], seed: int) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.critic = policy.eval(), critic.eval()
        self.frozen = (reference.eval(), scorer)  # in a tuple: not parameters of this module, so neither trained nor checkpointed
        self.prompts, self.config, self.stops, self.seed = prompts, config, stops, seed

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        return [optimizer], [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.config.warmup_steps)))]

    def training_step(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        rollout = sample(
            self.policy, [self.prompts[i] for i in batch["prompts"]], stop_ids=self.stops, max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature, seed=mixed_seed(self.seed, batch["iteration"]),
        )  # fmt: skip
        experience, seen = self.assess(rollout)
        losses = self.improve(experience, batch["iteration"])
        self.log_dict({**seen, **losses})
        return {"loss": torch.tensor(losses["loss"]), "tokens": int(rollout.counts.sum()), **seen}

    @torch.no_grad()
    def assess(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """Score a rollout, charge its KL, estimate advantages; and the numbers to watch."""
        reference, scorer = self.frozen
        counts, config = rollout.counts, self.config
        old_logp, entropy = in_chunks(lambda ids, answer: answer_logprobs(self.policy, ids, answer, config.temperature), rollout)
        ref_logp, _ = in_chunks(lambda ids, answer: answer_logprobs(reference, ids, answer, config.temperature), rollout)
        (old_values,) = in_chunks(lambda ids, answer: (answer_values(self.critic, scorer, ids, answer),), rollout)
        score = scorer(rollout, self.stops[1])
        kl = kl_k1(old_logp, ref_logp)
        rewards = token_rewards(score - config.unfinished_penalty * ~rollout.finished, kl, counts, config.kl_coef)
        advantages, returns = gae(rewards, old_values, counts, config.gamma, config.gae_lambda)
        seen = {
            "reward": score.mean().item(),
            "kl": kl.sum(1).mean().item(),
            "kl_k3_per_token": masked_mean(kl_k3(old_logp, ref_logp), counts).item(),
            "entropy": masked_mean(entropy, counts).item(),
            "length": counts.sum(1).float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
            "value_explained": explained(old_values[counts], returns[counts]),
        }
        return Experience(rollout, old_logp, old_values, whiten(advantages, counts), returns), seen

    def improve(self, experience: Experience, iteration: int) -> dict[str, float]:
        """`epochs` passes of clipped updates; returns the means of what was seen."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        rows, per_step = len(experience.rollout.answers), []
        for epoch in range(self.config.epochs):
            order = np.random.default_rng([self.seed, iteration, epoch]).permutation(rows)
            for which in order.reshape(-1, self.config.minibatch_size).tolist():
                loss, seen = self.minibatch_loss(experience, which)
                optimizer.zero_grad()
                self.manual_backward(loss)
                seen["grad_norm"] = nn.utils.clip_grad_norm_(self.parameters(), self.config.grad_clip_norm)
                optimizer.step()
                schedule.step()
                per_step.append({name: float(value) for name, value in seen.items()})
        return {name: sum(step[name] for step in per_step) / len(per_step) for name in per_step[0]}

    def minibatch_loss(self, experience: Experience, which: list[int]) -> tuple[Tensor, dict[str, Any]]:
        """Policy loss plus weighted value loss on some rows of the rollout."""
        config, scorer = self.config, self.frozen[1]
        ids, counts = experience.rollout.rows(which)
        old_logp, old_values, advantages, returns = (
            x[which, : ids.shape[1]] for x in (experience.old_logp, experience.old_values, experience.advantages, experience.returns)
        )
        logp, _ = answer_logprobs(self.policy, ids, counts, config.temperature)
        policy_loss, clipped = ppo_policy_loss(logp, old_logp, advantages, counts, config.clip_range)
        value_loss = ppo_value_loss(answer_values(self.critic, scorer, ids, counts), old_values, returns, counts, config.value_clip_range)
        loss = policy_loss + config.value_coef * value_loss
        return loss, {"loss": loss.detach(), "policy_loss": policy_loss.detach(), "value_loss": value_loss.detach(), "clipped": clipped}


def answer_values(critic: PreTrainedModel, scorer: Scorer, ids: Tensor, counts: Tensor) -> Tensor:
    """What is still to come before each answer token is chosen, on the scale of normalised scores: (B, T); 0 elsewhere.

    The value before token t is read at token t - 1, which is the last one that the choice could know.
    """
    before = values(critic, ids).roll(1, dims=1)  # column 0 is never an answer, so what wraps round is not read
    return torch.where(counts, (before - scorer.mean) / scorer.std, 0.0)


def token_rewards(score: Tensor, kl: Tensor, counts: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: minus the price of its KL, plus the answer's score at its last token: (B, T); 0 elsewhere."""
    is_last = counts & ~counts.roll(-1, dims=1)
    is_last[:, -1] = counts[:, -1]  # what rolls in from column 0 is no successor
    return torch.where(counts, -kl_coef * kl, 0.0) + torch.where(is_last, score.unsqueeze(1), 0.0)


def in_chunks(assess: Any, rollout: Rollout) -> tuple[Tensor, ...]:
    """`assess(ids, counts) -> tensors (b, t)` over a rollout a few rows at a time, shortest first, put together to (B, T)."""
    order = sorted(range(len(rollout.answers)), key=lambda i: len(rollout.prompts[i]) + len(rollout.answers[i]))
    whole: list[Tensor] = []
    for start in range(0, len(order), FORWARD_ROWS):
        which = order[start : start + FORWARD_ROWS]
        for k, part in enumerate(assess(*rollout.rows(which))):
            if k == len(whole):
                whole.append(torch.zeros(rollout.ids.shape, dtype=part.dtype, device=part.device))
            whole[k][which, : part.shape[1]] = part
    return tuple(whole)


def explained(estimates: Tensor, truth: Tensor) -> float:
    """Share of the returns' variance that the values explain; 0 where there is none."""
    variance = truth.var().item()
    return 1 - (truth - estimates).var().item() / variance if variance > 0 else 0.0


# ---------------------------------------------------------------- the stage


def run(config: PPOConfig, chat: Path, scorer: Path, preferences: Path, out: Path, context: Context) -> Outcome:
    """Align the chat model in `chat` with the reward model in `scorer` and leave it in `out`. Errors: BadInput."""
    words, device = load_tokenizer(chat), device_of(context.accelerator)
    require_contract(chat, words, "ppo")
    require_contract(scorer, words, "ppo")
    policy, reference = (load(chat).eval().to(device) for _ in range(2))
    judge = load_scorer(scorer, context.seed, device)
    room = policy.config.max_position_embeddings - config.max_new_tokens
    prompts = read_prompts(preferences / "train.jsonl", words, room)
    heldout = read_prompts(preferences / "heldout.jsonl", words, room, at_most=config.heldout_prompts)

    def judged() -> dict[str, Any]:
        return judge_policy(policy, reference, judge, heldout, config, stop_ids(words), context.seed)

    before = remembered(out, "before", judged)
    module = PPO(policy, scalar_model_from(scorer, context.seed).to(device), reference, judge, prompts, config, stop_ids(words), context.seed)
    course = fit(
        module,
        lambda i: {"iteration": i, "prompts": visits(len(prompts), i * config.rollout_size, config.rollout_size, context.seed)},
        config.iterations,
        every=config.checkpoint_every_iterations,
        out=out,
        context=context,
        identity={"config": config.model_dump(mode="json")},
        unit="iterations",
        log_every=1,
    )
    after = judged()
    save(policy, chat, out)
    write_contract(words, out)
    figures = {"prompts": len(prompts), "loss_last": course.losses[-1], **comparison(before, after)}
    return Outcome(figures=figures, samples=side_by_side(heldout, before, after, words), execution=course.execution())


def load_scorer(folder: Path, seed: int, device: torch.device) -> Scorer:
    """The reward model in a folder, with its scale. Errors: BadInput."""
    try:
        scale = json.loads((folder / SCALE).read_text(encoding="utf-8"))
        return Scorer(scalar_model_from(folder, seed).eval().requires_grad_(False).to(device), scale["mean"], scale["std"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"ppo: {folder / SCALE} cannot be read ({error!r}), so scores have no scale. Give the folder of a finished reward stage") from None


def read_prompts(path: Path, words: PreTrainedTokenizerBase, longest: int, at_most: int | None = None) -> list[list[int]]:
    """The distinct prompts of a preference file that leave room for an answer, in the file's order. Errors: BadInput."""
    rows = read_rows(path)
    distinct = list({json.dumps(row["prompt"], sort_keys=True): row["prompt"] for row in rows}.values())
    fitting = [ids for ids in encode_prompts(words, distinct) if len(ids) <= longest]
    if not fitting:
        raise BadInput(f"ppo: none of the {len(distinct)} prompts of {path} fits {longest} tokens, which max_new_tokens leaves of the context: nothing could be answered. Lower max_new_tokens")
    return fitting[:at_most]


@torch.no_grad()
def judge_policy(policy: PreTrainedModel, reference: PreTrainedModel, scorer: Scorer, prompts: list[list[int]], config: PPOConfig, stops: list[int], seed: int) -> dict[str, Any]:
    """Answers to held-out prompts, sampled as in training with fixed seeds, and what they are worth. Lists are by prompt."""
    rollout = sample(
        policy, prompts * ANSWERS_PER_HELDOUT_PROMPT, stop_ids=stops, max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=mixed_seed(seed, 2**31)
    )  # fmt: skip
    logp, entropy = in_chunks(lambda ids, counts: answer_logprobs(policy, ids, counts, config.temperature), rollout)
    ref_logp, _ = in_chunks(lambda ids, counts: answer_logprobs(reference, ids, counts, config.temperature), rollout)
    by_prompt = scorer(rollout, stops[1]).double().view(ANSWERS_PER_HELDOUT_PROMPT, -1).mean(0)
    kl, counts = kl_k1(logp, ref_logp).double(), rollout.counts
    return {
        "rewards": by_prompt.tolist(),
        "kl": kl.sum(1).mean().item(),
        "kl_stderr": kl.sum(1).std().item() / math.sqrt(len(kl)),
        "kl_per_token": masked_mean(kl, counts).item(),
        "kl_k3_per_token": masked_mean(kl_k3(logp, ref_logp), counts).item(),
        "entropy": masked_mean(entropy, counts).item(),
        "length": counts.sum(1).double().mean().item(),
        "finished": rollout.finished.double().mean().item(),
        "answers": rollout.answers[: len(prompts)],
    }


def comparison(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Figures of a policy before and after, the gain with the standard error of the paired difference over prompts."""
    rewards = torch.tensor([before["rewards"], after["rewards"]], dtype=torch.float64)  # (2, prompts)
    gain = rewards[1] - rewards[0]
    figures = {
        "reward_before": rewards[0].mean().item(),
        "reward_after": rewards[1].mean().item(),
        "reward_gain": gain.mean().item(),
        "reward_gain_stderr": gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else 0.0,
        **{name: after[name] for name in ("kl", "kl_stderr", "kl_per_token", "kl_k3_per_token")},
    }
    for name in ("entropy", "length", "finished"):
        figures |= {f"{name}_before": before[name], f"{name}_after": after[name]}
    return figures


def side_by_side(prompts: list[list[int]], before: dict[str, Any], after: dict[str, Any], words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """A few held-out prompts with an answer from before and one from after."""
    return tuple(
        Sample(
            prompt=words.decode(prompts[i]),
            output=f"before: {words.decode(before['answers'][i])} | after: {words.decode(after['answers'][i])} | reward {before['rewards'][i]:+.2f} to {after['rewards'][i]:+.2f}",
        )
        for i in range(min(SAMPLES, len(prompts)))
    )
