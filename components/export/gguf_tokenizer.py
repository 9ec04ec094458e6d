"""A tokenizer as llama.cpp has it: the same ids for every text, or a refusal.

llama.cpp does not read a tokenizer's regular expression; it has a fixed list of them, by name. So a byte-level BPE goes in only where the way in which it cuts
text into words is one of that list's, letter for letter; a name that is nearly right gives other ids for some texts, and answers get worse without a word.
The names and expressions are those of llama.cpp's src/llama-vocab.cpp, as llama-cpp-python 0.3.36 has it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.schema.config import BadInput

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# An expression before the bytes, and llama.cpp's name of it.
SPLITS = {
    f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}|{REST}": "llama-bpe",
    f"{CONTRACTIONS}|{WORDS}|\\p{{N}}|{REST}": "qwen2",
    f"{WORDS}|\\p{{N}}|{REST}": "ufakzeka",
}
WHOLE_WORDS = {"llama-bpe": "smaug-bpe"}  # the same expression, for a tokenizer that merges even where the whole word is a token
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # marks for training that llama.cpp's templates do not know
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens

APART = "Export with --tokenizer apart: the file then reads token ids, and tokenizer.json lies beside it"


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file's header."""

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]
    """bos, eos, pad: their ids."""
    begins_with_bos: bool
    composed: bool
    """Whether the tokenizer composes characters first (NFC), as Qwen's do. llama.cpp leaves text as it comes, which differs for text in another form alone."""
    template: str | None


def read(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a model's folder, as many tokens as its embedding has rows. Errors: BadInput, saying what llama.cpp does not have."""
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pre = pre_tokenizer(whole)
    model, added = whole["model"], whole.get("added_tokens") or []
    by_id = {id: token for token, id in model["vocab"].items()} | {token["id"]: token["content"] for token in added}
    if beyond := [id for id in by_id if id >= rows]:
        raise BadInput(f"export: the tokenizer has the id {max(beyond)} and the model {rows} rows, so some tokens have none. Repair the folder: its tokenizer is another model's")
    kinds = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {role: id for role in ("bos", "eos", "pad") if (id := _id_of(settings.get(f"{role}_token"), by_id)) is not None}
    return Vocabulary(
        pre=pre,
        tokens=[by_id.get(id, f"[PAD{id}]") for id in range(rows)],
        kinds=[kinds.get(id, NORMAL) if id in by_id else UNUSED for id in range(rows)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        special=special,
        composed=whole.get("normalizer") is not None,
        begins_with_bos=_begins_with_bos(whole, special, by_id),
        template=_template(folder, settings),
    )


def pre_tokenizer(whole: dict[str, Any]) -> str:
    """llama.cpp's name of what tokenizer.json does before it merges. Errors: BadInput where llama.cpp has nothing that does the same."""
    model = whole["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or (whole.get("decoder") or {}).get("type") != "ByteLevel":
        raise _refused(f"is a {model['type']} tokenizer{' with byte fallback' if model.get('byte_fallback') else ''}, and this export writes byte-level BPE alone")
    if (normalizer := whole.get("normalizer")) and normalizer["type"] != "NFC":
        raise _refused(f"changes text before it is tokenized ({normalizer['type']}), which llama.cpp does not do")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if model.get(name):
            raise _refused(f"has {name}={model[name]!r}, which llama.cpp does not have")
    if odd := [token["content"] for token in whole.get("added_tokens") or [] if token.get("lstrip") or token.get("rstrip") or token.get("single_word")]:
        raise _refused(f"takes spaces around {odd[0]!r} away, which llama.cpp does not do")
    name = _name(whole.get("pre_tokenizer") or {})
    if model.get("ignore_merges") and name != "llama-bpe":
        raise _refused("takes a word that is a token as it is, without merging (ignore_merges), which llama.cpp does for other expressions than its own only")
    return name if model.get("ignore_merges") else WHOLE_WORDS.get(name, name)


def _name(pre: dict[str, Any]) -> str:
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    last = parts[-1]
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        raise _refused(f"cuts text by {', '.join(map(str, kinds))}, which llama.cpp does not have")
    by_itself = last.get("use_regex", True)
    if kinds == ["ByteLevel"] and by_itself:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and by_itself and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not by_itself and parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]:
        expression = parts[0]["pattern"].get("Regex", "")
        if expression in SPLITS:
            return SPLITS[expression]
        raise _refused(f"cuts text into words by {expression!r}, which is none of llama.cpp's expressions")
    raise _refused(f"cuts text by {', '.join(map(str, kinds))}, which llama.cpp does not have in this form")


def _refused(what: str) -> BadInput:
    return BadInput(f"export: the tokenizer {what}, so a GGUF file would tokenize some texts otherwise than the model was trained. {APART}, or train with data.tokenizer of kind bpe, or of kind pretrained with one that cuts as GPT-2, Llama 3, SmolLM or Qwen2 do")


def _id_of(token: Any, by_id: dict[int, str]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return next((id for id, known in by_id.items() if known == text), None) if text else None


def _begins_with_bos(whole: dict[str, Any], special: dict[str, int], by_id: dict[int, str]) -> bool:
    """Whether every text gets the first token in front. Errors: BadInput where it gets something else added."""
    processors = whole.get("post_processor") or {}
    templates = [part for part in processors.get("processors", [processors]) if part.get("type") == "TemplateProcessing"]
    if not templates:
        return False
    added = [piece["SpecialToken"]["id"] for piece in templates[0]["single"] if "SpecialToken" in piece]
    if added and ("bos" not in special or added != [by_id[special["bos"]]] or "SpecialToken" not in templates[0]["single"][0]):
        raise _refused(f"adds {', '.join(added)} to each text, which llama.cpp does only for a first token")
    return bool(added)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template without its marks for training, which change nothing of what it writes."""
    file = folder / "chat_template.jinja"
    text = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    return GENERATION.sub("", text) if isinstance(text, str) else None
