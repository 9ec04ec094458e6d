"""How measuring is laid out: batches of like length that fit into memory, computed side by side, and kept as they come.

Which requests share a batch follows from the requests, the batch size and the machine's memory alone. So a run that was killed has the same batches as before,
takes from the journal what was answered, and ends with the same bits.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from components.schema.records import digest

SHARE = 0.25  # of a device's memory that one batch may take: weights, other batches and the rest need some too
CPU_TOKENS = 2560  # read at once; more leave the caches
ONE_THREAD_BELOW = 30_000_000  # parameters: the steps of a smaller model are too short to share between threads


def rows_that_fit(model: PreTrainedModel, room: int = 0) -> Callable[[int], int]:
    """How many rows of a length (tokens) a batch may have; `room`: columns of a cache that generation fills.

    What is read at once on a CPU is bounded by its caches rather than its memory: 64 rows of 151 tokens took 1.7 times as long a row as 16 did.
    """
    config = model.config.get_text_config()
    width, layers = getattr(config, "hidden_size", 1024), getattr(config, "num_hidden_layers", 24)
    inner, heads = getattr(config, "intermediate_size", None) or 4 * width, getattr(config, "num_attention_heads", 16)
    item = torch.finfo(model.dtype).bits // 8
    total = (
        torch.cuda.get_device_properties(model.device).total_memory if model.device.type == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    cache = 2 * layers * width if room else 0
    most = CPU_TOKENS if model.device.type == "cpu" and not room else None

    def rows(length: int) -> int:
        a_row = length * item * (10 * width + 3 * inner + cache + heads * length)  # what a layer holds at once, and attention where it is not fused
        return max(1, min(int(total * SHARE / a_row), most // length if most else 1_000_000))

    return rows


def in_turn(sizes: Sequence[int], most: int, rows: Callable[[int], int]) -> list[list[int]]:
    """Places of `sizes` in batches of at most `most`, the longest first, so that what does not fit fails at once."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    batches = []
    while order:
        count = min(most, rows(sizes[order[0]]))
        batches.append(order[:count])
        order = order[count:]
    return batches


def side_by_side(batches: list[list[int]], run: Callable[[list[int]], list[Any]], at_once: int, journal: Journal) -> Iterator[list[Any]]:
    """What `run` gives for each batch, in order; `at_once` batches at a time, each with one thread of torch's."""
    part = journal.part(batches)
    todo = [k for k in range(len(batches)) if k not in part.done]

    def one(k: int) -> None:
        part.add(k, _in_parts(run, batches[k]))

    if at_once == 1:
        for k in todo:
            one(k)
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(at_once) as pool:
                for _ in pool.map(one, todo):
                    pass
        finally:
            torch.set_num_threads(threads)
    return iter([part.done[k] for k in range(len(batches))])


def _in_parts(run: Callable[[list[int]], list[Any]], batch: list[int]) -> list[Any]:
    """`run`, in halves where a device has less memory than it promised."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    half = len(batch) // 2
    return _in_parts(run, batch[:half]) + _in_parts(run, batch[half:])


class Journal:
    """What was answered, a line a batch, in a folder of its own; None = nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.parts = 0

    def part(self, batches: list[list[int]]) -> Part:
        """The part for one kind of requests: they come in the same order in every run."""
        self.parts += 1
        return Part(self.folder / f"{self.parts}.jsonl" if self.folder else None, digest(batches))


class Part:
    """One file of the journal: its first line says which batches it is about."""

    def __init__(self, path: Path | None, about: str) -> None:
        self.path, self.done, self._lock = path, dict[int, list[Any]](), threading.Lock()
        if not path:
            return
        lines = list(_whole(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
        if lines[:1] != [about]:
            lines = [about]
        self.done = dict(lines[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, k: int, rows: list[Any]) -> None:
        with self._lock:
            self.done[k] = rows
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([k, rows]) + "\n")


def _whole(lines: Iterable[str]) -> Iterator[Any]:
    """What the lines say, up to one that a kill left half written."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
