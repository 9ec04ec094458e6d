"""Answers from a model: greedy or sampled, batched, with a KV cache (transformers' `generate`).

Prompts are padded on the left, so that every row goes on at the same column. Sampling is from the whole distribution
at the given temperature (no top-k or top-p), and follows from the seed alone for a given list of prompts and batch size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


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
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with the first stop token; `temperature=0` is greedy."""
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # rows of like length waste no padding
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            rows = by_length[start : start + batch_size]
            new = _continue(model, [prompts[i] for i in rows], list(stop_ids), pad_id, max_new_tokens, temperature)
            for i, answer in zip(rows, new, strict=True):
                answers[i] = answer
    model.train(was_training)
    return answers


def _continue(model: PreTrainedModel, prompts: list[Sequence[int]], stop_ids: list[int], pad_id: int, max_new_tokens: int, temperature: float) -> list[list[int]]:
    ids, is_prompt = pad_left(prompts, pad_id)  # (B, P)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stop_ids, pad_token_id=pad_id, **how)
    out = model.generate(ids.to(model.device), attention_mask=is_prompt.long().to(model.device), generation_config=config)
    return [until_stop(row, stop_ids) for row in out[:, ids.shape[1] :].tolist()]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the left, and a mask that is True where a token is real: (B, T), (B, T)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    is_real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, is_real


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The row up to and with its first stop token; the whole row where there is none."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])
