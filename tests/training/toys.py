"""Worlds so small that the best policy is known: a tiny Llama over a few words, judged by a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from components.training.online import Ground
from components.training.prompts import Question
from components.training.rewards import Judged
from components.training.rollouts import Rollout

WORDS = 10  # 0 pads, 1 ends a turn
PAD, END = 0, 1


class Spelt:
    """Stands for a tokenizer where only decoding is asked for."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def config_of(width: int, **changes: Any) -> LlamaConfig:
    return LlamaConfig(
        **{"vocab_size": WORDS, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2,
           "max_position_embeddings": 24, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD, **changes}
    )  # fmt: skip


def language_model(seed: int, width: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config_of(width)).eval()


def scalar_model(seed: int, width: int = 16) -> LlamaForSequenceClassification:
    """With a head of noughts, as a value function begins that expects nothing."""
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config_of(width, num_labels=1)).eval()
    torch.nn.init.zeros_(model.score.weight)
    return model


def judged_by(rule: Callable[[list[int], list[int]], float]) -> Callable[..., Judged]:
    """A reward from rule(prompt, answer)."""

    def judge(rollout: Rollout, questions: list[Question]) -> Judged:
        total: Tensor = torch.tensor([rule(question.ids, answer) for question, answer in zip(questions, rollout.answers, strict=True)])
        return Judged(total, {"rule": total})

    return judge


def ground(rule: Callable[[list[int], list[int]], float], prompts: list[list[int]], seed: int = 0, **changes: Any) -> Ground:
    """A policy and its reference, with these prompts for training and held out alike."""
    policy, reference = language_model(seed), language_model(seed).requires_grad_(False)
    questions = [Question(ids, "", None, None, None) for ids in prompts]
    return Ground(
        **{
            "words": Spelt(),
            "stops": [END, PAD],
            "policy": policy,
            "reference": reference,
            "questions": questions,
            "heldout": questions,
            "rewards": judged_by(rule),
            **changes,
        }
    )


def first_word(model: LlamaForCausalLM, prompt: list[int]) -> Tensor:
    """Probabilities of what the model says first: (WORDS,)."""
    with torch.no_grad():
        return model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double().softmax(-1)
