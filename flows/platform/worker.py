"""A Prefect worker that outlasts its server: `python -m flows.platform.worker --name HOST-1`.

Prefect's own ends itself, and with it the runs that it started, when the API has been away for some minutes. This one goes on asking, at
most half a minute apart, for as long as it takes. And it hands its log to the runs that it starts: from Prefect's own they get a
pipe, and the first line that they write after their worker was killed ends them. Nothing else about it is changed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

POOL = "modelyard"
LONGEST_PAUSE_S = 30.0


async def ask_forever(workload: Callable[[], Awaitable[Any]], interval: float, printer: Callable[[str], Any] = print, **_: Any) -> None:
    """Prefect's loop around a worker's polling and heartbeat, without its end: errors of the network and of the server (5xx) only slow it down."""
    import httpx

    failures = 0
    while True:
        try:
            await workload()
            if failures:
                printer(f"the API answers again, after {failures} failures")
            failures = 0
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise
            failures += 1
            printer(f"the API does not answer ({type(error).__name__}: {error}); asking again, runs go on meanwhile")
        await asyncio.sleep(min(interval * 2 ** min(failures, 8), max(interval, LONGEST_PAUSE_S)))


async def run_in_our_log(command: list[str], *, stream_output: Any = None, task_status: Any = None, task_status_handler: Any = None, **kwargs: Any) -> Any:
    """Prefect's `run_process`, the standard output left as it is."""
    from prefect.utilities.processutils import open_process

    async with open_process(command, stdout=None, stderr=None, **kwargs) as process:
        if task_status is not None:
            task_status.started(task_status_handler(process) if task_status_handler else process.pid)
        await process.wait()
    return process


def adapt() -> None:
    """Put both into this process's Prefect; they stand against the version that is pinned. Errors: AttributeError with any other that lacks their places."""
    from prefect.runner import _starter_engine
    from prefect.workers import base

    for module, name, ours in ((base, "critical_service_loop", ask_forever), (_starter_engine, "run_process", run_in_our_log)):
        getattr(module, name)
        setattr(module, name, ours)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.platform.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=os.uname().nodename, help="how the worker is called in Prefect's UI")
    name = parser.parse_args().name
    from prefect.utilities.processutils import setup_signal_handlers_worker
    from prefect.workers.process import ProcessWorker

    adapt()
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    asyncio.run(ProcessWorker(name=name, work_pool_name=POOL).start())


if __name__ == "__main__":
    main()
