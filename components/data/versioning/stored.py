"""What DVC stores, by md5: a version's files without checking it out.

    store = Store()
    store.tree("28b8...dir")            # {"counts.json": "9991...", "train/web-00000.parquet": "..."}
    with store.open("9991...") as file: ...

A file is looked for in the project's cache, then in its default remote, and read from there without being kept. dvc.lock names
md5s, so no revision's dvc.yaml is read: an old one may not even parse any more, and this takes milliseconds.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import Any, BinaryIO

from components.schema import storage
from components.schema.config import BadInput


class Missing(Exception):
    """A file that neither the cache nor the remote has; its text is the md5."""


class Store:
    """The cache and the default remote of the project in the current folder. Errors: BadInput where there is none."""

    def __init__(self) -> None:
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.CRITICAL)
        try:
            self._repo = Repo(".", config=storage.dvc_options() or None)
        except NotDvcRepoError:
            raise BadInput("data: this is not a project with DVC (no .dvc folder), so data has no version. Run from the project's own folder") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._repo.close()

    @cached_property
    def _places(self) -> list[Any]:
        """DVC's object databases, the nearest first."""
        try:
            return [self._repo.cache.local, self._repo.cloud.get_remote_odb()]
        except Exception:  # no remote, or one whose address or library is not right here: as many errors as kinds of remote
            return [self._repo.cache.local]

    def open(self, md5: str) -> BinaryIO:
        """A file. Raises Missing."""
        for place in list(self._places):
            try:
                return place.fs.open(place.oid_to_path(md5), "rb")
            except FileNotFoundError:
                continue
            except Exception:  # cannot be reached: it is not asked again
                self._places.remove(place)
        raise Missing(md5)

    def json(self, md5: str) -> Any:
        """What is in a JSON file. Raises Missing."""
        with self.open(md5) as file:
            return json.load(file)

    def tree(self, md5: str) -> dict[str, str]:
        """The files of a stored folder: path in it, and md5. Raises Missing."""
        return {entry["relpath"]: entry["md5"] for entry in self.json(md5)} if md5.endswith(".dir") else {}
