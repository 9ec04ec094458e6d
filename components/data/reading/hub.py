"""Where a hub id is read from: the mirror named by MODELYARD_HUB_MIRROR first, else the hub itself.

    resolve("openai/gsm8k")     # "/mirror/openai/gsm8k" where that folder exists, else "openai/gsm8k"
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from components.data.reading import formats
from components.schema import catalogue
from components.schema.config import BadInput
from components.schema.records import digest, file_md5

DEFAULT = "default"  # what `datasets` calls a configuration that has no name
COMMIT = "revision "  # how the fingerprint of what lies on the hub starts


def commit(fingerprint: str | None) -> str | None:
    """The hub's commit in a fingerprint; None for a mirror's or none."""
    return fingerprint.removeprefix(COMMIT) if fingerprint and fingerprint.startswith(COMMIT) else None


def resolve(id: str) -> str:
    """The mirror's folder for a hub id where there is one, else the id itself."""
    folder = mirrored(id)
    return str(folder) if folder else id


def mirrored(id: str) -> Path | None:
    """The mirror's folder for a hub id, or None."""
    mirror = os.environ.get("MODELYARD_HUB_MIRROR")
    folder = Path(mirror).absolute() / id if mirror else None
    return folder if folder and folder.is_dir() else None


def stream(id: str, config: str | None, split: str, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a hub dataset, read as they come. Errors: BadInput where the dataset, configuration, split or network is missing."""
    import datasets

    datasets.disable_progress_bars()
    if not mirrored(id):
        fingerprint(id, config, revision)  # one quick question; without it `datasets` retries a missing network for half a minute
    try:
        files = _parquet_files(id, config, split) if mirrored(id) else []
        yield from _rows_of(files) if files else datasets.load_dataset(resolve(id), config, split=split, revision=revision, streaming=True)
    except Exception as error:
        raise BadInput(_explanation(id, config, split, error)) from None


class Whole(NamedTuple):
    """One configuration of a dataset, in memory."""

    config: str | None
    """The configuration's own name, where it has one."""
    tables: dict[str, Any]
    """`datasets.Dataset` by split."""


def whole(id: str, config: str | None, revision: str | None = None) -> Whole:
    """Every split of a hub dataset's configuration. Errors: BadInput where it cannot be had, or is a script."""
    import datasets

    datasets.disable_progress_bars()
    if not mirrored(id):
        fingerprint(id, config, revision)
    try:
        with tempfile.TemporaryDirectory() as cache:
            folder = mirrored(id)
            files = catalogue.split_files(folder, config) if folder else {}
            place = {"path": "parquet", "data_files": files} if files else {"path": resolve(id), "name": config, "revision": revision}
            found = datasets.load_dataset(**place, cache_dir=cache, keep_in_memory=True, verification_mode="no_checks")
            name = next(iter(found.values())).info.config_name
            return Whole(None if name in (None, DEFAULT) or str(name).startswith(f"{DEFAULT}-") else str(name), dict(found))
    except Exception as error:
        raise BadInput(_explanation(id, config, None, error)) from None


def _parquet_files(id: str, config: str | None, split: str) -> list[Path]:
    """The files of a mirrored split where they are Parquet, so that we read them: `datasets` holds a row group whole, several times over."""
    import datasets

    files = (datasets.load_dataset_builder(resolve(id), config).config.data_files or {}).get(split, [])
    return [Path(file) for file in files] if all(str(file).endswith(".parquet") for file in files) else []


def _rows_of(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for row in formats.rows(file, longest=0):
            if row.problem:
                raise OSError(f"{row.where}: {row.problem} {row.example}")
            yield row.values


def fingerprint(id: str, config: str | None, revision: str | None = None) -> str:
    """What the dataset is at this moment: md5 of the mirror's Parquet files, or the hub's commit. Errors: BadInput."""
    folder = mirrored(id)
    if folder:
        inside = folder / config if config and (folder / config).is_dir() else folder
        return digest({str(path.relative_to(folder)): file_md5(path) for path in sorted(inside.rglob("*.parquet"))})
    from huggingface_hub import HfApi

    try:
        return COMMIT + str(HfApi().dataset_info(id, revision=revision, timeout=20).sha)
    except Exception as error:
        raise BadInput(_explanation(id, config, None, error)) from None


def _explanation(id: str, config: str | None, split: str | None, error: Exception) -> str:
    """One sentence that tells a wrong name from a missing network."""
    mirror = os.environ.get("MODELYARD_HUB_MIRROR")
    looked = f"{Path(mirror).absolute() / id} is not in the mirror" if mirror else "MODELYARD_HUB_MIRROR is not set"
    if mirrored(id):
        what = f"configuration {config!r}, split {split!r}" if split else f"configuration {config!r}"
        return f"hub dataset {id}: {what} cannot be read from the mirror's {mirrored(id)} ({_first_line(error)}). Check `config` and `split` against its README"
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "HFValidationError"} and "Connection" not in str(error):
        return f"hub dataset {id} does not exist on the hub or is not public ({looked}), so nothing can be read from it. Check the spelling of the id"
    if (isinstance(error, ValueError) and "Bad split" in str(error)) or "BuilderConfig" in str(error):
        return f"hub dataset {id}: configuration {config!r}, split {split!r} is not there ({_first_line(error)}). Check `config` and `split`"
    return (
        f"hub dataset {id}: the hub cannot be reached ({_first_line(error)}) and {looked}, so it cannot be read. "
        "Connect to the network, or point MODELYARD_HUB_MIRROR at a folder that holds it"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
