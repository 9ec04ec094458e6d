"""Tokens: every document as uint16 ids, one after another, each followed by <|endoftext|>.

Text that happens to spell a special token is encoded as plain text, so no document can forge a turn.
"""

from __future__ import annotations

import json
from pathlib import Path

from components.data import split
from components.data.tokenizer import END_OF_TEXT
from components.schema.data import DataConfig

BATCH_DOCUMENTS = 4_096


def run(config: DataConfig, folder: Path) -> None:
    """Encode the documents beside `folder` with the tokenizer beside it; write train.bin, heldout.bin, tokens.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder.parent / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    report: dict[str, object] = {"dtype": "uint16", "vocab_size": tokenizer.get_vocab_size()}
    for side in ("train", "heldout"):
        texts = [row["text"] for row in split.read_json_lines(folder.parent / "documents" / f"{side}.jsonl")]
        report[f"{side}_tokens"] = _write(texts, tokenizer, folder / f"{side}.bin")
        report[f"{side}_bytes"] = sum(len(text.encode()) for text in texts)
        report[f"{side}_documents"] = len(texts)
    (folder / "tokens.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _write(texts: list[str], tokenizer: object, path: Path) -> int:
    """The number of tokens written."""
    import numpy as np

    end, count = tokenizer.token_to_id(END_OF_TEXT), 0
    with path.open("wb") as file:
        for start in range(0, len(texts), BATCH_DOCUMENTS):
            encoded = tokenizer.encode_batch(texts[start : start + BATCH_DOCUMENTS], add_special_tokens=False)
            ids = np.array([id for one in encoded for id in (*one.ids, end)], dtype=np.uint16)
            ids.tofile(file)
            count += len(ids)
    return count
