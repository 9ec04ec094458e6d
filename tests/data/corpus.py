"""Documents and chats as the steps before the tokenizer leave them, written on the spot."""

import json
from pathlib import Path

from components.data import shards
from components.schema.data import DataConfig

POEM = "The tide comes in twice a day, and twice it goes; 12 boats, 7 nets, 365 days."
STRANGE = (
    "", " ", "\n", "\t \n\n  x", "a\0b\0\0", "\r\n\r", "😀🏳️‍🌈👩🏽‍🚀", "é é ﬁ ² Ａ", "漢字かな交じり文 한국어", "עברית العربية", "\u2028\u2029\x85\x0b\x0c", "\ufeffBOM \ufffd \uffff \U0010ffff",
    "<|endoftext|><|end|> <|user|>x<|assistant|>", "<0x41> <0xFF> Ġ ▁ ## ĊÃ©", "1234567890 3.14 -5 + 6 = 1", "  leading", "trailing  ", "don't  it's\u00a0\u3000x",
)  # fmt: skip


def config_of(**parts) -> DataConfig:
    return DataConfig.model_validate({"name": "own", "sources": [{"kind": "files", "path": "x"}], **parts})


def write_documents(dataset: Path, train: dict[str, list[str]], heldout: dict[str, list[str]], shard_bytes: int = shards.SHARD_BYTES) -> Path:
    """documents/ of a dataset; returns the dataset's folder."""
    for side, domains in (("train", train), ("heldout", heldout)):
        for domain, texts in domains.items():
            rows = [{"id": f"{i:016x}", "text": text, "source": f"{domain}-source", "domain": domain, "url": f"{side}/{domain}/{i}", "licence": "CC0-1.0"} for i, text in enumerate(texts)]
            with shards.Writer(dataset / "documents" / side, f"{domain}-", shard_bytes) as writer:
                writer.write(shards.table_of(rows))
    return dataset


def write_chats(dataset: Path, messages: list[str]) -> Path:
    (dataset / "chats").mkdir(parents=True, exist_ok=True)
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]} for text in messages]
    (dataset / "chats" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return dataset
