"""What a platform runs: one specification for each child, as plain data that follows from the settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from components.schema.serving import ServeConfig
from flows.platform.ending import MARK, mark
from flows.platform.settings import Settings
from flows.server import QUIET

# What every process of a platform is told, unless the environment says otherwise.
SHARED = {
    **QUIET,
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",
}
PREFECT_SERVER = {
    # In files: a restart of the server neither frees a slot that is taken nor keeps one that is free.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_UI_API_URL": "/api",  # whatever name the page was opened by
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # seconds; SQLite on a busy machine is locked for longer than the 10 that Prefect waits
}
MLFLOW_SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else eight more processes
# Workers hand this on to the flow runs that they start.
WORKER = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",  # beside 502 and 503; how long a run waits for its server: flows/outages.py
}
# Children whose libraries are optional: the module, and the extra that brings it.
NEEDS = {"dashboard": ("streamlit", "dashboard"), "feedback": ("krippendorff", "feedback"), "exporter": ("prometheus_client", "services"), "serving": ("prometheus_client", "serving")}


@dataclass(frozen=True)
class Child:
    """One process that is kept running."""

    name: str
    command: tuple[str, ...]
    address: str | None = None
    health: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """What it is told, whatever the environment says."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """What it is told where the environment says nothing."""
    after: tuple[str, ...] = ()
    """Children that must be ready before it is started for the first time."""
    grace_s: float = 15.0
    """Seconds between SIGTERM and SIGKILL when the platform ends."""
    is_worker: bool = False
    """Whether it starts flow runs, which go on when it is lost."""


def children(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Child, ...]:
    """In the order in which they start; they end the other way round."""
    servers = [*([] if settings.prefect_given else [_prefect(settings)]), *([] if settings.mlflow_given else [_mlflow(settings, environ)])]
    after = tuple(server.name for server in servers)
    rest = [_worker(number, after) for number in range(1, settings.workers + 1)]
    rest.append(_module("watching", after))
    if settings.ports["metrics"]:
        rest.append(_module("exporter", after, address=(there := f"{settings.url('metrics')}/metrics"), health=there))
    if settings.ports["dashboard"]:
        rest.append(_dashboard(settings, after))
    if settings.ports["feedback"]:
        rest.append(_feedback(settings, after))
    if settings.ports["serving"]:
        rest.append(_serving(settings, after))
    absent = lacking()
    return tuple(servers) + tuple(child for child in rest if child.name not in absent)


def lacking() -> dict[str, str]:
    """Children that cannot be started here, and what to install for them."""
    return {name: f"pip install 'modelyard[{extra}]'" for name, (module, extra) in NEEDS.items() if find_spec(module) is None}


def environment(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every child has in its environment."""
    told = {
        MARK: mark(),
        "MODELYARD_PROJECT": str(settings.project),
        "MODELYARD_HOME": str(settings.home),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_API_URL": settings.prefect_url,
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }
    if settings.prefect_account:
        told["PREFECT_API_AUTH_STRING"] = settings.prefect_account
    pages = {} if settings.prefect_given else {"PREFECT_UI_URL": settings.page("prefect")}
    endpoint = {"MODELYARD_SERVING_URL": settings.url("serving")} if settings.serve else {}
    ranking = {"MODELYARD_FEEDBACK_PAGE": settings.url("feedback")} if settings.ports["feedback"] else {}
    return {**SHARED, **pages, **endpoint, **ranking, **environ, **told}


def _prefect(settings: Settings) -> Child:
    account = {"PREFECT_SERVER_API_AUTH_STRING": settings.prefect_account} if settings.prefect_account else {}
    command = _python("prefect", "server", "start", "--host", settings.host, "--port", str(settings.ports["prefect"]))
    return Child("prefect", command, settings.url("prefect"), f"{settings.prefect_url}/health", account, PREFECT_SERVER | _origins(settings), grace_s=20)


def _origins(settings: Settings) -> dict[str, str]:
    """Only our own pages may call the API from a browser; Prefect's default lets any page of the web that someone opens do it."""
    port = settings.ports["prefect"]
    return {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}"}


def _mlflow(settings: Settings, environ: Mapping[str, str]) -> Child:
    folder = settings.home / "mlflow"
    told = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts")}  # by environment: everybody sees a command line
    command = _python("mlflow", "server", "--host", settings.host, "--port", str(settings.ports["mlflow"]), "--workers", "1")
    account = {}
    if settings.mlflow_account:
        user, password = settings.mlflow_account
        account = {"MLFLOW_AUTH_ADMIN_USERNAME": user, "MLFLOW_AUTH_ADMIN_PASSWORD": password}
        told |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "accounts.ini")}
        command += ("--app-name", "basic-auth")
    return Child("mlflow", command, settings.url("mlflow"), f"{settings.url('mlflow')}/health", account, MLFLOW_SERVER | told)


def _worker(number: int, after: tuple[str, ...]) -> Child:
    command = _python("flows.platform.worker", "--name", f"{os.uname().nodename}-{number}")
    return Child(f"worker-{number}", command, defaults=WORKER, after=after, is_worker=True)


def _dashboard(settings: Settings, after: tuple[str, ...]) -> Child:
    options = {"server.address": settings.host, "server.port": settings.ports["dashboard"], "server.headless": "true", "server.fileWatcherType": "none", "browser.gatherUsageStats": "false", "client.toolbarMode": "minimal", "runner.magicEnabled": "false"}
    command = _python("streamlit", "run", "dashboards/app.py", *(f"--{key}={value}" for key, value in options.items()))
    return Child("dashboard", command, address=settings.url("dashboard"), health=f"{settings.url('dashboard')}/_stcore/health", after=after)


def _feedback(settings: Settings, after: tuple[str, ...]) -> Child:
    command = _python("components.feedback.people.server", "--host", settings.host, "--port", str(settings.ports["feedback"]))
    return Child("feedback", command, address=settings.url("feedback"), health=f"{settings.url('feedback')}/health", after=after, grace_s=12)


def _serving(settings: Settings, after: tuple[str, ...]) -> Child:
    options = ServeConfig.asked("serve", model=settings.serve, host=settings.host, port=settings.ports["serving"], wait=True)
    command = _python("components", "serve", "--options", options.model_dump_json(exclude_unset=True))
    return Child("serving", command, address=settings.url("serving"), health=f"{settings.url('serving')}/health", after=after, grace_s=options.stop_s + 5)


def _module(name: str, after: tuple[str, ...], address: str | None = None, health: str | None = None) -> Child:
    return Child(name, _python(f"flows.{name}"), address=address, health=health, after=after, grace_s=10)


def _python(module: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *words)
