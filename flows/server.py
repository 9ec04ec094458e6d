"""The Prefect server that a run talks to: the configured one, else the running platform's, else one of its own, stopped at the end.

Prefect's ephemeral mode loses the last events of a run; a run's own server is the real one, with its database kept in the project (the platform's
too), so that the history of every run is there the next time (and in the UI while it runs).
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from components.schema.config import BadInput, Unavailable
from components.schema.records import home

QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
SETTINGS = {
    **QUIET,
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal has a screen of its own; the logs go to the server
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}
START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 45.0  # a server that is being started again comes back sooner


def join() -> None:
    """Use the platform of this home from now on, in this process and its stages, where one runs and nothing else is configured."""
    from flows.platform.state import State

    if platform := State.running():
        for name, value in {"PREFECT_API_URL": platform.prefect_url, "MLFLOW_TRACKING_URI": platform.mlflow_url, "PREFECT_HOME": str(home() / "prefect")}.items():
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def prefect_server() -> Iterator[str]:
    """Yield the API's address: the configured one, the platform's, or that of a server that lives as long as this block. Errors: BadInput."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    join()
    if url := os.environ.get("PREFECT_API_URL"):
        check_answers(url)
        yield url
        _flush()
        return
    folder = home() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(folder)
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PREFECT_SERVER_UI_API_URL": url},  # the page would look for the API at its default port
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_until_healthy(url, process)
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        _flush()
        os.environ.pop("PREFECT_API_URL", None)
        _stop(process)


def check_answers(url: str, patience_s: float = ANSWER_TIMEOUT_S) -> None:
    """Errors: Unavailable where the API does not answer; BadInput where it asks for another account than ours."""
    deadline, said = time.monotonic() + patience_s, ""
    while True:
        try:
            with urllib.request.urlopen(request(f"{url}/admin/version"), timeout=10):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise BadInput(f"prefect: the server at {url} asks for an account and refused ours, so nothing was started. Set PREFECT_API_AUTH_STRING=user:password as the platform has it") from None
            if error.code < 500:
                return
            said = f"it answers {error.code}"
        except OSError as error:
            said = str(getattr(error, "reason", error))
        if time.monotonic() > deadline:
            raise Unavailable(f"prefect: the server at {url} does not answer ({said}), so nothing was started. Look at it with `modelyard status`, or unset PREFECT_API_URL to run without one")
        time.sleep(0.5)


def request(url: str) -> urllib.request.Request:
    """A request to Prefect's API, with the account of the environment."""
    account = os.environ.get("PREFECT_API_AUTH_STRING")
    return urllib.request.Request(url, headers={"Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"} if account else {})


def _flush() -> None:
    """Logs and events still on their way reach the server before it stops."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=5)


def _end_with_parent() -> None:
    """Between fork and exec: the server goes when we do, even by SIGKILL."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.15)
    _stop(process)
    log = home() / "prefect" / "server.log"
    raise BadInput(f"prefect: its server did not come up on {url}; nothing was started. Read {log}, and run `modelyard doctor`")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
