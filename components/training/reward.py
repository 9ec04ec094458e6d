"""The reward model: a scalar head on the chat model learns which of two answers people prefer.

Bradley-Terry loss on the scores of the chosen and the rejected answer (Ouyang et al. 2022, arXiv:2203.02155, eq. 1, with
one pair per prompt). A text's score is read at its last token, the answer's <|end|>. Only differences of scores are
learnt, so their zero and unit are arbitrary: mean and standard deviation over held-out chosen answers are written to
`scale.json`, and PPO normalises with them.

    python -m components reward --config recipe.yaml --out DIR
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load_tokenizer, save
from components.models.heads import scalar_model_from, scores
from components.schema.config import BadInput
from components.schema.records import Outcome, Sample
from components.schema.training import RewardConfig
from components.training.batches import pad_right, read_rows, visits
from components.training.losses import bradley_terry
from components.training.optim import OptimizedModule
from components.training.template import encode, require_contract, write_contract
from components.training.trainer import Context, device_of, fit, remembered

SCALE, SAMPLES = "scale.json", 3


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as whole chats in tokens."""

    chosen: list[int]
    rejected: list[int]
    kind: str


class RewardModelling(OptimizedModule):
    """-log P(chosen beats rejected)."""

    def __init__(self, model: PreTrainedModel, config: RewardConfig) -> None:
        super().__init__(config)
        self.model = model

    def training_step(self, ids: Tensor, step: int) -> dict[str, Any]:
        chosen, rejected = scores(self.model, ids.flatten(0, 1)).view(-1, 2).T  # ids (pairs, 2, T) -> (pairs,) each
        accuracy = (chosen > rejected).float().mean()
        self.log("accuracy", accuracy)
        return {"loss": bradley_terry(chosen, rejected).mean(), "accuracy": accuracy, "tokens": ids.numel(), "weight": len(ids)}


def run(config: RewardConfig, chat: Path, preferences: Path, out: Path, context: Context) -> Outcome:
    """Train a reward model on the chat model in `chat` and leave it in `out`. Errors: BadInput."""
    words = load_tokenizer(chat)
    require_contract(chat, words, "reward")
    model = scalar_model_from(chat, context.seed).to(device_of(context.accelerator))
    width = model.config.max_position_embeddings
    train, dropped = read_pairs(preferences / "train.jsonl", words, width)
    heldout, _ = read_pairs(preferences / "heldout.jsonl", words, width, at_most=config.heldout_pairs)
    pad_id = words.pad_token_id
    before = remembered(out, "before", lambda: compare(*score_pairs(model, heldout, config.batch_size, pad_id)))

    def batch(step: int) -> Tensor:
        pairs = [train[i] for i in visits(len(train), step * config.batch_size, config.batch_size, context.seed)]
        return pad_right([side for pair in pairs for side in (pair.chosen, pair.rejected)], pad_id).unflatten(0, (-1, 2))  # (pairs, 2, T)

    module = RewardModelling(model, config)
    course = fit(
        module, batch, config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        chosen, rejected = score_pairs(model, heldout, config.batch_size, pad_id)
        save(model, chat, out)
    write_contract(words, out)
    scale = {"mean": chosen.mean().item(), "std": max(chosen.std().item(), 1e-6)}
    (out / SCALE).write_text(json.dumps(scale) + "\n", encoding="utf-8")
    figures = {
        "pairs": len(train),
        "pairs_dropped_longer_than_context": dropped,
        "loss_last": course.losses[-1],
        **{f"{name}_before": before[name] for name in ("accuracy", "accuracy_stderr")},
        **{f"{name}_after": value for name, value in compare(chosen, rejected).items()},
        "accuracy_by_kind": accuracy_by_kind(heldout, chosen, rejected),
        "length_bias": length_bias(heldout, chosen, rejected),
        "chosen_score_mean": scale["mean"],
        "chosen_score_std": scale["std"],
    }
    return Outcome(figures=figures, samples=examples(heldout, chosen, rejected, words), execution=course.execution())


def read_pairs(path: Path, words: PreTrainedTokenizerBase, context_tokens: int, at_most: int | None = None) -> tuple[list[Pair], int]:
    """The first `at_most` pairs of which both sides fit the context, and how many did not. Errors: BadInput naming the row."""
    rows = read_rows(path)[:at_most]
    for number, row in enumerate(rows, 1):
        if missing := [key for key in ("prompt", "chosen", "rejected") if not row.get(key)]:
            raise BadInput(f"preferences: {path} row {number} has no {missing[0]}, so there is nothing to compare. Make the pairs again")
        if row["chosen"] == row["rejected"]:
            raise BadInput(f"preferences: {path} row {number} has equal sides ({row['chosen'][:60]!r}): it says nothing about what is better. Remove it or correct one side")
    sides = [encode(words, [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in rows]) for side in ("chosen", "rejected")]
    pairs = [Pair(c, r, row.get("kind", "")) for row, (c, _), (r, _) in zip(rows, *sides, strict=True)]
    fitting = [p for p in pairs if max(len(p.chosen), len(p.rejected)) <= context_tokens]
    if not fitting:
        raise BadInput(f"preferences: {path} has {len(rows)} pairs, none of which fits {context_tokens} tokens: nothing would be learnt. Raise model.context_tokens or give shorter ones")
    return fitting, len(pairs) - len(fitting)


@torch.no_grad()
def score_texts(model: PreTrainedModel, texts: list[list[int]], batch_size: int, pad_id: int) -> Tensor:
    """Score of each text in double precision, on the CPU: (texts,). Texts of like length share a batch."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = torch.empty(len(texts), dtype=torch.float64)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        result[chunk] = scores(model, pad_right([texts[i] for i in chunk], pad_id).to(model.device)).double().cpu()
    model.train(was_training)
    return result


def score_pairs(model: PreTrainedModel, pairs: list[Pair], batch_size: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected side: (pairs,), (pairs,)."""
    both = score_texts(model, [p.chosen for p in pairs] + [p.rejected for p in pairs], 2 * batch_size, pad_id)
    return both[: len(pairs)], both[len(pairs) :]


def compare(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Share of pairs in which the chosen side scores higher (a tie counts half), its standard error, and the mean margin."""
    wins = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    accuracy = wins.mean().item()
    return {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / len(wins)),
        "mean_margin": (chosen - rejected).mean().item(),
        "heldout_loss": bradley_terry(chosen, rejected).mean().item(),
    }


def accuracy_by_kind(pairs: list[Pair], chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Accuracy of each kind of pair."""
    wins: dict[str, list[bool]] = defaultdict(list)
    for pair, right in zip(pairs, (chosen > rejected).tolist(), strict=True):
        wins[pair.kind].append(right)
    return {kind: sum(w) / len(w) for kind, w in sorted(wins.items())}


def length_bias(pairs: list[Pair], chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """How far the score follows length.

    Over pairs whose sides differ in length: how often the longer side scores higher, and how often people preferred it.
    Over pairs too: the correlation of length difference and score difference.
    """
    longer = torch.tensor([len(p.chosen) - len(p.rejected) for p in pairs]).double()
    margin = chosen - rejected
    unequal = longer != 0
    agree = ((longer > 0) == (margin > 0))[unequal]
    preferred = (longer > 0)[unequal]
    spread = longer.std() * margin.std()
    correlation = ((longer - longer.mean()) * (margin - margin.mean())).sum() / (len(pairs) - 1) / spread if len(pairs) > 1 and spread > 0 else torch.tensor(0.0)
    share = lambda x: x.double().mean().item() if len(x) else 0.5  # noqa: E731
    return {"longer_scores_higher": share(agree), "longer_is_preferred": share(preferred), "correlation": correlation.item()}


def examples(pairs: list[Pair], chosen: Tensor, rejected: Tensor, words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """A few held-out pairs with their scores, of different kinds where there are some."""
    firsts = {pair.kind: i for i, pair in reversed(list(enumerate(pairs)))}
    return tuple(
        Sample(prompt=words.decode(pairs[i].chosen), output=f"chosen {chosen[i]:+.2f} | rejected {rejected[i]:+.2f}: {words.decode(pairs[i].rejected)}")
        for i in sorted(firsts.values())[:SAMPLES]
    )
