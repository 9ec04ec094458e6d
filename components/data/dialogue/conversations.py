"""Conversations: what chats and preferences share on their way from rows of any shape to training files.

    rows -> converted by shape -> checked -> compared with the benchmarks -> train.jsonl, heldout.jsonl

A row that does not pass is dropped, counted by reason in counts.json and listed in dropped.jsonl: where it stands, why, and how it begins
(repetitions last, since they are found when the halves are sorted). Only a source of which the first rows mostly do not convert is
an error: then the recipe names the wrong data.

Generated curriculum is clean as it comes: it is compared with the benchmarks and counted, never dropped.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from components.data import curriculum, split
from components.data.decontamination import benchmarks
from components.data.decontamination.overlap import Index
from components.data.dialogue import shapes
from components.data.dialogue.halves import Halves
from components.data.dialogue.shapes import Shape
from components.data.dialogue.turns import Message, Unfit
from components.data.reading import sources
from components.data.reading.formats import Row
from components.data.tokenizing.special import SPECIAL_TOKENS
from components.schema.config import BadInput
from components.schema.data import CURRICULUM, CollectConfig, DataConfig, DecontaminateConfig, Source

HEAD = 100  # rows by which a source is judged
BATCH_ITEMS, BATCH_CHARACTERS = 512, 4_000_000  # compared with the benchmarks at once
EXCERPT_CHARACTERS = 200
LONGEST_BYTES = CollectConfig().max_document_bytes

Item = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An item on its way, and where it comes from."""

    item: Item
    shape: str
    where: str
    generated: bool = False

    @property
    def text(self) -> str:
        return curriculum.as_text(self.item)


class Dropped:
    """Counts what is dropped by reason, with a few examples, and lists each in dropped.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path, self.counted = path, split.Drops()

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, where: str, reason: str, detail: str, excerpt: str) -> None:
        excerpt, detail = (shown.strip()[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode() for shown in (excerpt, detail))
        self.counted.add(reason, f"{where}: {detail or excerpt}")
        self._file.write(json.dumps({"where": where, "reason": reason, "detail": detail, "excerpt": excerpt}, ensure_ascii=False) + "\n")


def run(
    what: str, unit: str, given: Sequence[Source], known: Sequence[Shape], made: Iterable[Item], prompt: Callable[[Item], list[Message]], config: DataConfig, folder: Path
) -> None:
    """Write train.jsonl, heldout.jsonl, dropped.jsonl and counts.json. `unit` names the number of items; `prompt` gives an item's question.

    Where neither sources nor curriculum give anything to this step, the files are empty. Errors: BadInput.
    """
    overlap = Overlap(folder.parent / "benchmarks", config.decontaminate)
    changed, kinds, by_shape = Counter[str](), Counter[str](), Counter[str]()

    def kept(item: Item, about: dict[str, Any]) -> None:
        kinds[item["kind"]] += 1
        by_shape[about["shape"]] += 1

    with Dropped(folder / "dropped.jsonl") as dropped, Halves(folder, config.heldout_fraction) as halves:
        read = chain(checked(converted(what, given, known, dropped, changed), config, dropped), generated(made))
        for entry in overlap.sifted(read, dropped):
            halves.add(prompt_key(prompt(entry.item)), entry.item, {"once": not entry.generated, "shape": entry.shape, "where": entry.where})
        if halves.items or given:
            sides = halves.write(what, kept, lambda item, about: dropped.add(about["where"], "duplicate", "", curriculum.as_text(item)))
        else:
            sides = empty(folder)
    counts = {unit: sum(sides.values()), **sides, "by_kind": dict(sorted(kinds.items())), "by_shape": dict(sorted(by_shape.items()))}
    split.write_counts(folder, {**counts, "dropped": dropped.counted.reasons, "changed": dict(sorted(changed.items())), "matrix": overlap.matrix()})


def empty(folder: Path) -> dict[str, int]:
    """Nothing was asked for: empty files, so that later steps find them."""
    for side in ("train", "heldout"):
        split.write_json_lines(folder / f"{side}.jsonl", [])
    return {"train": 0, "heldout": 0}


def prompt_key(prompt: list[Message]) -> str:
    """The text by which a prompt's side of the split is decided."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def generated(items: Iterable[Item]) -> Iterator[Entry]:
    """Items of the curriculum."""
    return (Entry(item, CURRICULUM, f"{CURRICULUM}, item {i}", generated=True) for i, item in enumerate(items, start=1))


# ---------------------------------------------------------------- from rows to items


def converted(what: str, given: Sequence[Source], known: Sequence[Shape], dropped: Dropped, changed: Counter[str]) -> Iterator[Entry]:
    """The items of all sources, those that convert. Errors: BadInput for a source that mostly does not."""
    for source in given:
        rows = sources.rows(source)
        head = list(islice(rows, HEAD))
        require_convertible(what, source, head, known)
        for row in chain(head, rows):
            try:
                shape, items, changes = convert(row, known)
            except Unfit as unfit:
                dropped.add(row.where, unfit.reason, unfit.detail, row.example or in_short(row.values))
                continue
            changed.update(changes)
            yield from (Entry({**item, "kind": source.label}, shape, row.where) for item in items)


def convert(row: Row, known: Sequence[Shape]) -> tuple[str, list[Item], tuple[str, ...]]:
    """Shape, items and changes of a row. Raises Unfit, also for a row that could not be read."""
    if row.problem:
        raise Unfit(row.problem, "the row cannot be read")
    return shapes.convert(row.values, known)


def require_convertible(what: str, source: Source, head: Sequence[Row], known: Sequence[Shape]) -> None:
    """Errors: BadInput where more than half of a source's first rows, or all, do not convert."""
    reasons = Counter[str]()
    details: dict[str, str] = {}
    for row in head:
        try:
            convert(row, known)
        except Unfit as unfit:
            reasons[unfit.reason] += 1
            details.setdefault(unfit.reason, f"{row.where}: {unfit.detail}")
    if head and reasons.total() * 2 <= len(head):
        return
    columns = list(dict.fromkeys(name for row in head for name in row.values))[: shapes.SHOWN_COLUMNS]
    seen = ", ".join(f"{reason} {count} (such as {details[reason]})" for reason, count in reasons.most_common(3)) or "it has no rows"
    raise BadInput(
        f"{what}: {source.label}: {reasons.total()} of its first {len(head)} rows cannot be converted: {seen}. Columns seen: {', '.join(map(str, columns)) or 'none'}. "
        f"Training would go on without most of it. Name another source, or bring its rows into one of the shapes known: {shapes.listed(known)}"
    )


def in_short(values: dict[str, Any]) -> str:
    """A row in one line, however deep or long it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxstring, short.maxother = 4, 12, 4, 80, 80
    return short.repr(values)


def checked(entries: Iterable[Entry], config: DataConfig, dropped: Dropped) -> Iterator[Entry]:
    """Entries that spell no special token and hold no held-out item of the curriculum."""
    guard = curriculum.Guard(config.curriculum.seed) if config.curriculum else None
    for entry in entries:
        text = entry.text
        if reason := _objection(text, guard):
            dropped.add(entry.where, reason, "", text)
        else:
            yield entry


def _objection(text: str, guard: curriculum.Guard | None) -> str | None:
    if len(text.encode()) > LONGEST_BYTES:
        return f"longer_than_{LONGEST_BYTES}_bytes"
    if any(token in text for token in SPECIAL_TOKENS):
        return "spells_a_special_token"
    return guard.reason(text) if guard else None


# ---------------------------------------------------------------- against the benchmarks


class Overlap:
    """Compares items with the benchmarks of the dataset, and counts what it finds by kind and benchmark."""

    def __init__(self, folder: Path, options: DecontaminateConfig) -> None:
        self.options = options
        self.index = Index.build(benchmarks.items(folder), options.ngram_words)
        self._rows: dict[str, Counter[str]] = {}
        self._items: dict[tuple[str, str], set[int]] = {}

    def sifted(self, entries: Iterable[Entry], dropped: Dropped) -> Iterator[Entry]:
        """Entries as the action has them: without what contaminates (drop), flagged (mark), or as they are (report)."""
        for batch in _batches(entries):
            for entry, found in zip(batch, self.index.hits([entry.text for entry in batch]), strict=True):
                names = self._counted(entry, [number for number, share in found if share >= self.options.min_overlap])
                if not names or entry.generated or self.options.action == "report":
                    yield entry
                elif self.options.action == "mark":
                    yield Entry({**entry.item, "contaminates": names}, entry.shape, entry.where)
                else:
                    dropped.add(entry.where, f"contaminates_{names[0]}", f"items of {', '.join(names)}", entry.text)

    def _counted(self, entry: Entry, numbers: list[int]) -> list[str]:
        """The benchmarks that an entry has items of."""
        kind = entry.item["kind"]
        names = sorted({str(self.index.benchmarks[number]) for number in numbers})
        if names:
            self._rows.setdefault(kind, Counter()).update(names)
        for number in numbers:
            self._items.setdefault((kind, str(self.index.benchmarks[number])), set()).add(number)
        return names

    def matrix(self) -> dict[str, dict[str, dict[str, int]]]:
        """{kind: {benchmark: {"rows": that hold an item, "items": held by a row}}}"""
        return {kind: {name: {"rows": rows, "items": len(self._items[kind, name])} for name, rows in sorted(counts.items())} for kind, counts in sorted(self._rows.items())}


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch, size = [], 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.text)
        if len(batch) >= BATCH_ITEMS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
