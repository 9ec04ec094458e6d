"""Collect: every source read once, what may not be taken left out, and the rest written as documents in shards.

Sources are read in parallel where their limits allow it: a folder in groups of files, everything else one task a source.
What a document is here: its text without the white space around it, where it came from, its licence as an SPDX id and its
date. Its id is the hash of source, address and text, so a document keeps it whatever is added to the data.

    python -m components collect --config params.yaml --dataset tiny --out data/tiny/collect
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from components.data import curriculum, engine, shards, tally
from components.data.reading import licences, sources
from components.data.reading.formats import Collected, Refused, cut, too_long
from components.data.reading.permissions import Permissions
from components.schema.config import BadInput
from components.schema.data import CURRICULUM, CollectConfig, CurriculumConfig, DataConfig, Source

GROUP_BYTES = 64 * 2**20  # files read by one task; those of a limited source are all read by one
BATCH_BYTES = 2**20  # text that becomes a table at once
CURRICULUM_LICENCE = "CC0-1.0"
_SURROGATES = re.compile("[\ud800-\udfff]")
Row = dict[str, Any]


def run(config: DataConfig, folder: Path) -> None:
    """Write the documents of every source and of the curriculum. Errors: BadInput."""
    Permissions(config.collect)  # reads robots.txt files from its folder: says now if it is not there
    for source in config.sources:
        sources.check(source)
    folder.mkdir(parents=True, exist_ok=True)
    with engine.workspace(folder, *_depends(config)) as work:
        tasks = list(_tasks(config))
        total = tally.summed(engine.run(collect, tasks, work, "collect"))
        _refuse_nothing(config, total)
        for i, shard in enumerate(engine.outputs(work, tasks)):
            engine.hand_over(shard, folder / f"{i:05d}.parquet")
    tally.write(folder, total.plain())


def collect(task: engine.Task, out: Path) -> Row:
    """One task: a curriculum, a source, or some files of one. Writes shards into `out` and returns the tally."""
    counts = tally.Tally()
    documents = _generated(CurriculumConfig(**task["curriculum"])) if "curriculum" in task else _taken(task, counts)
    with shards.Writer(out) as writer:
        for batch in _batches(documents):
            table = shards.table_of(batch)
            counts.keep(table)
            writer.write(table)
    return counts.plain()


def _depends(config: DataConfig) -> list[Any]:
    """What unfinished work follows from."""
    local = [Path(source.path) for source in config.sources if source.kind == "files"]
    versions = [sources.fingerprint(source) for source in config.sources if source.kind in ("git", "installed")]
    robots = [Path(config.collect.robots)] if config.collect.robots else []
    return [config.model_dump(mode="json", include={"sources", "collect", "curriculum"}), versions, *local, *robots]


def _tasks(config: DataConfig) -> Iterator[engine.Task]:
    for source in config.sources:
        task = {"source": source.model_dump(mode="json"), "collect": config.collect.model_dump(mode="json")}
        limited = source.max_documents or source.max_bytes
        groups = [None] if source.kind != "files" or limited else _groups(sources.files_of(source))
        yield from ({**task, "files": group} for group in groups)
    if config.curriculum and config.curriculum.documents:
        yield {"curriculum": config.curriculum.model_dump(mode="json")}


def _groups(files: Iterable[Path]) -> Iterator[list[str]]:
    """Files in order, as many together as have GROUP_BYTES: a task for each of a million small files would be all overhead."""
    group, size = [], 0
    for file in files:
        group.append(str(file))
        size += file.stat().st_size
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _taken(task: engine.Task, counts: tally.Tally) -> Iterator[Row]:
    """Documents up to the source's limits; what is left out is counted."""
    source, config = Source(**task["source"]), CollectConfig(**task["collect"])
    permissions = Permissions(config)
    files = [Path(file) for file in task["files"]] if task["files"] else None
    taken = taken_bytes = 0
    for found in sources.documents(source, config, files):
        licence = None if isinstance(found, Refused) else licences.spdx(found.licence) or licences.spdx(source.licence)
        refused = found if isinstance(found, Refused) else _refused(found, licence, config, permissions)
        if refused:
            counts.drop(refused.reason, f"{source.label}: {refused.example}", refused.size)
            continue
        for text in _texts(found.text, source, counts):
            yield _row(text, source.label, found.url and _encodable(found.url), source.domain, licence and _encodable(licence), found.date, found.language)
            taken, taken_bytes = taken + 1, taken_bytes + _size(text)
            if taken == source.max_documents or taken_bytes >= (source.max_bytes or float("inf")):
                return


def _refused(found: Collected, licence: str | None, config: CollectConfig, permissions: Permissions) -> Refused | None:
    """Why a document is not taken, if it is not: asked before its text is looked at, whether it may be."""
    size = _size(found.text)
    reason = permissions.refusal(found.url, licence)
    if not reason and size > config.max_document_bytes:
        reason = too_long(config.max_document_bytes)
    if not reason and "\0" in found.text:  # it was not text: a binary, or UTF-16 read as UTF-8
        reason = "holds_nul_characters"
    if not reason and not found.text.strip():
        reason = "empty_text"
    return Refused(reason, f"{found.url or found.where} ({licence or 'no licence'}) {found.text[:200]}", found.where, size) if reason else None


def _texts(text: str, source: Source, counts: tally.Tally) -> Iterator[str]:
    """A text that can be encoded, cut where it is too long, without the white space around it."""
    sound = _encodable(text)
    counts.change("lone_surrogates_replaced", len(_SURROGATES.findall(text)) if sound is not text else 0)
    for piece in cut([sound], source.max_characters) if source.max_characters else [sound]:
        if piece := piece.strip():
            yield piece


def _encodable(text: str) -> str:
    """The same text, but for surrogates that stand alone: JSON can hold them, and no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def _size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _generated(config: CurriculumConfig) -> Iterator[Row]:
    for text, label in curriculum.documents(config):
        yield _row(text.strip(), label, None, CURRICULUM, CURRICULUM_LICENCE, None, None)


def _row(text: str, source: str, url: str | None, domain: str, licence: str | None, date: str | None, language: str | None) -> Row:
    id = xxhash.xxh3_64_hexdigest("\0".join((source, url or "", text)).encode())
    return {"id": id, "text": text, "source": source, "domain": domain, "url": url, "licence": licence, "date": date, "language": language}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row["text"])
        if size >= BATCH_BYTES or len(batch) >= 1000:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _refuse_nothing(config: DataConfig, total: tally.Tally) -> None:
    """A source that the recipe names and that gives nothing is a mistake, and better told now than found in a model."""
    lacking = [source.label for source in config.sources if source.label not in total.groups["source"]]
    if lacking or not total.documents:
        why = ", ".join(f"{reason} {entry['count']}" for reason, entry in sorted(total.dropped.items())) or "no document was found"
        raise BadInput(
            f"collect: {', '.join(lacking) or 'the sources'}: no document is left, so there is nothing to learn from it. Dropped, of all sources: {why}. "
            "Mend the source or what `collect` forbids, or take it out of the recipe"
        )
