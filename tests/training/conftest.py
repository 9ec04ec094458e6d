"""A microscopic world for training tests: a byte-level tokenizer by the data stages' contract, and data made on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from components.models.build import load_tokenizer
from components.schema.posttraining import PPOConfig, RewardConfig, SFTConfig
from components.schema.training import ModelConfig, PretrainConfig
from components.training import ppo, pretrain, reward, sft
from components.training.align import Given
from components.training.trainer import Context

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_tokenizer(folder: Path, template: str = TEMPLATE) -> Path:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator(["the cat sat on the mat and what is 1 plus 2"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[4], extra_special_tokens=SPECIAL[1:4])
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, context_tokens=32)


def write_tokens(folder: Path, vocab_size: int, shards: dict[str, np.ndarray], heldout: np.ndarray, dtype: str = "uint16", **mix) -> Path:
    """tokens/ and mix/ by the data stages' contract, from ids by shard name; returns tokens/. `mix` as in mix.json, by default all of everything."""
    (folder / "tokens/train").mkdir(parents=True)
    domains: dict[str, dict] = {}
    for name, ids in shards.items():
        ids.astype(dtype).tofile(folder / f"tokens/train/{name}.bin")
        domain = domains.setdefault(name.rpartition("-")[0], {"train_tokens": 0, "shards": []})
        domain["train_tokens"] += len(ids)
        domain["shards"].append({"name": name, "tokens": len(ids), "documents": 1})
    heldout.astype(dtype).tofile(folder / "tokens/heldout.bin")
    counts = {"dtype": dtype, "vocab_size": vocab_size, "heldout_tokens": len(heldout), "heldout_bytes": len(heldout) * 50 // 20, "domains": domains}
    (folder / "tokens/tokens.json").write_text(json.dumps(counts))
    total = sum(domain["train_tokens"] for domain in domains.values())
    natural = {name: domain["train_tokens"] / total for name, domain in sorted(domains.items())}
    (folder / "mix").mkdir()
    (folder / "mix/mix.json").write_text(json.dumps({"max_epochs": 100, "phases": [{"until": 1.0, "probabilities": natural}], "domains": domains, **mix}))
    return folder / "tokens"


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory, tokenizer_folder) -> Path:
    rng = np.random.default_rng(0)
    train, heldout = ((rng.integers(10, 200, words)[:, None] + np.arange(20)).ravel() for words in (200, 60))  # runs of counting tokens: learnable at once
    return write_tokens(tmp_path_factory.mktemp("dataset"), len(load_tokenizer(tokenizer_folder)), {"counting-00000": train}, heldout)


def write_rows(folder: Path, make, train: int = 60, heldout: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, first, count in (("train", 0, train), ("heldout", 1000, heldout)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(make(first + i)) + "\n" for i in range(count)))
    return folder


def make_chat(i: int) -> dict:
    sum_ = {"role": "user", "content": f"{i % 10} plus {i % 7}"}, {"role": "assistant", "content": f"is {i % 10 + i % 7}"}
    return {"messages": list(sum_) * (1 + i % 2), "kind": ("once", "twice")[i % 2]}


def make_pair(i: int) -> dict:
    return {"prompt": [{"role": "user", "content": f"{i % 10} plus {i % 7}"}], "chosen": f"is {i % 10 + i % 7}", "rejected": ("cat", "the mat")[i % 2], "kind": "sum"}


@pytest.fixture(scope="session")
def chats_folder(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("chats"), make_chat)


@pytest.fixture(scope="session")
def preferences_folder(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("preferences"), make_pair)


PLAN = {"batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "checkpoint_every_steps": 4}
PPO_PLAN = {"rollout_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "learning_rate": 1e-3, "heldout_prompts": 8, "checkpoint_every_iterations": 2}


class Line:
    """The four stages over one microscopic world; `run(stage, out, context)` runs one on the stage before it."""

    def __init__(self, folder, tokenizer, tokens, chats, preferences, model) -> None:
        self.folder, self.tokenizer, self.tokens, self.chats, self.preferences, self.model = folder, tokenizer, tokens, chats, preferences, model

    def of(self, stage: str) -> Path:
        """The finished folder of a stage, made when first asked for."""
        out = self.folder / stage
        if not (out / "model.safetensors").exists():
            self.run(stage, out)
        return out

    def run(self, stage: str, out: Path, context: Context | None = None, **changes):
        context = context or Context(seed=1)
        if stage == "pretrain":
            return pretrain.run(PretrainConfig(**{"steps": 10, "heldout_sequences": 8, **PLAN, **changes}), self.model, self.tokens, self.tokens.parent / "mix", self.tokenizer, out, context)
        if stage == "sft":
            return sft.run(SFTConfig(**{"steps": 10, "heldout_chats": 8, **PLAN, **changes}), self.of("pretrain"), self.chats, out, context)
        if stage == "reward":
            return reward.run(RewardConfig(**{"steps": 10, "heldout_pairs": 8, **PLAN, **changes}), self.of("sft"), self.preferences, out, context)
        return ppo.run(PPOConfig(**{"iterations": 5, **PPO_PLAN, **changes}), self.given(), out, context)

    def given(self) -> Given:
        """What aligning starts from, without a cost model or a judge."""
        return Given(self.of("sft"), {"reward": self.of("reward")}, self.preferences, self.chats, lambda programs: [False] * len(programs))


@pytest.fixture(scope="session")
def line(tmp_path_factory, tokenizer_folder, tokens_folder, chats_folder, preferences_folder, model_config) -> Line:
    return Line(tmp_path_factory.mktemp("line"), tokenizer_folder, tokens_folder, chats_folder, preferences_folder, model_config)
