"""What a platform keeps an eye on, beside the runs themselves: `python -m flows.watching`, which `modelyard up` starts on every machine.

A duty is a name, how often it is due in seconds, and a function without arguments. Each has a thread of its own, so that none waits for another;
one that fails says so and is called again when it is due. Duties in ONCE concern the whole platform: of all machines' watches one does them, the one that
holds a slot of the server's; when it dies, another one takes over within a minute or two.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from uuid import UUID

from prefect.client.orchestration import get_client

Duty = tuple[str, float, Callable[[], None]]


def _later(module: str, function: str) -> Callable[[], None]:
    """A duty's function, imported when it is due first."""
    return lambda: getattr(importlib.import_module(module), function)()


DUTIES: list[Duty] = [
    ("runs", 5.0, _later("flows.watchdog", "look")),
    ("notifications", 5.0, _later("flows.notifications", "watch")),
    ("approvals", 15.0, _later("flows.approval", "watch")),
    ("data", 30.0, _later("flows.triggers", "watch")),
    ("people", 30.0, _later("flows.people", "watch")),
]
ONCE = {"notifications", "approvals", "data", "people"}

SLOT, LEASE_S = "modelyard-watch", 60.0
logger = logging.getLogger("modelyard.watching")


class Leader:
    """Whether this process does what concerns the whole platform: it does while it holds the one slot, whose lease it renews."""

    def __init__(self) -> None:
        self.lease: UUID | None = None
        self.until = 0.0
        self.lock = threading.Lock()

    def leads(self) -> bool:
        """True where the slot is ours for at least some seconds more. A server that does not answer makes no leader."""
        with self.lock:
            if self.until - time.monotonic() > LEASE_S / 2:
                return True
            began = time.monotonic()
            if self._renewed() or self._taken():
                self.until = began + LEASE_S
                return True
            return self.until > time.monotonic() + 5.0

    def _renewed(self) -> bool:
        if self.lease is None:
            return False
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            client.renew_concurrency_lease(self.lease, LEASE_S)
            return True
        return False

    def _taken(self) -> bool:
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(SLOT, 1)
            answer = client.increment_concurrency_slots_with_lease([SLOT], 1, "concurrency", LEASE_S)
            self.lease = UUID(answer.json()["lease_id"])
            logger.info("this watch (%s, process %d) does the duties of the whole platform", socket.gethostname(), os.getpid())
            return True
        return False

    def give_up(self) -> None:
        """At the end: the next watch need not wait for the lease to run out."""
        if self.lease is not None:
            with contextlib.suppress(Exception), get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(self.lease)


def main() -> None:
    """Do every duty when it is due, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr, force=True)
    for noisy in ("httpx", "prefect"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not os.environ.get("PREFECT_API_URL"):
        sys.exit("error: watching: PREFECT_API_URL is not set, so there is nothing to watch. `modelyard up` starts this with it")
    stopping, leader = threading.Event(), Leader()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    for duty in DUTIES:
        threading.Thread(target=_keep_doing, args=(duty, leader, stopping), name=duty[0], daemon=True).start()
    while not stopping.wait(1.0):
        pass
    leader.give_up()


def _keep_doing(duty: Duty, leader: Leader, stopping: threading.Event) -> None:
    """One duty for ever. What it fails with is logged where it changes."""
    name, every_s, function = duty
    said = ""
    while not stopping.is_set():
        try:
            if name not in ONCE or leader.leads():
                function()
            said = ""
        except Exception as error:
            if (text := f"{type(error).__name__}: {error}") != said:
                logger.warning("%s: %s", name, text, exc_info=not isinstance(error, OSError) and not said)
                said = text
        stopping.wait(every_s)


if __name__ == "__main__":
    main()
