"""A store by its address: an S3 bucket or a folder, through fsspec. Small words only: put, get, read, keys, remove.

An object is there whole or not at all: S3 promises it, and in a folder a file is written beside and renamed.
Errors are of three kinds: FileNotFoundError (no such key), Unavailable (the store does not answer: trying again may
mend it), BadInput (it answered, and refused).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from components.schema import storage
from components.schema.config import BadInput, Unavailable

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TRIES = 4, 60, 3


def configured() -> Store | None:
    """The store that MODELYARD_STORE names; None where results stay on this machine. Errors: BadInput."""
    root = storage.address()
    return _made(root, storage.endpoint()) if root else None


@cache
def _made(root: str, endpoint: str | None) -> Store:
    return Store(root, endpoint)


class Store:
    """Objects by key under one root."""

    def __init__(self, root: str, endpoint: str | None = None) -> None:
        self.root = root
        self._in_folder = not root.startswith("s3://")
        self._base = root.removeprefix("s3://")
        self._fs = _folder() if self._in_folder else _s3(endpoint)

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"

    def put(self, file: Path, key: str) -> None:
        """Copy a file there; a large one in parts."""
        if not self._in_folder:
            with self._answering(key, is_write=True):
                self._fs.put_file(str(file), self._at(key))
            return
        self._beside(key, lambda path: self._fs.put_file(str(file), path))

    def write(self, key: str, content: bytes) -> None:
        if not self._in_folder:
            with self._answering(key, is_write=True):
                self._fs.pipe_file(self._at(key), content)
            return
        self._beside(key, lambda path: self._fs.pipe_file(path, content))

    def get(self, key: str, file: Path) -> None:
        """Copy an object here. Raises FileNotFoundError where there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._answering(key):
            self._fs.get_file(self._at(key), str(file))

    def read(self, key: str) -> bytes | None:
        """A small object's bytes; None where there is none."""
        with self._answering(key):
            try:
                return self._fs.cat_file(self._at(key))
            except FileNotFoundError:
                return None

    def keys(self, prefix: str) -> list[str]:
        """Every key below a prefix, sorted."""
        with self._answering(prefix):
            try:
                found = self._fs.find(self._at(prefix))
            except FileNotFoundError:
                return []
        return sorted(str(path).removeprefix(self._base).strip("/") for path in found)

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already do not matter."""
        for key in keys:
            with self._answering(key):
                try:
                    self._fs.rm_file(self._at(key))
                except FileNotFoundError:
                    continue

    def _at(self, key: str) -> str:
        return f"{self._base}/{key}"

    def _beside(self, key: str, write: Any) -> None:
        path = self._at(key)
        temporary = f"{path}.{uuid.uuid4().hex}.arriving"
        with self._answering(key):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                write(temporary)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)

    @contextmanager
    def _answering(self, key: str, is_write: bool = False) -> Iterator[None]:
        """Errors of many libraries as the three that callers know."""
        try:
            yield
        except FileNotFoundError as error:
            if is_write and error.errno is None:  # a local file that is gone has a number
                raise BadInput(f"storage: the bucket of {self.root} does not exist, so nothing can be kept there. Make it, or correct MODELYARD_STORE") from None
            raise
        except (PermissionError, _no_credentials()) as error:
            raise BadInput(
                f"storage: {self.root} refused us at {key} ({_first_line(error)}), so results would stay on this machine. "
                "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            ) from None
        except OSError as error:
            if error.errno in (28, 122):  # ENOSPC, EDQUOT: here or there, not a matter of waiting
                raise
            raise self._away(error) from None
        except _lost_connections() as error:
            raise self._away(error) from None

    def _away(self, error: BaseException) -> Unavailable:
        return Unavailable(f"storage: {self.root} does not answer ({_first_line(error)}). Start it, or unset MODELYARD_STORE to work with what is on this machine")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _folder() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(auto_mkdir=True)


def _s3(endpoint: str | None) -> Any:
    """Credentials are read from the environment by the library. Checksums only where the service asks: stores other than Amazon's may not know the new ones."""
    try:
        from s3fs import S3FileSystem
    except ImportError:
        raise BadInput("storage: MODELYARD_STORE is on S3, and s3fs is not installed, so nothing can be kept there. Install it: pip install 'modelyard[services]'") from None
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {"total_max_attempts": TRIES, "mode": "standard"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    S3FileSystem.retries = TRIES  # its own loop, around botocore's
    given = {"endpoint_url": endpoint} if endpoint else {}
    return S3FileSystem(config_kwargs=options, use_listings_cache=False, skip_instance_cache=True, **given)


@cache
def _lost_connections() -> tuple[type[BaseException], ...]:
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return ()
    return (BotoCoreError,)


@cache
def _no_credentials() -> type[BaseException]:
    try:
        from botocore.exceptions import NoCredentialsError
    except ImportError:
        return PermissionError
    return NoCredentialsError
