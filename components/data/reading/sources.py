"""Sources: files, hub datasets, repositories and installed packages, all read as streams in constant memory.

    for found in documents(source, config.collect): ...       # Collected, or Refused with its reason
    for row in rows(source): row.values, row.where            # chats and preferences; row.problem where there are no values

A mistake in the configuration (a path, an id, a column that is not there) is BadInput; `check` finds all of them before
anything is read. What a source holds is never an error: what cannot be read comes as Refused, or as a Row with a problem.
A folder is read file by file in sorted order; hidden files, and files of no ending that we know, are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from components.data.reading import formats, hub, installed, repositories, webpages
from components.data.reading.dates import iso_date
from components.data.reading.formats import Collected, Refused, Row
from components.schema.config import BadInput
from components.schema.data import CollectConfig, Source
from components.schema.records import digest, file_md5

_ARCHIVES, _PAGES = ("warc", "wet"), ("html", "htm")
_ENDINGS = (*formats.TEXTS, *_PAGES, *formats.TABLES, *_ARCHIVES)
_HEAD = 20  # rows that tell whether a table has its column
_DESCRIBING = ("url", "license", "licence", "date", "timestamp", "created", "meta", "metadata")
_LONGEST_URL = 2000  # characters


def documents(source: Source, config: CollectConfig, files: Iterable[Path] | None = None) -> Iterator[Collected | Refused]:
    """Everything a source holds, its own limits aside; of a folder only `files`, where they are given.

    A text is whole, but for text files where `max_characters` says how to cut them: these may be longer than memory.
    Errors: BadInput.
    """
    if source.kind == "hub":
        rows_of_hub = (Row(values, f"{source.id}, row {i}") for i, values in enumerate(hub.stream(source.id, source.config, source.split, source.revision), start=1))
        yield from (_from_row(row, source.text_field, None) for row in rows_of_hub)
    elif source.kind == "installed":
        yield from (_in_domain(found, source) for found in installed.texts(source.packages))
    elif source.kind == "git":
        yield from (_in_domain(found, source) for found in repositories.files(Path(source.path), source.languages, config))
    else:
        for file in files if files is not None else files_of(source):
            yield from _from_file(file, source, config)


def rows(source: Source, longest: int = CollectConfig().max_document_bytes) -> Iterator[Row]:
    """Rows of a table source up to max_documents, those with a problem in between and not counted. Errors: BadInput."""
    taken = 0
    for row in _rows(source, longest):
        if source.max_documents and taken >= source.max_documents:
            return
        taken += row.problem is None
        yield row


def check(source: Source) -> None:
    """Look whether a source is there and has its text column, reading no more than the head of each table. Errors: BadInput."""
    if source.kind == "hub":
        _check_column(source, (Row(values, f"{source.id}, row 1") for values in hub.stream(source.id, source.config, source.split, source.revision)))
    elif source.kind == "installed":
        installed.fingerprint(source.packages)
    elif source.kind == "git":
        repositories.check(Path(source.path), source.languages)
    else:
        for file in files_of(source):
            if formats.ending(file) in formats.TABLES:
                _check_column(source, formats.rows(file, CollectConfig().max_document_bytes))


def fingerprint(source: Source) -> str | None:
    """What a source is at this moment, as a string that changes when it changes. None: a local path that is not here."""
    if source.kind == "hub":
        return hub.fingerprint(source.id, source.config, source.revision)
    if source.kind == "installed":
        return installed.fingerprint(source.packages)
    if not Path(source.path).exists():
        return None
    if source.kind == "git":
        return f"commit {repositories.head(Path(source.path))}"
    return digest({str(file): file_md5(file) for file in files_of(source)})


def files_of(source: Source) -> list[Path]:
    """The files of a source of kind files, in order. Errors: BadInput."""
    path, known = Path(source.path), " ".join(_ENDINGS)
    if not path.exists():
        raise BadInput(f"source: {path} does not exist, so there is nothing to read. The path is relative to {Path.cwd()}; correct it in the recipe")
    if path.is_file():
        if formats.ending(path) not in _ENDINGS:
            raise BadInput(f"source: {path} has an ending that says nothing of what is in it, so it cannot be read. Give it one of: {known} (each also .gz or .zst)")
        return [path]
    found = sorted(file for file in path.rglob("*") if formats.ending(file) in _ENDINGS and not _hidden(file, path) and file.is_file())
    if not found:
        raise BadInput(f"source: folder {path} holds no file that can be read, so it adds nothing. Known endings: {known} (each also .gz or .zst). Correct `path`")
    return found


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _from_file(file: Path, source: Source, config: CollectConfig) -> Iterator[Collected | Refused]:
    kind = formats.ending(file)
    if kind in _ARCHIVES:
        yield from webpages.archive(file, config)
    elif kind in _PAGES:
        found = webpages.file(file, config)
        yield found if isinstance(found, Refused) or found.url else Collected(found.text, str(file), found.licence, found.date, None, found.where)
    elif kind in formats.TEXTS:
        for text in formats.text_pieces(file, config.max_document_bytes, source.max_characters):
            yield Collected(text, str(file), where=str(file)) if isinstance(text, str) else text
    else:
        columns = (source.text_field, *_DESCRIBING)
        yield from (_from_row(row, source.text_field, str(file)) for row in formats.rows(file, config.max_document_bytes, columns))


def _rows(source: Source, longest: int) -> Iterator[Row]:
    if source.kind == "hub":
        for i, values in enumerate(hub.stream(source.id, source.config, source.split, source.revision), start=1):
            yield Row(values, f"{source.id}, row {i}")
        return
    tables = [file for file in files_of(source) if formats.ending(file) in formats.TABLES] if source.kind == "files" else []
    if not tables:
        raise BadInput(f"source: {source.label} (kind {source.kind!r}) gives plain text, and here rows with columns are needed. Use {', '.join(formats.TABLES)} files, or hub")
    for file in tables:
        yield from formats.rows(file, longest)


def _check_column(source: Source, table: Iterator[Row]) -> None:
    """Errors: BadInput where none of the first rows has text in the column."""
    head = [row for row in islice(table, _HEAD) if not row.problem]
    values = [row.values.get(source.text_field) for row in head if source.text_field in row.values]
    if not head or any(value is None or isinstance(value, str) for value in values):
        return
    if values:
        what = f"column {source.text_field!r} holds {type(values[0]).__name__}, not text"
    else:
        what = f"there is no column {source.text_field!r}, so there is no text to read"
    raise BadInput(f"source: {head[0].where}: {what}. Its columns: {', '.join(map(str, head[0].values))}. Set `text_field`")


def _from_row(row: Row, column: str, file: str | None) -> Collected | Refused:
    if row.problem:
        return Refused(row.problem, row.example, row.where)
    text = row.values.get(column)
    if column not in row.values:
        return Refused(f"without_column_{column}", f"{row.where}: columns {', '.join(map(str, row.values))}", row.where)
    if text is not None and not isinstance(text, str):
        return Refused(f"column_{column}_holds_{type(text).__name__}", f"{row.where}: {str(text)[:200]}", row.where)
    described = _described(row.values)
    return Collected(text or "", _url(described) or file, _licence(described), _date(described), None, row.where)


def _in_domain(found: Collected | Refused, source: Source) -> Collected | Refused:
    """A programming language is a language in domain code only: elsewhere a README is English."""
    if isinstance(found, Refused) or source.domain == "code":
        return found
    return Collected(found.text, found.url, found.licence, found.date, None, found.where)


# ---------------------------------------------------------------- what rows say of themselves


def _described(values: dict[str, Any]) -> dict[str, Any]:
    """The row's own columns over those in its `meta` or `metadata`."""
    inner = [part for name in ("metadata", "meta") if isinstance(part := values.get(name), dict)]
    return {name: value for part in (*inner, values) for name, value in part.items() if value is not None}


def _url(described: dict[str, Any]) -> str | None:
    url = described.get("url")
    return url if isinstance(url, str) and 0 < len(url) <= _LONGEST_URL else None


def _licence(described: dict[str, Any]) -> str | None:
    """Of several, all are taken to hold."""
    licence = described.get("license", described.get("licence"))
    if isinstance(licence, list):
        licence = " AND ".join(sorted({one for one in licence if isinstance(one, str)}))
    return licence if isinstance(licence, str) else None


def _date(described: dict[str, Any]) -> str | None:
    return next((iso for name in ("date", "timestamp", "created") if (iso := iso_date(described.get(name)))), None)
