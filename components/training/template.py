"""The tokenizer and template contract: what post-training stages must agree on, and a preflight that it does what it should.

A chat model's folder holds `template.json`: hashes of the chat template, the special tokens, the vocabulary and the
loss-mask policy. A later stage refuses a folder whose hashes differ from its other inputs' and says which part differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.heads import logits_at
from components.schema.config import BadInput
from components.schema.records import digest
from components.training.batches import lay_out

MASK_POLICY = "assistant content and its end-of-turn token"
FILE = "template.json"
GOLDEN: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 = 5"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Bye."},
    ],
)


def contract_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The hash of each part that must not change after SFT."""
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    return {
        "chat template": digest(tokenizer.chat_template),
        "special tokens": digest({"ids": special, "end": tokenizer.eos_token, "padding": tokenizer.pad_token}),
        "vocabulary": digest(tokenizer.get_vocab()),
        "loss-mask policy": digest(MASK_POLICY),
    }


def write_contract(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Leave the contract in a model's folder."""
    (out / FILE).write_text(json.dumps(contract_of(tokenizer), indent=2) + "\n", encoding="utf-8")


def require_contract(folder: Path, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Refuse a chat or reward model whose contract is absent or another than this tokenizer's. Errors: BadInput."""
    path = folder / FILE
    if not path.is_file():
        raise BadInput(f"{what}: {path} does not exist, so it is not a chat model: its answers would not follow the template. Give the folder of a finished SFT or reward stage")
    stored, mine = json.loads(path.read_text(encoding="utf-8")), contract_of(tokenizer)
    if differing := [part for part in mine if stored.get(part) != mine[part]]:
        raise BadInput(f"{what}: {path} differs in its {', '.join(differing)}: the model was trained on chats written another way. Use inputs that come from one SFT run")


def encode(tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]]) -> list[tuple[list[int], list[bool]]]:
    """Each chat as (ids, counts); counts is True on the assistant's content and its end-of-turn token."""
    if not chats:
        return []
    both = tokenizer.apply_chat_template(chats, return_dict=True, return_assistant_tokens_mask=True)
    return [(ids, [bool(m) for m in mask]) for ids, mask in zip(both["input_ids"], both["assistant_masks"], strict=True)]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
    """Each chat up to where the assistant is to speak."""
    return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False) if prompts else []


def preflight(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render golden chats; assert that each assistant turn trains, that it learns to end, and that packed chats do not see each other.

    Errors: BadInput.
    """
    if not tokenizer.chat_template:
        raise BadInput("template: the tokenizer has no chat template, so chats cannot be written as tokens. Make it with the data stage")
    texts = encode(tokenizer, [list(chat) for chat in GOLDEN])
    for chat, (ids, counts) in zip(GOLDEN, texts, strict=True):
        turns = sum(message["role"] == "assistant" for message in chat)
        runs = _runs(counts)
        if len(runs) != turns:
            raise BadInput(f"template: {turns} assistant turns have {len(runs)} stretches of trained tokens: some would teach nothing. Wrap the assistant's content and its end in {{% generation %}}")
        if untrained := [end for _, end in runs if ids[end - 1] != tokenizer.eos_token_id]:
            raise BadInput(f"template: {len(untrained)} of {turns} assistant turns do not train {tokenizer.eos_token!r}: the model would never learn to stop. Put it inside {{% generation %}}")
    _require_separation(model, texts, tokenizer.pad_token_id)


def _runs(counts: list[bool]) -> list[tuple[int, int]]:
    """Stretches of True as (start, end)."""
    edges = [i for i in range(len(counts) + 1) if (counts[i] if i < len(counts) else False) != (counts[i - 1] if i else False)]
    return list(zip(edges[::2], edges[1::2], strict=True))


@torch.no_grad()
def _require_separation(model: PreTrainedModel, texts: list[tuple[list[int], list[bool]]], pad_id: int) -> None:
    was_training = model.training
    model.eval()
    together = _logits(model, lay_out([list(range(len(texts)))], texts, pad_id))
    apart = torch.cat([_logits(model, lay_out([[i]], texts, pad_id)) for i in range(len(texts))])
    model.train(was_training)
    if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3):
        gap = (together - apart).abs().max().item()
        raise BadInput(f"template: packed chats see each other in architecture {model.config.model_type!r} (logits move by {gap:.2g}): it would learn from the wrong text. Use llama, qwen2 or mistral")


def _logits(model: PreTrainedModel, packed: Any) -> torch.Tensor:
    device = model.device
    return logits_at(model, packed.counts.to(device), input_ids=packed.ids.to(device), position_ids=packed.position_ids.to(device))
