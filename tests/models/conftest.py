"""A microscopic tokenizer by the data stages' contract, and a microscopic model's config."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from components.models.build import load_tokenizer
from components.schema.training import ModelConfig

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """One token per byte, after the special ones."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(SPECIAL + alphabet)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[4], extra_special_tokens=SPECIAL[1:4])
    fast.chat_template = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def words(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def config():
    return ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, context_tokens=32)
