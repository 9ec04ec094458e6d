"""Microscopic models with a byte-level BPE that was trained on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
SENTENCES = ["the tide comes in twice a day and goes out twice a day", "12 + 30 = 42, and 7 * 6 = 42", "def add(a, b):\n    return a + b\n"] * 4
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 4, "bos_token_id": None,
}  # fmt: skip


def gpt2_words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def tokenizer(folder: Path, words: Any = None, ignore_merges: bool = False) -> None:
    """tokenizer.json and its settings."""
    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bpe.pre_tokenizer, bpe.decoder = words or gpt2_words(), decoders.ByteLevel()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    )
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[4], "pad_token": SPECIAL[0], "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def model(folder: Path, config: PreTrainedConfig | None = None, words: Any = None, ignore_merges: bool = False) -> Path:
    """A folder of a model with drawn weights, each norm and bias other than where it began."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder, words, ignore_merges)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES, tie_word_embeddings=True))
        for parameter in network.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return folder
