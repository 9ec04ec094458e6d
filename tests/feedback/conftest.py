"""A small chat model with random weights, a constitution, prompts, and a rule that judges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from components.feedback.feedback import Given
from components.models.build import build, load_tokenizer, save
from components.schema.feedback import FeedbackConfig
from components.schema.training import ModelConfig
from tests.feedback.server import Say, Server, serving

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PRINCIPLES = [
    {"id": "private", "principle": "Nobody's home is told.", "preference": "Which answer tells no home?", "weight": 2},
    {"id": "short", "principle": "An answer is short."},
]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_tokenizer(folder: Path) -> Path:
    """One token per byte, after the special ones."""
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[4], extra_special_tokens=SPECIAL[1:4])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def make_model(folder: Path) -> Path:
    """A Llama that never learnt anything, with weights large enough to have opinions."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    model = build(ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, context_tokens=1024), load_tokenizer(tokenizer), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim == 2 else None
    save(model, tokenizer, folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def given(chat_model: Path, tmp_path: Path) -> Given:
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump({"principles": PRINCIPLES}))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tell me about {i}."}) + "\n" for i in range(10)))
    return Given(chat_model, chat_model, tmp_path / "constitution.yaml", tmp_path / "prompts.jsonl")


@pytest.fixture
def configured() -> Callable[..., FeedbackConfig]:
    def make(critic: dict[str, Any] | None = None, **changes: Any) -> FeedbackConfig:
        plain = {
            "name": "small", "policy": "x", "constitution": "x", "prompts": "x", "max_new_tokens": 8, "batch_size": 4, "orders_must_agree": False,
            "critic": {"model": "x", "max_new_tokens": 8, **(critic or {})},
        }  # fmt: skip
        return FeedbackConfig.model_validate({**plain, **changes})

    return make


@pytest.fixture
def served() -> Iterator[Callable[[Say], Server]]:
    with ExitStack() as stack:
        yield lambda say: stack.enter_context(serving(say))


def rule(bias: float = 0.0, strength: float = 2.0, logprobs: bool = True) -> Say:
    """A critic that rewrites an answer without a home, and prefers the answer without one; `bias` draws it to what stands first. Both in log-odds."""

    def say(messages: list[dict[str, str]], body: dict[str, Any]) -> tuple[str, float | None]:
        text = messages[-1]["content"]
        if "Reply with one letter" not in text:
            return ("It tells a home." if "Rewrite" not in text else "Somebody who likes soup."), None
        clean = ["likes soup" in part for part in text.partition("Answer A: ")[2].partition("Answer B: ")[::2]]
        first = 1 / (1 + math.exp(-(strength * (clean[0] - clean[1] if len(clean) == 2 else 0) + bias)))
        return ("A" if first > 0.5 else "B"), (first if logprobs else None)

    return say
