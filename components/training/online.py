"""What PPO and GRPO share: rounds of answering, judging and updating, watched, and measured on held-out prompts before and after.

One training_step is one iteration: sample answers, judge them, assess them (each algorithm its own way), take `epochs` passes of updates. All of it
is a function of (seed, iteration, weights, optimizer state, the module's buffers), so a run that is killed anywhere, while it samples too, goes on
from its last checkpoint to the same bits.

Dropout is off, so that the first ratio of an iteration is exactly 1. A minibatch's loss is a sum of its parts' (losses.py): how many rows stand in
memory at once changes rounding alone. KL is measured against the chat model; an iteration that finds KL or entropy outside its band updates nothing
and is the last.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load, load_tokenizer, stop_ids
from components.models.engines import Engine, engine_for
from components.schema.config import BadInput
from components.schema.posttraining import BandsConfig, BestOfNConfig, OnlineConfig, RewardTerm
from components.schema.records import Sample
from components.training import fast
from components.training.align import Given
from components.training.batches import visits
from components.training.losses import kl_k1, kl_k3, masked_mean, token_weights
from components.training.prompts import Question, read_questions
from components.training.rewards import Judged, Rewards
from components.training.rollouts import Rollout, answer_logprobs, sample
from components.training.scorer import Scorer, load_scorer
from components.training.template import require_contract
from components.training.trainer import Context, Looks, device_of, fit, mixed_seed, remembered
from components.training.trust import correlation, repetition, suspicions

SAMPLES, ANSWERS_PER_HELDOUT_PROMPT = 3, 2
FORWARD_ROWS = 64
WATCHED = 8  # where nothing follows from KL and entropy, they are measured on every eighth answer
READINGS = "watch.jsonl"

Judge = Callable[[Rollout, Sequence[Question]], Judged]


@dataclass(frozen=True)
class Ground:
    """What a run stands on, loaded and checked."""

    words: PreTrainedTokenizerBase
    stops: list[int]
    """End of turn, padding."""
    policy: PreTrainedModel
    reference: PreTrainedModel
    """The chat model as it was."""
    questions: list[Question]
    heldout: list[Question]
    rewards: Judge
    costs: Judge | None = None
    """What an answer costs, where that is limited."""
    scorers: dict[str, Scorer] | None = None
    """By role: reward, cost, judge; those that are asked."""
    engine: Engine | None = None
    """What answers in the policy's place; None = the policy."""

    @property
    def judge(self) -> Scorer | None:
        """A reward model that training does not see."""
        return (self.scorers or {}).get("judge")


def prepare(config: OnlineConfig | BestOfNConfig, given: Given, context: Context, costs: Sequence[RewardTerm] = ()) -> Ground:
    """Load what is asked for. Errors: BadInput."""
    words, device, what = load_tokenizer(given.chat), device_of(context.accelerator), config.stage
    asked = {"reward": config.needs_scorer, "cost": any(term.kind == "model" for term in costs), "judge": "judge" in given.scorers}
    if missing := [role for role, is_asked in asked.items() if is_asked and role not in given.scorers]:
        raise BadInput(
            f"{what}: an answer is to be judged by the {missing[0]} model, and the recipe has none: nothing could be learnt. Add a section `{missing[0]}` to it"
        )
    folders = {role: given.scorers[role] for role, is_asked in asked.items() if is_asked}
    for folder in (given.chat, *folders.values()):
        require_contract(folder, words, what)
    policy, reference = (load(given.chat).eval().to(device) for _ in range(2))
    reference.requires_grad_(False)
    scorers = {role: load_scorer(folder, context.seed, device) for role, folder in folders.items()}
    for model in (policy, reference):
        fast.prepare(model)
    room = policy.config.max_position_embeddings - config.max_new_tokens
    questions = read_questions(config.prompts, given, words, "train", room)
    heldout = read_questions(config.prompts, given, words, "heldout", room, at_most=config.heldout_prompts)
    rewards, priced = (
        Rewards(terms, scorers.get(role), words, given.run_tests) if terms else None for terms, role in ((config.rewards, "reward"), (costs, "cost"))
    )
    for judge in filter(None, (rewards, priced)):
        judge.check(questions)
    engine = engine_for(context.resources.engine, given.chat, context_tokens=policy.config.max_position_embeddings)
    return Ground(words, stop_ids(words), policy, reference, questions, heldout, rewards, priced, scorers, engine)


# ---------------------------------------------------------------- one iteration


@dataclass(frozen=True)
class Drift:
    """How far a policy has moved, on the answers of a rollout."""

    logp: Tensor
    """(B, T) log-probabilities of the policy; 0 where they were not asked for."""
    reference: Tensor
    """(B, T) of the chat model."""
    numbers: dict[str, float]
    """kl (k1) and kl_k3 in nats an answer, entropy in nats a token."""


@torch.no_grad()
def drift(ground: Ground, rollout: Rollout, temperature: float, rows: Sequence[int] | None = None, reference_rows: Sequence[int] | None = None) -> Drift:
    """Assess a rollout, or some of its rows, by policy and reference; the numbers are of the rows that both have seen."""
    every = range(len(rollout.answers))
    mine, theirs = (list(every if which is None else which) for which in (rows, reference_rows))
    logp, entropy = in_chunks(lambda ids, counts: answer_logprobs(ground.policy, ids, counts, temperature), rollout, mine)
    reference, _ = in_chunks(lambda ids, counts: answer_logprobs(ground.reference, ids, counts, temperature, with_entropy=False), rollout, theirs)
    both = sorted({*mine} & {*theirs})
    counts = rollout.counts[both]
    numbers = {
        "kl": kl_k1(logp, reference)[both].sum(1).mean().item(),
        "kl_k3": kl_k3(logp, reference)[both].sum(1).mean().item(),
        "entropy": masked_mean(entropy[both], counts).item(),
    }
    return Drift(logp, reference, numbers)


def in_chunks(assess: Callable[[Tensor, Tensor], tuple[Tensor, ...]], rollout: Rollout, rows: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """`assess(ids, counts) -> tensors (b, t)` over a rollout, or some of its rows, a few rows at a time: (B, T); 0 in other rows."""
    whole: list[Tensor] = []
    for which in parts(rollout, range(len(rollout.answers)) if rows is None else rows, FORWARD_ROWS):
        for k, part in enumerate(assess(*rollout.rows(which))):
            if k == len(whole):
                whole.append(torch.zeros(rollout.ids.shape, dtype=part.dtype, device=part.device))
            whole[k][which, : part.shape[1]] = part
    return tuple(whole)


def parts(rollout: Rollout, rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in parts of at most `size`, of like length, so that little is padding."""
    order = sorted(rows, key=lambda i: len(rollout.prompts[i]) + len(rollout.answers[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def outside(numbers: dict[str, float], bands: BandsConfig) -> str | None:
    """What has left its band, in a sentence."""
    checks = (
        (
            "kl",
            bands.kl_max is not None and numbers["kl"] > bands.kl_max,
            f"above bands.kl_max = {bands.kl_max} nats an answer: the policy has moved as far as it may",
        ),
        (
            "entropy",
            bands.entropy_min is not None and numbers["entropy"] < bands.entropy_min,
            f"below bands.entropy_min = {bands.entropy_min} nats a token: the policy says one thing only",
        ),
        (
            "entropy",
            bands.entropy_max is not None and numbers["entropy"] > bands.entropy_max,
            f"above bands.entropy_max = {bands.entropy_max} nats a token: the policy babbles",
        ),
    )
    return next((f"{name} {numbers[name]:.3f} is {why}" for name, is_outside, why in checks if is_outside), None)


class Online(LightningModule):
    """The loop around `assess` and `loss`, which an algorithm defines; its experience has a `rollout`."""

    group_size = 1
    """Answers to each prompt, one behind the other."""
    mean_over = "batch"
    """Which mean a loss is: see token_weights."""

    def __init__(self, ground: Ground, config: OnlineConfig, context: Context) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = ground.policy.eval()
        self.ground, self.config, self.context, self.seed = (
            ground,
            config,
            context,
            context.seed,
        )  # in a dataclass, frozen models are no parameters of this module
        self.rows_at_once = context.resources.micro_batch_size or FORWARD_ROWS
        self.enough: str | None = None
        """Why this iteration is the last (trainer.fit ends the run)."""
        self.readings: list[dict[str, float]] = []
        """What trust.py looks at: one an iteration."""
        self.suspected: dict[str, dict[str, Any]] = {}
        """What it found, by kind, when first."""

    def assess(self, rollout: Rollout, judged: Judged, questions: Sequence[Question]) -> tuple[Any, dict[str, float]]:
        """What updates need to know of a rollout, and the numbers to watch: reward, kl, entropy and the algorithm's own."""
        raise NotImplementedError

    def loss(self, experience: Any, which: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some rows by the weights (b, t) of their tokens; and numbers that are such weighted sums too."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        return [optimizer], [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.config.warmup_steps)))]

    def training_step(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        questions, config = [self.ground.questions[i] for i in batch["questions"]], self.config
        rollout = sample(
            self.policy, [question.ids for question in questions], stop_ids=self.ground.stops, max_new_tokens=config.max_new_tokens,
            temperature=config.temperature, seed=mixed_seed(self.seed, batch["iteration"]), engine=self.ground.engine,
        )  # fmt: skip
        judged = self.ground.rewards(rollout, questions)
        experience, seen = self.assess(rollout, judged, questions)
        seen |= self.watch(rollout, judged, {"iteration": batch["iteration"] + 1, **seen})
        self.enough = outside(seen, config.bands)
        losses = self.measure(experience) if self.enough else self.improve(experience, batch["iteration"])
        self.log_dict({**seen, **losses})
        return {"loss": torch.tensor(losses["loss"]), "tokens": int(rollout.counts.sum()), **seen}

    # ------------------------------------------------------------ updates

    def improve(self, experience: Any, iteration: int) -> dict[str, float]:
        """`epochs` passes of updates; returns the means of what was seen."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        per_step = []
        for epoch in range(self.config.epochs):
            order = np.random.default_rng([self.seed, iteration, epoch]).permutation(len(experience.rollout.answers))
            for which in order.reshape(-1, self.config.minibatch_size).tolist():
                optimizer.zero_grad()
                seen = self.step_over(experience, which, self.manual_backward)
                seen["grad_norm"] = float(nn.utils.clip_grad_norm_(self.parameters(), self.config.grad_clip_norm))
                optimizer.step()
                schedule.step()
                per_step.append(seen)
        return {name: sum(step[name] for step in per_step) / len(per_step) for name in per_step[0]}

    @torch.no_grad()
    def measure(self, experience: Any) -> dict[str, float]:
        """The losses of the whole rollout, without an update."""
        return self.step_over(experience, list(range(len(experience.rollout.answers))), lambda loss: None)

    def step_over(self, experience: Any, which: list[int], backward: Callable[[Tensor], None]) -> dict[str, float]:
        """Go forward and backward over a minibatch in parts; its numbers are the sums of theirs."""
        rollout = experience.rollout
        weights = token_weights(rollout.counts[which], self.mean_over, self.config.max_new_tokens)  # (M, T)
        place = {row: k for k, row in enumerate(which)}
        seen: Counter[str] = Counter()
        for part in parts(rollout, which, self.rows_at_once):
            ids, _ = rollout.rows(part)
            loss, numbers = self.loss(experience, part, weights[[place[row] for row in part], : ids.shape[1]])
            backward(loss)
            seen.update({name: float(value) for name, value in {"loss": loss.detach(), **numbers}.items()})
        return dict(seen)

    # ------------------------------------------------------------ what is watched

    @torch.no_grad()
    def watch(self, rollout: Rollout, judged: Judged, seen: dict[str, float]) -> dict[str, float]:
        """Take a reading, and say what it makes suspect; returns the numbers it adds."""
        lengths = rollout.counts.sum(1)
        new = {
            "length": lengths.float().mean().item(),
            "finished": rollout.finished.float().mean().item(),
            "repetition": repetition(rollout.answers).mean().item(),
            "reward_by_length": correlation(judged.total, lengths),
        }
        if len(judged.parts) > 1:
            new |= {f"reward_{name}": part.mean().item() for name, part in judged.parts.items()}
        if self.ground.judge:
            new["judge"] = self.ground.judge(rollout, self.ground.stops[1]).mean().item()
        self.readings.append({**seen, **new})
        for kind, sentence in suspicions(self.readings).items():
            if kind not in self.suspected:
                self.suspected[kind] = {"iteration": seen["iteration"], "why": sentence}
                self.context.note(f"watch: {sentence}")
        return new

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["watch"] = {"readings": list(self.readings), "suspected": dict(self.suspected)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.readings, self.suspected = list(checkpoint["watch"]["readings"]), dict(checkpoint["watch"]["suspected"])

    def take_over(self, checkpoint: dict[str, Any]) -> None:
        """Become what a checkpoint holds, without training on."""
        self.load_state_dict(checkpoint["state_dict"])
        self.on_load_checkpoint(checkpoint)


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Aligned:
    """What came out of a run, besides the policy."""

    figures: dict[str, Any]
    samples: tuple[Sample, ...]
    execution: dict[str, float]


def align(module: Online, out: Path, context: Context) -> Aligned:
    """Measure, train, measure again; watch.jsonl is left in `out`. Errors: BadInput."""
    ground, config = module.ground, module.config
    before = remembered(out, "before", lambda: judge_policy(ground, config, context.seed))
    prompts = config.rollout_size // module.group_size

    def batch(i: int) -> dict[str, Any]:
        chosen = visits(len(ground.questions), i * prompts, prompts, context.seed)
        return {"iteration": i, "questions": [question for question in chosen for _ in range(module.group_size)]}

    looks = Looks(sample=lambda done: beside(ground, config, context.seed, before), sample_every=config.sample_every_iterations)
    course = fit(
        module, batch, config.iterations, every=config.checkpoint_every_iterations, out=out, context=context,
        identity={"config": config.model_dump(mode="json")}, unit="iterations", log_every=1, looks=looks,
    )  # fmt: skip
    after = judge_policy(ground, config, context.seed)
    (out / READINGS).write_text("".join(json.dumps(reading) + "\n" for reading in module.readings), encoding="utf-8")
    figures = {"prompts": len(ground.questions), "loss_last": course.losses[-1], **comparison(before, after), "suspicions": module.suspected}
    if course.ended:
        figures["ended_early"] = {"iteration": course.ended["step"], "why": course.ended["why"]}
    return Aligned(figures, side_by_side(ground, before, after), course.execution())


@torch.no_grad()
def judge_policy(ground: Ground, config: OnlineConfig | BestOfNConfig, seed: int) -> dict[str, Any]:
    """Answers to held-out prompts, sampled as in training with fixed seeds, and what they are worth. Lists are by prompt."""
    rollout, questions = answer(ground, config, seed, ground.heldout)
    moved, counts = drift(ground, rollout, config.temperature), rollout.counts
    judged = ground.rewards(rollout, questions)
    worth = {"reward": judged.total}
    if len(judged.parts) > 1:
        worth |= {f"reward_{name}": part for name, part in judged.parts.items()}
    if ground.costs:
        worth["cost"] = ground.costs(rollout, questions).total
    if ground.judge:
        worth["judge"] = ground.judge(rollout, ground.stops[1])
    kl = kl_k1(moved.logp, moved.reference).double()  # (B, T)
    return {
        "worth": {name: value.double().view(-1, ANSWERS_PER_HELDOUT_PROMPT).mean(1).tolist() for name, value in worth.items()},
        "kl": kl.sum(1).mean().item(),
        "kl_stderr": kl.sum(1).std().item() / math.sqrt(len(kl)),
        "kl_per_token": masked_mean(kl, counts).item(),
        "kl_k3_per_token": masked_mean(kl_k3(moved.logp, moved.reference), counts).item(),
        "entropy": moved.numbers["entropy"],
        "length": counts.sum(1).double().mean().item(),
        "finished": rollout.finished.double().mean().item(),
        "repetition": repetition(rollout.answers).mean().item(),
        "answers": rollout.answers[::ANSWERS_PER_HELDOUT_PROMPT],
    }


def answer(ground: Ground, config: OnlineConfig | BestOfNConfig, seed: int, asked: Sequence[Question]) -> tuple[Rollout, list[Question]]:
    """A few answers to each of these questions, one behind the other; the same seed and weights give the same ones."""
    questions = [question for question in asked for _ in range(ANSWERS_PER_HELDOUT_PROMPT)]
    rollout = sample(
        ground.policy, [question.ids for question in questions], stop_ids=ground.stops, max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, seed=mixed_seed(seed, 2**31), engine=ground.engine,
    )  # fmt: skip
    return rollout, questions


def comparison(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Figures of a policy before and after, each gain with the standard error of the paired difference over prompts."""
    figures: dict[str, float] = {}
    for name in before["worth"]:
        values = torch.tensor([before["worth"][name], after["worth"][name]], dtype=torch.float64)  # (2, prompts)
        gain = values[1] - values[0]
        figures |= {
            f"{name}_before": values[0].mean().item(),
            f"{name}_after": values[1].mean().item(),
            f"{name}_gain": gain.mean().item(),
            f"{name}_gain_stderr": gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else 0.0,
        }
    figures |= {name: after[name] for name in ("kl", "kl_stderr", "kl_per_token", "kl_k3_per_token")}
    for name in ("entropy", "length", "finished", "repetition"):
        figures |= {f"{name}_before": before[name], f"{name}_after": after[name]}
    return figures


def side_by_side(ground: Ground, before: dict[str, Any], after: dict[str, Any]) -> tuple[Sample, ...]:
    """A few held-out prompts with an answer from before and one from after."""
    first, last = before["worth"]["reward"], after["worth"]["reward"]
    return tuple(
        Sample(
            prompt=ground.words.decode(question.ids),
            output=" | ".join(
                (
                    f"before: {ground.words.decode(before['answers'][i])}",
                    f"after: {ground.words.decode(after['answers'][i])}",
                    f"reward {first[i]:+.2f} to {last[i]:+.2f}",
                )
            ),
        )
        for i, question in enumerate(ground.heldout[:SAMPLES])
    )


def beside(ground: Ground, config: OnlineConfig, seed: int, before: dict[str, Any]) -> list[dict[str, Any]]:
    """A few held-out prompts, answered by the policy as it is, beside the answers from before: rows of samples.jsonl."""
    rollout, questions = answer(ground, config, seed, ground.heldout[:SAMPLES])
    rewards = ground.rewards(rollout, questions).total.tolist()
    return [
        {
            "prompt": ground.words.decode(question.ids),
            "before": ground.words.decode(before["answers"][i]),
            "now": ground.words.decode(rollout.answers[i * ANSWERS_PER_HELDOUT_PROMPT]),
            "reward": rewards[i * ANSWERS_PER_HELDOUT_PROMPT],
        }
        for i, question in enumerate(ground.heldout[:SAMPLES])
    ]
