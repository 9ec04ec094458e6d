"""Talk to a model in the terminal: `modelyard chat models:/modelyard@champion`.

The whole conversation goes through the model's own chat template each turn, oldest turns leaving first when the context
is full. Where standard input is no terminal, each line is a message of its own and the answers are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from components.schema.config import BadInput


def chat(model: str | None, max_new_tokens: int, temperature: float) -> None:
    """Read messages until the end of input or /quit. Errors: BadInput where the model cannot be had."""
    if not model:
        raise BadInput("chat: no model was named, so nobody would answer. Use for example: modelyard chat models:/modelyard@champion")
    folder = _folder(model)
    from components.models.build import load, load_tokenizer, stop_ids
    from components.models.generate import generate

    network, tokenizer = load(folder), load_tokenizer(folder)
    room = network.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise BadInput(f"chat: --max-new-tokens {max_new_tokens} leaves no room in the model's context of {network.config.max_position_embeddings} tokens. Lower it")

    def encode(turns: list[dict[str, str]]) -> list[int]:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]

    def answer(turns: list[dict[str, str]]) -> str:
        new = generate(
            network, [encode(turns)[-room:]], stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens, temperature=temperature, seed=len(turns),
        )  # fmt: skip
        return tokenizer.decode(new[0], skip_special_tokens=True)

    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{model} from {folder}\nType a message; /new starts over, /quit leaves.")
    messages: list[dict[str, str]] = []
    while (text := _read(interactive)) is not None:
        if text == "/quit":
            return
        if text == "/new":
            messages = []
            continue
        if not text.strip():
            continue
        messages = [*messages, {"role": "user", "content": text}] if interactive else [{"role": "user", "content": text}]
        while len(messages) > 1 and len(encode(messages)) > room:
            messages = messages[2:]
        messages.append({"role": "assistant", "content": answer(messages)})
        print(messages[-1]["content"], flush=True)


def _read(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "")
    except EOFError:
        return None


def _folder(model: str) -> Path:
    """A checkpoint's folder, from the registry or the disk."""
    if model.startswith("models:/"):
        from components.registry import models

        return models.fetch(model)
    folder = Path(model)
    if not (folder / "config.json").exists():
        raise BadInput(f"chat: {model} is no checkpoint: it has no config.json. Name a folder under .modelyard/stages, or models:/modelyard@champion")
    return folder
