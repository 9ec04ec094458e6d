"""How a flow's process sits out a Prefect server that is away: it asks again every few seconds, for half an hour.

Prefect's client doubles its pauses without end (the tenth is 17 minutes, so that a run would notice late that its server is back), gives up at once
where a new connection is refused, and ends a run whose deployment's lease ran out meanwhile. No setting changes these three; they are changed here,
in the process of a flow run alone, and against the versions that pyproject.toml pins (tests/services/test_resume.py).
"""

from __future__ import annotations

import os
from typing import Any

PAUSE_S = 10.0
PATIENCE_S = float(os.environ.get("MODELYARD_PATIENCE_S", 1800))


class _Retries:
    """In place of the setting of that name."""

    @staticmethod
    def value() -> int:
        return max(5, int(PATIENCE_S / PAUSE_S))


def ride() -> None:
    """Be patient from now on, in this process. Safe to call again."""
    from prefect import flow_engine
    from prefect.client import base

    if getattr(base, "_modelyard", False):
        return
    base._modelyard = True
    clamped = base.clamped_poisson_interval
    base.clamped_poisson_interval = lambda seconds, factor=0.3: clamped(min(seconds, PAUSE_S), factor)
    base.PREFECT_CLIENT_MAX_RETRIES = _Retries
    for client in (base.PrefectHttpxAsyncClient, base.PrefectHttpxSyncClient):
        client.send = _as_if_connected(client)
    maintain = flow_engine.maintain_concurrency_lease

    def keep(lease_id: Any, lease_duration: float, raise_on_lease_renewal_failure: bool = False, suppress_warnings: bool = False) -> Any:
        return maintain(lease_id, lease_duration, False, suppress_warnings)

    flow_engine.maintain_concurrency_lease = keep


def without_heartbeats() -> None:
    """No heartbeats of Prefect's from now on, in this process: nobody reads them (flows/watchdog.py asks locks), and each flow within a run waits up to a second
    for the end of its own, seven in a line. The setting takes no value that means none. Safe to call again.
    """
    from prefect import flow_engine

    flow_engine.BaseFlowRunEngine.heartbeat_seconds = property(lambda engine: None)


def _as_if_connected(client: Any) -> Any:
    """A refused connection is tried again, also by a client that has never had one."""
    send = client.send
    if client.__name__ == "PrefectHttpxSyncClient":

        def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._has_connected = True
            return send(self, *args, **kwargs)

        return patient

    async def patient_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._has_connected = True
        return await send(self, *args, **kwargs)

    return patient_async
