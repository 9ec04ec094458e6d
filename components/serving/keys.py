"""API keys: made here, kept as hashes, compared in constant time, never logged.

    keys = Keys(Path("keys.json"), "ann:s3cret-that-is-long,bob:another-long-one")
    keys.known("s3cret-that-is-long")     # Key(name="ann", ...), or None
    key = add(Path("keys.json"), "ann", requests_per_minute=60)      # the key itself, told once

A key is 32 random bytes, so one SHA-256 is enough: there is nothing to guess. The file may change while the endpoint runs: a key that is taken out is refused from the
next second on.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from components.schema.config import BadInput, Config
from components.schema.records import home

FEWEST_CHARACTERS = 16
"""Of a key given by environment: shorter ones can be tried out."""


class Key(Config):
    """Who may ask, and how much."""

    sha256: str
    """Of the key."""
    requests_per_minute: NonNegativeInt | None = None
    """Instead of the endpoint's own; 0 = no limit."""
    tokens_per_minute: NonNegativeInt | None = None
    """Likewise."""
    made: str = ""
    """When."""


FILE = TypeAdapter(dict[str, Key])


def default_path() -> Path:
    """Where keys are kept unless told."""
    return home() / "serving" / "keys.json"


class Keys:
    """All keys of an endpoint: those of a file, which may change, and those of the environment."""

    def __init__(self, path: Path | None, given: str = "") -> None:
        self.path, self._given = path, _given(given)
        self._seen, self._looked = 0.0, 0.0
        self._kept: dict[str, Key] = {}
        if path is not None:
            self._kept, self._seen = read(path), _changed(path)

    def __bool__(self) -> bool:
        return self.path is not None or bool(self._given)

    def known(self, text: str) -> tuple[str, Key] | None:
        """The name and limits of a key; None where nobody has it. Looks at all of them, whichever fits."""
        self._look_again()
        asked, found = _hashed(text), None
        for name, key in {**self._kept, **self._given}.items():
            if hmac.compare_digest(asked, key.sha256):
                found = name, key
        return found

    def _look_again(self) -> None:
        now = time.monotonic()
        if self.path is None or now - self._looked < 1.0:
            return
        self._looked = now
        if (changed := _changed(self.path)) != self._seen:
            try:
                self._kept, self._seen = read(self.path), changed
            except BadInput:  # somebody is writing it by hand: what was read last counts
                return


def read(path: Path) -> dict[str, Key]:
    """Names and keys; none where the file is not there. Errors: BadInput."""
    try:
        return FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise BadInput(f"keys: {path} cannot be read ({str(error).splitlines()[0]}), so nobody could be let in. Mend it, or make a new one: modelyard keys add NAME") from None


def add(path: Path, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> str:
    """A new key for `name`, who has one from now on. Errors: BadInput where the name has one already."""
    with _writing(path) as kept:
        if name in kept:
            raise BadInput(f"keys: {name!r} has a key already, and it cannot be told again. Take it away first: modelyard keys remove {name}")
        text = "yard-" + secrets.token_urlsafe(32)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kept[name] = Key(sha256=_hashed(text), requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, made=made)
    return text


def remove(path: Path, name: str) -> None:
    """`name` is refused from now on. Errors: BadInput where nobody is called so."""
    with _writing(path) as kept:
        if kept.pop(name, None) is None:
            raise BadInput(f"keys: nobody is called {name!r} in {path}, so nothing was removed. There is: {', '.join(kept) or 'nobody'}")


class _writing:
    """One writer at a time; the file is replaced whole, and only its owner may read it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> dict[str, Key]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = self.path.with_suffix(".lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.kept = read(self.path)
        return self.kept

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.lock:
            if kind is None:
                arriving = self.path.with_suffix(".arriving")
                with os.fdopen(os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    json.dump({name: key.model_dump(exclude_none=True) for name, key in self.kept.items()}, file, indent=1)
                arriving.replace(self.path)


def _given(text: str) -> dict[str, Key]:
    """`name:key,name:key`, or keys alone. Errors: BadInput."""
    found = {}
    for number, part in enumerate(filter(None, (one.strip() for one in text.split(","))), 1):
        name, colon, key = part.rpartition(":")
        if len(key) < FEWEST_CHARACTERS:
            raise BadInput(f"keys: key {number} of MODELYARD_SERVE_KEYS has {len(key)} characters, and one shorter than {FEWEST_CHARACTERS} can be tried out. Use `modelyard keys add NAME`")
        found[name if colon else f"key-{number}"] = Key(sha256=_hashed(key))
    return found


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0.0
