"""Copies an unfinished stage's newest state to the store while it trains, in a process of its own.

    python -m components.storage.mirror FOLDER.partial IDENTITY       (started by the stage; it reads `end` or `drop` from standard input)

A process of its own costs training no time in Python's lock, cannot hang it, and outlives it by a few seconds: where the stage was
killed, what it had written is still sent. It says what went wrong, and that it is right again, as lines that the stage passes on.
A store that is away costs attempts, nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.schema import storage
from components.schema.config import BadInput, Unavailable
from components.storage import unfinished
from components.storage.store import Store, configured

Say = Callable[[dict[str, Any]], None]
EVERY_S = 15.0  # between two copies; MODELYARD_STORE_EVERY_S
LOOK_S = 1.0
LAST_WORD_S = 60.0  # how long it may go on after its stage ended
FAREWELL_S = 3.0  # how long a stage that ends early waits for its last checkpoint's copy; it goes on after that


@contextlib.contextmanager
def mirrored(partial: Path, identity: str, say: Say) -> Iterator[None]:
    """While this is open, the folder's newest state is copied to the store; nothing happens where there is no store."""
    if storage.address() is None:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "components.storage.mirror", str(partial), identity],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # the signal that ends the stage must not end the copy of its last checkpoint
    )
    threading.Thread(target=_pass_on, args=(process, say), name="mirror", daemon=True).start()
    try:
        yield
    except BaseException:
        _tell(process, "end", FAREWELL_S)
        raise
    _tell(process, "drop", 10)  # the result itself is copied now


def _pass_on(process: subprocess.Popen[str], say: Say) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say({"event": "note", "text": line.rstrip()})


def _tell(process: subprocess.Popen[str], word: str, wait_s: float) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(f"{word}\n")
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)


def main(partial: Path, identity: str) -> None:
    """Look, copy what changed, until told or left."""
    os.nice(10)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends with its stage, which is told
    with partial.with_name(f"{partial.name}.mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that outlives a killed attempt sends its state first
        _Copying(partial, identity).until_told()


class _Copying:
    """What was sent last, and how the store was then."""

    def __init__(self, partial: Path, identity: str) -> None:
        self.partial, self.identity = partial, identity
        self.every = float(os.environ.get("MODELYARD_STORE_EVERY_S", EVERY_S))
        self.marks: frozenset[tuple[str, int, int]] = frozenset()
        self.trouble = self.told_once = False

    def until_told(self) -> None:
        began = time.monotonic()
        due = began + min(self.every, LOOK_S)
        while (word := _heard(LOOK_S)) is None:
            if time.monotonic() >= due:
                self.copy()
                due = time.monotonic() + self.every
        ended = time.monotonic()
        while word != "drop" and not self.copy() and time.monotonic() - ended < LAST_WORD_S:
            time.sleep(LOOK_S)

    def copy(self) -> bool:
        """Send what changed; whether the store now has what is here."""
        seen = unfinished.look(self.partial)
        if not self.partial.exists() or seen.marks == self.marks:
            return True
        try:
            store = configured()
            state = unfinished.send(store, self.partial, self.identity) if store else None
        except BadInput as error:  # away, or it refuses: training goes on either way
            self._complain(error)
            return not isinstance(error, Unavailable)
        except Exception as error:  # Superseded, or a defect: neither is training's affair
            self._complain(error)
            return True
        self._is_well(store, state)
        self.marks = seen.marks if state else frozenset()
        return state is not None

    def _complain(self, error: Exception) -> None:
        if not self.trouble:
            _print(f"checkpoints stay on this machine for now; the stage goes on: {error}")
        self.trouble = True

    def _is_well(self, store: Store | None, state: unfinished.State | None) -> None:
        if store and state and (self.trouble or (state.step and not self.told_once)):
            _print(f"checkpoints are copied to {store.root} {'again' if self.trouble else 'as they are written'} (now step {state.step})")
            self.told_once = True
        if state:
            self.trouble = False


def _heard(timeout_s: float) -> str | None:
    """A word from the stage; `end` where it is gone."""
    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return (sys.stdin.readline().strip() or "end") if ready else None


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the stage may be gone
        print(text.replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
