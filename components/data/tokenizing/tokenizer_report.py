"""What a tokenizer does to text it has not seen: report.json, by domain, on held-out documents.

    bytes_per_token      compression: UTF-8 bytes for each token; higher is better
    tokens_per_word      fertility (Rust et al. 2021, arXiv:2012.15613); words are what white space parts
    coverage             share of characters that lie whole within a token, rather than being spelled in bytes
    tokens_per_number    tokens with a digit, for each run of digits
    lossless             share of documents that come back exactly

The yardstick is a byte-level BPE with GPT-2's own pre-tokenization pattern (Radford et al. 2019) and the same vocabulary
size, trained on the spot on a sample of the same training text. GPT-2's own merges are not used: they would have to be fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.data import shards

SAMPLE_BYTES = 500_000  # of held-out text in each domain
YARDSTICK_BYTES = 2_000_000  # of training text
BATCH_BYTES = 1_000_000
LONGEST = 20
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
NUMBER = re.compile(r"\d+")
COUNTED = ("documents", "lossless_documents", "bytes", "characters", "words", "numbers", "tokens", "tokens_with_digits", "whole_characters")


def report(path: Path, heldout: Path, sample: Sequence[str]) -> dict[str, Any]:
    """Measure the tokenizer in `path` on the shards of `heldout`; `sample` is training text for the yardstick."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    pieces = Pieces(tokenizer)
    yardstick = _yardstick(sample, tokenizer.get_vocab_size())
    domains, used = {}, np.zeros(len(pieces.texts), np.int64)
    reference_tokens: dict[str, int] = {}
    for domain, texts in _heldout(heldout):
        domains[domain], ids = _measure(tokenizer, pieces, texts)
        used += ids
        reference_tokens[domain] = sum(len(one) for batch in batches(texts) for one in yardstick.encode_batch_fast(batch))
    everything = {name: sum(counts[name] for counts in domains.values()) for name in COUNTED}
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "heldout": {**{domain: _rates(counts) for domain, counts in domains.items()}, "all": _rates(everything)},
        "unused": _unused(pieces, used),
        "longest_tokens": _longest(pieces),
        "yardstick": _against(domains, everything, reference_tokens, yardstick.get_vocab_size(), sum(len(text.encode()) for text in sample)),
    }


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that counts.json shows."""
    everything = report["heldout"]["all"]
    shown = {name: everything[name] for name in ("bytes_per_token", "tokens_per_word", "coverage", "tokens_per_number", "lossless")}
    return {**shown, "unused_share": report["unused"]["share"], "compression_against_yardstick": report["yardstick"]["ratio"]["all"]}


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in runs of about BATCH_BYTES characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Pieces:
    """What the tokens of a vocabulary stand for; arrays are (V,)."""

    def __init__(self, tokenizer: Any) -> None:
        size = max(tokenizer.get_vocab().values()) + 1
        decoder = (json.loads(tokenizer.to_str()).get("decoder") or {}).get("type")
        names = [tokenizer.id_to_token(i) or "" for i in range(size)]
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.texts = [None if i in special else _text_of(name, decoder == "ByteLevel") for i, name in enumerate(names)]
        self.special = np.array([i in special for i in range(size)])
        self.whole_characters = np.array([len(text) if text else 0 for text in self.texts])
        self.has_digit = np.array([bool(text and NUMBER.search(text)) for text in self.texts])


def _text_of(name: str, byte_level: bool) -> str | None:
    """The characters that a token stands for; None where it is part of one."""
    if byte_level:
        try:
            return bytes(_BYTE_OF[character] for character in name).decode()
        except (KeyError, UnicodeDecodeError):
            return None
    return None if BYTE_TOKEN.fullmatch(name) else name.replace("\u2581", " ").removeprefix("##")


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _bytes_by_character()


def _heldout(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Domain and its first documents; they lie in an order that is random already."""
    paths = shards.paths(folder)
    for domain in dict.fromkeys(path.stem.rpartition("-")[0] for path in paths):
        texts: list[str] = []
        room = SAMPLE_BYTES
        for text in (t for path in paths if path.stem.rpartition("-")[0] == domain for table in shards.read(path, ["text"]) for t in table["text"].to_pylist()):
            texts.append(text)
            room -= len(text.encode())
            if room <= 0:
                break
        yield domain, texts


def _measure(tokenizer: Any, pieces: Pieces, texts: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
    """Counts over some texts, and how often each token was used (V,)."""
    used, lossless = np.zeros(len(pieces.texts), np.int64), 0
    for batch in batches(texts):
        rows = [one.ids for one in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        used += np.bincount(np.concatenate([np.array(row, np.int64) for row in rows]), minlength=len(used))
        lossless += sum(map(str.__eq__, batch, tokenizer.decode_batch(rows, skip_special_tokens=False)))
    counts = {
        "documents": len(texts),
        "lossless_documents": lossless,
        "bytes": sum(len(text.encode()) for text in texts),
        "characters": sum(map(len, texts)),
        "words": sum(len(text.split()) for text in texts),
        "numbers": sum(len(NUMBER.findall(text)) for text in texts),
        "tokens": int(used.sum()),
        "tokens_with_digits": int(used[pieces.has_digit].sum()),
        "whole_characters": int(used @ pieces.whole_characters),
    }
    return counts, used


def _rates(counts: dict[str, int]) -> dict[str, Any]:
    def ratio(above: str, below: str) -> float | None:
        return round(counts[above] / counts[below], 4) if counts[below] else None

    return {
        **{name: counts[name] for name in ("documents", "bytes", "words", "tokens")},
        "bytes_per_token": ratio("bytes", "tokens"),
        "tokens_per_word": ratio("tokens", "words"),
        "coverage": ratio("whole_characters", "characters"),
        "tokens_per_number": ratio("tokens_with_digits", "numbers"),
        "lossless": ratio("lossless_documents", "documents"),
    }


def _unused(pieces: Pieces, used: np.ndarray) -> dict[str, Any]:
    """Tokens that the held-out sample never needed; special tokens are not asked."""
    idle = np.flatnonzero((used == 0) & ~pieces.special)
    count = int((~pieces.special).sum())
    return {"count": len(idle), "share": round(len(idle) / max(1, count), 4), "examples": [pieces.texts[i] for i in idle[-LONGEST:] if pieces.texts[i]]}


def _longest(pieces: Pieces) -> list[str]:
    return sorted((text for text in pieces.texts if text), key=lambda text: (-len(text), text))[:LONGEST]


def _yardstick(sample: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # use_regex: GPT-2's pattern
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def _against(domains: dict[str, dict[str, int]], everything: dict[str, int], reference_tokens: dict[str, int], vocab_size: int, trained_on: int) -> dict[str, Any]:
    """Compression beside the yardstick's: ratio above 1 means fewer tokens than the yardstick takes for the same text."""
    tokens = {**{domain: counts["tokens"] for domain, counts in domains.items()}, "all": everything["tokens"]}
    reference = {**reference_tokens, "all": sum(reference_tokens.values())}
    sizes = {**{domain: counts["bytes"] for domain, counts in domains.items()}, "all": everything["bytes"]}
    return {
        "what": f"byte-level BPE with GPT-2's pre-tokenization pattern, {vocab_size} tokens, trained on {trained_on} bytes of the same training text; not GPT-2's own merges",
        "vocab_size": vocab_size,
        "trained_on_bytes": trained_on,
        "bytes_per_token": {name: round(sizes[name] / count, 4) if count else None for name, count in reference.items()},
        "ratio": {name: round(count / tokens[name], 4) if tokens[name] else None for name, count in reference.items()},
    }
