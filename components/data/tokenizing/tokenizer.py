"""The tokenizer: trained on the documents and chats beside it, or an existing one.

Every kind that is trained here can write any text and gives it back exactly:

    bpe         byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2)
    unigram     Unigram (Kudo 2018, arXiv:1804.10959) over the same bytes, each byte being a piece of its own
    character   one token a character, for the most frequent ones, and a token for each of the 256 bytes of all others
    pretrained  somebody else's, by hub id or folder; what our line needs and it lacks is added

Digits are split one by one: that lets a small model learn column arithmetic instead of a table of number words. The chat
template marks what the assistant says ({% generation %}), so the loss mask comes out of the template itself and covers the
end-of-turn token. `pad_token` is the token that ends a document, in every kind.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import xxhash

from components.data import shards
from components.data.reading import hub
from components.data.tokenizing import tokenizer_report
from components.data.tokenizing.special import ASSISTANT, END, END_OF_TEXT, SPECIAL_TOKENS, SYSTEM, USER
from components.schema.config import BadInput
from components.schema.data import DataConfig, TokenizerConfig
from components.schema.records import digest, file_md5

# Qwen2's words, letter for letter (its tokenizer.json): each digit is alone, and line ends belong to what stands before them. Other programs know it by
# name: llama.cpp reads a tokenizer by such a name alone, and transformers uses it for every folder whose config.json says qwen2.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('role ' ~ message['role'] ~ ' is none of system, user, assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS_THE_ANSWER = re.compile(r"\{%-?\s*generation\b")
BYTES = 256
CHATS = "chats"  # how counts.json calls what was read beside the domains
SCORE_DECIMALS = 6


def run(config: DataConfig, folder: Path) -> None:
    """Write a folder that AutoTokenizer loads, report.json and counts.json. Errors: BadInput for a pretrained one that cannot serve.

    Where the data has fewer pieces to give than vocab_size asks for, the vocabulary is smaller, and counts.json says so.
    """
    if config.tokenizer.kind == "pretrained":
        counts = adopt(config.tokenizer, folder)
    else:
        counts = train(config.tokenizer, folder)
    sample = list(training_texts(folder, min(tokenizer_report.YARDSTICK_BYTES, config.tokenizer.max_training_bytes), {}))
    report = tokenizer_report.report(folder / "tokenizer.json", folder.parent / "documents" / "heldout", sample)
    _write_json(folder / "report.json", report)
    _write_json(folder / "counts.json", {"vocab_size": report["vocab_size"], "kind": config.tokenizer.kind, **counts, **tokenizer_report.figures(report)})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- what it learns from


def training_texts(folder: Path, max_bytes: int, taken: dict[str, Counter[str]]) -> Iterator[str]:
    """Training documents and chat messages beside `folder`, as a stream; `taken` is told how many and how much, by domain.

    Above `max_bytes` each domain gives the same share of its bytes. Which texts these are follows from the texts' own hashes.
    """
    sizes = {group: sum(_sizes(folder, group)) for group in _groups(folder)}
    share = min(1.0, max_bytes / max(1, sum(sizes.values())))
    for group, size in sizes.items():
        count = taken.setdefault(group, Counter(texts=0, bytes=0))
        for text in _texts(folder, group):
            whole = text.encode()
            if share < 1 and (xxhash.xxh3_64_intdigest(whole, seed=1) >= share * 2**64 or count["bytes"] + len(whole) > share * size):
                continue
            count.update(texts=1, bytes=len(whole))
            yield text


def _groups(folder: Path) -> list[str]:
    """The domains, in order, and the chats."""
    return [*dict.fromkeys(_domain(path) for path in shards.paths(folder.parent / "documents" / "train")), CHATS]


def _domain(shard: Path) -> str:
    return shard.stem.rpartition("-")[0]


def _shards(folder: Path, domain: str) -> Iterator[Path]:
    return (path for path in shards.paths(folder.parent / "documents" / "train") if _domain(path) == domain)


def _texts(folder: Path, group: str) -> Iterator[str]:
    if group == CHATS:
        yield from _messages(folder.parent / "chats" / "train.jsonl")
    for path in _shards(folder, group):
        for table in shards.read(path, ["text"]):
            yield from table["text"].to_pylist()


def _messages(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield from (message["content"] for message in json.loads(line)["messages"])


def _sizes(folder: Path, group: str) -> Iterator[int]:
    """Bytes of text, without making Python strings of the documents."""
    if group == CHATS:
        yield from (len(text.encode()) for text in _texts(folder, CHATS))
    for path in _shards(folder, group):
        for table in shards.read(path, ["text"]):
            yield pc.sum(pc.binary_length(table["text"])).as_py() or 0


# ---------------------------------------------------------------- trained kinds


def train(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    """Train a tokenizer of the given kind into `folder`; returns what it was trained on."""
    taken: dict[str, Counter[str]] = {}
    tokenizer = TRAIN[config.kind](training_texts(folder, config.max_training_bytes, taken), config.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _settings())
    return {
        "trained_on_documents": sum(count["texts"] for group, count in taken.items() if group != CHATS),
        "trained_on_messages": taken[CHATS]["texts"],
        "trained_on_bytes": sum(count["bytes"] for count in taken.values()),
        "trained_on": {group: dict(count) for group, count in taken.items()},
    }


def _bpe(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = _bytes_of_words(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = _bytes_of_words(), decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False, unk_token=None
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = json.loads(tokenizer.to_str())
    whole["model"]["vocab"] = _settled(whole["model"]["vocab"])
    whole["added_tokens"] = [{**token, "id": i} for i, token in enumerate(whole["added_tokens"])]
    return Tokenizer.from_str(json.dumps(whole))


def _settled(vocab: list[list[Any]]) -> list[list[Any]]:
    """Unigram's pieces with scores and order that are the same on every run.

    The trainer walks a hash map of random order: sums differ in their last digits, and each byte that it had pruned and must keep
    gets the lowest score plus a multiple of 0.0001 by its place in that order. Here all of those get the lowest score.
    """
    special, pieces = vocab[: len(SPECIAL_TOKENS)], [(piece, round(score, SCORE_DECIMALS)) for piece, score in vocab[len(SPECIAL_TOKENS) :]]
    lowest = min(score for _, score in pieces)
    pieces = [(piece, lowest if len(piece) == 1 and score < lowest + BYTES * 1e-4 else score) for piece, score in pieces]
    return [*special, *(list(piece) for piece in sorted(pieces, key=lambda piece: (-piece[1], piece[0])))]


def _bytes_of_words() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _character(texts: Iterable[str], vocab_size: int) -> Any:
    """A BPE without merges: it leaves characters as they are, and writes those it does not know as bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text)
    room = vocab_size - len(SPECIAL_TOKENS) - BYTES
    frequent = sorted(seen, key=lambda character: (-seen[character], character))[:room]
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(BYTES)), *frequent])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


TRAIN = {"bpe": _bpe, "unigram": _unigram, "character": _character}


def _settings() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "extra_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    }


# ---------------------------------------------------------------- somebody else's


def adopt(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    """Take a tokenizer as it is, and add only what our line needs and it lacks; returns what was added. Errors: BadInput."""
    loaded = _load(config.id or "", config.revision)
    before = set(loaded.get_vocab())
    own_template = bool(loaded.chat_template) and bool(MARKS_THE_ANSWER.search(str(loaded.chat_template)))
    end_of_text = loaded.eos_token if loaded.eos_token and END_OF_TEXT not in before else END_OF_TEXT
    roles: dict[str, Any] = {"pad_token": end_of_text}
    if not own_template:
        loaded.chat_template = CHAT_TEMPLATE
        roles |= {"eos_token": END, "extra_special_tokens": [SYSTEM, USER, ASSISTANT]}
    elif not loaded.eos_token:
        roles |= {"eos_token": end_of_text}
    loaded.add_special_tokens(roles)
    if (highest := max(loaded.get_vocab().values())) >= len(loaded):
        raise BadInput(f"tokenizer: {config.id} has {len(loaded)} tokens and the id {highest}: a model with one row a token would have no row for it. Use a tokenizer whose ids have no gaps")
    loaded.save_pretrained(folder)
    return {"id": config.id, "added_tokens": sorted(set(loaded.get_vocab()) - before), "chat_template": "its own" if own_template else "ours", "end_of_document": end_of_text}


def fingerprint(config: TokenizerConfig) -> str:
    """What an existing tokenizer is at this moment: md5 of its folder's files, or the hub's commit. Errors: BadInput."""
    folder = Path(_place(config.id or ""))
    if folder.is_dir():
        return digest({path.name: file_md5(path) for path in sorted(folder.glob("*.json"))})
    from huggingface_hub import HfApi

    try:
        return hub.COMMIT + str(HfApi().model_info(config.id or "", revision=config.revision, timeout=20).sha)
    except Exception as error:  # the network, the hub and its client fail in a dozen ways
        raise BadInput(_not_loaded(config.id or "", "the hub", error)) from None


def _load(id: str, revision: str | None) -> Any:
    """A fast tokenizer from a folder, the mirror or the hub, without running anything that comes with it."""
    from transformers import AutoTokenizer

    place = _place(id)
    if Path(place).is_dir() and not (Path(place) / "tokenizer.json").is_file():
        raise BadInput(_no_tokenizer_file(id, Path(place)))
    try:
        loaded = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False, use_fast=True)
    except Exception as error:  # the Rust parser raises bare Exception, the hub a dozen kinds
        raise BadInput(_not_loaded(id, place, error)) from None
    if not loaded.is_fast:
        raise BadInput(f"tokenizer: {id} has no fast (Rust) form: it would encode a hundred times slower. Convert it to a tokenizer.json first")
    return loaded


def _place(id: str) -> str:
    return id if Path(id).is_dir() else hub.resolve(id)


def _not_loaded(id: str, place: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return (
        f"tokenizer: {id} cannot be loaded from {place} ({reason}), so nothing can be tokenized. "
        "Check data.tokenizer.id; without a network it must lie in a folder or under MODELYARD_HUB_MIRROR"
    )


def _no_tokenizer_file(id: str, folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".pkl", ".pickle", ".bin", ".pt"))
    hint = f"It holds {pickles[0]}, a pickle, which is never loaded. " if pickles else ""
    return f"tokenizer: {folder} holds no tokenizer.json, so {id} cannot be loaded. {hint}Save it with a fast tokenizer's save_pretrained first"
