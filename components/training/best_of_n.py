"""Best of N: answer each prompt several times, keep the best answer by the reward, and fine-tune on the winners.

Rejection sampling as in Touvron et al. 2023 (arXiv:2307.09288, section 3.2.2) and, with a verifier, expert iteration (STaR, Zelikman et al. 2022,
arXiv:2203.14465), one turn of it: the winners are sampled from the chat model. Where the best answer did not end, its prompt is left out: learning it would
teach not to end. Of equal rewards the earlier answer wins, so the policy's own preference stands.

Answers are sampled a round of prompts at a time; each round is a function of (seed, round) and is kept when it is done, so a killed run goes on with the rounds
that are missing. Training is SFT's (sft.py): packed rows, loss on the winner's tokens and the end of its turn.

    python -m components best_of_n --config job.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.models.build import save
from components.schema.config import BadInput
from components.schema.posttraining import BestOfNConfig
from components.schema.records import Outcome
from components.training.align import Given
from components.training.batches import Passes, lay_out, visits
from components.training.checkpoints import write_whole
from components.training.online import Ground, comparison, judge_policy, prepare, side_by_side
from components.training.prompts import Question
from components.training.rollouts import BATCH, sample
from components.training.sft import FineTuning
from components.training.template import preflight, write_contract
from components.training.trainer import Context, fit, mixed_seed, remembered

WINNERS = "winners.jsonl"


def run(config: BestOfNConfig, given: Given, out: Path, context: Context) -> Outcome:
    """Sample, choose, fine-tune; leaves the policy in `out`, and the winners as chats in winners.jsonl. Errors: BadInput."""
    ground = prepare(config, given, context)
    preflight(ground.policy, ground.words)
    before = remembered(out, "before", lambda: judge_policy(ground, config, context.seed))
    questions = [ground.questions[i] for i in visits(len(ground.questions), 0, min(config.prompts_sampled, len(ground.questions)), context.seed)]
    winners, chosen = choose(ground, config, questions, out, context)
    write_whole(out / WINNERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(ground, questions, winners)))
    texts = [learnt(questions[winner["question"]].ids, winner["answer"]) for winner in winners]
    width, pad_id = ground.policy.config.max_position_embeddings, ground.stops[1]
    passes = Passes([len(ids) for ids, _ in texts], context.seed, context_tokens=width)

    def batch(step: int) -> dict[str, Tensor]:
        return vars(lay_out(passes.rows(step * config.batch_size, config.batch_size), texts, pad_id))

    module = FineTuning(ground.policy.train(), config)
    identity = {"config": config.model_dump(mode="json")}
    course = fit(module, batch, config.steps, every=config.checkpoint_every_steps, out=out, context=context, identity=identity)
    with module.averaged_weights():
        ground.policy.eval()
        after = judge_policy(ground, config, context.seed)
        save(ground.policy, given.chat, out)
    write_contract(ground.words, out)
    figures = {
        "prompts": len(questions),
        **chosen,
        "rows": passes.length(),
        "passes": config.steps * config.batch_size / passes.length(),
        "loss_last": course.losses[-1],
        **comparison(before, after),
    }
    return Outcome(figures=figures, samples=side_by_side(ground, before, after), execution=course.execution())


def choose(ground: Ground, config: BestOfNConfig, questions: list[Question], out: Path, context: Context) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The winners, {question, answer, reward} each, and figures of the choice. Errors: BadInput where nobody wins."""
    per_round = max(1, 2 * BATCH // config.n)
    starts = range(0, len(questions), per_round)
    winners, seen = [], Counter()
    for number, start in enumerate(starts):
        asked = questions[start : start + per_round]
        done = remembered(out, f"answers-{number:05d}", lambda asked=asked, number=number: answered(ground, config, asked, mixed_seed(context.seed, number)))
        winners += [{**winner, "question": start + winner["question"]} for winner in done["winners"]]
        seen.update(done["seen"])
        if 10 * (number + 1) // len(starts) > 10 * number // len(starts):
            context.note(f"best_of_n: {start + len(asked)} of {len(questions)} prompts answered {config.n} times, {len(winners)} winners")
    figures = {
        "winners": len(winners),
        "left_out_unfinished": seen["unfinished"],
        "left_out_below_minimum": seen["below"],
        "reward_sampled": seen["reward"] / (len(questions) * config.n),
        "reward_winners": sum(winner["reward"] for winner in winners) / max(1, len(winners)),
    }
    if not winners:
        raise BadInput(
            f"best_of_n: none of {len(questions)} prompts has a winner among {config.n} answers ({seen['unfinished']} did not end within "
            f"{config.max_new_tokens} tokens, {seen['below']} stayed below minimum_reward={config.minimum_reward}): nothing could be learnt. "
            "Lower minimum_reward, or raise n, max_new_tokens or unfinished_penalty"
        )
    return winners, figures


@torch.no_grad()
def answered(ground: Ground, config: BestOfNConfig, asked: list[Question], seed: int) -> dict[str, Any]:
    """One round: answers to these questions, and the best one to each."""
    questions = [question for question in asked for _ in range(config.n)]
    rollout = sample(
        ground.policy, [question.ids for question in asked], copies=config.n,
        stop_ids=ground.stops, max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed, engine=ground.engine,
    )  # fmt: skip
    reward = ground.rewards(rollout, questions).total
    best = winner_of((reward - config.unfinished_penalty * ~rollout.finished).view(-1, config.n), rollout.finished.view(-1, config.n))
    seen = {"unfinished": 0, "below": 0, "reward": reward.double().sum().item()}
    winners = []
    for k, place in enumerate(best):
        if place is None:
            seen["unfinished"] += 1
        elif config.minimum_reward is not None and reward[k * config.n + place] < config.minimum_reward:
            seen["below"] += 1
        else:
            winners.append({"question": k, "answer": rollout.answers[k * config.n + place], "reward": reward[k * config.n + place].item()})
    return {"winners": winners, "seen": seen}


def winner_of(worth: Tensor, finished: Tensor) -> list[int | None]:
    """The place of each prompt's best answer, the earlier of equal ones; None where that one did not end: (P, N), (P, N) -> P places."""
    best = worth.cpu().numpy().argmax(1)  # the first of equal ones, which torch does not promise
    return [int(place) if ended[place] else None for place, ended in zip(best, finished.tolist(), strict=True)]


def learnt(prompt: list[int], answer: list[int]) -> tuple[list[int], list[bool]]:
    """A text for SFT, which learns the answer and its end."""
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def rows_of(ground: Ground, questions: list[Question], winners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The winners as chats, with their rewards."""
    texts = ground.rewards.read([winner["answer"] for winner in winners])
    rows = []
    for winner, text in zip(winners, texts, strict=True):
        question = questions[winner["question"]]
        rows.append({"messages": [*question.messages, {"role": "assistant", "content": text}], "kind": question.kind, "reward": winner["reward"]})
    return rows
