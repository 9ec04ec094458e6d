"""What both sides of the post-training benchmark begin from: a model, a tokenizer of 4,096 words, chats and pairs, of stated lengths in tokens.

Words are drawn at random: what is measured is time. Runs in this environment and in TRL's, so it needs transformers alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS, INTERMEDIATE = 4096, 256, 256, 6, 4, 704
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + ' <|end|>' }}{% endgeneration %}{{ ' ' }}"
    "{% else %}{{ m['content'] + ' <|end|> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
PAIR_PROMPT, PAIR_ANSWER = 60, 192  # with the 4 tokens of the template: 256
QUESTION = 29  # with its 3 of the template: 32
CHATS, PAIRS = 4000, 512


def write(folder: Path) -> None:
    """model/, chats/{train,heldout}.jsonl, preferences/{train,heldout}.jsonl under `folder`."""
    source = random.Random(0)

    def words(n: int) -> str:
        return " ".join(f"w{source.randrange(VOCABULARY - len(SPECIAL) - 1)}" for _ in range(n))

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None, eos_token_id=4, pad_token_id=0, **shape))
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    chat = [{"messages": [{"role": "user", "content": words(source.randrange(10, 41))}, {"role": "assistant", "content": words(source.randrange(10, 121))}], "kind": "talk"} for _ in range(CHATS)]
    pairs = [{"prompt": [{"role": "user", "content": words(PAIR_PROMPT)}], "chosen": words(PAIR_ANSWER), "rejected": words(PAIR_ANSWER), "kind": "any"} for _ in range(PAIRS)]
    questions = [{"messages": [{"role": "user", "content": words(QUESTION)}, {"role": "assistant", "content": "w1"}], "kind": "question"} for _ in range(PAIRS)]
    for name, rows in (("chats", chat), ("preferences", pairs), ("questions", questions)):
        (folder / name).mkdir(parents=True)
        for split, part in (("train", rows), ("heldout", rows[:16])):
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token."""
    names = [*SPECIAL, "<|unknown|>", *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL) - 1))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|unknown|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[4], extra_special_tokens=SPECIAL[1:4])
    fast.chat_template = TEMPLATE
    return fast
