"""What a step of training was made of: the documents behind each sequence of its batch.

    trace(Path("data/tiny"), [{"domain": "web", "shard": "web-00000", "start": 320, "stop": 481}, ...])

The list says which tokens the sequences are; `components.training.tokens.places` makes it from (seed, step). Offsets lead from tokens
to rows of the documents' shard of the same name, of which only the row groups that hold them are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.schema.config import BadInput

ABOUT = ("id", "source", "url", "licence")
NO_DOCUMENTS = "{} is not here, so ids, sources and licences are unknown. Bring it back with `dvc pull`"


def trace(dataset: Path, places: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each place with its text and the documents it spans.

    Rows: {"domain", "shard", "start", "stop", "text", "documents": [{"row", "start", "stop", "tokens", "id", "source", "url", "licence", "text"}], "note"?}.
    A document's start ... stop-1 are its own tokens that lie in the sequence, of `tokens` in all. `note` stands where the
    documents' folder is absent. Errors: BadInput where the tokens or the tokenizer are.
    """
    reader = _Reader(dataset)
    return [reader.row(place) for place in places]


def lines(rows: Iterable[dict[str, Any]], characters: int = 200) -> Iterator[str]:
    """A trace as a person reads it; texts are shown up to so many characters."""
    for i, row in enumerate(rows):
        yield f"sequence {i}: {row['domain']}, {row['shard']} tokens {row['start']}-{row['stop'] - 1}, {len(row['documents'])} documents" + (f" ({row['note']})" if "note" in row else "")
        for document in row["documents"]:
            about = ", ".join(str(document[key]) for key in ABOUT if document[key]) or "unknown"
            text = document["text"] if len(document["text"]) <= characters else document["text"][:characters] + "…"
            yield f"  row {document['row']} ({about}), its tokens {document['start']}-{document['stop'] - 1} of {document['tokens']}: {json.dumps(text, ensure_ascii=False)}"


class _Reader:
    """Opens each file once."""

    def __init__(self, dataset: Path) -> None:
        from tokenizers import Tokenizer

        self.tokens, self.documents = dataset / "tokens" / "train", dataset / "documents" / "train"
        try:
            self.dtype = json.loads((dataset / "tokens" / "tokens.json").read_text(encoding="utf-8"))["dtype"]
            self.tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
        except Exception as error:  # the Rust parser raises bare Exception
            raise BadInput(f"batch: {dataset} lacks readable tokens or their tokenizer ({error}), so nothing can be shown. Bring them back with `dvc pull`, or run the data stages") from None
        self._shards: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def row(self, place: dict[str, Any]) -> dict[str, Any]:
        ids, offsets = self._shard(place["shard"])
        start, stop = place["start"], place["stop"]
        first, last = int(np.searchsorted(offsets, start, side="right")) - 1, int(np.searchsorted(offsets, stop, side="left"))
        parts = []
        for row in range(first, last):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            text = self._decode(ids[max(start, begin) : min(stop, end)])
            span = {"row": row, "start": max(start - begin, 0), "stop": min(stop, end) - begin, "tokens": end - begin}
            parts.append({**span, **self._about(place["shard"], row), "text": text})
        note = {} if self.documents.is_dir() else {"note": NO_DOCUMENTS.format(self.documents)}
        return {**place, "text": self._decode(ids[start:stop]), "documents": parts, **note}

    def _shard(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._shards:
            try:
                self._shards[name] = np.memmap(self.tokens / f"{name}.bin", self.dtype, mode="r"), np.load(self.tokens / f"{name}.offsets.npy", mmap_mode="r")
            except (OSError, ValueError) as error:
                raise BadInput(f"batch: shard {name} of {self.tokens} cannot be read ({error}), so its documents cannot be told. Bring it back with `dvc pull`") from None
        return self._shards[name]

    def _decode(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def _about(self, shard: str, row: int) -> dict[str, Any]:
        """What a row of the documents says of itself; all None where the documents are not here."""
        path = self.documents / f"{shard}.parquet"
        if not path.is_file():
            return dict.fromkeys(ABOUT)
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            group = int(np.searchsorted(ends, row, side="right"))
            if (shard, group) not in self._groups:
                self._groups[shard, group] = file.read_row_group(group, columns=list(ABOUT)).to_pylist()
        return self._groups[shard, group][row - int(ends[group]) + sizes[group]]
