"""Places of a machine: how many flow runs it begins at once. The others wait on the server, as Scheduled or Late, and not as processes.

A flow run is a process of some 200 MB from its first moment, also while it waits for a slot. So this machine's workers, however many there are, together
start as many as it has slots and a few more, which have their imports behind them when a slot becomes free; MODELYARD_RUNS says how many. A
place is a locked file that the flow's own process inherits: it counts as long as that process lives, whatever became of its worker.

The server offers runs by the time for which they were scheduled, so the order submitted is the order begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import anyio

from components import slots
from components.schema.config import BadInput

SPARE = 2


def count() -> int:
    """Flow runs at once on this machine. Errors: BadInput."""
    asked = os.environ.get("MODELYARD_RUNS") or str(len(slots.names("gpu")) + len(slots.names("cpu")) + SPARE)
    if not asked.isdigit() or not int(asked):
        raise BadInput(f"platform: MODELYARD_RUNS={asked!r} is not a whole number from 1, so no flow could ever start. Correct it, or unset it for one more than enough ({SPARE} beside the slots)")
    return int(asked)


class Places:
    """A worker's limit, in the place of Prefect's own (anyio.CapacityLimiter), which knows of one worker only and forgets what outlives it."""

    def __init__(self) -> None:
        self.taken: list[tuple[UUID, int]] = []
        """Flow run and locked file, as they were taken; a run is there twice while an older try at it is ending."""

    @property
    def borrowed_tokens(self) -> int:
        return len(self.taken)

    def acquire_on_behalf_of_nowait(self, borrower: UUID) -> None:
        """Errors: anyio.WouldBlock where every place is taken."""
        for number in range(count()):
            file = slots.open_lock(_path(number))
            if slots.try_lock(file):
                self.taken.append((borrower, file))
                return
            os.close(file)
        raise anyio.WouldBlock

    def release_on_behalf_of(self, borrower: UUID) -> None:
        """Our own copy; a process that inherited it goes on holding. Errors: RuntimeError where it holds none, as with Prefect's own."""
        held = next((entry for entry in self.taken if entry[0] == borrower), None)
        if held is None:
            raise RuntimeError(f"flow run {borrower} holds no place")
        self.taken.remove(held)
        os.close(held[1])

    def files_of(self, borrower: str | None) -> tuple[int, ...]:
        """What the process of a flow run is to inherit: the place that was taken for it last."""
        return tuple(file for run, file in self.taken if str(run) == borrower)[-1:]


def free() -> int:
    """How many more flow runs could begin now."""
    return sum(slots.is_free(_path(number)) for number in range(count()))


def _path(number: int) -> Path:
    return slots.folder() / f"place-{number}.lock"
