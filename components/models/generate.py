"""Answers from a model: greedy or sampled, batched, with a KV cache.

Prompts go sorted by length, padded on the left so that every row goes on at the same column; a prompt that stands several times is read once. A row that has
ended leaves the batch, so a long answer does not make others wait (decoding.py).

Sampling is from the whole distribution at the given temperature (no top-k or top-p), by inverting its distribution function: the token of row i at step t is
decided by one uniform number that follows from (seed, i, t). So what a row is answered depends on the seed and its place among the prompts, and on the batch it
shares by no more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from components.models.decoding import decoder_for, pad_left

__all__ = ["generate", "pad_left", "until_stop"]

HasEnded = Callable[[Tensor], Tensor]  # answers so far, (n, t) -> which of them are complete, (n,) bool


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    has_ended: HasEnded | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with the first stop token; `temperature=0` is greedy. `has_ended`: what else ends an answer, such as a
    string in it."""
    answers: list[list[int]] = [[] for _ in prompts]
    chances = torch.rand((len(prompts), max_new_tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) if temperature > 0 else None
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))  # little padding, and equal prompts are neighbours
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                pick = _Pick(temperature, None if chances is None else chances[rows].to(model.device))
                for i, answer in zip(rows, _continue(model, [prompts[i] for i in rows], list(stop_ids), pad_id, max_new_tokens, pick, has_ended), strict=True):
                    answers[i] = answer
    finally:
        model.train(was_training)
    return answers


def _continue(
    model: PreTrainedModel, prompts: list[Sequence[int]], stop_ids: list[int], pad_id: int, max_new_tokens: int, pick: _Pick, has_ended: HasEnded | None
) -> list[list[int]]:
    distinct = {tuple(prompt): None for prompt in prompts}
    place = {prompt: k for k, prompt in enumerate(distinct)}
    decoder = decoder_for(model, list(distinct), torch.tensor([place[tuple(prompt)] for prompt in prompts]), pad_id, max_new_tokens)
    if decoder is None:
        return _of_one_length(model, prompts, stop_ids, pad_id, max_new_tokens, pick, has_ended)
    logits, device = decoder.logits, model.device
    stops = torch.tensor(stop_ids, device=device, dtype=torch.long)
    new = torch.full((len(prompts), max_new_tokens), pad_id, device=device)  # (B, max_new_tokens)
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)  # (B,)
    live = torch.arange(len(prompts), device=device)  # (n,) which rows are still in the batch
    for step in range(max_new_tokens):
        tokens = pick(logits, live, step)  # (n,)
        new[live, step] = tokens
        goes_on = torch.isin(tokens, stops, invert=True)
        if has_ended:
            goes_on &= ~has_ended(new[live, : step + 1])
        if step + 1 == max_new_tokens:
            break
        if not goes_on.all():
            lengths[live[~goes_on]] = step + 1
            kept = close_ranks(goes_on)
            if not len(kept):
                break
            decoder.keep(kept)
            live, tokens = live[kept], tokens[kept]
        logits = decoder.step(tokens)
    return [until_stop(row[:length], stop_ids) for row, length in zip(new.tolist(), lengths.tolist(), strict=True)]


def close_ranks(stay: Tensor) -> Tensor:
    """The rows that stay, those behind filling the gaps in front, so that few change their place: (n,) bool -> (m,)."""
    count = int(stay.sum())
    rows = torch.arange(count, device=stay.device)
    rows[~stay[:count]] = stay[count:].nonzero()[:, 0] + count
    return rows


class _Pick:
    """Which token comes next, in the rows and at the step that are asked for."""

    def __init__(self, temperature: float, chances: Tensor | None) -> None:
        self.temperature, self.chances = temperature, chances  # (B, steps) in [0, 1)

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """(n, V) -> (n,); rows (n,)."""
        if self.chances is None:
            return logits.argmax(-1)
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        reached = scaled.softmax(-1).cumsum(-1, dtype=torch.float64)  # (n, V)
        at = self.chances[rows, step, None] * reached[:, -1:]
        return torch.searchsorted(reached, at, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The row up to and with its first stop token; the whole row where there is none."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


# ---------------------------------------------------------------- models that must not see padding


def _of_one_length(
    model: PreTrainedModel, prompts: list[Sequence[int]], stop_ids: list[int], pad_id: int, max_new_tokens: int, pick: _Pick, has_ended: HasEnded | None
) -> list[list[int]]:
    """transformers' own `generate`, prompts of one length at a time; one prompt at a time where the model mixes up the rows of a batch."""
    answers: list[list[int]] = [[] for _ in prompts]
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stop_ids or None, pad_token_id=pad_id, do_sample=False)
    for rows in _like_rows(prompts) if _keeps_rows_apart(model) else [[i] for i in range(len(prompts))]:
        ids = torch.tensor([list(prompts[i]) for i in rows], device=model.device)
        chooser = _Chooser(pick, torch.tensor(rows, device=model.device), ids.shape[1])
        ends = StoppingCriteriaList([_Ended(has_ended, ids.shape[1])] if has_ended else [])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=LogitsProcessorList([chooser]), stopping_criteria=ends
        )
        for i, row in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
            answers[i] = until_stop(row, stop_ids)
    return answers


class _Ended(StoppingCriteria):
    """`has_ended` as transformers asks it: the rows that have ended are padded while others go on."""

    def __init__(self, has_ended: HasEnded, prompt: int) -> None:
        self.has_ended, self.prompt = has_ended, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return self.has_ended(input_ids[:, self.prompt :])


def _like_rows(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of prompts of the same length, together."""
    return [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in sorted({len(prompt) for prompt in prompts})]


def _keeps_rows_apart(model: PreTrainedModel) -> bool:
    """Whether a row beside another goes on with its cache as its whole text would: tried once. (transformers' RWKV reads the states of all rows in each.)"""
    if "_keeps_rows_apart" not in model.__dict__:
        ids = torch.tensor([[1, 2], [3, 4]], device=model.device)
        config = GenerationConfig(max_new_tokens=2, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        whole = model(input_ids=out.sequences[:, :3]).logits[:, -1]  # (2, V)
        model.__dict__["_keeps_rows_apart"] = torch.allclose(out.logits[-1], whole, rtol=1e-2, atol=1e-3)
    return model.__dict__["_keeps_rows_apart"]


class _Chooser(LogitsProcessor):
    """Leaves the greedy search of transformers no choice but the token that we pick."""

    def __init__(self, pick: _Pick, rows: Tensor, prompt_tokens: int) -> None:
        self.pick, self.rows, self.prompt_tokens = pick, rows, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.pick(scores, self.rows, input_ids.shape[1] - self.prompt_tokens)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)
