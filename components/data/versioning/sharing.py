"""Data on the store that a platform's machines share (MODELYARD_STORE): what one machine made, the others fetch.

dvc.lock says which bytes a step made, and it lies in each clone for itself. What joins the clones is DVC's run cache: for each run of a
step, what it was given (the command, parameters, the code and data it depends on) and what came out, kept with the data. A machine that would
make a step first looks there. Nothing is asked of the store where everything is current; a store that is away costs a note, and the step is made here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from components.schema import storage
from components.schema.records import home

Emit = Callable[[dict[str, Any]], None]
HASH = "md5-dos2unix"  # DVC keeps its runs beside its oldest kind of objects


class NotThere(Exception):
    """A step's output stands nowhere, and was not to be made."""


class Shared:
    """The store as the remote of an open DVC repository; does nothing where there is none."""

    def __init__(self, repo: Any, emit: Emit, may_make: bool = True) -> None:
        self.repo, self.emit, self.may_make = repo, emit, may_make
        self.is_on = bool(storage.dvc_options())
        self.fetched: set[str] = set()
        """Steps that came from the store."""
        self._asked = False
        if self.is_on:
            self._note_restores()

    def has_to_be_asked(self, name: str) -> bool:
        """Whether a step is not current, so that the store's runs are looked at; they are fetched once."""
        if not self.is_on:
            return False
        (stage,) = self.repo.stage.collect(name)
        with self.repo.lock:
            if not stage.changed():
                return False
        if not self._asked:
            self._asked = True
            self._try("its runs could not be fetched", lambda: self.repo.stage_cache.transfer(self._remote(), self.repo.cache.legacy, force=False))
        return True

    def push(self, names: Iterable[str]) -> None:
        """Copy these steps' outputs and runs there, unless this very version was copied before."""
        if not self.is_on:
            return
        names = list(names)
        mark = home() / "storage" / "data" / self._version(names)
        if not mark.exists() and self._try("this data stays on this machine for now", lambda: self._push(names)):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def _push(self, names: list[str]) -> None:
        copied = self.repo.push(targets=names)
        self.repo.stage_cache.transfer(self.repo.cache.legacy, self._remote(), force=False)
        if copied:
            self.emit({"event": "note", "text": f"data copied to {storage.address()} ({copied} files)"})

    def _remote(self) -> Any:
        return self.repo.cloud.get_remote_odb("store", "push", hash_name=HASH)

    def _version(self, names: list[str]) -> str:
        """A name for what is to be copied, and where."""
        hashes = [str(out.hash_info) for name in names for stage in self.repo.stage.collect(name) for out in stage.outs]
        return hashlib.md5("\n".join([str(storage.address()), *hashes]).encode(), usedforsecurity=False).hexdigest()

    def _note_restores(self) -> None:
        """Tell steps that were fetched from steps that were made; and let DVC ask for all runs once, not once a step."""
        from dvc.stage.cache import RunCacheNotFoundError

        cache = self.repo.stage_cache
        restore = cache.restore

        def noted(stage: Any, *args: Any, **kwargs: Any) -> None:
            try:
                restore(stage, *args, **kwargs)
            except RunCacheNotFoundError:
                if self.may_make:
                    raise  # DVC makes it then
                raise NotThere(stage.addressing) from None
            self.fetched.add(stage.addressing)

        cache.restore, cache.pull = noted, lambda remote, odb=None: []

    def _try(self, otherwise: str, work: Callable[[], Any]) -> bool:
        """A remote fails in as many ways as there are kinds of remote."""
        try:
            work()
        except Exception as error:
            self.emit({"event": "note", "text": f"data: {otherwise} ({storage.address()}: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]})"})
            return False
        return True
