"""A Prefect worker that outlasts its server: `python -m flows.platform.worker --name HOST-1`.

Prefect's own ends itself, and with it the runs that it started, when the API has been away for some minutes. This one goes on asking, at
most half a minute apart, for as long as it takes. It starts no more runs than its machine has places for (places.py). And it hands its log
to the runs that it starts: from Prefect's own they get a pipe, and the first line that they write after their worker was killed ends them.
Nothing else about it is changed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from flows.platform.places import Places

POOL = "modelyard"
LONGEST_PAUSE_S = 30.0
places = Places()


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
    """Prefect's `run_process`, the standard output left as it is, and with the run's place to hold."""
    from prefect.utilities.processutils import open_process

    place = places.files_of((kwargs.get("env") or {}).get("PREFECT__FLOW_RUN_ID"))
    async with open_process(command, stdout=None, stderr=None, pass_fds=place, **kwargs) as process:
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


def adapted(worker: type[Any]) -> type[Any]:
    """A worker class whose limit are this machine's places, and which outlasts a server that goes away between a run's offer and its beginning."""
    import httpx

    setup, submit = worker.setup, worker._submit_run

    async def set_up(self: Any) -> None:
        await setup(self)
        self._limiter = places

    async def submit_or_leave(self: Any, flow_run: Any) -> None:
        try:
            await submit(self, flow_run)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:  # Prefect's would end, and its runs with it
            print(f"flow run {flow_run.id} could not be begun ({type(error).__name__}: {error}); it is offered again", flush=True)
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)

    worker.setup, worker._submit_run = set_up, submit_or_leave
    return worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.platform.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=os.uname().nodename, help="how the worker is called in Prefect's UI")
    name = parser.parse_args().name
    from prefect.utilities.processutils import setup_signal_handlers_worker
    from prefect.workers.process import ProcessWorker

    adapt()
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    asyncio.run(adapted(ProcessWorker)(name=name, work_pool_name=POOL).start())


if __name__ == "__main__":
    main()
