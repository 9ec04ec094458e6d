"""DPO and its family: the chat model learns from preference pairs directly, without sampling and without a reward model.

dpo: Rafailov et al. 2023, arXiv:2305.18290; ipo: Azar et al. 2023, arXiv:2310.12036; kto: Ethayarajh et al. 2024, arXiv:2402.01306; orpo: Hong et
al. 2024, arXiv:2403.07691. The formulas are in preference_losses.py. A pair counts by the tokens of its answers, end of turn included; prompts enter no loss.

Choices. The reference's log-probabilities are computed once, before the first step, for the pairs that will be seen, and kept with the run; so there is one
model in memory and one forward in a step. Dropout is off, so that the first step begins exactly at the reference. ipo takes means over an answer's
tokens in place of sums, as its authors advise. kto's reference point is estimated, as in its paper, on prompts with answers to other prompts; which
ones is fixed beforehand, so that the reference knows them too, and the mean is over what stands in memory at once (a micro-batch). Each pair is a liked
and a disliked answer to it.

    python -m components dpo --config job.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import load, load_tokenizer, save, stop_ids
from components.models.generate import generate
from components.schema.config import BadInput
from components.schema.posttraining import DPOConfig
from components.schema.records import Outcome, Sample
from components.training import fast, parallel
from components.training.agreement import by_source, compare, length_baseline, length_bias, wins
from components.training.align import Given
from components.training.batches import pad_right, visits
from components.training.optim import OptimizedModule
from components.training.pairs import Pair, read_pairs
from components.training.preference_losses import dpo_loss, ipo_loss, kto_loss, log_odds, orpo_loss
from components.training.template import require_contract, write_contract
from components.training.trainer import Context, device_of, fit, remembered

SAMPLES, SAMPLE_TOKENS = 3, 96
IGNORED = -100
Text = tuple[list[int], int]
"""A whole chat in tokens, and where its last answer begins."""


class DirectPreference(OptimizedModule):
    """The loss of the recipe's method; a batch is what `lay_out` gives."""

    def __init__(self, model: PreTrainedModel, config: DPOConfig) -> None:
        super().__init__(config)
        self.model = model.eval()  # no dropout; gradients flow all the same

    def training_step(self, batch: dict[str, Tensor], step: int) -> dict[str, Any]:
        policy = answer_sums(self.model, *(batch[name].flatten(0, 1) for name in ("ids", "starts", "ends"))).view(batch["starts"].shape)  # (B, S)
        lengths = batch["ends"] - batch["starts"]
        with torch.no_grad():
            chosen, rejected = implicit_rewards(self.config, policy, batch["reference"], lengths).T
            seen = {"accuracy": wins(chosen, rejected).mean(), "margin": (chosen - rejected).mean(), "chosen_logp": (policy / lengths)[:, 0].mean()}
        self.log_dict(seen)
        return {"loss": losses(self.config, policy, batch["reference"], lengths).mean(), "tokens": batch["ids"].numel(), "weight": len(policy), "accuracy": seen["accuracy"]}


# ---------------------------------------------------------------- texts and their log-probabilities


def sides(pairs: Sequence[Pair], config: DPOConfig, context_tokens: int) -> list[list[Text]]:
    """The texts of each pair: chosen, rejected, and for kto its prompt with an answer to another prompt, cut where the context ends. Errors: BadInput."""
    both = [[(pair.chosen, pair.starts[0]), (pair.rejected, pair.starts[1])] for pair in pairs]
    if config.method != "kto":
        return both
    return [[*texts, mismatched(pairs, i, context_tokens)] for i, texts in enumerate(both)]


def mismatched(pairs: Sequence[Pair], i: int, context_tokens: int) -> Text:
    """The prompt of pair i with the next pair's answer that has another prompt, chosen and rejected ones in turn. Errors: BadInput."""
    mine = pairs[i]
    other = next((pair for k in range(1, len(pairs)) if (pair := pairs[(i + k) % len(pairs)]).prompt != mine.prompt), None)
    if other is None:
        raise BadInput(f"kto: all {len(pairs)} pairs have one prompt, and the distance from the reference is measured on answers to other prompts. Give more prompts, or use method=dpo")
    answer = other.rejected[other.starts[1] :] if i % 2 else other.chosen[other.starts[0] :]
    text = [*mine.chosen[: mine.starts[0]], *answer][:context_tokens]
    return text, mine.starts[0]


def lay_out(texts: Sequence[Sequence[Text]], reference: Sequence[Sequence[float]], pad_id: int) -> dict[str, Tensor]:
    """S texts of each of B pairs as tensors: ids (B, S, T) padded on the right; starts and ends (B, S) of the answers; reference (B, S) log-probabilities."""
    return {
        "ids": pad_right([ids for row in texts for ids, _ in row], pad_id).unflatten(0, (len(texts), -1)),
        "starts": torch.tensor([[start for _, start in row] for row in texts]),
        "ends": torch.tensor([[len(ids) for ids, _ in row] for row in texts]),
        "reference": torch.tensor(reference, dtype=torch.float32),
    }


def answer_sums(model: PreTrainedModel, ids: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """log p of each text's tokens from starts[n] to ends[n] - 1: ids (N, T), starts and ends (N,) -> (N,). Only these tokens reach the output layer."""
    column = torch.arange(1, ids.shape[1] + 1, device=ids.device)  # of what is said after each token
    counts = (column >= starts[:, None]) & (column < ends[:, None])
    return -fast.next_token_losses(model, ids, ids.roll(-1, dims=1).where(counts, IGNORED)).sum(1)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, texts: Sequence[Sequence[Text]], which: Sequence[int], rows: int, pad_id: int) -> list[list[float]]:
    """log p of the answers of the pairs `which`, the others 0: one number for each text. Texts of like length share a batch of `rows`."""
    found = [[0.0] * len(row) for row in texts]
    places = sorted(((i, s) for i in which for s in range(len(texts[i]))), key=lambda place: len(texts[place[0]][place[1]][0]))
    for first in range(0, len(places), rows):
        chunk = places[first : first + rows]
        batch = lay_out([[texts[i][s]] for i, s in chunk], [[0.0]] * len(chunk), pad_id)
        sums = answer_sums(model, *(batch[name].flatten(0, 1).to(model.device) for name in ("ids", "starts", "ends")))
        for (i, s), value in zip(chunk, sums.tolist(), strict=True):
            found[i][s] = value
    return found


# ---------------------------------------------------------------- losses and figures of pairs


def compared(config: DPOConfig, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """What the method compares, (B, S): log ratios to the reference, or log-probabilities where there is none; means over tokens for ipo and orpo."""
    ratios = policy if config.method == "orpo" or config.reference_free else policy - reference
    return ratios / lengths if config.method in ("ipo", "orpo") else ratios


def losses(config: DPOConfig, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """Loss of each pair from log-probabilities of its S texts, (B, S), and their lengths in tokens, (B, S): (B,)."""
    found = compared(config, policy, reference, lengths)
    chosen, rejected = found[:, 0], found[:, 1]
    if config.method == "orpo":
        return orpo_loss(chosen, rejected, config.beta)
    if config.method == "kto":
        desirable = torch.tensor([True, False], device=found.device).expand(len(found), 2)
        return kto_loss(found[:, :2], desirable, found[:, 2].mean(), config.beta).mean(1)
    preference = dpo_loss(chosen, rejected, config.beta, config.label_smoothing) if config.method == "dpo" else ipo_loss(chosen, rejected, config.beta)
    return preference - config.sft_weight * (policy / lengths)[:, 0] if config.sft_weight else preference


def implicit_rewards(config: DPOConfig, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """What the policy thinks of chosen and rejected, in the unit of the loss: (B, 2). orpo: log odds; else beta times what is compared."""
    found = compared(config, policy, reference, lengths)[:, :2]
    return log_odds(found) if config.method == "orpo" else config.beta * found


def measure(config: DPOConfig, pairs: Sequence[Pair], policy: Tensor, reference: Tensor, lengths: Tensor) -> dict[str, float]:
    """Held-out figures of a policy; `policy` and `reference` (pairs, S) in double precision.

    `chosen_logp` and `rejected_logp` per token tell whether a growing margin comes from better chosen answers or only from worse rejected ones.
    """
    chosen, rejected = implicit_rewards(config, policy, reference, lengths).T
    by_token = policy / lengths
    found = compare(chosen, rejected, [pair.prompt for pair in pairs])
    return {
        "loss": losses(config, policy, reference, lengths).mean().item(),
        **{name: found[name] for name in ("accuracy", "accuracy_stderr", "mean_margin")},
        "chosen_logp": by_token[:, 0].mean().item(),
        "rejected_logp": by_token[:, 1].mean().item(),
        "chosen_is_likelier_per_token": wins(by_token[:, 0], by_token[:, 1]).mean().item(),
    }


# ---------------------------------------------------------------- the stage


def run(config: DPOConfig, given: Given, out: Path, context: Context) -> Outcome:
    """Align the chat model with the preference pairs and leave it in `out`. Errors: BadInput."""
    chat, device = given.chat, device_of(context.accelerator)
    words = load_tokenizer(chat)
    require_contract(chat, words, config.method)
    model = load(chat).eval().to(device)
    fast.prepare(model)
    width, pad_id = model.config.max_position_embeddings, words.pad_token_id
    train, dropped = read_pairs(given.preferences / "train.jsonl", words, width)
    heldout, _ = read_pairs(given.preferences / "heldout.jsonl", words, width, at_most=config.heldout_pairs)
    texts, heldout_texts = sides(train, config, width), sides(heldout, config, width)
    prompts = [pair.chosen[: pair.starts[0]] for pair in {pair.prompt: pair for pair in heldout}.values()][:SAMPLES]

    def order(start: int, count: int) -> list[int]:
        return visits(len(train), start, count, context.seed)

    def look() -> dict[str, Any]:
        table = log_probabilities(model, heldout_texts, range(len(heldout)), 2 * config.batch_size, pad_id)
        return {"heldout": table, "answers": answers(model, prompts, words)}

    def reference() -> dict[str, Any]:
        seen = sorted(set(order(0, min(len(train), config.steps * config.batch_size)))) if needs_reference(config) else []
        return {**look(), "train": log_probabilities(model, texts, seen, 2 * config.batch_size, pad_id)}

    parallel.check(context.resources)
    before = remembered(out, "reference", reference)
    parallel.join(context.resources)
    table = parallel.from_first(before.get("train"))

    def batch(step: int) -> dict[str, Tensor]:
        which = order(step * config.batch_size, config.batch_size)
        return lay_out([texts[i] for i in which], [table[i] for i in which], pad_id)

    module = DirectPreference(model, config)
    course = fit(
        module, batch, config.steps,
        every=config.checkpoint_every_steps, out=out, context=context, identity={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    with module.averaged_weights():
        after = look()
        save(model, chat, out)
    write_contract(words, out)
    lengths = torch.tensor([[len(ids) - start for ids, start in row] for row in heldout_texts])
    first, last = (torch.tensor(seen["heldout"], dtype=torch.float64) for seen in (before, after))
    chosen, rejected = implicit_rewards(config, last, first, lengths).T
    figures = {
        "pairs": len(train),
        "pairs_dropped_longer_than_context": dropped,
        "pairs_heldout": len(heldout),
        "loss_last": course.losses[-1],
        **{f"{name}_before": value for name, value in measure(config, heldout, first, first, lengths).items()},
        **{f"{name}_after": value for name, value in measure(config, heldout, last, first, lengths).items()},
        "accuracy_of_length_alone": length_baseline(train, heldout),
        "by_source": by_source(heldout, chosen, rejected),
        "length_bias": length_bias(heldout, chosen, rejected),
    }
    return Outcome(figures=figures, samples=side_by_side(prompts, before["answers"], after["answers"], words), execution=course.execution())


def needs_reference(config: DPOConfig) -> bool:
    """Whether the loss looks at the model that training begins from."""
    return config.method != "orpo" and not config.reference_free


def answers(model: PreTrainedModel, prompts: list[list[int]], words: PreTrainedTokenizerBase) -> list[list[int]]:
    """A greedy answer to each prompt."""
    room = model.config.max_position_embeddings - max(map(len, prompts))
    return generate(model, prompts, stop_ids=stop_ids(words), pad_id=words.pad_token_id, max_new_tokens=max(1, min(SAMPLE_TOKENS, room)))


def side_by_side(prompts: list[list[int]], before: list[list[int]], after: list[list[int]], words: PreTrainedTokenizerBase) -> tuple[Sample, ...]:
    """A few held-out prompts with the answer from before and the one from after."""
    return tuple(
        Sample(prompt=words.decode(prompt), output=f"before: {words.decode(old)} | after: {words.decode(new)}") for prompt, old, new in zip(prompts, before, after, strict=True)
    )
