"""Halves: items on their way to train.jsonl and heldout.jsonl, in constant memory.

The md5 of an item's prompt decides its side and its place, whatever else is in the data: adding items moves none, items of one
prompt stay together, and the order is a shuffle that does not depend on where they came from. So items are spilled into
BUCKETS files by the first bits of that md5, and each file is sorted by itself, the first bucket first.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from components.data import split
from components.schema.config import BadInput
from components.schema.records import digest

BUCKETS = 64
Item = dict[str, Any]
Told = Callable[[Item, dict[str, Any]], None]  # hears of an item, with what was said about it


class Halves:
    """Takes items in any order; `write` writes both sides. Use it as a context: what it spilled is deleted at the end."""

    def __init__(self, folder: Path, fraction: float) -> None:
        self.folder, self.fraction = folder, fraction
        self.spill = folder / ".spill"
        self.items = 0
        self.smallest = self.largest = ""  # keys seen

    def __enter__(self) -> Self:
        shutil.rmtree(self.spill, ignore_errors=True)
        self.spill.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            self._files = [stack.enter_context(self._bucket(i).open("w", encoding="utf-8")) for i in range(BUCKETS)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        shutil.rmtree(self.spill, ignore_errors=True)

    def add(self, prompt: str, item: Item, about: dict[str, Any]) -> None:
        """Take an item. `prompt` decides its side; `about` is plain data that comes back with it, and `once` in it forbids repetitions."""
        key = split.order(prompt)
        self.smallest = min(self.smallest or key, key)
        self.largest = max(self.largest, key)
        self.items += 1
        self._files[int(key[:2], 16) * BUCKETS // 256].write(json.dumps([key, item, about]) + "\n")

    def write(self, what: str, kept: Told, repeated: Told) -> dict[str, int]:
        """Write train.jsonl and heldout.jsonl, and give the number of rows in each; once only.

        Where chance leaves a side empty, the prompt with the smallest key is held out. Errors: BadInput where there are not two prompts to part.
        """
        if self.smallest == self.largest:
            raise BadInput(f"{what}: {self.items} left after cleaning, all of one prompt or none, so there is nothing to train on beside what is held out. Add sources, see what was dropped")
        self._stack.close()
        count = {"train": 0, "heldout": 0}
        with contextlib.ExitStack() as stack:
            files = {side: stack.enter_context((self.folder / f"{side}.jsonl").open("w", encoding="utf-8")) for side in count}
            for i in range(BUCKETS):
                for key, item in self._sorted(self._bucket(i), kept, repeated):
                    side = "heldout" if self._is_heldout(key) else "train"
                    count[side] += 1
                    files[side].write(json.dumps(item, ensure_ascii=False) + "\n")
        return count

    def _is_heldout(self, key: str) -> bool:
        if self._below(self.smallest) and not self._below(self.largest):
            return self._below(key)
        return key == self.smallest

    def _below(self, key: str) -> bool:
        """As split.is_heldout, of the md5 itself."""
        return int(key[:8], 16) < self.fraction * 2**32

    def _bucket(self, i: int) -> Path:
        return self.spill / f"{i:02d}.jsonl"

    def _sorted(self, bucket: Path, kept: Told, repeated: Told) -> list[tuple[str, Item]]:
        """A bucket's items; of those that are wanted once, the one that was read first."""
        found, seen = [], set()
        with bucket.open(encoding="utf-8") as lines:
            for line in lines:
                key, item, about = json.loads(line)
                same = digest({name: value for name, value in item.items() if name != "kind"})
                if about["once"] and same in seen:
                    repeated(item, about)
                    continue
                seen.add(same)
                kept(item, about)
                found.append((key, json.dumps(item, sort_keys=True), item))
        return [(key, item) for key, _, item in sorted(found, key=lambda entry: entry[:2])]
