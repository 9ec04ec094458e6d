"""The tokenizer: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2) with digits split one by one.

Single digits let a small model learn column arithmetic instead of a table of number words. The chat template marks what
the assistant says ({% generation %}), so the loss mask comes out of the template itself and covers the end-of-turn token.
"""

from __future__ import annotations

import json
from pathlib import Path

from components.data import split
from components.schema.data import DataConfig

END_OF_TEXT, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

# GPT-2's words with two changes: each digit is alone, and a sign takes the space between it and a number ("12", " + ", "5").
WORDS = r"\p{N}| ?[^\s\p{L}\p{N}]+(?: (?=\p{N}))?| ?\p{L}+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('role ' ~ message['role'] ~ ' is none of system, user, assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def run(config: DataConfig, folder: Path) -> None:
    """Train on the documents and chats beside `folder`; write a folder that AutoTokenizer loads.

    Where the data has fewer merges to give than vocab_size asks for, the vocabulary is smaller, and counts.json says so.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    documents = [row["text"] for row in split.read_json_lines(folder.parent / "documents" / "train.jsonl")]
    chats = [message["content"] for row in split.read_json_lines(folder.parent / "chats" / "train.jsonl") for message in row["messages"]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*documents, *chats], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_settings(), indent=2) + "\n", encoding="utf-8")
    split.write_counts(folder, {"vocab_size": tokenizer.get_vocab_size(), "trained_on_documents": len(documents), "trained_on_messages": len(chats)})


def _settings() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "extra_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
