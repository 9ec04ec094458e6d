"""The queue for a host's slots that people see: one of Prefect's global concurrency limits for each kind, "gpu slots of HOST".

It is the view and the queue; what keeps two stages off one device is the lock behind it (components/slots.py), which needs no server and which a
process that outlived its flow still holds. So a lost lease, a server that is away and a limit that somebody changed by hand cost order, never a device:
the lease is renewed where possible, and where the queue stands still although the host has free slots, the stage goes ahead.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from components import slots
from components.schema.jobs import Job

LEASE_S = 60.0  # the least that Prefect takes: so long a killed holder's place in the queue stays taken
TRY_S = 15.0
PAUSE_S = 2.0
FULL = 423  # what the server says where no slot is free
STALE_S = 15.0  # the queue says no although the host has had free slots for so long: whoever it waits for is gone, and its lease will say so a minute later


def name_of(kind: str) -> str:
    """The limit's name, as the page of concurrency limits shows it."""
    return f"{kind} slots of {os.uname().nodename}"


@contextmanager
def queued(job: Job, say: Callable[[str], None]) -> Iterator[None]:
    """Wait in the host's queue for what this job takes, and keep the place while it runs."""
    wanted = slots.need(job.stage, job.run.resources)
    with ExitStack() as stack:
        if wanted:
            _enter(stack, wanted, say)
        yield


def declare() -> dict[str, int]:
    """Make this host's limits as large as it has slots; gives them by name. Safe to call again."""
    limits = {name_of(kind): len(slots.names(kind)) for kind in ("gpu", "cpu") if slots.names(kind)}
    with get_client(sync_client=True) as client:
        for name, limit in limits.items():
            client.upsert_global_concurrency_limit_by_name(name, limit)
    return limits


async def register(client: object) -> str:
    """What `modelyard up` tells the server: this host's limits."""
    limits = await asyncio.to_thread(declare)
    return ", ".join(f"{name}: {limit}" for name, limit in limits.items())


@cache
def _declared(api: str) -> dict[str, int]:
    return declare()


def _enter(stack: ExitStack, wanted: slots.Need, say: Callable[[str], None]) -> None:
    """Take a place in the queue; without one where the queue cannot be asked, or is stale. First come, first served, by when a run was asked for."""
    told = False

    def wait() -> None:
        nonlocal told
        if not told:
            say(f"waiting for {wanted.kind} slot{'s' if wanted.count > 1 else ''} in the queue {name_of(wanted.kind)!r}")
            told = True
        time.sleep(PAUSE_S)

    with slots.turn(f"{wanted.kind}-queue", wait):
        free_since: float | None = None
        while not (place := _place(wanted, say)):
            free_since = (free_since or time.monotonic()) if slots.free(wanted.kind) >= wanted.count else None
            if free_since and time.monotonic() - free_since > STALE_S:
                say(f"the queue of {wanted.kind} slots stands still although this host has free ones: going ahead; the host's own locks keep devices apart")
                return
            wait()
        stack.callback(_leave, place)


def _place(wanted: slots.Need, say: Callable[[str], None]) -> object:
    """Ask the queue once; None where it is full or does not answer in time. Whoever cannot ask it has the place all the same."""
    try:
        _declared(os.environ.get("PREFECT_API_URL", ""))
        place = concurrency(name_of(wanted.kind), occupy=wanted.count, timeout_seconds=TRY_S, max_retries=0, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False)
        place.__enter__()
    except TimeoutError:
        return None
    except Exception as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is not None and answer.status_code == FULL:
            return None
        say(f"the queue of {wanted.kind} slots could not be asked ({type(error).__name__}): going on with the host's own locks")
        return nullcontext()
    return place


def _leave(place: object) -> None:
    """Give the place back; one that cannot be given back runs out by itself."""
    with suppress(Exception):
        place.__exit__(None, None, None)  # type: ignore[attr-defined]
