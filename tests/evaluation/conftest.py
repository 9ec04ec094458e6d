"""A microscopic world to measure in: a tokenizer, untrained Llamas, token shards and benchmarks of a few questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SUMS = [{"question": f"Ann has {a} pens and buys {a + 1} more. How many pens?", "answer": f"{a} + {a + 1} = {2 * a + 1}\n#### {2 * a + 1}"} for a in range(12)]
QUIZ = [{"question": f" What is {a} + 1?", "subject": "elementary_sums", "choices": [str(a), str(a + 1), "9", "0"], "answer": 1} for a in range(6)]
FUNCTIONS = [
    {
        "task_id": f"mini/{n}",
        "prompt": f'def add_{n}(x):\n    """Add {n} to x."""\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": f"add_{n}",
    }
    for n in range(4)
]


class World(NamedTuple):
    """Where the pieces lie."""

    benchmarks: Path
    tokens: Path
    model: Path
    other_model: Path


def save_benchmark(root: Path, name: str, config: str, **splits: list[dict]) -> None:
    folder = root / name / config
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pd.DataFrame(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    texts = [row["question"] + row["answer"] for row in SUMS] + [row["prompt"] + row["canonical_solution"] for row in FUNCTIONS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=420, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, context: int = 160) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=context, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer()
    save_benchmark(root / "benchmarks", "modelyard/mini_gsm8k", "main", train=SUMS[:4], test=SUMS[4:])
    save_benchmark(root / "benchmarks", "modelyard/mini_mmlu", "elementary_sums", dev=QUIZ[:2], test=QUIZ[2:])
    save_benchmark(root / "benchmarks", "modelyard/mini_mmlu", "more_sums", dev=QUIZ[:2], test=QUIZ[3:])
    save_benchmark(root / "benchmarks", "modelyard/mini_humaneval", "default", test=FUNCTIONS)
    text = "".join(row["question"] + " " + row["answer"] + "<|endoftext|>" for row in SUMS)
    (root / "tokens").mkdir()
    np.array(tokenizer.encode(text), dtype=np.uint16).tofile(root / "tokens" / "heldout.bin")
    (root / "tokens" / "tokens.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": len(tokenizer)}))
    return World(root / "benchmarks", root / "tokens", save_model(root / "one", tokenizer, seed=1), save_model(root / "two", tokenizer, seed=2))
