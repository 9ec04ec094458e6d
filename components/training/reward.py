"""Reward and cost models: a scalar head on the chat model learns which answers people prefer, or which do harm.

dimension preference: Bradley-Terry loss on the scores of the chosen and the rejected answer (Ouyang et al. 2022, arXiv:2203.02155, eq. 1, each
pair by itself), with a margin and a pull towards 0 where they are asked for; or the Plackett-Luce likelihood of whole rankings. Only differences
of scores are learnt, so their zero and unit are arbitrary: mean and standard deviation over held-out chosen answers are written to `scale.json`, and
alignment normalises with them. dimension cost: the loss of Safe RLHF (Dai et al. 2023, arXiv:2310.12773), which gives zero a meaning: above it an answer is unsafe.

A text's score is read at its last token, the answer's <|end|>.

    python -m components reward --config job.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load_tokenizer, save
from components.models.heads import scalar_model_from, scores
from components.schema.posttraining import RewardConfig
from components.schema.records import Outcome, Sample
from components.training import fast
from components.training.agreement import by_source, calibration, compare, length_baseline, length_bias
from components.training.batches import pad_right, visits
from components.training.optim import OptimizedModule
from components.training.pairs import Pair, Ranking, by_harm, half, rankings, read_pairs
from components.training.preference_losses import bradley_terry, centring, cost_loss, plackett_luce
from components.training.scorer import score_texts, write_scale
from components.training.template import require_contract, write_contract
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES = 3


class RewardModelling(OptimizedModule):
    """-log likelihood of what people said about answers; a batch is what `lay_out` gives."""

    def __init__(self, model: PreTrainedModel, config: RewardConfig) -> None:
        super().__init__(config)
        self.model = model

    def training_step(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        counts = batch["ranks"] > 0  # (B, K)
        found = scores(self.model, batch["ids"][counts])  # ids (B, K, T): answers that are not there are not read
        given = torch.zeros(counts.shape, dtype=found.dtype, device=found.device).masked_scatter(counts, found)  # (B, K)
        accuracy = ordered_right(given, batch["ranks"])
        self.log("accuracy", accuracy)
        return {"loss": self.losses(given, batch).mean(), "accuracy": accuracy, "tokens": int(counts.sum()) * batch["ids"].shape[-1], "weight": len(counts)}

    def losses(self, given: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Loss of each row of scores (B, K): (B,)."""
        config, ranks = self.config, batch["ranks"]
        if config.dimension == "cost":
            return cost_loss(*given.T, *batch["unsafe"].T)
        likelihood = plackett_luce(given, ranks) if config.ranking == "plackett_luce" else bradley_terry(*given.T, config.margin * batch["margin"])
        return likelihood + config.centring * centring(given, ranks > 0) if config.centring else likelihood


def lay_out(items: list[Ranking], pad_id: int) -> dict[str, Tensor]:
    """Rankings as tensors: ids (B, K, T) padded on the right, ranks (B, K) with 0 where there is no answer, margin (B,), unsafe (B, K)."""
    most = max(len(item.texts) for item in items)
    ids = pad_right([text for item in items for text in [*item.texts, *[[pad_id]] * (most - len(item.texts))]], pad_id).unflatten(0, (len(items), most))
    return {
        "ids": ids,
        "ranks": pad_right([item.ranks for item in items], 0),
        "margin": torch.tensor([item.margin for item in items]),
        "unsafe": pad_right([item.unsafe or [False] * most for item in items], False),
    }


def ordered_right(given: Tensor, ranks: Tensor) -> Tensor:
    """Share of the pairs of unequal rank, (B, K) scores and ranks, whose better answer scores higher: 0-d."""
    better = (ranks[:, :, None] > 0) & (ranks[:, :, None] < ranks[:, None, :])  # (B, K, K)
    return (given[:, :, None] > given[:, None, :])[better].float().mean()


# ---------------------------------------------------------------- the stage


def run(config: RewardConfig, chat: Path, preferences: Path, out: Path, context: Context) -> Outcome:
    """Train a reward or cost model on the chat model in `chat` and leave it in `out`. Errors: BadInput."""
    words = load_tokenizer(chat)
    require_contract(chat, words, "reward")
    model = scalar_model_from(chat, context.seed).to(device_of(context.accelerator))
    fast.prepare(model)
    width, pad_id = model.config.max_position_embeddings, words.pad_token_id
    train, dropped = read_pairs(preferences / "train.jsonl", words, width)
    train = half(_compared(train, config, preferences / "train.jsonl"), config.share)
    heldout, _ = read_pairs(preferences / "heldout.jsonl", words, width)
    heldout = _compared(heldout, config, preferences / "heldout.jsonl")[: config.heldout_pairs]
    items = rankings(train) if config.ranking == "plackett_luce" else [Ranking([p.chosen, p.rejected], [1, 2], p.margin, p.unsafe) for p in train]

    def measured() -> tuple[Tensor, Tensor]:
        return score_pairs(model, heldout, config.batch_size, pad_id)

    before = remembered(out, "before", lambda: judged(heldout, *measured(), config))
    module = RewardModelling(model, config)
    course = fit(
        module, lambda step: lay_out([items[i] for i in visits(len(items), step * config.batch_size, config.batch_size, context.seed)], pad_id), config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        chosen, rejected = measured()
        save(model, chat, out)
    write_contract(words, out)
    scale = {} if config.dimension == "cost" else {"mean": chosen.mean().item(), "std": max(chosen.std(correction=min(1, len(chosen) - 1)).item(), 1e-6)}
    write_scale(out, **scale)
    sources = by_source(heldout, chosen, rejected)
    figures = {
        "pairs": len(train),
        **({"rankings": len(items), "answers_in_a_ranking": sum(len(item.texts) for item in items) / len(items)} if config.ranking == "plackett_luce" else {}),
        "pairs_dropped_longer_than_context": dropped,
        "pairs_heldout": len(heldout),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in before.items() if not name.startswith("mean_margin")},
        **{f"{name}_after": value for name, value in judged(heldout, chosen, rejected, config).items()},
        "accuracy_of_length_alone": length_baseline(train, heldout),
        "accuracy_by_kind": {kind: figures["accuracy"] for kind, figures in sources.items()},
        "by_source": sources,
        "calibration": calibration(chosen, rejected),
        "length_bias": length_bias(heldout, chosen, rejected),
        **{f"chosen_score_{name}": value for name, value in scale.items()},
    }
    return Outcome(figures=figures, samples=examples(heldout, chosen, rejected, words, config), execution=course.execution())


def _compared(pairs: list[Pair], config: RewardConfig, path: Path) -> list[Pair]:
    """The pairs in the order that is learnt: for a cost, those that tell harm, the more harmful side in the place of the chosen one."""
    return by_harm(pairs, path) if config.dimension == "cost" else pairs


def score_pairs(model: PreTrainedModel, pairs: list[Pair], batch_size: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected side: (pairs,), (pairs,)."""
    both = score_texts(model, [p.chosen for p in pairs] + [p.rejected for p in pairs], 2 * batch_size, pad_id)
    return both[: len(pairs)], both[len(pairs) :]


def judged(pairs: list[Pair], chosen: Tensor, rejected: Tensor, config: RewardConfig) -> dict[str, float]:
    """What is measured before and after: of a cost model also how often its sign is right, and what safe and unsafe answers cost."""
    found = compare(chosen, rejected, [pair.prompt for pair in pairs])
    if config.dimension == "preference":
        return found
    cost = torch.cat([chosen, rejected])
    unsafe = torch.tensor([pair.unsafe[side] for side in (0, 1) for pair in pairs])
    mean = lambda x: x.mean().item() if len(x) else 0.0  # noqa: E731
    right = ((cost > 0) == unsafe).double()
    return {**found, "sign_accuracy": mean(right), "cost_of_unsafe": mean(cost[unsafe]), "cost_of_safe": mean(cost[~unsafe])}


def examples(pairs: list[Pair], chosen: Tensor, rejected: Tensor, words: PreTrainedTokenizerBase, config: RewardConfig) -> tuple[Sample, ...]:
    """A few held-out pairs with their scores, of different kinds where there are some."""
    firsts = {pair.kind: i for i, pair in reversed(list(enumerate(pairs)))}
    one, other = ("more harmful", "safer") if config.dimension == "cost" else ("chosen", "rejected")
    return tuple(
        Sample(prompt=words.decode(pairs[i].chosen), output=f"{one} {chosen[i]:+.2f} | {other} {rejected[i]:+.2f}: {words.decode(pairs[i].rejected)}")
        for i in sorted(firsts.values())[:SAMPLES]
    )
